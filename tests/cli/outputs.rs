//! Outputs: what is refused before any work, what is never lost, and what is left when a run does not come to its end.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::run::{Run, clip, command, fixtures, tympan};
use crate::signals::{long_recording, send, signals};

/// What every precious file holds.
const PRECIOUS: &str = "precious";

/// A folder of files and a command that reads and writes there.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A subcommand that writes one file, which succeeds where its output can be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Writer {
    Transcribe,
    Dump,
    Convert,
    Quantize,
    LogitsOut,
    Plot,
}

const WRITERS: [Writer; 6] =
    [Writer::Transcribe, Writer::Dump, Writer::Convert, Writer::Quantize, Writer::LogitsOut, Writer::Plot];

impl Writer {
    /// What its output is called.
    fn name(self) -> &'static str {
        match self {
            Self::Transcribe => "in.txt",
            Self::Dump => "in.safetensors",
            Self::Convert | Self::Quantize => "out.gguf",
            Self::LogitsOut => "out.safetensors",
            Self::Plot => "out.svg",
        }
    }

    /// Its inputs, put into a folder, the first of them one that its output could replace.
    fn inputs(self, folder: &Path) -> Vec<PathBuf> {
        let copy = |from: PathBuf, name: &str| {
            let to = folder.join(name);
            std::fs::copy(from, &to).unwrap();
            to
        };
        match self {
            Self::Transcribe | Self::Dump => vec![copy(clip("yes.wav"), "in.wav")],
            Self::Convert => ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
                .map(|name| copy(fixtures().join("models/tiny-qwen3-asr").join(name), name))
                .into(),
            Self::Quantize => vec![copy(fixtures().join("quant/model.gguf"), "in.gguf")],
            Self::LogitsOut => {
                let model = folder.join("in.gguf");
                let golden = fixtures().join("golden/lfm2");
                tympan(["convert".as_ref(), golden.as_os_str(), "-o".as_ref(), model.as_os_str()]).expect(0);
                vec![model]
            }
            Self::Plot => vec![copy(fixtures().join("quant/model.gguf"), "model.gguf")],
        }
    }

    /// Its arguments; the output is `folder/name`.
    fn arguments(self, inputs: &[PathBuf], folder: &Path) -> Vec<OsString> {
        let output = folder.join(self.name());
        let text = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let first = || inputs[0].clone().into_os_string();
        let mut all = match self {
            Self::Transcribe => text(&["transcribe", "-o"]),
            Self::Dump => text(&["transcribe", "--dump"]),
            Self::Convert => text(&["convert", "--bundle", "-o"]),
            Self::Quantize => vec!["quantize".into(), first()],
            Self::LogitsOut => {
                let mut all = text(&["generate", "--prompt-ids", "1,2", "-n", "1", "-m"]);
                all.extend([first(), "--logits-out".into()]);
                all
            }
            Self::Plot => text(&["bench", "-p", "8", "-n", "0", "-r", "1", "--plot"]),
        };
        match self {
            Self::Transcribe | Self::Dump => all.extend([folder.into(), first()]),
            Self::Convert => all.extend([output.into(), inputs[0].parent().unwrap().into()]),
            Self::Quantize => all.extend([output.into(), "q4_0".into(), "--allow-requantize".into()]),
            Self::LogitsOut | Self::Plot => all.push(output.into()),
        }
        all
    }

    /// Runs it with its output in `folder`, having put its inputs there.
    fn run(self, inputs: &[PathBuf], folder: &Path) -> Run {
        tympan(self.arguments(inputs, folder))
    }
}

/// Before a model is loaded nothing is said but the error.
#[track_caller]
fn refused(run: Run, code: i32, says: &[&str]) {
    let run = run.expect(code);
    assert_eq!(run.err.lines().count(), 1, "{}", run.err);
    assert!(run.out.is_empty() && !run.err.contains("os error") && !run.err.contains(".tympan-"), "{}", run.err);
    for text in says {
        assert!(run.err.contains(text), "{}: want {text}", run.err);
    }
}

