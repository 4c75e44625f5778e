//! Every variant of every error is provoked by bad input, and what is shown of it names the file and says the cause once.

use std::collections::BTreeSet;
use std::error::Error;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use convert::quantize::Quantization;
use convert::quantize::overrides::Overrides;
use convert::{Conversion, Error as ConvertError, ErrorKind as ConvertErrorKind, FileType, Options};
use engine::Error as EngineError;
use engine::backend::Backend;
use engine::builder::GraphBuilder;
use engine::error::Chain;
use engine::gguf::{Gguf, GgufWriter, KeyError};
use engine::key::{GraphKey, Stage};
use engine::op::Op;
use engine::parallel::Serial;
use engine::plan::{PlanError, verify};
use engine::session::Session;
use engine::state::{StateOptions, States};
use engine::tensor::Input;
use engine::weights::{WeightError, WeightStore};
use engine::{DType, Shape};
use kernels::cpu::{Isa, UnknownIsa};
use models::audio::{
    AudioError, AudioErrorKind, MelParams, MelRecipe, MelSpectrogram, decode_bytes, decode_file, decode_reader,
};
use models::decoding::{Decoding, Prompt, Rules};
use models::languages::{self, UnknownLanguage};
use models::sample::{NotFinite, Sampling, greedy};
use models::scheduler::Scheduler;
use models::tokenizer::{Tokenizer, Vocabulary};
use models::transcribe::{Observer, Request, Transcriber};
use models::{Error as ModelError, LoadOptions, Loaded, registry};
use tests::alloc::refusing;
use tests::draft::Draft;
use tests::faulty::{Fault, Faulty};

use crate::audio::{float_wav, wav};
use crate::checkpoint::{convert, converted, copy_of, fixture, pair};
use crate::hybrid::{self, N_EMBD, N_SLOTS, N_VOCAB, SEED, tokens};

/// What the system says of a file that is not there.
const NO_FILE: &str = "no such file";

/// An error type and its variants.
trait Variants: Error + 'static {
    /// The file that defines it.
    const FILE: &'static str;

    /// The variant of this error.
    fn variant(&self) -> &'static str;
}

/// What an error without variants is.
enum One {
    Only,
}

/// Lists the variants of error types, each by a match that does not compile where one is missing.
macro_rules! variants {
    ($($file:literal: $type:ident, |$e:ident| $of:expr, $kind:ident [$($variant:ident),+];)+) => {
        /// Files that define errors, with the variants.
        const ALL: &[(&str, &[&str])] = &[$(($file, &[$(stringify!($variant)),+])),+];

        $(impl Variants for $type {
            const FILE: &'static str = $file;

            fn variant(&self) -> &'static str {
                let $e = self;
                match $of {
                    $($kind::$variant { .. } => stringify!($variant)),+
                }
            }
        })+
    };
}

variants! {
    "engine/src/error.rs": EngineError, |e| e, EngineError [
        Io, Changed, Gguf, Graph, Unsupported, OutOfMemory, UnknownBackend, Device, Refused, Key, NoState, NoFreeSlot,
        ContextFull, NotRewindable, TornSlot, StaleGraph, Snapshot, Batch
    ];
    "engine/src/gguf/key.rs": KeyError, |e| e, KeyError [Missing, WrongType];
    "engine/src/weights.rs": WeightError, |e| e, WeightError [Missing, Shape];
    "engine/src/plan.rs": PlanError, |_e| One::Only, One [Only];
    "kernels/src/cpu/isa.rs": UnknownIsa, |_e| One::Only, One [Only];
    "models/src/audio/error.rs": AudioError, |e| e.kind, AudioErrorKind [
        Io, Empty, TooManyBytes, NotRecognised, NotRead, Container, Unfinished, NoAudioTrack, Codec, Damaged, NoSamples, TooLong, SampleRate,
        Channels, BadSample
    ];
    "models/src/languages.rs": UnknownLanguage, |_e| One::Only, One [Only];
    "models/src/error.rs": ModelError, |e| e, ModelError [
        Engine, Key, MissingKey, BadValue, Weight, BadWeight, NoTextModel, NoProjector, UnknownArchitecture, NotSpeech,
        NoEncoder, Tokenizer, Template, FrontEnd, NotFinite, Cancelled, Argument
    ];
    "models/src/sample.rs": NotFinite, |_e| One::Only, One [Only];
    "tools/convert/src/error.rs": ConvertError, |e| e.kind(), ConvertErrorKind [
        Usage, Model, Memory, Output, Interrupted
    ];
}

