//! [`GraphBuilder`]: one method per op. Shape errors do not interrupt model code: the first one is kept with its
//! caller's line and returned by [`GraphBuilder::finish`]; until then every method returns a tensor that can be passed on.

mod inputs;

use std::cell::{Cell, RefCell};
use std::panic::Location;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Graph, Name, Node, TensorIds};
use crate::op::{Binary, DeltaRule, HeadMap, Op, Precision, Rope, Route, ScanDecay, Unary, Window};
use crate::shape::{MAX_RANK, Shape};
use crate::state::{KvCache, Pending, State, StateLayout};
use crate::tensor::{Input, NodeId, Source, StateId, Tensor, TensorDesc, TensorId};
use crate::weights::Weight;
pub use inputs::{BatchInputs, ClipInputs, Spans};

/// Room to begin with: enough for a decoder of 16 layers.
const USUAL_TENSORS: usize = 768;
const USUAL_NODES: usize = 320;

/// Builds one [`Graph`]. Methods take `&self`, so calls nest.
pub struct GraphBuilder<'a> {
    memory: &'a StateLayout,
    precision: Cell<Precision>,
    layer: Cell<Option<u32>>,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    graph: Graph,
    inputs: Leaves,
    weights: Leaves,
    states: Leaves,
    error: Option<Error>,
    /// Operands of the node that is being added.
    descs: Vec<TensorDesc>,
}

/// The tensors of one kind of source, by the source's number: who asks for one twice gets the same tensor.
#[derive(Default)]
struct Leaves(Vec<Option<TensorId>>);

impl Leaves {
    fn of(&mut self, number: usize) -> &mut Option<TensorId> {
        if number >= self.0.len() {
            self.0.resize(number + 1, None);
        }
        &mut self.0[number]
    }
}

/// Keys and values after this call's rows were written: what attention reads.
#[derive(Clone, Copy, Debug)]
pub struct Kv {
    k: Tensor,
    v: Tensor,
}

/// The operands of [`Op::SsmScan`].
#[derive(Clone, Copy, Debug)]
pub struct SsmScan {
    /// Inputs, `[n_tokens, n_head, head_dim]`.
    pub x: Tensor,
    /// Step sizes before the bias and the softplus.
    pub dt: Tensor,
    /// From inputs to the state, `[n_tokens, n_group, d_state]`.
    pub b: Tensor,
    /// From the state to results, `[n_tokens, n_group, d_state]`.
    pub c: Tensor,
    /// Bias of the step sizes.
    pub dt_bias: Weight,
    /// Logarithms of the decays per unit of step size; negative.
    pub a: Weight,
    /// From inputs straight to results.
    pub d: Weight,
    /// What `dt`, `a` and `d` belong to.
    pub decay: ScanDecay,
}

impl<'a> GraphBuilder<'a> {
    /// A builder of graphs over these states.
    pub fn new(memory: &'a StateLayout) -> Self {
        let mut inner = Inner::default();
        inner.graph.tensors.reserve(USUAL_TENSORS);
        inner.graph.nodes.reserve(USUAL_NODES);
        inner.weights.0.reserve(USUAL_NODES);
        Self { memory, precision: Cell::default(), layer: Cell::default(), inner: RefCell::new(inner) }
    }

    /// From here on products keep the precision of their activations: see [`Precision::Kept`].
    pub fn precise_products(&self) {
        self.precision.set(Precision::Kept);
    }

    /// From here on rows of products do not depend on how many there are: see [`Precision::Alone`].
    pub fn rows_alone(&self) {
        self.precision.set(Precision::Alone);
    }

    /// From here on nodes belong to this layer, or to none: a session can be told which backend has which layer.
    pub fn layer(&self, layer: impl Into<Option<usize>>) {
        self.layer.set(layer.into().map(|i| u32::try_from(i).expect("models have far fewer layers")));
    }

    /// The finished graph, or the first error with the line of the caller that made it.
    pub fn finish(self) -> Result<Graph> {
        let inner = self.inner.into_inner();
        match inner.error {
            Some(e) => Err(e),
            None => check_states_written_once(&inner.graph).map(|()| inner.graph),
        }
    }

