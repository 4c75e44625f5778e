//! [`GraphKey`]: everything that may differ between two compiled graphs of one session. What is not in it is an input.

/// What a graph computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// The audio encoder: features to embeddings.
    Encode,
    /// The language model, fed with token ids.
    Tokens,
    /// The language model, fed with token ids and with vectors in place of some.
    Embeddings,
}

/// The shape of a call. Two calls with equal keys share a compiled graph. How its rows are divided among sequences is not in
/// it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GraphKey {
    /// What is computed.
    pub stage: Stage,
    /// Most sequences that the rows can belong to; for [`Stage::Encode`] clips.
    pub n_seqs: u32,
    /// Rows, padding included; for [`Stage::Encode`] frames of features.
    pub n_tokens: u32,
    /// Rows of the attention cache that kernels may assume; the slot's capacity where kernels loop only as far as needed.
    pub n_kv: u32,
    /// Rows that reach the output head, padding included; none where the call only fills memory. As many as `n_tokens`
    /// means all of them, in their order.
    pub n_outputs: u32,
}

/// Sizes are exact up to this value.
const EXACT: usize = 8;

/// How call sizes are rounded up so that few keys exist. Rows that pad a call belong to no sequence: they neither read nor
/// change memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buckets {
    /// Above 8, rows are rounded up to a multiple of this.
    pub token_multiple: usize,
}

impl Default for Buckets {
    /// Multiples of 8: on a CPU a miss costs microseconds and a padded row costs a row.
    fn default() -> Self {
        Self { token_multiple: 8 }
    }
}

impl Buckets {
    /// Number of clips in the key of an encoder: exact to 8, then powers of two.
    pub fn clips(&self, n: usize) -> usize {
        if n <= EXACT { n } else { n.next_power_of_two() }
    }

    /// Number of rows in the key: exact to 8, then multiples of `token_multiple`.
    pub fn tokens(&self, n: usize) -> usize {
        if n <= EXACT { n } else { n.next_multiple_of(self.token_multiple) }
    }

    /// Number of output rows in the key of a call of so many rows, padding included: powers of two, or all rows.
    pub fn outputs(&self, n: usize, n_tokens: usize) -> usize {
        if n == 0 { 0 } else { n.next_power_of_two().min(n_tokens) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_calls_are_exact() {
        let b = Buckets::default();
        for n in 1..=8 {
            assert_eq!((b.clips(n), b.tokens(n)), (n, n));
        }
        assert_eq!((b.clips(9), b.tokens(9), b.tokens(143)), (16, 16, 144));
    }

    #[test]
    fn outputs_are_powers_of_two_or_all_rows() {
        let b = Buckets::default();
        let cases = [(0, 5, 0), (1, 5, 1), (3, 5, 4), (5, 5, 5), (5, 7, 7), (8, 264, 8), (9, 16, 16), (200, 264, 256)];
        for (n, n_tokens, want) in cases {
            assert_eq!(b.outputs(n, n_tokens), want, "{n} of {n_tokens}");
        }
    }
}
