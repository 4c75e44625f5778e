//! How far files are that one command writes. [`Journal`] is the type to read first.
//!
//! Lines of text: what is written, and then, in the order of writing, which bytes are in which file, with their hash. A
//! line comes after its bytes, so that after the death of the process all lines but a torn last one are true; whether
//! they still are is checked with the hash.

use std::fmt::Write as _;
use std::io::{Read, Write};

use anyhow::Result;

use super::partial::Partial;

const TITLE: &str = "tympan-journal 1";
/// Bytes of a journal that are read: more than a million lines.
const MAX_BYTES: u64 = 64 << 20;

/// What files are made of: the same as long as they come out with the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fingerprint {
    /// Names, headers, version.
    pub plan: u64,
    /// The files that the values come from.
    pub source: u64,
}

/// A journal that was read.
pub(super) struct Journal {
    /// What was written.
    pub fingerprint: Fingerprint,
    /// Names of the unfinished files.
    pub files: Vec<String>,
    /// In the order of writing.
    pub records: Vec<Record>,
    /// Its bytes before the first record.
    pub head_bytes: u64,
}

/// Bytes that are in a file, behind those of the record before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record {
    /// Which file.
    pub file: usize,
    /// The first byte behind them.
    pub end: u64,
    /// Their hash.
    pub hash: u64,
    /// The journal's bytes up to and with this record.
    pub journal_bytes: u64,
}

impl Journal {
    /// Reads a journal; `None` where there is none, or not a whole one.
    ///
    /// Errors: it cannot be read; the file is something else.
    pub(super) fn read(partial: &mut Partial) -> Result<Option<Self>> {
        partial.rewind()?;
        let io = |source| engine::Error::Io { path: partial.target.clone(), source };
        let mut bytes = Vec::new();
        (&partial.file).take(MAX_BYTES).read_to_end(&mut bytes).map_err(io)?;
        // Its first line may be torn.
        let n_title = bytes.len().min(TITLE.len());
        if bytes[..n_title] != TITLE.as_bytes()[..n_title] {
            return Err(partial.foreign("a file that is no journal"));
        }
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut at = 0;
        // Only lines with their end: the last one may be torn.
        let mut lines = text.split_inclusive('\n').map_while(|line| {
            at += line.len() as u64;
            Some((line.strip_suffix('\n')?, at))
        });
        let hash = |line: &str, key: &str| u64::from_str_radix(line.strip_prefix(key)?, 16).ok();
        (lines.next()?.0 == TITLE).then_some(())?;
        let plan = hash(lines.next()?.0, "plan ")?;
        let source = hash(lines.next()?.0, "source ")?;
        let (mut files, mut records) = (Vec::new(), Vec::new());
        let mut head_bytes = None;
        for (line, journal_bytes) in lines {
            if let Some(name) = line.strip_prefix("file ") {
                files.push(name.to_owned());
            } else if line == "begin" {
                head_bytes = Some(journal_bytes);
            } else {
                let Some(record) = Record::parse(line, journal_bytes) else { break };
                records.push(record);
            }
        }
        Some(Self { fingerprint: Fingerprint { plan, source }, files, records, head_bytes: head_bytes? })
    }

    /// The beginning of a journal. `files`: names of the unfinished files.
    pub(super) fn head<'a>(fingerprint: Fingerprint, files: impl Iterator<Item = &'a str>) -> String {
        let Fingerprint { plan, source } = fingerprint;
        let mut text = format!("{TITLE}\nplan {plan:016x}\nsource {source:016x}\n");
        for name in files.filter(|name| !name.contains(char::is_control)) {
            let _ = writeln!(text, "file {name}");
        }
        text.push_str("begin\n");
        text
    }
}

impl Record {
    fn parse(line: &str, journal_bytes: u64) -> Option<Self> {
        let mut fields = line.strip_prefix("at ")?.split(' ');
        let file = fields.next()?.parse().ok()?;
        let end = fields.next()?.parse().ok()?;
        let hash = u64::from_str_radix(fields.next()?, 16).ok()?;
        fields.next().is_none().then_some(Self { file, end, hash, journal_bytes })
    }

    /// Appends the record to a journal, in one piece.
    pub(super) fn append(file: usize, end: u64, hash: u64, journal: &mut Partial) -> engine::Result<()> {
        let line = format!("at {file} {end} {hash:016x}\n");
        let io = |source| engine::Error::Io { path: journal.target.clone(), source };
        (&journal.file).write_all(line.as_bytes()).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_ends_a_journal() {
        let fingerprint = Fingerprint { plan: 1, source: u64::MAX };
        let head = Journal::head(fingerprint, ["a b.gguf.part", "x\ny"].into_iter());
        let text = format!("{head}at 0 100 00000000000000ff\nat 1 5");
        let journal = Journal::parse(&text).unwrap();
        assert_eq!((journal.fingerprint, journal.head_bytes), (fingerprint, head.len() as u64));
        assert_eq!(journal.files, ["a b.gguf.part"]);
        let journal_bytes = text.len() as u64 - 6;
        assert_eq!(journal.records, [Record { file: 0, end: 100, hash: 255, journal_bytes }]);
        for cut in 0..head.len() {
            assert!(Journal::parse(&head[..cut]).is_none(), "{cut}");
        }
        assert!(Journal::parse(&text.replace("at 0 100", "at 0 -1")).unwrap().records.is_empty());
    }
}
