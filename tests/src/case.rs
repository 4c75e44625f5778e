//! [`OpCase`]: one or a few ops with their operands, and how far a backend may be off.

use std::ops::Range;

use engine::DType;
use engine::Shape;
use engine::builder::{BatchInputs, GraphBuilder};
use engine::key::{GraphKey, Stage};
use engine::op::Precision;
use engine::state::{KvCache, Pending, Role, State, StateLayout, StateOptions, StateSpec, States};
use engine::tensor::{Input, Tensor};
use engine::weights::Weight;
use kernels::cpu::{Kernels, Operand};

use crate::compare::{largest, nmse};
use crate::files::random_weight;
use crate::rng::Rng;

/// Half a unit in the last place of 1 in f32, squared: what one rounding adds to a normalised squared error at most.
const EPS_SQUARED: f64 = 1.0 / (1u64 << 48) as f64;

/// For ops with a few roundings per element.
pub const ELEMENTWISE: Tolerance = Tolerance::Nmse(1e-12);

/// How a backend computes: what its results may be off by follows from it.
#[derive(Clone, Copy)]
pub enum Arithmetic {
    /// f64, and every result rounded to f32 once.
    Double,
    /// The kernels of the CPU, which round activations to 8 bits for some formats.
    Cpu(Kernels),
    /// Products of activations as they are and weights decoded exactly, in f32 sums.
    Single,
}

impl Arithmetic {
    /// What rounding activations adds to the normalised squared error of a product of `m` rows.
    fn rounding(self, dtype: DType, m: usize, precision: Precision) -> f64 {
        let format = dtype.format().expect("every weight has a format");
        match self {
            Self::Double | Self::Single => 0.0,
            Self::Cpu(kernels) => match kernels.operand(format, m) {
                Operand::Rows | Operand::Panels => 0.0,
                Operand::Q8 | Operand::Q8K if precision == Precision::Kept && m > FEW => 0.0,
                Operand::Q8 | Operand::Q8K => QUANTIZED_TO_8_BITS,
            },
        }
    }
}

/// Largest normalised mean squared error.
#[derive(Clone, Copy, Debug)]
pub enum Tolerance {
    /// The same for every backend.
    Nmse(f64),
    /// Matrix products of `m` rows with `k` elements, in as many of which a result has a part.
    Product {
        /// Format of the weights.
        dtype: DType,
        /// Rows of activations.
        m: usize,
        /// Elements of a sum.
        k: usize,
        /// Factor: products that are multiplied add their errors.
        factor: f64,
        /// What the case asks for.
        precision: Precision,
    },
    /// Largest difference instead, as a share of the largest value: of a result, and of a state.
    Largest([f64; 2]),
}

impl Tolerance {
    /// Sums of `n` products: each of the partial sums, at most as large as the result in the mean, is rounded. The factor
    /// covers results that are small by cancellation.
    pub fn sums(n: usize) -> Self {
        Self::Nmse(sums(n))
    }

    /// The error of a result or a state, and what is allowed with this arithmetic.
    pub fn error(self, arithmetic: Arithmetic, is_state: bool, got: &[f32], want: &[f32]) -> [f64; 2] {
        if let Arithmetic::Double = arithmetic {
            return [nmse(got, want), REFERENCE];
        }
        match self {
            Self::Nmse(allowed) => [nmse(got, want), allowed],
            Self::Product { dtype, m, k, factor, precision } => {
                let m = if precision == Precision::Alone { 1 } else { m };
                [nmse(got, want), factor * (sums(k) + arithmetic.rounding(dtype, m, precision))]
            }
            Self::Largest(allowed) => [largest(got, want), allowed[usize::from(is_state)]],
        }
    }
}

/// Most rows that backends may round where precision is asked for.
const FEW: usize = 8;

fn sums(n: usize) -> f64 {
    8.0 * (n + 8) as f64 * EPS_SQUARED
}

/// The interpreter against itself, fused and unfused: both round results to f32 once.
const REFERENCE: f64 = 4.0 * EPS_SQUARED;

