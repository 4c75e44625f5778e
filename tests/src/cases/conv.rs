//! Convolutions: over a sequence's past, and over images.

use engine::DType;
use engine::builder::GraphBuilder;
use engine::op::Unary;
use engine::tensor::Tensor;

use super::{batch, passages};
use crate::case::{Args, ELEMENTWISE, OpCase, Tolerance};

/// Every width of kernel and way through its state, with and without bias and activation.
pub fn causal_conv1d(cases: &mut Vec<OpCase>) {
    for (i, batch) in passages().into_iter().enumerate() {
        for d_conv in 2..=5 {
            for width in [1, 7, 8, 17, 64, 100] {
                let shape = [batch.n_tokens, width];
                let case = |with: &str, build: fn(&GraphBuilder<'_>, &Args) -> Tensor| {
                    let name = format!("causal conv {d_conv} width {width}{with}, batch {i}");
                    OpCase::new(name, ELEMENTWISE, move |g, a| vec![build(g, a)])
                        .batch(batch.clone())
                        .input(shape)
                        .weight(DType::F32, [width, d_conv])
                        .conv_state(d_conv, width)
                };
                cases.push(case("", |g, a| g.causal_conv1d(a.x[0], a.w[0], None, a.s[0], a.batch())));
                cases.push(
                    case(" with bias and silu", |g, a| {
                        g.unary(Unary::Silu, g.causal_conv1d(a.x[0], a.w[0], Some(a.w[1]), a.s[0], a.batch()))
                    })
                    .weight(DType::F32, [width])
                    .fuses("conv_act"),
                );
            }
        }
    }
    cases.push(
        OpCase::new("causal conv of a part of each row", ELEMENTWISE, |g, a| {
            let [b, c, u] = g.chunk(a.x[0]);
            vec![g.mul(c, g.causal_conv1d(b, a.w[0], None, a.s[0], a.batch())), g.mul(b, u)]
        })
        .batch(batch(64, &[(1, 3, 6), (0, 0, 9)]))
        .input([18, 60])
        .weight(DType::F32, [20, 3])
        .conv_state(3, 20),
    );
}

/// Images of odd sizes, every stride and border, weights of float formats.
pub fn conv2d(cases: &mut Vec<OpCase>) {
    let sizes = [
        // n, h, w, c_in, c_out, kh, kw, stride, pad
        [1, 1, 1, 1, 1, 1, 1, 1, 0],
        [1, 3, 3, 1, 5, 3, 3, 1, 1],
        [2, 8, 9, 3, 4, 3, 3, 2, 1],
        [1, 7, 5, 8, 17, 3, 3, 2, 1],
        [3, 5, 4, 17, 8, 2, 3, 1, 0],
        [1, 16, 50, 1, 12, 3, 3, 2, 1],
        [1, 16, 25, 12, 12, 3, 3, 2, 1],
        [1, 6, 6, 33, 7, 5, 5, 3, 2],
        [2, 4, 4, 2, 3, 1, 1, 1, 0],
        [1, 2, 2, 3, 2, 3, 3, 1, 1],
        [1, 64, 40, 1, 20, 3, 3, 2, 1],
    ];
    for [n, h, w, c_in, c_out, kh, kw, stride, pad] in sizes {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (stride, pad) = (stride as u8, pad as u8);
            let case = |act: Option<Unary>| {
                let size = format!("[{n}, {h}, {w}, {c_in}] to {c_out} by {kh}x{kw} step {stride} border {pad}");
                OpCase::new(
                    format!("conv2d {dtype} {size} {act:?}"),
                    Tolerance::sums(2 * kh * kw * c_in),
                    move |g, a| {
                        let y = g.conv2d(a.x[0], a.w[0], a.w[1], stride, pad);
                        vec![act.map_or(y, |act| g.unary(act, y))]
                    },
                )
                .input([n, h, w, c_in])
                .weight(dtype, [c_out, c_in, kh, kw])
                .weight(DType::F32, [c_out])
            };
            cases.push(case(None));
            cases.push(case(Some(Unary::Gelu)).fuses("conv_act"));
        }
    }
    cases.push(
        OpCase::new("conv2d of a transposed image", Tolerance::sums(36), |g, a| {
            vec![g.conv2d(g.permute(a.x[0], [0, 2, 3, 1]), a.w[0], a.w[1], 2, 1)]
        })
        .input([2, 2, 9, 10])
        .weight(DType::F32, [5, 2, 3, 3])
        .weight(DType::F32, [5]),
    );
    cases.push(
        OpCase::new("conv2d of a part of an image", Tolerance::sums(18), |g, a| {
            let view = g.slice(g.slice(a.x[0], 1, 2, 6), 2, 3, 7);
            vec![g.conv2d(g.permute(view, [0, 2, 1, 3]), a.w[0], a.w[1], 1, 1)]
        })
        .input([1, 9, 11, 1])
        .weight(DType::F16, [4, 1, 3, 3])
        .weight(DType::F32, [4]),
    );
}