#[test]
fn places_that_take_no_file_are_refused_before_any_work() {
    for writer in WRITERS {
        let (source, place) = (Place::new(), Place::new());
        let inputs = writer.inputs(source.0.path());
        std::fs::write(place.at("file"), PRECIOUS).unwrap();
        refused(writer.run(&inputs, &place.at("file")), 1, &["file", "not a directory"]);
        refused(writer.run(&inputs, &place.at("file/below")), 1, &["file/below", "not a directory"]);
        std::fs::create_dir_all(place.at("directory").join(writer.name())).unwrap();
        // A folder with the name of the output is where `convert` puts its files.
        if writer != Writer::Convert {
            refused(writer.run(&inputs, &place.at("directory")), 1, &[writer.name(), ": is a directory"]);
        }
        std::fs::create_dir(place.at("links")).unwrap();
        symlink("nowhere", place.at("links").join(writer.name())).unwrap();
        refused(writer.run(&inputs, &place.at("links")), 1, &[writer.name(), "a link to a file that does not exist"]);
        assert_eq!(place.names(), ["directory", "file", "links"]);
        assert_eq!(std::fs::read_to_string(place.at("file")).unwrap(), PRECIOUS);
    }
}

#[test]
fn names_without_room_are_refused_before_any_work() {
    let (source, place) = (Place::new(), Place::new());
    // With its ending the input's name fits, and no longer that of the output.
    let input = source.at("n".repeat(250) + ".wav");
    std::fs::copy(clip("yes.wav"), &input).unwrap();
    let folder = place.0.path().as_os_str();
    for flags in [&["-f", "jsonl", "-o"][..], &["-f", "text,jsonl", "-o"], &["--dump"]] {
        let arguments = ["transcribe"].iter().chain(flags).map(OsStr::new).chain([folder, input.as_os_str()]);
        refused(tympan(arguments), 1, &["nnn.", "cannot be written: file name too long"]);
    }
    for writer in [Writer::Convert, Writer::Quantize, Writer::LogitsOut, Writer::Plot] {
        let inputs = writer.inputs(source.0.path());
        let mut arguments = writer.arguments(&inputs, place.0.path());
        let output = arguments.iter_mut().find(|word| Path::new(word).ends_with(writer.name())).unwrap();
        *output = place.at("n".repeat(250) + writer.name()).into();
        refused(tympan(arguments), 1, &[writer.name(), "cannot be written: file name too long"]);
    }
    assert_eq!(place.names(), [""; 0]);
}

/// Names are bytes: outputs are named after inputs whatever these are.
#[cfg(target_os = "linux")]
#[test]
fn outputs_are_named_after_inputs_that_are_no_unicode() {
    use std::os::unix::ffi::OsStrExt;

    let place = Place::new();
    let names = [&b"\xffa"[..], b"\xfea"].map(|stem| OsStr::from_bytes(stem).to_owned());
    let inputs = names.each_ref().map(|stem| place.at(stem).with_extension("wav"));
    for path in &inputs {
        std::fs::copy(clip("yes.wav"), path).unwrap();
    }
    let out = place.at("out");
    let arguments = ["transcribe".as_ref(), "-q".as_ref(), "-o".as_ref(), out.as_os_str()];
    tympan(arguments.into_iter().chain(inputs.iter().map(|path| path.as_os_str()))).expect(0);
    for stem in names {
        assert_eq!(std::fs::read_to_string(out.join(stem).with_extension("txt")).unwrap(), "yes\n");
    }
    let document =
        tympan(["transcribe".as_ref(), "-q".as_ref(), "-f".as_ref(), "jsonl".as_ref(), inputs[0].as_os_str()]);
    assert!(document.expect(0).json_lines()[0]["file"].as_str().unwrap().ends_with("/\u{fffd}a.wav"));
}

#[cfg(target_os = "linux")]
#[test]
fn folders_that_may_not_be_written_to_are_refused_before_any_work() {
    for writer in WRITERS {
        let source = Place::new();
        // Even root makes no files there.
        refused(
            writer.run(&writer.inputs(source.0.path()), Path::new("/proc/self")),
            1,
            &["/proc/self/", "cannot be written"],
        );
    }
}

