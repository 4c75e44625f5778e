//! Writing the files, from the start or from where an earlier process stopped. [`Assembly::write`] is where to start.
//!
//! A file grows as `NAME.part` and gets its name when all files are on the disk; `NAME.journal` says how far they are.
//! Both are locked, so that a second process stops before it spoils anything. A process that is killed or interrupted
//! leaves them; one that fails does not.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use engine::gguf::{GgufWriter, PlacedTensor};

use super::encode::Encoder;
use super::journal::{Fingerprint, Journal, Record};
use super::partial::{Partial, hash_range, journal_path, partial_path, sync_folder_of};
use super::xxh64::Xxh64;
use super::{Assembly, AssemblyFile, PlannedTensor, Weights};
use crate::error::{Error, ErrorKind};
use crate::{Watch, workers};

/// Goes up when the same plan gives other bytes.
const VERSION: u64 = 1;
/// Bytes between two lines of the journal: what a killed process has to write again.
const RECORD_BYTES: u64 = 2 << 20;

/// What [`Assembly::write`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Tensor bytes that were there already.
    pub kept_bytes: u64,
    /// Tensor bytes written.
    pub new_bytes: u64,
}

/// Writes the bytes of a tensor that is next in `out`.
///
/// Fails with the code of a bad model for values that are not finite or do not fit, and as `watch` and `out` demand.
pub(crate) fn write_tensor<W: Weights>(
    weights: &W,
    tensor: &PlannedTensor<W::Source>,
    out: &mut GgufWriter,
    watch: &dyn Watch,
) -> crate::Result<()> {
    out.begin(&tensor.name).map_err(Error::output)?;
    let encoder = Encoder::new(tensor, weights.values(tensor).map_err(Error::model)?)?;
    let mut buffer = Vec::new();
    for batch in encoder.batches(0) {
        if watch.is_interrupted() {
            return Err(Error::interrupted());
        }
        let bytes = encoder.encode(&batch, &mut buffer).map_err(Error::model)?;
        out.write(bytes).map_err(Error::output)?;
        watch.written(&tensor.name, batch.len() as u64);
        encoder.release(batch);
    }
    Ok(())
}

