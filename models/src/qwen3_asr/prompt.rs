//! The chat prompt of Qwen3-ASR as token ids, and the other choices of its [`SpeechFormat`].
//!
//! ```text
//! <|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|> AUDIO <|audio_end|><|im_end|>\n
//! <|im_start|>assistant\n [language {Name}<asr_text>]
//! ```
//!
//! Source: `qwen_asr`, `Qwen3ASRModel._build_text_prompt`, with the chat template of the checkpoints.

use super::mel_params;
use super::parse::{ASR_TEXT, parse};
use crate::audio::MelParams;
use crate::chat::ChatMarks;
use crate::error::Result;
use crate::languages::{self, UnknownLanguage};
use crate::speech::{Parsed, Prompt, SpeechFormat, Wanted};
use crate::tokenizer::{Special, Tokenizer};

/// Tokens that end an answer.
const STOP: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// Length near which long audio is cut, in seconds.
const SEGMENT_S: f64 = 60.0;

/// The special tokens of the prompt in one vocabulary.
#[derive(Clone, Debug)]
pub struct PromptFormat {
    marks: ChatMarks,
    audio_start: u32,
    audio_end: u32,
    asr_text: u32,
    stop: Vec<u32>,
}

impl PromptFormat {
    /// Looks the special tokens up by their text.
    ///
    /// Errors: `Tokenizer` naming the first that the vocabulary lacks.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let id = |text| tokenizer.ids_of(&[text]).map(|ids| ids[0]);
        Ok(Self {
            marks: ChatMarks::new(tokenizer)?,
            audio_start: id("<|audio_start|>")?,
            audio_end: id("<|audio_end|>")?,
            asr_text: id("<asr_text>")?,
            stop: tokenizer.ids_of(&STOP)?,
        })
    }
}

impl SpeechFormat for PromptFormat {
    fn mel(&self, n_mels: usize) -> MelParams {
        mel_params(n_mels)
    }

    fn segment_s(&self) -> f64 {
        SEGMENT_S
    }

    fn find_language(&self, wanted: &str) -> Result<String, UnknownLanguage> {
        languages::find(wanted, &[])
    }

    fn takes_context(&self) -> bool {
        true
    }

    fn prompt(&self, tokenizer: &Tokenizer, context: &str, language: Option<&str>) -> Result<Prompt> {
        let text = |text: &str| tokenizer.encode(text, Special::AsText);
        // Text between two special tokens is encoded in one go: a line break at the beginning of the context joins the one
        // after the role.
        let system = text(&format!("system\n{context}"));
        let answer = match language {
            Some(name) => [text(&format!("assistant\nlanguage {name}")), vec![self.asr_text]].concat(),
            None => text("assistant\n"),
        };
        let before = [&self.marks.system_and_user(tokenizer, &system)[..], &[self.audio_start]].concat();
        let after = [&[self.audio_end][..], &self.marks.answer(tokenizer, &answer)].concat();
        Ok(Prompt { before, after })
    }

    /// The system text is the context. The chat template of the checkpoints writes nothing of the text beside a clip, and neither
    /// does this: the model was never asked anything there.
    fn wanted(&self, system: &str, _beside: &str) -> Result<Wanted> {
        Ok(Wanted { context: system.to_owned(), language: None })
    }

    fn stop(&self) -> &[u32] {
        &self.stop
    }

    fn parse(&self, answer: &str, language: Option<&str>) -> Parsed {
        parse(answer, language)
    }

    fn text_so_far(&self, answer: &str, language: Option<&str>) -> Option<String> {
        (language.is_some() || answer.contains(ASR_TEXT)).then(|| parse(answer, language).text)
    }
}