#[test]
fn an_output_that_is_an_input_is_refused_by_whatever_name() {
    type Put = fn(&Path, &Path);
    let ways: [(&str, Put); 2] = [
        ("hard", |input, output| std::fs::hard_link(input, output).unwrap()),
        ("soft", |input, output| symlink(input, output).unwrap()),
    ];
    for writer in WRITERS.into_iter().filter(|&writer| writer != Writer::Plot) {
        for (way, put) in ways {
            let (source, place) = (Place::new(), Place::new());
            let inputs = writer.inputs(source.0.path());
            let before = std::fs::read(&inputs[0]).unwrap();
            put(&inputs[0], &place.at(writer.name()));
            refused(writer.run(&inputs, place.0.path()), 2, &[writer.name(), "is the same file as an input"]);
            assert!(std::fs::read(&inputs[0]).unwrap() == before, "{writer:?}, {way}");
            assert_eq!(place.names(), [writer.name()]);
        }
    }
}

/// A directory that `-m` names is none of them, and neither is the file whose projector is found beside it.
#[test]
fn an_output_that_is_a_part_of_a_model_is_refused() {
    let place = Place::new();
    let checkpoint = place.at("checkpoint");
    std::fs::create_dir(&checkpoint).unwrap();
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"] {
        std::fs::copy(fixtures().join("models/tiny-qwen3-asr").join(name), checkpoint.join(name)).unwrap();
    }
    let pair = place.at("pair/x.gguf");
    std::fs::create_dir(place.at("pair")).unwrap();
    tympan(["convert".as_ref(), "-q".as_ref(), checkpoint.as_os_str(), "-o".as_ref(), pair.as_os_str()]).expect(0);
    std::fs::create_dir(place.at("out")).unwrap();
    std::fs::copy(clip("yes.wav"), place.at("model.wav")).unwrap();
    std::fs::copy(clip("yes.wav"), place.at("tokenizer.wav")).unwrap();
    symlink(place.at("pair/mmproj-x.gguf"), place.at("out/tokenizer.json")).unwrap();
    symlink(checkpoint.join("vocab.json"), place.at("out/x.svg")).unwrap();
    let at = |name: &str| place.at(name).to_str().unwrap().to_owned();
    let (checkpoint, pair) = (at("checkpoint"), at("pair/x.gguf"));
    for (arguments, precious) in [
        (&["generate", "-m", &checkpoint, "-p", "a", "--logits-out", &at("checkpoint/model.safetensors")][..], 0),
        (&["generate", "-m", &pair, "-p", "a", "--logits-out", &at("pair/mmproj-x.gguf")], 1),
        (&["transcribe", "-m", &checkpoint, "--overwrite", "--dump", &checkpoint, &at("model.wav")], 0),
        (&["transcribe", "-m", &checkpoint, "--overwrite", "-f", "json", "-o", &checkpoint, &at("tokenizer.wav")], 2),
        (&["transcribe", "-m", &pair, "--overwrite", "-f", "json", "-o", &at("out"), &at("tokenizer.wav")], 1),
        (&["bench", "-m", &checkpoint, "-p", "1", "-n", "0", "--plot", &at("out/x.svg")], 3),
    ] {
        let names = [
            "checkpoint/model.safetensors",
            "pair/mmproj-x.gguf",
            "checkpoint/tokenizer.json",
            "checkpoint/vocab.json",
        ];
        let precious = place.at(names[precious]);
        let before = std::fs::read(&precious).unwrap();
        refused(tympan(arguments), 2, &["is the same file as an input: "]);
        assert!(std::fs::read(&precious).unwrap() == before, "{arguments:?}");
    }
    // What a model has not been read from may be replaced.
    let arguments = ["transcribe", "-q", "-m", &checkpoint, "-o", &checkpoint, "--overwrite", &at("model.wav")];
    for _ in 0..2 {
        tympan(arguments).expect(0);
    }
}

