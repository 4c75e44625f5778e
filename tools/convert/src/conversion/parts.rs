//! The architectures of checkpoints: each is a file of this folder, which reads a configuration and plans [`Parts`], and a row
//! of [`MODEL_TYPES`].

use anyhow::{Result, bail};
use engine::gguf::{Value, quoted};

use super::checkpoint::Model;
use super::lfm2::Lfm2Config;
use super::mamba::Generation;
use super::plan::{self, Chosen, FilePlan, Row};
use super::qwen3_next::Family;
use super::{DECODER, Options, QUANTIZATION_VERSION};
use super::{general, granite, jamba, lfm2, lfm2_audio, llama, mamba, qwen3, qwen3_asr, qwen3_next};
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

/// Reads and checks the configuration of a checkpoint, and plans its parts.
type ReadParts = fn(&Model) -> Result<Parts>;

/// Every architecture that has a `model_type`, under this name.
const MODEL_TYPES: &[(&str, ReadParts)] = &[
    ("qwen3_asr", qwen3_asr::parts),
    ("qwen3", qwen3::parts),
    ("llama", llama::parts),
    ("lfm2", |checkpoint| lfm2::parts(checkpoint, Lfm2Config::read)),
    ("lfm2_moe", |checkpoint| lfm2::parts(checkpoint, Lfm2Config::read_moe)),
    ("mamba", |checkpoint| mamba::parts(checkpoint, Generation::First)),
    ("mamba2", |checkpoint| mamba::parts(checkpoint, Generation::Second)),
    ("jamba", jamba::parts),
    ("granitemoehybrid", granite::parts),
    ("qwen3_next", |checkpoint| qwen3_next::parts(checkpoint, Family::Next)),
    ("qwen3_5", |checkpoint| qwen3_next::parts(checkpoint, Family::Dense)),
    ("qwen3_5_text", |checkpoint| qwen3_next::parts(checkpoint, Family::Dense)),
    ("qwen3_5_moe", |checkpoint| qwen3_next::parts(checkpoint, Family::Moe)),
    ("qwen3_5_moe_text", |checkpoint| qwen3_next::parts(checkpoint, Family::Moe)),
];

/// Types whose names are near those of [`MODEL_TYPES`], and why they are something else.
const OTHER_TYPES: &[(&str, &str)] = &[(
    "qwen4_exp",
    "it adds an attention indexer, gated residual streams and an n-gram embedding to Qwen3.5's layers",
)];

/// Names of a list that a message repeats.
const MAX_SHOWN_NAMES: usize = 4;

impl Parts {
    /// Of the checkpoint's architecture.
    pub(super) fn read(checkpoint: &Model) -> Result<Self> {
        const KEY: &str = "model_type";
        const ARCHITECTURES: &str = "architectures";
        const LFM2_AUDIO: &str = "Lfm2AudioForConditionalGeneration";
        let config = checkpoint.config();
        let architectures = config.texts_or_none(ARCHITECTURES)?;
        match (config.text_or_none(KEY)?, architectures) {
            (Some(name), _) => match MODEL_TYPES.iter().find(|(known, _)| *known == name) {
                Some((_, read)) => read(checkpoint),
                None => {
                    if let Some((_, why)) = OTHER_TYPES.iter().find(|(other, _)| *other == name) {
                        bail!(config.error(KEY, &format!("{} is not supported: {why}", quoted(name))));
                    }
                    let known = MODEL_TYPES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
                    let supported = format!("supported: {known}, and LFM2-Audio without a type");
                    bail!(config.error(KEY, &format!("{} is not supported ({supported})", quoted(name))))
                }
            },
            // Published without a type.
            (None, Some(names)) if names == [LFM2_AUDIO] => lfm2_audio::parts(checkpoint),
            (None, Some(names)) => {
                let names: Vec<String> = names.iter().take(MAX_SHOWN_NAMES).map(|name| quoted(name)).collect();
                let names = names.join(", ");
                bail!(config.error(ARCHITECTURES, &format!("[{names}] without model_type: want [{LFM2_AUDIO:?}]")))
            }
            (None, None) => bail!(config.error(KEY, "is missing")),
        }
    }

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
