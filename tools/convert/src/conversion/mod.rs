//! Published checkpoints (safetensors) to GGUF. [`Conversion`] is the type to read first.
//!
//! A conversion is planned before it is done: configuration and tensor tables are read and checked (`qwen3`, `lfm2`,
//! `qwen3_asr`, `lfm2_audio`), and only then are weights (`write`) streamed into the files ([`crate::assembly`]). Names,
//! shapes, types, bytes and keys of the files are those of llama.cpp's converter.

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

use anyhow::{Result, anyhow, bail, ensure};
use engine::DType;
use engine::gguf::{Gguf, GgufWriter, Value, quoted};

use self::checkpoint::Model;
use self::granite::Granite;
use self::jamba::Jamba;
use self::lfm2::Lfm2Config;
use self::lfm2_audio::Lfm2Audio;
use self::llama::LlamaConfig;
use self::mamba::{Generation, Mamba};
use self::plan::{Chosen, FilePlan, Row};
use self::qwen3::TextConfig;
use self::qwen3_asr::Qwen3Asr;
use self::qwen3_next::{Family, Qwen3Next};
use self::write::CheckpointWeights;
use crate::Watch;
use crate::assembly::{Assembly, MAX_PARTS, part_path, write_tensor};
use crate::error::Error;
use crate::files::Files;
use crate::quantize::imatrix::{ImportanceMatrix, uses_importance};
use crate::quantize::mix::{self, FileType};
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
        let parts = Parts::read(&checkpoint)?;
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

/// The parts of a model, each with a file of its own.
struct Parts {
    n_vocab: usize,
    pre_tokenizer: &'static str,
    /// Whether llama.cpp's converter replaces the checkpoint's template; see [`CheckpointVocabulary::with_plain_chatml`].
    has_plain_chatml: bool,
    text: Part,
    audio: Option<Part>,
    /// Tensors that llama.cpp wants in the projector's file, and nobody in a bundle.
    pair_rows: Vec<Row>,
    /// Tensors of the checkpoint that no file needs.
    is_ignored: fn(&str) -> bool,
    /// What there is to say about what is left out.
    notices: Vec<String>,
}

/// Keys and tensors of one part.
struct Part {
    architecture: &'static str,
    keys: Vec<(String, Value)>,
    rows: Vec<Row>,
}

/// Reads and checks the configuration of a checkpoint, and plans its parts.
type ReadParts = fn(&Model) -> Result<Parts>;

/// Every architecture that has a `model_type`, under this name.
const MODEL_TYPES: &[(&str, ReadParts)] = &[
    ("qwen3_asr", Parts::qwen3_asr),
    ("qwen3", Parts::qwen3),
    ("llama", Parts::llama),
    ("lfm2", |checkpoint| Ok(Parts::lfm2(checkpoint, Lfm2Config::read(&checkpoint.config())?))),
    ("lfm2_moe", |checkpoint| Ok(Parts::lfm2(checkpoint, Lfm2Config::read_moe(&checkpoint.config())?))),
    ("mamba", |checkpoint| Ok(Parts::mamba(Mamba::read(checkpoint, Generation::First)?))),
    ("mamba2", |checkpoint| Ok(Parts::mamba(Mamba::read(checkpoint, Generation::Second)?))),
    ("jamba", Parts::jamba),
    ("granitemoehybrid", Parts::granite),
    ("qwen3_next", |checkpoint| Parts::qwen3_next(checkpoint, Family::Next)),
    ("qwen3_5", |checkpoint| Parts::qwen3_next(checkpoint, Family::Dense)),
    ("qwen3_5_text", |checkpoint| Parts::qwen3_next(checkpoint, Family::Dense)),
    ("qwen3_5_moe", |checkpoint| Parts::qwen3_next(checkpoint, Family::Moe)),
    ("qwen3_5_moe_text", |checkpoint| Parts::qwen3_next(checkpoint, Family::Moe)),
];

