//! The library that programs use: how models are found, recordings read, and what goes wrong.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use tympan::engine::error::Chain;
use tympan::models::audio::{AudioErrorKind, decode_file};
use tympan::models::transcribe::Tensors;
use tympan::{Audio, Device, Error, Model, Observer, Opening, Partial, Request, Transcript};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

const CLIP: &str = "audio/digits_eight.wav";
const TEXT: &str = "three one four one five nine two six";

fn text_of(model: &Model) -> String {
    let mut recognizer = model.recognizer(&Device::default()).unwrap();
    recognizer.file(fixture(CLIP), &Request::default(), &mut ()).unwrap().transcript.text
}

#[test]
fn a_checkpoint_the_built_in_model_and_a_folder_with_one_file_are_the_same_model() {
    let checkpoint = fixture("models/tiny-qwen3-asr");
    let model = Model::open(&checkpoint, &Opening::default()).unwrap();
    assert_eq!((model.name.as_str(), text_of(&model).as_str()), ("tiny-qwen3-asr", TEXT));
    assert_eq!(text_of(&Model::demonstration().unwrap()), TEXT);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    use tympan::convert::{Conversion, FileType, Options};
    let options = Options { bundle: true, ..Options::new(FileType::BF16) };
    let conversion = Conversion::open(&checkpoint, |_| options).unwrap();
    conversion.write(std::slice::from_ref(&path), &std::sync::atomic::AtomicBool::new(false)).unwrap();
    for path in [folder.path(), &path] {
        let model = Model::open(path, &Opening::default()).unwrap();
        assert_eq!((model.name.as_str(), model.dtype.as_str()), ("tiny.gguf", "BF16"));
        assert_eq!(text_of(&model), TEXT);
        model.check_unchanged().unwrap();
    }
}

#[test]
fn samples_of_any_rate_are_heard_like_their_file() {
    let model = Model::demonstration().unwrap();
    let mut recognizer =
        model.recognizer(&Device { threads: std::num::NonZeroUsize::new(1), ..Device::default() }).unwrap();
    let decoded = decode_file(&fixture(CLIP)).unwrap();
    let request = Request { start_s: 100.0, ..Request::default() };
    let found = recognizer.samples(decoded.samples.clone(), decoded.rate_hz, &request, &mut ()).unwrap();
    assert_eq!((found.transcript.text.as_str(), found.transcript.segments[0].start_s), (TEXT, 100.0));
    // Every sample three times is the same sound at three times the rate.
    let tripled: Vec<f32> = decoded.samples.iter().flat_map(|&x| [x, x, x]).collect();
    let found = recognizer.samples(tripled, 3 * decoded.rate_hz, &Request::default(), &mut ()).unwrap();
    assert_eq!(found.transcript.text, TEXT);
}

/// Counts what it sees; wants no more after so many answers.
struct Watcher {
    answers: usize,
    most_answers: usize,
    tensors: usize,
    texts: Vec<String>,
}

impl Watcher {
    fn new(most_answers: usize) -> Self {
        Self { answers: 0, most_answers, tensors: 0, texts: Vec::new() }
    }
}

impl Observer for Watcher {
    fn is_cancelled(&self) -> bool {
        self.answers >= self.most_answers
    }

    fn answer(&mut self, _: &Partial<'_>) {
        self.answers += 1;
    }

    fn segment(&mut self, so_far: &Transcript) {
        self.texts.push(so_far.text.clone());
    }

    fn tensors(&mut self, _: usize, _: &Tensors<'_>) {
        self.tensors += 1;
    }
}