    /// The shape of a tensor.
    pub fn shape(&self, t: Tensor) -> Shape {
        self.inner.borrow().graph.tensor(t.0).shape
    }

    /// What the caller supplies for `input`; asking twice gives the same tensor. It has one shape in a graph.
    #[track_caller]
    pub fn input(&self, input: Input, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let mut inner = self.inner.borrow_mut();
        let Inner { graph, inputs, error, .. } = &mut *inner;
        let desc = TensorDesc::contiguous(input.dtype(), shape, Source::Input(input));
        let id = *inputs.of(input.number()).get_or_insert_with(|| graph.push(desc));
        let known = graph.tensor(id).shape;
        if known != shape {
            fail(error, "input", &format!("{input:?} is {known} already, not {shape}"), Location::caller());
        }
        Tensor(id)
    }

    /// An input of a program, f32, which its caller gives by this name.
    #[track_caller]
    pub fn values(&self, name: impl Into<Name>, shape: impl Into<Shape>) -> Tensor {
        self.own_input(Input::Values, name.into(), shape.into())
    }

    /// As [`GraphBuilder::values`], i32: ids and rows.
    #[track_caller]
    pub fn integers(&self, name: impl Into<Name>, shape: impl Into<Shape>) -> Tensor {
        self.own_input(Input::Integers, name.into(), shape.into())
    }

    #[track_caller]
    fn own_input(&self, kind: fn(u16) -> Input, name: Name, shape: Shape) -> Tensor {
        let mut inner = self.inner.borrow_mut();
        let Inner { graph, inputs, error, .. } = &mut *inner;
        let taken = inputs.0.len().saturating_sub(Input::ALL.len());
        let number = u16::try_from(taken).unwrap_or_else(|_| {
            fail(error, "input", "more inputs than a program can have", Location::caller());
            u16::MAX
        });
        if graph.named(&name.to_string()).is_some() {
            fail(error, "input", &format!("two tensors are called {name}"), Location::caller());
        }
        let input = kind(number);
        let id = graph.push(TensorDesc::contiguous(input.dtype(), shape, Source::Input(input)));
        *inputs.of(input.number()) = Some(id);
        graph.names.push((name, id));
        Tensor(id)
    }

    /// A weight as an operand.
    pub fn weight(&self, w: Weight) -> Tensor {
        let mut inner = self.inner.borrow_mut();
        let Inner { graph, weights, .. } = &mut *inner;
        let desc = TensorDesc::contiguous(w.dtype(), w.shape(), Source::Weight(w.id()));
        let known = weights.of(w.id().0 as usize);
        // A model may see a weight under several shapes.
        match *known {
            Some(id) if *graph.tensor(id) == desc => Tensor(id),
            Some(_) | None => Tensor(*known.insert(graph.push(desc))),
        }
    }

    /// Whether states that fold what came before have two rows in every slot.
    fn has_two_rows(&self) -> bool {
        self.memory.specs().iter().any(|spec| spec.n_rows > 1)
    }

    /// A state as an operand: the rows of all slots.
    #[track_caller]
    fn state(&self, s: State) -> Tensor {
        let mut inner = self.inner.borrow_mut();
        let Inner { graph, states, error, .. } = &mut *inner;
        let source = Source::State(s.id);
        let Some(spec) = self.memory.spec(s) else {
            fail(error, "state", "a state of another model", Location::caller());
            return Tensor(graph.push(TensorDesc::contiguous(DType::F32, Shape::from([1]), source)));
        };
        let make = || {
            let n_rows = self.memory.n_slots() * spec.n_rows;
            let shape = spec.shape.stacked(n_rows).expect("the layout checked the state's rank");
            graph.push(TensorDesc::contiguous(spec.dtype, shape, source))
        };
        Tensor(*states.of(s.id.index()).get_or_insert_with(make))
    }