/// The variants that were provoked, with the files of their types.
#[derive(Default)]
struct Table(BTreeSet<(&'static str, &'static str)>);

impl Table {
    /// A result that is an error of this variant. Its text begins with `says`, and is what is shown where there is no
    /// `cause`; otherwise the text of the cause, which begins so, follows it.
    #[track_caller]
    fn row<T, E: Variants>(&mut self, variant: &str, result: Result<T, E>, says: &str, cause: Option<&str>) {
        let Err(error) = result else { panic!("{variant}: no error") };
        assert_eq!(error.variant(), variant, "{error:?}");
        let (text, shown) = (error.to_string(), Chain(&error).to_string());
        assert!(text.starts_with(says), "{variant}: {text}: want {says}");
        assert_eq!(shown.lines().count(), 1, "{shown}");
        assert_eq!(error.source().is_some(), cause.is_some(), "{variant}: {shown}");
        match cause {
            None => assert_eq!(shown, text),
            Some(cause) => {
                assert!(shown.starts_with(&format!("{text}: {cause}")), "{variant}: {shown}: want {cause}");
                assert_eq!(shown.matches(cause).count(), 1, "{variant} says its cause twice: {shown}");
            }
        }
        self.0.insert((E::FILE, error.variant()));
    }
}

fn cpu() -> Arc<dyn Backend> {
    backends::open("cpu", &backends::Options::default()).unwrap()
}

fn session(backend: Arc<dyn Backend>) -> Session {
    hybrid::open_model(SEED, &[backend], hybrid::options())
}

/// A call of one token.
fn key(n_outputs: u32) -> GraphKey {
    GraphKey { stage: Stage::Tokens, n_seqs: 1, n_tokens: 1, n_kv: 64, n_outputs, n_pending: 0 }
}

#[test]
fn every_variant_is_provoked() {
    let mut table = Table::default();
    files(&mut table);
    graphs(&mut table);
    devices(&mut table);
    sequences(&mut table);
    names(&mut table);
    audio(&mut table);
    damaged_audio(&mut table);
    architectures(&mut table);
    values(&mut table);
    speech(&mut table);
    requests(&mut table);
    conversions(&mut table);
    let all = ALL.iter().flat_map(|(file, variants)| variants.iter().map(|variant| (*file, *variant)));
    let missing: Vec<_> = all.filter(|variant| !table.0.contains(variant)).collect();
    assert!(missing.is_empty(), "nothing provokes {missing:?}");
}

#[test]
fn every_error_type_is_in_the_table() {
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, found),
                false => found.push(path),
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for name in ["engine", "kernels", "kernels/formats", "backends", "models", "tools/convert"] {
        sources(&root.join(name).join("src"), &mut files);
    }
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let n = text.lines().filter(|line| line.starts_with("impl") && line.contains("Error for ")).count();
        let name = file.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        found.extend(std::iter::repeat_n(name, n));
    }
    found.sort();
    let mut listed: Vec<&str> = ALL.iter().map(|(file, _)| *file).collect();
    listed.sort();
    assert_eq!(found, listed);
}

