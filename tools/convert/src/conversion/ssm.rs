//! State-space blocks of both generations: their sizes, keys and tensors, whatever model they stand in.
//!
//! Source of names and keys: llama.cpp, `conversion/mamba.py` and `gguf-py/gguf/tensor_mapping.py`.

use anyhow::{Result, ensure};
use engine::gguf::Value;

use super::arrange::Change;
use super::block::Block;
use super::config::{Section, integer};
use super::limits::{MAX_HEADS, MAX_WIDTH};
use super::plan::{Role, Row};

/// Taps of the convolution. Published models have 4.
const MAX_TAPS: u64 = 64;
/// Channels of the residual stream for each rank of the step sizes, where a configuration says `auto`. Source: transformers,
/// `MambaConfig`, `JambaConfig`.
const CHANNELS_PER_RANK: usize = 16;

/// Sizes of a block. In the names of their keys a model has its prefix, `mamba_` or none.
pub(super) struct Ssm {
    n_embd: usize,
    n_taps: usize,
    d_inner: usize,
    d_state: usize,
    /// Of the first generation the rank of the step sizes, of the second the number of heads.
    dt_rank: usize,
    /// Groups of heads; the first generation has none.
    n_group: Option<usize>,
    has_conv_bias: bool,
}

impl Ssm {
    /// Reads a block of the first generation.
    pub(super) fn read(config: &Section<'_>, names: &Names, n_embd: usize) -> Result<Self> {
        let dt_rank = match config.text_or_none_of(names.dt_rank) {
            Some("auto") => n_embd.div_ceil(CHANNELS_PER_RANK),
            _ => config.integer(names.dt_rank, 1..=MAX_WIDTH)?,
        };
        Self::read_with(config, names, n_embd, dt_rank, None)
    }

    /// Reads a block of the second generation.
    pub(super) fn read_heads(config: &Section<'_>, names: &Names, n_embd: usize) -> Result<Self> {
        let n_head = config.integer(names.n_head, 1..=MAX_HEADS)?;
        let n_group = config.integer(names.n_group, 1..=MAX_HEADS)?;
        let ssm = Self::read_with(config, names, n_embd, n_head, Some(n_group))?;
        let head_dim = config.integer(names.head_dim, 1..=MAX_WIDTH)?;
        ensure!(
            n_head * head_dim == ssm.d_inner,
            config.error(names.n_head, &format!("{n_head} heads of {head_dim}: want {} channels", ssm.d_inner))
        );
        ensure!(
            n_head.is_multiple_of(n_group),
            config.error(names.n_group, &format!("want a divisor of {n_head} heads, got {n_group}"))
        );
        ensure_unlimited(config)?;
        Ok(ssm)
    }

    fn read_with(
        config: &Section<'_>,
        names: &Names,
        n_embd: usize,
        dt_rank: usize,
        n_group: Option<usize>,
    ) -> Result<Self> {
        config.expect_text("hidden_act", "silu")?;
        config.expect_off(names.bias)?;
        let d_inner = n_embd * config.integer(names.expand, 1..=MAX_WIDTH)?;
        if let Some(key) = names.d_inner.filter(|key| config.has(key)) {
            let stored = config.integer(key, 1..=MAX_WIDTH)?;
            ensure!(stored == d_inner, config.error(key, &format!("want {d_inner}, by {}", names.expand)));
        }
        // llama.cpp reads no other.
        ensure!(
            d_inner == 2 * n_embd,
            config.error(names.expand, &format!("want 2 times the hidden size {n_embd}, got {d_inner}"))
        );
        Ok(Self {
            n_embd,
            n_taps: config.integer(names.n_taps, 2..=MAX_TAPS)?,
            d_inner,
            d_state: config.integer(names.d_state, 1..=MAX_WIDTH)?,
            dt_rank,
            n_group,
            has_conv_bias: config.flag(names.conv_bias, true)?,
        })
    }

    /// Metadata.
    pub(super) fn keys(&self) -> Vec<(&'static str, Value)> {
        let mut keys = vec![
            ("ssm.conv_kernel", integer(self.n_taps)),
            ("ssm.inner_size", integer(self.d_inner)),
            ("ssm.state_size", integer(self.d_state)),
            ("ssm.time_step_rank", integer(self.dt_rank)),
        ];
        keys.extend(self.n_group.map(|n| ("ssm.group_count", integer(n))));
        keys
    }

