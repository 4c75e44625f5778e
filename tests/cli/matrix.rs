//! Every subcommand with its streams, signals, and what stands where its output goes: each of these with every other one.
//!
//! Pairs of conditions are covered; `TYMPAN_TEST_ALL=1` takes all combinations, which are hundreds of thousands. [`Cell`] is
//! one of them, [`Cell::allowed`] says what the program may make of it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::run::{clip, command, fixtures, tympan};
use crate::signals::{send, signals};
use crate::streams::{Err, In, Out, read, takes_all, with_streams, without_numbers};

/// What every precious file holds.
const PRECIOUS: &str = "precious";
/// Moments in the course of a run at which signals are sent.
const N_MOMENTS: u32 = 10;
/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Exit code of a run that does not end by itself.
const NEVER: i32 = -1;

/// A command line, and the files that it writes.
struct Job {
    /// Words; those in capitals stand for files: of [`Sources`], or `FOLDER` and `OUT` for where the first output goes.
    line: &'static str,
    outputs: &'static [&'static str],
    /// What may be left in the folder of the outputs by a run that was interrupted.
    unfinished: &'static [&'static str],
    /// Which source the first output could replace.
    input: &'static str,
}

const fn job(line: &'static str) -> Job {
    Job { line, outputs: &[], unfinished: &[], input: "" }
}

const JOBS: &[Job] = &[
    job("transcribe CLIP"),
    job("transcribe -f jsonl CLIP CLIP"),
    job("convert CHECKPOINT --dry-run"),
    job("generate -v -m LM --prompt-ids 1,2,3 -n 3 --ignore-eos"),
    job("bench -m LM -p 8 -n 1 -r 1 --progress"),
    job("bench --audio CLIP --warmup 0 -r 1"),
    job("inspect GGUF --tensors"),
    job("inspect --devices"),
    job("completions bash"),
    job("man transcribe"),
    job("--version"),
    job("--help"),
    Job {
        line: "transcribe -f srt,vtt -o FOLDER CLIP",
        outputs: &["in.srt", "in.vtt"],
        unfinished: &["in.srt.part.jsonl", "in.vtt.part.jsonl"],
        input: "CLIP",
    },
    Job { line: "transcribe --dump FOLDER CLIP", outputs: &["in.safetensors"], unfinished: &[], input: "CLIP" },
    Job {
        line: "convert CHECKPOINT -o OUT",
        outputs: &["out.gguf", "mmproj-out.gguf"],
        unfinished: &["out.gguf.part", "out.gguf.journal", "mmproj-out.gguf.part"],
        input: "CHECKPOINT",
    },
    Job {
        line: "convert CHECKPOINT --bundle -o OUT",
        outputs: &["out.gguf"],
        unfinished: &["out.gguf.part", "out.gguf.journal"],
        input: "CHECKPOINT",
    },
    Job {
        line: "quantize GGUF OUT q4_0 --allow-requantize",
        outputs: &["out.gguf"],
        unfinished: &["out.gguf.part", "out.gguf.journal"],
        input: "GGUF",
    },
    Job {
        line: "generate -m LM --prompt-ids 1,2 -n 1 --logits-out OUT",
        outputs: &["out.safetensors"],
        unfinished: &[],
        input: "LM",
    },
    Job { line: "bench -m LM -p 8 -n 0 -r 1 --plot OUT", outputs: &["out.svg"], unfinished: &[], input: "LM" },
];

/// What jobs read.
struct Sources(TempDir);

impl Sources {
    fn new() -> Self {
        let sources = Self(tempfile::tempdir().unwrap());
        let lm = sources.0.path().join("lm.gguf");
        tympan(["convert".as_ref(), fixtures().join("golden/lfm2").as_os_str(), "-o".as_ref(), lm.as_os_str()])
            .expect(0);
        std::fs::copy(clip("yes.wav"), sources.0.path().join("in.wav")).unwrap();
        std::fs::copy(fixtures().join("quant/model.gguf"), sources.0.path().join("model.gguf")).unwrap();
        std::fs::create_dir(sources.0.path().join("checkpoint")).unwrap();
        let golden = fixtures().join("golden/qwen3_asr");
        for file in std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()) {
            std::fs::copy(&file, sources.0.path().join("checkpoint").join(file.file_name().unwrap())).unwrap();
        }
        sources
    }

    fn path(&self, word: &str) -> Option<PathBuf> {
        let name = match word {
            "CLIP" => "in.wav",
            "LM" => "lm.gguf",
            "GGUF" => "model.gguf",
            "CHECKPOINT" => "checkpoint",
            _ => return None,
        };
        Some(self.0.path().join(name))
    }
}

