//! The steps, by family of ops. What they share is here: how rows are cut into chunks, and pointwise functions.

pub(super) mod attention;
pub(super) mod conv;
pub(super) mod depthwise;
pub(super) mod elementwise;
pub(super) mod linear;
pub(super) mod moe;
pub(super) mod norm;
pub(super) mod rel_pos;
pub(super) mod rope;
pub(super) mod rows;

use engine::error::Result;
use engine::op::{Op, Unary};
use engine::tensor::TensorDesc;
use kernels::cpu::Kernels;

use super::context::{At, Lowering, Machine};
use super::mem::{View, ViewMut};
use super::region::{Step, Worker, piece};

/// Activations of one chunk: some microseconds of work, so that claiming it costs little.
const CHUNK_ELEMENTS: usize = 16 * 1024;

/// Rows of one chunk of an op that works row by row.
fn rows_per_chunk(row_len: usize) -> usize {
    (CHUNK_ELEMENTS / row_len).max(1)
}

/// `y = act(y)`.
fn activate(kernels: Kernels, act: Option<Unary>, y: &mut [f32]) {
    match act {
        None => {}
        Some(Unary::Silu) => kernels.silu(y),
        Some(Unary::Gelu) => kernels.gelu(y),
        Some(Unary::GeluTanh) => kernels.gelu_tanh(y),
        Some(Unary::Relu) => kernels.relu(y),
        Some(Unary::Sigmoid) => kernels.sigmoid(y),
    }
}

/// `gate = act(gate) * up`.
fn gated(kernels: Kernels, act: Option<Unary>, gate: &mut [f32], up: &[f32]) {
    if act == Some(Unary::Silu) {
        return kernels.silu_mul(gate, up);
    }
    activate(kernels, act, gate);
    kernels.mul(gate, up);
}

/// Whether every operand has a format and a layout that the op's steps can read. What `Op::infer` refuses is not asked.
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn supports(machine: Machine, op: &Op, args: &[&TensorDesc]) -> bool {
    match *op {
        Op::Linear { .. } => linear::supports(machine, args, 1),
        Op::LinearGroup { n, .. } => linear::supports(machine, args, usize::from(n)),
        Op::LinearGlu { .. } => linear::supports(machine, args, 2),
        Op::ExpertLinear => moe::supports(args),
        Op::GetRows | Op::Embed => args.first().is_some_and(|table| rows::has_whole_blocks(table)),
        Op::RmsNorm { .. }
        | Op::AddRmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::AddLayerNorm { .. }
        | Op::Binary(_)
        | Op::Unary(_)
        | Op::Glu(_)
        | Op::Rope(_)
        | Op::KvWrite
        | Op::CachedAttention { .. }
        | Op::Attention { .. }
        | Op::CausalConv1d
        | Op::Conv2d { .. }
        | Op::DepthwiseConv2d { .. }
        | Op::DepthwiseConv1d
        | Op::MaskRows { .. }
        | Op::AddScaled { .. }
        | Op::RelPositions
        | Op::RelPosAttention { .. }
        | Op::Route(_)
        | Op::ExpertSum
        | Op::Copy
        | Op::Concat => true,
    }
}

/// A step that makes every row of its first result from the same row of its first operand, in place.
struct ByRow<F> {
    /// `None`: planned in place, `y` already holds x.
    x: Option<View<f32>>,
    y: ViewMut<f32>,
    /// What is done to a row, which is given with its number.
    f: F,
}

impl<F: Fn(usize, &mut [f32]) + Send + Sync> ByRow<F> {
    fn new(cx: &Lowering<'_>, at: At<'_>, f: F) -> Result<Self> {
        Ok(Self { x: cx.unless_in_place(at.arg(0), at.out(0))?, y: cx.result(at.out(0))?, f })
    }
}

#[allow(unsafe_code, reason = "writes rows of results")]
impl<F: Fn(usize, &mut [f32]) + Send + Sync> Step for ByRow<F> {
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
            (self.f)(r, y);
        }
    }
}
