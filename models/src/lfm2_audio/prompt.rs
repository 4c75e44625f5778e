//! The prompt of LFM2-Audio for speech recognition as token ids, and the other choices of its [`SpeechFormat`].
//!
//! ```text
//! <|startoftext|><|im_start|>system\nPerform ASR.<|im_end|>\n<|im_start|>user\n AUDIO <|im_end|>\n<|im_start|>assistant\n
//! ```
//!
//! Source: liquid-audio, `ChatState` of `processor.py`, with the system text of the model card. The pieces are encoded one by
//! one, as there: `system\n` and what follows it are not one text.

use crate::audio::{MelParams, MelRecipe};
use crate::chat::ChatMarks;
use crate::error::{Error, Result};
use crate::languages::{self, UnknownLanguage};
use crate::speech::{Parsed, Prompt, SpeechFormat, Wanted, trim};
use crate::tokenizer::{Special, Tokenizer};

/// Samples per second.
const RATE_HZ: u32 = 16_000;
/// Length of the transform.
const N_FFT: usize = 512;
/// Samples in a frame: 25 ms.
const WIN_LENGTH: usize = 400;
/// Samples from frame to frame.
const HOP: usize = 160;
/// Shorter clips are padded with silence to this length, a tenth of a second: fewer frames cannot be normalised.
const MIN_SAMPLES: usize = 1600;

/// Length near which long audio is cut, in seconds: quality is lost beyond a minute, of Japanese beyond 40 s.
const SEGMENT_S: f64 = 30.0;

/// Tokens that end an answer, as far as a vocabulary has them: the end of a turn or text, and the change to speech output.
const STOP: [&str; 4] = ["<|im_end|>", "<|audio_start|>", "<|endoftext|>", "<|text_end|>"];

/// The system text for each language that there is one for; the first is that for an unknown language.
const SYSTEM: [(&str, &str); 2] = [("English", "Perform ASR."), ("Japanese", "Perform ASR in japanese.")];

/// The front end's parameters, which no model file names.
pub fn mel_params(n_mels: usize) -> MelParams {
    MelParams {
        recipe: MelRecipe::Nemo,
        rate_hz: RATE_HZ,
        n_fft: N_FFT,
        win_length: WIN_LENGTH,
        hop: HOP,
        n_mels,
        min_samples: MIN_SAMPLES,
    }
}

/// The special tokens of the prompt in one vocabulary.
#[derive(Clone, Debug)]
pub struct PromptFormat {
    start_of_text: u32,
    marks: ChatMarks,
    stop: Vec<u32>,
}

impl PromptFormat {
    /// Looks the special tokens up by their text.
    ///
    /// Errors: `Tokenizer` naming the first that the vocabulary lacks.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self {
            start_of_text: tokenizer.ids_of(&["<|startoftext|>"])?[0],
            marks: ChatMarks::new(tokenizer)?,
            stop: STOP.iter().filter_map(|text| tokenizer.id_of(text)).collect(),
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
        languages::find(wanted, &SYSTEM.map(|(language, _)| language.to_owned()))
    }

    fn takes_context(&self) -> bool {
        false
    }

    fn prompt(&self, tokenizer: &Tokenizer, context: &str, language: Option<&str>) -> Result<Prompt> {
        let refused = |name, what: String| Err(Error::Argument { name, what });
        if !context.is_empty() {
            return refused("context", "LFM2-Audio has no prompt for names and terms".into());
        }
        let system = match language {
            None => Some(SYSTEM[0].1),
            Some(wanted) => SYSTEM.iter().find(|(language, _)| *language == wanted).map(|&(_, text)| text),
        };
        let Some(system) = system else {
            let known = SYSTEM.map(|(language, _)| language).join(", ");
            return refused("language", format!("want one of {known}, got {}", language.unwrap_or_default()));
        };
        let text = |text: &str| tokenizer.encode(text, Special::AsText);
        let system = [text("system\n"), text(system)].concat();
        let before = [&[self.start_of_text][..], &self.marks.system_and_user(tokenizer, &system)].concat();
        let after = self.marks.answer(tokenizer, &text("assistant\n"));
        Ok(Prompt { before, after })
    }

    /// The system text says the language; without one it is the first.
    fn wanted(&self, system: &str, beside: &str) -> Result<Wanted> {
        let refused = |what: String| Err(Error::Argument { name: "messages", what });
        if !trim(beside).is_empty() {
            return refused("LFM2-Audio has no prompt for text beside a clip that is to be transcribed".into());
        }
        let system = trim(system);
        match SYSTEM.iter().position(|(_, text)| system == *text) {
            None if system.is_empty() => Ok(Wanted::default()),
            // The prompt for an unknown language.
            Some(0) => Ok(Wanted::default()),
            Some(i) => Ok(Wanted { language: Some(SYSTEM[i].0.to_owned()), ..Wanted::default() }),
            None => {
                let known = SYSTEM.map(|(_, text)| format!("{text:?}")).join(" or ");
                refused(format!("clips are transcribed and nothing else: want the system text {known}, or none"))
            }
        }
    }

    fn stop(&self) -> &[u32] {
        &self.stop
    }

    /// The answer is the text. The model names no language: it is the one that was asked for, if one was.
    fn parse(&self, answer: &str, language: Option<&str>) -> Parsed {
        let text = trim(answer).to_owned();
        let language = if text.is_empty() { "" } else { language.unwrap_or_default() };
        Parsed { language: language.to_owned(), text }
    }
}
