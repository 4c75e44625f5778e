//! The architectures of checkpoints: each is a file of this folder, which reads a configuration and plans [`Parts`], and a row
//! of [`MODEL_TYPES`].

use anyhow::{Result, bail};
use engine::gguf::quoted;

use super::checkpoint::Model;
use super::lfm2::Lfm2Config;
use super::mamba::Generation;
use super::parts::Parts;
use super::qwen3_next::Family;
use super::{granite, jamba, lfm2, lfm2_audio, llama, mamba, qwen3, qwen3_asr, qwen3_next};

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

/// The parts of a checkpoint, by its architecture.
///
/// Errors: an architecture that is unknown, or whose configuration is not one.
pub(super) fn read(checkpoint: &Model) -> Result<Parts> {
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