/// Range of activations of products. Its mean is not 0, so that no result is small by cancellation, neither with weights
/// around 0 nor with weights around another mean.
pub const PRODUCT_RANGE: [f32; 2] = [-0.5, 1.5];

/// Activations uniform in [`PRODUCT_RANGE`] as multiples of amax / 127: the error is uniform in half a level, its variance
/// `(1.5 / 127)^2 / 12` at most, against a mean square of `0.5^2 + 1 / 3`. In the mean over activations that is the share
/// of every result, whatever the weights; the factor covers the few results of a case.
const QUANTIZED_TO_8_BITS: f64 = 3.0 * (1.5 / 127.0) * (1.5 / 127.0) / 12.0 / (0.25 + 1.0 / 3.0);

/// A weight: shape, format and range of its elements.
pub struct WeightArg {
    /// The format.
    pub dtype: DType,
    /// The extents.
    pub shape: Shape,
    /// Range of elements in float formats.
    pub range: [f32; 2],
}

/// An activation: shape and range of its elements.
pub struct InputArg {
    /// The extents.
    pub shape: Shape,
    /// Range of elements.
    pub range: [f32; 2],
}

/// A sequence of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    /// Its slot.
    pub slot: usize,
    /// Tokens before this call.
    pub n_past: usize,
    /// Real tokens of this call; 0 for a sequence that pads the batch.
    pub length: usize,
    /// The slot whose states of fixed extent it continues from, where there is a past.
    pub read: usize,
    /// After how many of its rows such states are stored, pending ones included.
    pub kept: usize,
    /// Pending rows that come before its tokens.
    pub n_pending: usize,
}

impl Sequence {
    /// One that continues its own slot and keeps all of its tokens.
    pub fn new(slot: usize, n_past: usize, length: usize) -> Self {
        Self { slot, n_past, length, read: slot, kept: length, n_pending: 0 }
    }
}

/// Sequences in slots.
#[derive(Clone, Debug)]
pub struct BatchArg {
    /// Slots of the memory.
    pub n_slots: usize,
    /// Positions per slot.
    pub n_ctx: usize,
    /// Rows, padding included.
    pub n_tokens: usize,
    /// The sequences, whose rows lie in a line.
    pub seqs: Vec<Sequence>,
    /// Whether rows that are not kept stay pending, and pending ones come before new ones.
    pub joins: bool,
}

impl BatchArg {
    /// The rows of every sequence.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let rows = |seq: &Sequence| {
            let start = end;
            end += seq.length;
            start..end
        };
        self.seqs.iter().map(rows).collect()
    }

    /// Pending and new rows of every sequence together.
    pub fn joined(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let rows = |seq: &Sequence| {
            let start = end;
            end += if seq.length > 0 { seq.n_pending + seq.length } else { 0 };
            start..end
        };
        self.seqs.iter().map(rows).collect()
    }

    /// Rows of the joined line beside those of the call, some of them padding; 0 where nothing is pending or kept.
    pub fn n_pending(&self) -> usize {
        let joins = |s: &Sequence| s.n_pending > 0 || s.kept != s.length;
        let n: usize = self.seqs.iter().map(|s| s.n_pending).sum();
        if self.joins && self.seqs.iter().any(joins) { n + 2 } else { 0 }
    }

    /// The key of a call of this shape.
    pub fn key(&self, stage: Stage) -> GraphKey {
        let size = |n: usize| u32::try_from(n).expect("cases are small");
        GraphKey {
            stage,
            n_seqs: size(self.seqs.len()),
            n_tokens: size(self.n_tokens),
            n_kv: size(self.n_ctx),
            n_outputs: size(self.n_tokens),
            n_pending: size(self.n_pending()),
        }
    }
}

/// The operands of a case as the builder's handles.
pub struct Args {
    /// Activations, in the order of the case.
    pub x: Vec<Tensor>,
    /// Weights, in the order of the case.
    pub w: Vec<Weight>,
    /// States of fixed extent, in the order of the case.
    pub s: Vec<State>,
    /// Attention caches, in the order of the case.
    pub kv: Vec<KvCache>,
    /// Pending rows, in the order of the case.
    pub pending: Vec<Pending>,
    /// Positions, slots and spans; there if the case has a batch.
    pub batch: Option<BatchInputs>,
    /// Raw inputs, in the order of the case.
    pub raw: Vec<Tensor>,
}

