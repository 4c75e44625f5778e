//! Checkpoints in safetensors files, single or in shards. Read [`Checkpoint`] first.
//!
//! A file is a 64-bit length, a JSON header and the tensors' bytes without gaps. The header is read here, into the
//! types of the `safetensors` crate, which checks offsets and sizes: the crate's own reader keeps the last of two
//! tensors with one name, and buffers whatever else a header holds at up to 40 times its size.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Metadata, TensorInfo};
use anyhow::{Context, Result, anyhow, bail, ensure};
use engine::DType;
use engine::gguf::shown;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::assembly::{self, Xxh64};
use crate::files::{Files, Mapped, cut};
use crate::weights::{Values, Weight, Weights};

pub use ::safetensors::Dtype;

/// A checkpoint of one file.
const SINGLE_FILE: &str = "model.safetensors";
/// The table of contents of a checkpoint in shards.
const INDEX_FILE: &str = "model.safetensors.index.json";
/// A header's place for what is not a tensor.
const METADATA_KEY: &str = "__metadata__";

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;
/// Bytes of a header, and of an index: 60,000 tensors with room to spare, and memory that stays bounded.
const MAX_HEADER_BYTES: usize = 8 << 20;
/// Tensors of a checkpoint. Large ones with experts stored one by one have about 100,000.
const MAX_TENSORS: usize = 1 << 18;

/// An open checkpoint: names, types, shapes and mapped bytes of its tensors.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Mapped>,
    tensors: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

/// A tensor and its place.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct SourceTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: Dtype,
    /// Its extents, outermost first; none for a scalar.
    pub shape: &'a [usize],
    /// Its bytes, little-endian, dense. They may start anywhere: cast them with a copy.
    pub bytes: &'a [u8],
}

