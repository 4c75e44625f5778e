//! Weights by name. [`WeightStore`] joins the tensors of one or two model files; [`Weight`] is the small handle that
//! architectures keep and graphs name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::shape::Shape;

/// The number of a weight in its store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct WeightId(pub u32);

/// A weight that was looked up: its number, its format, and the shape that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Weight {
    id: WeightId,
    dtype: DType,
    shape: Shape,
}

impl Weight {
    /// The number in the store.
    pub fn id(self) -> WeightId {
        self.id
    }

    /// The element format.
    pub fn dtype(self) -> DType {
        self.dtype
    }

    /// The extents as asked for, outermost first; of the file's they may differ in extents of 1.
    pub fn shape(self) -> Shape {
        self.shape
    }
}

impl From<Weight> for WeightId {
    fn from(weight: Weight) -> Self {
        weight.id
    }
}

/// What a store knows of a weight.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WeightDesc {
    /// The tensor's name in the file.
    pub name: String,
    /// The element format.
    pub dtype: DType,
    /// The extents in the file, outermost first.
    pub shape: Shape,
}

/// What is wrong with a weight that was asked for. The text is about the tensor alone; [`WeightError::paths`] says where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WeightError {
    /// It is absent.
    Missing {
        /// All files of the store.
        paths: Vec<PathBuf>,
        /// The tensor.
        name: String,
    },
    /// It has other extents than were asked for.
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The extents asked for, outermost first.
        want: Vec<usize>,
        /// The extents found.
        got: Shape,
    },
}

impl WeightError {
    /// The file that has the tensor, or all of them where none has it.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Missing { paths, .. } => paths,
            Self::Shape { path, .. } => std::slice::from_ref(path),
        }
    }
}

impl std::fmt::Display for WeightError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { name, .. } => write!(f, "tensor {name} is missing"),
            Self::Shape { name, want, got, .. } => write!(f, "{name}: want {want:?}, got {got}"),
        }
    }
}

impl std::error::Error for WeightError {}

/// All weights of a model: names, descriptions and mapped bytes. Clones share them.
#[derive(Clone)]
pub struct WeightStore(Arc<Joined>);

struct Joined {
    files: Vec<Gguf>,
    weights: Vec<Placed>,
    by_name: HashMap<String, WeightId>,
}

/// A weight and its place: the file, and the tensor's number there.
struct Placed {
    desc: WeightDesc,
    file: usize,
    tensor: usize,
}

impl WeightStore {
    /// The tensors of `files` in order: a text model, a text model and its `mmproj`, or a bundle.
    ///
    /// Errors: `Gguf` where two files have a tensor of the same name.
    pub fn new(files: impl IntoIterator<Item = Gguf>) -> Result<Self> {
        let files: Vec<Gguf> = files.into_iter().collect();
        let mut weights: Vec<Placed> = Vec::new();
        let mut by_name = HashMap::new();
        for (file, gguf) in files.iter().enumerate() {
            for (i, tensor) in gguf.tensors().enumerate() {
                let id = WeightId(u32::try_from(weights.len()).expect("files have at most 2^16 tensors"));
                if let Some(WeightId(other)) = by_name.insert(tensor.name.to_owned(), id) {
                    let other = files[weights[other as usize].file].path().display();
                    let what = format!("tensor {} is in {other} too", tensor.name.escape_debug());
                    return Err(Error::Gguf { path: gguf.path().to_owned(), what, source: None });
                }
                let desc = WeightDesc { name: tensor.name.to_owned(), dtype: tensor.dtype, shape: tensor.shape };
                weights.push(Placed { desc, file, tensor: i });
            }
        }
        Ok(Self(Arc::new(Joined { files, weights, by_name })))
    }

    /// The weight called `name`, which must have the extents `dims`, outermost first.
    ///
    /// Errors: `Missing`; `Shape`, also where `dims`, computed from metadata, are no shape at all.
    pub fn get<const N: usize>(&self, name: &str, dims: [usize; N]) -> Result<Weight, WeightError> {
        self.get_optional(name, dims)?.ok_or_else(|| self.missing(name))
    }

