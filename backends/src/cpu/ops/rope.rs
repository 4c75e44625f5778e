//! Rotary position embedding. Cosines and sines depend on positions alone, so one table serves every layer of a run.

#![allow(unsafe_code, reason = "writes rows of results")]

use std::sync::Arc;

use engine::error::Result;
use engine::op::{Rope, RopePairs};
use kernels::cpu::Kernels;

use super::super::lower::{At, Lowering};
use super::super::mem::{Storage, View, ViewMut, Window};
use super::super::region::{Step, Worker};
use super::{piece, rows_per_chunk};

/// Cosine and sine of every pair's angle at every position of a call.
#[derive(Clone)]
pub(in super::super) struct RopeTable {
    /// `[n_positions, n_rot / 2]`.
    cos: ViewMut<f32>,
    sin: ViewMut<f32>,
}

impl RopeTable {
    /// Memory for a table.
    pub(in super::super) fn new(n_positions: usize, rope: &Rope) -> Result<Self> {
        let n = rope.n_rot as usize / 2;
        let bytes = n_positions * n * size_of::<f32>();
        let storage = Arc::new(Storage::zeroed(2 * bytes, "rotary angles")?);
        Ok(Self {
            cos: ViewMut::new(&storage, Window::contiguous(0, n_positions, n))?,
            sin: ViewMut::new(&storage, Window::contiguous(bytes, n_positions, n))?,
        })
    }

    /// The step that fills the table.
    pub(in super::super) fn filled_by(&self, positions: View<i32>, rope: &Rope) -> impl Step + use<> {
        let base = f64::from(rope.theta_base);
        let frequency = |i: u32| base.powf(-2.0 * f64::from(i) / f64::from(rope.n_rot));
        Angles { positions, frequencies: (0..rope.n_rot / 2).map(frequency).collect(), table: self.clone() }
    }
}

/// Fills a table. In f64: an angle of 65536 radians rounded to f32 would be off by 0.004.
struct Angles {
    positions: View<i32>,
    frequencies: Vec<f64>,
    table: RopeTable,
}

/// Positions of one chunk: a pair of cosine and sine takes some tens of nanoseconds.
const POSITIONS_PER_CHUNK: usize = 8;

impl Step for Angles {
    fn chunks(&self) -> usize {
        self.table.cos.n_rows().div_ceil(POSITIONS_PER_CHUNK)
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        let per_row = self.positions.row_len();
        for i in piece(chunk, POSITIONS_PER_CHUNK, self.table.cos.n_rows()) {
            let position = f64::from(self.positions.row(i / per_row)[i % per_row]);
            // SAFETY: row `i` of the table belongs to this chunk alone.
            let cos = unsafe { self.table.cos.row_mut(i) };
            // SAFETY: as above.
            let sin = unsafe { self.table.sin.row_mut(i) };
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
                let (s, c) = (position * frequency).sin_cos();
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
    }
}

/// `[x, positions]`.
pub(in super::super) fn rope(cx: &mut Lowering<'_>, at: At<'_>, rope: Rope) -> Result<()> {
    let table = cx.rope_table(at.arg(1), rope)?;
    let x = cx.unless_in_place(at.arg(0), at.out(0))?;
    let y = cx.result(at.out(0))?;
    let n_head = cx.desc(at.arg(0)).shape.dim(2);
    cx.push(Rotate { x, table, y, n_head, pairs: rope.pairs, kernels: cx.machine.kernels });
    Ok(())
}

struct Rotate {
    /// `None`: planned in place, `y` already holds x.
    x: Option<View<f32>>,
    table: RopeTable,
    y: ViewMut<f32>,
    n_head: usize,
    pairs: RopePairs,
    kernels: Kernels,
}

impl Step for Rotate {
    fn chunks(&self) -> usize {
        self.y.n_rows().div_ceil(rows_per_chunk(self.y.row_len()))
    }

    fn run(&self, chunk: usize, _worker: &mut Worker) {
        for r in piece(chunk, rows_per_chunk(self.y.row_len()), self.y.n_rows()) {
            // SAFETY: row `r` of `y` belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(r) };
            if let Some(x) = &self.x {
                y.copy_from_slice(x.row(r));
            }
            let (cos, sin) = (self.table.cos.row(r / self.n_head), self.table.sin.row(r / self.n_head));
            match self.pairs {
                RopePairs::Halves => self.kernels.rope_half(y, cos, sin),
                RopePairs::Interleaved => self.kernels.rope_interleaved(y, cos, sin),
            }
        }
    }
}