/// What is where the first output goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// The job writes no file.
    NoOutput,
    Nothing,
    /// A file of an earlier run.
    File,
    /// A link to such a file.
    Link,
    LinkToNothing,
    /// Another name of what is read.
    Input,
    Directory,
    /// A pipe with a reader.
    Pipe,
    /// A pipe without one; only with a signal.
    LonelyPipe,
    /// A device that takes everything.
    Device,
    /// A device that takes nothing.
    FullDevice,
    /// A folder that takes no files.
    ReadOnly,
    /// No file takes a byte.
    FullDisk,
    /// Another process is writing the output.
    Busy,
}

const PLACES: [Place; 14] = [
    Place::NoOutput,
    Place::Nothing,
    Place::File,
    Place::Link,
    Place::LinkToNothing,
    Place::Input,
    Place::Directory,
    Place::Pipe,
    Place::LonelyPipe,
    Place::Device,
    Place::FullDevice,
    Place::ReadOnly,
    Place::FullDisk,
    Place::Busy,
];
const OUTS: [Out; 5] = [Out::Open, Out::Slow, Out::Gone, Out::Closed, Out::Full];
const ERRS: [Err; 4] = [Err::Open, Err::Gone, Err::Closed, Err::Full];
const INS: [In; 2] = [In::Empty, In::Closed];

impl Job {
    fn is(&self, subcommand: &str) -> bool {
        self.line.starts_with(subcommand)
    }

    /// Whether the place makes sense.
    fn has(&self, place: Place) -> bool {
        match place {
            Place::NoOutput => self.outputs.is_empty(),
            // A folder with the name of the output is where `convert` puts its files.
            Place::Directory => !self.outputs.is_empty() && !self.is("convert"),
            // The others rename a whole file, and the last one stays.
            Place::Busy => !self.unfinished.is_empty(),
            _ => !self.outputs.is_empty(),
        }
    }

    /// The arguments with its outputs in `folder`.
    fn arguments(&self, sources: &Sources, folder: &Path) -> Vec<OsString> {
        let word = |word: &str| match word {
            "FOLDER" => folder.into(),
            "OUT" => folder.join(self.outputs[0]).into(),
            other => sources.path(other).map_or(other.into(), PathBuf::into_os_string),
        };
        self.line.split(' ').map(word).collect()
    }
}

/// A job, and what came of it where nothing was in its way.
struct Undisturbed {
    job: &'static Job,
    /// What it printed, without numbers.
    printed: String,
    files: Vec<Vec<u8>>,
    took: Duration,
}

impl Undisturbed {
    fn of(job: &'static Job, sources: &Sources) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let run = tympan(job.arguments(sources, folder.path())).expect(0);
        let took = start.elapsed();
        let files = job.outputs.iter().map(|name| std::fs::read(folder.path().join(name)).unwrap()).collect();
        Self { job, printed: without_numbers(&run.out, folder.path()), files, took }
    }

    /// Whether these are all bytes of an output.
    fn is_whole(&self, i: usize, bytes: &[u8]) -> bool {
        // The picture of a measurement is another one every time.
        let is_picture = self.job.outputs[i].ends_with(".svg");
        if is_picture { bytes.starts_with(b"<svg") && bytes.ends_with(b"</svg>\n") } else { bytes == self.files[i] }
    }
}

/// A run under all of its conditions.
#[derive(Clone, Copy)]
struct Cell<'a> {
    undisturbed: &'a Undisturbed,
    out: Out,
    err: Err,
    input: In,
    place: Place,
    /// A signal with its exit code, and the number of the moment.
    signal: Option<(&'static str, i32, u32)>,
}

