//! Checkpoints of the fixtures: converted, taken apart, changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use convert::{Conversion, Error, ErrorKind, FileType, Options};
use engine::DType;
use engine::gguf::{Gguf, Value};
use half::bf16;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::Value as Json;
use tempfile::TempDir;

/// The checkpoint in `dir`, converted by our converter to a bundle of this type. The file is gone once it is mapped.
pub fn converted(dir: &Path, file_type: FileType) -> Gguf {
    let options = |_| Options { bundle: true, ..Options::new(file_type) };
    let conversion = Conversion::open(dir, options).expect("the fixture converts");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("bundle.gguf");
    conversion.write(std::slice::from_ref(&path), &AtomicBool::new(false)).expect("the fixture is written");
    Gguf::open(&path).expect("what was written loads")
}

/// A file or folder of the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Converts and opens what was written.
pub fn convert(folder: &Path, options: Options) -> Result<Vec<Gguf>, Error> {
    let out = tempfile::tempdir().unwrap();
    let conversion = Conversion::open(folder, |_| options)?;
    let paths: Vec<PathBuf> = conversion.file_names().iter().map(|name| out.path().join(name)).collect();
    conversion.write(&paths, &AtomicBool::new(false))?;
    let files = paths.iter().map(|path| Gguf::open(path).unwrap()).collect();
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), paths.len(), "only the files themselves are left");
    Ok(files)
}

/// The pair of files, with this type for the decoder.
pub fn pair(text_type: FileType) -> Options {
    Options::new(text_type)
}

/// One file.
pub fn bundle(text_type: FileType) -> Options {
    Options { bundle: true, ..Options::new(text_type) }
}

/// A tensor's format, extents and bytes.
pub type Tensor = (DType, Vec<u32>, Vec<u8>);

/// The tensors of all files.
pub fn tensors(files: &[Gguf]) -> BTreeMap<String, Tensor> {
    let all = files.iter().flat_map(Gguf::tensors);
    all.map(|t| (t.name.to_owned(), (t.dtype, t.shape.dims().to_vec(), t.bytes.to_vec()))).collect()
}

/// The metadata of a file.
pub fn keys(file: &Gguf) -> BTreeMap<String, Value> {
    file.metadata().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The elements of a tensor.
pub fn values(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let format = dtype.format().unwrap();
    let mut out = vec![0.0; bytes.len() / format.block_bytes() * format.block_len()];
    format.decode_row(bytes, &mut out);
    out
}

/// A checkpoint's tensors of floats: name, extents, values.
pub fn stored(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let all = read_tensors(folder).into_iter().filter(|(_, t)| t.dtype != Dtype::I64);
    all.map(|(name, t)| (name, (t.dims.clone(), t.values()))).collect()
}

/// A tensor of a checkpoint that is taken apart.
#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub dims: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    /// A tensor in bf16; what `values` gives for every place is rounded.
    pub fn bf16(dims: &[usize], values: impl FnMut(usize) -> f32) -> Self {
        let n = dims.iter().product();
        let bytes = (0..n).map(values).flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
        Self { dtype: Dtype::BF16, dims: dims.to_vec(), bytes }
    }

    fn values(&self) -> Vec<f32> {
        let bytes = &self.bytes;
        match self.dtype {
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            other => panic!("{other:?}"),
        }
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.dims
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The tensors of a checkpoint of one file, by name.
pub fn read_tensors(folder: &Path) -> Vec<(String, Stored)> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |t: safetensors::tensor::TensorView<'_>| Stored {
        dtype: t.dtype(),
        dims: t.shape().to_vec(),
        bytes: t.data().to_vec(),
    };
    let mut all: Vec<(String, Stored)> = file.iter().map(|(name, t)| (name.to_owned(), stored(t))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// A copy of a fixture without its golden tensors.
pub fn copy_of(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with("golden.safetensors") {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

/// Changes `config.json`.
pub fn edit_config(dir: &TempDir, edit: impl FnOnce(&mut Json)) {
    let path = dir.path().join("config.json");
    let mut config: Json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
}

/// Changes `model.safetensors`.
pub fn edit_tensors(dir: &TempDir, edit: impl FnOnce(&mut Vec<(String, Stored)>)) {
    let mut all = read_tensors(dir.path());
    edit(&mut all);
    safetensors::serialize_to_file(all, None, &dir.path().join("model.safetensors")).unwrap();
}

/// Finds a tensor to spoil it.
pub fn named<'a>(tensors: &'a mut [(String, Stored)], name: &str) -> &'a mut (String, Stored) {
    tensors.iter_mut().find(|(found, _)| found == name).unwrap()
}

/// A change of a checkpoint.
pub type Edit = Box<dyn Fn(&TempDir)>;

/// Changes the value at `place`, a JSON pointer into `config.json`; `null` for none.
pub fn set(place: &'static str, value: Json) -> Edit {
    Box::new(move |dir| {
        edit_config(dir, |config| {
            let (parent, key) = place.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value.clone();
        })
    })
}

/// Changes tensors.
pub fn spoil(edit: impl Fn(&mut Vec<(String, Stored)>) + 'static) -> Edit {
    Box::new(move |dir| edit_tensors(dir, &edit))
}

/// Writes a file.
pub fn put(name: &'static str, bytes: &'static [u8]) -> Edit {
    Box::new(move |dir| std::fs::write(dir.path().join(name), bytes).unwrap())
}

/// Removes files.
pub fn remove(names: &'static [&'static str]) -> Edit {
    Box::new(move |dir| names.iter().for_each(|name| std::fs::remove_file(dir.path().join(name)).unwrap()))
}

/// Damages one checkpoint after the other and looks for the message.
pub fn refused(name: &str, cases: Vec<(Edit, &str)>) {
    for (edit, want) in cases {
        let dir = copy_of(name);
        edit(&dir);
        let failure = convert(dir.path(), pair(FileType::F16)).err().unwrap_or_else(|| panic!("no error: want {want}"));
        let got = format!("{failure:#}");
        assert!(got.contains(want), "{got}: want {want}");
        assert_eq!(failure.kind(), ErrorKind::Model, "{got}");
        let is_short = got.lines().count() == 1 && got.len() < 400;
        assert!(got.starts_with(&*dir.path().to_string_lossy()) && is_short, "{got}");
    }
}
