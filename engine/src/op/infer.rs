//! Result shapes and argument checks, one function per family of ops.

use smallvec::{SmallVec, smallvec};

use super::{Binary, DeltaRule, Op, OpSpec, Rope, Route, ScanDecay};
use crate::dtype::DType;
use crate::shape::Shape;
use crate::tensor::TensorDesc;

/// Why operands do not fit an op: expected and found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OpError(pub(crate) String);

/// Format and shape of every result.
pub(crate) type Results = SmallVec<[(DType, Shape); 3]>;

type Outs = Result<Results, OpError>;

impl Op {
    /// Format and shape of every result, or why the arguments do not fit.
    #[deny(clippy::wildcard_enum_match_arm)]
    pub(crate) fn infer(&self, args: &[TensorDesc]) -> Result<Results, OpError> {
        check_layout(&self.spec(), args)?;
        match *self {
            Self::GetRows => get_rows(args),
            Self::Embed => embed(args),
            Self::Linear { bias, .. } => linear(args, 1, bias),
            Self::LinearGroup { n, bias, .. } => linear(args, usize::from(n), bias),
            Self::LinearGlu { .. } => {
                let outs = linear(args, 2, false)?;
                ensure(outs[0] == outs[1], || format!("gate {} and up {} differ", outs[0].1, outs[1].1))?;
                Ok(smallvec![outs[0]])
            }
            Self::RmsNorm { .. } => norm(args, 1, false),
            Self::AddRmsNorm { .. } => norm(args, 1, true),
            Self::LayerNorm { .. } => norm(args, 2, false),
            Self::AddLayerNorm { .. } => norm(args, 2, true),
            Self::Binary(op) => binary(op, args),
            Self::Unary(_) | Self::Scale { .. } => {
                let [x] = arguments(args)?;
                activation("x", x)?;
                Ok(smallvec![(DType::F32, x.shape)])
            }
            Self::Glu(_) => {
                let [gate, up] = arguments(args)?;
                activation("gate", gate)?;
                same_activation("up", up, gate)?;
                Ok(smallvec![(DType::F32, gate.shape)])
            }
            Self::Rope(rope) => rope_shape(rope, args),
            Self::KvWrite => kv_write(args),
            Self::CachedAttention { .. } => cached_attention(args),
            Self::Attention { .. } => attention(args),
            Self::CausalConv1d { bias, .. } => causal_conv1d(args, bias),
            Self::SsmScan { decay } => ssm_scan(args, decay),
            Self::GatedDelta { rule, .. } => gated_delta(args, rule),
            Self::JoinPending { n, n_rows } => join_pending(usize::from(n), n_rows as usize, args),
            Self::Conv2d { stride, pad, .. } => conv2d(usize::from(stride), usize::from(pad), args),
            Self::DepthwiseConv2d { stride, pad } => depthwise_conv2d(usize::from(stride), usize::from(pad), args),
            Self::DepthwiseConv1d => depthwise_conv1d(args),
            Self::MaskRows { unit } => mask_rows(unit, args),
            Self::AddScaled { .. } => {
                let [a, b] = arguments(args)?;
                activation("a", a)?;
                same_activation("b", b, a)?;
                Ok(smallvec![(DType::F32, a.shape)])
            }
            Self::RelPositions => rel_positions(args),
            Self::RelPosAttention { .. } => rel_pos_attention(args),
            Self::Route(route) => route_shapes(route, args),
            Self::ExpertLinear => expert_linear(args),
            Self::ExpertSum => expert_sum(args),
            Self::Copy => {
                let [x] = arguments(args)?;
                activation("x", x)?;
                Ok(smallvec![(DType::F32, x.shape)])
            }
            Self::Concat => concat(args),
        }
    }
}

fn ensure(ok: bool, msg: impl FnOnce() -> String) -> Result<(), OpError> {
    if ok { Ok(()) } else { Err(OpError(msg())) }
}

