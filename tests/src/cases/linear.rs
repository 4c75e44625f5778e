//! Matrix products: every format, row counts around the blocks of kernels, fused forms.

use engine::DType;
use engine::op::{Precision, Unary};

use crate::case::{OpCase, PRODUCT_RANGE, Tolerance};

/// Factor of activations whose products go through a function: arguments of some units at most, where it is not flat.
const ACTIVATED: f32 = 0.005;

/// Formats of weights.
fn formats_of_weights() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|t| *t != DType::I32)
}

fn one(dtype: DType, m: usize, k: usize) -> Tolerance {
    Tolerance::Product { dtype, m, k, factor: 1.0, precision: Precision::Fast }
}

fn linear(dtype: DType, m: usize, n: usize, k: usize) -> OpCase {
    let name = format!("linear {dtype} m={m} n={n} k={k}");
    OpCase::new(name, one(dtype, m, k), |g, a| vec![g.linear(a.x[0], a.w[0])])
        .input_in([m, k], PRODUCT_RANGE)
        .weight(dtype, [n, k])
}

/// Every format with 1 to 40 rows of activations, and with odd numbers of rows of weights.
pub fn formats(cases: &mut Vec<OpCase>) {
    for dtype in formats_of_weights() {
        let block = dtype.block().len.max(32);
        for m in 1..=40 {
            cases.push(linear(dtype, m, 24, 2 * block));
        }
        for n in [16, 17, 31, 33, 67, 200] {
            for m in [1, 3, 19] {
                cases.push(linear(dtype, m, n, 3 * block));
            }
        }
    }
}

/// Formats of 32-blocks with rows that are not multiples of 256, around the tiles of kernels and of activations.
pub fn small_blocks(cases: &mut Vec<OpCase>) {
    for dtype in [DType::Q8_0, DType::Q4_0] {
        for (n, k) in [(9, 32), (7, 96), (37, 544), (65, 1056)] {
            for m in [1, 2, 3, 15, 16, 17, 31, 33, 157] {
                cases.push(linear(dtype, m, n, k));
            }
        }
        cases.push(linear(dtype, 385, 33, 96));
    }
}

/// Float formats with rows of every length.
pub fn floats(cases: &mut Vec<OpCase>) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for k in [1, 2, 3, 7, 9, 15, 17, 31, 33, 63, 65, 100, 257, 1025] {
            for m in [1, 2, 8, 9, 17] {
                cases.push(linear(dtype, m, 37, k));
            }
        }
    }
}

/// Products by themselves and fused, and convolutions, around the number of rows from which on precision makes a difference.
fn around_few() -> Vec<OpCase> {
    let mut all = Vec::new();
    for dtype in formats_of_weights() {
        for m in [1, 8, 9, 40] {
            all.push(linear(dtype, m, 24, 2 * dtype.block().len.max(32)));
            fused_of(&mut all, dtype, m);
        }
    }
    super::conv::conv2d(&mut all);
    all
}

/// Products and convolutions that keep the precision of their activations.
pub fn precise(cases: &mut Vec<OpCase>) {
    cases.extend(around_few().into_iter().map(OpCase::precise));
}

/// The same whose rows are what they are alone.
pub fn alone(cases: &mut Vec<OpCase>) {
    cases.extend(around_few().into_iter().map(OpCase::alone));
}