    #[track_caller]
    fn push<const N: usize>(&self, op: Op, args: &[Tensor]) -> [Tensor; N] {
        let mut inner = self.inner.borrow_mut();
        let Inner { graph, descs, error, .. } = &mut *inner;
        let (mut ids, mut outs) = (TensorIds::new(), TensorIds::new());
        descs.clear();
        for &Tensor(id) in args {
            ids.push(id);
            descs.push(*graph.tensor(id));
        }
        let results = match op.infer(descs) {
            Ok(results) => results,
            Err(e) => {
                fail(error, op.spec().name, &e.0, Location::caller());
                return [args[0]; N];
            }
        };
        let node = NodeId(u32::try_from(graph.nodes.len()).expect("graphs have far fewer nodes"));
        for (i, &(dtype, shape)) in (0u8..).zip(&results) {
            outs.push(graph.push(TensorDesc::contiguous(dtype, shape, Source::Node(node, i))));
        }
        let tensors = std::array::from_fn(|i| Tensor(outs[i]));
        graph.nodes.push(Node { op, args: ids, outs, layer: self.layer.get() });
        tensors
    }

    #[track_caller]
    fn push1(&self, op: Op, args: &[Tensor]) -> Tensor {
        let [t] = self.push(op, args);
        t
    }

    /// Marks a result that the caller reads; the first one is the logits or the embeddings.
    pub fn output(&self, t: Tensor) {
        self.inner.borrow_mut().graph.outputs.push(t.0);
    }

    /// Names a tensor, so that tests and `inspect` can ask for it.
    pub fn name(&self, t: Tensor, name: impl Into<Name>) -> Tensor {
        self.inner.borrow_mut().graph.names.push((name.into(), t.0));
        t
    }

    /// [`Op::GetRows`] on a weight.
    #[track_caller]
    pub fn get_rows(&self, table: Weight, ids: Tensor) -> Tensor {
        self.push1(Op::GetRows, &[self.weight(table), ids])
    }

    /// [`Op::GetRows`] on an activation `[n_rows, n]`.
    #[track_caller]
    pub fn select_rows(&self, x: Tensor, ids: Tensor) -> Tensor {
        self.push1(Op::GetRows, &[x, ids])
    }

    /// `x . w^T`.
    #[track_caller]
    pub fn linear(&self, x: Tensor, w: Weight) -> Tensor {
        self.push1(Op::Linear { bias: false, act: None, precision: self.precision.get() }, &[x, self.weight(w)])
    }

    /// `x . w^T + bias`.
    #[track_caller]
    pub fn linear_bias(&self, x: Tensor, w: Weight, bias: Weight) -> Tensor {
        let op = Op::Linear { bias: true, act: None, precision: self.precision.get() };
        self.push1(op, &[x, self.weight(w), self.weight(bias)])
    }

    /// RMS norm over the innermost extent.
    #[track_caller]
    pub fn rms_norm(&self, x: Tensor, w: Weight, eps: f32) -> Tensor {
        self.push1(Op::RmsNorm { eps }, &[x, self.weight(w)])
    }

    /// Layer norm over the innermost extent.
    #[track_caller]
    pub fn layer_norm(&self, x: Tensor, w: Weight, b: Weight, eps: f32) -> Tensor {
        self.push1(Op::LayerNorm { eps }, &[x, self.weight(w), self.weight(b)])
    }

    /// `a + b`; `b` is repeated over the outer extents of `a` that it lacks.
    #[track_caller]
    pub fn add(&self, a: Tensor, b: Tensor) -> Tensor {
        self.push1(Op::Binary(Binary::Add), &[a, b])
    }

    /// `a * b`; `b` is repeated over the outer extents of `a` that it lacks.
    #[track_caller]
    pub fn mul(&self, a: Tensor, b: Tensor) -> Tensor {
        self.push1(Op::Binary(Binary::Mul), &[a, b])
    }

    /// A pointwise function.
    #[track_caller]
    pub fn unary(&self, f: Unary, x: Tensor) -> Tensor {
        self.push1(Op::Unary(f), &[x])
    }

    /// `act(gate) * up`.
    #[track_caller]
    pub fn glu(&self, act: Unary, gate: Tensor, up: Tensor) -> Tensor {
        self.push1(Op::Glu(act), &[gate, up])
    }

    /// Rotary position embedding of `[n_tokens, n_head, head_dim]`.
    #[track_caller]
    pub fn rope(&self, x: Tensor, batch: &BatchInputs, rope: Rope) -> Tensor {
        self.push1(Op::Rope(rope), &[x, batch.positions])
    }

