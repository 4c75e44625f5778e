//! The op table, by family.

pub mod attention;
pub mod conv;
pub mod delta;
pub mod linear;
pub mod moe;
pub mod norm;
pub mod pointwise;
pub mod rel_pos;
pub mod rope;
pub mod rows;
pub mod state;

use crate::case::{BatchArg, OpCase, Sequence};

/// Around the widths of vectors and of unrolled loops.
const LENGTHS: [usize; 14] = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 100];

/// A family of ops and its cases.
pub type Family = (&'static str, fn(&mut Vec<OpCase>));

/// The list of families: calls the macro `$with` with an entry `NAME: LIST;` for each, a name that says what is tested and
/// the function that lists the cases. The suite makes a test of each.
#[macro_export]
macro_rules! families {
    ($with:ident) => {
        $with! {
            unary: pointwise::unary;
            binary: pointwise::binary;
            glu: pointwise::glu;
            norm: norm::norm;
            add_norm: norm::add_norm;
            linear_formats: linear::formats;
            linear_small_blocks: linear::small_blocks;
            linear_floats: linear::floats;
            linear_layouts: linear::layouts;
            linear_fused: linear::fused;
            precise: linear::precise;
            alone: linear::alone;
            rope: rope::rope;
            cached_attention: attention::cached;
            attention: attention::windowed;
            causal_conv1d: conv::causal_conv1d;
            join_pending: state::join_pending;
            ssm_scan: state::ssm_scan;
            gated_delta: delta::gated_delta;
            given_delta: delta::given_delta;
            delta_precision: delta::delta_precision;
            conv2d: conv::conv2d;
            depthwise: conv::depthwise;
            rel_pos: rel_pos::rel_pos;
            moe: moe::moe;
            rows: rows::rows;
            layout: rows::layout;
            mask_rows: rows::mask_rows;
        }
    };
}

macro_rules! define {
    ($($name:ident: $list:path;)*) => {
        /// Every family.
        pub const FAMILIES: &[Family] = &[$((stringify!($name), $list)),*];
    };
}

families!(define);

/// The cases of a family.
pub fn family(name: &str) -> Vec<OpCase> {
    let (_, list) = FAMILIES.iter().find(|(n, _)| *n == name).expect("the family is listed");
    let mut cases = Vec::new();
    list(&mut cases);
    cases
}

/// Rows of padding behind the sequences of a batch of several.
const PADDING: usize = 3;

/// Ways through states of fixed extent: fresh and continued sequences, lengths below and above the history of a convolution,
/// states that are read in one slot and written in another, and stored after some of the rows, or before the first.
fn passages() -> Vec<BatchArg> {
    let whole: [&[(usize, usize, usize)]; 7] = [
        &[(0, 0, 1)],
        &[(1, 5, 1)],
        &[(2, 0, 2)],
        &[(0, 9, 33)],
        &[(2, 0, 5), (0, 17, 1), (4, 64, 3)],
        &[(3, 1, 1), (0, 100, 1), (1, 0, 1)],
        &[(1, 12, 4), (0, 0, 0), (2, 0, 2), (0, 0, 0)],
    ];
    let mut all: Vec<BatchArg> = whole.map(|seqs| batch(128, seqs)).into();
    let part = |(slot, n_past, length), read, kept| Sequence { read, kept, ..Sequence::new(slot, n_past, length) };
    let parts = [
        vec![part((0, 7, 6), 0, 0), part((1, 7, 6), 2, 4)],
        vec![part((3, 9, 5), 1, 5), part((0, 0, 5), 0, 1), part((4, 2, 2), 4, 1)],
        vec![part((0, 9, 1), 1, 0), part((2, 9, 1), 2, 0)],
        vec![part((0, 3, 65), 1, 64), part((3, 0, 7), 3, 2)],
    ];
    all.extend(parts.map(|seqs| in_line(128, seqs)));
    all
}

/// Sequences `(slot, n_past, length)` in a line, with padding where there are several; one slot more than is used.
fn batch(n_ctx: usize, seqs: &[(usize, usize, usize)]) -> BatchArg {
    in_line(n_ctx, seqs.iter().map(|&(slot, n_past, length)| Sequence::new(slot, n_past, length)).collect())
}

fn in_line(n_ctx: usize, seqs: Vec<Sequence>) -> BatchArg {
    let n_slots = seqs.iter().map(|s| s.slot.max(s.read)).max().unwrap_or(0) + 2;
    let padding = if seqs.len() > 1 { PADDING } else { 0 };
    let n_tokens = seqs.iter().map(|s| s.length).sum::<usize>() + padding;
    BatchArg { n_slots, n_ctx, n_tokens, seqs, joins: false }
}