/// Types whose names are near those of [`MODEL_TYPES`], and why they are something else.
const OTHER_TYPES: &[(&str, &str)] = &[(
    "qwen4_exp",
    "it adds an attention indexer, gated residual streams and an n-gram embedding to Qwen3.5's layers",
)];

/// Names of a list that a message repeats.
const MAX_SHOWN_NAMES: usize = 4;

impl Parts {
    fn read(checkpoint: &Model) -> Result<Self> {
        const KEY: &str = "model_type";
        const ARCHITECTURES: &str = "architectures";
        const LFM2_AUDIO: &str = "Lfm2AudioForConditionalGeneration";
        let config = checkpoint.config();
        let architectures = config.texts_or_none(ARCHITECTURES)?;
        match (config.text_or_none(KEY)?, architectures) {
            (Some(name), _) => match MODEL_TYPES.iter().find(|(known, _)| *known == name) {
                Some((_, read)) => read(checkpoint),
                None => {
                    if let Some((_, why)) = OTHER_TYPES.iter().find(|(other, _)| *other == name) {
                        bail!(config.error(KEY, &format!("{} is not supported: {why}", quoted(name))));
                    }
                    let known = MODEL_TYPES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
                    let supported = format!("supported: {known}, and LFM2-Audio without a type");
                    bail!(config.error(KEY, &format!("{} is not supported ({supported})", quoted(name))))
                }
            },
            // Published without a type.
            (None, Some(names)) if names == [LFM2_AUDIO] => Self::lfm2_audio(checkpoint),
            (None, Some(names)) => {
                let names: Vec<String> = names.iter().take(MAX_SHOWN_NAMES).map(|name| quoted(name)).collect();
                let names = names.join(", ");
                bail!(config.error(ARCHITECTURES, &format!("[{names}] without model_type: want [{LFM2_AUDIO:?}]")))
            }
            (None, None) => bail!(config.error(KEY, "is missing")),
        }
    }

    /// A text model alone.
    fn text(n_vocab: usize, pre_tokenizer: &'static str, text: Part) -> Self {
        let (pair_rows, notices) = (Vec::new(), Vec::new());
        let is_ignored = |_: &str| false;
        Self { n_vocab, pre_tokenizer, has_plain_chatml: false, text, audio: None, pair_rows, is_ignored, notices }
    }

    fn qwen3_asr(checkpoint: &Model) -> Result<Self> {
        let model = Qwen3Asr::read(checkpoint)?;
        let text = Part { architecture: qwen3_asr::ARCHITECTURE, keys: model.text_keys, rows: model.text_rows };
        let audio = Part { architecture: "clip", keys: model.audio_keys, rows: model.audio_rows };
        let parts = Self::text(model.n_vocab, qwen3_asr::PRE_TOKENIZER, text);
        Ok(Self { has_plain_chatml: true, audio: Some(audio), ..parts })
    }

    fn qwen3(checkpoint: &Model) -> Result<Self> {
        let model = TextConfig::read(&checkpoint.config())?;
        let (n_vocab, keys) = (model.n_vocab, model.keys("qwen3"));
        let text = Part { architecture: "qwen3", keys, rows: model.rows_and_head(checkpoint.has(HEAD)) };
        Ok(Self::text(n_vocab, qwen3_asr::PRE_TOKENIZER, text))
    }

    fn llama(checkpoint: &Model) -> Result<Self> {
        let model = LlamaConfig::read(&checkpoint.config())?;
        let (n_vocab, keys) = (model.text.n_vocab, model.keys());
        let rows = model.rows(checkpoint.has(HEAD));
        Ok(Self::text(n_vocab, llama::PRE_TOKENIZER, Part { architecture: llama::ARCHITECTURE, keys, rows }))
    }

