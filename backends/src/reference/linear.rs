//! Matrix products.

use engine::Result;
use engine::tensor::TensorId;
use rayon::prelude::*;

use super::operands::{Operands, Rows};

/// Rows of weights that are decoded together, so that activations are read once for all of them.
const ROWS_PER_TASK: usize = 16;
/// Partial sums of a scalar product: enough for the compiler to use vectors.
const LANES: usize = 8;

/// `x . w^T + bias`: `[.., n]`.
pub(super) fn linear(cx: &Operands<'_>, x: TensorId, w: TensorId, bias: Option<TensorId>) -> Result<Vec<f64>> {
    let [n, k] = cx.dims(w)?;
    let mut y = product(&cx.values(x)?, &cx.rows(w)?, n, k)?;
    if let Some(bias) = bias {
        let bias = cx.values(bias)?;
        y.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b));
    }
    Ok(y)
}

/// `[m, n]`: every row of `x [m, k]` with every row of `w [n, k]`.
pub(super) fn product(x: &[f64], w: &Rows<'_>, n: usize, k: usize) -> Result<Vec<f64>> {
    let m = x.len() / k;
    // [n, m]
    let mut columns = vec![0.0; n * m];
    columns.par_chunks_mut(ROWS_PER_TASK * m).enumerate().try_for_each(|(task, columns)| {
        let mut rows = vec![0.0; columns.len() / m * k];
        for (j, row) in rows.chunks_exact_mut(k).enumerate() {
            w.row(task * ROWS_PER_TASK + j, row)?;
        }
        for (i, x) in x.chunks_exact(k).enumerate() {
            for (j, row) in rows.chunks_exact(k).enumerate() {
                columns[j * m + i] = dot(row, x);
            }
        }
        Ok(())
    })?;
    let mut y = vec![0.0; m * n];
    for (i, row) in y.chunks_exact_mut(n).enumerate() {
        for (j, y) in row.iter_mut().enumerate() {
            *y = columns[j * m + i];
        }
    }
    Ok(y)
}

/// `sum a_i b_i`.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((s, a), b) in sums.iter_mut().zip(a).zip(b) {
            *s += a * b;
        }
    }
    sums.iter().sum::<f64>() + a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum::<f64>()
}
