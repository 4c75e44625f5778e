//! Writing GGUF files in constant memory. [`GgufWriter`] takes keys, then tensor descriptions, then tensor bytes.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::aligned::AlignedBytes;
use super::layout::{ALIGNMENT, GgufLayout};
use super::metadata::Value;
use super::part::Bytes;
use super::{Gguf, bad, shown};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;

/// Bytes collected before the system is called; tensor bytes come in larger pieces and pass by.
const BUFFER_BYTES: usize = 1 << 20;

/// A GGUF file in the making: little-endian, version 3, tensor data aligned to 32 bytes.
///
/// The file grows under a temporary name in the target's folder; [`GgufWriter::finish`] gives it its name. A writer
/// that is dropped before leaves nothing behind. A writer [`GgufWriter::in_memory`] makes an open [`Gguf`] instead.
pub struct GgufWriter {
    path: PathBuf,
    target: Target,
    layout: GgufLayout,
    /// The tensor that takes bytes now; `None` before the first.
    current: Option<Current>,
    has_header: bool,
}

/// Where the bytes go.
enum Target {
    File { temporary: Temporary, file: BufWriter<File> },
    Memory(AlignedBytes),
}

/// Progress of the tensor that is being written.
struct Current {
    tensor: usize,
    written: u64,
}

