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
    /// Rows, padding included, that states of fixed extent fold before those of the call, which are kept to be folded later; 0
    /// where the call folds all of its rows at once and nothing before them.
    pub n_pending: u32,
}

/// Sizes are exact up to this value.
const EXACT: usize = 8;
/// Above it, sizes are multiples of this.
const MULTIPLE: usize = 8;
/// The smallest number of pending rows in a key, and the factor from one size to the next.
const FEWEST_PENDING: usize = 8;
const PENDING_FACTOR: usize = 4;
/// Rows of padding cost less than another pass over the weights as long as they are at most this part of a call.
const CHEAP_PADDING: usize = 8;

/// How call sizes are rounded up so that few keys exist. Rows that pad a call belong to no sequence: they neither read nor
/// change memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Buckets {
    /// Exact to 8, then multiples of 8: for one sequence at a time, whose prompts are fed whole. On a CPU a miss costs
    /// microseconds and a padded row costs a row.
    #[default]
    Fine,
    /// Exact to 8, then two sizes an octave: 16, 24, 32, 48, 64, 96 and so on. For many sequences, whose calls are of all
    /// sizes and whose prompts can be cut so that calls are full.
    Coarse,
}

impl Buckets {
    /// Number of clips in the key of an encoder: exact to 8, then powers of two.
    pub fn clips(self, n: usize) -> usize {
        if n <= EXACT { n } else { n.next_power_of_two() }
    }

    /// Number of rows in the key.
    pub fn tokens(self, n: usize) -> usize {
        match self {
            _ if n <= EXACT => n,
            Self::Fine => n.next_multiple_of(MULTIPLE),
            Self::Coarse => {
                let octave = n.next_power_of_two();
                let between = octave / 4 * 3;
                if n <= between && between.is_multiple_of(MULTIPLE) { between } else { octave }
            }
        }
    }

    /// Number of output rows in the key of a call of so many rows, padding included: powers of two, or all rows. Where calls
    /// are of all sizes, more than one are 8 at least: beside the rows of a prompt they cost little.
    pub fn outputs(self, n: usize, n_tokens: usize) -> usize {
        match self {
            _ if n <= 1 => n,
            Self::Fine => n.next_power_of_two().min(n_tokens),
            Self::Coarse => n.next_power_of_two().max(EXACT).min(n_tokens),
        }
    }

    /// Number of pending rows in the key of a call that folds `n` of them, padding included, which is cheap: few sizes, since they
    /// come together with any number of new rows.
    pub fn pending(self, n: usize) -> usize {
        let mut size = FEWEST_PENDING;
        while size < n {
            size *= PENDING_FACTOR;
        }
        size
    }

    /// How many of `n` rows that could be fed are worth feeding in one call: all of them, or as many as fill the largest
    /// size below, where what is left costs less in a call of its own than the padding that it saves.
    pub fn fill(self, n: usize) -> usize {
        let size = self.tokens(n);
        if self == Self::Fine || (size - n) * CHEAP_PADDING <= size {
            return n;
        }
        // Sizes are at most an octave apart.
        (n / 2..n).rev().find(|&below| self.tokens(below) == below).unwrap_or(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_calls_are_exact() {
        let b = Buckets::default();
        for n in 1..=8 {
            assert_eq!((b.clips(n), b.tokens(n), Buckets::Coarse.tokens(n)), (n, n, n));
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
        for (n, n_tokens, want) in [(0, 64, 0), (1, 64, 1), (2, 64, 8), (2, 5, 5), (9, 64, 16)] {
            assert_eq!(Buckets::Coarse.outputs(n, n_tokens), want, "{n} of {n_tokens}");
        }
    }

    #[test]
    fn pending_rows_have_few_sizes() {
        let sizes = [(0, 8), (1, 8), (8, 8), (9, 32), (33, 128), (192, 512)];
        assert!(sizes.into_iter().all(|(n, want)| Buckets::Coarse.pending(n) == want));
    }

    #[test]
    fn coarse_sizes_are_few_and_filled() {
        let b = Buckets::Coarse;
        let sizes: std::collections::BTreeSet<usize> = (9..=512).map(|n| b.tokens(n)).collect();
        assert!(sizes.into_iter().eq([16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]));
        for (n, want) in [(5, 5), (14, 14), (17, 16), (21, 21), (143, 128), (170, 170), (300, 256), (500, 500)] {
            assert_eq!((b.fill(n), Buckets::Fine.fill(n)), (want, n));
        }
        assert!((1..2000).all(|n| (1..=n).contains(&b.fill(n))));
    }
}