fn files(table: &mut Table) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let name = path.display().to_string();
    table.row("Io", Gguf::open(&path), &name, Some(NO_FILE));
    std::fs::write(&path, "no model").unwrap();
    table.row("Gguf", Gguf::open(&path), &format!("{name}: "), None);

    let mut out = GgufWriter::create(&path).unwrap();
    out.key("general.architecture", "qwen3").unwrap();
    out.tensor("norm", DType::F32, Shape::from([2])).unwrap();
    out.begin("norm").unwrap();
    out.write(&[0; 8]).unwrap();
    out.finish().unwrap();
    let file = Gguf::open(&path).unwrap();
    // These are about the key or the tensor alone; whoever passes them on says in which file.
    table.row("Missing", file.get_u32("no.key"), "metadata key no.key is missing", None);
    let wrong = file.get_u32("general.architecture");
    assert_eq!(wrong.as_ref().unwrap_err().path(), path);
    table.row("WrongType", wrong, "metadata key general.architecture: want ", None);
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(0).unwrap();
    table.row("Changed", file.check_unchanged(), &format!("{name}: has changed while it was used: had "), None);
    let store = WeightStore::new([file]).unwrap();
    table.row("Missing", store.get("bias", [2]), "tensor bias is missing", None);
    let wrong = store.get("norm", [3]);
    assert_eq!(wrong.as_ref().unwrap_err().paths(), [path]);
    table.row("Shape", wrong, "norm: want [3], got [2]", None);
}

fn graphs(table: &mut Table) {
    let sizes = StateOptions { n_slots: 1, n_ctx: 64, kv_dtype: DType::F32, n_pending: 0, two_rows: false };
    let layout = States::new().layout(&sizes).unwrap();
    let g = GraphBuilder::new(&layout);
    g.output(g.add(g.input(Input::Features, [2, 4]), g.input(Input::Embeddings, [2, 3])));
    table.row("Graph", g.finish(), file!(), None);

    let s = session(cpu());
    let none = GraphKey { n_tokens: 0, ..key(0) };
    table.row("Key", s.describe(&none), "GraphKey { ", None);
    let [one, other] = [0, 1].map(|n_outputs| s.describe(&key(n_outputs)).unwrap());
    let verified = verify(one.graph(), one.cuts(), 0, other.plan(0).unwrap());
    table.row("Only", verified, "it is of another graph", None);

    let (mut s, change) = hybrid::open_changing(cpu());
    let slot = s.memory_mut().acquire().unwrap();
    hybrid::step(&mut s, &[(slot, &[1])]);
    change(0.4);
    table.row("StaleGraph", hybrid::try_step(&mut s, &[(slot, &[1])]), "a kept graph is stale: GraphKey { ", None);
}

fn devices(table: &mut Table) {
    let says = "abacus: no such backend (known: cpu, reference)";
    table.row("UnknownBackend", backends::open("abacus", &backends::Options::default()), says, None);
    table.row("Only", "abacus".parse::<Isa>(), "TYMPAN_ISA: want scalar, avx2 or avx512, got \"abacus\"", None);

    let says = format!("out of memory: activations needs {} bytes", 1u64 << 60);
    table.row("OutOfMemory", cpu().alloc(1 << 60), &says, None);
    let buffer = cpu().alloc(64).unwrap();
    table.row("Refused", cpu().write(&buffer, 60, &[0; 8]), "cpu: 8 bytes at 60 of a buffer of 64", None);

    let no_norms = |op: &Op| matches!(op, Op::RmsNorm { .. } | Op::AddRmsNorm { .. });
    let s = session(Faulty::new(cpu(), no_norms));
    table.row("Unsupported", s.describe(&key(1)), "rms_norm is not supported by backend cpu: operands ", None);

    let faulty = Faulty::new(cpu(), |_| false);
    let mut s = session(Arc::clone(&faulty) as _);
    let slot = s.memory_mut().acquire().unwrap();
    hybrid::step(&mut s, &[(slot, &[1, 2])]);
    faulty.fail(Fault::BeforeRun);
    table.row("Device", hybrid::try_step(&mut s, &[(slot, &[3])]), "faulty: told to fail", None);
    let says = "a call failed half-way through the state of slot 0: release it or rewind it to 0";
    table.row("TornSlot", s.memory().n_past(slot), says, None);
}

