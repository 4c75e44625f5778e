//! [`Op`]: every operation of the engine, what it means and the order of its arguments. Result shapes are in `infer`.
//!
//! Every operand has contiguous innermost rows, but for the one that [`OpSpec::any_strides`] names. Activations are f32.
//!
//! The rows of a call, `n_tokens` of them, lie in a line, those of one sequence (or clip) behind each other. `sequences
//! [n_tokens]` says to which sequence a row belongs, -1 for padding; `ranges [n_seqs, 2]` where each sequence begins and ends.
//! Ops that touch state skip padding, and what other ops compute for it is undefined and never read.
//!
//! An op with a state of fixed extent takes the *passage* of every sequence through it, `reads, slots, kept [n_seqs]`: it
//! continues from row `reads[s]` of the state, -1 being zeros, and stores in row `slots[s]` what the state is after `kept[s]`
//! rows of the sequence. Later rows are computed, and leave no trace. No row is read or written for two sequences.

mod infer;

/// A pointwise function of one variable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unary {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`, the exact form.
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

/// A pointwise function of two variables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a * b`.
    Mul,
}

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RopePairs {
    /// `(i, i + n_rot / 2)`: GPT-NeoX, and `rotate_half` in transformers.
    Halves,
    /// `(2 i, 2 i + 1)`: the original RoFormer.
    Interleaved,
}

/// Rotary position embedding: pair `i` turns by `position * theta_base^(-2 i / n_rot)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rope {
    /// Rotated elements at the start of each head; even.
    pub n_rot: u32,
    /// Base of the frequencies.
    pub theta_base: f32,
    /// Which elements form a pair.
    pub pairs: RopePairs,
}

/// Which keys a query of [`Op::Attention`] may see. Padding keys are never seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Window {
    /// All of the sequence.
    Full,
    /// The keys of the query's own block, blocks of this many tokens from the start of the sequence.
    Blocks(u32),
}

/// How the scores of experts follow from the router's logits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Gating {
    /// `1 / (1 + exp(-x))` of each expert by itself.
    Sigmoid,
    /// Softmax over all experts.
    Softmax,
}

/// The choice of experts for a token: the `n_used` of highest `gating(logits) + bias`, the lower number first where two are
/// equal. Their weights are the scores without the bias.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Route {
    /// Experts that a token is sent to.
    pub n_used: u32,
    /// From logits to scores.
    pub gating: Gating,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether the weights are divided by `sum + norm_eps`; else they are the scores themselves.
    pub normalize: bool,
    /// Added to the sum.
    pub norm_eps: f32,
    /// Factor of the weights, applied last.
    pub scale: f32,
}

/// What has a step size and a decay of its own in [`Op::SsmScan`]. With `h` a head, `c` one of its channels and `n` an element
/// of the state:
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ScanDecay {
    /// Every channel and element, `exp(step[c] * a[c, n])`. `dt [n_tokens, n_head, head_dim]`, `dt_bias` and `d
    /// [n_head * head_dim]`, `a [n_head * head_dim, d_state]`; what is a head is only a matter of layout.
    Channel,
    /// Every head, `exp(step[h] * a[h])`. `dt [n_tokens, n_head]`, `dt_bias`, `d` and `a [n_head]`.
    Head,
}

/// Which key head a value head of an [`Op::GatedDelta`] goes with, where there are `n` value heads for each of `n_key` heads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HeadMap {
    /// Value head `j` with key head `j / n`, as checkpoints have them.
    Interleaved,
    /// Value head `j` with key head `j mod n_key`: the values of a key apart.
    Tiled,
}

