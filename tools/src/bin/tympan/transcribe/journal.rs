//! What is kept of a file whose transcription does not come to its end: a line of JSON per finished segment.
//!
//! The first line says what is transcribed, with what and how; the others are appended as segments are finished, each with a
//! checksum of what comes before it in the line. The journal stands beside the output, and goes when that is there.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result};
use convert::assembly::{Partial, Xxh64, beside};
use models::transcribe::{RATE_HZ, Segment, Transcript};
use serde_json::{Value, json};

/// Behind the name of the output.
const SUFFIX: &str = ".part.jsonl";
/// What the first line begins with.
const TITLE: &str = "{\"tympan_journal\":1,";
/// Bytes at either end of an input that are hashed.
const HASHED_BYTES: u64 = 1 << 20;
/// Longest time in which lines are not on the disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// A journal that is being written.
pub(super) struct Journal {
    partial: Partial,
    n_segments: usize,
    synced: Instant,
}

impl Journal {
    /// Whether a journal can stand beside the transcript `output`.
    ///
    /// Errors: something else has its name; another process is writing it.
    pub(super) fn check(output: &Path) -> Result<()> {
        if beside(output, SUFFIX).symlink_metadata().is_ok() {
            open(output)?;
        }
        Ok(())
    }

    /// Begins the journal of the transcript `output`. One that an earlier run left is begun anew.
    ///
    /// Errors: it cannot be written; something else has its name; another process is writing it.
    pub(super) fn begin(output: &Path, header: &Header<'_>) -> Result<Self> {
        let mut partial = open(output)?;
        partial.cut(0)?;
        let mut journal = Self { partial, n_segments: 0, synced: Instant::now() };
        match journal.line(&header.json()) {
            Ok(()) => Ok(journal),
            Err(e) => {
                journal.remove();
                Err(e)
            }
        }
    }

    /// Appends the segments that were finished since the last call.
    ///
    /// Errors: the journal cannot be written.
    pub(super) fn append(&mut self, so_far: &Transcript) -> Result<()> {
        for (i, segment) in so_far.segments.iter().enumerate().skip(self.n_segments) {
            self.line(&of_segment(i, segment))?;
        }
        self.n_segments = so_far.segments.len();
        if self.synced.elapsed() >= SYNC_INTERVAL {
            self.partial.file.sync_data().with_context(|| cannot_be_written(&self.partial.target))?;
            self.synced = Instant::now();
        }
        Ok(())
    }

    /// Whether segments are in it.
    pub(super) fn has_segments(&self) -> bool {
        self.n_segments > 0
    }

    /// Its path, where segments are in it; without any it goes.
    pub(super) fn keep(self) -> Option<PathBuf> {
        if self.has_segments() {
            return Some(self.partial.path);
        }
        self.partial.remove();
        None
    }

    /// Removes it.
    pub(super) fn remove(self) {
        self.partial.remove();
    }

    /// Writes a line in one piece, with its checksum.
    fn line(&mut self, fields: &Value) -> Result<()> {
        let text = fields.to_string();
        let open = text.strip_suffix('}').unwrap_or(&text);
        let line = format!("{open},\"crc32\":\"{:08x}\"}}\n", crc32(open.as_bytes()));
        (&self.partial.file).write_all(line.as_bytes()).with_context(|| cannot_be_written(&self.partial.target))
    }
}

/// What a journal is about.
pub(super) struct Header<'a> {
    /// The input; none for standard input.
    pub input: Option<&'a Path>,
    /// Files of the model, one after the other, and their sizes.
    pub model: &'a [(String, usize)],
    /// The arguments that a text depends on.
    pub options: Value,
}

impl Header<'_> {
    fn json(&self) -> Value {
        let model: Vec<Value> = self.model.iter().map(|(file, bytes)| json!({"file": file, "bytes": bytes})).collect();
        json!({
            "tympan_journal": 1,
            "program": env!("CARGO_PKG_VERSION"),
            "input": self.input.map_or(Value::Null, of_input),
            "rate_hz": RATE_HZ,
            "model": model,
            "options": self.options,
        })
    }
}

/// What tells an input from others, as far as it can be read.
fn of_input(path: &Path) -> Value {
    let found = std::fs::metadata(path).ok();
    let modified = found.as_ref().and_then(|found| found.modified().ok()?.duration_since(UNIX_EPOCH).ok());
    json!({
        "file": path.to_string_lossy(),
        "bytes": found.as_ref().map(std::fs::Metadata::len),
        "modified_s": modified.map(|time| time.as_secs_f64()),
        "xxh64": found.filter(std::fs::Metadata::is_file).and_then(|found| hash_of_ends(path, found.len()).ok()),
    })
}

/// Hash of the first and the last bytes of a file.
fn hash_of_ends(path: &Path, n_bytes: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Xxh64::default();
    for at in [0, n_bytes.saturating_sub(HASHED_BYTES)] {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        (&mut file).take(HASHED_BYTES).read_to_end(&mut bytes)?;
        hash.add(&bytes);
    }
    Ok(format!("{:016x}", hash.value()))
}

fn of_segment(i: usize, segment: &Segment) -> Value {
    // Segments begin and end between samples.
    let sample = |seconds: f64| (seconds * f64::from(RATE_HZ)).round() as u64;
    json!({
        "id": i,
        "samples": [sample(segment.start_s), sample(segment.end_s)],
        "token_ids": segment.token_ids,
        "text": segment.text,
        "language": segment.language,
        "truncated": segment.truncated,
    })
}

/// Opens the journal of `output`, or makes it.
fn open(output: &Path) -> Result<Partial> {
    let mut partial = Partial::open(beside(output, SUFFIX), output)?;
    if is_ours(&mut partial).with_context(|| cannot_be_written(output))? {
        Ok(partial)
    } else {
        Err(partial.foreign("a file that is no journal"))
    }
}

/// Whether the file is empty or begins as a journal; its first line may be torn.
fn is_ours(partial: &mut Partial) -> Result<bool> {
    partial.rewind()?;
    let mut bytes = Vec::new();
    (&partial.file).take(TITLE.len() as u64).read_to_end(&mut bytes)?;
    Ok(TITLE.as_bytes().starts_with(&bytes))
}

fn cannot_be_written(output: &Path) -> String {
    format!("{}: cannot be written", output.display())
}

/// CRC-32. Source: ITU-T V.42, section 8.1.1.6.2; reflected, as zlib computes it.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let of_byte = |crc: u32, &byte: &u8| {
        (0..u8::BITS).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 })
    };
    !bytes.iter().fold(u32::MAX, of_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zlib() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn a_header_begins_as_journals_do() {
        let header = Header { input: None, model: &[], options: Value::Null };
        assert!(header.json().to_string().starts_with(TITLE));
    }
}
