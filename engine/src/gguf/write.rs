//! Writing GGUF files in constant memory. [`GgufWriter`] takes keys, then tensor descriptions, then tensor bytes.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::aligned::AlignedBytes;
use super::metadata::{Plain, Value};
use super::part::Bytes;
use super::scan::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_KEY_BYTES, MAX_TENSORS, VERSION};
use super::{Gguf, TENSOR_ALIGNMENT, bad, shown};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;

/// Bytes of a tensor's name that every reader accepts. Source: ggml, `GGML_MAX_NAME` less the closing zero.
const MAX_TENSOR_NAME_BYTES: usize = 63;
/// Bytes collected before the system is called; tensor bytes come in larger pieces and pass by.
const BUFFER_BYTES: usize = 1 << 20;
/// Alignment of tensor data in bytes.
const ALIGNMENT: u64 = DEFAULT_ALIGNMENT;

const _: () = assert!(ALIGNMENT == TENSOR_ALIGNMENT as u64);

/// A GGUF file in the making: little-endian, version 3, tensor data aligned to 32 bytes.
///
/// The file grows under a temporary name in the target's folder; [`GgufWriter::finish`] gives it its name. A writer
/// that is dropped before leaves nothing behind. A writer [`GgufWriter::in_memory`] makes an open [`Gguf`] instead.
pub struct GgufWriter {
    path: PathBuf,
    target: Target,
    keys: Vec<u8>,
    key_names: HashSet<String>,
    tensors: Vec<Planned>,
    tensor_names: HashSet<String>,
    /// Where the next tensor goes, from the start of tensor data.
    end: u64,
    /// The tensor that takes bytes now; `None` before the first.
    current: Option<Current>,
    has_header: bool,
}

/// Where the bytes go.
enum Target {
    File { temporary: Temporary, file: BufWriter<File> },
    Memory(AlignedBytes),
}

/// A line of the tensor table.
struct Planned {
    name: String,
    dtype: DType,
    shape: Shape,
    offset: u64,
    bytes: u64,
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
        Self {
            path: path.to_owned(),
            target,
            keys: Vec::new(),
            key_names: HashSet::new(),
            tensors: Vec::new(),
            tensor_names: HashSet::new(),
            end: 0,
            current: None,
            has_header: false,
        }
    }

    /// Adds a metadata key.
    ///
    /// Errors: `Gguf` for a key that is there already, has a name that readers refuse, names another alignment than
    /// this writer's, or comes after [`GgufWriter::begin`].
    pub fn key(&mut self, name: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        self.check_open("metadata key", name)?;
        if name.is_empty() || name.len() > MAX_KEY_BYTES {
            let n = name.len();
            return Err(self.bad(format!("want a metadata key of 1 to {MAX_KEY_BYTES} bytes, got {n}")));
        }
        if name == ALIGNMENT_KEY && value.as_integer() != Some(ALIGNMENT.into()) {
            return Err(self.bad(format!("{ALIGNMENT_KEY}: want {ALIGNMENT}, got another value")));
        }
        if !self.key_names.insert(name.to_owned()) {
            return Err(self.bad(format!("metadata key {} is there twice", shown(name))));
        }
        put_text(name, &mut self.keys);
        value.value_type().id().put(&mut self.keys);
        value.encode(&mut self.keys);
        Ok(())
    }

    /// Adds a tensor; its bytes follow in the order of these calls. `shape`: outermost first, of rank 1 at least.
    ///
    /// Errors: `Gguf` for a tensor that is there already, has a name that readers refuse, has rows that are not whole
    /// blocks, or comes after [`GgufWriter::begin`].
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: Shape) -> Result<()> {
        self.check_open("tensor", name)?;
        if name.is_empty() || name.len() > MAX_TENSOR_NAME_BYTES {
            let what = format!("tensor {}: want a name of 1 to {MAX_TENSOR_NAME_BYTES} bytes", shown(name));
            return Err(self.bad(what));
        }
        let block = dtype.block().len;
        if shape.rank() == 0 || !shape.last().is_multiple_of(block) {
            let what = format!("tensor {}: {dtype} wants rows of a multiple of {block}, got {shape}", shown(name));
            return Err(self.bad(what));
        }
        if self.tensors.len() == MAX_TENSORS {
            return Err(self.bad(format!("more than {MAX_TENSORS} tensors")));
        }
        if !self.tensor_names.insert(name.to_owned()) {
            return Err(self.bad(format!("tensor {} is there twice", shown(name))));
        }
        let bytes = shape.rows() as u64 * dtype.row_bytes(shape.last()) as u64;
        // Below 2^16 tensors of less than 2^34 bytes: no overflow.
        let offset = self.end;
        self.end = (offset + bytes).next_multiple_of(ALIGNMENT);
        self.tensors.push(Planned { name: name.to_owned(), dtype, shape, offset, bytes });
        Ok(())
    }

    /// Begins the bytes of the next tensor, which must be `name`.
    ///
    /// Errors: `Gguf` where another tensor is next or the one before has too few bytes; `Io`.
    pub fn begin(&mut self, name: &str) -> Result<()> {
        let next = self.next_tensor()?;
        match self.tensors.get(next) {
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
        let planned = &self.tensors[current.tensor];
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
        if let Some(planned) = self.tensors.get(next) {
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
        let planned = &self.tensors[current.tensor];
        if current.written != planned.bytes {
            let (name, want, got) = (&planned.name, planned.bytes, current.written);
            return Err(self.bad(format!("tensor {name}: want {want} bytes, got {got}")));
        }
        Ok(current.tensor + 1)
    }

    fn write_header(&mut self) -> Result<()> {
        self.has_header = true;
        let mut header = MAGIC.to_vec();
        VERSION.put(&mut header);
        (self.tensors.len() as u64).put(&mut header);
        (self.key_names.len() as u64).put(&mut header);
        header.append(&mut self.keys);
        for planned in &self.tensors {
            put_text(&planned.name, &mut header);
            let dims = planned.shape.dims();
            (dims.len() as u32).put(&mut header);
            dims.iter().rev().for_each(|&dim| u64::from(dim).put(&mut header));
            planned.dtype.gguf_id().put(&mut header);
            planned.offset.put(&mut header);
        }
        header.resize(header.len() + padding(header.len() as u64), 0);
        if let Target::Memory(bytes) = &mut self.target {
            let wanted = usize::try_from(self.end).ok().and_then(|n| n.checked_add(header.len())).unwrap_or(usize::MAX);
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

fn put_text(text: &str, out: &mut Vec<u8>) {
    (text.len() as u64).put(out);
    out.extend_from_slice(text.as_bytes());
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