fn arguments<const N: usize>(args: &[TensorDesc]) -> Result<&[TensorDesc; N], OpError> {
    args.try_into().map_err(|_| OpError(format!("want {N} arguments, got {}", args.len())))
}

/// What [`OpSpec`] says about the strides and extents of arguments.
fn check_layout(spec: &OpSpec, args: &[TensorDesc]) -> Result<(), OpError> {
    let strided = (0..).zip(args).find(|(i, a)| spec.any_strides != Some(*i) && !a.has_contiguous_rows());
    ensure(strided.is_none(), || format!("argument {} has strided rows", strided.map_or(0, |(i, _)| i)))?;
    let few = args.first().filter(|a| a.shape.rank() < spec.min_rank);
    ensure(few.is_none(), || {
        let found = few.map_or(String::new(), |a| a.shape.to_string());
        format!("argument 0: want at least {} extents, got {found}", spec.min_rank)
    })
}

fn activation(name: &str, t: &TensorDesc) -> Result<(), OpError> {
    ensure(t.dtype == DType::F32, || format!("{name}: want F32, got {}", t.dtype))
}

fn float_weight(name: &str, t: &TensorDesc) -> Result<(), OpError> {
    let is_float = matches!(t.dtype, DType::F32 | DType::F16 | DType::BF16);
    ensure(is_float, || format!("{name}: want a float format, got {}", t.dtype))
}

fn shaped(name: &str, t: &TensorDesc, want: impl Into<Shape>) -> Result<(), OpError> {
    let want = want.into();
    ensure(t.shape == want, || format!("{name}: want {want}, got {}", t.shape))
}

fn same_activation(name: &str, t: &TensorDesc, like: &TensorDesc) -> Result<(), OpError> {
    activation(name, t)?;
    shaped(name, t, like.shape)
}

fn indices(name: &str, t: &TensorDesc, want: impl Into<Shape>) -> Result<(), OpError> {
    ensure(t.dtype == DType::I32, || format!("{name}: want I32, got {}", t.dtype))?;
    shaped(name, t, want)
}

fn rank<const N: usize>(name: &str, t: &TensorDesc) -> Result<[usize; N], OpError> {
    let dims: Result<[u32; N], _> = t.shape.dims().try_into();
    let dims = dims.map_err(|_| OpError(format!("{name}: want {N} extents, got {}", t.shape)))?;
    Ok(dims.map(|d| d as usize))
}

fn shape(dims: &[usize]) -> Result<Shape, OpError> {
    Shape::new(dims).ok_or_else(|| OpError(format!("result {dims:?} is not a shape")))
}

fn get_rows(args: &[TensorDesc]) -> Outs {
    let [table, ids] = arguments(args)?;
    let [_, n] = rank("table", table)?;
    ensure(table.dtype != DType::I32, || "table: want a float or quantized format, got I32".into())?;
    ensure(ids.dtype == DType::I32, || format!("ids: want I32, got {}", ids.dtype))?;
    let mut dims = ids.shape.extents();
    dims.push(n);
    Ok(smallvec![(DType::F32, shape(&dims)?)])
}

fn embed(args: &[TensorDesc]) -> Outs {
    let [table, ids, rows] = arguments(args)?;
    let outs = get_rows(&[*table, *ids])?;
    activation("rows", rows)?;
    shaped("rows", rows, outs[0].1)?;
    Ok(outs)
}

fn linear(args: &[TensorDesc], n: usize, bias: bool) -> Outs {
    let want = 1 + n * (1 + usize::from(bias));
    ensure(args.len() == want, || format!("want {want} arguments, got {}", args.len()))?;
    let x = &args[0];
    activation("x", x)?;
    let mut outs = Results::new();
    for (i, w) in args[1..=n].iter().enumerate() {
        let [n_out, k] = rank("w", w)?;
        ensure(w.dtype != DType::I32, || "w: want a float or quantized format, got I32".into())?;
        ensure(k == x.shape.last(), || format!("w {} does not fit x {}", w.shape, x.shape))?;
        ensure(w.is_contiguous(), || "w: want contiguous rows".into())?;
        if bias {
            activation("bias", &args[1 + n + i])?;
            shaped("bias", &args[1 + n + i], [n_out])?;
        }
        outs.push((DType::F32, with_last(x, n_out)?));
    }
    Ok(outs)
}

