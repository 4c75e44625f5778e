//! Selective scans of state-space models.

#![allow(unsafe_code, reason = "writes rows of results and states")]

use std::ops::Range;

use engine::op::ScanDecay;
use engine::tensor::TensorDesc;
use kernels::cpu::{ChannelDecay, Kernels, ScanToken};
use kernels::quant::Format;

use super::super::context::{Needs, Prepared};
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker};
use super::passages::{Passage, Passages};

/// `[x, dt, b, c, dt_bias, a, d, state, reads, slots, kept, ranges]`.
pub(super) fn ssm_scan(args: &[&TensorDesc], decay: ScanDecay) -> Prepared {
    let [n_head, head_dim] = [1, 2].map(|i| args[0].shape.dim(i));
    let [n_group, d_state] = [1, 2].map(|i| args[2].shape.dim(i));
    // A state that nobody keeps, and the steps and inputs of a token.
    let needs = Needs { shared: 0, worker: (d_state + 2) * head_dim };
    Prepared::step(needs, move |cx, at| {
        let a = match decay {
            ScanDecay::Head => Decay::Head(cx.view(at.arg(5))?),
            ScanDecay::Channel => {
                let a = cx.weight(at.arg(5))?;
                let a = a.transposed(Format::F32, [n_head, head_dim, d_state], cx.machine.kernels)?;
                Decay::Channel(View::dense(&a, 0, n_head, d_state * head_dim)?)
            }
        };
        Ok(SsmScan {
            x: cx.view(at.arg(0))?,
            dt: cx.view(at.arg(1))?,
            b: cx.view(at.arg(2))?,
            c: cx.view(at.arg(3))?,
            dt_bias: cx.view(at.arg(4))?,
            a,
            d: cx.view(at.arg(6))?,
            state: cx.result(at.arg(7))?,
            passages: Passages::bind(cx, at, 8)?,
            y: cx.result(at.out(0))?,
            n_head,
            n_group,
            d_state,
            worker: cx.scratch(at)?.1,
            kernels: cx.machine.kernels,
        })
    })
}

/// Logarithms of decays per unit of step size.
enum Decay {
    /// `[1, n_head]`.
    Head(View<f32>),
    /// `[n_head, d_state * head_dim]`.
    Channel(View<f32>),
}

/// A chunk is a head of all sequences, so that no two chunks touch the same state whatever the slots are.
struct SsmScan {
    x: View<f32>,
    dt: View<f32>,
    b: View<f32>,
    c: View<f32>,
    dt_bias: View<f32>,
    a: Decay,
    d: View<f32>,
    state: ViewMut<f32>,
    passages: Passages,
    y: ViewMut<f32>,
    n_head: usize,
    n_group: usize,
    d_state: usize,
    worker: WorkerScratch,
    kernels: Kernels,
}

impl SsmScan {
    /// The rows of `state` that are this head's in a slot.
    fn rows(&self, slot: usize, head: usize) -> Range<usize> {
        let first = (slot * self.n_head + head) * self.d_state;
        first..first + self.d_state
    }

    /// Makes of the slot's part of the state what the sequence reads.
    fn begin(&self, head: usize, read: Option<usize>, slot: usize, state: &mut [f32]) {
        match read {
            None => state.fill(0.0),
            Some(read) if read == slot => {}
            Some(read) => state.copy_from_slice(self.state.rows(self.rows(read, head))),
        }
    }

    /// Takes the state of a head through these rows.
    fn scan(&self, head: usize, rows: Range<usize>, state: &mut [f32], scratch: &mut [f32]) {
        let (step, dx) = scratch.split_at_mut(scratch.len() / 2);
        let channels = head * dx.len()..(head + 1) * dx.len();
        for t in rows {
            let at = t * self.n_head + head;
            let group = t * self.n_group + head * self.n_group / self.n_head;
            // SAFETY: this head of every token belongs to this chunk alone.
            let y = unsafe { self.y.row_mut(at) };
            y.copy_from_slice(self.x.row(at));
            dx.copy_from_slice(y);
            match &self.a {
                Decay::Head(a) => {
                    let step = &mut step[..1];
                    step[0] = self.dt.row(t)[head] + self.dt_bias.row(0)[head];
                    self.kernels.softplus(step);
                    self.kernels.scale(dx, step[0]);
                    self.kernels.scale(y, self.d.row(0)[head]);
                    let mut decay = [step[0] * a.row(0)[head]];
                    self.kernels.exp_sum(&mut decay, 0.0);
                    let token = ScanToken { b: self.b.row(group), c: self.c.row(group), dx };
                    self.kernels.scan_head(state, decay[0], &token, y);
                }
                Decay::Channel(a) => {
                    step.copy_from_slice(self.dt.row(at));
                    self.kernels.add(step, self.dt_bias.part(0, channels.clone()));
                    self.kernels.softplus(step);
                    self.kernels.mul(dx, step);
                    self.kernels.mul(y, self.d.part(0, channels.clone()));
                    let token = ScanToken { b: self.b.row(group), c: self.c.row(group), dx };
                    self.kernels.scan_channels(state, &ChannelDecay { a: a.row(head), step }, &token, y);
                }
            }
        }
    }
}

impl Step for SsmScan {
    fn chunks(&self) -> usize {
        self.n_head
    }

    fn run(&self, head: usize, worker: &mut Worker) {
        let head_dim = self.y.row_len();
        let (leftover, scratch) =
            self.worker.of(worker)[..(self.d_state + 2) * head_dim].split_at_mut(self.d_state * head_dim);
        for Passage { rows, read, slot, kept } in self.passages.of_chunk(head) {
            let stored = rows.start + kept;
            // SAFETY: this head's part of the slot belongs to this chunk alone, and the slot to one sequence.
            let state = unsafe { self.state.rows_mut(self.rows(slot, head)) };
            self.begin(head, read, slot, state);
            self.scan(head, rows.start..stored, state, scratch);
            if stored < rows.end {
                leftover.copy_from_slice(state);
                self.scan(head, stored..rows.end, leftover, scratch);
            }
        }
    }
}