#[test]
fn a_file_is_not_quantized_onto_itself() {
    let place = Place::new();
    let input = Writer::Quantize.inputs(place.0.path()).remove(0);
    let before = std::fs::read(&input).unwrap();
    std::fs::create_dir(place.at("below")).unwrap();
    for output in [input.clone(), place.at("below/../in.gguf")] {
        let arguments = [OsStr::new("quantize"), input.as_os_str(), output.as_os_str(), OsStr::new("q4_0")];
        refused(tympan(arguments.into_iter().chain([OsStr::new("--allow-requantize")])), 2, &["in.gguf", "an input"]);
        assert!(std::fs::read(&input).unwrap() == before);
    }
}

#[test]
fn outputs_that_are_one_file_are_refused() {
    let place = Place::new();
    for name in ["a", "b"] {
        std::fs::copy(clip("yes.wav"), place.at(format!("{name}.wav"))).unwrap();
        symlink("both", place.at(format!("{name}.txt"))).unwrap();
    }
    std::fs::write(place.at("both"), PRECIOUS).unwrap();
    let folder = place.0.path().as_os_str();
    let inputs = [place.at("a.wav"), place.at("b.wav")];
    let arguments = ["transcribe".as_ref(), "--overwrite".as_ref(), "-o".as_ref(), folder];
    let run = tympan(arguments.into_iter().chain(inputs.iter().map(|path| path.as_os_str())));
    refused(run, 2, &["b.txt", "a.txt", "the same file as another output"]);
    assert_eq!(std::fs::read_to_string(place.at("both")).unwrap(), PRECIOUS);
}

#[test]
fn a_link_stays_and_what_it_leads_to_is_replaced() {
    for writer in WRITERS {
        let (source, place) = (Place::new(), Place::new());
        let inputs = writer.inputs(source.0.path());
        std::fs::create_dir(place.at("elsewhere")).unwrap();
        std::fs::write(place.at("elsewhere/file"), PRECIOUS).unwrap();
        symlink("elsewhere/file", place.at(writer.name())).unwrap();
        let mut arguments = writer.arguments(&inputs, place.0.path());
        if matches!(writer, Writer::Transcribe | Writer::Dump) {
            arguments.push("--overwrite".into());
        }
        tympan(arguments).expect(0);
        assert!(place.at(writer.name()).is_symlink(), "{writer:?}");
        assert!(std::fs::read(place.at("elsewhere/file")).unwrap() != PRECIOUS.as_bytes(), "{writer:?}");
        assert_eq!(std::fs::read_dir(place.at("elsewhere")).unwrap().count(), 1, "{writer:?}");
    }
}

#[test]
fn pipes_and_devices_are_written_to() {
    for writer in WRITERS {
        let (source, place) = (Place::new(), Place::new());
        let inputs = writer.inputs(source.0.path());
        let pipe = place.at(writer.name());
        writer.run(&inputs, place.0.path()).expect(0);
        let file = std::fs::read(&pipe).unwrap();
        std::fs::remove_file(&pipe).unwrap();

        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut child = command(writer.arguments(&inputs, place.0.path()));
        let child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut piped = Vec::new();
        std::fs::File::open(&pipe).unwrap().read_to_end(&mut piped).unwrap();
        let finished = child.wait_with_output().unwrap();
        assert!(finished.status.success(), "{writer:?}: {}", String::from_utf8_lossy(&finished.stderr));
        // The picture of a measurement is another one every time.
        assert!(if writer == Writer::Plot { piped.starts_with(b"<svg") } else { piped == file }, "{writer:?}");

        std::fs::remove_file(&pipe).unwrap();
        symlink("/dev/full", &pipe).unwrap();
        let run = writer.run(&inputs, place.0.path()).expect(1);
        assert!(run.err.contains(writer.name()) && run.err.ends_with("no space left on device\n"), "{}", run.err);
        assert!(pipe.is_symlink() && place.names() == [writer.name()], "{writer:?}");
    }
}