fn norm(args: &[TensorDesc], n_weights: usize, residual: bool) -> Outs {
    let want = 1 + usize::from(residual) + n_weights;
    ensure(args.len() == want, || format!("want {want} arguments, got {}", args.len()))?;
    let x = &args[0];
    activation("x", x)?;
    if residual {
        same_activation("residual", &args[1], x)?;
    }
    for w in &args[want - n_weights..] {
        activation("w", w)?;
        let is_end = w.shape.rank() >= 1 && x.shape.dims().ends_with(w.shape.dims());
        ensure(is_end && w.is_contiguous(), || format!("w: want an end of {}, got {}", x.shape, w.shape))?;
    }
    Ok(smallvec![(DType::F32, x.shape); 1 + usize::from(residual)])
}

fn binary(op: Binary, args: &[TensorDesc]) -> Outs {
    let [a, b] = arguments(args)?;
    activation("a", a)?;
    activation("b", b)?;
    let (da, db) = (a.shape.dims(), b.shape.dims());
    ensure(da.ends_with(db), || format!("{op:?}: b {} is not an end of a {}", b.shape, a.shape))?;
    ensure(da.len() == db.len() || b.is_contiguous(), || format!("{op:?}: a repeated b is contiguous"))?;
    Ok(smallvec![(DType::F32, a.shape)])
}

fn rope_shape(rope: Rope, args: &[TensorDesc]) -> Outs {
    let ([x, positions], factors) = match args {
        [x, positions, factors] => ([x, positions], Some(factors)),
        _ => (arguments(args)?.each_ref(), None),
    };
    activation("x", x)?;
    let [n_tokens, _, head_dim] = rank("x", x)?;
    indices("positions", positions, [n_tokens])?;
    let n_rot = rope.n_rot as usize;
    if let Some(factors) = factors {
        activation("factors", factors)?;
        ensure(factors.shape.dims() == [rope.n_rot / 2], || {
            format!("want {} factors, got {}", n_rot / 2, factors.shape)
        })?;
    }
    ensure(n_rot.is_multiple_of(2) && n_rot <= head_dim && n_rot > 0, || {
        format!("n_rot {n_rot} does not fit head_dim {head_dim}")
    })?;
    Ok(smallvec![(DType::F32, x.shape)])
}

fn kv_write(args: &[TensorDesc]) -> Outs {
    let [x, state, slots, positions, sequences] = arguments(args)?;
    activation("x", x)?;
    let [n_tokens, n_head_kv, head_dim] = rank("x", x)?;
    let [n_slots, n_ctx, ..] = rank::<4>("state", state)?;
    shaped("state", state, [n_slots, n_ctx, n_head_kv, head_dim])?;
    ensure(matches!(state.dtype, DType::F16 | DType::F32), || format!("state: want F16 or F32, got {}", state.dtype))?;
    rows_of_slots(n_tokens, slots, positions)?;
    indices("sequences", sequences, [n_tokens])?;
    Ok(smallvec![(state.dtype, state.shape)])
}

fn cached_attention(args: &[TensorDesc]) -> Outs {
    let [q, k, v, slots, positions, sequences] = arguments(args)?;
    activation("q", q)?;
    let [n_tokens, n_head, head_dim] = rank("q", q)?;
    let [_, _, n_head_kv, kv_dim] = rank("k", k)?;
    ensure(kv_dim == head_dim && n_head.is_multiple_of(n_head_kv), || {
        format!("k {} does not fit q {}", k.shape, q.shape)
    })?;
    shaped("v", v, k.shape)?;
    ensure(v.dtype == k.dtype, || format!("v: want {}, got {}", k.dtype, v.dtype))?;
    rows_of_slots(n_tokens, slots, positions)?;
    indices("sequences", sequences, [n_tokens])?;
    Ok(smallvec![(DType::F32, q.shape)])
}

