//! Rotary position embedding.

use engine::DType;
use engine::op::{Rope, RopePairs};

use super::batch;
use crate::case::{ELEMENTWISE, OpCase};

/// Both kinds of pairs, whole and partial heads, near and far positions.
pub fn rope(cases: &mut Vec<OpCase>) {
    for pairs in [RopePairs::Halves, RopePairs::Interleaved] {
        for (head_dim, n_rot) in [(2, 2), (6, 6), (16, 16), (64, 64), (80, 80), (128, 128), (64, 32), (34, 14)] {
            for n_past in [0, 1000, 100_000] {
                let rope = Rope { n_rot, theta_base: 1e6, pairs };
                let name = format!("rope {pairs:?} {n_rot} of {head_dim} from {n_past}");
                cases.push(
                    OpCase::new(name, ELEMENTWISE, move |g, a| vec![g.rope(a.x[0], a.batch(), rope)])
                        .batch(batch(200_000, &[(1, n_past, 5), (0, 3, 2), (2, 0, 0)]))
                        .input([10, 3, head_dim]),
                );
            }
        }
        for (head_dim, n_rot) in [(16, 16), (80, 48)] {
            let rope = Rope { n_rot, theta_base: 5e5, pairs };
            cases.push(
                OpCase::new(
                    format!("rope {pairs:?} {n_rot} of {head_dim} with factors"),
                    ELEMENTWISE,
                    // Two nodes that share positions, and of which one has no factors.
                    move |g, a| {
                        let factors = g.rope_with_factors(a.x[0], a.batch(), rope, a.w[0]);
                        vec![g.add(factors, g.rope(a.x[0], a.batch(), rope))]
                    },
                )
                .batch(batch(200_000, &[(1, 5000, 5), (0, 3, 2)]))
                .input([10, 3, head_dim])
                .weight_in(DType::F32, &[n_rot as usize / 2], [0.5, 8.0]),
            );
        }
        let rope = Rope { n_rot: 16, theta_base: 10000.0, pairs };
        cases.push(
            OpCase::new(format!("rope {pairs:?} of parts of rows"), ELEMENTWISE, move |g, a| {
                let heads = g.split_heads(g.slice(a.x[0], 1, 16, 48), 3);
                vec![g.rope(heads, a.batch(), rope)]
            })
            .batch(batch(64, &[(0, 7, 40)]))
            .input([40, 96]),
        );
    }
}
