//! The op table, by family.

pub mod attention;
pub mod conv;
pub mod linear;
pub mod moe;
pub mod norm;
pub mod pointwise;
pub mod rel_pos;
pub mod rope;
pub mod rows;

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
            rope: rope::rope;
            cached_attention: attention::cached;
            attention: attention::windowed;
            causal_conv1d: conv::causal_conv1d;
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

/// Sequences `(slot, n_past, length)` in a line, with padding where there are several; one slot more than is used.
fn batch(n_ctx: usize, seqs: &[(usize, usize, usize)]) -> BatchArg {
    let seqs: Vec<Sequence> = seqs.iter().map(|&(slot, n_past, length)| Sequence { slot, n_past, length }).collect();
    let n_slots = seqs.iter().map(|s| s.slot).max().unwrap_or(0) + 2;
    let padding = if seqs.len() > 1 { PADDING } else { 0 };
    let n_tokens = seqs.iter().map(|s| s.length).sum::<usize>() + padding;
    BatchArg { n_slots, n_ctx, n_tokens, seqs }
}