fn attention(args: &[TensorDesc]) -> Outs {
    let [q, k, v, sequences, ranges] = arguments(args)?;
    activation("q", q)?;
    let [n_tokens, ..] = rank::<3>("q", q)?;
    same_activation("k", k, q)?;
    same_activation("v", v, q)?;
    indices("sequences", sequences, [n_tokens])?;
    pairs("ranges", ranges)?;
    Ok(smallvec![(DType::F32, q.shape)])
}

/// A slot for every sequence, a position for every row.
fn rows_of_slots(n_tokens: usize, slots: &TensorDesc, positions: &TensorDesc) -> Result<(), OpError> {
    let [n_seqs] = rank("slots", slots)?;
    indices("slots", slots, [n_seqs])?;
    indices("positions", positions, [n_tokens])
}

/// The beginning and the end of every sequence; their number.
fn pairs(name: &str, t: &TensorDesc) -> Result<usize, OpError> {
    let [n, _] = rank(name, t)?;
    indices(name, t, [n, 2])?;
    Ok(n)
}

/// The passages of sequences through a state of fixed extent, `reads, slots, kept, ranges`.
fn passages(args: &[TensorDesc; 4]) -> Result<(), OpError> {
    let [reads, slots, kept, ranges] = args;
    let n_seqs = pairs("ranges", ranges)?;
    [("reads", reads), ("slots", slots), ("kept", kept)]
        .into_iter()
        .try_for_each(|(name, t)| indices(name, t, [n_seqs]))
}

fn causal_conv1d(args: &[TensorDesc], bias: bool) -> Outs {
    let (args, biases) = args.split_at(args.len() - usize::from(bias));
    let [x, w, state, rest @ ..] = arguments::<7>(args)?;
    activation("x", x)?;
    activation("w", w)?;
    let [_, width] = rank("x", x)?;
    let [_, d_conv] = rank("w", w)?;
    shaped("w", w, [width, d_conv])?;
    let [n_slots, history, _] = rank("state", state)?;
    shaped("state", state, [n_slots, history, width])?;
    ensure(history + 1 == d_conv, || format!("state {} does not fit w {}", state.shape, w.shape))?;
    activation("state", state)?;
    passages(rest)?;
    for bias in biases {
        activation("bias", bias)?;
        shaped("bias", bias, [width])?;
    }
    Ok(smallvec![(DType::F32, x.shape)])
}

fn ssm_scan(args: &[TensorDesc], decay: ScanDecay) -> Outs {
    let [x, dt, b, c, dt_bias, a, d, state, rest @ ..] = arguments::<12>(args)?;
    activation("x", x)?;
    let [n_tokens, n_head, head_dim] = rank("x", x)?;
    let [_, n_group, d_state] = rank("b", b)?;
    for (name, t) in [("b", b), ("c", c)] {
        activation(name, t)?;
        shaped(name, t, [n_tokens, n_group, d_state])?;
    }
    ensure(n_head.is_multiple_of(n_group), || format!("{n_head} heads do not fit {n_group} groups"))?;
    let n_steps = match decay {
        ScanDecay::Channel => n_head * head_dim,
        ScanDecay::Head => n_head,
    };
    let (dt_shape, a_shape) = match decay {
        ScanDecay::Channel => (shape(&[n_tokens, n_head, head_dim])?, shape(&[n_steps, d_state])?),
        ScanDecay::Head => (shape(&[n_tokens, n_head])?, shape(&[n_head])?),
    };
    for (name, t, want) in [
        ("dt", dt, dt_shape),
        ("dt_bias", dt_bias, shape(&[n_steps])?),
        ("a", a, a_shape),
        ("d", d, shape(&[n_steps])?),
    ] {
        activation(name, t)?;
        shaped(name, t, want)?;
    }
    let [n_slots, ..] = rank::<4>("state", state)?;
    activation("state", state)?;
    shaped("state", state, [n_slots, n_head, d_state, head_dim])?;
    passages(rest)?;
    Ok(smallvec![(DType::F32, x.shape)])
}

