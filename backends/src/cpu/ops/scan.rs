//! Selective scans of state-space models.

#![allow(unsafe_code, reason = "writes rows of results and states")]

use std::ops::Range;

use engine::op::ScanDecay;
use engine::tensor::TensorDesc;
use kernels::cpu::{ChannelDecay, HeadToken, Kernels, SCAN_TOKENS, ScanToken};
use kernels::quant::Format;

use super::super::context::{Needs, Prepared};
use super::super::mem::{View, ViewMut, WorkerScratch};
use super::super::region::{Step, Worker};
use super::passages::{Passage, Passages};

/// Rows of a head's channels in which tokens get what they need: the inputs of those that come together, or a token's inputs
/// and steps.
const FOR_TOKENS: usize = SCAN_TOKENS;

/// `[x, dt, b, c, dt_bias, a, d, state, reads, slots, kept, ranges]`.
pub(super) fn ssm_scan(args: &[&TensorDesc], decay: ScanDecay) -> Prepared {
    let [n_head, head_dim] = [1, 2].map(|i| args[0].shape.dim(i));
    let [n_group, d_state] = [1, 2].map(|i| args[2].shape.dim(i));
    // A state that nobody keeps, and what tokens need.
    let needs = Needs { shared: 0, worker: (d_state + FOR_TOKENS) * head_dim };
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
        match &self.a {
            Decay::Head(a) => {
                let together = rows.end - rows.len() % SCAN_TOKENS;
                for t in (rows.start..together).step_by(SCAN_TOKENS) {
                    self.tokens::<SCAN_TOKENS>(head, a.row(0)[head], t, state, scratch);
                }
                for t in together..rows.end {
                    self.tokens::<1>(head, a.row(0)[head], t, state, scratch);
                }
            }
            Decay::Channel(a) => {
                for t in rows {
                    self.channels(head, a.row(head), t, state, scratch);
                }
            }
        }
    }

    /// `T` tokens from `t` on, with a decay for the whole head; `a` is its logarithm per unit of step size.
    fn tokens<const T: usize>(&self, head: usize, a: f32, t: usize, state: &mut [f32], scratch: &mut [f32]) {
        let head_dim = self.y.row_len();
        let mut step: [f32; T] = std::array::from_fn(|i| self.dt.row(t + i)[head] + self.dt_bias.row(0)[head]);
        self.kernels.softplus(&mut step);
        let mut decay = step.map(|step| step * a);
        self.kernels.exp_sum(&mut decay, 0.0);
        let mut inputs = scratch.chunks_exact_mut(head_dim);
        let mut tokens = std::array::from_fn::<_, T, _>(|i| {
            // SAFETY: this head of every token belongs to this chunk alone.
            let y = unsafe { self.y.row_mut((t + i) * self.n_head + head) };
            let dx = inputs.next().expect("a row for each");
            self.read(head, t + i, y, dx);
            self.kernels.scale(dx, step[i]);
            self.kernels.scale(y, self.d.row(0)[head]);
            HeadToken { decay: decay[i], token: self.token(head, t + i, dx), y }
        });
        self.kernels.scan_head(state, &mut tokens);
    }

    /// Token `t`, with a decay for every element.
    fn channels(&self, head: usize, a: &[f32], t: usize, state: &mut [f32], scratch: &mut [f32]) {
        let head_dim = self.y.row_len();
        let (step, rest) = scratch.split_at_mut(head_dim);
        let dx = &mut rest[..head_dim];
        let channels = head * head_dim..(head + 1) * head_dim;
        // SAFETY: this head of every token belongs to this chunk alone.
        let y = unsafe { self.y.row_mut(t * self.n_head + head) };
        self.read(head, t, y, dx);
        step.copy_from_slice(self.dt.row(t * self.n_head + head));
        self.kernels.add(step, self.dt_bias.part(0, channels.clone()));
        self.kernels.softplus(step);
        self.kernels.mul(dx, step);
        self.kernels.mul(y, self.d.part(0, channels));
        self.kernels.scan_channels(state, &ChannelDecay { a, step }, &self.token(head, t, dx), y);
    }

    /// Puts a head's inputs of a token into both.
    fn read(&self, head: usize, t: usize, y: &mut [f32], dx: &mut [f32]) {
        let x = self.x.row(t * self.n_head + head);
        y.copy_from_slice(x);
        dx.copy_from_slice(x);
    }

    /// What token `t` brings to a head.
    fn token<'a>(&'a self, head: usize, t: usize, dx: &'a [f32]) -> ScanToken<'a> {
        let group = t * self.n_group + head * self.n_group / self.n_head;
        ScanToken { b: self.b.row(group), c: self.c.row(group), dx }
    }
}

impl Step for SsmScan {
    fn chunks(&self) -> usize {
        self.n_head
    }

    fn run(&self, head: usize, worker: &mut Worker) {
        let head_dim = self.y.row_len();
        let (leftover, scratch) =
            self.worker.of(worker)[..(self.d_state + FOR_TOKENS) * head_dim].split_at_mut(self.d_state * head_dim);
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
