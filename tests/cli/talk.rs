//! Three minutes of speech with the built-in model and nothing but defaults.

use serde_json::Value;

use crate::exact_text::word_errors;
use crate::run::{fixtures, tympan};

/// The recording, and what is said in it.
const TALK: [&str; 2] = ["talk/talk.ogg", "talk/talk.txt"];
/// Its length in seconds.
const SECONDS: f64 = 187.0;
/// Words that may be wrong, of a hundred.
const MAX_ERRORS: usize = 5;

#[test]
fn of_three_minutes_of_speech_95_of_100_words_are_right_with_defaults() {
    let [recording, words] = TALK.map(|name| fixtures().join(name));
    let run = tympan(["transcribe", "-q", "-f", "json", recording.to_str().unwrap()]).expect(0);
    let document: Value = serde_json::from_str(&run.out).unwrap();
    assert!((document["duration"].as_f64().unwrap() - SECONDS).abs() < 0.1, "{}", document["duration"]);
    let said = std::fs::read_to_string(words).unwrap();
    let n_words = said.split_whitespace().count();
    assert!(n_words > 350);
    let n_wrong = word_errors(&said, document["text"].as_str().unwrap());
    assert!(n_wrong * 100 <= n_words * MAX_ERRORS, "{n_wrong} of {n_words}: {}", document["text"]);
}