fn sequences(table: &mut Table) {
    let mut s = session(cpu());
    let slot = s.memory_mut().acquire().unwrap();
    hybrid::step(&mut s, &[(slot, &tokens(1, 5))]);
    table.row("NoState", s.memory().read_state(slot, 9), "state 9 of 3: there is none", None);
    let says = format!("all {N_SLOTS} slots are in use");
    table.row("NoFreeSlot", s.memory_mut().acquire_at(N_SLOTS), &says, None);
    let says = "the context holds 64 tokens, 65 are needed";
    table.row("ContextFull", s.memory_mut().grow(slot, 60), says, None);
    let says = "recurrent state cannot be rewound to this position";
    table.row("NotRewindable", s.memory_mut().rewind(slot, 4), says, None);
    table.row("Snapshot", s.restore(slot, &[0; 100]), "snapshot: these bytes are no snapshot", None);
    let says = format!("token {N_VOCAB} is outside the vocabulary of {N_VOCAB}");
    table.row("Batch", hybrid::try_step(&mut s, &[(slot, &[N_VOCAB as u32])]), &says, None);

    table.row("Only", greedy(&[0.0, f32::NAN]), "logits that are not finite", None);
    let rules = Rules {
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_stop: false,
        max_tokens: 1,
        n_usable: N_VOCAB,
        prompt_logits: false,
    };
    let poison = Prompt { ids: vec![-1], embeddings: vec![f32::NAN; N_EMBD] };
    let mut scheduler = Scheduler::new(session(cpu()));
    let run = scheduler.run(Decoding::new(poison, N_EMBD, rules), &mut |_, _| ControlFlow::Continue(()));
    table.row("NotFinite", run, "sequence 0, step 0", Some("logits that are not finite"));
}

fn names(table: &mut Table) {
    table.row("Only", languages::find("Klingon", &[]), "language \"Klingon\" is not supported", None);
    let file = |keys: &[(&str, &str)]| {
        let mut out = GgufWriter::in_memory("keys.gguf");
        keys.iter().for_each(|&(key, value)| out.key(key, value).unwrap());
        out.finish_in_memory().unwrap()
    };
    let of = |architecture| file(&[("general.architecture", architecture)]);
    let projector = file(&[("general.architecture", "clip"), ("clip.projector_type", "lfm2a")]);
    let says = "keys.gguf: a projector (mmproj) without its text model";
    table.row("NoTextModel", registry::find(&[projector], LoadOptions::default()), says, None);
    let says = "keys.gguf: qwen3vl needs its qwen3a projector (mmproj) file beside it, or --mmproj";
    table.row("NoProjector", registry::find(&[of("qwen3vl")], LoadOptions::default()), says, None);
    let says = "keys.gguf: architecture \"gpt2\" is not supported (supported: qwen3-asr, ";
    table.row("UnknownArchitecture", registry::find(&[of("gpt2")], LoadOptions::default()), says, None);
}

fn audio(table: &mut Table) {
    let decode = |name: &str| decode_file(&fixture("formats").join(name));
    let says = |name: &str, what: &str| format!("{}{what}", fixture("formats").join(name).display());
    table.row("Io", decode("missing.wav"), &says("missing.wav", ""), Some(NO_FILE));
    let what = ": not an audio file in a known format";
    table.row("NotRecognised", decode("make.sh"), &says("make.sh", what), None);
    let what = ": no audio track (container mp4; tracks: video h264)";
    table.row("NoAudioTrack", decode("video_only.mp4"), &says("video_only.mp4", what), None);
    let what = ": codec wma is not supported (container wav; there is no decoder)";
    table.row("Codec", decode("wma.wav"), &says("wma.wav", what), None);

    table.row("Empty", decode_bytes("clip", b""), "clip: empty file", None);
    let says = "clip: longer than 1024 MiB, the limit for a stream";
    table.row("TooManyBytes", decode_reader("clip", std::io::repeat(0)), says, None);
    table.row("NoSamples", decode_bytes("clip", &float_wav(16_000, 1, &[])), "clip: no samples", None);
    let says = "clip: sample rate 999 Hz, want 1000 to 384000 Hz";
    table.row("SampleRate", decode_bytes("clip", &float_wav(999, 1, &[0.0; 10])), says, None);
    let says = "clip: sample 1 is NaN, want a number of at most 1e30";
    table.row("BadSample", decode_bytes("clip", &float_wav(16_000, 1, &[0.0, f32::NAN, f32::NAN])), says, None);
    let long = wav(1, 1000, 1, 8, &vec![128; models::audio::limits::MAX_SAMPLES / 16 + 1]);
    table.row("TooLong", decode_bytes("clip", &long), "clip: longer than 33554 s, the limit at its sample rate", None);
}

