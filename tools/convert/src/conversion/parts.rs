//! [`Parts`]: what the file of an architecture plans for a checkpoint, and [`Part::plan`], which makes a file of one.

use anyhow::Result;
use engine::gguf::Value;

use super::checkpoint::Model;
use super::plan::{self, Chosen, FilePlan, Row};
use super::{DECODER, Options, QUANTIZATION_VERSION, general};
use crate::quantize::mix::{self, FileType};

/// `general.architecture` of a file with an audio encoder.
pub(super) const AUDIO: &str = "clip";

/// The parts of a model, each with a file of its own.
pub(super) struct Parts {
    pub n_vocab: usize,
    pub pre_tokenizer: &'static str,
    /// Whether llama.cpp's converter replaces the checkpoint's template; see [`CheckpointVocabulary::with_plain_chatml`].
    pub has_plain_chatml: bool,
    pub text: Part,
    pub audio: Option<Part>,
    /// Tensors that llama.cpp wants in the projector's file, and nobody in a bundle.
    pub pair_rows: Vec<Row>,
    /// Tensors of the checkpoint that no file needs.
    pub is_ignored: fn(&str) -> bool,
    /// What there is to say about what is left out.
    pub notices: Vec<String>,
}

/// Keys and tensors of one part.
pub(super) struct Part {
    pub architecture: &'static str,
    pub keys: Vec<(String, Value)>,
    pub rows: Vec<Row>,
}

impl Parts {
    /// A text model alone.
    pub(super) fn text(n_vocab: usize, pre_tokenizer: &'static str, text: Part) -> Self {
        let (pair_rows, notices) = (Vec::new(), Vec::new());
        let is_ignored = |_: &str| false;
        Self { n_vocab, pre_tokenizer, has_plain_chatml: false, text, audio: None, pair_rows, is_ignored, notices }
    }
}

impl Part {
    /// The file of this part, and lines for the user. `kind`: `general.type`.
    pub(super) fn plan(
        self,
        kind: &str,
        name: &str,
        file_type: FileType,
        options: &Options,
        checkpoint: &Model,
    ) -> Result<(FilePlan, Vec<String>)> {
        let key = |name: &str| self.keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let importance = options.importance.as_deref().filter(|_| kind == DECODER);
        let decoder = (kind == DECODER).then(|| mix::Model::read(self.architecture, importance.is_some(), key));
        let Chosen { tensors, mut notices } = plan::plan(self.rows, file_type, decoder.as_ref(), &options.overrides)?;
        for tensor in &tensors {
            let lines = importance.map_or(Ok(None), |matrix| matrix.check(&tensor.name, tensor.shape, tensor.dtype))?;
            notices.extend(lines);
        }
        let mut plan = FilePlan { keys: Vec::new(), tensors };
        let generation = checkpoint.generation();
        let config = checkpoint.config();
        plan.keys = general::keys(self.architecture, kind, name, &config, generation.as_ref(), &plan)?;
        plan.keys.extend(self.keys);
        plan.keys.push(("general.file_type".into(), file_type.general_file_type().into()));
        plan.keys.push(("general.quantization_version".into(), QUANTIZATION_VERSION.into()));
        Ok((plan, notices))
    }
}
