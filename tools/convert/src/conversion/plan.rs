//! What goes into a file, before any weight is read. [`FilePlan`] is the type to read first.
//!
//! Types per tensor are those of llama.cpp's converter (`conversion/base.py`, `prepare_tensors`; `conversion/qwenvl.py`,
//! `tensor_force_quant`): vectors stay F32, Qwen3-ASR's convolutions become F16. Matrices of quantized decoders are
//! llama-quantize's choice ([`crate::quantize::mix`]); encoders have one type.

use anyhow::{Result, anyhow};
use engine::{DType, Shape};

use super::arrange::{Change, Piece};
use super::batch_norm::{self, BatchNormPart};
use crate::assembly;
use crate::quantize::mix::{self, Choice, FileType};
use crate::quantize::overrides::Overrides;

/// What a tensor is, as far as its type depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// What stays F32: norms, biases, positions, routers, the small kernels of LFM2.
    Full,
    /// Rows that are multiplied with activations.
    Matrix,
    /// The matrix that gives the logits.
    Head,
    /// A kernel of the stem, or the matrix behind it.
    Convolution,
}

impl Role {
    /// Whether the type is a matter of choice.
    pub fn is_chosen(self) -> bool {
        matches!(self, Self::Matrix | Self::Head)
    }

    /// The format of the tensor `name` with rows of `row` elements in a file of type `file_type`.
    fn choose(self, file_type: FileType, overrides: &Overrides, name: &str, row: usize) -> Choice {
        let fixed = |dtype: DType| Choice { dtype, replaced: None };
        match self {
            Self::Full => fixed(DType::F32),
            Self::Convolution if file_type == FileType::F32 => fixed(DType::F32),
            Self::Convolution => fixed(DType::F16),
            Self::Matrix | Self::Head => Choice::fitting(overrides.dtype_of(name).unwrap_or(file_type.dtype()), row),
        }
    }
}

/// Where the values of a tensor come from.
#[derive(Clone, PartialEq, Debug)]
pub enum Source {
    /// The checkpoint's tensor of this name and shape, outermost first.
    Stored {
        /// Its name in the checkpoint.
        name: String,
        /// Its extents there.
        dims: Vec<usize>,
    },
    /// Elements of one tensor of the checkpoint in another order, all changed alike; see [`super::arrange`].
    Arranged {
        /// Its name in the checkpoint.
        name: String,
        /// Its extents there.
        dims: Vec<usize>,
        /// The elements, one piece behind the other.
        pieces: Vec<Piece>,
        /// What becomes of each.
        change: Change,
    },
    /// One tensor of the checkpoint per expert, all of this shape, one behind the other.
    Experts {
        /// What stands before the expert's number.
        prefix: String,
        /// What stands behind it.
        suffix: String,
        /// Number of experts.
        n: usize,
        /// Extents of a tensor.
        dims: Vec<usize>,
    },
    /// A batch norm with its statistics as one multiplication and one addition; see [`super::batch_norm`].
    BatchNorm {
        /// What stands before `weight`, `bias`, `running_mean` and `running_var`, without the dot.
        prefix: String,
        /// Which of the two.
        part: BatchNormPart,
        /// Elements of each tensor.
        n: usize,
    },
    /// The encoder's sinusoids; see [`super::positions`].
    Positions,
    /// Nothing but zeros.
    Zeros,
    /// These values.
    Values(Vec<f32>),
}

impl Source {
    /// Tensors of the checkpoint that are needed, and their extents.
    pub fn needs(&self) -> Box<dyn Iterator<Item = (String, &[usize])> + '_> {
        match self {
            Self::Stored { name, dims } | Self::Arranged { name, dims, .. } => {
                Box::new(std::iter::once((name.clone(), &dims[..])))
            }
            Self::Experts { prefix, suffix, n, dims } => {
                Box::new((0..*n).map(move |i| (format!("{prefix}{i}{suffix}"), &dims[..])))
            }
            Self::BatchNorm { prefix, n, .. } => Box::new(
                batch_norm::TENSORS.iter().map(move |part| (format!("{prefix}.{part}"), std::slice::from_ref(n))),
            ),
            Self::Positions | Self::Zeros | Self::Values(_) => Box::new(std::iter::empty()),
        }
    }
}

