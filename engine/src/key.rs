//! [`GraphKey`]: everything that may differ between two compiled graphs of one session. What is not in it is an input.

/// What a graph computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// The audio encoder: features to embeddings.
    Encode,
    /// The language model, fed with token ids.
    Tokens,
    /// The language model, fed with token ids and with vectors where the id is -1.
    Embeddings,
}

/// Which rows reach the output head.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Rows {
    /// None: the call only fills memory.
    None,
    /// The last real token of every sequence.
    Last,
    /// Every token.
    All,
}

/// The shape of a call. Two calls with equal keys share a compiled graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GraphKey {
    /// What is computed.
    pub stage: Stage,
    /// Sequences, padding sequences included.
    pub n_seqs: u32,
    /// Tokens per sequence, padding included; for [`Stage::Encode`] frames of features.
    pub n_tokens: u32,
    /// Rows of the attention cache that kernels may assume; the slot's capacity where kernels loop only as far as needed.
    pub n_kv: u32,
    /// Which rows reach the output head.
    pub rows: Rows,
}

/// Sizes are exact up to this value.
const EXACT: usize = 8;

/// How call sizes are rounded up so that few keys exist. Sequences that pad a batch have no tokens, and tokens at or past
/// their sequence's length are padding: neither reads or changes memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buckets {
    /// Above 8, tokens per sequence are rounded up to a multiple of this.
    pub token_multiple: usize,
}

impl Default for Buckets {
    /// Multiples of 8: on a CPU a miss costs microseconds and a padded token costs a token.
    fn default() -> Self {
        Self { token_multiple: 8 }
    }
}

impl Buckets {
    /// Number of sequences in the key: exact to 8, then powers of two.
    pub fn seqs(&self, n: usize) -> usize {
        if n <= EXACT { n } else { n.next_power_of_two() }
    }

    /// Number of tokens per sequence in the key: exact to 8, then multiples of `token_multiple`.
    pub fn tokens(&self, n: usize) -> usize {
        if n <= EXACT { n } else { n.next_multiple_of(self.token_multiple) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_calls_are_exact() {
        let b = Buckets::default();
        for n in 1..=8 {
            assert_eq!((b.seqs(n), b.tokens(n)), (n, n));
        }
        assert_eq!((b.seqs(9), b.tokens(9), b.tokens(143)), (16, 16, 144));
    }
}
