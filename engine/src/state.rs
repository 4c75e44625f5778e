//! [`StateSpec`]: what a layer remembers of a sequence. A model's memory is its list of them.

use crate::dtype::DType;
use crate::shape::Shape;

/// What a state is, which decides how it can be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Attention keys, one row per position.
    Key,
    /// Attention values, one row per position.
    Value,
    /// The last inputs of a convolution.
    Conv,
    /// The state of a recurrence.
    Ssm,
}

impl Role {
    /// Whether the state folds the past, so that it cannot be cut at a position.
    #[deny(clippy::wildcard_enum_match_arm)]
    pub const fn is_recurrent(self) -> bool {
        match self {
            Self::Key | Self::Value => false,
            Self::Conv | Self::Ssm => true,
        }
    }
}

/// Sizes that decide the shape of states and are constant for a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateOptions {
    /// Positions per slot.
    pub n_ctx: usize,
    /// Format of attention keys and values: F16 or F32.
    pub kv_dtype: DType,
}

/// One state of one layer, as one slot holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateSpec {
    /// Index of the layer.
    pub layer: u32,
    /// What it is.
    pub role: Role,
    /// Shape of one slot.
    pub shape: Shape,
    /// Element format.
    pub dtype: DType,
}

impl StateSpec {
    /// Keys and values of one attention layer: two states of `[n_ctx, n_head_kv, head_dim]`.
    pub fn kv(layer: usize, n_head_kv: usize, head_dim: usize, options: &StateOptions) -> [Self; 2] {
        [Role::Key, Role::Value].map(|role| Self {
            layer: layer_number(layer),
            role,
            shape: Shape::from([options.n_ctx, n_head_kv, head_dim]),
            dtype: options.kv_dtype,
        })
    }

    /// The last `d_conv - 1` inputs of a convolution of this width, f32.
    pub fn conv(layer: usize, d_conv: usize, width: usize) -> Self {
        Self {
            layer: layer_number(layer),
            role: Role::Conv,
            shape: Shape::from([d_conv - 1, width]),
            dtype: DType::F32,
        }
    }

    /// Bytes of one slot.
    pub fn bytes(&self) -> usize {
        self.shape.rows() * self.dtype.row_bytes(self.shape.last())
    }

    /// Bytes at the start of a slot that matter for a sequence of `n_past` tokens: nothing before the first token, then
    /// the rows of its positions or the whole recurrent state.
    pub fn used_bytes(&self, n_past: usize) -> usize {
        match self.role {
            Role::Key | Role::Value => self.bytes() / self.shape.dim(0) * n_past,
            Role::Conv | Role::Ssm if n_past == 0 => 0,
            Role::Conv | Role::Ssm => self.bytes(),
        }
    }
}

fn layer_number(layer: usize) -> u32 {
    u32::try_from(layer).expect("models have far fewer layers")
}
