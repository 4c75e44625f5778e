//! Programs: graphs with inputs and outputs of one's own names, on every backend, against f64 arithmetic.

use std::sync::Arc;

use engine::backend::Backend;
use engine::builder::{GraphBuilder, Spans};
use engine::gguf::{Gguf, GgufWriter};
use engine::op::{Unary, Window};
use engine::pass::CompileOptions;
use engine::program::Program;
use engine::tensor::Input;
use engine::weights::{Weight, WeightStore};
use engine::{DType, Error};
use tests::private::Private;

const N_ROWS: usize = 5;
const N: usize = 8;

/// Numbers in [-1, 1] that look irregular.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).clamp(-1.0, 1.0)).collect()
}

fn store(tensors: &[(&str, [usize; 2])]) -> WeightStore {
    let mut file = GgufWriter::in_memory("program");
    for (name, shape) in tensors {
        file.tensor(name, DType::F32, (*shape).into()).unwrap();
    }
    for (i, (name, shape)) in tensors.iter().enumerate() {
        file.begin(name).unwrap();
        let values = numbers(shape[0] * shape[1], i + 1);
        file.write(&values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    }
    let file: Gguf = file.finish_in_memory().unwrap();
    WeightStore::new([file]).unwrap()
}

fn backends() -> Vec<Vec<Arc<dyn Backend>>> {
    let open = |name| backends::open(name, &backends::Options::default()).unwrap();
    vec![vec![open("cpu")], vec![open("reference")], vec![Private::new(open("cpu"))]]
}

fn compile(weights: &WeightStore, build: impl Fn(&GraphBuilder<'_>)) -> Result<Program, Error> {
    Program::compile(&backends()[0], weights, &CompileOptions::default(), build)
}

fn message(result: Result<impl Sized, Error>) -> String {
    result.err().expect("an error").to_string()
}

fn close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= 1e-5, "{i}: {got}, not {want}");
    }
}

/// `relu(table[ids] + x) . w^T`, in f64.
fn expected(ids: &[i32], x: &[f32]) -> Vec<f64> {
    let (table, w) = (numbers(3 * N, 1), numbers(2 * N, 2));
    let mut want = Vec::new();
    for (row, &id) in ids.iter().enumerate() {
        for out in 0..2 {
            let sum: f64 = (0..N)
                .map(|i| {
                    let h = f64::from(table[id as usize * N + i]) + f64::from(x[row * N + i]);
                    h.max(0.0) * f64::from(w[out * N + i])
                })
                .sum();
            want.push(sum);
        }
    }
    want
}

#[test]
fn named_inputs_give_named_outputs_on_every_backend() {
    let weights = store(&[("table", [3, N]), ("w", [2, N])]);
    let (table, w) = (weights.get("table", [3, N]).unwrap(), weights.get("w", [2, N]).unwrap());
    for backends in backends() {
        let build = |g: &GraphBuilder<'_>| {
            let (ids, x) = (g.integers("ids", [N_ROWS]), g.values("x", [N_ROWS, N]));
            let h = g.name(g.add(g.get_rows(table, ids), x), "h");
            g.output(g.name(g.linear(g.unary(Unary::Relu, h), w), "y"));
            g.output(h);
        };
        let mut program = Program::compile(&backends, &weights, &CompileOptions::default(), build).unwrap();
        assert_eq!(program.shape("y").unwrap().dims(), [N_ROWS as u32, 2]);
        // Inputs keep their values until others come.
        program.set("ids", &[0, 1, 2, 1, 0]).unwrap();
        for seed in [5, 6] {
            let x = numbers(N_ROWS * N, seed);
            program.set("x", &x).unwrap();
            program.run().unwrap();
            close(&program.values("y").unwrap(), &expected(&[0, 1, 2, 1, 0], &x));
            let table = numbers(3 * N, 1);
            let h: Vec<f64> = [0, 1, 2, 1, 0]
                .iter()
                .flat_map(|id| &table[id * N..][..N])
                .zip(&x)
                .map(|(t, x)| f64::from(*t) + f64::from(*x))
                .collect();
            close(&program.values("h").unwrap(), &h);
        }
        program.set("ids", &[2, 2, 2, 0, 0]).unwrap();
        program.run().unwrap();
        close(&program.values("y").unwrap(), &expected(&[2, 2, 2, 0, 0], &numbers(N_ROWS * N, 6)));
    }
}