impl std::fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { undisturbed, out, err, input, place, signal } = self;
        let line = undisturbed.job.line;
        write!(f, "{line}: out {out:?}, err {err:?}, in {input:?}, {place:?}, signal {signal:?}")
    }
}

impl Cell<'_> {
    /// What is wrong with the place of the output: the exit code, what is said, and whether it is before any work.
    fn fault(&self) -> Option<(i32, &'static str, bool)> {
        let job = self.undisturbed.job;
        let is_pair = job.is("convert") && job.outputs.len() > 1;
        let found = match self.place {
            Place::LinkToNothing => (1, "a link to a file that does not exist", true),
            Place::Input => (2, "is the same file as an input", true),
            Place::Directory => (1, ": is a directory", true),
            Place::ReadOnly => (1, ": cannot be written: ", true),
            Place::Busy => (1, ": another process is writing it", true),
            Place::File | Place::Link if job.is("transcribe") => (1, "outputs that exist: 1", true),
            Place::Pipe | Place::LonelyPipe | Place::Device | Place::FullDevice if is_pair => {
                (2, "takes one file, and there are 2", true)
            }
            Place::FullDisk => (1, ": file too large", false),
            Place::FullDevice => (1, ": no space left on device", false),
            Place::LonelyPipe => (NEVER, "", true),
            Place::NoOutput | Place::Nothing | Place::File | Place::Link | Place::Pipe | Place::Device => return None,
        };
        Some(found)
    }

    /// Exit code and error of the run where no signal comes; where two things are wrong, either may be said.
    fn allowed(&self) -> (i32, Vec<&'static str>) {
        let fault = self.fault();
        if let Some((code, says, true)) = fault {
            return (code, vec![says]);
        }
        let is_full = self.out == Out::Full && !self.undisturbed.printed.is_empty();
        let full = is_full.then_some((1, "standard output cannot be written: no space left on device", false));
        let says: Vec<&str> = fault.into_iter().chain(full).map(|(_, says, _)| says).collect();
        (i32::from(!says.is_empty()), says)
    }

    /// Runs it and checks what came of it. Whether the signal met the run.
    fn check(&self, sources: &Sources) -> bool {
        let set = Set::up(self);
        let ended = self.run(&set, sources);
        let Ended { code, said, text } = &ended;
        let what = format!("{self}: exit {code}, said {said:?}, printed {text:?}");
        let is_interrupted = self.signal.is_some_and(|(_, exit, _)| exit == *code);
        self.judge(&ended, is_interrupted, &what);
        set.check(self, !is_interrupted && self.fault().is_none(), is_interrupted, &what);
        if is_interrupted && matches!(self.place, Place::Nothing | Place::File | Place::Link) {
            set.finish(self, sources, &what);
        }
        is_interrupted
    }

    fn run(&self, set: &Set, sources: &Sources) -> Ended {
        let Self { undisturbed, out, err, input, place, signal } = *self;
        let before = if place == Place::FullDisk { "trap '' XFSZ; ulimit -f 0; " } else { "" };
        let arguments = set.arguments(undisturbed.job, sources);
        let (mut shell, reader) = with_streams(before, &arguments, out, err, input);
        let mut child = shell.spawn().unwrap();
        // The command keeps the writer's end.
        drop(shell);
        let said = child.stderr.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut said = String::new();
                pipe.read_to_string(&mut said).map(|_| said).unwrap()
            })
        });
        let text = reader.map(|pipe| std::thread::spawn(move || read(pipe, out)));
        if let Some((name, _, moment)) = signal {
            // Which part of the work it meets is chance; what is allowed holds for all of them.
            let n_times = if place == Place::LonelyPipe { 2 } else { 1 };
            std::thread::sleep(undisturbed.took * moment * n_times / N_MOMENTS);
            send(name, &child);
        }
        let start = Instant::now();
        let status = loop {
            set.read_pipe();
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => {
                    child.kill().unwrap();
                    panic!("{self}: hangs");
                }
                None => std::thread::yield_now(),
            }
        };
        set.read_pipe();
        // Before it listens, a signal ends the process in its own way; a shell shows both the same.
        let code = status.code().unwrap_or_else(|| status.signal().unwrap() + 128);
        let text = text.map(|thread| {
            // Where the output is a link, the file that it leads to is named.
            let name = format!("/{}\n", undisturbed.job.outputs.first().unwrap_or(&""));
            without_numbers(&thread.join().unwrap().replace("/elsewhere\n", &name), set.folder.path())
        });
        Ended { code, said: said.map(|thread| thread.join().unwrap()), text }
    }

    /// Checks exit code, messages and standard output.
    fn judge(&self, Ended { code, said, text }: &Ended, is_interrupted: bool, what: &str) {
        let (allowed, says) = self.allowed();
        assert!(is_interrupted || *code == allowed, "{what}: want {allowed}");
        if let Some(said) = said {
            assert!(!said.contains("panicked") && !said.contains("os error") && !said.contains(".tympan-"), "{what}");
            let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
            if is_interrupted {
                assert!(errors.len() <= 1, "{what}");
            } else {
                assert_eq!(errors.len(), usize::from(*code != 0), "{what}");
                let is_said = |error: &&str| says.iter().any(|text| error.contains(text));
                assert!(errors.iter().all(is_said), "{what}: want one of {says:?}");
            }
        }
        if let Some(text) = text {
            let printed = &self.undisturbed.printed;
            let is_begun = printed.starts_with(text.trim_end());
            assert!(if *code == 0 { text == printed } else { is_begun }, "{what}: want {printed:?}");
        }
    }
}