impl Checkpoint {
    /// Opens a folder with `model.safetensors` or with `model.safetensors.index.json` and the shards it lists, or one
    /// of these two files itself.
    ///
    /// Errors: a file that is missing, cut short or malformed, a tensor that is there twice, an index that disagrees
    /// with the shards. The message has the file and the cause.
    pub fn open(path: &Path) -> Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().filter(|_| !path.is_dir())) else {
            return Self::of(&path.into());
        };
        let index = path.extension().is_some_and(|extension| extension == "json");
        let (files, name) = (folder.into(), Path::new(name));
        if index { Self::open_index(&files, name) } else { Self::open_single(&files, name) }
    }

    /// Opens `model.safetensors`, or `model.safetensors.index.json` and the shards it lists. Errors as for a folder.
    pub fn of(files: &Files) -> Result<Self> {
        match (files.has(SINGLE_FILE), files.has(INDEX_FILE)) {
            (true, _) => Self::open_single(files, Path::new(SINGLE_FILE)),
            (false, true) => Self::open_index(files, Path::new(INDEX_FILE)),
            (false, false) => {
                let hint =
                    if has_shards(files) { ", but other *.safetensors: fetch the index of the shards too" } else { "" };
                bail!("{}: neither {SINGLE_FILE} nor {INDEX_FILE} is there{hint}", files.path().display())
            }
        }
    }

    fn open_single(files: &Files, name: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(files.path().join(name));
        checkpoint.add(files, name)?;
        Ok(checkpoint)
    }

    fn open_index(files: &Files, name: &Path) -> Result<Self> {
        let path = files.path().join(name);
        let index = read_index(&files.map(name)?)?;
        let mut checkpoint = Self::empty(path.clone());
        let shards: BTreeSet<&str> = index.iter().map(|(_, shard)| &**shard).collect();
        let shards: Vec<&str> = shards.into_iter().collect();
        for shard in &shards {
            let plain = Path::new(shard).file_name().is_some_and(|name| name == *shard);
            ensure!(plain, "{}: want names of files beside it, got {}", path.display(), shown(shard));
        }
        check_all_there(files, &path, &shards)?;
        for shard in &shards {
            checkpoint.add(files, Path::new(shard)).with_context(|| format!("{}", path.display()))?;
        }
        checkpoint.compare(&index, &shards).with_context(|| format!("{}", path.display()))?;
        Ok(checkpoint)
    }

    fn empty(path: PathBuf) -> Self {
        Self { path, files: Vec::new(), tensors: Vec::new(), by_name: HashMap::new() }
    }

    /// The file, or the index of a checkpoint in shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// All tensors: shard by shard, in the order of their bytes.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = SourceTensor<'_>> {
        self.tensors.iter().map(|entry| self.view(entry))
    }

    /// The tensor called `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<SourceTensor<'_>> {
        self.by_name.get(name).map(|&at| self.view(&self.tensors[at]))
    }

    /// The tensor called `name`. Errors: it is missing; the message has the checkpoint.
    pub fn require(&self, name: &str) -> Result<SourceTensor<'_>> {
        self.get(name).with_context(|| format!("{}: tensor {name} is missing", self.path.display()))
    }

    /// Gives the mapped pages of bytes `range` of a tensor back to the system; the next access reads them again. A
    /// converter that has written them calls this to stay in constant memory.
    pub fn release(&self, name: &str, range: Range<usize>) {
        if let Some(&at) = self.by_name.get(name) {
            let entry = &self.tensors[at];
            let place = |at: usize| entry.range.start.saturating_add(at).min(entry.range.end);
            self.files[entry.file].release(place(range.start)..place(range.end));
        }
    }

    /// Adds what tells whether the files are still the same: their headers, sizes and times of change.
    pub(crate) fn stamp(&self, hash: &mut Xxh64) {
        for file in &self.files {
            let length = file.first_chunk::<LENGTH_BYTES>().map_or(0, |length| u64::from_le_bytes(*length));
            let header = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(LENGTH_BYTES);
            hash.add_text(&file[..header.min(file.len())]);
            if let Mapped::File(map) = file {
                assembly::stamp(map.path(), hash);
            }
        }
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> SourceTensor<'a> {
        let Entry { name, dtype, shape, file, range } = entry;
        SourceTensor { name, dtype: *dtype, shape, bytes: &self.files[*file][range.clone()] }
    }

    /// Maps a file and takes its tensors in.
    fn add(&mut self, files: &Files, name: &Path) -> Result<()> {
        let file = files.map(name)?;
        let path = file.path();
        let entries = read_file(&file, self.files.len()).with_context(|| format!("{}", path.display()))?;
        ensure!(
            self.tensors.len() + entries.len() <= MAX_TENSORS,
            "{}: the checkpoint has more than {MAX_TENSORS} tensors",
            path.display()
        );
        for entry in entries {
            if let Some(other) = self.by_name.insert(entry.name.clone(), self.tensors.len()) {
                let other = self.files[self.tensors[other].file].path().display();
                bail!("{}: tensor {} is in {other} too", path.display(), shown(&entry.name));
            }
            self.tensors.push(entry);
        }
        self.files.push(file);
        Ok(())
    }

    /// Checks that the index lists every tensor, in the shard it is in, and no other. `shards`: the files' names.
    fn compare(&self, index: &[(String, String)], shards: &[&str]) -> Result<()> {
        for (name, shard) in index {
            match self.by_name.get(name).map(|&at| shards[self.tensors[at].file]) {
                Some(found) if found == shard => {}
                Some(found) => bail!("tensor {}: want it in {}, found it in {found}", shown(name), shown(shard)),
                None => bail!("tensor {} is not in {}", shown(name), shown(shard)),
            }
        }
        // Every listed name was found, and no name is listed twice.
        if index.len() < self.tensors.len() {
            let listed: HashSet<&str> = index.iter().map(|(name, _)| &**name).collect();
            let entry = self.tensors.iter().find(|entry| !listed.contains(&*entry.name));
            let entry = entry.expect("more tensors than listed names");
            bail!("tensor {} of {} is not listed", shown(&entry.name), shards[entry.file]);
        }
        Ok(())
    }
}

impl Weights for Checkpoint {
    fn path(&self) -> &Path {
        self.path()
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors().map(|tensor| tensor.name))
    }

    fn weight(&self, name: &str) -> Result<Weight<'_>> {
        let SourceTensor { dtype, shape, bytes, .. } = self.require(name)?;
        let dtype = match dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => bail!("{}: {name}: want F32, F16 or BF16, got {other:?}", self.path().display()),
        };
        Ok(Weight { dtype, dims: shape, values: Values::Stored(bytes) })
    }

    fn release(&self, name: &str, range: Range<usize>) {
        self.release(name, range);
    }

    fn stamp(&self, hash: &mut Xxh64) {
        self.stamp(hash);
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors in {} files)", self.path.display(), self.len(), self.files.len())
    }
}

/// Whether there are weights of any name.
fn has_shards(files: &Files) -> bool {
    let Files::Directory(path) = files else { return false };
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
}

/// Checks that the shards which the index lists are beside it.
fn check_all_there(files: &Files, index: &Path, shards: &[&str]) -> Result<()> {
    let missing: Vec<&str> = shards.iter().copied().filter(|shard| !files.has(shard)).collect();
    let Some(first) = missing.first().map(|name| shown(name)) else { return Ok(()) };
    let missing = match missing.len() {
        1 => format!("{first} is missing"),
        n => format!("{first} and {} more are missing", n - 1),
    };
    let (index, n) = (index.display(), shards.len());
    bail!("{index}: a checkpoint in {n} files, of which {missing}; fetch all of them into this folder")
}