    /// The same where the frequency of pair `i` is divided by `factors[i]`, `[n_rot / 2]`.
    #[track_caller]
    pub fn rope_with_factors(&self, x: Tensor, batch: &BatchInputs, rope: Rope, factors: Weight) -> Tensor {
        self.push1(Op::Rope(rope), &[x, batch.positions, self.weight(factors)])
    }

    /// Stores keys and values of these tokens in their slots.
    #[track_caller]
    pub fn kv_write(&self, cache: KvCache, k: Tensor, v: Tensor, batch: &BatchInputs) -> Kv {
        let write = |x, state| {
            self.push1(Op::KvWrite, &[x, self.state(state), batch.slots, batch.positions, batch.spans.sequences])
        };
        Kv { k: write(k, cache.k), v: write(v, cache.v) }
    }

    /// Causal attention of `q` over the slot's past and these tokens.
    #[track_caller]
    pub fn cached_attention(&self, q: Tensor, kv: Kv, batch: &BatchInputs, scale: f32) -> Tensor {
        self.push1(Op::CachedAttention { scale }, &[q, kv.k, kv.v, batch.slots, batch.positions, batch.spans.sequences])
    }

    /// Bidirectional attention inside windows.
    #[track_caller]
    pub fn attention(&self, [q, k, v]: [Tensor; 3], spans: Spans, scale: f32, window: Window) -> Tensor {
        self.push1(Op::Attention { scale, window }, &[q, k, v, spans.sequences, spans.ranges])
    }

    /// Rows `[n_tokens, n_i]` with those before them that states of fixed extent have not folded: what ops with such states are
    /// to be given, [`Op::JoinPending`]. The rows themselves where the call has none and keeps none.
    #[track_caller]
    pub fn join_pending<const N: usize>(&self, xs: [Tensor; N], pending: Pending, batch: &BatchInputs) -> [Tensor; N] {
        let Some(joined) = batch.joined else { return xs };
        let Some(state) = self.memory.pending(pending) else {
            self.fail(xs[0], "join_pending", "pending rows of another model, or of a session without any".into());
            return xs;
        };
        let n = u8::try_from(N).expect("an op has few arguments");
        let rest = [self.state(state), batch.slots, batch.kept, batch.spans.ranges, joined.ranges];
        let args = [&xs[..], &rest].concat();
        self.push(Op::JoinPending { n, n_rows: joined.n_rows }, &args)
    }

    /// The rows of the call among those that [`GraphBuilder::join_pending`] gave: of `x [n_rows, ..]`, contiguous, `[n_tokens,
    /// ..]`.
    #[track_caller]
    pub fn new_rows(&self, x: Tensor, batch: &BatchInputs) -> Tensor {
        let Some(joined) = batch.joined else { return x };
        let mut dims = self.shape(x).extents();
        let row: usize = dims[1..].iter().product();
        let rows = self.select_rows(self.reshape(x, [dims[0], row]), joined.new_rows);
        dims[0] = self.shape(rows).dim(0);
        self.reshape(rows, Shape::new(&dims).expect("fewer elements than a shape"))
    }

    /// Depthwise convolution over the sequence's own past.
    #[track_caller]
    pub fn causal_conv1d(
        &self,
        x: Tensor,
        w: Weight,
        bias: Option<Weight>,
        state: State,
        batch: &BatchInputs,
    ) -> Tensor {
        let mut args = vec![x, self.weight(w), self.state(state)];
        args.extend(batch.passages());
        args.extend(bias.map(|b| self.weight(b)));
        self.push1(Op::CausalConv1d { bias: bias.is_some(), act: None }, &args)
    }

    /// [`Op::SsmScan`].
    #[track_caller]
    pub fn ssm_scan(&self, scan: SsmScan, state: State, batch: &BatchInputs) -> Tensor {
        let SsmScan { x, dt, b, c, dt_bias, a, d, decay } = scan;
        let [dt_bias, a, d] = [dt_bias, a, d].map(|w| self.weight(w));
        let mut args = vec![x, dt, b, c, dt_bias, a, d, self.state(state)];
        args.extend(batch.passages());
        self.push1(Op::SsmScan { decay }, &args)
    }

