//! Delta nets.

use engine::op::HeadMap;
use engine::{DType, Shape};

use super::{batch, passages};
use crate::case::{BatchArg, OpCase, Tolerance};

/// The epsilon of published models.
const L2_EPS: f32 = 1e-6;

/// Rows of sequences whose sums count for the tolerance: what is older has decayed.
const ROWS: usize = 64;

/// Extents of a delta net.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    n_key: usize,
    n_value: usize,
    k_dim: usize,
    v_dim: usize,
}

impl Sizes {
    /// One head and several, one and several value heads for a key head, tiles of whole vectors and not, one and several.
    const ALL: [Self; 6] = [
        Self { n_key: 1, n_value: 1, k_dim: 1, v_dim: 1 },
        Self { n_key: 2, n_value: 2, k_dim: 16, v_dim: 16 },
        Self { n_key: 2, n_value: 4, k_dim: 32, v_dim: 32 },
        Self { n_key: 1, n_value: 5, k_dim: 9, v_dim: 64 },
        Self { n_key: 3, n_value: 6, k_dim: 7, v_dim: 33 },
        Self { n_key: 2, n_value: 4, k_dim: 64, v_dim: 96 },
    ];
    /// Heads of published models.
    const PUBLISHED: Self = Self { n_key: 2, n_value: 4, k_dim: 128, v_dim: 128 };

    /// A result is a sum over the rows of a matrix, which holds sums over the rows of the sequence; the first row of a
    /// sequence alone is a multiple of `k . q`, which is small by cancellation.
    fn tolerance(self) -> Tolerance {
        Tolerance::sums(4 * self.k_dim + ROWS)
    }

    /// Of `n` rows the decay: of every head, or of every row of its matrix.
    fn decay(self, n: usize, by_row: bool) -> Shape {
        if by_row { Shape::from([n, self.n_value, self.k_dim]) } else { Shape::from([n, self.n_value]) }
    }
}

/// Ranges of what is random in a case of the gated rule.
#[derive(Clone, Copy)]
struct Ranges {
    q: [f32; 2],
    k: [f32; 2],
    a: [f32; 2],
    b: [f32; 2],
    scale: [f32; 2],
}

impl Ranges {
    const USUAL: Self = Self { q: [-1.0, 1.0], k: [-1.0, 1.0], a: [-4.0, 4.0], b: [-6.0, 6.0], scale: [-2.0, -0.01] };
}

fn gated(name: &str, sizes: Sizes, heads: HeadMap, by_row: bool, batch: BatchArg, ranges: Ranges) -> OpCase {
    let Sizes { n_key, n_value, k_dim, v_dim } = sizes;
    let n = batch.n_tokens;
    let decay = if by_row { " by row" } else { "" };
    let name = format!("gated delta{decay} {n_key}/{n_value} heads of {k_dim}x{v_dim} {heads:?}, {name}");
    OpCase::new(name, sizes.tolerance(), move |g, x| {
        let qkv = [x.x[0], x.x[1], x.x[2]];
        vec![g.gated_delta(qkv, [x.x[3], x.x[4]], [x.w[0], x.w[1]], (heads, L2_EPS), x.s[0], x.batch())]
    })
    .batch(batch)
    .input_in([n, n_key, k_dim], ranges.q)
    .input_in([n, n_key, k_dim], ranges.k)
    .input([n, n_value, v_dim])
    .input_in(sizes.decay(n, by_row), ranges.a)
    .input_in([n, n_value], ranges.b)
    .weight_in(DType::F32, &[n_value], ranges.scale)
    .weight_in(DType::F32, &[sizes.decay(1, by_row).elements()], [-2.0, 2.0])
    .delta_state(n_value, k_dim, v_dim)
}