/// Kernels of single channels: images of odd sizes, and rows of batches with padding.
pub fn depthwise(cases: &mut Vec<OpCase>) {
    let sizes = [
        // n, h, w, c, kh, kw, stride, pad
        [1, 1, 1, 1, 3, 3, 2, 1],
        [2, 7, 5, 8, 3, 3, 2, 1],
        [1, 8, 6, 17, 3, 3, 2, 1],
        [1, 20, 32, 64, 3, 3, 2, 1],
        [1, 5, 4, 3, 2, 3, 1, 0],
        [1, 6, 7, 33, 5, 1, 3, 2],
    ];
    for [n, h, w, c, kh, kw, stride, pad] in sizes {
        for dtype in [DType::F32, DType::F16] {
            let (stride, pad) = (stride as u8, pad as u8);
            let name = format!("depthwise conv2d {dtype} [{n}, {h}, {w}, {c}] by {kh}x{kw} step {stride} border {pad}");
            cases.push(
                OpCase::new(name, ELEMENTWISE, move |g, a| {
                    vec![g.depthwise_conv2d(a.x[0], a.w[0], a.w[1], stride, pad)]
                })
                .input([n, h, w, c])
                .weight(dtype, [c, 1, kh, kw])
                .weight(DType::F32, [c]),
            );
        }
    }
    for lengths in [&[1][..], &[4], &[9], &[40], &[13, 5], &[3, 0, 11]] {
        for (width, d_conv, dtype) in [
            (1, 9, DType::F32),
            (7, 1, DType::F16),
            (16, 3, DType::F32),
            (33, 9, DType::F16),
            (64, 9, DType::F32),
            (100, 5, DType::BF16),
        ] {
            let seqs: Vec<_> = lengths.iter().map(|&n| (0, 0, n)).collect();
            let batch = batch(1, &seqs);
            let shape = [batch.n_tokens, width];
            cases.push(
                OpCase::new(
                    format!("depthwise conv1d {d_conv} width {width}, lengths {lengths:?}"),
                    ELEMENTWISE,
                    |g, a| vec![g.depthwise_conv1d(a.x[0], a.w[0], a.w[1], a.batch().spans)],
                )
                .batch(batch)
                .input(shape)
                .weight(dtype, [width, d_conv])
                .weight(DType::F32, [width]),
            );
        }
    }
    cases.push(
        OpCase::new("depthwise conv1d of a part of each row", ELEMENTWISE, |g, a| {
            let [value, gate] = g.chunk(a.x[0]);
            let x = g.glu(Unary::Sigmoid, gate, value);
            vec![
                g.depthwise_conv1d(x, a.w[0], a.w[1], a.batch().spans),
                g.depthwise_conv1d(gate, a.w[0], a.w[1], a.batch().spans),
            ]
        })
        .batch(batch(1, &[(0, 0, 6), (0, 0, 9)]))
        .input([18, 40])
        .weight(DType::F32, [20, 9])
        .weight(DType::F32, [20]),
    );
}