    /// [`Op::GatedDelta`] with the rule [`DeltaRule::Gated`].
    #[track_caller]
    pub fn gated_delta(
        &self,
        [q, k, v]: [Tensor; 3],
        [a, b]: [Tensor; 2],
        [scale, bias]: [Weight; 2],
        (heads, l2_eps): (HeadMap, f32),
        state: State,
        batch: &BatchInputs,
    ) -> Tensor {
        let args = [q, k, v, a, b, self.weight(scale), self.weight(bias), self.state(state)];
        let args = [&args[..], &batch.passages()].concat();
        self.push1(Op::GatedDelta { heads, rule: DeltaRule::Gated { l2_eps } }, &args)
    }

    /// [`Op::GatedDelta`] with the rule [`DeltaRule::Given`].
    #[track_caller]
    pub fn given_delta(
        &self,
        [q, k, v]: [Tensor; 3],
        [g, r, p]: [Tensor; 3],
        heads: HeadMap,
        state: State,
        batch: &BatchInputs,
    ) -> Tensor {
        let args = [&[q, k, v, g, r, p, self.state(state)], &batch.passages()[..]].concat();
        self.push1(Op::GatedDelta { heads, rule: DeltaRule::Given }, &args)
    }

    /// Two-dimensional convolution, channels innermost.
    #[track_caller]
    pub fn conv2d(&self, x: Tensor, w: Weight, bias: Weight, stride: u8, pad: u8) -> Tensor {
        let op = Op::Conv2d { stride, pad, act: None, precision: self.precision.get() };
        self.push1(op, &[x, self.weight(w), self.weight(bias)])
    }

    /// [`Op::DepthwiseConv2d`].
    #[track_caller]
    pub fn depthwise_conv2d(&self, x: Tensor, w: Weight, bias: Weight, stride: u8, pad: u8) -> Tensor {
        self.push1(Op::DepthwiseConv2d { stride, pad }, &[x, self.weight(w), self.weight(bias)])
    }

    /// [`Op::DepthwiseConv1d`].
    #[track_caller]
    pub fn depthwise_conv1d(&self, x: Tensor, w: Weight, bias: Weight, spans: Spans) -> Tensor {
        self.push1(Op::DepthwiseConv1d, &[x, self.weight(w), self.weight(bias), spans.sequences, spans.ranges])
    }

    /// Zeros outside of every range; `unit` entries of `ranges` make a row.
    #[track_caller]
    pub fn mask_rows(&self, x: Tensor, ranges: Tensor, unit: u32) -> Tensor {
        self.push1(Op::MaskRows { unit }, &[x, ranges])
    }

    /// `factor * x`.
    #[track_caller]
    pub fn scale(&self, x: Tensor, factor: f32) -> Tensor {
        self.push1(Op::Scale { factor }, &[x])
    }

    /// `a + scale * b`.
    #[track_caller]
    pub fn add_scaled(&self, a: Tensor, b: Tensor, scale: f32) -> Tensor {
        self.push1(Op::AddScaled { scale }, &[a, b])
    }

    /// Sinusoids of the distances between the rows of `x`.
    #[track_caller]
    pub fn rel_positions(&self, x: Tensor) -> Tensor {
        self.push1(Op::RelPositions, &[x])
    }

    /// [`Op::RelPosAttention`]; `bias` are `bias_u` and `bias_v`.
    #[track_caller]
    pub fn rel_pos_attention(
        &self,
        [q, k, v]: [Tensor; 3],
        p: Tensor,
        bias: [Weight; 2],
        spans: Spans,
        scale: f32,
    ) -> Tensor {
        let [u, b] = bias.map(|w| self.weight(w));
        self.push1(Op::RelPosAttention { scale }, &[q, k, v, p, u, b, spans.sequences, spans.ranges])
    }

    /// Ids and weights of the experts of every token.
    #[track_caller]
    pub fn route(&self, logits: Tensor, bias: Option<Weight>, route: Route) -> [Tensor; 2] {
        let args: Vec<Tensor> = std::iter::once(logits).chain(bias.map(|b| self.weight(b))).collect();
        self.push(Op::Route(Route { bias: bias.is_some(), ..route }), &args)
    }

