//! Watching a transcription: what is told of it as it grows, and that it can be stopped anywhere.

use std::cell::Cell;
use std::num::NonZeroUsize;

use engine::DType;
use models::LoadOptions;
use models::audio::decode_file;
use models::transcribe::{Observer, Partial, Request, Segment, Transcriber, Transcript};
use models::{Error, Result};

use crate::checkpoint::{converted, fixture};

/// Where long audio is cut, in seconds.
const SEGMENT_S: f64 = 8.0;

/// Segments at once.
const N_PARALLEL: [usize; 2] = [1, 4];

fn transcriber(n_parallel: usize) -> Transcriber {
    let file = converted(&fixture("models/tiny-qwen3-asr"), convert::FileType::BF16);
    let loaded = models::load(vec![file], LoadOptions::default()).unwrap();
    let backend = backends::open("cpu", &backends::Options::default()).unwrap();
    Transcriber::open_parallel(&loaded, &[backend], DType::F16, NonZeroUsize::new(n_parallel).unwrap()).unwrap()
}

fn transcribe(transcriber: &mut Transcriber, observer: &mut dyn Observer) -> Result<Transcript> {
    let samples = decode_file(&fixture("audio/long_24s.wav")).unwrap().samples;
    let request = Request { segment_s: Some(SEGMENT_S), ..Request::default() };
    transcriber.transcribe(&samples, &request, observer)
}

/// Keeps what it is told, and stops after so many looks.
#[derive(Default)]
struct Witness {
    partials: Vec<String>,
    texts: Vec<String>,
    segments: Vec<Segment>,
    n_looks: Cell<usize>,
    stop_after: Option<usize>,
}

impl Observer for Witness {
    fn is_cancelled(&self) -> bool {
        self.n_looks.set(self.n_looks.get() + 1);
        self.stop_after.is_some_and(|n| self.n_looks.get() > n)
    }

    fn answer(&mut self, answer: &Partial<'_>) {
        self.partials.extend(answer.text_so_far());
    }

    fn segment(&mut self, so_far: &Transcript) {
        self.texts.push(so_far.text.clone());
        self.segments.extend(so_far.segments.last().cloned());
    }
}

#[test]
fn what_is_told_grows_into_the_transcript() {
    N_PARALLEL.into_iter().for_each(check_growth);
}

fn check_growth(n_parallel: usize) {
    let mut witness = Witness::default();
    let transcript = transcribe(&mut transcriber(n_parallel), &mut witness).unwrap();
    assert!(transcript.segments.len() >= 3, "{}", transcript.segments.len());
    assert_eq!(witness.segments, transcript.segments);
    assert_eq!(witness.texts.last(), Some(&transcript.text));
    for text in witness.texts.iter().chain(&witness.partials) {
        assert!(transcript.text.starts_with(text), "{text:?} is no beginning of {:?}", transcript.text);
    }
    assert!(witness.texts.is_sorted_by_key(String::len) && witness.partials.is_sorted_by_key(String::len));
    // The words of the last segment came one after the other too; in company some of them were there before its turn.
    let before_last = witness.texts.iter().rev().nth(1).unwrap();
    let n_last = witness.partials.iter().filter(|text| text.len() > before_last.len()).count();
    assert!(n_last > if n_parallel == 1 { 2 } else { 0 }, "{n_parallel}: {n_last}");
}

#[test]
fn it_stops_wherever_it_is_told_to_and_goes_on_with_the_next_clip() {
    N_PARALLEL.into_iter().for_each(check_stops);
}

fn check_stops(n_parallel: usize) {
    let mut transcriber = transcriber(n_parallel);
    let mut whole = Witness::default();
    let want = transcribe(&mut transcriber, &mut whole).unwrap();
    let n_looks = whole.n_looks.get();
    for stop_after in [0, 1, 2, 3, n_looks / 3, n_looks / 2, n_looks - 1] {
        let mut witness = Witness { stop_after: Some(stop_after), ..Witness::default() };
        let stopped = transcribe(&mut transcriber, &mut witness);
        assert!(matches!(stopped, Err(Error::Cancelled)), "after {stop_after} looks");
        assert_eq!(witness.n_looks.get(), stop_after + 1, "nothing is done after it");
        assert_eq!(witness.segments, want.segments[..witness.segments.len()]);
    }
    let again = transcribe(&mut transcriber, &mut ()).unwrap();
    assert_eq!((again.text, again.segments), (want.text, want.segments));
}
