//! Every kernel of every instruction set that this CPU has, against the same arithmetic in f64.
//!
//! Bounds follow from the arithmetic: a sum of n products is off by at most `(n + c) 2^-24` of the sum of their sizes.

use half::f16;
use kernels::activation::{BlockQ8, BlockQ8_K};
use kernels::cpu::{
    Attention, ChannelDecay, HeadToken, KEY_BLOCK, Kernels, KvRows, Operand, Product, SCAN_TOKENS, ScanToken,
};
use kernels::quant::{BlockQ2_K, BlockQ4_1, BlockQ4_K, BlockQ5_1, BlockQ5_K, Format};

/// Half a unit in the last place of 1.
const EPS: f64 = 1.0 / 16777216.0;

/// Around the widths of vectors and of unrolled loops.
const LENGTHS: [usize; 18] = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 1030];

/// Numbers in -1..1 from a 64-bit linear congruential generator (Knuth's constants).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    fn float(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    fn halves(&mut self, n: usize) -> Vec<f16> {
        (0..n).map(|_| f16::from_f32(self.float())).collect()
    }

    /// `n_rows` rows with every bit of the levels random and scales of a usual size.
    fn weights(&mut self, format: Format, n_rows: usize, k: usize) -> Vec<u8> {
        let mut bytes = vec![0; n_rows * format.row_bytes(k)];
        if format.block_len() == 1 || format.scales().is_empty() {
            for row in bytes.chunks_exact_mut(format.row_bytes(k).max(1)) {
                format.encode_row(&self.floats(k), row);
            }
            return bytes;
        }
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            block.fill_with(|| self.bits() as u8);
            for at in format.scales() {
                block[*at..at + 2].copy_from_slice(&f16::from_f32(self.float() * 0.01).to_le_bytes());
            }
        }
        bytes
    }
}

/// Fails unless `got` is within `bound` of `want`.
fn close(got: f32, want: f64, bound: f64, what: impl Fn() -> String) {
    let error = (f64::from(got) - want).abs();
    assert!(error <= bound, "{}: got {got}, want {want}, off by {error:e}, allowed {bound:e}", what());
}

/// `x` behind one more element, so that nothing is aligned to a vector.
fn unaligned<T: Copy + Default>(x: &[T]) -> Vec<T> {
    std::iter::once(T::default()).chain(x.iter().copied()).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
    a.iter().zip(b).fold((0.0, 0.0), |(sum, size), (a, b)| (sum + a * b, size + (a * b).abs()))
}

#[test]
fn dot_products_and_axpy_are_close() {
    for kernels in Kernels::available() {
        for n in LENGTHS {
            let mut random = Random(n as u64);
            let (a, b, h) = (random.floats(n), random.floats(n), random.halves(n));
            let (a, b, h) = (unaligned(&a), unaligned(&b), unaligned(&h));
            let (a, b, h) = (&a[1..], &b[1..], &h[1..]);
            let wide_h: Vec<f64> = h.iter().map(|x| x.to_f64()).collect();
            let what = || format!("{kernels:?} n={n}");

            let (sum, size) = dot(&wide(a), &wide(b));
            close(kernels.dot_f32(a, b), sum, size * EPS * (n as f64 / 16.0 + 6.0), what);
            let (sum, size) = dot(&wide_h, &wide(b));
            close(kernels.dot_f16(h, b), sum, size * EPS * (n as f64 / 16.0 + 6.0), what);

            let mut y = b.to_vec();
            kernels.axpy_f32(&mut y, 0.3, a);
            let mut z = b.to_vec();
            kernels.axpy_f16(&mut z, 0.3, h);
            let mut products = b.to_vec();
            kernels.add_product(&mut products, a, b);
            for i in 0..n {
                let want = f64::from(b[i]) + f64::from(a[i]) * f64::from(b[i]);
                close(products[i], want, 2.0 * EPS * 2.0, what);
                let want = f64::from(b[i]) + f64::from(0.3f32) * f64::from(a[i]);
                close(y[i], want, 2.0 * EPS * 1.3, what);
                let want = f64::from(b[i]) + f64::from(0.3f32) * wide_h[i];
                close(z[i], want, 2.0 * EPS * 1.3, what);
            }
        }
    }
}

#[test]
fn half_conversions_are_exact() {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|h| !h.is_nan()).collect();
    // Every half, and the values around the middle between two neighbours.
    let mut x: Vec<f32> = all.iter().map(|h| h.to_f32()).collect();
    for bits in (0..0x7C00u16).step_by(7) {
        let (a, b) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        let middle = if b.is_infinite() { 65520.0 } else { (a + b) / 2.0 };
        x.extend([middle, middle.next_up(), -middle.next_down()]);
    }
    let want: Vec<u16> = x.iter().map(|x| f16::from_f32_const(*x).to_bits()).collect();
    for kernels in Kernels::available() {
        let mut wide = vec![0.0; all.len()];
        kernels.f16_to_f32(&all, &mut wide);
        assert!(all.iter().zip(&wide).all(|(h, x)| h.to_f32_const().to_bits() == x.to_bits()), "{kernels:?}");
        for n in (0..40).chain([x.len()]) {
            let mut got = vec![f16::ONE; n];
            kernels.f32_to_f16(&x[..n], &mut got);
            assert!(got.iter().zip(&want).all(|(g, w)| g.to_bits() == *w), "{kernels:?} {n}");
        }
        let mut nan = [f16::ONE; 17];
        kernels.f32_to_f16(&[f32::NAN; 17], &mut nan);
        assert!(nan.iter().all(|h| h.is_nan()), "{kernels:?}");
    }
}