/// Runs `transcribe` on two clips with these flags, into `place`.
fn transcribe_two(place: &Place, flags: &[&str]) -> Run {
    let mut arguments: Vec<OsString> = vec!["transcribe".into(), "-o".into(), place.0.path().into()];
    arguments.extend(flags.iter().map(OsString::from));
    arguments.extend(["yes.wav", "open_door.wav"].map(|name| clip(name).into_os_string()));
    tympan(arguments)
}

#[test]
fn existing_transcripts_are_kept_unless_told_otherwise() {
    let place = Place::new();
    std::fs::write(place.at("open_door.txt"), PRECIOUS).unwrap();
    let both = ["-f", "text,srt"];
    let says = ["outputs that exist: 1, the first is", "open_door.txt", "--overwrite", "--skip-existing"];
    refused(transcribe_two(&place, &both), 1, &says);
    assert_eq!(place.names(), ["open_door.txt"]);

    transcribe_two(&place, &[&both[..], &["--skip-existing"]].concat()).expect(0);
    assert_eq!(place.names(), ["open_door.srt", "open_door.txt", "yes.srt", "yes.txt"]);
    assert_eq!(std::fs::read_to_string(place.at("open_door.txt")).unwrap(), PRECIOUS);

    // Inputs that have all of their outputs are not even read.
    std::fs::remove_file(place.at("yes.srt")).unwrap();
    let run = transcribe_two(&place, &[&both[..], &["--skip-existing"]].concat()).expect(0);
    assert_eq!(run.err.lines().filter(|line| line.contains("audio ")).count(), 1, "{}", run.err);
    let run = transcribe_two(&place, &[&both[..], &["--skip-existing"]].concat()).expect(0);
    assert_eq!(run.err, "nothing to do: all outputs exist\n");

    transcribe_two(&place, &[&both[..], &["--overwrite"]].concat()).expect(0);
    assert_eq!(std::fs::read_to_string(place.at("open_door.txt")).unwrap(), "please open the door\n");
    transcribe_two(&place, &["--overwrite", "--skip-existing"]).expect(2);
}

/// A user that is not the one of these tests.
const NOBODY: u32 = 65_534;

fn is_superuser() -> bool {
    rustix::process::geteuid().is_root()
}