/// Operands of every rank, strided rows, results of more than one chunk.
pub fn layouts(cases: &mut Vec<OpCase>) {
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_K] {
        for m in [5, 12] {
            let tolerance = one(dtype, m, 256);
            cases.push(
                OpCase::new(format!("linear {dtype} of a part of each row, m={m}"), tolerance, |g, a| {
                    vec![g.linear(g.slice(a.x[0], 1, 11, 256), a.w[0])]
                })
                .input_in([m, 300], PRODUCT_RANGE)
                .weight(dtype, [19, 256]),
            );
            cases.push(
                OpCase::new(format!("linear {dtype} of transposed rows, m={m}"), tolerance, |g, a| {
                    vec![g.linear(g.permute(a.x[0], [1, 0, 2]), a.w[0])]
                })
                .input_in([m, 2, 256], PRODUCT_RANGE)
                .weight(dtype, [19, 256]),
            );
        }
        let (one_row, rank_4) = (one(dtype, 1, 256), one(dtype, 6, 256));
        cases.push(
            OpCase::new(format!("linear {dtype} of a vector"), one_row, |g, a| vec![g.linear(a.x[0], a.w[0])])
                .input_in([256], PRODUCT_RANGE)
                .weight(dtype, [19, 256]),
        );
        cases.push(
            OpCase::new(format!("linear {dtype} of rank 4"), rank_4, |g, a| vec![g.linear(a.x[0], a.w[0])])
                .input_in([1, 2, 3, 256], PRODUCT_RANGE)
                .weight(dtype, [19, 256]),
        );
        cases.push(linear(dtype, 70, 300, 512));
        cases.push(linear(dtype, 1, 1500, 512));
    }
}

/// Bias and function, gates, and groups of products.
pub fn fused(cases: &mut Vec<OpCase>) {
    for dtype in formats_of_weights() {
        for m in [1, 4, 21] {
            fused_of(cases, dtype, m);
        }
    }
}

fn fused_of(cases: &mut Vec<OpCase>, dtype: DType, m: usize) {
    let two = |dtype, m, k| Tolerance::Product { dtype, m, k, factor: 3.0, precision: Precision::Fast };
    for act in [Unary::Gelu, Unary::Silu, Unary::GeluTanh, Unary::Relu, Unary::Sigmoid] {
        // A function with a slope of 1.13 at most, and a result that is smaller than its argument.
        let tolerance = Tolerance::Product { dtype, m, k: 256, factor: 4.0, precision: Precision::Fast };
        cases.push(
            OpCase::new(format!("linear {dtype} bias {act:?} m={m}"), tolerance, move |g, a| {
                vec![g.unary(act, g.linear_bias(a.x[0], a.w[0], a.w[1]))]
            })
            .input_in([m, 256], PRODUCT_RANGE.map(|x| x * ACTIVATED))
            .weight(dtype, [35, 256])
            .weight(DType::F32, [35])
            .fuses("linear_epilogue"),
        );
    }
    cases.push(
        OpCase::new(format!("linear {dtype} bias m={m}"), one(dtype, m, 256), |g, a| {
            vec![g.linear_bias(a.x[0], a.w[0], a.w[1])]
        })
        .input_in([m, 256], PRODUCT_RANGE)
        .weight(dtype, [35, 256])
        .weight(DType::F32, [35]),
    );
    cases.push(
        OpCase::new(format!("gate and up {dtype} m={m}"), two(dtype, m, 256), |g, a| {
            vec![g.glu(Unary::Silu, g.linear(a.x[0], a.w[0]), g.linear(a.x[0], a.w[1]))]
        })
        .input_in([m, 256], PRODUCT_RANGE)
        .weight(dtype, [70, 256])
        .weight(dtype, [70, 256])
        .fuses("glu_epilogue"),
    );
    cases.push(
        OpCase::new(format!("three products {dtype} m={m}"), one(dtype, m, 256), |g, a| {
            a.w.iter().map(|&w| g.linear(a.x[0], w)).collect()
        })
        .input_in([m, 256], PRODUCT_RANGE)
        .weight(dtype, [70, 256])
        .weight(dtype, [19, 256])
        .weight(dtype, [19, 256])
        .fuses("linear_group"),
    );
    cases.push(
        OpCase::new(format!("two products with bias {dtype} m={m}"), one(dtype, m, 256), |g, a| {
            vec![g.linear_bias(a.x[0], a.w[0], a.w[1]), g.linear_bias(a.x[0], a.w[2], a.w[3])]
        })
        .input_in([m, 256], PRODUCT_RANGE)
        .weight(dtype, [33, 256])
        .weight(DType::F32, [33])
        .weight(dtype, [18, 256])
        .weight(DType::F32, [18])
        .fuses("linear_group"),
    );
}