fn damaged_audio(table: &mut Table) {
    let read = |name: &str| std::fs::read(fixture("formats").join(name)).unwrap();
    let says = "clip: cannot be read: the file ends early";
    table.row("Container", decode_bytes("clip", &read("flac.flac")[..100]), says, None);

    let mut damaged = read("adpcm_ima.wav");
    let n = damaged.len();
    damaged[n / 8..].fill(0xff);
    let says = "clip: damaged: 6 of 7 packets cannot be decoded (adpcm (ima): invalid step index)";
    table.row("Damaged", decode_bytes("clip", &damaged), says, None);

    let mut many = read("aiff.aiff");
    let at = many.windows(4).position(|w| w == b"COMM").unwrap() + 8;
    many[at..at + 2].copy_from_slice(&65u16.to_be_bytes());
    table.row("Channels", decode_bytes("clip", &many), "clip: 65 channels, want 1 to 64", None);

    let film = read("with_video.mp4");
    let index = film.windows(4).position(|w| w == b"moov").unwrap() - 4;
    let says = "clip: mp4 without its index (moov): the recording was not finished";
    table.row("Unfinished", decode_bytes("clip", &film[..index]), says, None);
    table.row("NotRead", decode_bytes("clip", b"#!AMR\n\x3c"), "clip: amr files are not read", None);
}

/// Writes a changed model to `path` and opens it.
fn changed(draft: &Draft, path: &Path, edit: impl FnOnce(&mut Draft)) -> Gguf {
    let mut draft = draft.clone();
    edit(&mut draft);
    draft.write(path);
    Gguf::open(path).unwrap()
}

fn load(file: Gguf) -> models::Result<Loaded> {
    models::load(vec![file], LoadOptions::default())
}

fn architectures(table: &mut Table) {
    const HEADS: &str = "lfm2.attention.head_count_kv";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let open = |path: &Path| -> models::Result<Loaded> { load(Gguf::open(path)?) };
    let name = path.display().to_string();
    table.row("Engine", open(&path), &name, Some(NO_FILE));

    let says = |what: &str| format!("{name}: {what}");
    let draft = Draft::of(&converted(&fixture("golden/lfm2"), FileType::BF16));
    let load = |edit: fn(&mut Draft)| load(changed(&draft, &path, edit));
    let missing = load(|d| drop(d.keys.remove(HEADS)));
    table.row("MissingKey", missing, &says(&format!("metadata key {HEADS} is missing")), None);
    let wrong = load(|d| drop(d.keys.insert(HEADS.into(), "0,0,2,0".into())));
    table.row("Key", wrong, &says(&format!("metadata key {HEADS}: want ")), None);
    let bad = load(|d| drop(d.keys.insert("lfm2.block_count".into(), 0u32.into())));
    table.row("BadValue", bad, &says("metadata key lfm2.block_count: want 1 to "), None);
    let missing = load(|d| drop(d.take("blk.3.ffn_up.weight")));
    table.row("Weight", missing, &says("tensor blk.3.ffn_up.weight is missing"), None);
}

fn values(table: &mut Table) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let says = |what: &str| format!("{}: {what}", path.display());
    let draft = Draft::of(&converted(&fixture("golden/qwen3_asr"), FileType::BF16));
    let short = changed(&draft, &path, |d| {
        let positions = d.tensor("a.position_embd.weight");
        let row = positions.bytes.len() / positions.dims[0];
        positions.dims[0] = 1;
        positions.bytes.truncate(row);
    });
    table.row("BadWeight", load(short), &says("a.position_embd.weight: want at least 13 rows, got 1"), None);
    let unknown = changed(&draft, &path, |d| drop(d.keys.insert("tokenizer.ggml.pre".into(), "abacus".into())));
    let what = "tokenizer: pre-tokenizer \"abacus\" is not supported (supported: ";
    table.row("Tokenizer", Tokenizer::from_gguf(&unknown), &says(what), None);
    let what = "tokenizer: tokenizer model \"\" is not supported";
    table.row("Tokenizer", Tokenizer::new(Vocabulary::default()), what, None);
}

