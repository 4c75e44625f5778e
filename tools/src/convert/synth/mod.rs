//! Checkpoints that are made instead of read: published shapes with random weights. [`Synthetic`] is the type to read first.
//!
//! Speed and memory of a model depend on its shape, not on what it learned: these stand in for published checkpoints where
//! there is none, for measuring. Nothing is stored: any range of any tensor is computed when it is asked for.

mod argument;
mod noise;
mod shapes;
mod vocabulary;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use engine::DType;

use super::checkpoint::{Values, Weight, Weights};

pub use self::argument::{SyntheticModel, checkpoint};
pub use self::noise::Noise;
pub use self::shapes::Shape;

/// The seed where none is given.
pub const DEFAULT_SEED: u64 = 1;

/// A checkpoint of a published shape with random weights.
#[derive(Clone, Debug)]
pub struct Synthetic {
    name: PathBuf,
    shape: Shape,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
}

/// A tensor and its elements.
#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dims: Vec<usize>,
    noise: Noise,
}

impl Synthetic {
    /// The checkpoint of this shape and seed.
    pub fn new(shape: &Shape, seed: u64) -> Self {
        let mut name = format!("synth-{}", shape.name);
        if seed != DEFAULT_SEED {
            name.push_str(&format!("-seed{seed}"));
        }
        let tensor = |t: shapes::Tensor| {
            let noise = Noise::new(seed, t.noise_of.as_ref().unwrap_or(&t.name), t.scale.0, t.scale.1);
            Tensor { name: t.name, dims: t.dims, noise }
        };
        let tensors: Vec<Tensor> = shape.tensors().into_iter().map(tensor).collect();
        let by_name = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Self { name: name.into(), shape: *shape, tensors, by_name }
    }

    /// What stands for its folder in messages, and what files made from it are called.
    pub fn path(&self) -> &Path {
        &self.name
    }

    /// Contents of the file `name`, if it has one.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        let value = match name {
            "config.json" => self.shape.config(),
            "tokenizer.json" => vocabulary::tokenizer(&self.shape),
            "tokenizer_config.json" => vocabulary::tokenizer_config(&self.shape),
            _ => return None,
        };
        Some(value.to_string().into_bytes())
    }
}

impl Weights for Arc<Synthetic> {
    fn path(&self) -> &Path {
        &self.name
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.iter().map(|tensor| &*tensor.name))
    }

    fn weight(&self, name: &str) -> Result<Weight<'_>> {
        let missing = || format!("{}: tensor {name} is missing", self.name.display());
        let tensor = &self.tensors[*self.by_name.get(name).with_context(missing)?];
        Ok(Weight { dtype: DType::BF16, dims: &tensor.dims, values: Values::Random(tensor.noise) })
    }

    fn release(&self, _: &str, _: Range<usize>) {}
}