#[test]
fn who_watches_sees_segments_grow_and_can_stop() {
    let model = Model::demonstration().unwrap();
    let mut recognizer = model.recognizer(&Device::default()).unwrap();
    let request = Request { segment_s: Some(8.0), ..Request::default() };
    let clip = fixture("audio/long_24s.wav");
    let mut watcher = Watcher::new(usize::MAX);
    let whole = recognizer.file(&clip, &request, &mut watcher).unwrap().transcript;
    assert!(watcher.texts.len() > 2 && watcher.tensors == watcher.texts.len());
    assert!(watcher.texts.windows(2).all(|pair| pair[1].starts_with(&pair[0])));
    assert_eq!(watcher.texts.last(), Some(&whole.text));
    let mut watcher = Watcher::new(3);
    let stopped = recognizer.file(&clip, &request, &mut watcher);
    assert!(matches!(stopped, Err(Error::Model(tympan::models::Error::Cancelled))), "{:?}", stopped.map(|_| ()));
    // It is ready for the next recording.
    let again = recognizer.file(&clip, &request, &mut ()).unwrap();
    assert_eq!(again.transcript.text, whole.text);
}

/// The variant, and what is shown with its causes.
#[track_caller]
fn shown<T>(result: tympan::Result<T>) -> (&'static str, String) {
    let error = result.err().expect("an error");
    let variant = match &error {
        Error::NoModel { .. } => "NoModel",
        Error::Io { .. } => "Io",
        Error::Audio(_) => "Audio",
        Error::Convert(_) => "Convert",
        Error::Model(_) => "Model",
        Error::Engine(_) => "Engine",
        _ => "a variant that this test does not know",
    };
    let text = Chain(&error).to_string();
    // A cause that is known for what it is says it in fewer words.
    if let Some(cause) = error.source() {
        assert!(text.matches(&cause.to_string()).count() <= 1, "says its cause twice: {text}");
    }
    (variant, text)
}

#[test]
fn every_error_names_its_file_and_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let open = |path: PathBuf| Model::open(path, &Opening::default());
    let expect = |(variant, text): (&str, String), want: &str, says: &[&str]| {
        assert_eq!(variant, want, "{text}");
        says.iter().for_each(|says| assert!(text.contains(says), "{text}: want {says}"));
    };
    expect(shown(open(folder.path().to_owned())), "NoModel", &["no model in this directory"]);
    std::fs::write(path("a.gguf"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").unwrap();
    expect(shown(open(path("a.gguf"))), "NoModel", &["a.gguf", "Git LFS"]);
    std::fs::write(path("b.gguf"), "b").unwrap();
    expect(shown(open(folder.path().to_owned())), "NoModel", &["several models (a.gguf, b.gguf)"]);
    expect(shown(open(path("b.gguf"))), "Engine", &["b.gguf"]);
    expect(shown(open(path("absent.gguf"))), "Engine", &["absent.gguf", "no such file"]);
    std::fs::create_dir(path("checkpoint")).unwrap();
    std::fs::write(path("checkpoint/config.json"), "{\"model_type\": \"gpt2\"}").unwrap();
    expect(shown(open(path("checkpoint"))), "Convert", &["checkpoint", "model.safetensors"]);

    let model = Model::demonstration().unwrap();
    let device = Device { name: "abacus".into(), ..Device::default() };
    expect(shown(model.recognizer(&device)), "Engine", &["abacus", "cpu"]);
    let mut recognizer = model.recognizer(&Device::default()).unwrap();
    let mut hear = |name: &str| recognizer.file(path(name), &Request::default(), &mut ()).map(|_| ());
    expect(shown(hear("absent.wav")), "Audio", &["absent.wav", "no such file"]);
    expect(shown(hear("b.gguf")), "Audio", &["b.gguf"]);
    let request = Request { language: Some("Klingon"), ..Request::default() };
    expect(shown(recognizer.file(fixture(CLIP), &request, &mut ())), "Model", &["\"Klingon\" is not supported"]);
    let request = Request { language: Some("en-GB"), ..Request::default() };
    let found = recognizer.file(fixture(CLIP), &request, &mut ()).unwrap();
    assert_eq!(found.transcript.language.as_deref(), Some("English"));

    let refused = |samples: Vec<f32>, rate_hz| Audio::of_samples(samples, rate_hz).unwrap_err().kind;
    assert!(matches!(refused(vec![], 16_000), AudioErrorKind::NoSamples));
    assert!(matches!(refused(vec![0.0], 0), AudioErrorKind::SampleRate { rate_hz: 0 }));
    assert!(matches!(refused(vec![0.0, f32::NAN], 16_000), AudioErrorKind::BadSample { at: 1, .. }));
}
