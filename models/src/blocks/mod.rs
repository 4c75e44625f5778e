//! Parts that architectures share, each readable beside the official module of the same name.

pub(crate) mod affine;
pub(crate) mod attention;
pub(crate) mod delta_net;
pub(crate) mod ffn;
pub(crate) mod moe;
pub(crate) mod short_conv;
pub(crate) mod ssm;

use engine::weights::WeightStore;

use crate::error::Result;

/// Extent 0 of a weight: for widths that metadata do not say, or say wrongly.
///
/// Errors: `Weight`.
pub(crate) fn rows_of(w: &WeightStore, name: &str) -> Result<usize> {
    let (_, desc) = w.find(name).ok_or_else(|| w.missing(name))?;
    Ok(desc.shape.dims().first().map_or(0, |&d| d as usize))
}
