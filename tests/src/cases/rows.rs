//! Lookup, copies and joins.

use engine::DType;
use engine::key::Stage;
use engine::tensor::Input;

use super::batch;
use crate::case::{OpCase, Tolerance};
use crate::rng::Rng;

/// Rounding to f32 of what is decoded exactly.
const EXACT: Tolerance = Tolerance::Nmse(0.0);

fn ids(name: &str, n: usize, n_rows: usize) -> Vec<u32> {
    let mut rng = Rng::named(name);
    // The first and the last row are always among them, where there is room.
    (0..n).map(|i| [0, n_rows - 1, rng.below(n_rows)][i.min(2)] as u32).collect()
}

/// Rows of tables in every format, of activations, and of either.
pub fn rows(cases: &mut Vec<OpCase>) {
    for dtype in DType::ALL.into_iter().filter(|t| *t != DType::I32) {
        for n_blocks in [1, 3] {
            let n = n_blocks * dtype.block().len;
            let name = format!("get_rows {dtype} n={n}");
            let ids = ids(&name, 6, 11);
            cases.push(OpCase::new(name, EXACT, |g, a| vec![g.get_rows(a.w[0], a.raw[0])]).weight(dtype, [11, n]).raw(
                Input::Tokens,
                [2, 3],
                ids,
            ));
        }
        let n = dtype.block().len * 2;
        let name = format!("embed {dtype}");
        let batch = batch(8, &[(0, 0, 4), (1, 0, 4)]);
        let n_tokens = batch.n_tokens;
        let mut ids = ids(&name, n_tokens, 9);
        let mut vectors = vec![f32::NAN.to_bits(); n_tokens * n];
        let mut rng = Rng::named(&name);
        for (i, at) in (0i32..).zip([4, 0, 5]) {
            ids[at] = (-1 - i).cast_unsigned();
        }
        vectors[..3 * n].fill_with(|| rng.uniform([-1.0, 1.0]).to_bits());
        let mut case = OpCase::new(name, EXACT, |g, a| vec![a.batch().embed(g, a.w[0])])
            .batch(batch)
            .weight(dtype, [9, n])
            .raw(Input::Tokens, [n_tokens], ids)
            .raw(Input::Embeddings, [n_tokens, n], vectors);
        case.stage = Stage::Embeddings;
        cases.push(case);
    }
    for n in [1, 7, 64, 1000] {
        let name = format!("select_rows n={n}");
        let ids = ids(&name, 5, 9);
        cases.push(OpCase::new(name, EXACT, |g, a| vec![g.select_rows(a.x[0], a.raw[0])]).input([9, n]).raw(
            Input::OutRows,
            [5],
            ids,
        ));
    }
    let ids = ids("select_rows of a part of each row", 4, 9);
    cases.push(
        OpCase::new("select_rows of a part of each row", EXACT, |g, a| {
            vec![g.select_rows(g.slice(a.x[0], 1, 5, 13), a.raw[0])]
        })
        .input([9, 30])
        .raw(Input::OutRows, [4], ids),
    );
}

/// Copies of every layout, and joins.
pub fn layout(cases: &mut Vec<OpCase>) {
    for order in [[0, 1, 2, 3], [0, 1, 3, 2], [3, 2, 1, 0], [1, 0, 2, 3], [2, 3, 0, 1], [0, 3, 1, 2]] {
        cases.push(
            OpCase::new(format!("copy in the order {order:?}"), EXACT, move |g, a| {
                vec![g.copy(g.permute(a.x[0], order))]
            })
            .input([2, 3, 5, 7]),
        );
    }
    cases.push(
        OpCase::new("copy of a large transpose", EXACT, |g, a| vec![g.copy(g.permute(a.x[0], [1, 0]))])
            .input([300, 170]),
    );
    cases.push(
        OpCase::new("copy of a part", EXACT, |g, a| {
            let part = g.slice(g.slice(g.slice(a.x[0], 0, 1, 2), 1, 2, 3), 2, 3, 4);
            vec![g.copy(part), g.copy(g.permute(part, [2, 0, 1]))]
        })
        .input([4, 6, 8]),
    );
    for n in [1, 9, 64] {
        cases.push(
            OpCase::new(format!("concat n={n}"), EXACT, |g, a| vec![g.concat(a.x[0], a.x[1])])
                .input([3, n])
                .input([5, n]),
        );
    }
    cases.push(
        OpCase::new("concat of parts", EXACT, |g, a| {
            let [first, second] = g.chunk(a.x[0]);
            vec![g.concat(second, g.slice(first, 0, 1, 3)), g.concat(first, first)]
        })
        .input([4, 2, 22]),
    );
    cases.push(OpCase::new("concat of vectors", EXACT, |g, a| vec![g.concat(a.x[0], a.x[1])]).input([3]).input([70]));
}

/// Rows of images and of tokens, ranges in units of one and of several.
pub fn mask_rows(cases: &mut Vec<OpCase>) {
    for (unit, ranges) in [
        (1, [[0, 3], [7, 14]]),
        (1, [[0, 0], [2, 7]]),
        (2, [[0, 5], [14, 27]]),
        (4, [[0, 1], [28, 56]]),
        (8, [[0, 50], [0, 0]]),
    ] {
        for shape in [&[14, 5][..], &[14, 3, 4], &[14, 1]] {
            let shape = engine::Shape::new(shape).expect("a shape");
            let name = format!("mask rows of {shape} unit {unit} ranges {ranges:?}");
            let case = OpCase::new(name, EXACT, move |g, a| vec![g.mask_rows(a.x[0], a.raw[0], unit)]);
            cases.push(case.input(shape).raw(Input::Frames, [2, 2], ranges.concat()));
        }
    }
}