/// The tensors of a mapped file in the order of their bytes. `i_file`: its number in the checkpoint.
fn read_file(file: &[u8], i_file: usize) -> Result<Vec<Entry>> {
    let (length, rest) = file.split_first_chunk::<LENGTH_BYTES>().context("the file is shorter than 8 bytes")?;
    let length = u64::from_le_bytes(*length);
    ensure!(length <= MAX_HEADER_BYTES as u64, "want a header of at most {MAX_HEADER_BYTES} bytes, got {length}");
    let length = usize::try_from(length)?;
    let header = rest.get(..length);
    let header = header.with_context(|| format!("want a header of {length} bytes, got {}: cut short", rest.len()))?;
    let Pairs::<TensorInfo>(mut lines) =
        serde_json::from_slice(header).map_err(|e| not_read(&e)).context("malformed header")?;
    lines.sort_by_key(|(_, info)| info.data_offsets);
    let start = LENGTH_BYTES + length;
    check_lines(&lines, file.len() - start)?;
    // The crate's own checks, in case the format gains rules that are unknown here.
    Metadata::new(None, lines.clone())?;
    let entries = lines.into_iter().map(|(name, TensorInfo { dtype, shape, data_offsets })| {
        let range = start + data_offsets.0..start + data_offsets.1;
        Entry { name, dtype, shape, file: i_file, range }
    });
    Ok(entries.collect())
}

/// Checks that tensors, sorted by offset, have the bytes that type and shape need and fill `data_bytes` without gaps.
fn check_lines(lines: &[(String, TensorInfo)], data_bytes: usize) -> Result<()> {
    let mut names = HashSet::new();
    let mut end = 0;
    for (name, TensorInfo { dtype, shape, data_offsets: (from, to) }) in lines {
        let unique = names.insert(name);
        let name = shown(name);
        let (extents, shape) = (shape, shown(&format!("{shape:?}")));
        ensure!(unique, "tensor {name} is there twice");
        let bits = extents.iter().try_fold(dtype.bitsize(), |n, &extent| n.checked_mul(extent));
        let want = bits.filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8);
        let want = want.with_context(|| format!("tensor {name}: {dtype} {shape} is not a number of bytes"))?;
        let got = to.checked_sub(*from).with_context(|| format!("tensor {name}: ends at {to}, before {from}"))?;
        ensure!(want == got, "tensor {name}: {dtype} {shape} wants {want} bytes, got {got}");
        ensure!(*from == end, "tensor {name}: want it to start at byte {end} of the data, got {from}");
        end = *to;
    }
    ensure!(end <= data_bytes, "want {end} bytes of data, got {data_bytes}: cut short");
    ensure!(end == data_bytes, "want {end} bytes of data, got {data_bytes}");
    Ok(())
}

/// The pairs of a JSON object in its order, equal names included; [`METADATA_KEY`] is passed over.
struct Pairs<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OfObject<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for OfObject<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs<V>, M::Error> {
                let mut pairs = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        map.next_value::<IgnoredAny>()?;
                    } else if pairs.len() < MAX_TENSORS {
                        pairs.push((name, map.next_value()?));
                    } else {
                        return Err(M::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                }
                Ok(Pairs(pairs))
            }
        }

        from.deserialize_map(OfObject(PhantomData))
    }
}

/// Why JSON was not taken: the library repeats what it found, however long that is.
fn not_read(error: &serde_json::Error) -> anyhow::Error {
    let (text, place) = (error.to_string(), format!(" at line {} column {}", error.line(), error.column()));
    let what = text.strip_suffix(&place).unwrap_or(&text);
    anyhow!("{}{place}", cut(what))
}

/// The lines of an index: tensor and shard.
fn read_index(file: &Mapped) -> Result<Vec<(String, String)>> {
    let path = file.path();
    let n = file.len();
    ensure!(n <= MAX_HEADER_BYTES, "{}: want an index of at most {MAX_HEADER_BYTES} bytes, got {n}", path.display());
    let index: Index = serde_json::from_slice(file)
        .map_err(|e| not_read(&e))
        .with_context(|| format!("{}: malformed index", path.display()))?;
    let mut names = HashSet::new();
    for (name, _) in &index.weight_map.0 {
        ensure!(names.insert(name), "{}: tensor {} is listed twice", path.display(), shown(name));
    }
    Ok(index.weight_map.0)
}

/// What of an index is read.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: Pairs<String>,
}