/// How an [`Op::GatedDelta`] changes the matrix `S [k_dim, v_dim]` of a value head in a row, and which arguments it takes
/// between `v` and the state.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum DeltaRule {
    /// `[.., a, b, scale, bias, ..]`: what `S` holds under the key decays, and is replaced by the value in part:
    ///
    /// ```text
    /// q' = q / sqrt(sum q^2 + l2_eps) / sqrt(k_dim)     k' = k / sqrt(sum k^2 + l2_eps)
    /// w = exp(scale softplus(a + bias))                 beta = 1 / (1 + exp(-b))
    /// S <- diag(w) S      S <- S + k' (beta (v - k' . S))^T      y = q' . S
    /// ```
    ///
    /// `b` and `scale` have a value for every value head. `a` and `bias` have one too, or one for each of its `k_dim` rows of
    /// `S`. Source: Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks"; transformers,
    /// `torch_recurrent_gated_delta_rule`; with a decay for each row: Kimi Team 2025, "Kimi Linear".
    Gated {
        /// Added to the sums of squares.
        l2_eps: f32,
    },
    /// `[.., g, r, p, ..]`: what `S` holds under `r` is added under `p`, all vectors as they are:
    ///
    /// ```text
    /// S <- diag(exp(g)) S + p (r . S)^T + k v^T      y = q . S
    /// ```
    ///
    /// `r . S` is of `S` before it decays. `g` has a value for every value head, or for each of its rows of `S`; `r` and `p`
    /// are like `k`. Source: Peng et al. 2025, "RWKV-7 Goose", section 4.
    Given,
}

impl DeltaRule {
    /// Number of the arguments between `v` and the state.
    pub const fn n_args(self) -> usize {
        match self {
            Self::Gated { .. } => 4,
            Self::Given => 3,
        }
    }
}

/// How exact the products of an op are: what a model asks for with
/// [`crate::builder::GraphBuilder::precise_products`], and a session with [`crate::builder::GraphBuilder::rows_alone`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Precision {
    /// Activations may be rounded to what multiplies fastest with these weights.
    #[default]
    Fast,
    /// Activations keep their precision where there are many rows of them. Audio encoders ask for it: what is lost there is
    /// lost for every word. With a few rows a backend may round as always, if the time is that of reading the weights anyway
    /// and its rule is the same for every call; each backend says where its few end.
    Kept,
    /// Every row is, bit for bit, what it is with [`Precision::Fast`] in a call of that row alone.
    Alone,
}