/// A tensor to be written.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// Its name in the file.
    pub name: String,
    /// Its extents in the file, outermost first.
    pub dims: Vec<usize>,
    /// What it is.
    pub role: Role,
    /// Where its values come from.
    pub source: Source,
}

impl Row {
    /// The checkpoint's tensor `stored`, which keeps its extents.
    pub fn new(name: impl Into<String>, stored: impl Into<String>, role: Role, dims: &[usize]) -> Self {
        let source = Source::Stored { name: stored.into(), dims: dims.to_vec() };
        Self { name: name.into(), dims: dims.to_vec(), role, source }
    }

    /// The embedding `[n_vocab, n_embd]`, which is the head as well where that is tied, and the head where it is not.
    pub fn embedding_and_head(stored: impl Into<String>, head: Option<&str>, dims: &[usize]) -> Vec<Self> {
        let role = if head.is_some() { Role::Matrix } else { Role::Head };
        let embedding = Self::new("token_embd.weight", stored, role, dims);
        std::iter::once(embedding).chain(head.map(|head| Self::new("output.weight", head, Role::Head, dims))).collect()
    }

    /// The same with other extents of as many elements.
    #[must_use]
    pub fn shaped(self, dims: &[usize]) -> Self {
        Self { dims: dims.to_vec(), ..self }
    }

    /// These elements of its stored tensor instead of all of them, as a tensor of these extents.
    #[must_use]
    pub fn arranged(self, dims: &[usize], new: Vec<Piece>) -> Self {
        self.shaped(dims).with(|pieces, _| *pieces = new)
    }

    /// Every element of its stored tensor changed.
    #[must_use]
    pub fn changed(self, new: Change) -> Self {
        self.with(|_, change| *change = new)
    }

    /// The same with the two of a rotated pair beside each other: row `2 i + j` of a head is its row `j head_dim / 2 + i` in
    /// the checkpoint. A matrix or a bias. Source: llama.cpp, `conversion/llama.py`, `LlamaModel.permute`.
    #[must_use]
    pub fn with_rotated_pairs(self, head_dim: usize) -> Self {
        let (dims, half) = (self.dims.clone(), head_dim / 2);
        let row = dims[1..].iter().product();
        let loops = vec![(dims[0] / head_dim, head_dim * row), (half, row), (2, half * row)];
        self.arranged(&dims, vec![Piece { start: 0, loops, run: row }])
    }

    /// Lets `f` say which elements of its stored tensor there are, and what becomes of them.
    fn with(mut self, f: impl FnOnce(&mut Vec<Piece>, &mut Change)) -> Self {
        if let Source::Stored { name, dims } = self.source {
            let all = Piece::of(0..dims.iter().product());
            self.source = Source::Arranged { name, dims, pieces: vec![all], change: Change::Kept };
        }
        if let Source::Arranged { pieces, change, .. } = &mut self.source {
            f(pieces, change);
        }
        self
    }
}

/// A tensor with its final format.
pub(super) type PlannedTensor = assembly::PlannedTensor<Source>;

/// Keys and tensors of one file, in order.
pub(super) type FilePlan = assembly::FilePlan<Source>;

/// Size of a model with experts.
#[derive(Clone, Copy)]
pub(super) struct ExpertCount {
    /// Experts of a layer.
    pub n_expert: u64,
    /// Elements of all tensors, with one expert per layer.
    pub one_of_each: u64,
}

/// Experts of a file's layers and what they stand for; `None` where there are none.
pub(super) fn experts(plan: &FilePlan) -> Option<ExpertCount> {
    let is_stack = |t: &&PlannedTensor| t.name.contains("_exps.");
    let stack = plan.tensors.iter().find(is_stack)?;
    let n_expert = u64::from(stack.shape.dims()[0]);
    let in_stacks: u64 = plan.tensors.iter().filter(is_stack).map(PlannedTensor::elements).sum();
    Some(ExpertCount { n_expert, one_of_each: plan.elements() - in_stacks + in_stacks / n_expert })
}

