//! Published checkpoints (safetensors) to GGUF. [`Conversion`] is the type to read first.
//!
//! A conversion is planned before it is done: configuration and tensor tables are read and checked by the file of the
//! architecture (`architectures` lists them), and only then are weights (`write`) streamed into the files ([`crate::assembly`]). Names,
//! shapes, types, bytes and keys of the files are those of llama.cpp's converter.

mod architectures;
mod arrange;
mod batch_norm;
mod block;
mod checkpoint;
mod config;
mod general;
mod granite;
mod heads;
mod jamba;
mod layers;
mod lfm2;
mod lfm2_audio;
mod limits;
mod llama;
mod mamba;
mod parts;
mod plan;
mod positions;
mod projector;
mod qwen3;
mod qwen3_asr;
mod qwen3_next;
mod segment;
mod ssm;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, anyhow, ensure};
use engine::DType;
use engine::gguf::{Gguf, GgufWriter};

use self::checkpoint::Model;
use self::plan::{FilePlan, Row};
use self::write::CheckpointWeights;
use crate::Watch;
use crate::assembly::{Assembly, MAX_PARTS, part_path, write_tensor};
use crate::error::Error;
use crate::files::Files;
use crate::quantize::imatrix::{ImportanceMatrix, uses_importance};
use crate::quantize::mix::FileType;
use crate::quantize::overrides::Overrides;
use crate::vocab::CheckpointVocabulary;
use crate::workers;

/// `general.quantization_version`. Source: ggml, `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;
/// `general.type` of a file with a decoder.
const DECODER: &str = "model";

/// The checkpoint's own head, where there is one.
const HEAD: &str = "lm_head.weight";

/// What a conversion makes.
#[derive(Clone)]
pub struct Options {
    /// Type of the decoder's matrices.
    pub text_type: FileType,
    /// Type of the encoder's and projector's matrices.
    pub audio_type: FileType,
    /// Whether everything goes into one file.
    pub bundle: bool,
    /// Types of single tensors, values of keys.
    pub overrides: Overrides,
    /// How much the columns of the decoder's matrices matter.
    pub importance: Option<Arc<ImportanceMatrix>>,
    /// Bytes of tensors in a part of the text model or bundle; one file without.
    pub split_max_bytes: Option<u64>,
}

impl Options {
    /// The pair with this type for the decoder, and for the encoder too unless it is below 8 bits: then Q8_0.
    pub fn new(text_type: FileType) -> Self {
        let audio_type = if text_type.is_below_8_bits() { FileType::Q8_0 } else { text_type };
        let (overrides, importance, split_max_bytes) = (Overrides::default(), None, None);
        Self { text_type, audio_type, bundle: false, overrides, importance, split_max_bytes }
    }
}

/// A checkpoint that was read and checked, and the plan of its files.
pub struct Conversion {
    checkpoint: Model,
    name: String,
    text_type: FileType,
    importance: Option<Arc<ImportanceMatrix>>,
    /// The text model or bundle, in one part or several.
    pub(crate) text: Vec<FilePlan>,
    /// The projector's file, and its type.
    pub(crate) projector: Option<(FilePlan, FileType)>,
    has_audio: bool,
    notices: Vec<String>,
}

impl Conversion {
    /// Reads a checkpoint; `options` are chosen by the format that most of its weights are stored in.
    ///
    /// Fails with the code of a bad model; the error names file, expected and found. Options that do not go with the
    /// checkpoint are a wrong call.
    pub fn open(files: impl Into<Files>, options: impl FnOnce(DType) -> Options) -> crate::Result<Self> {
        let (conversion, options, chosen) = Self::read(files.into(), options).map_err(Error::model)?;
        conversion.adjust(&options, &chosen).map_err(Error::usage)
    }

