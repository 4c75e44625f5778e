//! [`Tensors`]: the tensors of a checkpoint as they are collected, and what their elements are like.
//!
//! Scales are those of freshly initialised models, so that activations stay finite and logits are spread as in trained ones.

use serde_json::Value;

/// Mean and standard deviation of matrices.
pub(super) const MATRIX: Scale = Scale(0.0, 0.02);
/// Of the factors of norms.
pub(super) const NORM: Scale = Scale(1.0, 0.01);
/// Of biases and whatever else is added.
pub(super) const BIAS: Scale = Scale(0.0, 0.01);
/// Of kernels with few inputs.
pub(super) const KERNEL: Scale = Scale(0.0, 0.2);
/// Of the short convolutions of LFM2.
pub(super) const TAPS: Scale = Scale(0.0, 0.3);
/// Mel bands of both speech models.
pub(super) const N_MELS: usize = 128;

/// Mean and standard deviation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale(pub(super) f32, pub(super) f32);

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    /// Its name.
    pub(super) name: String,
    /// Its extents, outermost first.
    pub(super) dims: Vec<usize>,
    /// What its elements are like.
    pub(super) scale: Scale,
    /// The tensor whose elements it has, if not its own.
    pub(super) noise_of: Option<String>,
}

/// Tensors as they are collected.
pub(super) struct Tensors(pub(super) Vec<Tensor>);

impl Tensors {
    /// A tensor with noise of its own.
    pub(super) fn add(&mut self, name: impl Into<String>, dims: &[usize], scale: Scale) {
        self.0.push(Tensor { name: name.into(), dims: dims.to_vec(), scale, noise_of: None });
    }

    /// `name.weight`, and `name.bias` of the first extent.
    pub(super) fn pair(&mut self, name: &str, dims: &[usize], scale: Scale) {
        self.add(format!("{name}.weight"), dims, scale);
        self.add(format!("{name}.bias"), &dims[..1], BIAS);
    }

    pub(super) fn last(&mut self) -> &mut Tensor {
        self.0.last_mut().expect("a tensor was added")
    }
}

/// The object `first` with the keys of `others` behind its own.
pub(super) fn merged<const N: usize>(mut first: Value, others: [Value; N]) -> Value {
    let into = first.as_object_mut().expect("configurations are objects");
    for other in others {
        into.extend(other.as_object().expect("configurations are objects").clone());
    }
    first
}