    /// Tensors of the block, which stand under `part` of a layer; `has_norms`: of step sizes, `B` and `C`.
    pub(super) fn rows(&self, block: &mut Block<'_>, part: &str, has_norms: bool) {
        let Self { n_embd, d_inner, d_state, dt_rank, .. } = *self;
        block.add("ssm_in", &format!("{part}.in_proj"), Role::Matrix, &[2 * d_inner, n_embd]);
        self.convolution(block, part, d_inner);
        block.add("ssm_x", &format!("{part}.x_proj"), Role::Matrix, &[dt_rank + 2 * d_state, d_inner]);
        if has_norms {
            for (name, n) in [("dt", dt_rank), ("b", d_state), ("c", d_state)] {
                block.add(&format!("ssm_{name}_norm"), &format!("{part}.{name}_layernorm"), Role::Full, &[n]);
            }
        }
        block.add("ssm_dt", &format!("{part}.dt_proj"), Role::Matrix, &[d_inner, dt_rank]);
        block.add_full("ssm_dt.bias", &format!("{part}.dt_proj.bias"), &[d_inner]);
        let decays = block.full("ssm_a", &format!("{part}.A_log"), &[d_inner, d_state]);
        block.rows.push(decays.changed(Change::NegativeExp));
        block.add_full("ssm_d", &format!("{part}.D"), &[d_inner]);
        block.add("ssm_out", &format!("{part}.out_proj"), Role::Matrix, &[n_embd, d_inner]);
    }

    /// As [`Ssm::rows`], for a block of the second generation.
    pub(super) fn rows_of_heads(&self, block: &mut Block<'_>, part: &str) {
        let Self { n_embd, d_inner, d_state, dt_rank: n_head, .. } = *self;
        let n_group = self.n_group.expect("the second generation has groups");
        let width = d_inner + 2 * n_group * d_state;
        block.add("ssm_in", &format!("{part}.in_proj"), Role::Matrix, &[d_inner + width + n_head, n_embd]);
        self.convolution(block, part, width);
        block.add_full("ssm_dt.bias", &format!("{part}.dt_bias"), &[n_head]);
        let column = |row: Row| row.shaped(&[n_head, 1]);
        let decays = block.full("ssm_a", &format!("{part}.A_log"), &[n_head]);
        let through = block.full("ssm_d", &format!("{part}.D"), &[n_head]);
        let norm = block.row("ssm_norm", &format!("{part}.norm"), Role::Full, &[d_inner]);
        block.rows.extend([
            column(decays).changed(Change::NegativeExp),
            column(through),
            norm.shaped(&[n_group, d_inner / n_group]),
        ]);
        block.add("ssm_out", &format!("{part}.out_proj"), Role::Matrix, &[n_embd, d_inner]);
    }

    fn convolution(&self, block: &mut Block<'_>, part: &str, width: usize) {
        let taps = block.row("ssm_conv1d", &format!("{part}.conv1d"), Role::Full, &[width, 1, self.n_taps]);
        block.rows.push(taps.shaped(&[width, self.n_taps]));
        if self.has_conv_bias {
            block.add_full("ssm_conv1d.bias", &format!("{part}.conv1d.bias"), &[width]);
        }
    }
}

/// What a configuration calls the sizes of its blocks.
pub(super) struct Names {
    expand: &'static str,
    /// The channels, where they have a key of their own.
    d_inner: Option<&'static str>,
    n_taps: &'static str,
    d_state: &'static str,
    dt_rank: &'static str,
    n_head: &'static str,
    head_dim: &'static str,
    n_group: &'static str,
    bias: &'static str,
    conv_bias: &'static str,
}

/// In models that are nothing but state-space blocks.
pub(super) const PLAIN: Names = Names {
    expand: "expand",
    d_inner: Some("intermediate_size"),
    n_taps: "conv_kernel",
    d_state: "state_size",
    dt_rank: "time_step_rank",
    n_head: "num_heads",
    head_dim: "head_dim",
    n_group: "n_groups",
    bias: "use_bias",
    conv_bias: "use_conv_bias",
};

/// In models with other blocks as well.
pub(super) const PREFIXED: Names = Names {
    expand: "mamba_expand",
    d_inner: None,
    n_taps: "mamba_d_conv",
    d_state: "mamba_d_state",
    dt_rank: "mamba_dt_rank",
    n_head: "mamba_n_heads",
    head_dim: "mamba_d_head",
    n_group: "mamba_n_groups",
    bias: "mamba_proj_bias",
    conv_bias: "mamba_conv_bias",
};

/// Step sizes must have no limits: files have no key for them.
fn ensure_unlimited(config: &Section<'_>) -> Result<()> {
    const KEY: &str = "time_step_limit";
    let Some(limits) = config.decimals_or_none(KEY)? else { return Ok(()) };
    ensure!(
        matches!(limits[..], [low, high] if low <= 0.0 && high == f64::INFINITY),
        config.error(KEY, &format!("want [0, Infinity]: limits of step sizes are not supported, got {limits:?}"))
    );
    Ok(())
}
