//! Mixtures of experts.

use engine::DType;
use engine::op::{Gating, Precision, Route};

use crate::case::{ELEMENTWISE, OpCase, PRODUCT_RANGE, Tolerance};

const ROUTE: Route =
    Route { n_used: 1, gating: Gating::Sigmoid, bias: false, normalize: false, norm_eps: 1e-6, scale: 1.0 };

/// The choice of experts, their products in every format, the weighted sum.
pub fn moe(cases: &mut Vec<OpCase>) {
    for gating in [Gating::Sigmoid, Gating::Softmax] {
        for (n_tokens, n_expert, n_used) in [(1, 1, 1), (1, 6, 2), (5, 32, 4), (70, 8, 8), (700, 33, 3), (9, 512, 10)] {
            for normalize in [false, true] {
                let route = Route { gating, n_used, normalize, scale: 1.5, ..ROUTE };
                let name = format!("route {gating:?} {n_used} of {n_expert}, {n_tokens} tokens, normalize {normalize}");
                cases.push(
                    OpCase::new(name.clone(), ELEMENTWISE, move |g, a| vec![g.route(a.x[0], None, route)[1]])
                        .input_in([n_tokens, n_expert], [-3.0, 3.0]),
                );
                cases.push(
                    OpCase::new(format!("{name} with bias"), ELEMENTWISE, move |g, a| {
                        vec![g.route(a.x[0], Some(a.w[0]), route)[1]]
                    })
                    .input_in([n_tokens, n_expert], [-3.0, 3.0])
                    .weight(DType::F32, [n_expert]),
                );
            }
        }
    }
    for dtype in DType::ALL.into_iter().filter(|t| *t != DType::I32) {
        let k = dtype.block().len.max(32);
        for (n_tokens, n_expert, n_used, n) in [(1, 6, 2, 24), (3, 4, 4, 67), (150, 3, 2, 130), (40, 512, 10, 8)] {
            let route = Route { n_used, ..ROUTE };
            let product = Tolerance::Product { dtype, m: 1, k, factor: 1.0, precision: Precision::Fast };
            let name = format!("experts {dtype} {n_used} of {n_expert}, {n_tokens} tokens");
            cases.push(
                OpCase::new(name.clone(), product, move |g, a| {
                    let [ids, _] = g.route(a.x[1], None, route);
                    vec![g.expert_linear(a.x[0], a.w[0], ids)]
                })
                .input_in([1, n_tokens, k], PRODUCT_RANGE)
                .input_in([1, n_tokens, n_expert], [-3.0, 3.0])
                .weight(dtype, [n_expert, n, k]),
            );
            cases.push(
                OpCase::new(format!("{name}, a row for each"), product, move |g, a| {
                    let [ids, _] = g.route(a.x[1], None, route);
                    vec![g.expert_linear(a.x[0], a.w[0], ids)]
                })
                .input_in([1, n_tokens, n_used as usize, k], PRODUCT_RANGE)
                .input_in([1, n_tokens, n_expert], [-3.0, 3.0])
                .weight(dtype, [n_expert, n, k]),
            );
        }
    }
    for (n_tokens, n_used, n) in [(1, 1, 1), (4, 3, 17), (30, 4, 64)] {
        cases.push(
            OpCase::new(format!("sum of {n_used} experts of {n}, {n_tokens} tokens"), ELEMENTWISE, |g, a| {
                vec![g.expert_sum(a.x[0], a.x[1])]
            })
            .input_in([n_tokens, n_used, n], PRODUCT_RANGE)
            .input_in([n_tokens, n_used], PRODUCT_RANGE),
        );
    }
}