fn gated_delta(args: &[TensorDesc], rule: DeltaRule) -> Outs {
    let want = 3 + rule.n_args() + 5;
    ensure(args.len() == want, || format!("want {want} arguments, got {}", args.len()))?;
    let ([q, k, v], rest) = args.split_first_chunk().expect("as many as were counted");
    let (gates, [state, rest @ ..]) = rest.split_last_chunk::<5>().expect("as many as were counted");
    let [n_tokens, n_key, k_dim] = rank("q", q)?;
    let [_, n_value, v_dim] = rank("v", v)?;
    activation("q", q)?;
    same_activation("k", k, q)?;
    activation("v", v)?;
    shaped("v", v, [n_tokens, n_value, v_dim])?;
    ensure(n_value.is_multiple_of(n_key), || format!("v {} does not fit q {}", v.shape, q.shape))?;
    let per_head = |name, t: &TensorDesc| rows_of(name, t, n_tokens, &[n_value]);
    let decay = |name, t: &TensorDesc| rows_of(name, t, n_tokens, &[n_value, n_value * k_dim]);
    match (rule, gates) {
        (DeltaRule::Gated { .. }, [a, b, scale, bias]) => {
            decay("a", a)?;
            per_head("b", b)?;
            activation("scale", scale)?;
            shaped("scale", scale, [n_value])?;
            activation("bias", bias)?;
            shaped("bias", bias, [a.shape.elements() / n_tokens])?;
        }
        (DeltaRule::Given, [g, r, p]) => {
            decay("g", g)?;
            same_activation("r", r, q)?;
            same_activation("p", p, q)?;
        }
        (DeltaRule::Gated { .. } | DeltaRule::Given, _) => unreachable!("as many as were counted"),
    }
    activation("state", state)?;
    let [n_slots, _, _, width] = rank("state", state)?;
    ensure(v_dim.is_multiple_of(width), || format!("state {} does not fit v {}", state.shape, v.shape))?;
    shaped("state", state, [n_slots, n_value * (v_dim / width), k_dim, width])?;
    passages(rest)?;
    Ok(smallvec![(DType::F32, v.shape)])
}

/// Checks that `t` has `n_tokens` rows, each of one of these numbers of elements in any extents.
fn rows_of(name: &str, t: &TensorDesc, n_tokens: usize, elements: &[usize]) -> Result<(), OpError> {
    activation(name, t)?;
    let fits =
        t.shape.rank() > 1 && t.shape.dim(0) == n_tokens && elements.iter().any(|n| n * n_tokens == t.shape.elements());
    ensure(fits, || format!("{name}: want {n_tokens} rows of {elements:?} elements, got {}", t.shape))
}

fn join_pending(n: usize, n_rows: usize, args: &[TensorDesc]) -> Outs {
    ensure(n > 0 && args.len() == n + 5, || format!("want {} arguments, got {}", n + 5, args.len()))?;
    let (xs, rest) = args.split_at(n);
    let [pending, slots, kept, ranges, joined] = arguments(rest)?;
    let [n_tokens, _] = rank("x", &xs[0])?;
    let mut results = Results::new();
    for x in xs {
        activation("x", x)?;
        let [_, width] = rank("x", x)?;
        shaped("x", x, [n_tokens, width])?;
        results.push((DType::F32, shape(&[n_rows, width])?));
    }
    ensure(n_rows >= n_tokens, || format!("{n_rows} rows do not hold {n_tokens} new ones"))?;
    activation("pending", pending)?;
    let [n_slots, n_pending, _] = rank("pending", pending)?;
    shaped("pending", pending, [n_slots, n_pending, xs.iter().map(|x| x.shape.last()).sum()])?;
    let n_seqs = pairs("ranges", ranges)?;
    indices("joined", joined, [n_seqs, 2])?;
    indices("slots", slots, [n_seqs])?;
    indices("kept", kept, [n_seqs])?;
    Ok(results)
}

