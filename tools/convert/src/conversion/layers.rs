//! Which layers of a hybrid model have attention, as its configuration lists them.

use anyhow::{Result, ensure};
use engine::gguf::quoted;

use super::config::Section;

/// Of every layer, whether it has attention; `None` where there is no `layer_types`. `attention` and `other`: what the list
/// calls the two kinds, the usual word first.
pub(super) fn listed(
    config: &Section<'_>,
    n_layer: usize,
    attention: &[&str],
    other: &[&str],
) -> Result<Option<Vec<bool>>> {
    const KEY: &str = "layer_types";
    let Some(kinds) = config.texts_or_none(KEY)? else { return Ok(None) };
    ensure!(
        kinds.len() == n_layer,
        config.error(KEY, &format!("want {n_layer} layers (num_hidden_layers), got {}", kinds.len()))
    );
    let kind = |kind: &&str| {
        let is_known = attention.contains(kind) || other.contains(kind);
        let want = || format!("want {:?} or {:?}, got {}", other[0], attention[0], quoted(kind));
        ensure!(is_known, config.error(KEY, &want()));
        Ok(attention.contains(kind))
    };
    kinds.iter().map(kind).collect::<Result<_>>().map(Some)
}