#[test]
fn rows_decode_to_the_same_bits_everywhere() {
    for format in Format::ALL {
        for n_blocks in [0, 1, 2, 3, 5, 17, 33] {
            let k = n_blocks * format.block_len();
            let w = Random(7).weights(format, 1, k);
            let w = unaligned(&w);
            let mut want = vec![0.0; k];
            format.decode_row(&w[1..], &mut want);
            for kernels in Kernels::available() {
                let mut got = vec![1.0; k];
                kernels.decode_row(format, &w[1..], &mut got);
                assert!(got.iter().zip(&want).all(|(g, w)| g.to_bits() == w.to_bits()), "{format:?} {k} {kernels:?}");
            }
        }
    }
}

/// A product's arguments with room for their owner.
struct Case {
    format: Format,
    k: usize,
    w: Vec<u8>,
    x: Vec<f32>,
    stride: usize,
}

impl Case {
    fn new(format: Format, k: usize, n_rows: usize, m: usize) -> Self {
        let mut random = Random((k * 31 + n_rows * 7 + m) as u64);
        let stride = k + 3;
        Self { format, k, w: unaligned(&random.weights(format, n_rows, k)), x: random.floats(m * stride), stride }
    }

    fn prepare(&self, kernels: Kernels, operand: Operand, m: usize) -> Vec<f32> {
        // NaN shows what is read without having been written.
        let mut out = vec![f32::NAN; operand.len(m, self.k)];
        let (rows, len) = (operand.panel_rows(), operand.panel_len(self.k));
        for i in 0..m.div_ceil(rows) {
            let x = &self.x[i * rows * self.stride..];
            let n = rows.min(m - i * rows);
            kernels.prepare(operand, x, self.stride, n, self.k, &mut out[i * len..][..len]);
        }
        out
    }

    /// The product of `rows` of the weights with the first `m` rows of activations.
    fn run(&self, kernels: Kernels, operand: Operand, rows: std::ops::Range<usize>, m: usize) -> Vec<f32> {
        let x = self.prepare(kernels, operand, m);
        let (n_rows, row_bytes) = (rows.len(), self.format.row_bytes(self.k));
        let w = &self.w[1..][rows.start * row_bytes..rows.end * row_bytes];
        let p = Product { format: self.format, w, n_rows, k: self.k, operand, x: &x, m };
        let mut out = vec![f32::NAN; m * n_rows];
        let mut scratch = vec![f32::NAN; kernels.product_scratch_len(self.format, operand, n_rows, self.k, m)];
        kernels.product(&p, &mut out, &mut scratch);
        out
    }

    /// The activations as the operand holds them, and as they are.
    fn activations(&self, kernels: Kernels, operand: Operand, i: usize) -> Vec<f64> {
        let row = wide(&self.x[i * self.stride..][..self.k]);
        let prepared = self.prepare(kernels, operand, i + 1);
        let panel = &prepared[prepared.len() - operand.panel_len(self.k)..];
        match operand {
            Operand::Rows | Operand::Panels => row,
            Operand::Q8 => bytemuck::cast_slice::<_, BlockQ8>(panel)
                .iter()
                .flat_map(|b| b.q.map(|q| f64::from(q) * f64::from(b.d)))
                .collect(),
            Operand::Q8K => bytemuck::cast_slice::<_, BlockQ8_K>(panel)
                .iter()
                .flat_map(|b| b.q.map(|q| f64::from(q) * f64::from(b.d)))
                .collect(),
        }
    }

    /// The sizes that weight row `j` is summed in: where a minimum is taken off, both parts of the difference.
    fn sizes(&self, j: usize, decoded: &[f64]) -> Vec<f64> {
        let row_bytes = self.format.row_bytes(self.k);
        let bytes = &self.w[1..][j * row_bytes..][..row_bytes];
        let mins: Vec<f64> = match self.format {
            Format::Q2_K => bytemuck::cast_slice::<_, BlockQ2_K>(bytes)
                .iter()
                .flat_map(|b| (0..256).map(|e| f64::from(b.dmin.to_f32()) * f64::from(b.scales[e / 16] >> 4)))
                .collect(),
            Format::Q4_K => bytemuck::cast_slice::<_, BlockQ4_K>(bytes)
                .iter()
                .flat_map(|b| (0..256).map(|e| f64::from(b.dmin.to_f32()) * f64::from(b.scale_min(e / 32).1)))
                .collect(),
            Format::Q5_K => bytemuck::cast_slice::<_, BlockQ5_K>(bytes)
                .iter()
                .flat_map(|b| (0..256).map(|e| f64::from(b.dmin.to_f32()) * f64::from(b.scale_min(e / 32).1)))
                .collect(),
            Format::Q4_1 => {
                bytemuck::cast_slice::<_, BlockQ4_1>(bytes).iter().flat_map(|b| [f64::from(b.m.to_f32()); 32]).collect()
            }
            Format::Q5_1 => {
                bytemuck::cast_slice::<_, BlockQ5_1>(bytes).iter().flat_map(|b| [f64::from(b.m.to_f32()); 32]).collect()
            }
            _ => vec![0.0; self.k],
        };
        decoded.iter().zip(mins).map(|(w, min)| w.abs() + 2.0 * min.abs()).collect()
    }
}

