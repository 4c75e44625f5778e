//! What is lost of a file shows: on standard error, in JSON and in the exit code, also with `-q`.

use std::path::PathBuf;

use serde_json::json;
use tests::mp4::{two_tracks, with_empty_edit};

use crate::run::{Run, clip, fixtures, tympan};

/// A file in a folder of its own.
struct Written {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Written {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Self { _dir: dir, path }
    }

    fn transcribe(&self, args: &[&str]) -> Run {
        tympan(["transcribe"].iter().chain(args).map(AsRef::as_ref).chain([self.path.as_os_str()]))
    }
}

fn format(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("formats").join(name)).unwrap()
}

/// A WAV file of the fixtures without its last samples. They are 16 kHz, 16 bits.
fn cut_by(n_samples: usize) -> Written {
    let whole = std::fs::read(clip("digits_eight.wav")).unwrap();
    Written::new("cut.wav", &whole[..whole.len() - 2 * n_samples])
}

#[test]
fn half_a_second_lost_is_exit_1_and_less_is_not() {
    for (n_samples, code) in [(8000, 1), (7000, 0)] {
        let cut = cut_by(n_samples);
        let loud = cut.transcribe(&["-f", "jsonl"]).expect(code);
        let seconds = n_samples as f64 / 16_000.0;
        assert!(loud.err.contains(&format!("cut.wav: damaged: {seconds:.2} s lost (")), "{}", loud.err);
        let quiet = cut.transcribe(&["-q", "-f", "jsonl"]).expect(code);
        assert_eq!(quiet.err, "");
        let document = &quiet.json_lines()[0];
        let [damaged] = &document["damaged"].as_array().unwrap()[..] else { panic!("{document}") };
        assert_eq!(damaged["start"], document["duration"]);
        let lost = damaged["end"].as_f64().unwrap() - damaged["start"].as_f64().unwrap();
        assert!((lost - seconds).abs() < 2e-3, "{damaged}");
        assert_eq!(damaged["what"], "the file ends early");
    }
}

#[test]
fn the_text_of_a_damaged_file_is_written_all_the_same() {
    let out = tempfile::tempdir().unwrap();
    let cut = cut_by(8000);
    let run = cut.transcribe(&["-o", out.path().to_str().unwrap()]).expect(1);
    assert!(!run.err.contains("error"), "{}", run.err);
    assert!(!std::fs::read_to_string(out.path().join("cut.txt")).unwrap().trim().is_empty());
}

#[test]
fn a_track_that_is_left_out_is_exit_1() {
    let film = Written::new("film.mp4", &two_tracks(&format("ac3.mp4"), &format("aac.m4a")));
    let loud = film.transcribe(&["-f", "jsonl"]).expect(1);
    assert!(loud.err.contains("film.mp4: no decoder for ac3: left out; this is audio track 2 (aac)"), "{}", loud.err);
    let document = &film.transcribe(&["-q", "-f", "jsonl"]).expect(1).json_lines()[0];
    assert_eq!(document["track"], json!({"index": 2, "codec": "aac", "left_out": ["ac3"]}));
    let film = Written::new("film.mp4", &two_tracks(&format("aac.m4a"), &format("ac3.mp4")));
    let document = &film.transcribe(&["-q", "-f", "jsonl"]).expect(0).json_lines()[0];
    assert_eq!(document["track"], json!({"index": 1, "codec": "aac", "left_out": []}));
}

#[test]
fn times_are_those_of_a_film_whose_sound_starts_late() {
    let plain = Written::new("film.mp4", &format("aac.m4a"));
    let late = Written::new("film.mp4", &with_empty_edit(&format("aac.m4a"), 3000));
    let times = |file: &Written| {
        let document = file.transcribe(&["-q", "-f", "jsonl"]).expect(0).json_lines()[0].clone();
        let end = document["segments"].as_array().unwrap().last().unwrap()["end"].as_f64().unwrap();
        assert_eq!(document["duration"], end);
        (document["segments"][0]["start"].as_f64().unwrap(), end, document["text"].clone())
    };
    let ((start, end, text), (late_start, late_end, late_text)) = (times(&plain), times(&late));
    assert_eq!((late_start - start, text), (3.0, late_text));
    assert!((late_end - end - 3.0).abs() < 2e-3, "{late_end}");
}

#[test]
fn what_cannot_be_decoded_comes_with_a_command_that_converts_it() {
    for name in ["opus.ogg", "ac3.mka"] {
        let run = Written::new(name, &format(name)).transcribe(&["-q"]).expect(3);
        assert!(run.err.contains("there is no decoder); convert it: ffmpeg -i '"), "{}", run.err);
        assert!(run.err.contains("-ac 1 -ar 16000"), "{}", run.err);
    }
    let run = Written::new("text.wav", b"not a sound at all").transcribe(&["-q"]).expect(3);
    assert!(!run.err.contains("ffmpeg"), "{}", run.err);
}
