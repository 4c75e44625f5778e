//! Row lookup.

use engine::Result;
use engine::tensor::TensorId;

use super::operands::Operands;

/// `[table, ids]`: row `ids[..]` of the table.
pub fn get_rows(cx: &Operands<'_>, args: &[TensorId]) -> Result<Vec<f64>> {
    let [n_rows, n] = cx.dims(args[0])?;
    let table = cx.rows(args[0])?;
    let ids = cx.indices(args[1], n_rows)?;
    let mut out = vec![0.0; ids.len() * n];
    ids.iter().zip(out.chunks_exact_mut(n)).try_for_each(|(&id, row)| table.row(id, row))?;
    Ok(out)
}