    /// [`Op::ExpertLinear`].
    #[track_caller]
    pub fn expert_linear(&self, x: Tensor, w: Weight, ids: Tensor) -> Tensor {
        self.push1(Op::ExpertLinear, &[x, self.weight(w), ids])
    }

    /// [`Op::ExpertSum`].
    #[track_caller]
    pub fn expert_sum(&self, x: Tensor, weights: Tensor) -> Tensor {
        self.push1(Op::ExpertSum, &[x, weights])
    }

    /// The same elements, stored contiguously.
    #[track_caller]
    pub fn copy(&self, x: Tensor) -> Tensor {
        self.push1(Op::Copy, &[x])
    }

    /// The rows of `a`, then those of `b`.
    #[track_caller]
    pub fn concat(&self, a: Tensor, b: Tensor) -> Tensor {
        self.push1(Op::Concat, &[a, b])
    }

    /// The same elements under another shape, as a view. Where that would need a copy it is an error.
    #[track_caller]
    pub fn reshape(&self, x: Tensor, shape: impl Into<Shape>) -> Tensor {
        let (shape, desc) = (shape.into(), self.desc(x));
        match reshaped_strides(&desc, shape) {
            Some(strides) => self.view(x, shape, strides, 0),
            None => self.fail(x, "reshape", format!("{} cannot be seen as {shape}", desc.shape)),
        }
    }

    /// Extent `i` of the result is extent `order[i]` of `x`, as a view.
    #[track_caller]
    pub fn permute<const N: usize>(&self, x: Tensor, order: [usize; N]) -> Tensor {
        let desc = self.desc(x);
        let mut seen = order;
        seen.sort_unstable();
        if N != desc.shape.rank() || seen != std::array::from_fn(|i| i) {
            return self.fail(x, "permute", format!("{order:?} is not an order of {}", desc.shape));
        }
        let mut strides = [0; MAX_RANK];
        for (s, &o) in strides.iter_mut().zip(&order) {
            *s = desc.strides[o];
        }
        self.view(x, Shape::from(order.map(|o| desc.shape.dim(o))), strides, 0)
    }

    /// `len` entries of one extent from `start` on, as a view.
    #[track_caller]
    pub fn slice(&self, x: Tensor, extent: usize, start: usize, len: usize) -> Tensor {
        let desc = self.desc(x);
        let mut dims = desc.shape.extents();
        let fits = dims.get(extent).is_some_and(|&d| len > 0 && start.checked_add(len).is_some_and(|end| end <= d));
        if !fits {
            return self.fail(x, "slice", format!("{start}..+{len} of extent {extent} does not fit {}", desc.shape));
        }
        dims[extent] = len;
        let shape = Shape::new(&dims).expect("smaller than a shape");
        let offset = u32::try_from(start).expect("start is below an extent") * desc.strides[extent];
        self.view(x, shape, desc.strides, offset)
    }

    /// `N` equal parts of the innermost extent, as views.
    #[track_caller]
    pub fn chunk<const N: usize>(&self, x: Tensor) -> [Tensor; N] {
        let shape = self.shape(x);
        let part = shape.last() / N;
        if part * N != shape.last() {
            return [self.fail(x, "chunk", format!("{shape} does not split into {N}")); N];
        }
        std::array::from_fn(|i| self.slice(x, shape.rank() - 1, i * part, part))
    }

    /// `[.., n_head * head_dim]` seen as `[.., n_head, head_dim]`.
    #[track_caller]
    pub fn split_heads(&self, x: Tensor, n_head: usize) -> Tensor {
        let shape = self.shape(x);
        let mut dims = shape.extents();
        let Some(n) = dims.pop().filter(|n| n_head > 0 && n.is_multiple_of(n_head)) else {
            return self.fail(x, "split_heads", format!("{shape} does not split into {n_head} heads"));
        };
        dims.extend_from_slice(&[n_head, n / n_head]);
        match Shape::new(&dims) {
            Some(split) => self.reshape(x, split),
            None => self.fail(x, "split_heads", format!("{shape} has too many extents")),
        }
    }