    fn lfm2(checkpoint: &Model, mut model: Lfm2Config) -> Self {
        let has_head = checkpoint.has(HEAD) || !model.tied;
        model.tied = !has_head;
        let mut rows = model.rows("model.");
        rows.extend(has_head.then(|| model.head(HEAD)));
        let text = Part { architecture: model.architecture(), keys: model.keys(), rows };
        Self::text(model.n_vocab, lfm2::PRE_TOKENIZER, text)
    }

    fn mamba(model: Mamba) -> Self {
        let text = Part { architecture: model.architecture(), keys: model.keys(), rows: model.rows() };
        // Some exports store a tied head as well.
        let is_ignored: fn(&str) -> bool = if model.tied { |name| name == HEAD } else { |_| false };
        Self { is_ignored, ..Self::text(model.n_vocab, mamba::PRE_TOKENIZER, text) }
    }

    fn jamba(checkpoint: &Model) -> Result<Self> {
        let model = Jamba::read(checkpoint)?;
        let text = Part { architecture: jamba::ARCHITECTURE, keys: model.keys(), rows: model.rows() };
        Ok(Self::text(model.n_vocab, jamba::PRE_TOKENIZER, text))
    }

    fn granite(checkpoint: &Model) -> Result<Self> {
        let model = Granite::read(checkpoint)?;
        let text = Part { architecture: granite::ARCHITECTURE, keys: model.keys(), rows: model.rows() };
        Ok(Self::text(model.n_vocab, granite::PRE_TOKENIZER, text))
    }

    fn qwen3_next(checkpoint: &Model, family: Family) -> Result<Self> {
        let model = Qwen3Next::read(checkpoint, family)?;
        let rows = model.rows(checkpoint);
        let text = Part { architecture: family.architecture(), keys: model.keys(), rows };
        let parts = Self::text(model.n_vocab, family.pre_tokenizer(), text);
        let notices = qwen3_next::vision_notice(checkpoint).into_iter().collect();
        Ok(Self { is_ignored: qwen3_next::is_vision, notices, ..parts })
    }

    fn lfm2_audio(checkpoint: &Model) -> Result<Self> {
        let model = Lfm2Audio::read(checkpoint)?;
        let text = Part { architecture: model.text.architecture(), keys: model.text.keys(), rows: model.text_rows };
        let audio = Part { architecture: "clip", keys: model.audio_keys, rows: model.audio_rows };
        let parts = Self::text(model.text.n_vocab, lfm2::PRE_TOKENIZER, text);
        let (pair_rows, is_ignored) = (model.output_rows, lfm2_audio::is_ignored as fn(&str) -> bool);
        Ok(Self { audio: Some(audio), pair_rows, is_ignored, ..parts })
    }
}

impl Part {
    /// The file of this part, and lines for the user. `kind`: `general.type`.
    fn plan(
        self,
        kind: &str,
        name: &str,
        file_type: FileType,
        options: &Options,
        checkpoint: &Model,
    ) -> Result<(FilePlan, Vec<String>)> {
        let key = |name: &str| self.keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let importance = options.importance.as_deref().filter(|_| kind == DECODER);
        let decoder = (kind == DECODER).then(|| mix::Model::read(self.architecture, importance.is_some(), key));
        let Chosen { tensors, mut notices } = plan::plan(self.rows, file_type, decoder.as_ref(), &options.overrides)?;
        for tensor in &tensors {
            let lines = importance.map_or(Ok(None), |matrix| matrix.check(&tensor.name, tensor.shape, tensor.dtype))?;
            notices.extend(lines);
        }
        let mut plan = FilePlan { keys: Vec::new(), tensors };
        let generation = checkpoint.generation();
        let config = checkpoint.config();
        plan.keys = general::keys(self.architecture, kind, name, &config, generation.as_ref(), &plan)?;
        plan.keys.extend(self.keys);
        plan.keys.push(("general.file_type".into(), file_type.general_file_type().into()));
        plan.keys.push(("general.quantization_version".into(), QUANTIZATION_VERSION.into()));
        Ok((plan, notices))
    }
}
