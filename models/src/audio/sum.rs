//! [`sum`]: f32 values added up in PyTorch's order, where the rounding of a sum is part of the result.

/// Values that are added side by side: PyTorch's vectors on x86-64, with and without AVX-512.
const LANES: usize = 8;
/// Vectors that are added side by side.
const ROWS: usize = 4;
/// Levels of partial sums: each takes over the sum of the level below when that has grown long.
const LEVELS: usize = 4;
/// At least `2^4` rows go into a sum of the lowest level.
const MIN_LEVEL_POWER: u32 = 4;

type Row = [[f32; LANES]; ROWS];

/// The sum of `values` in f32, bit for bit that of `torch.sum` over a contiguous dimension of 8 values or more.
///
/// Source: PyTorch, `aten/src/ATen/native/cpu/SumKernel.cpp`, `cascade_sum`.
pub(super) fn sum(values: &[f32]) -> f32 {
    let (vectors, tail) = values.as_chunks::<LANES>();
    let (rows, rest) = vectors.as_chunks::<ROWS>();
    let mut lanes = rows_sum(rows);
    for vector in rest {
        add(&mut lanes[0], vector);
    }
    let [mut total, others @ ..] = lanes;
    for other in &others {
        add(&mut total, other);
    }
    total.iter().fold(tail.iter().fold(0.0, |sum, x| sum + x), |sum, x| sum + x)
}

/// The sum of all rows, column by column.
fn rows_sum(rows: &[Row]) -> Row {
    let ceil_log2 = rows.len().max(1).next_power_of_two().ilog2();
    let power = MIN_LEVEL_POWER.max(ceil_log2 / LEVELS as u32);
    let mask = (1usize << power) - 1;
    let mut levels = [Row::default(); LEVELS];
    for (i, row) in rows.iter().enumerate() {
        add_rows(&mut levels[0], row);
        let n = i + 1;
        if n & mask != 0 {
            continue;
        }
        for level in 1..LEVELS {
            let below = std::mem::take(&mut levels[level - 1]);
            add_rows(&mut levels[level], &below);
            if n & (mask << (level as u32 * power)) != 0 {
                break;
            }
        }
    }
    let [mut total, others @ ..] = levels;
    for other in &others {
        add_rows(&mut total, other);
    }
    total
}

fn add_rows(sum: &mut Row, row: &Row) {
    for (s, r) in sum.iter_mut().zip(row) {
        add(s, r);
    }
}

fn add(sum: &mut [f32; LANES], vector: &[f32; LANES]) {
    for (s, x) in sum.iter_mut().zip(vector) {
        *s += x;
    }
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn sums_are_those_of_torch() {
        // `x.sum(axis=2)` of torch 2.15.0 on x86-64, `x` of shape `[1, 2, n]`.
        let table = [
            (8, -129.43652),
            (11, -177.59772),
            (89, -1415.6041),
            (301, -4814.978),
            (1501, -24_012.564),
            (3001, -48_032.29),
            (70_001, -1_120_121.5),
            (300_007, -4_800_578.0),
        ];
        for (n, want) in table {
            let mut v = 12_345u32;
            let x: Vec<f32> = (0..n)
                .map(|_| {
                    v = v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (v >> 8) as f32 / (1 << 23) as f32 - 17.0
                })
                .collect();
            assert_eq!(sum(&x), want, "{n} values");
        }
    }
}