impl GgufWriter {
    /// Begins the file that will be called `path`.
    ///
    /// Errors: `Io` where its folder cannot be written to or `path` is a directory.
    pub fn create(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        if path.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        let (temporary, file) = Temporary::beside(path).map_err(io)?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self::new(path, Target::File { temporary, file }))
    }

    /// Begins a file that only ever exists in memory; `name` stands for its path in messages.
    pub fn in_memory(name: &str) -> Self {
        Self::new(Path::new(name), Target::Memory(AlignedBytes::default()))
    }

    fn new(path: &Path, target: Target) -> Self {
        let layout = GgufLayout::new(path);
        Self { path: path.to_owned(), target, layout, current: None, has_header: false }
    }

    /// Adds a metadata key.
    ///
    /// Errors: `Gguf` for a key that is there already, has a name that readers refuse, names another alignment than
    /// this writer's, or comes after [`GgufWriter::begin`].
    pub fn key(&mut self, name: &str, value: impl Into<Value>) -> Result<()> {
        self.check_open("metadata key", name)?;
        self.layout.key(name, value)
    }

    /// Adds a tensor; its bytes follow in the order of these calls. `shape`: outermost first, of rank 1 at least.
    ///
    /// Errors: `Gguf` for a tensor that is there already, has a name that readers refuse, has rows that are not whole
    /// blocks, or comes after [`GgufWriter::begin`].
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: Shape) -> Result<()> {
        self.check_open("tensor", name)?;
        self.layout.tensor(name, dtype, shape)
    }

    /// Begins the bytes of the next tensor, which must be `name`.
    ///
    /// Errors: `Gguf` where another tensor is next or the one before has too few bytes; `Io`.
    pub fn begin(&mut self, name: &str) -> Result<()> {
        let next = self.next_tensor()?;
        match self.layout.tensors().get(next) {
            Some(planned) if planned.name == name => {}
            Some(planned) => {
                return Err(self.bad(format!("want the bytes of {}, got those of {name}", planned.name)));
            }
            None => return Err(self.bad(format!("tensor {name} was not described"))),
        }
        if next == 0 {
            self.write_header()?;
        }
        self.current = Some(Current { tensor: next, written: 0 });
        Ok(())
    }

    /// Appends to the tensor that was begun; any cut is fine.
    ///
    /// Errors: `Gguf` where no tensor was begun or it has all its bytes; `Io`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Err(bad(&self.path, "tensor bytes come after the tensor's name".into()));
        };
        let planned = &self.layout.tensors()[current.tensor];
        let left = planned.bytes - current.written;
        if bytes.len() as u64 > left {
            let (name, n) = (&planned.name, bytes.len());
            return Err(bad(&self.path, format!("tensor {name}: {left} bytes are missing, got {n}")));
        }
        current.written += bytes.len() as u64;
        let padding = if current.written == planned.bytes { padding(planned.bytes) } else { 0 };
        self.put(bytes)?;
        self.put(&[0; ALIGNMENT as usize][..padding])
    }

    /// Writes everything to the disk, still under the temporary name: of several files that belong together none gets
    /// its name before all are safe.
    ///
    /// Errors: `Gguf` where bytes of a tensor are missing; `Io`.
    pub fn sync(&mut self) -> Result<()> {
        self.complete()?;
        let Target::File { file, .. } = &mut self.target else { return Ok(()) };
        let io = |source| Error::Io { path: self.path.clone(), source };
        file.flush().map_err(io)?;
        file.get_ref().sync_all().map_err(io)
    }

    /// Writes everything to the disk and gives the file its name, in place of an older one.
    ///
    /// Errors: `Gguf` where bytes of a tensor are missing or the writer is one in memory; `Io`.
    pub fn finish(mut self) -> Result<()> {
        self.sync()?;
        match &mut self.target {
            Target::File { temporary, .. } => {
                temporary.rename(&self.path).map_err(|source| Error::Io { path: self.path.clone(), source })
            }
            Target::Memory(_) => Err(self.bad("a file in memory cannot be renamed".into())),
        }
    }

    /// Opens what was written in memory.
    ///
    /// Errors: `Gguf` where bytes of a tensor are missing, the writer is one of a file, or as for [`Gguf::open`].
    pub fn finish_in_memory(mut self) -> Result<Gguf> {
        self.complete()?;
        match self.target {
            Target::Memory(bytes) => Gguf::from_bytes(&self.path, Bytes::Owned(Arc::new(bytes))),
            Target::File { .. } => Err(bad(&self.path, "a file on the disk is opened by its path".into())),
        }
    }

    /// Checks that all tensors have their bytes, and writes the header of a file without any.
    fn complete(&mut self) -> Result<()> {
        let next = self.next_tensor()?;
        if let Some(planned) = self.layout.tensors().get(next) {
            return Err(self.bad(format!("tensor {} has no bytes", planned.name)));
        }
        if next == 0 && !self.has_header {
            self.write_header()?;
        }
        Ok(())
    }

    /// The tensor whose bytes come next; an error while the current one lacks some.
    fn next_tensor(&self) -> Result<usize> {
        let Some(current) = &self.current else { return Ok(0) };
        let planned = &self.layout.tensors()[current.tensor];
        if current.written != planned.bytes {
            let (name, want, got) = (&planned.name, planned.bytes, current.written);
            return Err(self.bad(format!("tensor {name}: want {want} bytes, got {got}")));
        }
        Ok(current.tensor + 1)
    }

    fn write_header(&mut self) -> Result<()> {
        self.has_header = true;
        let header = self.layout.header();
        if let Target::Memory(bytes) = &mut self.target {
            let wanted = usize::try_from(self.layout.file_bytes()).unwrap_or(usize::MAX);
            if !bytes.reserve(wanted) {
                let what = format!("{} in memory", self.path.display());
                return Err(Error::OutOfMemory { what, wanted, free: None });
            }
        }
        self.put(&header)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.target {
            Target::File { file, .. } => {
                file.write_all(bytes).map_err(|source| Error::Io { path: self.path.clone(), source })
            }
            Target::Memory(memory) => {
                memory.extend(bytes);
                Ok(())
            }
        }
    }

    fn check_open(&self, what: &str, name: &str) -> Result<()> {
        if self.has_header {
            return Err(self.bad(format!("{what} {} comes after tensor bytes", shown(name))));
        }
        Ok(())
    }

    fn bad(&self, what: String) -> Error {
        bad(&self.path, what)
    }
}

/// Bytes from `n` to the next aligned place.
fn padding(n: u64) -> usize {
    (n.next_multiple_of(ALIGNMENT) - n) as usize
}

/// The temporary name; its file is deleted on drop unless it was renamed.
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    /// A fresh file in the folder of `target`, so that the rename stays inside one file system.
    fn beside(target: &Path) -> std::io::Result<(Self, File)> {
        /// Tells apart the writers of one process.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if target.file_name().is_none() {
            return Err(std::io::Error::other("not a file name"));
        }
        loop {
            // Without the target's name, which may be as long as the file system allows.
            let name = format!(".{}-{}.gguf.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = target.with_file_name(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((Self { path, renamed: false }, file)),
                // Left behind by a killed process that had the same number.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn rename(&mut self, target: &Path) -> std::io::Result<()> {
        std::fs::rename(&self.path, target)?;
        self.renamed = true;
        #[cfg(unix)]
        {
            // The new name itself is on the disk only after its folder is.
            let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
