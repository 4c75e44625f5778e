//! Texts of long audio have a blank line where a speaker pauses.

use std::path::Path;

use serde_json::Value;

use crate::run::{fixtures, tympan};
use crate::subtitles::recording;

const CLIPS: [&str; 3] = ["open_door.wav", "yes.wav", "light_off.wav"];

fn transcribed(flags: &[&str], input: &Path) -> String {
    tympan([&["transcribe", "-q"], flags, &[input.to_str().unwrap()]].concat()).expect(0).out
}

#[test]
fn a_pause_of_two_seconds_is_a_blank_line_within_a_segment_and_between_two() {
    let folder = tempfile::tempdir().unwrap();
    for (silence_s, n_paragraphs) in [(2.1, CLIPS.len()), (1.2, 1)] {
        let (path, _) = recording(folder.path(), &CLIPS, silence_s);
        for segment in ["0", "5"] {
            let document = transcribed(&["-f", "json", "--segment", segment], &path);
            let document: Value = serde_json::from_str(&document).unwrap();
            let words = document["text"].as_str().unwrap();
            let text = transcribed(&["--segment", segment], &path);
            assert_eq!(text.replace("\n\n", " "), format!("{words}\n"), "paragraphs change nothing else");
            let paragraphs: Vec<&str> = text.trim_end().split("\n\n").collect();
            assert_eq!(paragraphs.len(), n_paragraphs, "{silence_s}: {text}");
            assert!(n_paragraphs == 1 || paragraphs[1].starts_with("yes"), "{silence_s}: {text}");
            // A file has what a pipe has.
            let out = folder.path().to_str().unwrap();
            transcribed(&["--segment", segment, "-o", out, "--overwrite"], &path);
            assert_eq!(std::fs::read_to_string(folder.path().join("recording.txt")).unwrap(), text);
        }
    }
}

#[test]
fn a_talk_has_paragraphs_where_cues_are_apart() {
    let talk = fixtures().join("talk/talk.ogg");
    let text = transcribed(&[], &talk);
    let pauses = crate::subtitles::of_srt(&transcribed(&["-f", "srt"], &talk));
    // Cues linger for half a second.
    let n_pauses = pauses.windows(2).filter(|pair| pair[1].start - pair[0].end >= 1400).count();
    assert_eq!(text.matches("\n\n").count(), n_pauses, "{text}");
    assert!(n_pauses >= 5 && !text.contains("\n\n\n"), "{text}");
}