fn speech(table: &mut Table) {
    let load = |name: &str, text_only| {
        let file = converted(&fixture("golden").join(name), FileType::BF16);
        models::load(vec![file], LoadOptions { text_only, ..LoadOptions::default() }).unwrap()
    };
    let open = |loaded: &Loaded| Transcriber::open(loaded, &[cpu()], DType::F16);
    let says = "lfm2 is not a speech model (speech models: qwen3-asr, lfm2-audio)";
    table.row("NotSpeech", open(&load("lfm2", false)), says, None);
    let says = "there is no audio encoder: only the language model of qwen3-asr was loaded";
    table.row("NoEncoder", open(&load("qwen3_asr", true)), says, None);
    let mut transcriber = open(&load("qwen3_asr", false)).unwrap();
    let cancelled = transcriber.transcribe(&[0.0; 16_000], &Request::default(), &mut Impatient);
    table.row("Cancelled", cancelled, "cancelled", None);
}

/// Wants nothing.
struct Impatient;

impl Observer for Impatient {
    fn is_cancelled(&self) -> bool {
        true
    }
}

fn requests(table: &mut Table) {
    let recipe = MelRecipe::Whisper;
    let good =
        MelParams { recipe, rate_hz: 16_000, n_fft: 400, win_length: 400, hop: 160, n_mels: 128, min_samples: 8000 };
    let odd = MelSpectrogram::new(MelParams { n_fft: 401, ..good });
    let half = models::chat::Template::new("{% if %}", models::chat::SpecialTokens::default()).map(|_| ());
    table.row("Template", half, "chat template: line 1: syntax error", None);
    table.row("FrontEnd", odd, "audio front end: n_fft: want an even number up to ", None);
    let nothing = MelSpectrogram::new(good).unwrap().compute(&[], &Serial);
    table.row("Argument", nothing, "audio: want at least one sample, got 0", None);
}

fn conversions(table: &mut Table) {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = fixture("golden/lfm2");
    let open = |folder: &Path| Conversion::open(folder, |_| Options::new(FileType::F16));
    let missing = folder.path().join("none");
    table.row("Model", open(&missing), &missing.display().to_string(), Some(NO_FILE));
    let spoilt = copy_of("golden/lfm2");
    let config = spoilt.path().join("config.json");
    std::fs::write(&config, "{").unwrap();
    table.row("Model", open(spoilt.path()), &format!("{}: not JSON", config.display()), Some("EOF while parsing"));

    let quantized = converted(&checkpoint, FileType::Q8_0);
    let says = format!("{}: token_embd.weight is Q8_0 already; --allow-requantize", quantized.path().display());
    let again = Quantization::plan(quantized, FileType::F16, None, &Overrides::default(), false);
    table.row("Usage", again, &says, None);

    let conversion = open(&checkpoint).unwrap();
    let paths = [missing.join("model.gguf")];
    let written = conversion.write(&paths, &AtomicBool::new(false));
    table.row("Output", written, &paths[0].display().to_string(), Some(NO_FILE));
    let paths = [folder.path().join("model.gguf")];
    table.row("Interrupted", conversion.write(&paths, &AtomicBool::new(true)), "interrupted", None);

    let whole = convert(&checkpoint, pair(FileType::BF16)).unwrap();
    let tensor_bytes = whole[0].tensors().map(|t| t.bytes.len()).sum();
    let one = NonZeroUsize::new(1);
    let in_memory = || refusing(tensor_bytes, || convert::to_memory(&checkpoint));
    let says = format!("out of memory: {} in memory needs ", checkpoint.display());
    table.row("Memory", convert::workers::with(one, in_memory).unwrap(), &says, None);
}
