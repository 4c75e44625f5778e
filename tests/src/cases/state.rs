//! Recurrences over a sequence's state.

use engine::DType;
use engine::builder::SsmScan;
use engine::op::ScanDecay;

use super::passages;
use crate::case::{OpCase, Tolerance};

/// Both generations of scan over every way through the state, one and two groups; step sizes from 1e-6 to 30.
pub fn ssm_scan(cases: &mut Vec<OpCase>) {
    // Heads, channels, elements of the state, groups.
    let sizes = [[1, 1, 1, 1], [4, 8, 16, 2], [2, 33, 5, 1], [6, 64, 16, 3], [3, 40, 64, 1]];
    for (i, batch) in passages().into_iter().enumerate() {
        for [n_head, head_dim, d_state, n_group] in sizes {
            let n = batch.n_tokens;
            for (name, decay) in [("channel", ScanDecay::Channel), ("head", ScanDecay::Head)] {
                let n_steps = if decay == ScanDecay::Head { n_head } else { n_head * head_dim };
                let name = format!("scan by {name}, {n_head} heads of [{d_state}, {head_dim}] in {n_group}, batch {i}");
                // Products of the state, then sums over it, of errors that a decay below 1 does not let grow.
                let case = OpCase::new(name, Tolerance::sums(2 * d_state + 16), move |g, a| {
                    let dt = match decay {
                        ScanDecay::Head => a.x[1],
                        ScanDecay::Channel => g.reshape(a.x[1], [n, n_head, head_dim]),
                    };
                    let scan =
                        SsmScan { x: a.x[0], dt, b: a.x[2], c: a.x[3], dt_bias: a.w[0], a: a.w[1], d: a.w[2], decay };
                    vec![g.ssm_scan(scan, a.s[0], a.batch())]
                });
                let a_shape = if decay == ScanDecay::Head { vec![n_steps] } else { vec![n_steps, d_state] };
                cases.push(
                    case.batch(batch.clone())
                        .input([n, n_head, head_dim])
                        .input_in([n, n_steps], [-14.0, 30.0])
                        .input_in([n, n_group, d_state], [-0.5, 1.5])
                        .input_in([n, n_group, d_state], [-0.5, 1.5])
                        .weight(DType::F32, [n_steps])
                        .weight_in(DType::F32, &a_shape, [-64.0, -1e-4])
                        .weight(DType::F32, [n_steps])
                        .ssm_state(n_head, d_state, head_dim),
                );
            }
        }
    }
}