/// Tensors with their formats, and lines for the user about those that do not get what they should.
pub(super) struct Chosen {
    /// In the order of their rows.
    pub tensors: Vec<PlannedTensor>,
    /// What there is to say.
    pub notices: Vec<String>,
}

/// Formats and shapes of `rows` in a file of type `file_type`; of a decoder, `decoder` tells what a mix wants to know.
pub(super) fn plan(
    rows: Vec<Row>,
    file_type: FileType,
    decoder: Option<&mix::Model>,
    overrides: &Overrides,
) -> Result<Chosen> {
    let Some(decoder) = decoder.filter(|_| file_type.is_quantized()) else {
        return plan_by_role(rows, file_type, overrides);
    };
    // What llama-quantize is given is a file in bf16.
    let Chosen { mut tensors, .. } = plan_by_role(rows, FileType::BF16, &Overrides::default())?;
    let order = mix::order(tensors.iter().map(|tensor| &*tensor.name));
    let view = |tensor: &PlannedTensor| (tensor.name.clone(), tensor.shape, tensor.dtype);
    let sorted: Vec<(String, Shape, DType)> = order.iter().map(|&i| view(&tensors[i])).collect();
    let sorted: Vec<mix::Tensor<'_>> =
        sorted.iter().map(|(name, shape, dtype)| mix::Tensor { name, shape: *shape, dtype: *dtype }).collect();
    let mut notices = Vec::new();
    for (i, choice) in order.into_iter().zip(mix::choose(file_type, decoder, overrides, &sorted)) {
        notices.extend(choice.notice(&tensors[i].name, tensors[i].shape));
        tensors[i].dtype = choice.dtype;
    }
    Ok(Chosen { tensors, notices })
}

fn plan_by_role(rows: Vec<Row>, file_type: FileType, overrides: &Overrides) -> Result<Chosen> {
    let mut notices = Vec::new();
    let tensor = |row: Row| {
        let shape = Shape::new(&row.dims).ok_or_else(|| anyhow!("{}: {:?} is too large", row.name, row.dims))?;
        let choice = row.role.choose(file_type, overrides, &row.name, shape.last());
        notices.extend(choice.notice(&row.name, shape));
        Ok(PlannedTensor { name: row.name, dtype: choice.dtype, shape, source: row.source })
    };
    let tensors = rows.into_iter().map(tensor).collect::<Result<_>>()?;
    Ok(Chosen { tensors, notices })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dtype(role: Role, file_type: FileType, row: usize) -> DType {
        role.choose(file_type, &Overrides::default(), "a", row).dtype
    }

    #[test]
    fn short_rows_of_quantized_files_become_f16() {
        assert_eq!(dtype(Role::Matrix, FileType::Q8_0, 48), DType::F16);
        assert_eq!(dtype(Role::Matrix, FileType::Q8_0, 64), DType::Q8_0);
        assert_eq!(dtype(Role::Matrix, FileType::F32, 48), DType::F32);
    }

    #[test]
    fn convolutions_are_f16_except_in_f32_files() {
        for t in FileType::ALL {
            let want = if t == FileType::F32 { DType::F32 } else { DType::F16 };
            assert_eq!(dtype(Role::Convolution, t, 512), want);
            assert_eq!(dtype(Role::Full, t, 512), DType::F32);
        }
    }

    #[test]
    fn only_matrices_take_the_types_of_the_user() {
        let overrides = Overrides::parse(&["a=q4_k".into()], &[]).unwrap();
        let choose = |role: Role, row: usize| role.choose(FileType::BF16, &overrides, "a", row);
        assert_eq!(choose(Role::Matrix, 512), Choice { dtype: DType::Q4_K, replaced: None });
        assert_eq!(choose(Role::Matrix, 96), Choice { dtype: DType::Q5_0, replaced: Some(DType::Q4_K) });
        assert_eq!(choose(Role::Convolution, 512).dtype, DType::F16);
        assert_eq!(choose(Role::Full, 512).dtype, DType::F32);
    }
}
