//! Norms, alone and after a residual sum.

use engine::DType;

use super::LENGTHS;
use crate::case::{ELEMENTWISE, OpCase, Tolerance};

/// Lengths of rows: [`LENGTHS`], and those of models.
fn lengths() -> impl Iterator<Item = usize> {
    LENGTHS.into_iter().chain([128, 1024, 4100])
}

/// RMS and layer norm over contiguous and strided rows.
pub fn norm(cases: &mut Vec<OpCase>) {
    for n in lengths() {
        for rows in [1, 5] {
            cases.push(
                OpCase::new(format!("rms_norm {rows}x{n}"), ELEMENTWISE, |g, a| vec![g.rms_norm(a.x[0], a.w[0], 1e-6)])
                    .input([rows, n])
                    .weight(DType::F32, [n]),
            );
        }
        cases.push(
            OpCase::new(format!("layer_norm n={n}"), ELEMENTWISE, |g, a| {
                vec![g.layer_norm(a.x[0], a.w[0], a.w[1], 1e-5)]
            })
            .input([2, 3, n])
            .weight(DType::F32, [n])
            .weight(DType::F32, [n]),
        );
    }
    cases.push(
        OpCase::new("rms_norm of heads in a wider row", ELEMENTWISE, |g, a| {
            let heads = g.split_heads(g.slice(a.x[0], 1, 32, 64), 4);
            vec![g.rms_norm(heads, a.w[0], 1e-6)]
        })
        .input([7, 128])
        .weight(DType::F32, [16]),
    );
    for (groups, n) in [(1, 16), (3, 7), (4, 64)] {
        cases.push(
            OpCase::new(format!("norms of {groups} groups of {n}"), ELEMENTWISE, move |g, a| {
                let x = g.split_heads(a.x[0], groups);
                vec![g.rms_norm(x, a.w[0], 1e-6), g.layer_norm(x, a.w[0], a.w[1], 1e-6)]
            })
            .input([5, groups * n])
            .weight(DType::F32, [groups, n])
            .weight(DType::F32, [groups, n]),
        );
    }
    cases.push(
        OpCase::new("rms_norm of small values", ELEMENTWISE, |g, a| vec![g.rms_norm(a.x[0], a.w[0], 1e-5)])
            .input_in([3, 65], [-1e-4, 1e-4])
            .weight(DType::F32, [65]),
    );
    cases.push(
        OpCase::new("norm of many rows", ELEMENTWISE, |g, a| {
            vec![g.rms_norm(g.layer_norm(a.x[0], a.w[0], a.w[1], 1e-5), a.w[0], 1e-6)]
        })
        .input([200, 250])
        .weight(DType::F32, [250])
        .weight(DType::F32, [250]),
    );
    // The mean of 1000 is off by some units in its last place, 6e-5, against a deviation of 0.3 that the result shows.
    let shifted = Tolerance::Nmse((4.0f64 * 6e-5 / 0.3).powi(2));
    cases.push(
        OpCase::new("layer_norm far from 0", shifted, |g, a| vec![g.layer_norm(a.x[0], a.w[0], a.w[1], 1e-5)])
            .input_in([3, 300], [999.5, 1000.5])
            .weight(DType::F32, [300])
            .weight(DType::F32, [300]),
    );
}

/// A residual sum and its norm, with the sum read again.
pub fn add_norm(cases: &mut Vec<OpCase>) {
    for n in lengths() {
        cases.push(
            OpCase::new(format!("add_rms_norm n={n}"), ELEMENTWISE, |g, a| {
                let sum = g.add(a.x[0], a.x[1]);
                vec![g.mul(g.rms_norm(sum, a.w[0], 1e-6), sum)]
            })
            .input([3, n])
            .input([3, n])
            .weight(DType::F32, [n])
            .fuses("add_norm"),
        );
        cases.push(
            OpCase::new(format!("add_layer_norm n={n}"), ELEMENTWISE, |g, a| {
                let sum = g.add(a.x[0], a.x[1]);
                vec![g.layer_norm(sum, a.w[0], a.w[1], 1e-5), sum]
            })
            .input([3, n])
            .input([3, n])
            .weight(DType::F32, [n])
            .weight(DType::F32, [n])
            .fuses("add_norm"),
        );
    }
    cases.push(
        OpCase::new("add_rms_norm of strided rows", ELEMENTWISE, |g, a| {
            let [x, residual] = g.chunk(a.x[0]);
            let sum = g.add(x, residual);
            vec![sum, g.rms_norm(sum, a.w[0], 1e-6)]
        })
        .input([2, 3, 68])
        .weight(DType::F32, [34])
        .fuses("add_norm"),
    );
    cases.push(
        OpCase::new("add_rms_norm twice", ELEMENTWISE, |g, a| {
            let first = g.add(a.x[0], a.x[1]);
            let second = g.add(first, g.rms_norm(first, a.w[0], 1e-6));
            vec![g.rms_norm(second, a.w[0], 1e-6)]
        })
        .input([150, 133])
        .input([150, 133])
        .weight(DType::F32, [133])
        .fuses("add_norm"),
    );
    cases.push(
        OpCase::new("norm of a repeated sum is not fused", ELEMENTWISE, |g, a| {
            vec![g.rms_norm(g.add(a.x[0], a.x[1]), a.w[0], 1e-6)]
        })
        .input([3, 21])
        .input([21])
        .weight(DType::F32, [21]),
    );
}
