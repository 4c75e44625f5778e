//! Conversions that are killed, interrupted or disturbed, and what the next run makes of it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::rng::Rng;

use crate::run::{Run, command, fixtures, tympan};
#[cfg(unix)]
use crate::signals::{send, signals};

/// Inner widths of the feed-forward networks: most of what has to be written.
const N_FF: usize = 49_152;
const N_FF_AUDIO: usize = 24_576;

/// A tensor of the checkpoint.
struct Stored(Dtype, Vec<usize>, Vec<u8>);

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.0
    }

    fn shape(&self) -> &[usize] {
        &self.1
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.2).into()
    }

    fn data_len(&self) -> usize {
        self.2.len()
    }
}

/// A Qwen3-ASR checkpoint of about 100 MB: the golden one with wide feed-forward networks of random f32.
fn checkpoint() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let golden = fixtures().join("golden/qwen3_asr");
    for name in ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"] {
        let _ = std::fs::copy(golden.join(name), dir.path().join(name));
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden.join("config.json")).unwrap()).unwrap();
    config["thinker_config"]["text_config"]["intermediate_size"] = json!(N_FF);
    config["thinker_config"]["audio_config"]["encoder_ffn_dim"] = json!(N_FF_AUDIO);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(golden.join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let mut rng = Rng::new(7);
    let tensors = all.iter().map(|(name, t)| {
        let (rows, columns) = match (t.shape(), name.rsplit('.').nth(1).unwrap()) {
            (&[_, n], "gate_proj" | "up_proj") => (N_FF, n),
            (&[n, _], "down_proj") => (n, N_FF),
            (&[_, n], "fc1") => (N_FF_AUDIO, n),
            (&[_], "fc1") => (1, N_FF_AUDIO),
            (&[n, _], "fc2") => (n, N_FF_AUDIO),
            (shape, _) => return (name.to_owned(), Stored(t.dtype(), shape.to_vec(), t.data().to_vec())),
        };
        let values = rng.floats(rows * columns, [-0.1, 0.1]);
        let shape = if rows == 1 { vec![columns] } else { vec![rows, columns] };
        (name.to_owned(), Stored(Dtype::F32, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
    });
    let mut tensors: Vec<(String, Stored)> = tensors.collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).unwrap();
    dir
}

/// A command that writes files, and what it has to write.
struct Job {
    args: Vec<OsString>,
    /// Names and contents of the files, in the order of writing.
    want: Vec<(PathBuf, Vec<u8>)>,
}

impl Job {
    /// Lets the command write its files and takes them away.
    fn new(args: Vec<OsString>) -> Self {
        let run = tympan(&args).expect(0);
        let want = run.out.lines().map(|path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::remove_file(path).unwrap();
            (path.into(), bytes)
        });
        let want = want.collect();
        Self { args, want }
    }

    fn convert(checkpoint: &TempDir, out: &TempDir, file_type: &str) -> Self {
        let mut args: Vec<OsString> =
            ["convert", "--type", file_type, "--audio-type", file_type].map(Into::into).into();
        args.extend([checkpoint.path().into(), "-o".into(), out.path().join("x.gguf").into()]);
        Self::new(args)
    }

    fn n_bytes(&self) -> usize {
        self.want.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    fn start(&self) -> Child {
        command(&self.args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Starts the command and waits until the unfinished files have `n` bytes; `None` where it was done before.
    fn start_until(&self, n: usize) -> Option<Child> {
        let mut child = self.start();
        while self.unfinished() < n {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::yield_now();
        }
        Some(child)
    }

    /// Starts the command and kills it when the unfinished files have `n` bytes. Whether it was alive then.
    fn kill_at(&self, n: usize) -> bool {
        let Some(mut child) = self.start_until(n) else { return false };
        child.kill().unwrap();
        !child.wait().unwrap().success()
    }

    /// Bytes of the files without their names.
    fn unfinished(&self) -> usize {
        let len = |(path, _): &(PathBuf, _)| std::fs::metadata(part(path)).map_or(0, |found| found.len() as usize);
        self.want.iter().map(len).sum()
    }

    /// Checks that every file that has its name is whole; how many there are.
    fn check(&self) -> usize {
        let found = self.want.iter().filter(|(path, want)| match std::fs::read(path) {
            Ok(got) => {
                assert!(got == *want, "{} is not whole", path.display());
                true
            }
            Err(_) => false,
        });
        found.count()
    }

    /// Runs the command to its end and checks what it wrote, and that nothing else is left.
    fn finish(&self) -> Run {
        let run = tympan(&self.args).expect(0);
        assert_eq!(self.check(), self.want.len());
        let folder = self.want[0].0.parent().unwrap();
        let left = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<OsString> = left.collect();
        assert_eq!(left.len(), self.want.len(), "{left:?}: {}", run.err);
        run
    }

    fn clear(&self) {
        self.want.iter().for_each(|(path, _)| {
            let _ = std::fs::remove_file(path);
        });
    }
}

fn part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// The numbers of "tensor bytes: N kept, M written anew".
fn kept_and_new(run: &Run) -> (usize, usize) {
    let line = run.err.lines().find_map(|line| line.strip_prefix("tensor bytes: "));
    let (kept, new) = line.unwrap_or_else(|| panic!("{}", run.err)).split_once(" kept, ").unwrap();
    (kept.parse().unwrap(), new.strip_suffix(" written anew").unwrap().parse().unwrap())
}

#[test]
fn a_conversion_that_is_killed_twenty_times_goes_on() {
    let (source, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let job = Job::convert(&source, &out, "q8_0");
    let n = job.n_bytes();
    assert!(n > 20 << 20 && job.want.len() == 2, "{n} bytes");
    let mut rng = Rng::new(3);
    let mut kills = 0;
    for _ in 0..100 {
        if kills == 20 {
            break;
        }
        // Each run goes on where the one before was killed, until one comes to its end.
        let killed = job.kill_at(rng.below(n + 1));
        kills += usize::from(killed);
        if !killed && job.check() == job.want.len() {
            job.clear();
        }
        job.check();
    }
    assert_eq!(kills, 20);
    job.finish();
}

#[test]
fn after_half_the_time_half_is_left() {
    let (source, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let job = Job::convert(&source, &out, "q4_k_m");
    while !job.kill_at(job.n_bytes() / 2) {
        job.clear();
    }
    let run = job.finish();
    let (kept, new) = kept_and_new(&run);
    assert!(new * 10 <= (kept + new) * 6, "{kept} kept, {new} new");
    assert!(run.err.contains("x.gguf: going on after "), "{}", run.err);
    assert!(!job.finish().err.contains(" kept, "));
}

#[test]
fn bytes_that_were_lost_are_written_again() {
    let (source, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let job = Job::convert(&source, &out, "q4_k_m");
    while !job.kill_at(job.n_bytes() * 3 / 4) {
        job.clear();
    }
    let path = part(&job.want[0].0);
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    drop(file);
    let (kept, _) = kept_and_new(&job.finish());
    assert!(kept > 0 && kept as u64 <= at, "{kept} kept, damaged at {at}");
}

#[test]
fn other_sources_and_options_start_over() {
    let (source, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let (small, large) = (Job::convert(&source, &out, "q4_k_m"), Job::convert(&source, &out, "q8_0"));
    while !small.kill_at(small.n_bytes() / 2) {
        small.clear();
    }
    let run = large.finish();
    assert!(
        run.err
            .contains("x.gguf: the files of an interrupted run are not used: the options were others; starting over"),
        "{}",
        run.err
    );
    large.clear();

    while !small.kill_at(small.n_bytes() / 2) {
        small.clear();
    }
    // The last weight gets another sign; size and header stay.
    let path = source.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x80;
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all(&bytes).unwrap();
    drop(file);
    let run = tympan(&small.args).expect(0);
    assert!(run.err.contains("has changed since; starting over"), "{}", run.err);
    assert!(!run.err.contains(" kept, "), "{}", run.err);
    let changed = std::fs::read(&small.want[0].0).unwrap() != small.want[0].1;
    assert!(changed || std::fs::read(&small.want[1].0).unwrap() != small.want[1].1);
}

#[cfg(unix)]
#[test]
fn signals_keep_what_is_done() {
    let (source, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let job = Job::convert(&source, &out, "q4_k_m");
    for (signal, exit) in signals() {
        loop {
            job.clear();
            let Some(child) = job.start_until(job.n_bytes() / 4) else { continue };
            send(signal, &child);
            let code = child.wait_with_output().unwrap().status.code();
            if code == Some(exit) {
                break;
            }
            // It was done before the signal came.
            assert_eq!(code, Some(0));
        }
        assert_eq!(job.check(), 0);
        let (kept, new) = kept_and_new(&job.finish());
        assert!(kept > 0 && new > 0, "{kept} kept, {new} new");
    }
}

#[test]
fn two_at_once_do_not_write_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf");
    let golden = fixtures().join("golden/qwen3_asr");
    let args: [OsString; 4] = ["convert".into(), golden.into(), "-o".into(), out.clone().into()];
    // The projector alone is enough: another command may be writing it under another name of the pair.
    for name in ["x.gguf.journal", "x.gguf.part", "mmproj-x.gguf.part"] {
        let path = dir.path().join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"another's").unwrap();
        file.lock().unwrap();
        let run = tympan(&args).expect(1);
        assert!(run.err.ends_with(&format!("{name}: another process is writing it\n")), "{}", run.err);
        assert_eq!(std::fs::read(&path).unwrap(), b"another's");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{name}");
        drop(file);
        std::fs::remove_file(path).unwrap();
    }
    tympan(&args).expect(0);
}

#[test]
fn a_quantization_that_is_killed_goes_on() {
    let (source, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let input = source.path().join("f32.gguf");
    tympan([
        "convert".as_ref(),
        source.path().as_os_str(),
        "--type".as_ref(),
        "f32".as_ref(),
        "-o".as_ref(),
        input.as_os_str(),
    ])
    .expect(0);
    let output = out.path().join("q.gguf");
    let job = Job::new(vec!["quantize".into(), input.into(), output.into(), "q6_k".into(), "-q".into()]);
    while !job.kill_at(job.n_bytes() / 2) {
        job.clear();
    }
    let (kept, new) = kept_and_new(&job.finish());
    assert!(new * 10 <= (kept + new) * 6, "{kept} kept, {new} new");
}

#[cfg(unix)]
#[test]
fn a_source_that_changes_under_work_is_named() {
    type Change = fn(&Path);
    let cut_short: Change = |path| OpenOptions::new().write(true).open(path).unwrap().set_len(1000).unwrap();
    let touched: Change = |path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    };
    for (change, says) in [(cut_short, "model.safetensors: the file gives no bytes"), (touched, "has changed while")] {
        let (source, out) = (checkpoint(), tempfile::tempdir().unwrap());
        let job = Job::convert(&source, &out, "q4_k_m");
        let mut child = command(&job.args);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while job.unfinished() < job.n_bytes() / 8 {
            assert_eq!(child.try_wait().unwrap(), None);
        }
        change(&source.path().join("model.safetensors"));
        let run = child.wait_with_output().unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.code() == Some(4) && said.contains(says), "{:?}: {said}", run.status);
        assert_eq!(job.check(), 0);
    }
}