/// Every operation. The variant documents its arguments in order; shapes are outermost first.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Op {
    /// `[table, ids]`: row `ids[..]` of `table [n_rows, n]`, decoded to f32. `ids` i32 `[..]` gives `[.., n]`.
    GetRows,
    /// `[table, ids, rows]`: row `ids[..]` of `table [n_rows, n]`, or row `-1 - ids[..]` of `rows [.., n]` where the id is
    /// negative. As many `rows` as `ids`.
    Embed,
    /// `[x, w]` or `[x, w, bias]`: `act(x . w^T + bias)`. `x [.., k]`, `w [n, k]`, `bias [n]` gives `[.., n]`.
    Linear {
        /// Whether there is a third argument.
        bias: bool,
        /// Applied last.
        act: Option<Unary>,
        /// How exact the product is.
        precision: Precision,
    },
    /// `[x, w_0, .., w_(n-1)]` or `[x, w_0, .., bias_0, ..]`: `n` products of the same `x`, each with its own result.
    LinearGroup {
        /// Number of products.
        n: u8,
        /// Whether every product has a bias.
        bias: bool,
        /// How exact the products are.
        precision: Precision,
    },
    /// `[x, gate, up]`: `act(x . gate^T) * (x . up^T)`.
    LinearGlu {
        /// The gate's function.
        act: Unary,
        /// How exact the products are.
        precision: Precision,
    },
    /// `[x, w]`: `x / sqrt(mean(x^2) + eps) * w`, the mean over the innermost extent. `w`, as all weights of norms, has the
    /// innermost extent of `x`, or more of the inner ones: a weight for each of several groups.
    RmsNorm {
        /// Added to the mean of squares.
        eps: f32,
    },
    /// `[x, residual, w]`: two results, `sum = x + residual` and the RMS norm of `sum`.
    AddRmsNorm {
        /// Added to the mean of squares.
        eps: f32,
    },
    /// `[x, w, b]`: `(x - mean) / sqrt(variance + eps) * w + b` over the innermost extent.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `[x, residual, w, b]`: two results, `sum = x + residual` and the layer norm of `sum`.
    AddLayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// `[a, b]`: pointwise; `b` has the shape of `a` or of its innermost extents and is repeated over the others.
    Binary(Binary),
    /// `[x]`: pointwise.
    Unary(Unary),
    /// `[gate, up]`: `act(gate) * up`.
    Glu(Unary),
    /// `[x, positions]`, or `[x, positions, factors]`: rotates each head. `x [n_tokens, n_head, head_dim]`, `positions
    /// [n_tokens]`; the frequency of pair `i` is divided by `factors[i]`, `[n_rot / 2]`.
    Rope(Rope),
    /// `[x, state, slots, positions, sequences]`: stores row `t` at `state[slots[sequences[t]], positions[t]]`.
    /// `x [n_tokens, n_head_kv, head_dim]`, `state [n_slots, n_ctx, n_head_kv, head_dim]`, `slots [n_seqs]`. The result is
    /// the state.
    KvWrite,
    /// `[q, k, v, slots, positions, sequences]`: `softmax(scale q . k^T) v` over rows `0 ..= positions[t]` of the slot of row
    /// `t`'s sequence. `q [n_tokens, n_head, head_dim]`; `k`, `v` are states as written by [`Op::KvWrite`]; query head `h`
    /// reads head `h * n_head_kv / n_head`. Result like `q`.
    CachedAttention {
        /// Factor of the scores.
        scale: f32,
    },
    /// `[q, k, v, sequences, ranges]`: bidirectional attention inside windows of a sequence; `q`, `k`, `v` are `[n_tokens,
    /// n_head, head_dim]`.
    Attention {
        /// Factor of the scores.
        scale: f32,
        /// Which keys a query sees.
        window: Window,
    },
    /// `[x, w, state, reads, slots, kept, ranges]` or `[.., bias]`: depthwise convolution over a sequence's own past,
    /// `y[t] = act(bias + sum_j w[:, j] * x[t - (d_conv - 1) + j])`, newest tap last. `x [n_tokens, width]`, `w [width, d_conv]`,
    /// `bias [width]`; `state [n_slots, d_conv - 1, width]` holds the last inputs, oldest first.
    CausalConv1d {
        /// Whether there is a last argument.
        bias: bool,
        /// Applied last.
        act: Option<Unary>,
    },
    /// `[x, dt, b, c, dt_bias, a, d, state, reads, slots, kept, ranges]`: selective scan of a state-space model. For every token
    /// in turn, `step = softplus(dt + dt_bias)`, then for every channel `p` of a head
    /// `S[n, p] = exp(step * a) S[n, p] + step * b[n] x[p]` and `y[p] = sum_n c[n] S[n, p] + d x[p]`.
    /// `x [n_tokens, n_head, head_dim]`, `b` and `c [n_tokens, n_group, d_state]`, head `h` with group `h * n_group / n_head`;
    /// `state [n_slots, n_head, d_state, head_dim]`. Result like `x`.
    /// Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2; Dao and Gu 2024, arXiv:2405.21060, section 2.
    SsmScan {
        /// What `dt`, `a` and `d` belong to.
        decay: ScanDecay,
    },
    /// `[q, k, v, .., state, reads, slots, kept, ranges]`: for every value head a matrix that each row changes and then reads,
    /// as the rule says. `q`, `k [n_tokens, n_key, k_dim]`, `v [n_tokens, n_value, v_dim]`, result like `v`. The rule's other
    /// arguments have `n_tokens` rows (weights none), of any extents that hold one value for every value head or row of its
    /// matrix. `state [n_slots, n_value * n_tiles, k_dim, v_dim / n_tiles]`: the columns of a matrix lie in tiles.
    GatedDelta {
        /// Which key head a value head goes with.
        heads: HeadMap,
        /// How the matrices change.
        rule: DeltaRule,
    },
    /// `[x_0, .., x_(n-1), pending, slots, kept, ranges, joined]`: the rows of a sequence that are pending, then its new ones, which
    /// lie in the rows `ranges[s]` of every `x_i [n_tokens, n_i]`. Results `[n_rows, n_i]`: rows `joined[s]` are those of sequence
    /// `s`, as many of them pending ones as it has more than new ones. Row `i` of `pending [n_slots, n_pending, sum n_i]`
    /// holds, side by side, what row `i` of the pending ones gives to every result. The first `kept[s]` of all rows of a sequence
    /// are folded by the ops behind this one; the others are stored as its pending rows.
    JoinPending {
        /// Number of arguments with rows, and of results.
        n: u8,
        /// Rows of the results.
        n_rows: u32,
    },
    /// `[x, w, bias]`: cross-correlation with zero border, channels innermost. `x [n, h, w, c_in]`,
    /// `w [c_out, c_in, kh, kw]`, `bias [c_out]` gives `[n, h', w', c_out]`, `h' = (h + 2 pad - kh) / stride + 1`.
    Conv2d {
        /// Step between outputs, both directions.
        stride: u8,
        /// Zeros around the image.
        pad: u8,
        /// Applied last.
        act: Option<Unary>,
        /// How exact the products with the kernel are.
        precision: Precision,
    },
    /// `[x, w, bias]`: every channel convolved with its own kernel, with zero border. `x [n, h, w, c]`, `w [c, 1, kh, kw]`,
    /// `bias [c]` gives `[n, h', w', c]` as [`Op::Conv2d`].
    DepthwiseConv2d {
        /// Step between outputs, both directions.
        stride: u8,
        /// Zeros around the image.
        pad: u8,
    },
    /// `[x, w, bias, sequences, ranges]`: every channel convolved with its own centred kernel over the rows of its sequence,
    /// `y[t] = bias + sum_j w[:, j] * x[t + j - (d_conv - 1) / 2]`. `x [n_tokens, width]`, `w [width, d_conv]` with odd
    /// `d_conv`, `bias [width]`.
    DepthwiseConv1d,
    /// `[x, ranges]`: rows of `x [n_rows, ..]` that lie in none of `ranges[s, 0] / unit .. ceil(ranges[s, 1] / unit)` become
    /// zero: the border that convolutions see around every clip. Ranges begin at multiples of `unit`.
    MaskRows {
        /// Entries of `ranges` that make a row.
        unit: u32,
    },
    /// `[x]`: `factor * x`.
    Scale {
        /// Factor of every element.
        factor: f32,
    },
    /// `[a, b]`: `a + scale * b`, of the same shape.
    AddScaled {
        /// Factor of `b`.
        scale: f32,
    },
    /// `[x]`: sinusoids of every distance between two of the rows of `x [n_tokens, n]`, of which only the shape counts: row `r` of the result `[2 n_tokens - 1, n]` belongs to distance `p = n_tokens - 1 - r` and holds
    /// `sin(p f_i), cos(p f_i)` in turn, `f_i = 10000^(-2 i / n)`.
    RelPositions,
    /// `[q, k, v, p, bias_u, bias_v, sequences, ranges]`: bidirectional attention with relative positions,
    /// `softmax_j(scale ((q_i + bias_u) . k_j + (q_i + bias_v) . p[j - i + n_tokens - 1])) v_j` over the rows of a sequence.
    /// `q`, `k`, `v` are `[n_tokens, n_head, head_dim]`, `p [2 n_tokens - 1, n_head, head_dim]`, biases `[n_head, head_dim]`.
    /// Source: Dai et al. 2019, "Transformer-XL", section 3.3.
    RelPosAttention {
        /// Factor of the scores.
        scale: f32,
    },
    /// `[logits]` or `[logits, bias]`: results are `ids` (i32) and `weights`, both `[.., n_used]`, by falling score.
    /// `logits [.., n_expert]`, `bias [n_expert]`.
    Route(Route),
    /// `[x, w, ids]`: each token's row times the matrices of its experts. `w [n_expert, n, k]`, `ids` i32 `[.., n_used]`, `x`
    /// `[.., k]`, or `[.., n_used, k]` with a row for every expert, gives `[.., n_used, n]`.
    ExpertLinear,
    /// `[x, weights]`: `sum_u weights[.., u] * x[.., u, :]`. `x [.., n_used, n]`, `weights [.., n_used]` gives `[.., n]`.
    ExpertSum,
    /// `[x]`: the same elements, stored contiguously.
    Copy,
    /// `[a, b]`: the rows of `a`, then those of `b`, along the outermost extent.
    Concat,
}

