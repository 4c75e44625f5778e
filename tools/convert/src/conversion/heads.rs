//! The heads of attention, as configurations state them.

use anyhow::{Result, ensure};
use engine::gguf::Value;

use super::config::Section;
use super::limits::{MAX_HEADS, MAX_WIDTH};

/// Names the width of a head.
pub(super) const HEAD_DIM: &str = "head_dim";

/// The heads of attention.
pub(super) struct Heads {
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Reads the numbers of heads. `head_dim`: what the width of one is, by their number.
    pub(super) fn read(config: &Section<'_>, head_dim: impl FnOnce(usize) -> Result<usize>) -> Result<Self> {
        let n_head = config.integer("num_attention_heads", 1..=MAX_HEADS)?;
        let n_head_kv = config.integer("num_key_value_heads", 1..=MAX_HEADS)?;
        ensure!(
            n_head.is_multiple_of(n_head_kv),
            config.error("num_key_value_heads", &format!("want a divisor of {n_head} heads, got {n_head_kv}"))
        );
        let head_dim = head_dim(n_head)?;
        ensure!(head_dim.is_multiple_of(2), config.error(HEAD_DIM, &format!("want an even number, got {head_dim}")));
        Ok(Self { n_head, n_head_kv, head_dim })
    }

    /// As [`Heads::read`], where the width of a head is `head_dim`, or that of the residual stream over their number.
    pub(super) fn of_width(config: &Section<'_>, n_embd: usize) -> Result<Self> {
        Self::read(config, |n_head| {
            if config.has(HEAD_DIM) {
                return config.integer(HEAD_DIM, 2..=MAX_WIDTH);
            }
            ensure!(
                n_embd.is_multiple_of(n_head),
                config.error("hidden_size", &format!("want a multiple of {n_head} heads, got {n_embd}"))
            );
            Ok(n_embd / n_head)
        })
    }

    /// Elements of a query, and of a key or value.
    pub(super) fn widths(&self) -> (usize, usize) {
        (self.n_head * self.head_dim, self.n_head_kv * self.head_dim)
    }

    /// `attention.head_count_kv` of a hybrid model: none where a layer has no attention.
    pub(super) fn kv_of_layers(&self, is_attention: impl IntoIterator<Item = bool>) -> Value {
        let n_head_kv = i32::try_from(self.n_head_kv).expect("at most the limit of heads");
        is_attention.into_iter().map(|is_attention| if is_attention { n_head_kv } else { 0 }).collect::<Vec<_>>().into()
    }
}