/// What a run left on its streams, where somebody reads them; its text without numbers.
struct Ended {
    code: i32,
    said: Option<String>,
    text: Option<String>,
}

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// The folder where a run writes, as it was set up.
struct Set {
    folder: TempDir,
    /// A copy of what is read, where a link in the folder leads to it.
    input: Option<Sources>,
    /// The reader of the pipe, and what came out of it.
    pipe: Option<(File, std::cell::RefCell<Vec<u8>>)>,
    /// What another process is writing.
    _busy: Option<File>,
    is_read_only: bool,
}

impl Set {
    fn up(cell: &Cell<'_>) -> Self {
        let job = cell.undisturbed.job;
        let folder = tempfile::tempdir().unwrap();
        let (mut input, mut pipe, mut busy) = (None, None, None);
        let elsewhere = folder.path().join("elsewhere");
        let at = folder.path().join(job.outputs.first().unwrap_or(&""));
        match cell.place {
            Place::NoOutput | Place::Nothing | Place::FullDisk | Place::ReadOnly => {}
            Place::File => std::fs::write(&at, PRECIOUS).unwrap(),
            Place::Link => {
                std::fs::write(&elsewhere, PRECIOUS).unwrap();
                symlink("elsewhere", &at).unwrap();
            }
            Place::LinkToNothing => symlink("nowhere", &at).unwrap(),
            Place::Input => {
                let copy = Sources::new();
                let read = copy.path(job.input).unwrap();
                let read = if read.is_dir() { read.join("model.safetensors") } else { read };
                std::fs::hard_link(&read, &at).unwrap();
                input = Some(copy);
            }
            Place::Directory => std::fs::create_dir(&at).unwrap(),
            Place::LonelyPipe => make_pipe(&at),
            Place::Pipe => {
                make_pipe(&at);
                // One that does not wait for its writer.
                let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
                let reader = OpenOptions::new().read(true).custom_flags(flags).open(&at).unwrap();
                pipe = Some((reader, Vec::new().into()));
            }
            Place::Device => symlink("/dev/null", &at).unwrap(),
            Place::FullDevice => symlink("/dev/full", &at).unwrap(),
            Place::Busy => {
                let file = File::create(folder.path().join(job.unfinished[0])).unwrap();
                file.lock().unwrap();
                busy = Some(file);
            }
        }
        Self { folder, input, pipe, _busy: busy, is_read_only: cell.place == Place::ReadOnly }
    }

    fn arguments(&self, job: &Job, sources: &Sources) -> Vec<OsString> {
        // Even root makes no files there.
        let folder = if self.is_read_only { Path::new("/proc/self") } else { self.folder.path() };
        job.arguments(self.input.as_ref().unwrap_or(sources), folder)
    }

