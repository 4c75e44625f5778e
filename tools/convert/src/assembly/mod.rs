//! Planned GGUF files and how they are put together. [`Assembly`] is the type to read first.
//!
//! What the files are made from is behind two traits: [`Weights`] has the tensors, [`Values`] the values of one. Files are
//! written in constant memory, go on where a killed process stopped (`write`), and can be compared with what they were
//! made from (`verify`).

mod encode;
mod journal;
mod partial;
mod plan;
mod verify;
mod write;
mod xxh64;

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use engine::gguf::GgufLayout;

use self::encode::Encoder;
use crate::error::Error;

pub use self::encode::Difference;
pub use self::partial::{Partial, beside, stamp};
pub use self::plan::{FilePlan, MAX_PARTS, PlannedTensor, part_path};
pub use self::verify::TensorReport;
pub use self::write::Written;
pub(crate) use self::write::write_tensor;
pub use self::xxh64::Xxh64;

/// Where the tensors of planned files come from.
pub trait Weights: Sync {
    /// What a plan says about the origin of a tensor.
    type Source: Sync;

    /// The values of a planned tensor. Errors: they cannot be had.
    fn values<'a>(&'a self, tensor: &'a PlannedTensor<Self::Source>) -> Result<Box<dyn Values + 'a>>;

    /// Adds what tells whether the values are still the same.
    fn stamp(&self, hash: &mut Xxh64);
}

/// The values of a tensor as one row.
pub trait Values: Sync {
    /// Decodes elements `range`, which begin and end where blocks do. Errors: values that the planned type cannot have.
    fn decode(&self, range: Range<usize>, x: &mut [f32]) -> Result<()>;

    /// The bytes of the tensor, where the file takes them as they are; nothing is decoded then.
    fn stored(&self) -> Option<&[u8]> {
        None
    }

    /// How much the columns matter, `[n_matrices, n_columns]`.
    fn importance(&self) -> Option<&[f32]> {
        None
    }

    /// Gives the memory behind elements `range` back to the system.
    fn release(&self, range: Range<usize>);
}

/// Files that belong together, planned to the last byte.
pub struct Assembly<'a, W: Weights> {
    weights: W,
    /// What the files are called after.
    base: PathBuf,
    files: Vec<AssemblyFile<'a, W::Source>>,
}

/// One of the files.
struct AssemblyFile<'a, S> {
    path: PathBuf,
    plan: &'a FilePlan<S>,
    layout: GgufLayout,
}

impl<'a, W: Weights> Assembly<'a, W> {
    /// `files` in the order of writing, with their paths. `base`: the path that the user would know them by.
    ///
    /// Fails with the code of a bad model for keys or tensors that a file cannot have.
    pub fn new(weights: W, base: &Path, files: Vec<(PathBuf, &'a FilePlan<W::Source>)>) -> crate::Result<Self> {
        let file = |(path, plan): (PathBuf, &'a FilePlan<W::Source>)| {
            let layout = plan.layout(&path)?;
            Ok(AssemblyFile { path, plan, layout })
        };
        let files: engine::Result<Vec<_>> = files.into_iter().map(file).collect();
        Ok(Self { weights, base: base.to_owned(), files: files.map_err(Error::model)? })
    }

    /// Where the files go.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| &*file.path)
    }

    /// Elements of all tensors, for progress.
    pub fn elements(&self) -> u64 {
        self.files.iter().map(|file| file.plan.elements()).sum()
    }

    /// Bytes of all tensors, without paddings.
    pub fn tensor_bytes(&self) -> u64 {
        self.files.iter().flat_map(|file| file.layout.tensors()).map(|tensor| tensor.bytes).sum()
    }

    /// The files as lines of text: for each one line, and one for each of its tensors.
    pub fn list(&self) -> String {
        let mut text = String::new();
        for AssemblyFile { path, layout, .. } in &self.files {
            let (n, bytes, start) = (layout.tensors().len(), layout.file_bytes(), layout.data_start());
            let _ = writeln!(text, "{}: {n} tensors, {bytes} bytes, data from byte {start} on", path.display());
            let _ = writeln!(text, "{:>12} {:>12}  {:<6} {:<20} tensor", "offset", "bytes", "type", "shape");
            for tensor in layout.tensors() {
                let dims: Vec<String> = tensor.shape.dims().iter().map(u32::to_string).collect();
                let (at, shape) = (start + tensor.offset, format!("[{}]", dims.join(",")));
                let (bytes, dtype, name) = (tensor.bytes, tensor.dtype.name(), &tensor.name);
                let _ = writeln!(text, "{at:>12} {bytes:>12}  {dtype:<6} {shape:<20} {name}");
            }
        }
        text
    }

    fn encoder(&self, tensor: &'a PlannedTensor<W::Source>) -> crate::Result<Encoder<'_>> {
        let values = self.weights.values(tensor).map_err(Error::model)?;
        Encoder::new(tensor, values)
    }
}