    /// `[.., n_head, head_dim]` seen as `[.., n_head * head_dim]`.
    #[track_caller]
    pub fn merge_heads(&self, x: Tensor) -> Tensor {
        let shape = self.shape(x);
        let mut dims = shape.extents();
        let (Some(head_dim), Some(n_head)) = (dims.pop(), dims.pop()) else {
            return self.fail(x, "merge_heads", format!("{shape} has no heads"));
        };
        dims.push(n_head * head_dim);
        self.reshape(x, Shape::new(&dims).expect("fewer extents of the same product"))
    }

    fn desc(&self, x: Tensor) -> TensorDesc {
        *self.inner.borrow().graph.tensor(x.0)
    }

    fn view(&self, x: Tensor, shape: Shape, strides: [u32; MAX_RANK], offset: u32) -> Tensor {
        let mut inner = self.inner.borrow_mut();
        let desc = *inner.graph.tensor(x.0);
        let (of, base) = match desc.source {
            Source::View { of, offset } => (of, offset),
            Source::Weight(_) | Source::State(_) | Source::Input(_) | Source::Node(..) => (x.0, 0),
        };
        let source = Source::View { of, offset: base + offset };
        Tensor(inner.graph.push(TensorDesc { dtype: desc.dtype, shape, strides, source }))
    }

    #[track_caller]
    fn fail(&self, x: Tensor, op: &'static str, msg: String) -> Tensor {
        fail(&mut self.inner.borrow_mut().error, op, &msg, Location::caller());
        x
    }
}

/// Keeps the first error.
fn fail(error: &mut Option<Error>, op: &'static str, msg: &str, at: &Location<'_>) {
    error.get_or_insert_with(|| Error::Graph { at: at.to_string(), op, msg: msg.to_owned() });
}

/// Strides of `desc` seen as `shape`, if no element has to move: every new extent must come from extents that lie
/// densely inside each other.
fn reshaped_strides(desc: &TensorDesc, shape: Shape) -> Option<[u32; MAX_RANK]> {
    if desc.shape.elements() != shape.elements() {
        return None;
    }
    let mut strides = [0; MAX_RANK];
    let mut new = shape.rank();
    let mut old = desc.shape.rank();
    while old > 0 {
        // Widen to the left while the extents are dense.
        let step = desc.strides[old - 1];
        let mut size = desc.shape.dims()[old - 1];
        old -= 1;
        while old > 0 && (desc.shape.dims()[old - 1] == 1 || desc.strides[old - 1] == step * size) {
            size *= desc.shape.dims()[old - 1];
            old -= 1;
        }
        let mut step = step;
        while new > 0 && size.is_multiple_of(shape.dims()[new - 1]) {
            strides[new - 1] = step;
            step *= shape.dims()[new - 1];
            size /= shape.dims()[new - 1];
            new -= 1;
            if size == 1 && (new == 0 || shape.dims()[new - 1] != 1) {
                break;
            }
        }
        if size != 1 {
            return None;
        }
    }
    (new == 0).then_some(strides)
}

