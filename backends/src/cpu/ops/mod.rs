//! The steps, by family of ops. [`prepare`] has a line for each op. What families share is here and in `by_row`: how rows
//! are cut into chunks, and pointwise functions.

mod attention;
mod by_row;
mod conv;
mod delta;
mod depthwise;
mod elementwise;
mod linear;
mod moe;
mod norm;
mod passages;
mod pending;
mod rel_pos;
mod rope;
mod rows;
mod scan;

use engine::op::{Op, Precision, Unary};
use engine::tensor::TensorDesc;
use kernels::cpu::Kernels;

use super::context::Prepared;
use super::machine::Machine;

/// Activations of one chunk: some microseconds of work, so that claiming it costs little. Few under Miri, where shapes are
/// small and chunks shall still meet.
const CHUNK_ELEMENTS: usize = if cfg!(miri) { 16 } else { 16 * 1024 };

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

/// How an op runs on these operands, which `Op::infer` accepts; `None` if their formats or layouts are not what its steps
/// read. One line per op.
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn prepare(machine: Machine, op: &Op, args: &[&TensorDesc]) -> Option<Prepared> {
    match *op {
        Op::GetRows | Op::Embed => rows::get_rows(args),
        Op::Linear { act, precision, .. } => linear::linear(machine, args, act, precision),
        Op::LinearGroup { n, precision, .. } => linear::group(machine, args, usize::from(n), precision),
        Op::LinearGlu { act, precision } => linear::glu(machine, args, act, precision),
        Op::RmsNorm { eps } | Op::LayerNorm { eps } => Some(norm::norm(eps)),
        Op::AddRmsNorm { eps } | Op::AddLayerNorm { eps } => Some(norm::add_norm(eps)),
        Op::Binary(op) => Some(elementwise::binary(args, op)),
        Op::Unary(act) => Some(elementwise::unary(act)),
        Op::Glu(act) => Some(elementwise::glu(act)),
        Op::Rope(rope) => Some(rope::rope(args, rope)),
        Op::KvWrite => Some(rows::kv_write(args)),
        Op::CachedAttention { scale } => Some(attention::cached(machine, args, scale)),
        Op::Attention { scale, window } => Some(attention::full(machine, args, scale, window)),
        Op::CausalConv1d { bias, act } => Some(conv::causal_conv1d(args, bias, act)),
        Op::SsmScan { decay } => Some(scan::ssm_scan(args, decay)),
        Op::GatedDelta { heads, rule } => Some(delta::gated_delta(machine, args, heads, rule)),
        Op::JoinPending { n, .. } => Some(pending::join(args, usize::from(n))),
        // In f32 whatever the precision.
        Op::Conv2d { stride, pad, act, precision: Precision::Fast | Precision::Kept | Precision::Alone } => {
            conv::conv2d(machine, args, usize::from(stride), usize::from(pad), act)
        }
        Op::DepthwiseConv2d { stride, pad } => depthwise::conv2d(args, usize::from(stride), usize::from(pad)),
        Op::DepthwiseConv1d => depthwise::conv1d(args),
        Op::MaskRows { unit } => Some(rows::mask(args, unit as usize)),
        Op::Scale { factor } => Some(elementwise::scale(factor)),
        Op::AddScaled { scale } => Some(elementwise::add_scaled(scale)),
        Op::RelPositions => Some(rel_pos::positions(args)),
        Op::RelPosAttention { scale } => Some(rel_pos::attention(args, scale)),
        Op::Route(route) => Some(moe::route(args, route)),
        Op::ExpertLinear => moe::linear(machine, args),
        Op::ExpertSum => Some(moe::sum()),
        Op::Copy => Some(rows::copy()),
        Op::Concat => Some(rows::concat()),
    }
}
