//! Three minutes of speech with the built-in model and nothing but defaults.

use serde_json::Value;

use crate::exact_text::word_errors;
use crate::run::{fixtures, tympan};
use crate::subtitles::{of_srt, of_vtt};

/// The recording, and what is said in it.
const TALK: [&str; 2] = ["talk/talk.ogg", "talk/talk.txt"];
/// Its length in milliseconds.
const MS: u64 = 187_000;
/// Words that may be wrong, of a hundred.
const MAX_ERRORS: usize = 5;
/// Limits of a cue: columns of a line, lines, milliseconds.
const LIMITS: (usize, usize, u64) = (42, 2, 7000);

fn transcribed(format: &str) -> String {
    let recording = fixtures().join(TALK[0]);
    tympan(["transcribe", "-q", "-f", format, recording.to_str().unwrap()]).expect(0).out
}

/// What is said.
fn said() -> String {
    let said = std::fs::read_to_string(fixtures().join(TALK[1])).unwrap();
    assert!(said.split_whitespace().count() > 350);
    said
}

#[track_caller]
fn check_words(text: &str) {
    let said = said();
    let n_words = said.split_whitespace().count();
    let n_wrong = word_errors(&said, text);
    assert!(n_wrong * 100 <= n_words * MAX_ERRORS, "{n_wrong} of {n_words}: {text}");
}

#[test]
fn of_three_minutes_of_speech_95_of_100_words_are_right_with_defaults() {
    let document: Value = serde_json::from_str(&transcribed("json")).unwrap();
    assert!((document["duration"].as_f64().unwrap() * 1000.0 - MS as f64).abs() < 100.0, "{}", document["duration"]);
    check_words(document["text"].as_str().unwrap());
}

#[test]
fn subtitles_of_three_minutes_are_within_the_limits_of_cues() {
    let cues = of_srt(&transcribed("srt"));
    assert_eq!(of_vtt(&transcribed("vtt")), cues);
    let (max_columns, max_lines, max_ms) = LIMITS;
    let mut earliest = 0;
    for cue in &cues {
        assert!(cue.start >= earliest && cue.end > cue.start && cue.end <= MS + 100, "{cue:?} from {earliest}");
        assert!(cue.end - cue.start <= max_ms, "{cue:?}");
        // The vocabulary is ASCII: a character is a column.
        let is_narrow = cue.lines.iter().all(|line| line.is_ascii() && line.len() <= max_columns);
        assert!(is_narrow && (1..=max_lines).contains(&cue.lines.len()), "{cue:?}");
        earliest = cue.end;
    }
    // Pauses of two seconds and more, of which the recording has several, are in no cue.
    assert!(cues.windows(2).filter(|pair| pair[1].start - pair[0].end >= 1000).count() >= 5, "{cues:?}");
    let lines: Vec<&str> = cues.iter().flat_map(|cue| cue.lines.iter().map(String::as_str)).collect();
    check_words(&lines.join(" "));
}