/// Operands that a format has on this CPU for some number of rows.
fn operands(kernels: Kernels, format: Format) -> Vec<Operand> {
    let mut all: Vec<Operand> = Vec::new();
    for m in 1..100 {
        let operand = kernels.operand(format, m);
        if !all.contains(&operand) {
            all.push(operand);
        }
    }
    all
}

#[test]
fn products_are_close() {
    for format in Format::ALL {
        let block = format.block_len();
        let ks = if block == 1 { vec![0, 1, 7, 33, 515, 1027] } else { vec![block, 2 * block, 5 * block, 1280] };
        for (k, n_rows, m) in
            ks.into_iter().flat_map(|k| [(1, 1), (3, 2), (7, 5), (17, 19), (33, 50)].map(|(n, m)| (k, n, m)))
        {
            let case = Case::new(format, k, n_rows, m);
            let decoded: Vec<Vec<f64>> = (0..n_rows)
                .map(|j| {
                    let mut row = vec![0.0; k];
                    format.decode_row(&case.w[1..][j * format.row_bytes(k)..][..format.row_bytes(k)], &mut row);
                    wide(&row)
                })
                .collect();
            for kernels in Kernels::available() {
                for operand in operands(kernels, format) {
                    let got = case.run(kernels, operand, 0..n_rows, m);
                    for (i, got) in got.chunks_exact(n_rows).enumerate() {
                        let x = case.activations(kernels, operand, i);
                        for (j, got) in got.iter().enumerate() {
                            let want = dot(&decoded[j], &x).0;
                            let size = dot(&case.sizes(j, &decoded[j]), &x).1;
                            // Rounding of the decoded weights, of the products and of the sums.
                            let bound = size * EPS * (k as f64 + 12.0);
                            close(*got, want, bound, || {
                                format!("{format:?} {operand:?} {kernels:?} k={k} n_rows={n_rows} m={m} i={i} j={j}")
                            });
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn prepared_activations_have_the_same_bits_everywhere() {
    let (k, n_rows) = (512, 19);
    let mut case = Case::new(Format::Q4_K, k, 1, n_rows);
    // Rows with parts that are zero, tiny, huge, of both signs and not finite.
    for (i, special) in [0.0, -0.0, 1e-39, 3e38, f32::NAN, -f32::NAN, f32::INFINITY].into_iter().enumerate() {
        let row = &mut case.x[i * case.stride..][..k];
        row[..64].fill(special);
        row[97] = special;
        row[300] = -special;
    }
    // Halves of levels.
    for (i, x) in case.x[8 * case.stride..][..k].iter_mut().enumerate() {
        *x = 0.5 * (i % 256) as f32 - 63.5;
    }
    for operand in [Operand::Rows, Operand::Q8, Operand::Q8K, Operand::Panels] {
        let bits = |kernels| -> Vec<u32> {
            // What a NaN is made of does not matter.
            let prepared = case.prepare(kernels, operand, n_rows);
            prepared.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect()
        };
        let want = bits(Kernels::available().next().unwrap());
        for kernels in Kernels::available() {
            assert!(bits(kernels) == want, "{operand:?} {kernels:?}");
        }
    }
}

#[test]
fn integer_parts_of_products_are_exact() {
    // With scales that are powers of two and small sums nothing is rounded: every result is the integer sum.
    let scale = f16::from_f32(0.125).to_le_bytes();
    const SMALL: [[usize; 3]; 4] = [[32, 1, 1], [96, 5, 3], [544, 37, 33], [992, 50, 157]];
    const SUPER: [[usize; 3]; 3] = [[256, 1, 9], [512, 37, 33], [512, 50, 157]];
    // Bytes of levels and of scales that make weights as low as they go, or as high where that is more.
    for (format, scales, [level, group_scale], cases) in [
        (Format::Q8_0, 0..2, [0x80, 0], &SMALL[..]),
        (Format::Q4_0, 0..2, [0, 0], &SMALL),
        (Format::Q4_1, 0..4, [0, 0], &SMALL),
        (Format::Q5_0, 0..2, [0, 0], &SMALL),
        (Format::Q5_1, 0..4, [0, 0], &SMALL),
        (Format::IQ4_NL, 0..2, [0, 0], &SMALL),
        (Format::Q2_K, 80..84, [0xFF, 0x0F], &SUPER),
        (Format::Q3_K, 108..110, [0, 0], &SUPER),
        (Format::Q6_K, 208..210, [0, 0xF8], &SUPER),
    ] {
        // Of groups of 16.
        let group_scales = match format {
            Format::Q2_K => 0..16,
            Format::Q3_K => 96..108,
            Format::Q6_K => 192..208,
            _ => 0..0,
        };
        for &[k, n_rows, m] in cases {
            let mut random = Random((k + m) as u64);
            let mut w = random.weights(format, n_rows, k);
            for block in w.chunks_exact_mut(format.block_bytes()) {
                if format == Format::Q6_K {
                    // -8 ..= 7: with larger ones sums would be rounded.
                    block[group_scales.clone()].fill_with(|| (random.below(16) as u8).wrapping_sub(8));
                }
                block[scales.clone()].as_chunks_mut().0.fill(scale);
            }
            // Beside activations as large as they go.
            for block in w[..format.row_bytes(k)].chunks_exact_mut(format.block_bytes()) {
                block.fill(level);
                block[group_scales.clone()].fill(group_scale);
                block[scales.clone()].as_chunks_mut().0.fill(scale);
            }
            let mut x: Vec<f32> = (0..m * k).map(|_| random.below(255) as f32 - 127.0).collect();
            x[..k].fill(127.0);
            x.iter_mut().step_by(32).for_each(|x| *x = 127.0);
            let mut row = vec![0.0; k];
            let decoded: Vec<Vec<i64>> = w
                .chunks_exact(format.row_bytes(k))
                .map(|bytes| {
                    format.decode_row(bytes, &mut row);
                    row.iter().map(|x| (x * 8.0) as i64).collect()
                })
                .collect();
            for kernels in Kernels::available() {
                let operand = kernels.operand(format, m);
                assert_eq!(operand, Operand::Q8);
                let mut prepared = vec![f32::NAN; operand.len(m, k)];
                for (x, panel) in x.chunks_exact(k).zip(prepared.chunks_exact_mut(operand.panel_len(k))) {
                    kernels.prepare(operand, x, k, 1, k, panel);
                }
                let mut out = vec![f32::NAN; m * n_rows];
                let mut scratch = vec![f32::NAN; kernels.product_scratch_len(format, operand, n_rows, k, m)];
                kernels.product(
                    &Product { format, w: &w, n_rows, k, operand, x: &prepared, m },
                    &mut out,
                    &mut scratch,
                );
                for (x, out) in x.chunks_exact(k).zip(out.chunks_exact(n_rows)) {
                    for (w, got) in decoded.iter().zip(out) {
                        let want: i64 = w.iter().zip(x).map(|(w, x)| w * *x as i64).sum();
                        assert!(want.abs() < 1 << 24);
                        assert_eq!(*got, want as f32 / 8.0, "{format:?} {kernels:?} k={k} n_rows={n_rows} m={m}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_do_not_depend_on_the_split() {
    for format in Format::ALL {
        let k = if format.block_len() == 1 { 1100 } else { 1280 };
        let (n_rows, m) = (41, 75);
        let case = Case::new(format, k, n_rows, m);
        for kernels in Kernels::available() {
            for operand in operands(kernels, format) {
                let whole = case.run(kernels, operand, 0..n_rows, m);
                for (rows, m) in [(0..1, 1), (1..4, 2), (3..11, 3), (7..20, 4), (5..41, 9), (40..41, 17), (2..35, 75)] {
                    let part = case.run(kernels, operand, rows.clone(), m);
                    for (i, part) in part.chunks_exact(rows.len()).enumerate() {
                        let want = &whole[i * n_rows..][rows.clone()];
                        let same = part.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{format:?} {operand:?} {kernels:?} rows {rows:?} of {m}, activation {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn attention_of_several_heads_is_that_of_each() {
    for (head_dim, n_head, n_q, n_keys) in
        [(1, 2, 1, 3), (16, 3, 5, 70), (33, 2, 16, 65), (64, 8, 4, 200), (128, 4, 2, 321)]
    {
        let mut random = Random((head_dim + n_keys) as u64);
        let q: Vec<f32> = random.floats(n_head * n_q * head_dim);
        let stride = n_head * head_dim + 3;
        let n = n_keys * stride - 3;
        let (k, v) = (random.floats(n), random.floats(n));
        let (hk, hv) = (random.halves(n), random.halves(n));
        let ranges = ranges(n_q, n_keys).repeat(n_head);
        let scale = 1.0 / (head_dim as f32).sqrt();
        for kernels in Kernels::available() {
            let run = |n_head: usize, q: &[f32], [k, v]: [KvRows<'_>; 2], ranges: &[[u32; 2]]| {
                let a = Attention { head_dim, n_head, scale, q, q_stride: head_dim, k, v, ranges };
                let mut out = vec![f32::NAN; ranges.len() * head_dim];
                let mut scratch = vec![f32::NAN; kernels.attention_scratch_len(ranges.len(), head_dim)];
                kernels.attention(&a, &mut out, &mut scratch);
                out
            };
            for is_half in [false, true] {
                let rows = |at: usize| match is_half {
                    false => [KvRows::F32 { x: &k[at..], stride }, KvRows::F32 { x: &v[at..], stride }],
                    true => [KvRows::F16 { x: &hk[at..], stride }, KvRows::F16 { x: &hv[at..], stride }],
                };
                let all = run(n_head, &q, rows(0), &ranges);
                for (h, got) in all.chunks_exact(n_q * head_dim).enumerate() {
                    let alone = run(1, &q[h * n_q * head_dim..], rows(h * head_dim), &ranges[..n_q]);
                    let same = got.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{kernels:?} head {h} of {n_head}, {head_dim} elements, halves {is_half}");
                }
            }
        }
    }
}

/// `[start, end)` of keys for a mixture of causal, windowed, single and empty ranges.
fn ranges(n_q: usize, n_keys: usize) -> Vec<[u32; 2]> {
    let mut random = Random((n_q * 1000 + n_keys) as u64);
    (0..n_q)
        .map(|i| {
            let end = 1 + (n_keys - 1) * (i + 1) / n_q;
            let start = match i % 5 {
                0 | 1 => 0,
                2 => random.below(end),
                3 => end.saturating_sub(70),
                _ => end - 1,
            };
            [start as u32, if i == 9 { start } else { end } as u32]
        })
        .collect()
}

#[test]
fn attention_is_close_and_independent_of_other_queries() {
    for (head_dim, n_q, n_keys) in
        [(1, 1, 1), (8, 3, 5), (16, 5, 64), (33, 7, 65), (64, 13, 130), (80, 33, 200), (128, 70, 321), (100, 2, 700)]
    {
        let mut random = Random((head_dim + n_q) as u64);
        let (q_stride, stride) = (head_dim + 5, 2 * head_dim + 1);
        let q: Vec<f32> = random.floats(n_q * q_stride).iter().map(|x| 3.0 * x).collect();
        let n = (n_keys - 1) * stride + head_dim;
        let (k, v) = (random.floats(n), random.floats(n));
        let (hk, hv) = (random.halves(n), random.halves(n));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let ranges = ranges(n_q, n_keys);
        let rows = [
            (KvRows::F32 { x: &k, stride }, KvRows::F32 { x: &v, stride }, wide(&k), wide(&v)),
            (
                KvRows::F16 { x: &hk, stride },
                KvRows::F16 { x: &hv, stride },
                hk.iter().map(|x| x.to_f64()).collect(),
                hv.iter().map(|x| x.to_f64()).collect(),
            ),
        ];
        for (k, v, wide_k, wide_v) in &rows {
            for kernels in Kernels::available() {
                let run = |from: usize, ranges: &[[u32; 2]]| {
                    let a = Attention {
                        head_dim,
                        n_head: 1,
                        scale,
                        q: &q[from * q_stride..],
                        q_stride,
                        k: *k,
                        v: *v,
                        ranges,
                    };
                    let mut out = vec![f32::NAN; ranges.len() * head_dim];
                    let mut scratch = vec![f32::NAN; kernels.attention_scratch_len(ranges.len(), head_dim)];
                    kernels.attention(&a, &mut out, &mut scratch);
                    out
                };
                let out = run(0, &ranges);
                for (i, range) in ranges.iter().enumerate() {
                    let alone = run(i, &ranges[i..=i]);
                    let out = &out[i * head_dim..][..head_dim];
                    let same = out.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{kernels:?} {head_dim} query {i} of {n_q}");
                    let pair = run(i, &ranges[i..(i + 2).min(n_q)]);
                    let same = out.iter().zip(&pair).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{kernels:?} {head_dim} query {i} of {n_q} with the next");
                    let q = wide(&q[i * q_stride..][..head_dim]);
                    let keys = range[0] as usize..range[1] as usize;
                    let scores: Vec<(f64, f64)> =
                        keys.clone().map(|j| dot(&q, &wide_k[j * stride..][..head_dim])).collect();
                    let (scale, n) = (f64::from(scale), head_dim as f64);
                    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(scale * s.0));
                    let p: Vec<f64> = scores.iter().map(|s| (scale * s.0 - max).exp()).collect();
                    let sum: f64 = p.iter().sum();
                    // A score is off by its sum's rounding, a weight by that and by twice 2 ulp of exp.
                    let worst = scores.iter().fold(0.0, |m: f64, s| m.max(scale * s.1)) * EPS * (n + 3.0);
                    let blocks = n_keys.div_ceil(KEY_BLOCK) as f64;
                    for (d, got) in out.iter().enumerate() {
                        let values: Vec<f64> = keys.clone().map(|j| wide_v[j * stride + d]).collect();
                        let (want, size) = dot(&p, &values);
                        let (want, size) = if sum > 0.0 { (want / sum, size / sum) } else { (0.0, 0.0) };
                        let bound = size * (4.0 * worst + EPS * (2.0 * keys.len() as f64 + 8.0 * blocks + 20.0));
                        close(*got, want, bound, || format!("{kernels:?} head_dim={head_dim} query {i} of {n_q}"));
                    }
                }
            }
        }
    }
}

#[test]
fn softmax_is_close() {
    for kernels in Kernels::available() {
        for n in LENGTHS.into_iter().filter(|n| *n > 0) {
            let x: Vec<f32> = Random(n as u64).floats(n).iter().map(|x| 20.0 * x).collect();
            let max = x.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
            assert_eq!(kernels.max_of(&x), max);
            let p: Vec<f64> = x.iter().map(|x| f64::from(*x - max).exp()).collect();
            let sum: f64 = p.iter().sum();
            let mut got = x.clone();
            kernels.softmax(&mut got);
            for (got, p) in got.iter().zip(&p) {
                close(*got, p / sum, p / sum * EPS * (n as f64 / 16.0 + 14.0) + 2e-45, || format!("{kernels:?} n={n}"));
            }
        }
        assert_eq!(kernels.max_of(&[]), f32::NEG_INFINITY);
    }
}

#[test]
fn norms_are_close() {
    for kernels in Kernels::available() {
        for n in LENGTHS.into_iter().filter(|n| *n > 0) {
            let mut random = Random(n as u64);
            let (x, w, b) = (random.floats(n), random.floats(n), random.floats(n));
            let (x64, n64) = (wide(&x), n as f64);
            let what = || format!("{kernels:?} n={n}");
            let relative = EPS * (n64 / 16.0 + 14.0);

            let mut y = unaligned(&x);
            kernels.rms_norm(&mut y[1..], &w, 1e-6);
            let scale = 1.0 / (x64.iter().map(|x| x * x).sum::<f64>() / n64 + f64::from(1e-6f32)).sqrt();
            for i in 0..n {
                let want = x64[i] * scale * f64::from(w[i]);
                close(y[1 + i], want, want.abs() * relative, what);
            }

            let mut y = unaligned(&x);
            kernels.layer_norm(&mut y[1..], &w, &b, 1e-5);
            let mean = x64.iter().sum::<f64>() / n64;
            let variance = x64.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n64;
            let scale = 1.0 / (variance + f64::from(1e-5f32)).sqrt();
            for i in 0..n {
                let want = (x64[i] - mean) * scale * f64::from(w[i]) + f64::from(b[i]);
                // The mean is off by the rounding of a sum of numbers below 1.
                let bound = relative * (2.0 * (scale * f64::from(w[i])).abs() + want.abs() + 1.0);
                close(y[1 + i], want, bound, what);
            }
        }
    }
}

/// `Phi`, the normal distribution, by the series whose terms are all positive (Abramowitz and Stegun 26.2.11).
fn normal_distribution(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 3.0);
    while (term / sum).abs() > 1e-18 {
        term *= x * x / n;
        sum += term;
        n += 2.0;
    }
    if x == 0.0 { 0.5 } else { 0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt() }
}

/// A name, a kernel, its function in f64, and the allowed error of a result in absolute and in relative terms.
type Elementwise = (&'static str, fn(Kernels, &mut [f32]), fn(f64) -> f64, f64, f64);

#[test]
fn activation_functions_are_close() {
    let functions: [Elementwise; 7] = [
        ("exp", |k, y| _ = k.exp_sum(y, 0.0), f64::exp, 2e-45, 4.0 * EPS),
        ("sigmoid", |k, y| k.sigmoid(y), |x| 1.0 / (1.0 + (-x).exp()), 3e-39, 8.0 * EPS),
        ("silu", |k, y| k.silu(y), |x| x / (1.0 + (-x).exp()), 3e-37, 10.0 * EPS),
        ("softplus", |k, y| k.softplus(y), |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), 3e-45, 8.0 * EPS),
        ("gelu", |k, y| k.gelu(y), |x| x * normal_distribution(x), 2e-7, 2.0 * EPS),
        (
            "gelu_tanh",
            |k, y| k.gelu_tanh(y),
            |x| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            },
            5e-7,
            2.0 * EPS,
        ),
        ("relu", |k, y| k.relu(y), |x| x.max(0.0), 0.0, 0.0),
    ];
    for (name, kernel, function, absolute, relative) in functions {
        let mut random = Random(5);
        let mut x: Vec<f32> = (0..200_003).map(|i| (i as f32 - 100_000.0) / 1000.0).collect();
        x.extend(random.floats(10_000).iter().map(|x| 10.0 * x));
        x.retain(|x| name != "exp" || *x <= 88.7);
        if name == "gelu" {
            // Beyond, the series of the test loses its digits and the function is 0 or x.
            x.retain(|x| x.abs() < 12.0);
        }
        for kernels in Kernels::available() {
            let mut y = x.clone();
            kernel(kernels, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let want = function(f64::from(*x));
                close(*y, want, want.abs() * relative + absolute, || format!("{name}({x}) {kernels:?}"));
            }
            for n in LENGTHS {
                let mut part = x[..n].to_vec();
                kernel(kernels, &mut part);
                assert!(part.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()), "{name} {kernels:?} n={n}");
            }
        }
    }
}

#[test]
fn activation_functions_end_where_they_should() {
    for kernels in Kernels::available() {
        let ends = [f32::NEG_INFINITY, -1e30, -0.0, 0.0, 1e30, f32::INFINITY, f32::NAN];
        let apply = |kernel: fn(Kernels, &mut [f32])| {
            let mut y = ends;
            kernel(kernels, &mut y);
            assert!(y[6].is_nan(), "{kernels:?}: NaN stays");
            y
        };
        assert_eq!(apply(|k, y| _ = k.exp_sum(y, 0.0))[..6], [0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY]);
        assert_eq!(apply(|k, y| k.sigmoid(y))[..6], [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]);
        assert_eq!(apply(|k, y| k.softplus(y))[..2], [0.0, 0.0]);
        assert_eq!(apply(|k, y| k.softplus(y))[4..6], [1e30, f32::INFINITY]);
        assert_eq!(apply(|k, y| k.silu(y))[1..6], [-0.0, 0.0, 0.0, 1e30, f32::INFINITY]);
        assert_eq!(apply(|k, y| k.gelu(y))[1..5], [0.0, 0.0, 0.0, 1e30]);
        assert_eq!(apply(|k, y| k.gelu_tanh(y))[1..5], [0.0, 0.0, 0.0, 1e30]);
        assert_eq!(apply(|k, y| k.relu(y))[..6], [0.0, 0.0, 0.0, 0.0, 1e30, f32::INFINITY]);
    }
}

#[test]
fn elementwise_kernels_are_close() {
    for kernels in Kernels::available() {
        for n in LENGTHS {
            let mut random = Random(n as u64);
            let (x, y) = (unaligned(&random.floats(n)), random.floats(n));
            let x = &x[1..];
            let check = |kernel: &dyn Fn(&mut [f32]), want: &dyn Fn(f64, f64) -> f64, relative: f64| {
                let mut got = unaligned(&y);
                kernel(&mut got[1..]);
                for i in 0..n {
                    let want = want(f64::from(y[i]), f64::from(x[i]));
                    close(got[1 + i], want, want.abs() * relative, || format!("{kernels:?} n={n}"));
                }
            };
            check(&|y| kernels.add(y, x), &|y, x| y + x, EPS);
            check(&|y| kernels.mul(y, x), &|y, x| y * x, EPS);
            check(&|y| kernels.scale(y, 0.7), &|y, _| y * f64::from(0.7f32), EPS);
            check(&|y| kernels.silu_mul(y, x), &|y, x| y / (1.0 + (-y).exp()) * x, 12.0 * EPS);
        }
    }
}

#[test]
fn a_token_of_a_scan_is_close() {
    for kernels in Kernels::available() {
        for (d_state, head_dim) in [(1, 1), (16, 7), (5, 32), (16, 64), (128, 33), (64, 100)] {
            let mut random = Random(d_state as u64);
            let [before, a] = [(); 2].map(|()| random.floats(d_state * head_dim));
            let [b, c] = [(); 2].map(|()| random.floats(d_state));
            let [dx, step, y] = [(); 3].map(|()| random.floats(head_dim));
            let token = ScanToken { b: &b, c: &c, dx: &dx };
            let check = |state: &[f32], got: &[f32], decay: &dyn Fn(usize, usize) -> f64| {
                for p in 0..head_dim {
                    let (mut want, mut size) = (f64::from(y[p]), f64::from(y[p]).abs());
                    for n in 0..d_state {
                        let at = n * head_dim + p;
                        let kept = decay(n, p) * f64::from(before[at]);
                        let added = f64::from(b[n]) * f64::from(dx[p]);
                        let what = || format!("{kernels:?} [{d_state}, {head_dim}] {n} {p}");
                        close(state[at], kept + added, 6.0 * EPS * (kept.abs() + added.abs()), what);
                        want += f64::from(c[n]) * (kept + added);
                        size += f64::from(c[n]).abs() * (kept.abs() + added.abs());
                    }
                    let bound = EPS * size * (d_state + 6) as f64;
                    close(got[p], want, bound, || format!("{kernels:?} [{d_state}, {head_dim}] {p}"));
                }
            };
            let (mut state, mut got) = (before.clone(), y.clone());
            kernels.scan_head(&mut state, &mut [HeadToken { decay: 0.7, token, y: &mut got }]);
            check(&state, &got, &|_, _| f64::from(0.7f32));
            let (mut state, mut got) = (before.clone(), y.clone());
            kernels.scan_channels(&mut state, &ChannelDecay { a: &a, step: &step }, &token, &mut got);
            check(&state, &got, &|n, p| (f64::from(step[p]) * f64::from(a[n * head_dim + p])).exp());
        }
    }
}

#[test]
fn tokens_of_a_scan_are_the_same_together_and_one_by_one() {
    for kernels in Kernels::available() {
        for (d_state, head_dim) in [(1, 1), (5, 33), (16, 64), (128, 16)] {
            let mut random = Random(d_state as u64);
            let before = random.floats(d_state * head_dim);
            let tokens: Vec<[Vec<f32>; 4]> = (0..2 * SCAN_TOKENS + 3)
                .map(|_| [d_state, d_state, head_dim, head_dim].map(|n| random.floats(n)))
                .collect();
            let run = |at_once: usize| {
                let (mut state, mut results) = (before.clone(), Vec::new());
                for tokens in tokens.chunks(at_once) {
                    let mut ys: Vec<Vec<f32>> = tokens.iter().map(|[.., y]| y.clone()).collect();
                    let mut heads: Vec<HeadToken<'_>> = tokens
                        .iter()
                        .zip(&mut ys)
                        .map(|([b, c, dx, _], y)| HeadToken { decay: b[0].abs(), token: ScanToken { b, c, dx }, y })
                        .collect();
                    kernels.scan_head(&mut state, &mut heads);
                    results.extend(ys.into_iter().flatten().map(f32::to_bits));
                }
                (state.into_iter().map(f32::to_bits).collect::<Vec<_>>(), results)
            };
            let one_by_one = run(1);
            for at_once in [2, SCAN_TOKENS, SCAN_TOKENS + 1, tokens.len()] {
                assert_eq!(run(at_once), one_by_one, "{kernels:?} [{d_state}, {head_dim}], {at_once} at once");
            }
        }
    }
}

#[test]
fn rotations_turn_their_pairs() {
    for kernels in Kernels::available() {
        for n in LENGTHS {
            let mut random = Random(n as u64);
            // Three elements more than are turned.
            let x = random.floats(2 * n + 3);
            let angles = random.floats(n);
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            let (mut half, mut interleaved) = (x.clone(), x.clone());
            kernels.rope_half(&mut half, &cos, &sin);
            kernels.rope_interleaved(&mut interleaved, &cos, &sin);
            let check = |got: &[f32], a: usize, b: usize, i: usize| {
                let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
                let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                let bound = 3.0 * EPS * (xa.abs() + xb.abs());
                close(got[a], xa * c - xb * s, bound, || format!("{kernels:?} n={n} {i}"));
                close(got[b], xb * c + xa * s, bound, || format!("{kernels:?} n={n} {i}"));
            };
            for i in 0..n {
                check(&half, i, i + n, i);
                check(&interleaved, 2 * i, 2 * i + 1, i);
            }
            assert_eq!(half[2 * n..], x[2 * n..]);
            assert_eq!(interleaved[2 * n..], x[2 * n..]);
        }
    }
}

#[test]
fn products_of_two_vectors_with_a_matrix_are_close_and_independent_of_other_columns() {
    let mut random = Random(37);
    for kernels in Kernels::available() {
        for n in LENGTHS.into_iter().filter(|n| (1..256).contains(n)) {
            for k in [1, 2, 7, 16, 65, 128] {
                let (s, a, b) = (unaligned(&random.floats(k * n)), random.floats(k), random.floats(k));
                let s = &s[1..];
                let (mut ya, mut yb) = (vec![f32::NAN; n], vec![f32::NAN; n]);
                kernels.two_products(s, &a, &b, &mut ya, &mut yb);
                for c in 0..n {
                    let column: Vec<f32> = s.iter().skip(c).step_by(n).copied().collect();
                    for (x, y) in [(&a, ya[c]), (&b, yb[c])] {
                        let (want, size) = dot(&wide(x), &wide(&column));
                        close(y, want, (k + 2) as f64 * EPS * size, || format!("{kernels:?} n {n} k {k} column {c}"));
                    }
                    let (mut one_a, mut one_b) = ([f32::NAN], [f32::NAN]);
                    kernels.two_products(&column, &a, &b, &mut one_a, &mut one_b);
                    assert_eq!((one_a, one_b), ([ya[c]], [yb[c]]), "{kernels:?} n {n} k {k} column {c}");
                }
            }
        }
    }
}

#[test]
fn a_decayed_matrix_and_an_outer_product_are_added_with_two_roundings() {
    let mut random = Random(38);
    for kernels in Kernels::available() {
        for n in LENGTHS.into_iter().filter(|n| (1..256).contains(n)) {
            let k = 9;
            let (s, w, a, y) = (random.floats(k * n), random.floats(k), random.floats(k), random.floats(n));
            let mut got = s.clone();
            kernels.decay_add_outer(&mut got, &w, &a, &y);
            for (at, got) in got.into_iter().enumerate() {
                let (i, c) = (at / n, at % n);
                let terms = [f64::from(w[i]) * f64::from(s[at]), f64::from(a[i]) * f64::from(y[c])];
                let bound = 2.0 * EPS * (terms[0].abs() + terms[1].abs());
                close(got, terms[0] + terms[1], bound, || format!("{kernels:?} n {n} at {at}"));
            }
        }
    }
}