    /// Like [`WeightStore::get`], with `None` for a name that is not there.
    ///
    /// Errors: `Shape`.
    pub fn get_optional<const N: usize>(&self, name: &str, dims: [usize; N]) -> Result<Option<Weight>, WeightError> {
        self.look_up(name, &dims, |found, want| found == want)
    }

    /// Like [`WeightStore::get`], but extents of 1 are passed over on both sides: a bias stored as `[480, 1, 1]` is
    /// given for `[480]`.
    ///
    /// Errors: as for [`WeightStore::get`].
    pub fn get_squeezed<const N: usize>(&self, name: &str, dims: [usize; N]) -> Result<Weight, WeightError> {
        let found = self.look_up(name, &dims, |found, want| longer(found).eq(longer(want)))?;
        found.ok_or_else(|| self.missing(name))
    }

    /// Whether there is a weight called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.0.by_name.contains_key(name)
    }

    /// The description of the weight called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<(WeightId, &WeightDesc)> {
        self.0.by_name.get(name).map(|&id| (id, self.desc(id)))
    }

    /// The description of a weight of this store.
    pub fn desc(&self, weight: impl Into<WeightId>) -> &WeightDesc {
        &self.placed(weight.into()).desc
    }

    /// The mapped bytes of a weight of this store, aligned to [`crate::gguf::TENSOR_ALIGNMENT`].
    pub fn bytes(&self, weight: impl Into<WeightId>) -> &[u8] {
        let placed = self.placed(weight.into());
        self.0.files[placed.file].tensor_at(placed.tensor).bytes
    }

    /// Gives the mapped pages of a weight back to the system, for a backend that has made its own copy.
    pub fn release(&self, weight: impl Into<WeightId>) {
        let placed = self.placed(weight.into());
        self.0.files[placed.file].release_tensor(placed.tensor);
    }

    /// Number of weights; their ids count from 0.
    pub fn len(&self) -> usize {
        self.0.weights.len()
    }

    /// Whether there is no weight.
    pub fn is_empty(&self) -> bool {
        self.0.weights.is_empty()
    }

    /// All weights in file order, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (WeightId, &WeightDesc)> {
        self.0.weights.iter().enumerate().map(|(i, placed)| (WeightId(i as u32), &placed.desc))
    }

    fn placed(&self, id: WeightId) -> &Placed {
        &self.0.weights[id.0 as usize]
    }

    fn look_up(
        &self,
        name: &str,
        dims: &[usize],
        fits: impl Fn(&Shape, &Shape) -> bool,
    ) -> Result<Option<Weight>, WeightError> {
        let Some(&id) = self.0.by_name.get(name) else { return Ok(None) };
        let desc = &self.placed(id).desc;
        match Shape::new(dims).filter(|shape| fits(&desc.shape, shape)) {
            Some(shape) => Ok(Some(Weight { id, dtype: desc.dtype, shape })),
            None => {
                let path = self.path(id).to_owned();
                Err(WeightError::Shape { path, name: name.to_owned(), want: dims.to_vec(), got: desc.shape })
            }
        }
    }

    /// The error for a tensor that is in none of the files.
    pub fn missing(&self, name: &str) -> WeightError {
        let paths = self.0.files.iter().map(|file| file.path().to_owned()).collect();
        WeightError::Missing { paths, name: name.to_owned() }
    }

    /// The file that holds a weight of this store.
    pub fn path(&self, weight: impl Into<WeightId>) -> &Path {
        self.0.files[self.placed(weight.into()).file].path()
    }
}

impl std::fmt::Debug for WeightStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightStore({} weights of {:?})", self.len(), self.0.files)
    }
}

/// The extents above 1.
fn longer(shape: &Shape) -> impl Iterator<Item = &u32> {
    shape.dims().iter().filter(|&&dim| dim > 1)
}