/// What may stand where an unfinished file goes, and is none.
fn put_in_the_way(kind: &str, path: &Path, precious: &Path) {
    std::fs::write(precious, PRECIOUS).unwrap();
    match kind {
        "link" => symlink(precious, path).unwrap(),
        "hard link" => std::fs::hard_link(precious, path).unwrap(),
        "directory" => std::fs::create_dir(path).unwrap(),
        "pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "text" => std::fs::write(path, PRECIOUS).unwrap(),
        "another's" => {
            std::fs::write(path, "").unwrap();
            std::os::unix::fs::chown(path, Some(NOBODY), None).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_in_the_way_of_an_unfinished_file_is_left_alone() {
    let suffixes = [
        (Writer::Transcribe, ".part.jsonl"),
        (Writer::Convert, ".part"),
        (Writer::Convert, ".journal"),
        (Writer::Quantize, ".part"),
        (Writer::Quantize, ".journal"),
    ];
    for (writer, suffix) in suffixes {
        for kind in ["link", "hard link", "directory", "pipe", "text", "another's"] {
            if kind == "another's" && !is_superuser() {
                eprintln!("skipped: only a superuser can make files of others");
                continue;
            }
            let (source, place) = (Place::new(), Place::new());
            let inputs = writer.inputs(source.0.path());
            let name = format!("{}{suffix}", writer.name());
            put_in_the_way(kind, &place.at(&name), &place.at("precious"));
            let before = std::fs::symlink_metadata(place.at(&name)).unwrap();
            let run = writer.run(&inputs, place.0.path()).expect(1);
            assert!(run.err.contains(&format!("{name}: ")) && run.err.contains("left alone"), "{}", run.err);
            assert_eq!(std::fs::read_to_string(place.at("precious")).unwrap(), PRECIOUS, "{writer:?}, {kind}");
            let after = std::fs::symlink_metadata(place.at(&name)).unwrap();
            assert_eq!((after.file_type(), after.len()), (before.file_type(), before.len()), "{writer:?}, {kind}");
            assert_eq!(place.names().len(), 2, "{:?}", place.names());
        }
    }
}

/// A run over two recordings, the second of which takes long.
struct Long {
    place: Place,
    arguments: Vec<OsString>,
}

impl Long {
    fn new() -> Self {
        let place = Place::new();
        std::fs::create_dir(place.at("out")).unwrap();
        let mut arguments: Vec<OsString> = ["transcribe", "-q", "--segment", "6", "-o"].map(OsString::from).into();
        arguments.extend([place.at("out"), clip("yes.wav"), long_recording(place.0.path())].map(OsString::from));
        Self { place, arguments }
    }

    fn journal(&self) -> PathBuf {
        self.place.at("out/long.txt.part.jsonl")
    }

    /// Starts it without an earlier journal, and waits until so many segments of the long recording are finished.
    fn start_until(&self, n_segments: usize) -> Child {
        let _ = std::fs::remove_file(self.journal());
        let mut child = command(&self.arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let n_lines = || std::fs::read_to_string(self.journal()).map_or(0, |text| text.lines().count());
        while n_lines() <= n_segments {
            assert_eq!(child.try_wait().unwrap(), None, "it ended too early");
            std::thread::yield_now();
        }
        child
    }
}

#[test]
fn a_signal_leaves_finished_files_and_the_journal_of_the_one_at_hand() {
    let long = Long::new();
    let whole = tympan(&long.arguments).expect(0);
    assert_eq!(whole.out, "");
    let text = std::fs::read_to_string(long.place.at("out/long.txt")).unwrap();
    for (i, (signal, code)) in signals().into_iter().cycle().take(10).enumerate() {
        let _ = std::fs::remove_file(long.place.at("out/yes.txt"));
        let _ = std::fs::remove_file(long.place.at("out/long.txt"));
        let child = long.start_until(i + 1);
        send(signal, &child);
        let run = child.wait_with_output().unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(code), "{said}");
        let journal = long.journal();
        let end = format!("long.wav: interrupted; its finished segments are in {}\n", journal.display());
        assert!(said.starts_with("error: ") && said.ends_with(&end), "{said}");
        assert_eq!(std::fs::read_to_string(long.place.at("out/yes.txt")).unwrap(), "yes\n");
        assert!(!long.place.at("out/long.txt").exists());
        let lines = std::fs::read_to_string(&journal).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.len() > i + 1 && lines[0]["tympan_journal"] == 1, "{lines:?}");
        let kept: Vec<&str> = lines[1..].iter().map(|line| line["text"].as_str().unwrap()).collect();
        let kept: Vec<&str> = kept.into_iter().filter(|text| !text.is_empty()).collect();
        assert!(text.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(&kept.join(" ")), "{kept:?}");
        assert!(lines[1..].windows(2).all(|pair| pair[0]["samples"][1] == pair[1]["samples"][0]));
    }
    // The next run starts the file over, and takes the journal away.
    std::fs::remove_file(long.place.at("out/yes.txt")).unwrap();
    tympan(&long.arguments).expect(0);
    assert_eq!(std::fs::read_to_string(long.place.at("out/long.txt")).unwrap(), text);
    assert_eq!(std::fs::read_dir(long.place.at("out")).unwrap().count(), 2);
}

#[test]
fn the_lines_of_a_journal_have_their_checksums() {
    let long = Long::new();
    let mut child = long.start_until(2);
    child.kill().unwrap();
    child.wait().unwrap();
    let text = std::fs::read_to_string(long.journal()).unwrap();
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let (fields, sum) = line.trim_end().rsplit_once(",\"crc32\":\"").unwrap();
        assert_eq!(format!("{:08x}\"}}", zlib_crc32(fields.as_bytes())), sum, "{line}");
    }
    let header: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(header["input"]["bytes"], std::fs::metadata(long.place.at("long.wav")).unwrap().len());
    assert_eq!(header["options"]["segment"], 6.0);
}

/// CRC-32 by its definition: the remainder of the message, its first and last 32 bits inverted, divided in GF(2).
fn zlib_crc32(bytes: &[u8]) -> u32 {
    let bits = bytes.iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1 == 1)).chain([false; 32]);
    let remainder = bits.enumerate().fold(0u32, |rest, (i, bit)| {
        let bit = bit != (i < 32);
        (rest << 1 | u32::from(bit)) ^ if rest >> 31 == 1 { 0x04c1_1db7 } else { 0 }
    });
    !remainder.reverse_bits()
}