    /// The conversion with everything in one part, and what is left to do about it: see [`Conversion::adjust`].
    fn read(files: Files, options: impl FnOnce(DType) -> Options) -> Result<(Self, Options, Vec<String>)> {
        let checkpoint = Model::open(files)?;
        let name = checkpoint.name()?;
        let parts = architectures::read(&checkpoint)?;
        let has_audio = parts.audio.is_some();
        let audio_rows = parts.audio.as_ref().map_or(&[][..], |audio| &audio.rows);
        checkpoint.check(&[&parts.text.rows, audio_rows, &parts.pair_rows], parts.is_ignored)?;
        let options = options(checkpoint.main_dtype(&parts.text.rows)?);
        // After the check of the embedding: its rows bound the vocabulary.
        let mut vocabulary =
            CheckpointVocabulary::read(checkpoint.files().clone(), parts.pre_tokenizer, parts.n_vocab)?;
        if parts.has_plain_chatml {
            vocabulary = vocabulary.with_plain_chatml()?;
        }
        let is_chosen = |row: &&Row| row.role.is_chosen();
        let chosen = parts.text.rows.iter().chain(audio_rows).filter(is_chosen).map(|row| row.name.clone()).collect();
        let mut notices = parts.notices;
        let (mut text, lines) = parts.text.plan(DECODER, &name, options.text_type, &options, &checkpoint)?;
        notices.extend(lines);
        let mut projector = None;
        if let Some(mut audio) = parts.audio {
            audio.keys.extend(segment::key(&checkpoint)?);
            if !options.bundle {
                audio.rows.extend(parts.pair_rows);
            }
            let audio_keys = audio.keys.clone();
            let (file, lines) = audio.plan("mmproj", &name, options.audio_type, &options, &checkpoint)?;
            notices.extend(lines);
            notices.extend(warning(&file));
            if options.bundle {
                text.keys.extend(audio_keys);
                text.tensors.extend(file.tensors);
            } else {
                projector = Some((file, options.audio_type));
            }
        }
        text.keys.extend(vocabulary.into_metadata().into_iter().map(|(key, value)| (key.to_owned(), value)));
        let (text_type, importance) = (options.text_type, options.importance.clone());
        let conversion =
            Self { checkpoint, name, text_type, importance, text: vec![text], projector, has_audio, notices };
        Ok((conversion, options, chosen))
    }

    /// Puts keys and parts as the user wants them. `chosen`: tensors whose type is a matter of choice.
    fn adjust(mut self, options: &Options, chosen: &[String]) -> Result<Self> {
        options.overrides.check_types(chosen.iter().map(|name| &**name))?;
        let Some(mut text) = self.text.pop() else { return Ok(self) };
        options.overrides.set_keys(&mut text, self.projector.as_mut().map(|(file, _)| file))?;
        if let Some(matrix) = &options.importance {
            let is_used = text.tensors.iter().any(|tensor| uses_importance(tensor.dtype));
            ensure!(is_used, "--imatrix: no tensor has a type that uses it");
            matrix.keys().into_iter().for_each(|(key, value)| text.set_key(key, value));
        }
        self.text = match options.split_max_bytes {
            Some(max_bytes) => text.split(max_bytes),
            None => vec![text],
        };
        let n = self.text.len();
        ensure!(n <= MAX_PARTS, "--split-max-size: {n} parts, of which at most {MAX_PARTS} are read");
        Ok(self)
    }

    /// Lines for the user: tensors that do not get what their type says.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Whether there is an audio tower.
    pub fn has_audio(&self) -> bool {
        self.has_audio
    }

    /// Elements that [`Conversion::write`] writes, for progress.
    pub fn elements(&self) -> u64 {
        self.plans().map(FilePlan::elements).sum()
    }

    /// Bytes of all tensors of the files.
    pub fn bytes(&self) -> u64 {
        self.plans().map(FilePlan::bytes).sum()
    }

    fn plans(&self) -> impl Iterator<Item = &FilePlan> {
        self.text.iter().chain(self.projector.iter().map(|(plan, _)| plan))
    }

