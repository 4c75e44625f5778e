//! Attention with relative positions, and the sinusoids of these positions.

use engine::DType;

use super::batch;
use crate::case::{ELEMENTWISE, OpCase, Tolerance};

/// Tables of every length, and attention over batches with padding around the blocks of queries.
pub fn rel_pos(cases: &mut Vec<OpCase>) {
    for n_tokens in [1, 2, 3, 16, 17, 200] {
        for n in [2, 6, 64] {
            cases.push(
                OpCase::new(format!("relative positions of {n_tokens} tokens of {n}"), ELEMENTWISE, |g, a| {
                    vec![g.rel_positions(a.x[0])]
                })
                .input([n_tokens, n]),
            );
        }
    }
    for (n_head, head_dim) in [(1, 2), (2, 8), (3, 17), (4, 64)] {
        for lengths in [&[1][..], &[5], &[16], &[33], &[130], &[27, 5], &[6, 0, 18]] {
            let seqs: Vec<_> = lengths.iter().map(|&n| (0, 0, n)).collect();
            let batch = batch(1, &seqs);
            let n_tokens = batch.n_tokens;
            let shape = [n_tokens, n_head, head_dim];
            let name = format!("relative attention heads {n_head} of {head_dim}, lengths {lengths:?}");
            let scale = 1.0 / (head_dim as f32).sqrt();
            cases.push(
                OpCase::new(name, Tolerance::sums(4 * head_dim + n_tokens), move |g, a| {
                    let spans = a.batch().spans;
                    vec![g.rel_pos_attention([a.x[0], a.x[1], a.x[2]], a.x[3], [a.w[0], a.w[1]], spans, scale)]
                })
                .batch(batch)
                .input_in(shape, [-2.0, 2.0])
                .input_in(shape, [-2.0, 2.0])
                .input(shape)
                .input([2 * n_tokens - 1, n_head, head_dim])
                .weight(DType::F32, [n_head, head_dim])
                .weight(DType::F32, [n_head, head_dim]),
            );
        }
    }
    cases.push(
        OpCase::new("relative attention of parts of rows", Tolerance::sums(64 + 20), |g, a| {
            let parts = g.chunk::<3>(a.x[0]).map(|x| g.split_heads(x, 2));
            let p = g.split_heads(g.rel_positions(g.slice(a.x[0], 1, 0, 32)), 2);
            vec![g.rel_pos_attention(parts, p, [a.w[0], a.w[1]], a.batch().spans, 0.25)]
        })
        .batch(batch(1, &[(0, 0, 20), (0, 0, 19)]))
        .input([42, 96])
        .weight(DType::F32, [2, 16])
        .weight(DType::F32, [2, 16]),
    );
}
