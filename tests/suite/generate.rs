//! Answers of a language model: what stop texts leave of them, and what is shown while they come.

use std::ops::ControlFlow;

use convert::FileType;
use engine::DType;
use models::LoadOptions;
use models::generate::{End, Generator, Request};
use models::sample::Sampling;

use crate::checkpoint::{converted, fixture};

fn generator() -> Generator {
    let file = converted(&fixture("models/tiny-qwen3-asr"), FileType::F32);
    let options = LoadOptions { text_only: true, ..LoadOptions::default() };
    let loaded = models::load(vec![file], options).unwrap();
    let backend = backends::open("cpu", &backends::Options::default()).unwrap();
    Generator::open(&loaded, &[backend], DType::F16).unwrap()
}

/// Whatever stands in a text of many tokens, alone or beside another, ends it where it begins, and nothing of it is shown.
#[test]
fn stop_texts_never_leak() {
    let mut generator = generator();
    let prompt = generator.writer().prompt("turn the");
    let sampling = Sampling { temperature: 1.6, seed: 11, ..Sampling::default() };
    let request =
        Request { prompt: &prompt, max_tokens: 24, sampling, ignore_stop: true, stop: &[], prompt_logits: false };
    let whole = generator.generate(&request, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!((whole.ids.len(), whole.n_chosen, &whole.end), (24, 24, &End::Limit));
    let places: Vec<usize> = whole.text.char_indices().map(|(at, _)| at).chain([whole.text.len()]).collect();
    assert!(places.len() > 30, "{:?}", whole.text);
    for (i, &from) in places.iter().enumerate().step_by(3) {
        for &to in places[i + 1..].iter().take(12).step_by(2) {
            let stop = [whole.text[from..to].to_owned(), format!("{}#", &whole.text[from..to])];
            let want = &whole.text[..whole.text.find(&stop[0]).unwrap()];
            let (mut shown, mut shown_ids) = (String::new(), Vec::new());
            let request = Request { stop: &stop, ..request };
            let got = generator.generate(&request, &mut |ids, text| {
                assert!(text.starts_with(&shown) && want.starts_with(text), "{stop:?}: {text:?}");
                shown = text.to_owned();
                shown_ids.extend_from_slice(ids);
                ControlFlow::Continue(())
            });
            let got = got.unwrap();
            assert_eq!((got.text.as_str(), &got.end), (want, &End::Text(stop[0].clone())), "{stop:?}");
            assert!(got.ids.starts_with(&shown_ids) && whole.ids.starts_with(&got.ids), "{stop:?}");
            // Tokens with anything of the stop text are left out.
            assert!(want.starts_with(&generator.writer().tokenizer().decode(&got.ids, true)), "{stop:?}");
        }
    }
}

#[test]
fn a_stop_text_without_text_is_refused() {
    let generator = generator();
    let prompt = generator.writer().prompt("turn the");
    let stop = [String::new()];
    let (sampling, max_tokens) = (Sampling::default(), 1);
    let request =
        Request { prompt: &prompt, max_tokens, sampling, ignore_stop: false, stop: &stop, prompt_logits: false };
    assert!(generator.writer().check(&request).unwrap_err().to_string().contains("stop text: want some text"));
}

#[test]
fn the_template_of_a_file_is_there_or_not() {
    let template = generator().writer().template().unwrap().unwrap();
    assert!(format!("{template:?}").contains("wants_parts: false"));
    let file = converted(&fixture("golden/llama"), FileType::F32);
    let loaded = models::load(vec![file], LoadOptions::default()).unwrap();
    let backend = backends::open("cpu", &backends::Options::default()).unwrap();
    assert!(Generator::open(&loaded, &[backend], DType::F16).unwrap().writer().template().unwrap().is_none());
}