    /// Takes what is in the pipe.
    fn read_pipe(&self) {
        let Some((reader, bytes)) = &self.pipe else { return };
        match (&mut &*reader).read_to_end(&mut bytes.borrow_mut()) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            other => drop(other.unwrap()),
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What is in the folder when the run has ended; where it is done, whatever became of the streams, the outputs are.
    fn check(&self, cell: &Cell<'_>, is_done: bool, is_interrupted: bool, what: &str) {
        let Cell { undisturbed, place, .. } = *cell;
        let job = undisturbed.job;
        for (i, name) in job.outputs.iter().enumerate() {
            let at = self.folder.path().join(name);
            // A pipe would wait for its writer, and a device may have no end.
            let is_file = std::fs::metadata(&at).is_ok_and(|found| found.is_file());
            let found = || is_file.then(|| std::fs::read(&at).unwrap());
            let whole_or = |was: Option<&[u8]>| match found() {
                Some(bytes) if undisturbed.is_whole(i, &bytes) => true,
                other => !is_done && other.as_deref() == was,
            };
            let link = || std::fs::read_link(&at).ok();
            let is_right = match place {
                _ if i > 0 => whole_or(None),
                Place::NoOutput => true,
                Place::Nothing => whole_or(None),
                Place::File => whole_or(Some(PRECIOUS.as_bytes())),
                Place::Link => link() == Some("elsewhere".into()) && whole_or(Some(PRECIOUS.as_bytes())),
                Place::LinkToNothing => link() == Some("nowhere".into()),
                Place::Input => {
                    let copy = self.input.as_ref().and_then(|copy| copy.path(job.input)).unwrap();
                    let copy = if copy.is_dir() { copy.join("model.safetensors") } else { copy };
                    std::fs::read(copy).ok() == found() && found().is_some_and(|bytes| !bytes.is_empty())
                }
                Place::Directory => at.is_dir(),
                Place::Pipe => {
                    let bytes = self.pipe.as_ref().unwrap().1.borrow();
                    let is_pipe = std::fs::symlink_metadata(&at).unwrap().file_type().is_fifo();
                    is_pipe && (!is_done || undisturbed.is_whole(i, &bytes))
                }
                Place::LonelyPipe => std::fs::symlink_metadata(&at).unwrap().file_type().is_fifo(),
                Place::Device => link() == Some("/dev/null".into()),
                Place::FullDevice => link() == Some("/dev/full".into()),
                Place::ReadOnly | Place::FullDisk | Place::Busy => found().is_none(),
            };
            assert!(is_right, "{what}: {name}: {:?} bytes", found().map(|bytes| bytes.len()));
        }
        let is_known = |name: &String| {
            let is_unfinished = job.unfinished.contains(&name.as_str());
            job.outputs.contains(&name.as_str())
                || name == "elsewhere" && place == Place::Link
                || name == "elsewhere.part" && is_interrupted
                || name == "elsewhere.journal" && is_interrupted
                || is_unfinished && (is_interrupted || matches!(place, Place::Busy | Place::FullDevice))
        };
        let names = self.names();
        assert!(names.iter().all(is_known), "{what}: {names:?}");
    }

    /// The next run makes up for one that was interrupted, and leaves nothing else.
    fn finish(&self, cell: &Cell<'_>, sources: &Sources, what: &str) {
        let Cell { undisturbed, place, .. } = *cell;
        let mut arguments = self.arguments(undisturbed.job, sources);
        if undisturbed.job.is("transcribe") {
            arguments.push("--overwrite".into());
        }
        let again = command(arguments).output().unwrap();
        assert!(again.status.success(), "{what}: again: {}", String::from_utf8_lossy(&again.stderr));
        self.check(&Cell { place, ..*cell }, true, false, &format!("{what}: again"));
    }
}

/// Sizes of the six conditions of a cell, in the order of [`cell_at`].
type Sizes = [usize; 6];

/// The cell at a place of the table; none where its conditions make no sense together.
fn cell_at<'a>(
    index: usize,
    sizes: &Sizes,
    jobs: &'a [Undisturbed],
    signals: &[(&'static str, i32)],
) -> Option<([usize; 6], Cell<'a>)> {
    let mut rest = index;
    let at: [usize; 6] = sizes.map(|size| {
        let i = rest % size;
        rest /= size;
        i
    });
    let [job, out, err, input, place, signal] = at;
    let moments = N_MOMENTS as usize;
    let sent = |i: usize| (signals[i / moments].0, signals[i / moments].1, (i % moments) as u32);
    let cell = Cell {
        undisturbed: &jobs[job],
        out: OUTS[out],
        err: ERRS[err],
        input: INS[input],
        place: PLACES[place],
        signal: signal.checked_sub(1).map(sent),
    };
    let ends = cell.place != Place::LonelyPipe || cell.signal.is_some();
    (ends && jobs[job].job.has(cell.place)).then_some((at, cell))
}

/// Places of those cells that `counts` and that cover all pairs of conditions: first those that cover many new ones.
fn pairwise(cells: &[([usize; 6], Cell<'_>)], sizes: &Sizes, counts: impl Fn(&Cell<'_>) -> bool) -> Vec<usize> {
    let widest = *sizes.iter().max().unwrap();
    let n_conditions = sizes.len();
    let pair = |(a, i): (usize, usize), (b, j): (usize, usize)| ((a * n_conditions + b) * widest + i) * widest + j;
    let mut is_covered = vec![false; n_conditions * n_conditions * widest * widest];
    let mut taken = Vec::new();
    for wanted in (1..=n_conditions * (n_conditions - 1) / 2).rev() {
        for (k, (at, _)) in cells.iter().enumerate().filter(|(_, (_, cell))| counts(cell)) {
            let pairs = (0..n_conditions).flat_map(|b| (0..b).map(move |a| (a, b)));
            let pairs = pairs.map(|(a, b)| pair((a, at[a]), (b, at[b])));
            if pairs.clone().filter(|&p| !is_covered[p]).count() >= wanted {
                pairs.for_each(|p| is_covered[p] = true);
                taken.push(k);
            }
        }
    }
    taken
}

#[test]
fn every_condition_with_every_other_has_its_code_and_loses_nothing() {
    let sources = Sources::new();
    let jobs: Vec<Undisturbed> = JOBS.iter().map(|job| Undisturbed::of(job, &sources)).collect();
    let signals = signals();
    let sizes = [jobs.len(), OUTS.len(), ERRS.len(), INS.len(), PLACES.len(), 1 + signals.len() * N_MOMENTS as usize];
    let n_all = sizes.iter().product();
    let cells: Vec<_> = (0..n_all).filter_map(|i| cell_at(i, &sizes, &jobs, &signals)).collect();
    // Few of those that are drawn with signals come to their end.
    let undisturbed = pairwise(&cells, &sizes, |cell| cell.signal.is_none());
    let disturbed = pairwise(&cells, &sizes, |cell| cell.signal.is_some());
    let taken = if takes_all() { (0..cells.len()).collect() } else { [undisturbed, disturbed].concat() };
    let (next, n_signals, n_interrupted) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut n_failed = 0;
        while let Some(&k) = taken.get(next.fetch_add(1, Ordering::Relaxed)) {
            let cell = &cells[k].1;
            n_signals.fetch_add(usize::from(cell.signal.is_some()), Ordering::Relaxed);
            match catch_unwind(|| cell.check(&sources)) {
                Ok(is_interrupted) => drop(n_interrupted.fetch_add(usize::from(is_interrupted), Ordering::Relaxed)),
                Err(_) => n_failed += 1,
            }
        }
        n_failed
    };
    let n_failed: usize = std::thread::scope(|scope| {
        let n = std::thread::available_parallelism().unwrap().get();
        let workers: Vec<_> = (0..n).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    let (n_signals, n_interrupted) = (n_signals.into_inner(), n_interrupted.into_inner());
    eprintln!("{} of {} cells, {n_interrupted} of {n_signals} signals met a run", taken.len(), cells.len());
    assert_eq!(n_failed, 0, "cells, each of which was said above");
    assert!(n_interrupted * 4 > n_signals, "{n_interrupted} of {n_signals} signals met a run");
}