/// What is replaced under a normed key: every way through the state, both maps of heads, both kinds of decay, and gates and
/// keys at their ends.
pub fn gated_delta(cases: &mut Vec<OpCase>) {
    for (i, batch) in passages().into_iter().enumerate() {
        for sizes in Sizes::ALL {
            for (heads, by_row) in [(HeadMap::Interleaved, false), (HeadMap::Tiled, false), (HeadMap::Tiled, true)] {
                cases.push(gated(&format!("batch {i}"), sizes, heads, by_row, batch.clone(), Ranges::USUAL));
            }
        }
    }
    for length in [1, 65] {
        for (heads, by_row) in [(HeadMap::Interleaved, true), (HeadMap::Tiled, false)] {
            let name = format!("{length} rows");
            let batch = batch(128, &[(1, 3, length)]);
            cases.push(gated(&name, Sizes::PUBLISHED, heads, by_row, batch, Ranges::USUAL));
        }
    }
    let usual = Ranges::USUAL;
    for (name, ranges) in [
        ("hardly a decay", Ranges { a: [-18.0, -14.0], ..usual }),
        ("hardly anything left", Ranges { a: [2.0, 4.0], scale: [-20.0, -10.0], ..usual }),
        ("large steps", Ranges { a: [19.0, 40.0], scale: [-1e-2, -1e-3], ..usual }),
        ("nothing replaced", Ranges { b: [-200.0, -150.0], ..usual }),
        ("hardly anything replaced", Ranges { b: [-15.0, -13.0], ..usual }),
        ("everything replaced", Ranges { b: [30.0, 200.0], ..usual }),
        ("keys of zeros", Ranges { k: [0.0, 0.0], ..usual }),
        ("queries and keys below the epsilon", Ranges { q: [-1e-4, 1e-4], k: [-1e-4, 1e-4], ..usual }),
    ] {
        for by_row in [false, true] {
            let batch = batch(128, &[(1, 3, 9), (0, 0, 65)]);
            cases.push(gated(name, Sizes::ALL[2], HeadMap::Interleaved, by_row, batch, ranges));
        }
    }
    cases.push(packed());
}

/// Largest difference between f32 and f64, of the largest result, and of the largest element of a state.
const MAX_OFF: [f64; 2] = [2e-6, 1e-5];
/// Lengths around those of blocks and of the chunks of other implementations.
const LENGTHS: [usize; 10] = [1, 2, 15, 63, 64, 65, 127, 128, 129, 300];

/// Single precision beside double: every length, width and number of value heads of a key head, decays from 1e-6 to 60 and
/// strengths from 0 to 1, from zeros and from a state.
pub fn delta_precision(cases: &mut Vec<OpCase>) {
    let usual = Ranges::USUAL;
    let ends = [
        ("usual gates", usual),
        ("no decay to speak of", Ranges { a: [-14.0, -13.0], scale: [-1.0, -0.5], ..usual }),
        ("decays up to 60", Ranges { a: [-14.0, 4.0], scale: [-20.0, -1e-2], ..usual }),
        ("nothing replaced", Ranges { b: [-200.0, -150.0], ..usual }),
        ("hardly anything replaced", Ranges { b: [-14.0, -13.0], ..usual }),
        ("half replaced", Ranges { b: [0.0, 0.0], ..usual }),
        ("everything replaced", Ranges { b: [30.0, 200.0], ..usual }),
        ("queries of zeros", Ranges { q: [0.0, 0.0], ..usual }),
        ("keys of zeros", Ranges { k: [0.0, 0.0], ..usual }),
    ];
    let mut add = |length: usize, n_past: usize, (group, dim): (usize, usize), (name, ranges): (&str, Ranges)| {
        let sizes = Sizes { n_key: 1, n_value: group, k_dim: dim, v_dim: dim };
        let name = format!("{length} rows after {n_past}, {name}");
        let case = gated(&name, sizes, HeadMap::Interleaved, false, batch(512, &[(0, n_past, length)]), ranges);
        cases.push(OpCase { tolerance: Tolerance::Largest(MAX_OFF), ..case });
    };
    let widths = [16, 32, 64, 128];
    for (i, length) in LENGTHS.into_iter().enumerate() {
        let sizes = ([1, 2, 5][i % 3], widths[i % 3]);
        [0, 3].into_iter().for_each(|n_past| add(length, n_past, sizes, ends[0]));
    }
    for (group, dim) in [1, 2, 5].into_iter().flat_map(|group| widths.map(|dim| (group, dim))) {
        add(65, 7, (group, dim), ends[0]);
    }
    for end in &ends[1..] {
        for (length, n_past, dim) in [(129, 3, 32), (300, 0, 16), (64, 3, 128)] {
            add(length, n_past, (2, dim), *end);
        }
    }
}