impl Args {
    /// Positions, slots and spans.
    pub fn batch(&self) -> &BatchInputs {
        self.batch.as_ref().expect("the case has a batch")
    }
}

type Build = Box<dyn Fn(&GraphBuilder<'_>, &Args) -> Vec<Tensor> + Send + Sync>;

/// One row of the op table.
pub struct OpCase {
    /// Unique; the seed of all random numbers.
    pub name: String,
    /// Activations.
    pub inputs: Vec<InputArg>,
    /// Weights.
    pub weights: Vec<WeightArg>,
    /// What is remembered of a sequence.
    pub states: States,
    /// States of fixed extent.
    pub s: Vec<State>,
    /// Attention caches.
    pub kv: Vec<KvCache>,
    /// Pending rows.
    pub pending: Vec<Pending>,
    /// Most of them.
    pub n_pending: usize,
    /// Format of attention caches.
    pub kv_dtype: DType,
    /// Sequences.
    pub batch: Option<BatchArg>,
    /// Whether the batch is fed with vectors and ids together.
    pub stage: Stage,
    /// Whether products keep the precision of their activations.
    pub precision: Precision,
    /// Inputs with given words.
    pub raw: Vec<(Input, Shape, Vec<u32>)>,
    /// The fusion rule that must apply once or more; without, none may.
    pub rule: Option<&'static str>,
    /// How far a backend may be off.
    pub tolerance: Tolerance,
    /// Makes the nodes and returns what is compared.
    pub build: Build,
}

impl OpCase {
    /// A case without operands.
    pub fn new(
        name: impl Into<String>,
        tolerance: Tolerance,
        build: impl Fn(&GraphBuilder<'_>, &Args) -> Vec<Tensor> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            inputs: Vec::new(),
            weights: Vec::new(),
            states: States::new(),
            s: Vec::new(),
            kv: Vec::new(),
            pending: Vec::new(),
            n_pending: 0,
            kv_dtype: DType::F32,
            batch: None,
            stage: Stage::Tokens,
            precision: Precision::Fast,
            raw: Vec::new(),
            rule: None,
            tolerance,
            build: Box::new(build),
        }
    }

    /// Adds an activation, uniform in -1..1.
    #[must_use]
    pub fn input(self, shape: impl Into<Shape>) -> Self {
        self.input_in(shape, [-1.0, 1.0])
    }

    /// Adds an activation, uniform in a range.
    #[must_use]
    pub fn input_in(mut self, shape: impl Into<Shape>, range: [f32; 2]) -> Self {
        self.inputs.push(InputArg { shape: shape.into(), range });
        self
    }

    /// Adds a weight, uniform in -1..1 or of random blocks.
    #[must_use]
    pub fn weight(mut self, dtype: DType, shape: impl Into<Shape>) -> Self {
        self.weights.push(WeightArg { dtype, shape: shape.into(), range: [-1.0, 1.0] });
        self
    }

    /// Adds a weight, uniform in a range.
    #[must_use]
    pub fn weight_in(mut self, dtype: DType, dims: &[usize], range: [f32; 2]) -> Self {
        let shape = Shape::new(dims).expect("cases are small");
        self.weights.push(WeightArg { dtype, shape, range });
        self
    }

    /// Adds keys and values of one layer.
    #[must_use]
    pub fn kv(mut self, dtype: DType, n_head_kv: usize, head_dim: usize) -> Self {
        self.kv.push(self.states.kv(0, n_head_kv, head_dim));
        self.kv_dtype = dtype;
        self
    }

    /// Adds the state of a convolution.
    #[must_use]
    pub fn conv_state(mut self, d_conv: usize, width: usize) -> Self {
        self.s.push(self.states.conv(0, d_conv, width));
        self
    }

    /// Adds the state of a selective scan.
    #[must_use]
    pub fn ssm_state(mut self, n_head: usize, d_state: usize, head_dim: usize) -> Self {
        self.s.push(self.states.ssm(0, n_head, d_state, head_dim));
        self
    }

    /// Adds the state of a delta net.
    #[must_use]
    pub fn delta_state(mut self, n_head: usize, k_dim: usize, v_dim: usize) -> Self {
        self.s.push(self.states.delta(0, n_head, k_dim, v_dim));
        self
    }

    /// Adds at most `n_pending` pending rows of this width.
    #[must_use]
    pub fn pending_rows(mut self, n_pending: usize, width: usize) -> Self {
        self.pending.push(self.states.pending(0, width));
        self.n_pending = n_pending;
        self
    }

    /// Adds positions, slots and spans.
    #[must_use]
    pub fn batch(mut self, batch: BatchArg) -> Self {
        self.batch = Some(batch);
        self
    }

    /// Adds an input with given words.
    #[must_use]
    pub fn raw(mut self, input: Input, shape: impl Into<Shape>, words: Vec<u32>) -> Self {
        self.raw.push((input, shape.into(), words));
        self
    }

    /// Lets products keep the precision of their activations.
    #[must_use]
    pub fn precise(mut self) -> Self {
        self.precision = Precision::Kept;
        if let Tolerance::Product { precision, .. } = &mut self.tolerance {
            *precision = Precision::Kept;
        }
        self.name.push_str(", precise");
        self
    }

    /// Makes rows of products what they are alone.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.precision = Precision::Alone;
        if let Tolerance::Product { precision, .. } = &mut self.tolerance {
            *precision = Precision::Alone;
        }
        self.name.push_str(", alone");
        self
    }

    /// Says which fusion rule must apply.
    #[must_use]
    pub fn fuses(mut self, rule: &'static str) -> Self {
        self.rule = Some(rule);
        self
    }

    /// The states in the sizes of the batch.
    pub fn layout(&self) -> StateLayout {
        let (n_slots, n_ctx) = self.batch.as_ref().map_or((1, 1), |b| (b.n_slots, b.n_ctx));
        self.states
            .layout(&StateOptions {
                n_slots,
                n_ctx,
                kv_dtype: self.kv_dtype,
                n_pending: self.n_pending,
                two_rows: false,
            })
            .expect("cases are small")
    }

    /// The elements of every activation.
    pub fn input_values(&self) -> Vec<Vec<f32>> {
        let mut rng = Rng::named(&format!("{} inputs", self.name));
        self.inputs.iter().map(|i| rng.floats(i.shape.elements(), i.range)).collect()
    }

    /// Elements of activations and weights: how large the case is.
    pub fn n_elements(&self) -> usize {
        let inputs = self.inputs.iter().map(|input| input.shape.elements());
        inputs.chain(self.weights.iter().map(|weight| weight.shape.elements())).sum()
    }

    /// The bytes of every weight.
    pub fn weight_bytes(&self) -> Vec<Vec<u8>> {
        let mut rng = Rng::named(&format!("{} weights", self.name));
        self.weights.iter().map(|w| random_weight(&mut rng, w.dtype, w.shape.elements(), w.range)).collect()
    }

    /// The bytes of every state before the call: the past of every sequence is random, all else is NaN.
    pub fn state_bytes(&self) -> Vec<Vec<u8>> {
        let Some(batch) = &self.batch else { return Vec::new() };
        let mut rng = Rng::named(&format!("{} states", self.name));
        let one = |spec: &StateSpec| {
            let mut bytes = vec![0xff; spec.bytes() * batch.n_slots];
            for seq in batch.seqs.iter().filter(|s| s.length > 0 && s.n_past > 0) {
                // Rows of positions, or all of a recurrent state.
                let rows = if spec.role.is_recurrent() { spec.shape.dim(0) } else { seq.n_past };
                let past =
                    random_weight(&mut rng, spec.dtype, rows * spec.shape.elements() / spec.shape.dim(0), [-1.0, 1.0]);
                let is_read = spec.role.is_recurrent() && spec.role != Role::Pending;
                let slot = if is_read { seq.read } else { seq.slot };
                bytes[slot * spec.bytes()..][..past.len()].copy_from_slice(&past);
            }
            bytes
        };
        self.layout().specs().iter().map(one).collect()
    }
}
