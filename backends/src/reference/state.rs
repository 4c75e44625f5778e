//! States of fixed extent: how sequences pass through them.

use engine::tensor::TensorId;
use engine::{DType, Result};

use super::operands::{Operands, decode, encode, index};

/// Takes the sequences of `n_rows` rows through a state. `args` are `state, reads, slots, kept, ranges`; `step` is told the
/// number of a row and makes of the state before it the one behind it.
///
/// What goes from row to row is rounded to f32, so that it makes no difference where a sequence is cut into calls.
pub(super) fn pass(
    cx: &Operands<'_>,
    args: &[TensorId],
    n_rows: usize,
    mut step: impl FnMut(usize, &mut Vec<f64>),
) -> Result<()> {
    let extents = cx.desc(args[0]).shape.extents();
    let (n_slots, n) = (extents[0], extents[1..].iter().product());
    let row_bytes = DType::F32.row_bytes(n);
    let (reads, slots) = (cx.values(args[1])?, cx.indices(args[2], n_slots)?);
    let (kept, ranges) = (cx.indices(args[3], n_rows + 1)?, cx.ranges(args[4], n_rows)?);
    let mut memory = cx.state(args[0])?.lock();
    for (s, rows) in ranges.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let mut state = vec![0.0; n];
        if reads[s] >= 0.0 {
            let row = index(reads[s], n_slots)?;
            state = decode(DType::F32, &memory[row * row_bytes..][..row_bytes], n)?;
        }
        let stored = rows.start + kept[s];
        for row in rows.start..=rows.end {
            if row == stored {
                encode(DType::F32, &state, &mut memory[slots[s] * row_bytes..][..row_bytes])?;
            }
            if row < rows.end {
                step(row, &mut state);
                state.iter_mut().for_each(|v| *v = f64::from(*v as f32));
            }
        }
    }
    Ok(())
}