impl<W: Weights> Assembly<'_, W> {
    /// Whether an earlier process stopped in the middle of these files.
    pub fn is_begun(&self) -> bool {
        journal_path(&self.base).exists()
    }

    /// Whether a pipe or device takes the bytes as they come, so that nothing of them is kept for a next call.
    pub fn is_streamed(&self) -> bool {
        self.files.iter().any(|file| is_stream(&file.path))
    }

    /// Writes the files, or what an interrupted process left to do, in constant memory, on the threads of
    /// `workers::inside`. The bytes do not depend on either.
    ///
    /// No file has its name before all are whole and on the disk. Fails with the code of a bad model for values that are
    /// not finite or do not fit, with that of a failed output, also where another process writes the same files, and
    /// when `watch` says so; then what is done stays for the next call.
    pub fn write(&self, watch: &dyn Watch) -> crate::Result<Written> {
        if self.is_streamed() {
            return workers::inside(|| self.write_through(watch))?;
        }
        let fingerprint = self.fingerprint();
        let mut desk = Desk::open(self).map_err(Error::output)?;
        let place = match desk.resume(self, fingerprint, watch) {
            Ok(place) => place,
            Err(e) => {
                desk.leave();
                return Err(Error::output(e));
            }
        };
        let done = workers::inside(|| self.write_from(place, fingerprint.source, &mut desk, watch))?;
        match done {
            Ok(written) => {
                desk.clear();
                Ok(written)
            }
            Err(failure) if failure.kind() == ErrorKind::Interrupted && desk.recorded_bytes(self) > 0 => {
                let (done, all) = (desk.recorded_bytes(self), self.tensor_bytes());
                let base = self.base.display();
                let what =
                    format!("{base}: {done} of {all} tensor bytes are kept; the same command goes on from there");
                Err(failure.followed_by(what))
            }
            Err(failure) => {
                desk.clear();
                Err(failure)
            }
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        let mut plan = Xxh64::default();
        plan.add_number(VERSION);
        plan.add_text(env!("CARGO_PKG_VERSION").as_bytes());
        for AssemblyFile { path, layout, .. } in &self.files {
            plan.add_text(path.file_name().unwrap_or_default().as_encoded_bytes());
            plan.add_text(&layout.header());
        }
        Fingerprint { plan: plan.value(), source: self.source_stamp() }
    }

    fn source_stamp(&self) -> u64 {
        let mut source = Xxh64::default();
        self.weights.stamp(&mut source);
        source.value()
    }

    /// Tensor bytes before a place.
    fn tensor_bytes_before(&self, place: Place) -> u64 {
        let of_file = |(i, file): (usize, &AssemblyFile<'_, _>)| -> u64 {
            let end = if i < place.file { u64::MAX } else { place.at };
            let start = file.layout.data_start();
            let before = |t: &PlacedTensor| end.saturating_sub(start + t.offset).min(t.bytes);
            file.layout.tensors().iter().map(before).sum()
        };
        self.files.iter().enumerate().take(place.file + 1).map(of_file).sum()
    }

    fn write_from(&self, place: Place, source: u64, desk: &mut Desk, watch: &dyn Watch) -> crate::Result<Written> {
        let kept_bytes = self.tensor_bytes_before(place);
        for i in place.file..self.files.len() {
            let at = if i == place.file { place.at } else { 0 };
            let end = self.files[i].layout.file_bytes();
            if at < end {
                self.write_file(i, &mut desk.page(&self.files[i].path, i, at, end).map_err(Error::output)?, watch)?;
            }
        }
        if self.source_stamp() != source {
            let base = self.base.display();
            return Err(Error::model(anyhow!("{base}: what it is made from has changed while it was written")));
        }
        if watch.is_interrupted() {
            return Err(Error::interrupted());
        }
        for (file, partial) in self.files.iter().zip(&desk.partials) {
            let Some(partial) = partial else { continue };
            let io = |source| engine::Error::Io { path: file.path.clone(), source };
            partial.file.sync_all().map_err(io).map_err(Error::output)?;
        }
        for (file, place) in self.files.iter().zip(&mut desk.partials) {
            let Some(partial) = place else { continue };
            let io = |source| engine::Error::Io { path: file.path.clone(), source };
            partial.rename(&file.path).map_err(io).map_err(Error::output)?;
            *place = None;
            sync_folder_of(&file.path).map_err(io).map_err(Error::output)?;
        }
        Ok(Written { kept_bytes, new_bytes: self.tensor_bytes() - kept_bytes })
    }

    /// Writes the file to the pipe or device that has its name.
    fn write_through(&self, watch: &dyn Watch) -> crate::Result<Written> {
        let [AssemblyFile { path, layout, .. }] = &self.files[..] else {
            let base = self.base.display();
            return Err(Error::usage(anyhow!(
                "{base}: a pipe or device takes one file, and there are {}",
                self.files.len()
            )));
        };
        let io = |source| engine::Error::Io { path: path.clone(), source };
        let out = OpenOptions::new().write(true).open(path).map_err(io).map_err(Error::output)?;
        let mut page = Page::new(path, &out, 0, layout.file_bytes(), None);
        self.write_file(0, &mut page, watch)?;
        Ok(Written { kept_bytes: 0, new_bytes: self.tensor_bytes() })
    }

    /// Writes file `i` from where its page is.
    fn write_file(&self, i: usize, page: &mut Page<'_>, watch: &dyn Watch) -> crate::Result<()> {
        let AssemblyFile { plan, layout, .. } = &self.files[i];
        if page.at == 0 {
            page.put(&layout.header()).map_err(Error::output)?;
        }
        let start = layout.data_start();
        let mut buffer = Vec::new();
        for (tensor, placed) in plan.tensors.iter().zip(layout.tensors()) {
            if start + placed.end() <= page.at {
                continue;
            }
            let encoder = self.encoder(tensor)?;
            let block = placed.dtype.block();
            let done = (page.at - start - placed.offset) / block.bytes as u64;
            for batch in encoder.batches(done as usize * block.len) {
                if watch.is_interrupted() {
                    page.record().map_err(Error::output)?;
                    return Err(Error::interrupted());
                }
                let bytes = encoder.encode(&batch, &mut buffer).map_err(Error::model)?;
                page.put(bytes).map_err(Error::output)?;
                if batch.end == tensor.shape.elements() {
                    let padding = vec![0; (placed.end() - placed.offset - placed.bytes) as usize];
                    page.put(&padding).map_err(Error::output)?;
                }
                page.record_if_due().map_err(Error::output)?;
                watch.written(&tensor.name, batch.len() as u64);
                encoder.release(batch);
            }
        }
        page.record().map_err(Error::output)
    }
}

/// How far writing is: every file before `file` is whole, and that one has its bytes up to `at`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Place {
    file: usize,
    at: u64,
}

/// The files under work and their journal.
struct Desk {
    journal: Partial,
    /// `None` where the file has its name already.
    partials: Vec<Option<Partial>>,
    recorded: Place,
}