fn conv2d(stride: usize, pad: usize, args: &[TensorDesc]) -> Outs {
    let [x, w, bias] = arguments(args)?;
    activation("x", x)?;
    let [n, height, width, c_in] = rank("x", x)?;
    let [c_out, w_in, kh, kw] = rank("w", w)?;
    float_weight("w", w)?;
    ensure(w_in == c_in, || format!("w {} does not fit x {}", w.shape, x.shape))?;
    activation("bias", bias)?;
    shaped("bias", bias, [c_out])?;
    let [h_out, w_out] = convolved([height, width], [kh, kw], stride, pad)?;
    Ok(smallvec![(DType::F32, shape(&[n, h_out, w_out, c_out])?)])
}

/// Extents of an image behind a convolution.
fn convolved(size: [usize; 2], kernel: [usize; 2], stride: usize, pad: usize) -> Result<[usize; 2], OpError> {
    let extent = |i: usize| {
        let room = (size[i] + 2 * pad).checked_sub(kernel[i]).filter(|_| stride > 0 && kernel[i] > 0);
        room.map(|room| room / stride + 1)
    };
    match (extent(0), extent(1)) {
        (Some(h), Some(w)) => Ok([h, w]),
        _ => Err(OpError(format!("kernel {kernel:?} does not fit an image of {size:?}"))),
    }
}

fn depthwise_conv2d(stride: usize, pad: usize, args: &[TensorDesc]) -> Outs {
    let [x, w, bias] = arguments(args)?;
    activation("x", x)?;
    let [n, height, width, channels] = rank("x", x)?;
    let [_, _, kh, kw] = rank("w", w)?;
    float_weight("w", w)?;
    shaped("w", w, [channels, 1, kh, kw])?;
    activation("bias", bias)?;
    shaped("bias", bias, [channels])?;
    let [h_out, w_out] = convolved([height, width], [kh, kw], stride, pad)?;
    Ok(smallvec![(DType::F32, shape(&[n, h_out, w_out, channels])?)])
}

fn depthwise_conv1d(args: &[TensorDesc]) -> Outs {
    let [x, w, bias, sequences, ranges] = arguments(args)?;
    activation("x", x)?;
    float_weight("w", w)?;
    let [n_tokens, width] = rank("x", x)?;
    let [_, d_conv] = rank("w", w)?;
    shaped("w", w, [width, d_conv])?;
    ensure(d_conv % 2 == 1, || format!("w: want an odd kernel, got {}", w.shape))?;
    activation("bias", bias)?;
    shaped("bias", bias, [width])?;
    indices("sequences", sequences, [n_tokens])?;
    pairs("ranges", ranges)?;
    Ok(smallvec![(DType::F32, x.shape)])
}

fn mask_rows(unit: u32, args: &[TensorDesc]) -> Outs {
    let [x, ranges] = arguments(args)?;
    activation("x", x)?;
    ensure(unit > 0, || format!("x {} has no rows of {unit}", x.shape))?;
    pairs("ranges", ranges)?;
    Ok(smallvec![(DType::F32, x.shape)])
}

fn rel_positions(args: &[TensorDesc]) -> Outs {
    let [x] = arguments(args)?;
    activation("x", x)?;
    let [n_tokens, n] = rank("x", x)?;
    ensure(n.is_multiple_of(2) && n_tokens > 0, || format!("x: want tokens of even width, got {}", x.shape))?;
    Ok(smallvec![(DType::F32, shape(&[2 * n_tokens - 1, n])?)])
}

