//! Time of the op table's cases: `cargo bench -p tests --bench ops -- [TEXT...]` runs the cases whose names have one of the
//! texts, and without a text the products of published sizes and the choice among 512 experts alone.
//!
//! Every case runs fused, on one thread, with the fastest instruction set of the machine. The cases of the table are small,
//! since they are made for correctness: compare their times before and after a change, or one format with another. Products
//! are as wide as the layers of the published 0.6B model; GB/s counts the weights.

use std::time::{Duration, Instant};

use engine::DType;
use engine::op::{Gating, Route};
use kernels::cpu::Kernels;
use tests::case::Arithmetic;
use tests::case::{OpCase, PRODUCT_RANGE, Tolerance};
use tests::cases::{FAMILIES, family};
use tests::runner::{Table, Tested, Variation, cpus};

/// Rows of weights and elements of a row.
const PRODUCT: [usize; 2] = [3072, 1024];
/// Rows of activations: a token, drafts that are verified, a prompt.
const ROWS: [usize; 3] = [1, 8, 128];
/// Measured runs of a case.
const RUNS: usize = 25;
/// A run repeats its case for this long at least, so that the clock's resolution does not count.
const RUN: Duration = Duration::from_micros(200);
const VARIATION: Variation = Variation { fuse: true, copied: false, poison: false };

/// Products that the table leaves out: they are too large to be checked in f64 in every run.
fn products() -> Vec<OpCase> {
    let formats = DType::ALL.into_iter().filter(|dtype| *dtype != DType::I32);
    let one = |dtype: DType| {
        ROWS.map(|m| {
            let [n, k] = PRODUCT;
            OpCase::new(format!("product {dtype} m={m} n={n} k={k}"), Tolerance::Nmse(1.0), |g, a| {
                vec![g.linear(a.x[0], a.w[0])]
            })
            .input_in([m, k], PRODUCT_RANGE)
            .weight(dtype, [n, k])
        })
    };
    formats.flat_map(one).collect()
}

/// Experts of a layer of Qwen3-Next and those of a token; their matrices are a part of the published ones.
const EXPERTS: [u32; 2] = [512, 10];
/// Rows of an expert's matrix, and elements of one.
const EXPERT: [usize; 2] = [64, 2048];

/// The choice of experts and their products, of which only the chosen ones are read.
fn experts() -> Vec<OpCase> {
    let [n_expert, n_used] = EXPERTS;
    let route = Route { n_used, gating: Gating::Softmax, bias: false, normalize: true, norm_eps: 0.0, scale: 1.0 };
    let one = |m: usize| {
        let [n, k] = EXPERT;
        OpCase::new(format!("experts {n_used} of {n_expert} m={m} n={n} k={k}"), Tolerance::Nmse(1.0), move |g, a| {
            let [ids, weights] = g.route(a.x[1], None, route);
            vec![g.expert_sum(g.expert_linear(a.x[0], a.w[0], ids), weights)]
        })
        .input_in([m, k], PRODUCT_RANGE)
        .input_in([m, n_expert as usize], [-3.0, 3.0])
        .weight(DType::Q8_0, [n_expert as usize, n, k])
    };
    ROWS.map(one).into()
}

/// Microseconds of a case: the fastest run, the median and the slowest tenth.
fn time(table: &Table<'_>, i: usize, tested: &Tested) -> [f64; 3] {
    let mut compiled = tests::runner::Compiled::new(table, i, tested, VARIATION).expect("cases of the table compile");
    // Fills the states that the case begins with.
    compiled.run().expect("cases of the table run");
    let mut batch = |n: u32| {
        let start = Instant::now();
        (0..n).for_each(|_| compiled.execute().expect("what ran once runs again"));
        start.elapsed()
    };
    let mut n = 1;
    while batch(n) < RUN {
        n *= 2;
    }
    let mut runs: Vec<f64> = (0..RUNS).map(|_| batch(n).as_secs_f64() * 1e6 / f64::from(n)).collect();
    runs.sort_by(f64::total_cmp);
    [runs[0], runs[RUNS / 2], runs[RUNS * 9 / 10]]
}

fn main() {
    // Cargo passes --bench.
    let texts: Vec<String> = std::env::args().skip(1).filter(|text| !text.starts_with("--")).collect();
    let isa = Kernels::detect().expect("TYMPAN_ISA names a set of this machine").isa();
    let tested = cpus(1)
        .into_iter()
        .find(|t| matches!(t.arithmetic, Arithmetic::Cpu(k) if k.isa() == isa))
        .expect("the set is listed");
    let mut cases = products();
    cases.extend(experts());
    if !texts.is_empty() {
        cases.extend(FAMILIES.iter().flat_map(|(name, _)| family(name)));
        cases.retain(|case| texts.iter().any(|text| case.name.contains(text.as_str())));
    }
    println!("{}, microseconds: median (fastest, slowest tenth)", tested.name);
    for case in cases {
        let cases = std::slice::from_ref(&case);
        let [fastest, median, tenth] = time(&Table::new(cases), 0, &tested);
        let bytes: usize = case.weights.iter().map(|w| w.dtype.row_bytes(w.shape.elements())).sum();
        let rate = if bytes > 0 { format!(", {:.1} GB/s", bytes as f64 / median / 1e3) } else { String::new() };
        println!("{:<50} {median:>10.2} ({fastest:.2}, {tenth:.2}){rate}", case.name);
    }
}