impl Desk {
    /// Opens and locks everything. Errors: another process has some of it, or the folder cannot be written to; nothing is
    /// left behind that was not there.
    fn open<W: Weights>(assembly: &Assembly<'_, W>) -> Result<Self> {
        for AssemblyFile { path, .. } in &assembly.files {
            let io = |kind: std::io::ErrorKind| engine::Error::Io { path: path.clone(), source: kind.into() };
            if path.is_dir() {
                return Err(io(std::io::ErrorKind::IsADirectory).into());
            }
            if path.file_name().is_none() {
                return Err(io(std::io::ErrorKind::InvalidFilename).into());
            }
        }
        let journal = Partial::open(journal_path(&assembly.base), &assembly.base)?;
        let mut partials = Vec::new();
        for AssemblyFile { path, .. } in &assembly.files {
            match Partial::open(partial_path(path), path) {
                Ok(partial) => partials.push(Some(partial)),
                Err(e) => {
                    Self { journal, partials, recorded: Place::default() }.leave();
                    return Err(e);
                }
            }
        }
        Ok(Self { journal, partials, recorded: Place::default() })
    }

    /// Finds out how far an earlier process came, and makes everything ready to go on from there.
    fn resume<W: Weights>(
        &mut self,
        assembly: &Assembly<'_, W>,
        fingerprint: Fingerprint,
        watch: &dyn Watch,
    ) -> Result<Place> {
        let journal = Journal::read(&mut self.journal)?;
        let was_begun = journal.is_some();
        let why = match journal {
            Some(journal) if journal.fingerprint == fingerprint => {
                let place = self.check(assembly, &journal)?;
                if place != Place::default() {
                    self.recorded = place;
                    watch.written("", self.elements_before(assembly));
                    let (kept, all) = (assembly.tensor_bytes_before(place), assembly.tensor_bytes());
                    watch.note(&format!("{}: going on after {kept} of {all} tensor bytes", assembly.base.display()));
                    return Ok(place);
                }
                "nothing of them is whole"
            }
            Some(journal) => {
                self.remove_others(&journal, &assembly.base);
                if journal.fingerprint.source == fingerprint.source {
                    "the options were others"
                } else {
                    "what they are made from has changed since"
                }
            }
            None => {
                // Without a journal there is nothing in them that is ours.
                for partial in self.partials.iter().flatten() {
                    if self.journal.is_empty()? && !partial.is_empty()? {
                        return Err(partial.foreign("a file that no journal knows"));
                    }
                }
                ""
            }
        };
        if was_begun {
            let base = assembly.base.display();
            watch.note(&format!("{base}: the files of an interrupted run are not used: {why}; starting over"));
        }
        // The journal last: without it the others would be nobody's.
        for partial in self.partials.iter_mut().flatten() {
            partial.cut(0)?;
        }
        self.journal.cut(0)?;
        let names = self.partials.iter().flatten().filter_map(|partial| partial.path.file_name()?.to_str());
        let head = Journal::head(fingerprint, names);
        let journal = &mut self.journal;
        journal.file.write_all(head.as_bytes()).with_context(|| journal.target.display().to_string())?;
        Ok(Place::default())
    }

