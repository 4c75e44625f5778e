//! Lowering: every node becomes steps with all addresses resolved. [`lower`] has one line per op.

#![deny(clippy::wildcard_enum_match_arm)]

use std::sync::Arc;

use engine::backend::{Bindings, Segment};
use engine::error::Result;
use engine::op::Op;
use engine::plan::MemoryPlan;
use engine::tensor::TensorDesc;

use super::context::{At, Lowering, Machine, Needs};
use super::ops::{attention, conv, depthwise, elementwise, linear, moe, norm, rel_pos, rope, rows};
use super::pool::Pool;
use super::region::Step;

/// Scratch memory that the op wants.
pub(super) fn needs(machine: Machine, op: &Op, args: &[&TensorDesc]) -> Needs {
    match *op {
        Op::Linear { .. } | Op::LinearGroup { .. } => linear::needs(machine, args, false),
        Op::LinearGlu { .. } => linear::needs(machine, args, true),
        Op::CachedAttention { .. } => attention::needs_cached(machine, args),
        Op::Attention { .. } => attention::needs_full(machine, args),
        Op::CausalConv1d => conv::needs_causal(args),
        Op::Conv2d { .. } => conv::needs_2d(machine, args),
        Op::DepthwiseConv2d { .. } | Op::DepthwiseConv1d => depthwise::needs(args),
        Op::RelPosAttention { .. } => rel_pos::needs(args),
        Op::Route(_) => moe::needs_route(args),
        Op::ExpertLinear => moe::needs_linear(machine, args),
        Op::GetRows
        | Op::Embed
        | Op::RmsNorm { .. }
        | Op::AddRmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::AddLayerNorm { .. }
        | Op::Binary(_)
        | Op::Unary(_)
        | Op::Glu(_)
        | Op::Rope(_)
        | Op::KvWrite
        | Op::MaskRows { .. }
        | Op::AddScaled { .. }
        | Op::RelPositions
        | Op::ExpertSum
        | Op::Copy
        | Op::Concat => Needs::default(),
    }
}

/// Appends the steps of one node.
fn lower_node(cx: &mut Lowering<'_>, at: At<'_>) -> Result<()> {
    match at.node.op {
        Op::GetRows | Op::Embed => rows::get_rows(cx, at),
        Op::Linear { bias, act } => linear::linear(cx, at, bias, act),
        Op::LinearGroup { n, bias } => linear::group(cx, at, usize::from(n), bias),
        Op::LinearGlu { act } => linear::glu(cx, at, act),
        Op::RmsNorm { eps } | Op::LayerNorm { eps } => norm::norm(cx, at, eps),
        Op::AddRmsNorm { eps } | Op::AddLayerNorm { eps } => norm::add_norm(cx, at, eps),
        Op::Binary(op) => elementwise::binary(cx, at, op),
        Op::Unary(act) => elementwise::unary(cx, at, act),
        Op::Glu(act) => elementwise::glu(cx, at, act),
        Op::Rope(rope) => rope::rope(cx, at, rope),
        Op::KvWrite => rows::kv_write(cx, at),
        Op::CachedAttention { scale } => attention::cached(cx, at, scale),
        Op::Attention { scale, window } => attention::full(cx, at, scale, window),
        Op::CausalConv1d => conv::causal_conv1d(cx, at),
        Op::Conv2d { stride, pad, act } => conv::conv2d(cx, at, usize::from(stride), usize::from(pad), act),
        Op::DepthwiseConv2d { stride, pad } => depthwise::conv2d(cx, at, usize::from(stride), usize::from(pad)),
        Op::DepthwiseConv1d => depthwise::conv1d(cx, at),
        Op::MaskRows { unit } => rows::mask(cx, at, unit as usize),
        Op::AddScaled { scale } => elementwise::add_scaled(cx, at, scale),
        Op::RelPositions => rel_pos::positions(cx, at),
        Op::RelPosAttention { scale } => rel_pos::attention(cx, at, scale),
        Op::Route(route) => moe::route(cx, at, route),
        Op::ExpertLinear => moe::linear(cx, at),
        Op::ExpertSum => moe::sum(cx, at),
        Op::Copy => rows::copy(cx, at),
        Op::Concat => rows::concat(cx, at),
    }
}

/// What a segment becomes.
pub(super) struct Lowered {
    /// Steps in order.
    pub(super) steps: Vec<Box<dyn Step>>,
    /// The number of each step's node.
    pub(super) nodes: Vec<usize>,
}

/// The steps of a segment.
pub(super) fn lower(
    machine: Machine,
    pool: &Arc<Pool>,
    segment: &Segment<'_>,
    plan: &MemoryPlan,
    bind: &Bindings<'_>,
) -> Result<Lowered> {
    let mut nodes = Vec::new();
    let mut cx = Lowering::new(machine, pool, segment, plan, bind)?;
    if segment.poison && segment.nodes.start == 0 {
        cx.poison(std::slice::from_ref(&(plan.input_bytes..plan.arena_bytes)))?;
    }
    for (id, node) in segment.graph.walk().skip(segment.nodes.start).take(segment.nodes.len()) {
        lower_node(&mut cx, At { id, node })?;
        if segment.poison {
            cx.poison(plan.dead_after(id))?;
        }
        nodes.resize(cx.n_steps(), id.index());
    }
    Ok(Lowered { steps: cx.finish(), nodes })
}
