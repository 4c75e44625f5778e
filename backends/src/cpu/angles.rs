//! Angles of the rotary position embedding. They depend on positions alone, so one table serves every layer of a run.

#![allow(unsafe_code, reason = "writes rows of a table")]

use std::sync::Arc;

use engine::error::Result;
use engine::op::Rope;

use super::mem::{Storage, View, ViewMut};
use super::region::{Step, Worker, piece};

/// Cosine and sine of every pair's angle at every position of a call.
#[derive(Clone)]
pub(super) struct RopeTable {
    /// `[n_positions, n_rot / 2]`.
    pub(super) cos: ViewMut<f32>,
    /// As `cos`.
    pub(super) sin: ViewMut<f32>,
}

impl RopeTable {
    /// Memory for a table.
    pub(super) fn new(n_positions: usize, rope: &Rope) -> Result<Self> {
        let n = rope.n_rot as usize / 2;
        let bytes = n_positions * n * size_of::<f32>();
        let storage = Arc::new(Storage::zeroed(2 * bytes, "rotary angles")?);
        Ok(Self {
            cos: ViewMut::dense(&storage, 0, n_positions, n)?,
            sin: ViewMut::dense(&storage, bytes, n_positions, n)?,
        })
    }

    /// Bytes of cosines and sines.
    pub(super) fn bytes(&self) -> usize {
        2 * self.cos.n_rows() * self.cos.row_len() * size_of::<f32>()
    }

    /// The step that fills the table. Frequencies are divided by `factors`, one row of `n_rot / 2`.
    pub(super) fn filled_by(&self, positions: View<i32>, factors: Option<View<f32>>, rope: &Rope) -> impl Step + use<> {
        let base = f64::from(rope.theta_base);
        let frequency = |i: u32| base.powf(-2.0 * f64::from(i) / f64::from(rope.n_rot));
        let frequencies = (0..rope.n_rot / 2).map(frequency).collect();
        Angles { positions, factors, frequencies, table: self.clone() }
    }
}

/// Fills a table. In f64: an angle of 65536 radians rounded to f32 would be off by 0.004.
struct Angles {
    positions: View<i32>,
    factors: Option<View<f32>>,
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
            let factors = self.factors.as_ref().map(|factors| factors.row(0));
            for (i, ((cos, sin), frequency)) in cos.iter_mut().zip(sin).zip(&self.frequencies).enumerate() {
                let factor = factors.map_or(1.0, |factors| f64::from(factors[i]));
                let (s, c) = (position * (frequency / factor)).sin_cos();
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
    }
}