    /// Reads what the journal claims again, up to the first thing that is not so, and cuts everything there.
    fn check<W: Weights>(&mut self, assembly: &Assembly<'_, W>, journal: &Journal) -> Result<Place> {
        let mut place = Place::default();
        let mut journal_bytes = journal.head_bytes;
        let total = |i: usize| assembly.files.get(i).map_or(0, |file: &AssemblyFile<'_, _>| file.layout.file_bytes());
        // Where the file that is looked at begins in the journal, and whether it has its name.
        let (mut head, mut is_named) = (Place::default(), None);
        let mut head_bytes = journal_bytes;
        for record in &journal.records {
            if place.at == total(place.file) && record.file == place.file + 1 {
                if is_named == Some(true) {
                    self.take_name(place.file);
                }
                place = Place { file: record.file, at: 0 };
                (head, head_bytes, is_named) = (place, journal_bytes, None);
            }
            let is_next = record.file == place.file && record.end > place.at && record.end <= total(place.file);
            if !is_next || !is_cut(&assembly.files[place.file], record.end) {
                break;
            }
            let path = &assembly.files[place.file].path;
            let Some(partial) = &self.partials[place.file] else { break };
            let named = is_named.map_or_else(|| Ok::<_, anyhow::Error>(partial.len()? == 0 && path.is_file()), Ok)?;
            is_named = Some(named);
            let hash = if named {
                hash_of_path(path, place.at, record.end)
            } else {
                hash_range(&partial.file, place.at, record.end)
            };
            if hash.with_context(|| path.display().to_string())? != Some(record.hash) {
                break;
            }
            (place.at, journal_bytes) = (record.end, record.journal_bytes);
        }
        match is_named {
            Some(true) if place.at == total(place.file) => self.take_name(place.file),
            // An older file of this name.
            Some(true) => (place, journal_bytes) = (head, head_bytes),
            _ => {}
        }
        self.journal.cut(journal_bytes)?;
        for (i, partial) in self.partials.iter_mut().enumerate().skip(place.file) {
            let len = if i == place.file { place.at } else { 0 };
            if let Some(partial) = partial {
                partial.cut(len)?;
            }
        }
        Ok(place)
    }

    /// File `i` is whole under its name.
    fn take_name(&mut self, i: usize) {
        if let Some(empty) = self.partials[i].take() {
            empty.remove();
        }
    }

    /// Removes the unfinished files of another plan.
    fn remove_others(&self, journal: &Journal, base: &Path) {
        let is_ours = |path: &Path| self.partials.iter().flatten().any(|partial| partial.path == path);
        for name in &journal.files {
            let path = base.with_file_name(name);
            // The journal is a file like any other: it cannot make us remove what is not of our making.
            let is_partial =
                path.file_name().is_some_and(|file| file.to_str() == Some(name)) && name.ends_with(".part");
            if is_partial
                && path.exists()
                && !is_ours(&path)
                && let Ok(partial) = Partial::open(path.clone(), &path)
            {
                partial.remove();
            }
        }
    }

    /// File `i`, which will be called `target`, to be written from byte `at` to `end`.
    fn page<'a>(&'a mut self, target: &'a Path, i: usize, at: u64, end: u64) -> Result<Page<'a>> {
        let partial = self.partials[i].as_mut().context("a file that is not whole has no name")?;
        partial.cut(at)?;
        let records = Records { journal: &mut self.journal, recorded: &mut self.recorded, i };
        Ok(Page::new(target, &partial.file, at, end, Some(records)))
    }

    fn recorded_bytes<W: Weights>(&self, assembly: &Assembly<'_, W>) -> u64 {
        assembly.tensor_bytes_before(self.recorded)
    }

    fn elements_before<W: Weights>(&self, assembly: &Assembly<'_, W>) -> u64 {
        let (kept, all) = (self.recorded_bytes(assembly), assembly.tensor_bytes().max(1));
        // Close enough for a bar.
        (assembly.elements() as f64 * (kept as f64 / all as f64)) as u64
    }

    /// Leaves what was there, and removes what is empty.
    fn leave(self) {
        let all = self.partials.into_iter().flatten().chain([self.journal]);
        all.filter(|partial| partial.is_empty().is_ok_and(|is_empty| is_empty)).for_each(Partial::remove);
    }

    /// Removes everything that has no name.
    fn clear(self) {
        self.partials.into_iter().flatten().for_each(Partial::remove);
        self.journal.remove();
    }
}

/// Whether a batch may end at byte `at` of a file.
fn is_cut<S>(file: &AssemblyFile<'_, S>, at: u64) -> bool {
    let Some(at) = at.checked_sub(file.layout.data_start()) else { return false };
    let tensors = file.layout.tensors();
    let i = tensors.partition_point(|tensor| tensor.end() <= at);
    tensors.get(i).is_none_or(|tensor| (at - tensor.offset).is_multiple_of(tensor.dtype.block().bytes as u64))
}

fn hash_of_path(path: &Path, from: u64, to: u64) -> std::io::Result<Option<u64>> {
    hash_range(&std::fs::File::open(path)?, from, to)
}

/// Whether something at `path` is written to and not replaced: a pipe or a device.
fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// A file that grows.
struct Page<'a> {
    /// What messages call it.
    target: &'a Path,
    out: &'a File,
    /// Its length now, and in the end.
    at: u64,
    end: u64,
    /// Where the bytes begin that the journal does not have, and their hash.
    from: u64,
    hash: Xxh64,
    /// `None` where it cannot be gone on with.
    records: Option<Records<'a>>,
}

/// Where a page says how far it is.
struct Records<'a> {
    journal: &'a mut Partial,
    recorded: &'a mut Place,
    i: usize,
}

impl<'a> Page<'a> {
    fn new(target: &'a Path, out: &'a File, at: u64, end: u64, records: Option<Records<'a>>) -> Self {
        Self { target, out, at, end, from: at, hash: Xxh64::default(), records }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let io = |source| engine::Error::Io { path: self.target.to_owned(), source };
        self.out.write_all(bytes).map_err(io)?;
        self.hash.add(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn record_if_due(&mut self) -> Result<()> {
        if self.at - self.from >= RECORD_BYTES { self.record() } else { Ok(()) }
    }

    /// Tells the journal about everything so far.
    fn record(&mut self) -> Result<()> {
        debug_assert!(self.at <= self.end, "a file is as long as its plan");
        let Some(Records { journal, recorded, i }) = &mut self.records else { return Ok(()) };
        if self.at == self.from {
            return Ok(());
        }
        Record::append(*i, self.at, self.hash.value(), journal)?;
        **recorded = Place { file: *i, at: self.at };
        (self.from, self.hash) = (self.at, Xxh64::default());
        Ok(())
    }
}
