//! Pointwise functions.

use engine::op::Unary;

use super::LENGTHS;
use crate::case::{ELEMENTWISE, OpCase};

const FUNCTIONS: [Unary; 5] = [Unary::Silu, Unary::Gelu, Unary::GeluTanh, Unary::Relu, Unary::Sigmoid];

/// Every function on rows of all lengths, near 0 and far out.
pub fn unary(cases: &mut Vec<OpCase>) {
    for f in FUNCTIONS {
        for n in LENGTHS {
            let name = format!("{f:?} n={n}");
            cases.push(
                OpCase::new(name, ELEMENTWISE, move |g, a| vec![g.unary(f, a.x[0])]).input_in([3, n], [-6.0, 6.0]),
            );
        }
        for range in [[-0.01, 0.01], [-100.0, 100.0], [0.0, 1e4], [1e30, 3e38]] {
            let name = format!("{f:?} of {range:?}");
            cases.push(OpCase::new(name, ELEMENTWISE, move |g, a| vec![g.unary(f, a.x[0])]).input_in([2, 999], range));
        }
        cases.push(
            OpCase::new(format!("{f:?} strided"), ELEMENTWISE, move |g, a| {
                vec![g.unary(f, g.slice(g.permute(a.x[0], [1, 0, 2]), 2, 3, 10))]
            })
            .input([4, 5, 17]),
        );
    }
}

/// Sums and products, repeated and strided.
pub fn binary(cases: &mut Vec<OpCase>) {
    for n in LENGTHS {
        for rows in [1, 3] {
            cases.push(
                OpCase::new(format!("add {rows}x{n}"), ELEMENTWISE, |g, a| vec![g.add(a.x[0], a.x[1])])
                    .input([rows, n])
                    .input([rows, n]),
            );
            cases.push(
                OpCase::new(format!("mul {rows}x{n}"), ELEMENTWISE, |g, a| vec![g.mul(a.x[0], a.x[1])])
                    .input([rows, n])
                    .input([rows, n]),
            );
        }
        cases.push(
            OpCase::new(format!("add repeated n={n}"), ELEMENTWISE, |g, a| vec![g.add(a.x[0], a.x[1])])
                .input([2, 5, n])
                .input([n]),
        );
        cases.push(
            OpCase::new(format!("mul repeated rows n={n}"), ELEMENTWISE, |g, a| vec![g.mul(a.x[0], a.x[1])])
                .input([4, 3, n])
                .input([3, n]),
        );
    }
    for (n, scale) in [(1, 0.5), (17, -2.0), (64, 0.5), (100, 0.0)] {
        cases.push(
            OpCase::new(format!("{scale} times n={n}"), ELEMENTWISE, move |g, a| vec![g.scale(a.x[0], scale)])
                .input([3, n]),
        );
        cases.push(
            OpCase::new(format!("add {scale} times n={n}"), ELEMENTWISE, move |g, a| {
                vec![g.add_scaled(a.x[0], a.x[1], scale)]
            })
            .input([3, n])
            .input([3, n]),
        );
    }
    cases.push(
        OpCase::new("add a part of each row, scaled", ELEMENTWISE, |g, a| {
            let [first, second] = g.chunk(a.x[0]);
            vec![g.add_scaled(second, first, 0.25), g.add_scaled(first, first, 0.5)]
        })
        .input([5, 26]),
    );
    cases.push(
        OpCase::new("add strided", ELEMENTWISE, |g, a| vec![g.add(g.slice(a.x[0], 1, 2, 9), g.slice(a.x[1], 1, 4, 9))])
            .input([7, 20])
            .input([7, 13]),
    );
    cases.push(
        OpCase::new("add transposed", ELEMENTWISE, |g, a| vec![g.add(g.permute(a.x[0], [1, 0, 2]), a.x[1])])
            .input([3, 4, 11])
            .input([4, 3, 11]),
    );
    cases.push(OpCase::new("add to itself", ELEMENTWISE, |g, a| vec![g.add(a.x[0], a.x[0])]).input([3, 33]));
    cases.push(
        OpCase::new("mul by its own first row", ELEMENTWISE, |g, a| {
            vec![g.mul(a.x[0], g.reshape(g.slice(a.x[0], 0, 0, 1), [33]))]
        })
        .input([3, 33]),
    );
    cases.push(
        OpCase::new("mul by a part of itself", ELEMENTWISE, |g, a| {
            let [first, second] = g.chunk(a.x[0]);
            vec![g.mul(second, first), g.add(first, second)]
        })
        .input([5, 34]),
    );
    cases.push(
        // More than one chunk of work.
        OpCase::new("add large", ELEMENTWISE, |g, a| vec![g.add(g.mul(a.x[0], a.x[1]), a.x[0])])
            .input([300, 257])
            .input([257]),
    );
    cases.push(
        OpCase::new("chain in place", ELEMENTWISE, |g, a| {
            let y = g.mul(g.add(a.x[0], a.x[1]), a.x[1]);
            vec![g.unary(Unary::Silu, g.reshape(y, [6, 31]))]
        })
        .input([2, 3, 31])
        .input([31]),
    );
}

/// Gated functions on halves of a tensor and on tensors of their own.
pub fn glu(cases: &mut Vec<OpCase>) {
    for f in FUNCTIONS {
        for n in LENGTHS {
            cases.push(
                OpCase::new(format!("glu {f:?} n={n}"), ELEMENTWISE, move |g, a| vec![g.glu(f, a.x[0], a.x[1])])
                    .input_in([3, n], [-6.0, 6.0])
                    .input([3, n]),
            );
        }
        cases.push(
            OpCase::new(format!("glu {f:?} of halves"), ELEMENTWISE, move |g, a| {
                let [gate, up] = g.chunk(a.x[0]);
                vec![g.glu(f, gate, up), g.glu(f, up, gate)]
            })
            .input_in([2, 3, 66], [-6.0, 6.0]),
        );
    }
}
