//! The weights of a checkpoint, wherever they come from. [`Weights`] is the type to read first.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use engine::DType;

use crate::assembly::Xxh64;
use crate::synth::noise::Noise;

/// The weights of a checkpoint: stored ones, or made ones.
pub(crate) trait Weights: Send + Sync {
    /// The file, or what stands for it in messages.
    fn path(&self) -> &Path;

    /// Names of all tensors.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// The tensor called `name`. Errors: it is missing, or not of a float type.
    fn weight(&self, name: &str) -> Result<Weight<'_>>;

    /// Gives the memory behind bytes `range` of a tensor back to the system.
    fn release(&self, name: &str, range: Range<usize>);

    /// Adds what tells whether the weights are still the same.
    fn stamp(&self, hash: &mut Xxh64);
}

/// A tensor of a type that weights can have.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    /// Its format.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub dims: &'a [usize],
    /// Its elements.
    pub values: Values<'a>,
}

/// Where the elements of a tensor come from.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// These bytes, which may start anywhere.
    Stored(&'a [u8]),
    /// Numbers that are made when they are asked for.
    Random(Noise),
}

impl Weight<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Elements `range` of the flattened tensor into `x`, which is as long.
    pub fn decode(&self, range: Range<usize>, x: &mut [f32]) {
        match self.values {
            Values::Stored(bytes) => {
                let format = backends::format_of(self.dtype).expect("weights are of a float type");
                let width = self.dtype.block().bytes;
                format.decode_row(&bytes[range.start * width..range.end * width], x);
            }
            Values::Random(noise) => noise.fill(range.start as u64, x),
        }
    }
}