/// Arguments as models have them: queries, keys and values behind each other in a row, gates of the value heads of a key head
/// side by side.
fn packed() -> OpCase {
    let Sizes { n_key, n_value, k_dim, v_dim } = Sizes::ALL[2];
    let batch = batch(64, &[(1, 3, 6), (0, 0, 9)]);
    let n = batch.n_tokens;
    OpCase::new("gated delta of parts of rows", Sizes::ALL[2].tolerance(), move |g, x| {
        let part = |start: usize, n_head: usize, width: usize| {
            g.split_heads(g.slice(x.x[0], 1, start * k_dim, n_head * width), n_head)
        };
        let qkv = [part(0, n_key, k_dim), part(n_key, n_key, k_dim), part(2 * n_key, n_value, v_dim)];
        let of_key = g.split_heads(x.x[1], n_key);
        let r = n_value / n_key;
        let gates = [r, 0].map(|start| g.slice(of_key, 2, start, r));
        vec![g.gated_delta(qkv, gates, [x.w[0], x.w[1]], (HeadMap::Interleaved, L2_EPS), x.s[0], x.batch())]
    })
    .batch(batch)
    .input([n, 2 * n_key * k_dim + n_value * v_dim])
    .input([n, 2 * n_value])
    .weight_in(DType::F32, &[n_value], Ranges::USUAL.scale)
    .weight_in(DType::F32, &[n_value], [-2.0, 2.0])
    .delta_state(n_value, k_dim, v_dim)
}

/// What is read and added under vectors of their own.
pub fn given_delta(cases: &mut Vec<OpCase>) {
    let case = |name: String, sizes: Sizes, heads: HeadMap, by_row: bool, batch: BatchArg| {
        let Sizes { n_key, n_value, k_dim, v_dim } = sizes;
        let n = batch.n_tokens;
        let decay = if by_row { " by row" } else { "" };
        let name = format!("given delta{decay} {n_key}/{n_value} heads of {k_dim}x{v_dim} {heads:?}, {name}");
        // What is read comes back smaller: longer sequences would grow beyond all numbers.
        let small = [-1.0, 1.0].map(|x| x / (k_dim as f32).sqrt());
        OpCase::new(name, sizes.tolerance(), move |g, x| {
            let [q, k, v, decay, r, p] = [0, 1, 2, 3, 4, 5].map(|i| x.x[i]);
            vec![g.given_delta([q, k, v], [decay, r, p], heads, x.s[0], x.batch())]
        })
        .batch(batch)
        .input([n, n_key, k_dim])
        .input([n, n_key, k_dim])
        .input([n, n_value, v_dim])
        .input_in(sizes.decay(n, by_row), [-3.0, -1e-3])
        .input_in([n, n_key, k_dim], small)
        .input_in([n, n_key, k_dim], small)
        .delta_state(n_value, k_dim, v_dim)
    };
    for (i, batch) in passages().into_iter().enumerate() {
        for sizes in Sizes::ALL {
            for (heads, by_row) in [(HeadMap::Interleaved, true), (HeadMap::Tiled, false)] {
                cases.push(case(format!("batch {i}"), sizes, heads, by_row, batch.clone()));
            }
        }
    }
    for length in [1, 65] {
        let batch = batch(128, &[(1, 3, length)]);
        cases.push(case(format!("{length} rows"), Sizes::PUBLISHED, HeadMap::Interleaved, true, batch));
    }
}