fn rel_pos_attention(args: &[TensorDesc]) -> Outs {
    let [q, k, v, p, bias_u, bias_v, sequences, ranges] = arguments(args)?;
    activation("q", q)?;
    let [n_tokens, n_head, head_dim] = rank("q", q)?;
    same_activation("k", k, q)?;
    same_activation("v", v, q)?;
    activation("p", p)?;
    ensure(n_tokens > 0, || "q: no tokens".into())?;
    shaped("p", p, [2 * n_tokens - 1, n_head, head_dim])?;
    for (name, bias) in [("bias_u", bias_u), ("bias_v", bias_v)] {
        activation(name, bias)?;
        shaped(name, bias, [n_head, head_dim])?;
    }
    indices("sequences", sequences, [n_tokens])?;
    pairs("ranges", ranges)?;
    Ok(smallvec![(DType::F32, q.shape)])
}

/// The extents of `t` with the last one replaced.
fn with_last(t: &TensorDesc, last: usize) -> Result<Shape, OpError> {
    t.shape.with_last(last).ok_or_else(|| OpError(format!("{} with rows of {last} is not a shape", t.shape)))
}

/// The extents of `t` with the last one replaced by two.
fn with_last_two(t: &TensorDesc, last: [usize; 2]) -> Result<Shape, OpError> {
    let mut dims = t.shape.extents();
    dims.pop();
    dims.extend_from_slice(&last);
    shape(&dims)
}

fn route_shapes(route: Route, args: &[TensorDesc]) -> Outs {
    let want = 1 + usize::from(route.bias);
    ensure(args.len() == want, || format!("want {want} arguments, got {}", args.len()))?;
    let logits = &args[0];
    activation("logits", logits)?;
    let (n_expert, n_used) = (logits.shape.last(), route.n_used as usize);
    ensure((1..=n_expert).contains(&n_used), || format!("{n_used} of {n_expert} experts"))?;
    for bias in &args[1..] {
        activation("bias", bias)?;
        shaped("bias", bias, [n_expert])?;
    }
    let out = with_last(logits, n_used)?;
    Ok(smallvec![(DType::I32, out), (DType::F32, out)])
}

fn expert_linear(args: &[TensorDesc]) -> Outs {
    let [x, w, ids] = arguments(args)?;
    activation("x", x)?;
    let [_, n, k] = rank("w", w)?;
    ensure(w.dtype != DType::I32 && w.is_contiguous(), || "w: want contiguous rows of weights".into())?;
    ensure(ids.dtype == DType::I32 && ids.shape.rank() >= 1, || format!("ids: want I32, got {}", ids.dtype))?;
    let n_used = ids.shape.last();
    let fits = x.shape == with_last(ids, k)? || x.shape == with_last_two(ids, [n_used, k])?;
    ensure(fits, || format!("x {} does not fit w {} and ids {}", x.shape, w.shape, ids.shape))?;
    Ok(smallvec![(DType::F32, with_last_two(ids, [n_used, n])?)])
}

fn expert_sum(args: &[TensorDesc]) -> Outs {
    let [x, weights] = arguments(args)?;
    activation("x", x)?;
    activation("weights", weights)?;
    ensure(weights.shape.rank() >= 1, || format!("x {} has no experts", x.shape))?;
    let n = x.shape.last();
    shaped("x", x, with_last_two(weights, [weights.shape.last(), n])?)?;
    Ok(smallvec![(DType::F32, with_last(weights, n)?)])
}

fn concat(args: &[TensorDesc]) -> Outs {
    let [a, b] = arguments(args)?;
    activation("a", a)?;
    activation("b", b)?;
    let (da, db) = (a.shape.dims(), b.shape.dims());
    ensure(da.len() == db.len() && da[1..] == db[1..], || {
        format!("a {} and b {} differ in more than the outermost extent", a.shape, b.shape)
    })?;
    let mut dims = a.shape.extents();
    dims[0] += db[0] as usize;
    Ok(smallvec![(DType::F32, shape(&dims)?)])
}