fn check_states_written_once(graph: &Graph) -> Result<()> {
    let mut written: Vec<StateId> = Vec::new();
    for node in &graph.nodes {
        let spec = node.op.spec();
        let Some(arg) = spec.mutates else { continue };
        let Source::State(state) = graph.tensor(node.args[arg]).source else {
            return Err(Error::Graph { at: "finish".into(), op: spec.name, msg: "writes what is not a state".into() });
        };
        if written.contains(&state) {
            let msg = format!("state {} is written twice", state.0);
            return Err(Error::Graph { at: "finish".into(), op: spec.name, msg });
        }
        written.push(state);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{GraphKey, Stage};
    use crate::state::{NO_STATES, StateOptions, States};

    const OPTIONS: StateOptions =
        StateOptions { n_slots: 1, n_ctx: 8, kv_dtype: DType::F32, n_pending: 0, two_rows: false };

    #[test]
    fn an_input_has_one_shape() {
        let g = GraphBuilder::new(&NO_STATES);
        let first = g.input(Input::Tokens, [2, 3]);
        assert_eq!(g.input(Input::Tokens, [2, 3]), first);
        g.input(Input::Tokens, [6]);
        let message = g.finish().unwrap_err().to_string();
        assert!(message.contains("builder/mod.rs") && message.contains("input: Tokens is [2, 3] already"), "{message}");
    }

    /// Every element of a view, as its offset in the root, in the order of the shape.
    fn offsets(shape: Shape, strides: [u32; MAX_RANK]) -> Vec<u32> {
        let mut out = vec![0];
        for (&d, stride) in shape.dims().iter().zip(strides) {
            out = out.iter().flat_map(|o| (0..d).map(move |i| o + i * stride)).collect();
        }
        out
    }

    /// Shapes of `n` elements with up to four extents.
    fn shapes(n: usize) -> Vec<Shape> {
        let divisors: Vec<usize> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
        let mut dims: Vec<Vec<usize>> = vec![vec![]];
        let mut all = Vec::new();
        for _ in 0..MAX_RANK {
            dims = dims.iter().flat_map(|d| divisors.iter().map(|&e| [&d[..], &[e]].concat())).collect();
            dims.retain(|d| n.is_multiple_of(d.iter().product()));
            all.extend(dims.iter().filter(|d| d.iter().product::<usize>() == n).filter_map(|d| Shape::new(d)));
        }
        all
    }

    #[test]
    fn a_reshaped_view_keeps_the_order_of_elements() {
        // Slices of a [4, 6, 4] tensor, and transposed ones.
        for (rows, columns, inner) in [(4, 6, 4), (4, 3, 4), (2, 6, 4), (4, 6, 1), (4, 1, 4), (1, 6, 2), (2, 1, 3)] {
            for strides in [[24, 4, 1, 0], [4, 24, 1, 0]] {
                let shape = Shape::from([rows, columns, inner]);
                let desc = TensorDesc { dtype: DType::F32, shape, strides, source: Source::Input(Input::Features) };
                let want = offsets(shape, strides);
                let dense = want.windows(2).all(|w| w[1] == w[0] + 1);
                let mut n_seen = 0;
                for other in shapes(rows * columns * inner) {
                    match reshaped_strides(&desc, other) {
                        Some(strides) => {
                            assert_eq!(offsets(other, strides), want, "{shape} {strides:?} as {other}");
                            n_seen += 1;
                        }
                        None => assert!(!dense && other != shape, "{shape} {strides:?} as {other} is possible"),
                    }
                }
                assert!(n_seen > 0);
            }
        }
    }

    #[test]
    fn views_of_views_look_into_the_root() {
        let g = GraphBuilder::new(&NO_STATES);
        let x = g.input(Input::Features, [4, 6]);
        let view = g.slice(g.permute(g.slice(x, 1, 2, 3), [1, 0]), 0, 1, 2);
        let desc = g.desc(view);
        assert_eq!(desc.source, Source::View { of: x.0, offset: 3 });
        assert_eq!((desc.shape, &desc.strides[..2]), (Shape::from([2, 4]), &[1, 6][..]));
    }

    #[test]
    fn a_state_is_written_once() {
        let mut states = States::new();
        let state = states.conv(0, 3, 4);
        let layout = states.layout(&OPTIONS).unwrap();
        let g = GraphBuilder::new(&layout);
        let key = GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens: 2, n_kv: 8, n_outputs: 1, n_pending: 0 };
        let batch = BatchInputs::new(&g, &key);
        let x = g.input(Input::Embeddings, [2, 4]);
        let w = g.input(Input::Features, [4, 3]);
        let state = g.state(state);
        for _ in 0..2 {
            let [reads, slots, kept, ranges] = batch.passages();
            g.push1(Op::CausalConv1d { bias: false, act: None }, &[x, w, state, reads, slots, kept, ranges]);
        }
        assert!(g.finish().unwrap_err().to_string().contains("state 0 is written twice"));
    }

    #[test]
    fn a_state_of_another_model_is_refused() {
        let [mut own, mut other] = [(); 2].map(|()| States::new());
        let (state, foreign) = (own.conv(0, 3, 4), other.conv(0, 3, 4));
        let layout = own.layout(&OPTIONS).unwrap();
        let g = GraphBuilder::new(&layout);
        g.state(state);
        g.state(foreign);
        let message = g.finish().unwrap_err().to_string();
        assert!(message.contains("builder/mod.rs") && message.contains("a state of another model"), "{message}");
    }
}