#[test]
fn attention_takes_all_rows_as_one_sequence() {
    let weights = store(&[("w", [2, N])]);
    let build = |g: &GraphBuilder<'_>| {
        let [q, k, v] = ["q", "k", "v"].map(|name| g.values(name, [N_ROWS, 1, N]));
        g.output(g.name(g.attention([q, k, v], Spans::whole(g, N_ROWS), 0.5, Window::Full), "y"));
    };
    let [q, k, v] = [1, 2, 3].map(|seed| numbers(N_ROWS * N, seed));
    let mut want = Vec::new();
    for i in 0..N_ROWS {
        let dot = |j: usize| (0..N).map(|c| f64::from(q[i * N + c]) * f64::from(k[j * N + c])).sum::<f64>();
        let weights: Vec<f64> = (0..N_ROWS).map(|j| (0.5 * dot(j)).exp()).collect();
        let total: f64 = weights.iter().sum();
        want.extend((0..N).map(|c| (0..N_ROWS).map(|j| weights[j] * f64::from(v[j * N + c])).sum::<f64>() / total));
    }
    for backends in backends() {
        let mut program = Program::compile(&backends, &weights, &CompileOptions::default(), build).unwrap();
        for (name, values) in [("q", &q), ("k", &k), ("v", &v)] {
            program.set(name, values).unwrap();
        }
        program.run().unwrap();
        close(&program.values("y").unwrap(), &want);
    }
}

#[test]
fn a_program_says_what_it_wants() {
    let weights = store(&[("table", [3, N]), ("w", [2, N])]);
    let table = weights.get("table", [3, N]).unwrap();
    let rows = |g: &GraphBuilder<'_>| {
        let ids = g.integers("ids", [2]);
        g.output(g.name(g.add(g.get_rows(table, ids), g.values("x", [2, N])), "y"));
    };
    let mut program = compile(&weights, rows).unwrap();
    assert_eq!(message(program.values("y")), "the program has not run");
    assert_eq!(message(program.run()), "x has no values");
    assert_eq!(message(program.set("id", &[1, 2])), "no input is called id (inputs: x, ids)");
    assert_eq!(message(program.set("ids", &[0, 3])), "ids: want 0 to 2, got 3");
    assert_eq!(message(program.set("ids", &[0, -1])), "ids: want 0 to 2, got -1");
    assert_eq!(message(program.set("ids", &[0, 1, 2])), "ids: want I32[2], 2 values, got 3 of I32");
    assert_eq!(message(program.set("x", &[0, 1])), format!("x: want F32[2, {N}], {} values, got 2 of I32", 2 * N));
    // What was refused has changed nothing.
    program.set("ids", &[2, 0]).unwrap();
    program.set("x", &[0.0; 2 * N]).unwrap();
    let _ = program.set("ids", &[7, 7]);
    program.run().unwrap();
    let table = numbers(3 * N, 1);
    assert_eq!(program.values("y").unwrap(), [&table[2 * N..], &table[..N]].concat());
    assert_eq!(message(program.values("z")), "no output is called z (outputs: y)");
    assert_eq!(message(program.integers("y")), "y: want I32, got F32");
}

#[test]
fn what_a_program_cannot_be_is_refused_when_it_is_compiled() {
    let weights = store(&[("table", [3, N])]);
    let table: Weight = weights.get("table", [3, N]).unwrap();
    let refused = |build: &dyn Fn(&GraphBuilder<'_>)| message(compile(&weights, build));
    let unnamed = refused(&|g| g.output(g.unary(Unary::Relu, g.values("x", [2]))));
    assert!(unnamed.contains("has no name"), "{unnamed}");
    let nothing = refused(&|g| g.output(g.values("x", [2])));
    assert!(nothing.contains("computes something"), "{nothing}");
    let weight = refused(&|g| {
        g.output(g.name(g.unary(Unary::Relu, g.values("x", [2])), "y"));
        g.output(g.name(g.weight(table), "z"));
    });
    assert!(weight.contains("a weight is no output"), "{weight}");
    let twice = refused(&|g| g.output(g.name(g.add(g.values("x", [2]), g.values("x", [2])), "y")));
    assert!(twice.contains("two tensors are called x"), "{twice}");
    let call = refused(&|g| g.output(g.name(g.get_rows(table, g.input(Input::Tokens, [2])), "y")));
    assert!(call.contains("of a model's call"), "{call}");
    let unchecked = refused(&|g| {
        let q = g.values("q", [2, 1, N]);
        let spans = Spans { sequences: g.integers("s", [2]), ranges: g.integers("r", [1, 2]) };
        g.output(g.name(g.attention([q, q, q], spans, 1.0, Window::Full), "y"));
    });
    assert!(unchecked.contains("integers of one's own"), "{unchecked}");
    let shapes = refused(&|g| g.output(g.name(g.add(g.values("a", [2]), g.values("b", [3])), "y")));
    assert!(shapes.contains("program.rs:"), "names the line: {shapes}");
    let none = Program::compile(&[], &weights, &CompileOptions::default(), |_| ());
    assert!(message(none).contains("at least one backend"));
}
