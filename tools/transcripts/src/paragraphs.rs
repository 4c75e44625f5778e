//! [`Paragraphs`]: a text with a blank line where a speaker paused after a sentence.

use std::ops::Range;

use models::speech::gap;
use models::transcribe::{Segment, Transcript};

use crate::pace::Pace;
use crate::pieces::{End, pieces};

/// Shortest pause that a paragraph ends at, in seconds: 2 s without what [`models::audio::activity`] adds to sounds at both
/// ends.
const PAUSE_S: f64 = 2.0 - 0.12;
/// Between paragraphs.
const BLANK_LINE: &str = "\n\n";

/// The text of a transcript in paragraphs, with a final line break.
pub fn text(transcript: &Transcript) -> String {
    let mut paragraphs = Paragraphs::default();
    let text: String = transcript.segments.iter().map(|segment| paragraphs.push(segment)).collect();
    format!("{text}\n")
}

/// Puts the texts of segments one after the other.
///
/// A paragraph ends at a pause of 2 s or more after a sentence's end. As long as no sentence's end was written, as models do that
/// write no punctuation, it ends at such a pause after any word.
#[derive(Clone, Default, Debug)]
pub struct Paragraphs {
    /// How the text so far ends, where there is one.
    last: Option<Last>,
    has_sentences: bool,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    character: char,
    end: End,
    /// When it was spoken.
    end_s: f64,
}

impl Paragraphs {
    /// What stands between the text so far and that of the next segment, whose sound is at `loud`.
    pub fn gap(&self, text: &str, loud: &[Range<f64>]) -> &'static str {
        match (self.last, loud.first()) {
            (Some(last), Some(sound)) if self.is_break(last.end, sound.start - last.end_s) => BLANK_LINE,
            (last, _) => gap(last.map(|last| last.character), text),
        }
    }

    /// What the next segment adds to the text: its own, and what stands before it and between its paragraphs.
    pub fn push(&mut self, segment: &Segment) -> String {
        let Segment { text, loud, .. } = segment;
        let pieces = pieces(text, usize::MAX);
        let (Some(last), Some(character)) = (pieces.last(), text.chars().next_back()) else { return String::new() };
        let pace = Pace::new(&pieces, loud, segment.start_s, segment.end_s);
        let mut added = self.gap(text, loud).to_owned();
        self.has_sentences |= pieces.iter().any(|piece| piece.end == End::Sentence);
        let mut rest = &**text;
        for (k, piece) in pieces.iter().enumerate() {
            let spaces = rest.len() - rest.trim_start().len();
            let (spaces, behind) = rest.split_at(spaces);
            let is_break = k > 0 && self.is_break(pieces[k - 1].end, pace.pause_s(k));
            added.push_str(if is_break { BLANK_LINE } else { spaces });
            added.push_str(piece.text);
            rest = &behind[piece.text.len()..];
        }
        self.last = Some(Last { character, end: last.end, end_s: pace.ends[pieces.len()] });
        added
    }

    fn is_break(&self, end: End, pause_s: f64) -> bool {
        let may_end = match end {
            End::Sentence => true,
            End::Clause | End::Word => !self.has_sentences,
            End::Inside => false,
        };
        may_end && pause_s >= PAUSE_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of segments, each with its sound.
    fn text(segments: &[(&str, &[Range<f64>])]) -> String {
        let mut paragraphs = Paragraphs::default();
        let mut start_s = 0.0;
        let mut add = |&(text, loud): &(&str, &[Range<f64>])| {
            let end_s = loud.last().map_or(start_s + 8.0, |sound| sound.end + 0.1);
            let segment = Segment {
                start_s,
                end_s,
                text: text.into(),
                loud: loud.to_vec(),
                language: None,
                truncated: false,
                token_ids: Vec::new(),
            };
            start_s = end_s;
            paragraphs.push(&segment)
        };
        segments.iter().map(&mut add).collect()
    }

    const TWO: &str = "The first sentence is here. The second sentence is here.";

    #[test]
    fn a_paragraph_ends_at_a_long_pause_after_a_sentence() {
        assert_eq!(text(&[(TWO, &[0.0..2.5, 4.6..7.0])]), TWO.replace(". ", ".\n\n"));
        assert_eq!(text(&[(TWO, &[0.0..2.5, 4.2..7.0])]), TWO, "1.7 s and what was added to the sounds");
        let clause = "When it was over at last, they went. And he too.";
        assert_eq!(text(&[(clause, &[0.0..2.5, 5.0..7.5])]), clause);
    }

    #[test]
    fn pauses_between_segments_are_pauses() {
        let segments = |second: &str, starts_s: f64| text(&[("Here.", &[0.0..1.0]), (second, &[starts_s..9.0])]);
        assert_eq!(segments("There.", 4.0), "Here.\n\nThere.");
        assert_eq!(segments("There.", 2.0), "Here. There.");
        // Nothing is said in a segment between.
        let silent = text(&[("Here.", &[0.0..1.0]), ("", &[]), ("There.", &[12.0..14.0])]);
        assert_eq!(silent, "Here.\n\nThere.");
        assert_eq!(text(&[("", &[]), ("Here.", &[9.0..10.0])]), "Here.", "nothing before the first");
    }

    #[test]
    fn without_punctuation_every_long_pause_ends_a_paragraph() {
        let words = "one two three four five six seven eight";
        assert_eq!(text(&[(words, &[0.0..2.0, 5.0..7.0])]).split("\n\n").count(), 2);
        assert_eq!(text(&[("one", &[0.0..1.0]), ("two", &[4.0..5.0])]), "one\n\ntwo");
        // The second segment ends none of its sentences.
        let mixed = text(&[("One. Two", &[0.0..2.0]), ("three", &[5.0..6.0])]);
        assert_eq!(mixed, "One. Two three");
    }

    #[test]
    fn chinese_has_paragraphs_and_no_spaces() {
        let sentence = "\u{4eca}\u{5929}\u{5929}\u{6c14}\u{5f88}\u{597d}\u{3002}";
        let twice = sentence.repeat(2);
        assert_eq!(text(&[(&twice, &[0.0..2.0, 5.0..7.0])]), format!("{sentence}\n\n{sentence}"));
        assert_eq!(text(&[(sentence, &[0.0..2.0]), (sentence, &[2.5..4.0])]), twice);
    }

    #[test]
    fn spaces_within_a_paragraph_stay() {
        let odd = " one  two\n three ";
        assert_eq!(text(&[(odd, &[0.0..2.0])]), " one  two\n three");
    }
}