#[test]
fn two_processes_never_write_one_output() {
    let long = Long::new();
    let mut first = long.start_until(1);
    let mut second = long.arguments.clone();
    second.push("--overwrite".into());
    let run = tympan(&second).expect(1);
    assert!(run.err.contains("long.txt.part.jsonl: another process is writing it"), "{}", run.err);
    assert_eq!(first.try_wait().unwrap(), None);
    send("TERM", &first);
    assert_eq!(first.wait().unwrap().code(), Some(143));
}

#[test]
fn of_two_processes_at_once_one_writes_the_whole_output() {
    const ROUNDS: usize = 5;
    for writer in WRITERS {
        let (source, place) = (Place::new(), Place::new());
        let inputs = writer.inputs(source.0.path());
        writer.run(&inputs, place.0.path()).expect(0);
        let want = std::fs::read(place.at(writer.name())).unwrap();
        for _ in 0..ROUNDS {
            std::fs::remove_file(place.at(writer.name())).unwrap();
            let start = || {
                let mut program = command(writer.arguments(&inputs, place.0.path()));
                program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            };
            let runs = [start(), start()].map(|child| Run::from(child.wait_with_output().unwrap()));
            let refused = ["another process is writing it", "outputs that exist: 1"];
            for run in &runs {
                let is_refused = run.code == 1 && refused.iter().any(|text| run.err.contains(text));
                assert!(run.code == 0 || is_refused, "{writer:?}: {}: {}", run.code, run.err);
            }
            assert!(runs.iter().any(|run| run.code == 0), "{writer:?}: {}", runs[0].err);
            let written = std::fs::read(place.at(writer.name())).unwrap();
            // The picture of a measurement is another one every time.
            let is_picture = writer == Writer::Plot && written.ends_with(b"</svg>\n");
            assert!(is_picture || written == want, "{writer:?}");
            assert_eq!(place.names(), [writer.name()], "{writer:?}");
        }
    }
}

/// A file system of its own for one run, which an ordinary user can have where the system allows name spaces.
#[cfg(target_os = "linux")]
mod file_system {
    use super::*;

    /// Runs a writer in a file system with these options and a file of so many bytes in it. What is left there then is the
    /// last line on standard error.
    fn run(writer: Writer, options: &str, n_filled: usize) -> (Run, Vec<String>) {
        let (source, place) = (Place::new(), Place::new());
        let inputs = writer.inputs(source.0.path());
        let program = command(writer.arguments(&inputs, place.0.path()));
        let mut shell = Command::new("unshare");
        let script = "mount -t tmpfs -o \"$1\" none \"$2\" && \
                      if [ $3 -gt 0 ]; then head -c $3 /dev/zero >\"$2/fill\"; fi; at=$2; shift 3; \"$@\"; code=$?; echo left $(ls -m \"$at\") >&2; exit $code";
        shell.args(["-Urm", "sh", "-c", script, "sh", options]).arg(place.0.path()).arg(n_filled.to_string());
        shell.arg(program.get_program()).args(program.get_args()).stdin(Stdio::null());
        let mut run: Run = shell.output().unwrap().into();
        let (said, left) = run.err.trim_end().rsplit_once("left").unwrap();
        let left = left.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        run.err = said.trim_end().to_owned();
        (run, left)
    }

    fn is_there() -> bool {
        let made = Command::new("unshare").args(["-Urm", "mount", "-t", "tmpfs", "none", "/tmp"]).output();
        let is_there = made.is_ok_and(|output| output.status.success());
        if !is_there {
            eprintln!("skipped: the system gives ordinary users no file systems of their own");
        }
        is_there
    }

