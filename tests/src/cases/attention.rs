//! Attention: over memory, and inside windows.

use engine::DType;
use engine::op::Window;

use super::batch;
use crate::case::{OpCase, Tolerance};

/// Scores are sums of `head_dim` products of up to 4 in size, results are means of `n_keys` values.
fn tolerance(head_dim: usize, n_keys: usize) -> Tolerance {
    Tolerance::sums(2 * head_dim + n_keys)
}

/// Sequences of unequal length in arbitrary slots, around the blocks of keys, with grouped heads and both formats.
pub fn cached(cases: &mut Vec<OpCase>) {
    let batches: [&[(usize, usize, usize)]; 9] = [
        &[(0, 0, 1)],
        &[(2, 0, 7)],
        &[(1, 63, 1)],
        &[(0, 64, 1)],
        &[(3, 65, 9)],
        &[(1, 130, 33)],
        &[(2, 0, 5), (0, 17, 1), (4, 64, 3)],
        &[(3, 1, 1), (0, 100, 1), (1, 0, 1), (5, 31, 1)],
        &[(1, 12, 4), (0, 0, 0), (2, 0, 2), (0, 0, 0)],
    ];
    for (i, seqs) in batches.into_iter().enumerate() {
        for (n_head, n_head_kv, head_dim) in [(1, 1, 1), (2, 2, 16), (4, 2, 64), (6, 1, 7), (8, 2, 128), (3, 3, 33)] {
            for dtype in [DType::F16, DType::F32] {
                let batch = batch(170, seqs);
                let n_tokens = batch.n_tokens;
                let name = format!("cached attention {dtype} heads {n_head}/{n_head_kv} of {head_dim}, batch {i}");
                let scale = 1.5 / (head_dim as f32).sqrt();
                cases.push(
                    OpCase::new(name, tolerance(head_dim, 163), move |g, a| {
                        let kv = g.kv_write(a.kv[0], a.x[1], a.x[2], a.batch());
                        vec![g.cached_attention(a.x[0], kv, a.batch(), scale)]
                    })
                    .batch(batch)
                    .kv(dtype, n_head_kv, head_dim)
                    .input_in([n_tokens, n_head, head_dim], [-2.0, 2.0])
                    .input_in([n_tokens, n_head_kv, head_dim], [-2.0, 2.0])
                    .input([n_tokens, n_head_kv, head_dim]),
                );
            }
        }
    }
    for dtype in [DType::F16, DType::F32] {
        cases.push(
            OpCase::new(format!("cached attention {dtype} of parts of rows"), tolerance(16, 20), |g, a| {
                let parts = [(0, 4), (64, 2), (96, 2)];
                let [q, k, v] = parts.map(|(start, n)| g.split_heads(g.slice(a.x[0], 1, start, 16 * n), n));
                let kv = g.kv_write(a.kv[0], k, v, a.batch());
                vec![g.cached_attention(q, kv, a.batch(), 0.25)]
            })
            .batch(batch(40, &[(1, 9, 11), (0, 0, 4)]))
            .kv(dtype, 2, 16)
            .input([18, 128]),
        );
        cases.push(
            // Scores up to 100 in size: the softmax is a maximum.
            OpCase::new(format!("cached attention {dtype} with large scores"), Tolerance::Nmse(1e-9), |g, a| {
                let kv = g.kv_write(a.kv[0], a.x[1], a.x[2], a.batch());
                vec![g.cached_attention(a.x[0], kv, a.batch(), 10.0)]
            })
            .batch(batch(200, &[(0, 140, 20)]))
            .kv(dtype, 1, 16)
            .input_in([20, 2, 16], [-2.0, 2.0])
            .input_in([20, 1, 16], [-2.0, 2.0])
            .input([20, 1, 16]),
        );
    }
}

/// Whole sequences and windows, batches with padding.
pub fn windowed(cases: &mut Vec<OpCase>) {
    let windows = [Window::Full, Window::Blocks(1), Window::Blocks(13), Window::Blocks(64), Window::Blocks(1000)];
    for window in windows {
        for (n_head, head_dim) in [(1, 1), (2, 64), (3, 17), (4, 8)] {
            for seqs in [&[1][..], &[13], &[27, 5], &[130], &[66, 0, 64]] {
                let seqs: Vec<_> = seqs.iter().map(|&n| (0, 0, n)).collect();
                let batch = batch(1, &seqs);
                let shape = [batch.n_tokens, n_head, head_dim];
                let lengths: Vec<usize> = seqs.iter().map(|s| s.2).collect();
                let name = format!("attention {window:?} heads {n_head} of {head_dim}, lengths {lengths:?}");
                let scale = 1.0 / (head_dim as f32).sqrt();
                cases.push(
                    OpCase::new(name, tolerance(head_dim, batch.n_tokens), move |g, a| {
                        vec![g.attention([a.x[0], a.x[1], a.x[2]], a.batch().spans, scale, window)]
                    })
                    .batch(batch)
                    .input_in(shape, [-2.0, 2.0])
                    .input_in(shape, [-2.0, 2.0])
                    .input(shape),
                );
            }
        }
        cases.push(
            OpCase::new(format!("attention {window:?} of parts of rows"), tolerance(16, 40), move |g, a| {
                let parts = g.chunk::<3>(a.x[0]).map(|x| g.split_heads(x, 2));
                vec![g.attention(parts, a.batch().spans, 0.25, window)]
            })
            .batch(batch(1, &[(0, 0, 40), (0, 0, 39)]))
            .input([82, 96]),
        );
    }
}
