//! Recurrences over a sequence's state.

use engine::DType;
use engine::builder::SsmScan;
use engine::op::ScanDecay;

use super::{in_line, passages};
use crate::case::{BatchArg, ELEMENTWISE, OpCase, Sequence, Tolerance};

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

/// Most pending rows of a sequence in the cases below.
const N_PENDING: usize = 6;

/// Sequences `(slot, n_pending, length, kept)`: nothing pending and nothing kept for later, all of either, some of both, and
/// rows that are shifted onto themselves.
fn joins() -> Vec<BatchArg> {
    let all: [&[(usize, usize, usize, usize)]; 9] = [
        &[(1, 0, 4, 1)],
        &[(0, 3, 1, 4)],
        &[(2, 6, 7, 7)],
        &[(2, 6, 6, 6)],
        &[(1, 2, 5, 4)],
        &[(0, 5, 6, 5), (2, 0, 3, 3)],
        &[(0, 1, 1, 2), (3, 0, 1, 1), (1, 6, 2, 7)],
        &[(0, 0, 0, 0), (1, 4, 9, 10), (2, 0, 0, 0), (4, 0, 2, 1)],
        &[(3, 4, 1, 5), (0, 0, 65, 65), (1, 2, 7, 3)],
    ];
    let sequence = |&(slot, n_pending, length, kept): &(usize, usize, usize, usize)| Sequence {
        kept,
        n_pending,
        ..Sequence::new(slot, 9, length)
    };
    all.map(|seqs| BatchArg { joins: true, ..in_line(128, seqs.iter().map(sequence).collect()) }).into()
}

/// One to three parts of rows, whole and slices of wider ones, by themselves and before a convolution.
pub fn join_pending(cases: &mut Vec<OpCase>) {
    for (i, batch) in joins().into_iter().enumerate() {
        let n = batch.n_tokens;
        for widths in [&[1][..], &[8], &[33], &[16, 3], &[5, 64, 2]] {
            let name = format!("rows of {widths:?} behind pending ones, batch {i}");
            let case = OpCase::new(name, ELEMENTWISE, |g, a| match a.x[..] {
                [x] => g.join_pending([x], a.pending[0], a.batch()).map(|x| g.new_rows(x, a.batch())).to_vec(),
                [x, y] => g.join_pending([x, y], a.pending[0], a.batch()).map(|x| g.new_rows(x, a.batch())).to_vec(),
                [x, y, z] => {
                    g.join_pending([x, y, z], a.pending[0], a.batch()).map(|x| g.new_rows(x, a.batch())).to_vec()
                }
                _ => unreachable!("one to three parts"),
            });
            let case = widths.iter().fold(case, |case, &width| case.input([n, width]));
            cases.push(case.batch(batch.clone()).pending_rows(N_PENDING, widths.iter().sum()));
        }
        let case = OpCase::new(format!("a convolution of pending rows, batch {i}"), ELEMENTWISE, |g, a| {
            let [b, u] = g.chunk(a.x[0]);
            let [u] = g.join_pending([u], a.pending[0], a.batch());
            let y = g.new_rows(g.causal_conv1d(u, a.w[0], None, a.s[0], a.batch()), a.batch());
            vec![g.mul(b, y)]
        });
        let case = case.batch(batch.clone()).input([n, 40]).weight(DType::F32, [20, 4]);
        cases.push(case.conv_state(4, 20).pending_rows(N_PENDING, 20));
    }
}
