//! Weights that are not finite: whatever tensor has one, no text comes out of it.

use std::ops::ControlFlow;

use engine::DType;
use models::LoadOptions;
use models::audio::decode_file;
use models::generate::{self, Generator};
use models::sample::Sampling;
use models::transcribe::{Request, Transcriber};
use models::{Error, Result};
use tests::draft::Draft;

use crate::checkpoint::{converted, fixture};

fn transcribe(draft: &Draft, samples: &[f32]) -> Result<String> {
    let loaded = models::load(vec![draft.in_memory()], LoadOptions::default())?;
    let backend = backends::open("cpu", &backends::Options::default()).unwrap();
    let mut transcriber = Transcriber::open(&loaded, &[backend], DType::F32)?;
    let request = Request { max_tokens: Some(3), ..Request::default() };
    transcriber.transcribe(samples, &request, &mut ()).map(|transcript| transcript.text)
}

fn generate(draft: &Draft) -> Result<String> {
    let loaded = models::load(vec![draft.in_memory()], LoadOptions::default())?;
    let backend = backends::open("cpu", &backends::Options::default()).unwrap();
    let mut generator = Generator::open(&loaded, &[backend], DType::F32)?;
    let request = generate::Request {
        stop: &[],
        prompt: &[1, 2, 3],
        max_tokens: 3,
        sampling: Sampling::default(),
        ignore_stop: true,
        prompt_logits: false,
    };
    generator.generate(&request, &mut |_, _| ControlFlow::Continue(())).map(|generated| format!("{:?}", generated.ids))
}

#[test]
fn no_text_comes_of_a_weight_that_is_not_finite() {
    let samples = decode_file(&fixture("audio/yes.wav")).unwrap().samples;
    for model in [
        "golden/qwen3_asr",
        "golden/lfm2_audio",
        "golden/lfm2",
        "golden/lfm2_moe",
        "golden/qwen3_5",
        "golden/qwen3_5_moe",
    ] {
        let whole = Draft::of(&converted(&fixture(model), convert::FileType::F32));
        let is_speech = whole.tensors.iter().any(|t| t.name.starts_with("a."));
        let run = |draft: &Draft| if is_speech { transcribe(draft, &samples) } else { generate(draft) };
        let text = run(&whole).unwrap();
        for (i, tensor) in whole.tensors.iter().enumerate() {
            assert_eq!(tensor.dtype, DType::F32);
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut draft = whole.clone();
                let bytes = &mut draft.tensors[i].bytes;
                let at = bytes.len() / 8 * 4;
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                match run(&draft) {
                    Err(Error::NotFinite { .. }) => {}
                    Err(Error::BadWeight { name, what, .. }) => {
                        assert_eq!(name, tensor.name);
                        assert!(what.starts_with("1 of ") && what.ends_with(" values are not finite"), "{what}");
                    }
                    // The row of a token, or the expert, that does not come up; a logit of minus infinity among them.
                    Ok(same)
                        if ["token_embd.weight", "output.weight"].contains(&&*tensor.name)
                            || tensor.name.contains("_exps.") =>
                    {
                        assert_eq!(same, text);
                    }
                    other => panic!("{model}: {}, {value}: {other:?}", tensor.name),
                }
            }
        }
    }
}
