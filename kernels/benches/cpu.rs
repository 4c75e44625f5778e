//! Speed of the kernels: `cargo bench -p kernels -- [filter] [threads]`.
//!
//! Each case runs on every instruction set in turn, round after round, so that a noisy machine is noisy for all of
//! them; the best round counts. Time is that on a core, where the system tells it. Products of large matrices are memory bound for few activations: their weights, 96 MiB,
//! are meant to be larger than the caches.

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::f16;
use kernels::cpu::{Attention, ChannelDecay, HeadToken, Kernels, KvRows, Product, SCAN_TOKENS, ScanToken};
use kernels::quant::Format;

/// Rounds over the instruction sets.
const ROUNDS: usize = 7;
/// Least time of one measurement.
const LEAST: Duration = Duration::from_millis(30);
/// Rows of weights in one call of a product.
const TILE: usize = 64;

/// Rows and columns of matrices of LFM2 1.2B and of Qwen3 0.6B.
const MODEL_SHAPES: [(usize, usize); 6] =
    [(6144, 2048), (8192, 2048), (2048, 2048), (2048, 8192), (3072, 1024), (2048, 1024)];

/// What a case does in one call of its closure, for the rates.
struct Work {
    bytes: usize,
    macs: usize,
}

struct Bench {
    filter: String,
    threads: usize,
    kernels: Vec<Kernels>,
}

impl Bench {
    /// Times `make(kernels, thread)()` on all threads at once, for every instruction set.
    fn case<F: FnMut() + Send>(&self, name: &str, work: Work, make: impl Fn(Kernels, usize) -> F) {
        if !name.contains(&self.filter) {
            return;
        }
        let mut best = vec![Duration::MAX; self.kernels.len()];
        let mut runs: Vec<Vec<F>> =
            self.kernels.iter().map(|k| (0..self.threads).map(|t| make(*k, t)).collect()).collect();
        for _ in 0..ROUNDS {
            for (best, runs) in best.iter_mut().zip(&mut runs) {
                *best = (*best).min(time(runs));
            }
        }
        for (kernels, best) in self.kernels.iter().zip(best) {
            let s = best.as_secs_f64();
            let (gb, gmac) = (work.bytes as f64 / s / 1e9, work.macs as f64 / s / 1e9);
            let n = self.threads as f64;
            println!("{name:40} {:8} {:10.2} us {:8.1} GB/s {:8.1} GMAC/s", kernels.isa(), s * 1e6, gb * n, gmac * n);
        }
    }
}

/// Time that this thread has been running on a core; where the system does not tell, all the time there is.
fn running(start: Instant) -> Duration {
    // First the nanoseconds on a core, then those spent waiting for one.
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = stat.split(' ').next().and_then(|ns| ns.parse().ok());
    ns.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// Time on a core of one call while every thread calls its own closure.
fn time<F: FnMut() + Send>(runs: &mut [F]) -> Duration {
    let clock = |run: &mut F| {
        let start = Instant::now();
        run();
        let (before, mut n) = (running(start), 0);
        loop {
            run();
            n += 1;
            let time = running(start) - before;
            if time >= LEAST {
                return time / n;
            }
        }
    };
    let Some((first, rest)) = runs.split_first_mut() else { return Duration::ZERO };
    std::thread::scope(|scope| {
        let others: Vec<_> = rest.iter_mut().map(|run| scope.spawn(move || clock(run))).collect();
        let first = clock(first);
        others.into_iter().fold(first, |t, o| t.max(o.join().expect("a measurement")))
    })
}

fn floats(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1013) as f32 / 506.5 - 1.0).collect()
}

/// Valid rows of any format: bytes with small scales.
fn weights(format: Format, n_rows: usize, k: usize) -> Vec<u8> {
    let mut bytes = vec![0; n_rows * format.row_bytes(k)];
    let (row, len) = (floats(k), format.row_bytes(k));
    format.encode_row(&row, &mut bytes[..len]);
    for j in 1..n_rows {
        bytes.copy_within(..len, j * len);
    }
    bytes
}

