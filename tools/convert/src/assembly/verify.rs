//! Comparing written files with what they were made from. [`Assembly::verify`] is where to start.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use engine::DType;

use super::encode::Difference;
use super::xxh64::Xxh64;
use super::{Assembly, AssemblyFile, Weights};
use crate::error::Error;
use crate::{Watch, workers};

/// Elements at the beginning of a tensor, and at its end, that [`Assembly::matches`] compares; a multiple of every block.
const SAMPLE: usize = 256;

/// What is known about a tensor after it was compared.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorReport<'a> {
    /// The file it is in.
    pub file: &'a Path,
    /// Its name.
    pub name: &'a str,
    /// Its format.
    pub dtype: DType,
    /// XXH64 of its bytes in the file.
    pub hash: u64,
    /// How far its values are from those it was made from.
    pub difference: Difference,
}

impl<W: Weights> Assembly<'_, W> {
    /// Reads the files and compares every byte with what would be written; `each` gets every tensor in order.
    ///
    /// Fails with the code of a bad model at the first byte that differs, naming file and tensor.
    pub fn verify(&self, watch: &dyn Watch, each: &mut (dyn FnMut(&TensorReport<'_>) + Send)) -> crate::Result<()> {
        workers::inside(|| self.files.iter().try_for_each(|file| self.verify_file(file, watch, each)))?
    }

    /// Compares length, header and the ends of every tensor of the files with what would be written: whether they are files of
    /// this plan, made of the same values, and whole. Not every byte: [`Assembly::verify`] does that.
    ///
    /// Fails with the code of a bad model, naming the file.
    pub fn matches(&self) -> crate::Result<()> {
        workers::inside(|| self.files.iter().try_for_each(|file| self.samples_match(file)))?
    }

    fn samples_match(&self, AssemblyFile { path, plan, layout }: &AssemblyFile<'_, W::Source>) -> crate::Result<()> {
        let other = || Error::model(anyhow!("{}: another content", path.display()));
        let mut input = Input::open(path, layout.file_bytes()).map_err(Error::model)?;
        let header = layout.header();
        if input.read(header.len()).map_err(Error::model)? != header {
            return Err(other());
        }
        let mut buffer = Vec::new();
        for (tensor, placed) in plan.tensors.iter().zip(layout.tensors()) {
            let encoder = self.encoder(tensor)?;
            let n = tensor.shape.elements();
            let sample = SAMPLE.min(n);
            for range in [0..sample, n - sample..n] {
                let at = layout.data_start() + placed.offset + encoder.byte_range(&range).start as u64;
                let want = encoder.encode(&range, &mut buffer).map_err(Error::model)?;
                if input.read_at(at, want.len()).map_err(Error::model)? != want {
                    return Err(other());
                }
            }
        }
        Ok(())
    }

    fn verify_file(
        &self,
        file: &AssemblyFile<'_, W::Source>,
        watch: &dyn Watch,
        each: &mut dyn FnMut(&TensorReport<'_>),
    ) -> crate::Result<()> {
        let AssemblyFile { path, plan, layout } = file;
        let mut input = Input::open(path, layout.file_bytes()).map_err(Error::model)?;
        let header = layout.header();
        let found = input.read(header.len()).map_err(Error::model)?;
        if let Some(i) = first_difference(&header, found) {
            let hint = "made from another checkpoint, with other options or by another program, or damaged";
            return Err(Error::model(anyhow!("{}: byte {i}, in the header, differs: {hint}", path.display())));
        }
        let mut buffer = Vec::new();
        for (tensor, placed) in plan.tensors.iter().zip(layout.tensors()) {
            let encoder = self.encoder(tensor)?;
            let (mut hash, mut difference) = (Xxh64::default(), Difference::default());
            for batch in encoder.batches(0) {
                if watch.is_interrupted() {
                    return Err(Error::interrupted());
                }
                let want = encoder.encode(&batch, &mut buffer).map_err(Error::model)?;
                let at = encoder.byte_range(&batch).start;
                let got = input.read(want.len()).map_err(Error::model)?;
                if let Some(i) = first_difference(want, got) {
                    let in_file = layout.data_start() + placed.offset + (at + i) as u64;
                    let (path, name, at) = (path.display(), &tensor.name, at + i);
                    let bytes = format!("want {:#04x}, got {:#04x}", want[i], got[i]);
                    let what = format!("{path}: {name}: byte {at} (byte {in_file} of the file): {bytes}");
                    return Err(Error::model(anyhow!(what)));
                }
                hash.add(got);
                difference = difference.and(encoder.difference(&batch, got).map_err(Error::model)?);
                watch.written(&tensor.name, batch.len() as u64);
                encoder.release(batch);
            }
            let padding = input.read((placed.end() - placed.offset - placed.bytes) as usize).map_err(Error::model)?;
            if padding.iter().any(|&byte| byte != 0) {
                let (path, name) = (path.display(), &tensor.name);
                return Err(Error::model(anyhow!("{path}: {name}: the padding behind it is not zero")));
            }
            each(&TensorReport { file: path, name: &tensor.name, dtype: placed.dtype, hash: hash.value(), difference });
        }
        Ok(())
    }
}

fn first_difference(want: &[u8], got: &[u8]) -> Option<usize> {
    if want == got { None } else { want.iter().zip(got).position(|(a, b)| a != b) }
}

/// A file that is read in order.
struct Input<'a> {
    path: &'a Path,
    file: File,
    buffer: Vec<u8>,
}

impl<'a> Input<'a> {
    /// Opens a file of `want` bytes.
    fn open(path: &'a Path, want: u64) -> Result<Self> {
        let io = |source| engine::Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let got = file.metadata().map_err(io)?.len();
        ensure!(got == want, "{}: want {want} bytes, got {got}", path.display());
        Ok(Self { path, file, buffer: Vec::new() })
    }

    /// The `n` bytes from `at` on.
    fn read_at(&mut self, at: u64, n: usize) -> Result<&[u8]> {
        self.file.seek(SeekFrom::Start(at)).with_context(|| self.path.display().to_string())?;
        self.read(n)
    }

    /// The next `n` bytes.
    fn read(&mut self, n: usize) -> Result<&[u8]> {
        self.buffer.resize(n, 0);
        self.file.read_exact(&mut self.buffer).with_context(|| self.path.display().to_string())?;
        Ok(&self.buffer)
    }
}
