//! Layers with a weight and a bias.

use engine::builder::GraphBuilder;
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::error::Result;

/// `x . weight^T + bias`.
pub(crate) struct Linear {
    weight: Weight,       // [n_out, n_in]
    bias: Option<Weight>, // [n_out]
}

impl Linear {
    /// The weights `{name}.weight` and `{name}.bias`. Extents of 1 are passed over: a pointwise convolution is this layer.
    pub(crate) fn load(w: &WeightStore, name: &str, n_out: usize, n_in: usize) -> Result<Self> {
        Ok(Self {
            weight: w.get_squeezed(&format!("{name}.weight"), [n_out, n_in])?,
            bias: Some(w.get_squeezed(&format!("{name}.bias"), [n_out])?),
        })
    }

    /// The weight `{name}.weight`, and `{name}.bias` where there is one.
    pub(crate) fn load_any(w: &WeightStore, name: &str, n_out: usize, n_in: usize) -> Result<Self> {
        Ok(Self {
            weight: w.get(&format!("{name}.weight"), [n_out, n_in])?,
            bias: w.get_optional(&format!("{name}.bias"), [n_out])?,
        })
    }

    /// `x [.., n_in]` gives `[.., n_out]`.
    pub(crate) fn build(&self, g: &GraphBuilder<'_>, x: Tensor) -> Tensor {
        match self.bias {
            Some(bias) => g.linear_bias(x, self.weight, bias),
            None => g.linear(x, self.weight),
        }
    }
}

/// Layer norm over the innermost extent.
pub(crate) struct LayerNorm {
    weight: Weight, // [n]
    bias: Weight,   // [n]
    eps: f32,
}

impl LayerNorm {
    /// The weights `{name}.weight` and `{name}.bias`.
    pub(crate) fn load(w: &WeightStore, name: &str, n: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: w.get(&format!("{name}.weight"), [n])?, bias: w.get(&format!("{name}.bias"), [n])?, eps })
    }

    /// `x [.., n]` gives the same shape.
    pub(crate) fn build(&self, g: &GraphBuilder<'_>, x: Tensor) -> Tensor {
        g.layer_norm(x, self.weight, self.bias, self.eps)
    }
}