    #[test]
    fn a_full_disk_is_said_and_leaves_no_part_of_an_output() {
        if !is_there() {
            return;
        }
        for writer in WRITERS {
            // Full from the start.
            let (run, left) = run_full(writer);
            assert_eq!((run.code, &left[..]), (1, &["fill".to_owned()][..]), "{writer:?}: {}", run.err);
            // Room for some of it.
            if matches!(writer, Writer::Dump | Writer::Convert | Writer::Quantize) {
                let (run, left) = self::run(writer, "size=32k", 1);
                assert!(run.code == 1 && run.err.ends_with("no space left on device"), "{writer:?}: {}", run.err);
                let unfinished = ["out.gguf.part", "out.gguf.journal", "fill"];
                assert!(left.iter().all(|name| unfinished.contains(&&**name)), "{writer:?}: {left:?}");
            }
        }
    }

    fn run_full(writer: Writer) -> (Run, Vec<String>) {
        let (run, left) = run(writer, "size=4k", 4096);
        let error = run.err.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(
            error.contains(writer.name()) && error.ends_with(": no space left on device"),
            "{writer:?}: {}",
            run.err
        );
        (run, left)
    }

    #[test]
    fn a_file_system_that_is_only_read_is_refused_before_any_work() {
        if !is_there() {
            return;
        }
        for writer in WRITERS {
            let (run, left) = run(writer, "ro", 0);
            refused(run, 1, &[writer.name(), "cannot be written: read-only file"]);
            assert_eq!(left, [""; 0], "{writer:?}");
        }
    }
}

/// As on a full disk: no file takes a byte, and the system says why.
#[cfg(target_os = "linux")]
#[test]
fn where_nothing_can_be_written_nothing_is_left() {
    for writer in WRITERS {
        let (source, place) = (Place::new(), Place::new());
        let inputs = writer.inputs(source.0.path());
        let program = command(writer.arguments(&inputs, place.0.path()));
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\""]);
        shell.arg(program.get_program()).args(program.get_args()).current_dir(std::env::temp_dir());
        let run: Run = shell.stdin(Stdio::null()).output().unwrap().into();
        let run = run.expect(1);
        let error = run.err.lines().find(|line| line.starts_with("error: ")).unwrap();
        assert!(error.contains(writer.name()) && error.ends_with(": file too large"), "{error}");
        assert!(![".tympan-", ".part", ".journal"].iter().any(|name| error.contains(name)), "{error}");
        assert_eq!(place.names(), [""; 0], "{writer:?}");
    }
}

#[test]
fn names_do_not_steer_a_terminal() {
    let place = Place::new();
    let name = "red\u{1b}[31m\u{7}.wav";
    std::fs::write(place.at(name), "no audio").unwrap();
    let run = tympan(["transcribe".as_ref(), place.at(name).as_os_str()]).expect(3);
    assert!(run.err.contains("red\\u{1b}[31m\\u{7}.wav"), "{}", run.err);
    assert!(run.err.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", run.err);
}

/// A disk that fills up when the work is half done.
#[cfg(target_os = "linux")]
#[test]
fn what_was_finished_before_a_disk_was_full_is_kept() {
    let long = Long::new();
    let program = command(&long.arguments);
    let mut shell = Command::new("sh");
    // Two blocks of 512 bytes: the header and some segments.
    shell.args(["-c", "trap '' XFSZ; ulimit -f 2; exec \"$0\" \"$@\""]);
    shell.arg(program.get_program()).args(program.get_args()).current_dir(std::env::temp_dir());
    let run: Run = shell.stdin(Stdio::null()).output().unwrap().into();
    let run = run.expect(1);
    let journal = long.journal();
    let want =
        format!("long.txt: cannot be written: file too large; the finished segments are in {}\n", journal.display());
    assert!(run.err.ends_with(&want), "{}", run.err);
    assert!(std::fs::read_to_string(&journal).unwrap().lines().count() > 1);
    assert_eq!(std::fs::read_to_string(long.place.at("out/yes.txt")).unwrap(), "yes\n");
}
