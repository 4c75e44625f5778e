//! GGUF files in other types. [`Quantization`] is the type to read first.
//!
//! A file is planned first (`mix`), then put together ([`crate::assembly`]). Types, order,
//! keys and bytes are those of llama-quantize (llama-cpp-python 0.3.36) on x86-64.

pub mod imatrix;
pub mod mix;
pub mod overrides;

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use backends::format_of;
use engine::gguf::{Gguf, GgufTensor};
use kernels::quant::Format;

use self::imatrix::ImportanceMatrix;
use self::mix::{FileType, Model, Tensor};
use self::overrides::Overrides;
use crate::Watch;
use crate::assembly::{self, Assembly, FilePlan, PlannedTensor, Values, Weights, Xxh64};
use crate::error::Error;

/// `general.quantization_version`. Source: ggml, `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;
/// Keys that the new file does not take over as they are.
const REPLACED_KEYS: [&str; 5] =
    ["general.quantization_version", "general.file_type", "split.no", "split.count", "split.tensors.count"];
/// A planned file.
pub struct Quantization {
    source: Gguf,
    importance: Option<ImportanceMatrix>,
    plan: FilePlan<usize>,
    notices: Vec<String>,
}

impl Quantization {
    /// Plans `source` as a file of type `mix`.
    ///
    /// Fails with the code of a bad model, or with that of a wrong call where a quantized tensor would get another type
    /// and `allow_requantize` is not set, or where `overrides` do not go with the file.
    pub fn plan(
        source: Gguf,
        mix: FileType,
        importance: Option<ImportanceMatrix>,
        overrides: &Overrides,
        allow_requantize: bool,
    ) -> crate::Result<Self> {
        let architecture = source
            .get_str("general.architecture")
            .with_context(|| source.path().display().to_string())
            .map_err(Error::model)?;
        let model = Model::read(architecture, importance.is_some(), |key| source.value(key));
        let order = mix::order(source.tensors().map(|tensor| tensor.name));
        let all: Vec<GgufTensor<'_>> = source.tensors().collect();
        let view = |&i: &usize| Tensor { name: all[i].name, shape: all[i].shape, dtype: all[i].dtype };
        let views: Vec<Tensor<'_>> = order.iter().map(view).collect();
        let names = views.iter().filter(|tensor| !mix::keeps_type(tensor)).map(|tensor| tensor.name);
        overrides.check_types(names).map_err(Error::usage)?;
        let choices = mix::choose(mix, &model, overrides, &views);
        let mut notices = Vec::new();
        let mut tensors = Vec::new();
        for (&i, choice) in order.iter().zip(&choices) {
            let tensor = &all[i];
            let (name, dtype, shape) = (tensor.name, choice.dtype, tensor.shape);
            let is_quantized = tensor.dtype.block().len > 1;
            if is_quantized && dtype != tensor.dtype && !allow_requantize {
                let (path, dtype) = (source.path().display(), tensor.dtype);
                let what = format!("{path}: {name} is {dtype} already; --allow-requantize quantizes it again");
                return Err(Error::usage(anyhow!(what)));
            }
            notices.extend(choice.notice(name, shape));
            if let Some(matrix) = importance.as_ref().filter(|_| dtype != tensor.dtype) {
                notices.extend(matrix.check(name, shape, dtype).map_err(Error::model)?);
            }
            tensors.push(PlannedTensor { name: name.to_owned(), dtype, shape, source: i });
        }
        let kept = source.metadata().filter(|(name, _)| !REPLACED_KEYS.contains(name));
        let mut plan = FilePlan { keys: kept.map(|(name, value)| (name.to_owned(), value)).collect(), tensors };
        plan.set_key("general.quantization_version", QUANTIZATION_VERSION.into());
        plan.set_key("general.file_type", mix.general_file_type().into());
        overrides.set_keys(&mut plan, None).map_err(Error::usage)?;
        for (key, value) in importance.iter().flat_map(ImportanceMatrix::keys) {
            plan.set_key(key, value);
        }
        Ok(Self { source, importance, plan, notices })
    }

    /// The file that it is made from.
    pub fn source(&self) -> &Gguf {
        &self.source
    }

    /// Lines for the user: tensors that do not get what the mix wants.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The file, at `path`. Fails with the code of a bad model for names that a file cannot have.
    pub fn assembly(&self, path: &Path) -> crate::Result<Assembly<'_, GgufWeights<'_>>> {
        let weights = GgufWeights { source: &self.source, importance: self.importance.as_ref() };
        Assembly::new(weights, path, vec![(path.to_owned(), &self.plan)])
    }

    /// Writes the file; see [`Assembly::write`].
    pub fn write(&self, path: &Path, watch: &dyn Watch) -> crate::Result<()> {
        self.assembly(path)?.write(watch)?;
        Ok(())
    }
}

/// The tensors of a GGUF file; a plan has their numbers there.
pub struct GgufWeights<'a> {
    source: &'a Gguf,
    importance: Option<&'a ImportanceMatrix>,
}

impl Weights for GgufWeights<'_> {
    type Source = usize;

    fn values<'a>(&'a self, planned: &'a PlannedTensor<usize>) -> Result<Box<dyn Values + 'a>> {
        let found = self.source.tensor(&planned.name);
        let tensor = found.with_context(|| format!("{}: no tensor {}", self.source.path().display(), planned.name))?;
        if tensor.dtype == planned.dtype {
            return Ok(Box::new(GgufValues { source: self.source, tensor, format: None, importance: None }));
        }
        let (path, dtype) = (self.source.path().display(), tensor.dtype);
        let format = format_of(dtype);
        let format = format.with_context(|| format!("{path}: {}: {dtype} is not a type of weights", tensor.name))?;
        let of = |matrix: &ImportanceMatrix| matrix.of_tensor(tensor.name, tensor.shape, planned.dtype);
        let importance = self.importance.map_or(Ok(None), of)?;
        Ok(Box::new(GgufValues { source: self.source, tensor, format: Some(format), importance }))
    }

    fn stamp(&self, hash: &mut Xxh64) {
        self.source.paths().for_each(|path| assembly::stamp(path, hash));
        self.importance.into_iter().for_each(|matrix| matrix.stamp(hash));
    }
}

/// A tensor of a GGUF file.
struct GgufValues<'a> {
    source: &'a Gguf,
    tensor: GgufTensor<'a>,
    /// Its format; `None` where its bytes are taken as they are.
    format: Option<Format>,
    importance: Option<Vec<f32>>,
}

impl GgufValues<'_> {
    fn byte_range(&self, range: Range<usize>) -> Range<usize> {
        let block = self.tensor.dtype.block();
        range.start / block.len * block.bytes..range.end / block.len * block.bytes
    }
}

impl Values for GgufValues<'_> {
    fn decode(&self, range: Range<usize>, x: &mut [f32]) -> Result<()> {
        let format = self.format.context("bytes that are taken as they are have no values")?;
        let first = range.start;
        format.decode_row(&self.tensor.bytes[self.byte_range(range)], x);
        let is_finite = x.iter().fold(true, |all, x| all & x.is_finite());
        let (path, name) = (self.source.path().display(), self.tensor.name);
        ensure!(is_finite, "{path}: {name}: from element {first} on there are values that are not finite");
        Ok(())
    }

    fn stored(&self) -> Option<&[u8]> {
        self.format.is_none().then_some(self.tensor.bytes)
    }

    fn importance(&self) -> Option<&[f32]> {
        self.importance.as_deref()
    }

    fn release(&self, range: Range<usize>) {
        self.source.release(self.tensor.name, self.byte_range(range));
    }
}
