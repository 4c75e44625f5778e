//! [`SpeechFormat`]: what stands around the network of a speech model, and differs from model to model: the front end, the
//! prompt, the tokens that end an answer, and how the answer is read. [`crate::registry`] knows which model has which.

use std::ops::RangeInclusive;

use engine::gguf::Gguf;

use crate::audio::MelParams;
use crate::error::Result;
use crate::hparams::Hparams;
use crate::languages::UnknownLanguage;
use crate::tokenizer::Tokenizer;

/// Metadata key of the length near which long audio is cut for a model, in seconds, as f32. A model trained on short clips
/// states it; llama.cpp does not know it.
pub const SEGMENT_KEY: &str = "tympan.segment_seconds";
/// Lengths that a model can state and a user ask for, in seconds: no words fit into less, and no model hears more at once.
pub const SEGMENT_RANGE: RangeInclusive<f32> = 2.0..=3600.0;

/// The length that the files of a model state in [`SEGMENT_KEY`], in seconds.
///
/// Errors: `Key` for a value of another type, `BadValue` for one outside [`SEGMENT_RANGE`].
pub(crate) fn stated_segment_s(files: &[Gguf]) -> Result<Option<f64>> {
    let (prefix, name) = SEGMENT_KEY.split_once('.').expect("the key has a prefix");
    let stated = Hparams::new(files, prefix).within(name, &SEGMENT_RANGE)?;
    Ok(stated.map(f64::from))
}

/// What a model is asked: ids, then one row per audio vector, then ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Ids before the audio.
    pub before: Vec<u32>,
    /// Ids after the audio.
    pub after: Vec<u32>,
}

/// What a conversation about a clip asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What the user says about the audio: names, subject.
    pub context: String,
    /// The language that is spoken, where the conversation says it.
    pub language: Option<String>,
}

/// What was said, and in which language.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Name of the language; empty when unknown or nothing was said.
    pub language: String,
    /// The transcript; empty when nothing was said.
    pub text: String,
}

/// How a speech model is fed, asked and understood.
pub trait SpeechFormat: Send + Sync {
    /// Parameters of the front end, for so many mel bands.
    fn mel(&self, n_mels: usize) -> MelParams;

    /// Length near which long audio is cut where neither user nor model file say it, in seconds.
    fn segment_s(&self) -> f64;

    /// The language that a user's name or ISO code stands for, as the model writes it.
    ///
    /// Errors: a language that the model cannot be asked for.
    fn find_language(&self, wanted: &str) -> Result<String, UnknownLanguage>;

    /// Whether the prompt has a place for what the user says about the audio: names, subject.
    fn takes_context(&self) -> bool;

    /// The prompt for one piece of audio.
    ///
    /// `context`: what the user says about the audio; control tokens written in it are plain text. `language`: the language
    /// that is spoken, as [`SpeechFormat::find_language`] gives it, where it is known.
    ///
    /// Errors: `Argument` for a context or language that the model has no prompt for.
    fn prompt(&self, tokenizer: &Tokenizer, context: &str, language: Option<&str>) -> Result<Prompt>;

    /// What a conversation asks for that ends with a clip, in the terms of [`SpeechFormat::prompt`]: `system` is all text of its
    /// system turns, `beside` the text beside the clip in the user's turn.
    ///
    /// Errors: `Argument` for a conversation that asks for something else than the clip's text, or that the model has no prompt
    /// for.
    fn wanted(&self, system: &str, beside: &str) -> Result<Wanted>;

    /// Tokens after which generation stops.
    fn stop(&self) -> &[u32];

    /// Reads an answer: the decoded tokens without control tokens. `language`: the one that was asked for, if one was.
    fn parse(&self, answer: &str, language: Option<&str>) -> Parsed;

    /// The text of an answer that is still being written; none while it is not clear where the text begins.
    fn text_so_far(&self, answer: &str, language: Option<&str>) -> Option<String> {
        Some(self.parse(answer, language).text)
    }
}

/// Adds the text of the next segment to a text. Nothing is added for a segment without text.
pub(crate) fn push_text(joined: &mut String, text: &str) {
    joined.push_str(gap(joined.chars().next_back(), text));
    joined.push_str(text);
}

/// What stands between two segments' texts, of which the first ends with `before`: a space, unless both neighbours are Chinese
/// or Japanese characters or one of the texts is empty.
pub fn gap(before: Option<char>, after: &str) -> &'static str {
    match (before, after.chars().next()) {
        (Some(before), Some(after)) if !(is_cjk(before) && is_cjk(after)) => " ",
        _ => "",
    }
}

/// Characters of scripts that are written without spaces: Han, kana, bopomofo, and their punctuation and full-width forms.
/// Hangul is written with spaces.
fn is_cjk(c: char) -> bool {
    matches!(u32::from(c),
        0x2e80..=0x30ff // radicals, punctuation, kana
        | 0x3100..=0x312f // bopomofo
        | 0x3190..=0x4dbf // annotations, strokes, enclosed characters, Han extension A
        | 0x4e00..=0x9fff // Han
        | 0xf900..=0xfaff // compatibility Han
        | 0xfe30..=0xfe4f // vertical punctuation
        | 0xff00..=0xff9f // full-width forms, half-width kana
        | 0xffe0..=0xffe6 // full-width signs
        | 0x1aff0..=0x1b16f // kana extensions
        | 0x1f200..=0x1f2ff // enclosed characters
        | 0x20000..=0x3ffff // Han extensions B and later
    )
}

/// Languages of consecutive segments, separated by commas; empty ones and repeats of the one before are left out.
///
/// Source: `qwen_asr`, `inference/utils.py`, `merge_languages`.
pub(crate) fn merge_languages<'a>(languages: impl IntoIterator<Item = &'a str>) -> String {
    let mut merged: Vec<&str> = languages.into_iter().map(trim).filter(|language| !language.is_empty()).collect();
    merged.dedup();
    merged.join(",")
}

/// Python's `str.strip`.
pub(crate) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.isspace`: Unicode's white space and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_joined_with_a_space_except_between_cjk() {
        let joined = |texts: &[&str]| {
            let mut joined = String::new();
            texts.iter().for_each(|text| push_text(&mut joined, text));
            joined
        };
        assert_eq!(joined(&["one", "", "two."]), "one two.");
        assert_eq!(
            joined(&["\u{4f60}\u{597d}\u{3002}", "\u{4e16}\u{754c}"]),
            "\u{4f60}\u{597d}\u{3002}\u{4e16}\u{754c}"
        );
        assert_eq!(joined(&["\u{30c6}\u{30b9}\u{30c8}", "ok"]), "\u{30c6}\u{30b9}\u{30c8} ok");
        assert_eq!(joined(&["\u{c548}\u{b155}", "\u{c138}\u{acc4}"]), "\u{c548}\u{b155} \u{c138}\u{acc4}");
        assert_eq!(joined(&["", ""]), "");
    }

    // Expected values: `merge_languages` of qwen_asr 0.0.6.
    #[test]
    fn languages_are_merged() {
        let merged = |languages: &[&str]| merge_languages(languages.iter().copied());
        assert_eq!(merged(&["Chinese", "English", "English"]), "Chinese,English");
        assert_eq!(merged(&["", " English ", "", "English", "Chinese", "English"]), "English,Chinese,English");
        assert_eq!(merged(&[]), "");
    }
}
