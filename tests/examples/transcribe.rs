//! Transcribes a file from a program of your own.
//!
//! `cargo run --release -p tests --example transcribe -- [AUDIO [CHECKPOINT_DIR]]`; without arguments a clip and the small
//! model of the fixtures.

use std::path::{Path, PathBuf};

use engine::DType;
use models::LoadOptions;
use models::audio::{decode_file, normalize, resample};
use models::transcribe::{RATE_HZ, Request, Transcriber};

fn main() -> anyhow::Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let audio = arguments.next().unwrap_or_else(|| fixtures.join("audio/digits_eight.wav"));
    let checkpoint = arguments.next().unwrap_or_else(|| fixtures.join("models/tiny-qwen3-asr"));

    // The checkpoint is converted in memory. `Gguf::open` takes a file that is converted already, and `models::load` both
    // files of a pair.
    let file = convert::to_memory(&checkpoint)?;
    let loaded = models::load(vec![file], LoadOptions::default())?;
    let backend = backends::open("cpu", &backends::Options::default())?;
    let mut transcriber = Transcriber::open(&loaded, &[backend], DType::F16)?;

    let decoded = decode_file(&audio)?;
    let mut samples = resample(decoded.samples, decoded.rate_hz, RATE_HZ);
    normalize(&mut samples);
    let transcript = transcriber.transcribe(&samples, &Request::default(), &mut ())?;
    println!("{}", transcript.text);
    Ok(())
}