    /// The usual names of the files: the text model or bundle, then the projector where it has its own.
    pub fn file_names(&self) -> Vec<String> {
        let name = |file_type: FileType| format!("{}-{file_type}.gguf", self.name);
        let projector = self.projector.as_ref().map(|(_, file_type)| projector_name(&name(*file_type)));
        std::iter::once(name(self.text_type)).chain(projector).collect()
    }

    /// The files, at `paths`, which are as many as [`Conversion::file_names`]; a split one has its parts beside it.
    ///
    /// Fails with the code of a bad model for names that a file cannot have.
    pub fn assembly<'a>(&'a self, paths: &[PathBuf]) -> crate::Result<Assembly<'a, CheckpointWeights<'a>>> {
        let n_parts = self.text.len();
        let part = |i: usize| if n_parts == 1 { paths[0].clone() } else { part_path(&paths[0], i, n_parts) };
        let text = self.text.iter().enumerate().map(|(i, plan)| (part(i), plan));
        let projector = self.projector.iter().zip(paths.get(1)).map(|((plan, _), path)| (path.clone(), plan));
        Assembly::new(self.weights(), &paths[0], text.chain(projector).collect())
    }

    fn weights(&self) -> CheckpointWeights<'_> {
        CheckpointWeights { checkpoint: &self.checkpoint, importance: self.importance.as_deref() }
    }

    /// Writes the files to `paths`, which are as many as [`Conversion::file_names`]; see [`Assembly::write`].
    pub fn write(&self, paths: &[PathBuf], watch: &dyn Watch) -> crate::Result<()> {
        self.assembly(paths)?.write(watch)?;
        Ok(())
    }

    fn write_to_memory(&self) -> crate::Result<Gguf> {
        let mut out = GgufWriter::in_memory(&self.checkpoint.folder().display().to_string());
        let [plan] = &self.text[..] else { return Err(Error::usage(anyhow!("a file in memory is not split"))) };
        for (key, value) in &plan.keys {
            out.key(key, value.clone()).map_err(Error::model)?;
        }
        for tensor in &plan.tensors {
            out.tensor(&tensor.name, tensor.dtype, tensor.shape).map_err(Error::model)?;
        }
        let (weights, watch) = (self.weights(), AtomicBool::new(false));
        workers::inside(|| {
            plan.tensors.iter().try_for_each(|tensor| write_tensor(&weights, tensor, &mut out, &watch))
        })??;
        out.finish_in_memory().map_err(Error::output)
    }
}

/// A checkpoint as one bundle in memory, in the format that most of its weights are stored in.
///
/// Takes as much memory as the bundle would take on the disk. Errors are those of a bad checkpoint.
pub fn to_memory(files: impl Into<Files>) -> crate::Result<Gguf> {
    let as_stored = |stored| {
        let text_type = FileType::ALL.into_iter().find(|t| t.dtype() == stored).unwrap_or(FileType::F32);
        Options { bundle: true, ..Options::new(text_type) }
    };
    let (conversion, ..) = Conversion::read(files.into(), as_stored).map_err(Error::model)?;
    conversion.write_to_memory()
}

/// What there is to say about an audio tower with matrices below 8 bits.
fn warning(file: &FilePlan) -> Option<String> {
    let smallest = file.tensors.iter().map(|tensor| tensor.dtype).min_by(|a, b| bits(*a).total_cmp(&bits(*b)))?;
    (bits(smallest) < 8.0).then(|| format!("warning: an audio tower below 8 bits costs accuracy: {smallest}"))
}

/// Bits of a weight.
fn bits(dtype: DType) -> f64 {
    (dtype.block().bytes * 8) as f64 / dtype.block().len as f64
}

/// The projector's file beside the text model's `name`, where programs look for it.
pub fn projector_name(name: &str) -> String {
    format!("mmproj-{name}")
}
