//! How many threads compute, from what Linux tells of a process while it runs.
//!
//! Graphs and the audio front end run on the main thread and on helpers, which are `-t` together; conversion, quantization and
//! statistics run on as many workers, for which the main thread waits.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::run::{clip, command, fixtures, tympan};

/// Threads that are asked for: another number than this machine has cores, on most machines.
const N: usize = 3;
/// The main thread has the program's name.
const MAIN: &str = "tympan";
/// A thread has that name too until it begins, with less than so many nanoseconds behind it.
const BEGINNING: u64 = 2_000_000;
/// Threads that wait for a signal and do nothing else.
const WAITING: &str = "ctrl-c";
/// Nanoseconds of workers after which they were surely seen at work.
const ENOUGH: u64 = 50_000_000;
/// How long to look for a phase that some runs are over too soon to show.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nanoseconds that every thread has computed, by name.
type Sample = BTreeMap<String, u64>;

/// The threads of a process. Some may end while this looks at them.
fn sample(pid: u32) -> Sample {
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    let of_thread = |thread: PathBuf| {
        // The time first: a thread that is named in between then counts under its name.
        let times = std::fs::read_to_string(thread.join("schedstat")).ok()?;
        let name = std::fs::read_to_string(thread.join("comm")).ok()?;
        let ns: u64 = times.split(' ').next()?.parse().ok()?;
        let is_main = thread.ends_with(pid.to_string());
        let name = if is_main { MAIN } else { name.trim_end() };
        assert!(is_main || name != MAIN || ns < BEGINNING, "a thread without a name computes");
        (is_main || name != MAIN).then(|| (name.to_owned(), ns))
    };
    let mut threads = Sample::new();
    for entry in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
        if let Some((name, ns)) = of_thread(entry.path()) {
            // One that has ended may still be listed beside the next one of its name.
            let known = threads.entry(name).or_default();
            *known = ns.max(*known);
        }
    }
    threads
}

/// Everything that is seen of a successful run.
fn samples(args: &[OsString]) -> Vec<Sample> {
    let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let mut samples = Vec::new();
    let status = loop {
        samples.push(sample(child.id()));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success(), "{args:?}");
    samples
}

fn numbered(prefix: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|i| format!("{prefix}-{i}")).collect()
}

/// Checks that there are no threads but the main one, those that wait and some of `others`, and returns for how long each of
/// them computed while all of `others` were there; nothing if that was never seen.
fn computed(samples: &[Sample], others: &[String]) -> Sample {
    for threads in samples {
        let known = |name: &String| name == MAIN || name == WAITING || others.contains(name);
        assert!(threads.keys().all(known), "{threads:?}");
    }
    let is_whole = |threads: &&[Sample]| threads.iter().all(|t| others.iter().all(|name| t.contains_key(name)));
    let mut sum = Sample::new();
    for pair in samples.windows(2).filter(is_whole) {
        for (name, ns) in &pair[1] {
            // Threads of another pool may have taken the names.
            *sum.entry(name.clone()).or_default() += ns.saturating_sub(pair[0].get(name).copied().unwrap_or(*ns));
        }
    }
    sum
}

/// Adds what runs of the same arguments show until it is enough: one run may be over between two looks.
fn computed_in_runs(args: &[OsString], others: &[String], is_enough: impl Fn(&Sample) -> bool) -> Sample {
    let start = Instant::now();
    let mut sum = Sample::new();
    while !is_enough(&sum) {
        assert!(start.elapsed() < PATIENCE, "{args:?}: {sum:?}");
        for (name, ns) in computed(&samples(args), others) {
            *sum.entry(name).or_default() += ns;
        }
    }
    sum
}

fn args(words: &[&str], paths: &[PathBuf]) -> Vec<OsString> {
    let paths = paths.iter().map(|path| path.clone().into_os_string());
    let threads = ["-t".into(), N.to_string().into()];
    // The flags come first: a word may want the path behind it.
    let (command, flags) = words.split_at(1);
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    words(command).into_iter().chain(threads).chain(words(flags)).chain(paths).collect()
}

fn converted(checkpoint: &str, dir: &Path) -> PathBuf {
    let checkpoint = fixtures().join("models").join(checkpoint);
    tympan(["convert".as_ref(), "-q".as_ref(), checkpoint.as_os_str(), "-o".as_ref(), dir.as_os_str()]).expect(0);
    dir.to_owned()
}

#[test]
fn front_end_encoder_and_decoder_share_the_threads_that_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let helpers = numbered("tympan-help", 1..N);
    for checkpoint in ["tiny-qwen3-asr", "tiny-lfm2-audio"] {
        let model = converted(checkpoint, &dir.path().join(checkpoint)).display().to_string();
        let run = args(&["transcribe", "-q", "-m", &model], &[clip("long_24s.wav"), clip("long_9s.wav")]);
        let all = [&helpers[..], &[MAIN.to_owned()]].concat();
        let takes_part = |times: &Sample, name: &String| times.get(name).is_some_and(|&ns| ns > 0);
        let times = computed_in_runs(&run, &helpers, |times| all.iter().all(|name| takes_part(times, name)));
        assert!(times.keys().filter(|name| *name != WAITING).count() == N, "{times:?}");
        let run = args(&["generate", "-q", "-m", &model, "-p", "one two", "-n", "200", "--ignore-eos"], &[]);
        computed_in_runs(&run, &helpers, |times| takes_part(times, &MAIN.to_owned()));
    }
}

#[test]
fn conversion_has_the_threads_that_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let [model, out, quantized] = ["model.gguf", "out.gguf", "quantized.gguf"].map(|name| dir.path().join(name));
    converted("tiny-lfm2-audio", &model);
    let checkpoint = fixtures().join("models/tiny-lfm2-audio");
    let runs = [
        args(&["convert", "-q", "--verify", "--type", "Q4_K_M", "-o"], &[out, checkpoint]),
        args(&["quantize", "-q", "--verify"], &[model.clone(), quantized, "Q4_K_M".into()]),
        args(&["inspect", "-q", "--tensors"], &[model]),
    ];
    let workers = numbered("tympan-work", 0..N);
    for run in runs {
        let by_workers = |times: &Sample| workers.iter().filter_map(|name| times.get(name)).sum::<u64>();
        computed_in_runs(&run, &workers, |times| by_workers(times) >= ENOUGH);
    }
}