/// Rows of weights into `format`; a multiply-add stands for an element.
fn encode(bench: &Bench, format: Format) {
    const N: usize = 4096;
    // Sums of four uniform numbers, near normal as weights are.
    let uniform = |i: usize| ((i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32) / (1 << 24) as f32 - 0.5;
    let x: Vec<f32> = (0..N).map(|i| 0.04 * (4 * i..4 * i + 4).map(uniform).sum::<f32>()).collect();
    let importance: Vec<f32> = (0..N).map(|i| 1.5 + uniform(i)).collect();
    for importance in [None, Some(&importance)] {
        if importance.is_some() && !format.uses_importance() {
            continue;
        }
        let name = format!("encode {format:?}{}", if importance.is_some() { " with importance" } else { "" });
        bench.case(&name, Work { bytes: 4 * N, macs: N }, |kernels, _| {
            let (x, mut out) = (&x, vec![0; format.row_bytes(N)]);
            move || kernels.encode_row(format, black_box(x), importance.map(Vec::as_slice), &mut out)
        });
    }
}

fn product(bench: &Bench, format: Format, n_rows: usize, k: usize, m: usize) {
    let name = format!("product {format:?} {n_rows}x{k} m={m}");
    if !name.contains(&bench.filter) {
        return;
    }
    let n_own = n_rows / bench.threads / TILE * TILE;
    let w = weights(format, n_rows, k);
    let x = floats(m * k);
    let work = Work { bytes: n_own * format.row_bytes(k), macs: n_own * k * m };
    bench.case(&name, work, |kernels, thread| {
        let operand = kernels.operand(format, m);
        let (rows, len) = (operand.panel_rows(), operand.panel_len(k));
        let mut prepared = vec![0.0; operand.len(m, k)];
        for (i, panel) in prepared.chunks_exact_mut(len).enumerate() {
            kernels.prepare(operand, &x[i * rows * k..], k, rows.min(m - i * rows), k, panel);
        }
        let w = &w[thread * n_own * format.row_bytes(k)..][..n_own * format.row_bytes(k)];
        let mut out = vec![0.0; m * TILE];
        let mut scratch = vec![0.0; kernels.product_scratch_len(format, operand, TILE, k, m)];
        move || {
            for w in w.chunks_exact(TILE * format.row_bytes(k)) {
                let p = Product { format, w, n_rows: TILE, k, operand, x: &prepared, m };
                kernels.product(black_box(&p), &mut out, &mut scratch);
            }
        }
    });
}

fn attention(bench: &Bench, n_q: usize, n_keys: usize, head_dim: usize, causal: bool) {
    let (q, k) = (floats(n_q * head_dim), floats(n_keys * head_dim));
    let half: Vec<f16> = k.iter().map(|x| f16::from_f32(*x)).collect();
    let ranges: Vec<[u32; 2]> =
        (0..n_q).map(|i| [0, if causal { n_keys - n_q + i + 1 } else { n_keys } as u32]).collect();
    let seen: usize = ranges.iter().map(|r| r[1] as usize).sum();
    for f32_rows in [false, true] {
        let bytes = 2 * n_keys * head_dim * if f32_rows { 4 } else { 2 };
        let name = format!("attention {} {n_q}x{n_keys}x{head_dim}", if f32_rows { "f32" } else { "f16" });
        bench.case(&name, Work { bytes, macs: 2 * seen * head_dim }, |kernels, _| {
            let mut out = vec![0.0; n_q * head_dim];
            let mut scratch = vec![0.0; kernels.attention_scratch_len(n_q, head_dim)];
            let (q, k, half, ranges) = (&q, &k, &half, &ranges);
            move || {
                let rows = if f32_rows {
                    KvRows::F32 { x: k, stride: head_dim }
                } else {
                    KvRows::F16 { x: half, stride: head_dim }
                };
                let scale = 0.1;
                let a = Attention { head_dim, n_head: 1, scale, q, q_stride: head_dim, k: rows, v: rows, ranges };
                kernels.attention(black_box(&a), &mut out, &mut scratch);
            }
        });
    }
}

/// A kernel that works on one row in place with a second row to read.
type RowKernel = (&'static str, fn(Kernels, &mut [f32], &[f32]));

fn rows(bench: &Bench) {
    const N: usize = 4096;
    let kernels: [RowKernel; 13] = [
        ("rms_norm", |k, y, x| k.rms_norm(y, x, 1e-6)),
        ("layer_norm", |k, y, x| k.layer_norm(y, x, x, 1e-6)),
        ("add", |k, y, x| k.add(y, x)),
        ("mul", |k, y, x| k.mul(y, x)),
        ("axpy_f32", |k, y, x| k.axpy_f32(y, 1e-9, x)),
        ("silu", |k, y, _| k.silu(y)),
        ("silu_mul", |k, y, x| k.silu_mul(y, x)),
        ("gelu", |k, y, _| k.gelu(y)),
        ("gelu_tanh", |k, y, _| k.gelu_tanh(y)),
        ("exp_sum", |k, y, _| _ = k.exp_sum(y, 1.0)),
        ("max_of", |k, y, _| _ = black_box(k.max_of(y))),
        ("rope_half", |k, y, x| k.rope_half(y, &x[..N / 2], &x[..N / 2])),
        ("dot_f32", |k, y, x| _ = black_box(k.dot_f32(y, x))),
    ];
    for (name, kernel) in kernels {
        let x = floats(N);
        bench.case(&format!("row {name} {N}"), Work { bytes: 4 * N, macs: N }, |kernels, _| {
            let (mut y, start) = (x.clone(), x.clone());
            let x = &x;
            move || {
                y.copy_from_slice(&start);
                kernel(kernels, black_box(&mut y), x);
            }
        });
    }
    let (x, h) = (floats(N), vec![f16::ONE; N]);
    bench.case("row f16_to_f32", Work { bytes: 2 * N, macs: N }, |kernels, _| {
        let (mut y, h) = (x.clone(), &h);
        move || kernels.f16_to_f32(black_box(h), &mut y)
    });
    bench.case("row f32_to_f16", Work { bytes: 2 * N, macs: N }, |kernels, _| {
        let (mut y, x) = (h.clone(), &x);
        move || kernels.f32_to_f16(black_box(x), &mut y)
    });
    for format in Format::ALL {
        let w = weights(format, 1, N);
        bench.case(&format!("row decode {format:?}"), Work { bytes: w.len(), macs: N }, |kernels, _| {
            let (mut y, w) = (x.clone(), &w);
            move || kernels.decode_row(format, black_box(w), &mut y)
        });
        for m in [1, 64] {
            let operand = kernels::cpu::Kernels::available().last().map(|k| k.operand(format, m));
            let Some(operand) = operand else { continue };
            bench.case(&format!("row prepare {operand:?} for {format:?}"), Work { bytes: 0, macs: N }, |kernels, _| {
                let operand = kernels.operand(format, m);
                let x = floats(N * operand.panel_rows());
                let mut out = vec![0.0; operand.panel_len(N)];
                move || kernels.prepare(operand, black_box(&x), N, operand.panel_rows(), N, &mut out)
            });
        }
    }
}

/// A token of a head of a selective scan, whose state stays where the sequence left it.
fn scan(bench: &Bench, d_state: usize, head_dim: usize) {
    let n = d_state * head_dim;
    let (b, c, dx) = (floats(d_state), floats(d_state), floats(head_dim));
    let (b, c, dx) = (&b, &c, &dx);
    for n_tokens in [1, SCAN_TOKENS] {
        let work = Work { bytes: 2 * n * size_of::<f32>(), macs: 2 * n * n_tokens };
        bench.case(&format!("scan head {d_state}x{head_dim} {n_tokens} tokens"), work, |kernels, _| {
            let (mut state, mut y) = (floats(n), floats(n_tokens * head_dim));
            move || {
                let token = |y| HeadToken { decay: 0.7, token: ScanToken { b, c, dx }, y };
                let mut tokens: Vec<HeadToken<'_>> = y.chunks_exact_mut(head_dim).map(token).collect();
                kernels.scan_head(black_box(&mut state), &mut tokens);
            }
        });
    }
    let a: Vec<f32> = floats(n).iter().map(|x| -x.abs()).collect();
    let step = vec![0.1; head_dim];
    let (a, step) = (&a, &step);
    let work = Work { bytes: 2 * n * size_of::<f32>(), macs: 2 * n };
    bench.case(&format!("scan channels {d_state}x{head_dim}"), work, |kernels, _| {
        let (mut state, mut y) = (floats(n), floats(head_dim));
        move || {
            let decay = ChannelDecay { a: black_box(a), step };
            kernels.scan_channels(&mut state, &decay, &ScanToken { b, c, dx }, &mut y)
        }
    });
}

fn main() {
    // Cargo passes `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let filter = args.first().cloned().unwrap_or_default();
    let threads = args.get(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    // Scalar kernels are not made to be fast; they run when the filter asks for it.
    let (filter, scalar) = match filter.strip_prefix("scalar ") {
        Some(rest) => (rest.to_string(), true),
        None => (filter, false),
    };
    let kernels: Vec<Kernels> = Kernels::available().skip(usize::from(!scalar)).collect();
    let bench = Bench { filter, threads, kernels };
    for format in Format::ALL {
        let n_rows = 96 * 1024 * 1024 / format.row_bytes(2048) / 256 * 256;
        for m in [1, 2, 3, 4, 8, 157] {
            product(&bench, format, n_rows, 2048, m);
        }
        for m in [1, 2, 4, 9, 16, 32, 157, 512] {
            product(&bench, format, 1024, 2048, m);
        }
        for (n_rows, k) in MODEL_SHAPES {
            product(&bench, format, n_rows, k, 157);
        }
    }
    for (n_q, n_keys, head_dim) in [(2, 1024, 128), (8, 300, 128), (104, 104, 64), (512, 512, 128), (780, 780, 64)] {
        attention(&bench, n_q, n_keys, head_dim, head_dim == 128);
    }
    for format in Format::ALL {
        encode(&bench, format);
    }
    rows(&bench);
    scan(&bench, 16, 64);
    scan(&bench, 128, 64);
}
