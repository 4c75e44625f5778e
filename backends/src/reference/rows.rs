//! Row lookup.

use engine::Result;
use engine::tensor::TensorId;

use super::operands::{Operands, index};

/// `[table, ids]`: row `ids[..]` of the table.
pub(super) fn get_rows(cx: &Operands<'_>, args: &[TensorId]) -> Result<Vec<f64>> {
    let [n_rows, n] = cx.dims(args[0])?;
    let table = cx.rows(args[0])?;
    let ids = cx.indices(args[1], n_rows)?;
    let mut out = vec![0.0; ids.len() * n];
    ids.iter().zip(out.chunks_exact_mut(n)).try_for_each(|(&id, row)| table.row(id, row))?;
    Ok(out)
}

/// `[table, ids, rows]`: row `ids[..]` of the table, or row `-1 - ids[..]` of `rows` where the id is negative.
pub(super) fn embed(cx: &Operands<'_>, args: &[TensorId]) -> Result<Vec<f64>> {
    let [n_rows, n] = cx.dims(args[0])?;
    let (table, vectors) = (cx.rows(args[0])?, cx.rows(args[2])?);
    let ids = cx.values(args[1])?;
    let mut out = vec![0.0; ids.len() * n];
    for (&id, row) in ids.iter().zip(out.chunks_exact_mut(n)) {
        if id < 0.0 {
            vectors.row(index(-1.0 - id, ids.len())?, row)?;
        } else {
            table.row(index(id, n_rows)?, row)?;
        }
    }
    Ok(out)
}