/// What passes and the planner need to know about an op without looking inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpSpec {
    /// Name in dumps, profiles and errors.
    pub name: &'static str,
    /// Number of results.
    pub outputs: usize,
    /// The argument whose storage the first result may take over.
    pub inplace: Option<usize>,
    /// The argument (a state) that the op writes.
    pub mutates: Option<usize>,
    /// The argument whose storage is the first result.
    pub aliases: Option<usize>,
    /// The argument whose elements may lie at any strides; rows of all others are contiguous.
    pub any_strides: Option<usize>,
    /// Fewest extents of the first argument.
    pub min_rank: usize,
}

impl OpSpec {
    const fn new(name: &'static str) -> Self {
        Self { name, outputs: 1, inplace: None, mutates: None, aliases: None, any_strides: None, min_rank: 0 }
    }
}

impl Op {
    /// Name, number of results, effects, and rules for strides and extents.
    #[deny(clippy::wildcard_enum_match_arm)]
    pub const fn spec(&self) -> OpSpec {
        match self {
            Self::GetRows => OpSpec::new("get_rows"),
            Self::Embed => OpSpec::new("embed"),
            Self::Linear { .. } => OpSpec { min_rank: 1, ..OpSpec::new("linear") },
            Self::LinearGroup { n, .. } => OpSpec { outputs: *n as usize, min_rank: 1, ..OpSpec::new("linear_group") },
            Self::LinearGlu { .. } => OpSpec { min_rank: 1, ..OpSpec::new("linear_glu") },
            Self::RmsNorm { .. } => OpSpec { inplace: Some(0), ..OpSpec::new("rms_norm") },
            Self::AddRmsNorm { .. } => OpSpec { outputs: 2, inplace: Some(0), ..OpSpec::new("add_rms_norm") },
            Self::LayerNorm { .. } => OpSpec { inplace: Some(0), ..OpSpec::new("layer_norm") },
            Self::AddLayerNorm { .. } => OpSpec { outputs: 2, inplace: Some(0), ..OpSpec::new("add_layer_norm") },
            Self::Binary(Binary::Add) => OpSpec { inplace: Some(0), ..OpSpec::new("add") },
            Self::Binary(Binary::Mul) => OpSpec { inplace: Some(0), ..OpSpec::new("mul") },
            Self::Unary(_) => OpSpec { inplace: Some(0), ..OpSpec::new("unary") },
            Self::Glu(_) => OpSpec { inplace: Some(0), ..OpSpec::new("glu") },
            Self::Rope(_) => OpSpec { inplace: Some(0), ..OpSpec::new("rope") },
            Self::KvWrite => OpSpec { mutates: Some(1), aliases: Some(1), ..OpSpec::new("kv_write") },
            Self::CachedAttention { .. } => OpSpec::new("cached_attention"),
            Self::Attention { .. } => OpSpec::new("attention"),
            Self::CausalConv1d { .. } => OpSpec { mutates: Some(2), ..OpSpec::new("causal_conv1d") },
            Self::SsmScan { .. } => OpSpec { mutates: Some(7), ..OpSpec::new("ssm_scan") },
            Self::GatedDelta { rule, .. } => OpSpec { mutates: Some(3 + rule.n_args()), ..OpSpec::new("gated_delta") },
            Self::JoinPending { n, .. } => {
                OpSpec { outputs: *n as usize, mutates: Some(*n as usize), ..OpSpec::new("join_pending") }
            }
            Self::Conv2d { .. } => OpSpec { any_strides: Some(0), ..OpSpec::new("conv2d") },
            Self::DepthwiseConv2d { .. } => OpSpec::new("depthwise_conv2d"),
            Self::DepthwiseConv1d => OpSpec::new("depthwise_conv1d"),
            Self::MaskRows { .. } => OpSpec { inplace: Some(0), min_rank: 2, ..OpSpec::new("mask_rows") },
            Self::Scale { .. } => OpSpec { inplace: Some(0), ..OpSpec::new("scale") },
            Self::AddScaled { .. } => OpSpec { inplace: Some(0), ..OpSpec::new("add_scaled") },
            Self::RelPositions => OpSpec::new("rel_positions"),
            Self::RelPosAttention { .. } => OpSpec::new("rel_pos_attention"),
            Self::Route(_) => OpSpec { outputs: 2, min_rank: 1, ..OpSpec::new("route") },
            Self::ExpertLinear => OpSpec::new("expert_linear"),
            Self::ExpertSum => OpSpec { min_rank: 2, ..OpSpec::new("expert_sum") },
            Self::Copy => OpSpec { any_strides: Some(0), ..OpSpec::new("copy") },
            Self::Concat => OpSpec { min_rank: 1, ..OpSpec::new("concat") },
        }
    }
}
