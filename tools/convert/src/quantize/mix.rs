//! Which type each tensor of a quantized file gets. [`FileType`] is the type to read first, [`choose`] the function.
//!
//! The choices are those of llama-quantize (llama-cpp-python 0.3.36, `llama-quant.cpp`, as its printed lists show them).

use engine::gguf::{Array, Value};
use engine::{DType, Shape};

use super::overrides::Overrides;

/// Defines [`FileType`] from the list of formats.
macro_rules! define {
    ($($(#[$doc:meta])* $format:ident: $block:ident, id $id:literal, files [$($name:ident = $number:literal),*];)*) => {
        /// The type of a file: that of most of its matrices, and rules for the others.
        #[allow(non_camel_case_types, reason = "upstream spelling of formats")]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "the names are those of llama-quantize")]
        pub enum FileType {
            $($($name,)*)*
        }

        impl FileType {
            /// Every mix, in declaration order.
            pub const ALL: [Self; [$($($number,)*)*].len()] = [$($(Self::$name,)*)*];

            /// `general.file_type`. Source: llama.cpp, `enum llama_ftype`.
            pub const fn general_file_type(self) -> u32 {
                match self {
                    $($(Self::$name => $number,)*)*
                }
            }

            /// The type of a matrix without a rule of its own.
            pub const fn dtype(self) -> DType {
                match self {
                    $($(Self::$name => DType::$format,)*)*
                }
            }

            /// Its name on the command line: `q4_k_m`.
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$name => {
                        const NAME: [u8; stringify!($name).len()] = in_lower_case(stringify!($name));
                        text(&NAME)
                    })*)*
                }
            }
        }
    };
}

kernels::quant::formats!(define);

/// The bytes of an ASCII name of `N` characters, in lower case.
const fn in_lower_case<const N: usize>(name: &str) -> [u8; N] {
    let mut bytes = *name.as_bytes().first_chunk().expect("a name of N characters");
    bytes.make_ascii_lowercase();
    bytes
}

const fn text(name: &[u8]) -> &str {
    match std::str::from_utf8(name) {
        Ok(name) => name,
        Err(_) => panic!("ASCII"),
    }
}

impl FileType {
    /// The mix called `name`, in upper or lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        let is_called = |other: &str| other.eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(|mix| is_called(mix.name()) || mix.short_name().is_some_and(is_called))
    }

    /// Its name where the letter of the mix is left out: `q4_k`. Source: llama.cpp, `quantize.cpp`, `QUANT_OPTIONS`.
    pub fn short_name(self) -> Option<&'static str> {
        self.name().strip_suffix("_m")
    }

    /// The mix that `general.file_type` says.
    pub fn from_general_file_type(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|mix| mix.general_file_type() == number)
    }

    /// Whether a weight takes less than 8 bits.
    pub(crate) const fn is_below_8_bits(self) -> bool {
        let block = self.dtype().block();
        block.bytes * 8 < block.len * 8
    }

    /// Whether it has other types than the converter writes: see [`choose`].
    pub const fn is_quantized(self) -> bool {
        self.dtype().block().len > 1
    }
}

impl std::fmt::Display for FileType {
    /// As in the names of files: `Q4_K_M`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name().to_uppercase())
    }
}

/// What the choice depends on beside the tensors.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// `general.architecture`.
    pub architecture: String,
    /// `block_count`; 0 for a projector.
    pub n_layer: usize,
    /// `attention.head_count` of the first layer.
    pub n_head: usize,
    /// `attention.head_count_kv` of the first layer; 0 where that layer has no attention.
    pub n_head_kv: usize,
    /// `expert_count`.
    pub n_expert: usize,
    /// Whether there is an importance matrix.
    pub has_importance: bool,
}

impl Model {
    /// Reads a model's keys, which `key` looks up.
    pub fn read(architecture: &str, has_importance: bool, key: impl Fn(&str) -> Option<Value>) -> Self {
        // Scalars, or lists with one number per layer.
        let first = |name: &str| match key(&format!("{architecture}.{name}"))? {
            Value::Array(Array::U32(list)) => list.first().map(|&n| n as usize),
            Value::Array(Array::I32(list)) => list.first().and_then(|&n| usize::try_from(n).ok()),
            value => value.as_integer().and_then(|n| usize::try_from(n).ok()),
        };
        let n_head = first("attention.head_count").unwrap_or(0);
        Self {
            n_layer: first("block_count").unwrap_or(0),
            n_head,
            n_head_kv: first("attention.head_count_kv").unwrap_or(n_head),
            n_expert: first("expert_count").unwrap_or(0),
            has_importance,
            architecture: architecture.to_owned(),
        }
    }
}

/// A tensor of the source.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its extents, outermost first.
    pub shape: Shape,
    /// How it is stored.
    pub dtype: DType,
}

/// The type of a tensor in the new file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The type.
    pub dtype: DType,
    /// The type that the mix wants, where rows of this length cannot have it.
    pub replaced: Option<DType>,
}

impl Choice {
    /// `wanted`, or what takes its place in rows of `row` elements.
    pub(crate) fn fitting(wanted: DType, row: usize) -> Self {
        let dtype = fitting(wanted, row);
        Self { dtype, replaced: (dtype != wanted).then_some(wanted) }
    }

    /// What there is to say about a tensor that does not get what the mix wants.
    pub fn notice(&self, name: &str, shape: Shape) -> Option<String> {
        let (wanted, dtype) = (self.replaced?, self.dtype);
        Some(format!("{name}: rows of {} cannot be {wanted}: {dtype}", shape.last()))
    }
}

/// Indices of tensors in the order in which llama-quantize works on them and writes them: those outside of layers, then
/// layer by layer, each by name.
pub fn order<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<usize> {
    let mut tensors: Vec<(Option<usize>, &str, usize)> =
        names.into_iter().enumerate().map(|(i, name)| (layer(name), name, i)).collect();
    tensors.sort_unstable();
    tensors.into_iter().map(|(_, _, i)| i).collect()
}

/// The types of `tensors`, which come in the order of [`order`], in a file of type `mix`. A tensor that `overrides` have a
/// type for does not count where the types of others depend on how many came before.
pub fn choose(mix: FileType, model: &Model, overrides: &Overrides, tensors: &[Tensor<'_>]) -> Vec<Choice> {
    let is_value = |t: &&Tensor<'_>| Category::of(t.name) == Category::AttentionValue;
    let mut rules = Rules {
        mix,
        model,
        overrides,
        has_head: tensors.iter().any(|t| t.name == HEAD),
        n_value: tensors.iter().filter(is_value).count(),
        i_value: 0,
        i_down: 0,
    };
    tensors.iter().map(|tensor| rules.choose(tensor)).collect()
}

const HEAD: &str = "output.weight";
const EMBEDDING: &str = "token_embd.weight";

/// Names of matrices that keep their type; see [`keeps_type`].
const KEPT_NAMES: [&str; 2] = ["position_embd.weight", "token_types.weight"];
/// Parts of such names. Source: llama.cpp, `llama-quant.cpp`.
const KEPT_PARTS: [&str; 35] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Whether a tensor is copied whatever the mix.
pub(crate) fn keeps_type(tensor: &Tensor<'_>) -> bool {
    let rank = tensor.shape.dims().iter().skip_while(|&&dim| dim == 1).count();
    let name = tensor.name;
    rank < 2
        || tensor.dtype == DType::I32
        || !name.ends_with("weight")
        || KEPT_NAMES.contains(&name)
        || KEPT_PARTS.iter().any(|part| name.contains(part))
}

/// What a tensor's name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Category {
    Head,
    Embedding,
    AttentionValue,
    AttentionKey,
    AttentionOutput,
    FfnDown,
    Other,
}

impl Category {
    fn of(name: &str) -> Self {
        let parts = [
            ("attn_qkv.weight", Self::AttentionValue),
            ("attn_kv_b.weight", Self::AttentionValue),
            ("attn_v.weight", Self::AttentionValue),
            ("attn_k.weight", Self::AttentionKey),
            ("attn_q.weight", Self::Other),
            ("attn_output.weight", Self::AttentionOutput),
            ("ffn_up", Self::Other),
            ("ffn_gate", Self::Other),
            ("ffn_down", Self::FfnDown),
        ];
        match name {
            HEAD => Self::Head,
            EMBEDDING => Self::Embedding,
            _ => parts.into_iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |(_, category)| category),
        }
    }
}

/// The rules of a mix on their way through the tensors of a model.
struct Rules<'a> {
    mix: FileType,
    model: &'a Model,
    overrides: &'a Overrides,
    has_head: bool,
    /// Matrices of attention values in the model, and those that came before.
    n_value: usize,
    i_value: usize,
    /// The second matrices of feed-forward networks that came before.
    i_down: usize,
}

impl Rules<'_> {
    fn choose(&mut self, tensor: &Tensor<'_>) -> Choice {
        if keeps_type(tensor) {
            return Choice { dtype: tensor.dtype, replaced: None };
        }
        let default = self.mix.dtype();
        let row = tensor.shape.last();
        if let Some(wanted) = self.overrides.dtype_of(tensor.name) {
            return Choice::fitting(wanted, row);
        }
        if !self.mix.is_quantized() {
            return Choice { dtype: default, replaced: None };
        }
        let wanted = match Category::of(tensor.name) {
            Category::Head => self.head(row),
            Category::Embedding if !self.has_head => self.head(row),
            Category::AttentionValue => {
                self.i_value += 1;
                self.value(self.i_value - 1)
            }
            Category::AttentionKey if self.model.n_expert == 8 => DType::Q8_0,
            Category::AttentionOutput => self.attention_output(),
            Category::FfnDown => {
                self.i_down += 1;
                self.down(if self.model.n_expert > 1 { layer(tensor.name).unwrap_or(0) } else { self.i_down - 1 })
            }
            Category::Embedding | Category::AttentionKey | Category::Other => default,
        };
        Choice::fitting(wanted, row)
    }

    /// The head, or the embedding that is the head too.
    fn head(&self, row: usize) -> DType {
        let default = self.mix.dtype();
        if default == DType::Q8_0 || !row.is_multiple_of(default.block().len) { DType::Q8_0 } else { DType::Q6_K }
    }

    /// Matrix `i` of attention values, or of queries, keys and values together.
    fn value(&self, i: usize) -> DType {
        let model = self.model;
        let n_group = model.n_head.checked_div(model.n_head_kv).unwrap_or(0);
        let dtype = match self.mix {
            FileType::Q2_K if n_group >= 4 => DType::Q4_K,
            FileType::Q2_K => DType::Q3_K,
            FileType::Q3_K_M if i < 2 => DType::Q5_K,
            FileType::Q3_K_M => DType::Q4_K,
            FileType::Q3_K_L => DType::Q5_K,
            FileType::Q4_K_S if i < 4 => DType::Q5_K,
            FileType::Q4_K_M | FileType::Q5_K_M if has_more_bits(i, self.n_value) => DType::Q6_K,
            FileType::IQ4_NL if n_group >= 4 => DType::Q5_K,
            mix => mix.dtype(),
        };
        // The models of 70 billion weights have eight heads per value: more bits cost little.
        let is_70b = model.architecture == "llama" && model.n_layer == 80 && model.n_head != model.n_head_kv;
        match dtype {
            _ if model.n_expert == 8 => DType::Q8_0,
            DType::Q3_K | DType::Q4_K if is_70b => DType::Q5_K,
            dtype => dtype,
        }
    }

    fn attention_output(&self) -> DType {
        if self.model.n_expert == 8 {
            return match self.mix {
                FileType::Q2_K
                | FileType::Q3_K_S
                | FileType::Q3_K_M
                | FileType::Q4_K_S
                | FileType::Q4_K_M
                | FileType::IQ4_NL => DType::Q5_K,
                mix => mix.dtype(),
            };
        }
        match self.mix {
            FileType::Q2_K => DType::Q3_K,
            FileType::Q3_K_M => DType::Q4_K,
            FileType::Q3_K_L => DType::Q5_K,
            mix => mix.dtype(),
        }
    }

    /// Matrix `i` from the inner to the outer width of a feed-forward network.
    fn down(&self, i: usize) -> DType {
        let n = self.model.n_layer;
        let (is_first_eighth, has_importance) = (i < n / 8, self.model.has_importance);
        match self.mix {
            FileType::Q2_K => DType::Q3_K,
            FileType::Q3_K_M if i < n / 16 => DType::Q5_K,
            FileType::Q3_K_M => DType::Q4_K,
            FileType::Q3_K_L => DType::Q5_K,
            FileType::Q4_0 if is_first_eighth && has_importance => DType::Q4_1,
            FileType::Q5_0 if is_first_eighth && has_importance => DType::Q5_1,
            FileType::Q4_K_S if is_first_eighth => DType::Q5_K,
            FileType::Q4_K_M | FileType::Q5_K_M if has_more_bits(i, n) => DType::Q6_K,
            FileType::IQ4_NL if is_first_eighth && !has_importance => DType::Q5_K,
            mix => mix.dtype(),
        }
    }
}

/// The first and the last eighth of `n`, and every third between.
fn has_more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// `dtype`, or what takes its place where rows of `row` elements are not whole blocks.
fn fitting(dtype: DType, row: usize) -> DType {
    let fits = |dtype: DType| row.is_multiple_of(dtype.block().len);
    let replacement = dtype.format().map_or(DType::F16, |format| DType::of(format.substitute()));
    match () {
        () if fits(dtype) => dtype,
        () if fits(replacement) => replacement,
        () => DType::F16,
    }
}

/// N of names that begin with `blk.N.`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Lists that llama-quantize printed, written by `make_quant_vectors.py`; see `tests/fixtures/quant/README.md`.
    fn printed() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/quant/types.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// A number, or the first of a list.
    fn number(value: &Value) -> usize {
        value.as_u64().or_else(|| value[0].as_u64()).unwrap_or(0) as usize
    }

    #[test]
    fn types_are_those_that_llama_quantize_prints() {
        let (mut n_compared, mut left) = (0, FileType::ALL.to_vec());
        for (label, entry) in printed()["models"].as_object().unwrap() {
            let keys = &entry["keys"];
            let tensors = entry["tensors"].as_array().unwrap();
            let names = tensors.iter().map(|t| t[0].as_str().unwrap());
            let order = order(names);
            let sorted: Vec<Tensor<'_>> = order
                .iter()
                .map(|&i| {
                    let dims: Vec<usize> = tensors[i][1].as_array().unwrap().iter().rev().map(number).collect();
                    let dtype = if tensors[i][2] == "f32" { DType::F32 } else { DType::F16 };
                    Tensor { name: tensors[i][0].as_str().unwrap(), shape: Shape::new(&dims).unwrap(), dtype }
                })
                .collect();
            for (mix, runs) in entry["mixes"].as_object().unwrap() {
                let (name, flags) = mix.split_once(' ').unwrap_or((mix, ""));
                let Some(mix) = FileType::from_name(name) else { continue };
                let Some(runs) = runs.as_array().filter(|_| matches!(flags, "" | "--imatrix")) else { continue };
                left.retain(|other| *other != mix);
                let model = Model {
                    architecture: entry["architecture"].as_str().unwrap().into(),
                    n_layer: number(&keys["block_count"]),
                    n_head: number(&keys["attention.head_count"]),
                    n_head_kv: number(&keys["attention.head_count_kv"]),
                    n_expert: number(&keys["expert_count"]),
                    has_importance: !flags.is_empty(),
                };
                let mut chosen = vec![""; tensors.len()];
                for (choice, (&i, tensor)) in
                    choose(mix, &model, &Overrides::default(), &sorted).iter().zip(order.iter().zip(&sorted))
                {
                    chosen[i] = if choice.dtype == tensor.dtype { "=" } else { choice.dtype.name() };
                }
                let want = runs.iter().flat_map(|run| vec![run[0].as_str().unwrap(); number(&run[1])]);
                let want: Vec<String> = want.map(str::to_uppercase).collect();
                for ((tensor, want), got) in tensors.iter().zip(&want).zip(&chosen) {
                    assert_eq!(want, got, "{label} {name} {flags}: {}", tensor[0]);
                    n_compared += 1;
                }
            }
        }
        assert!(n_compared > 60_000, "{n_compared} choices");
        left.retain(|mix| mix.is_quantized());
        assert!(left.is_empty(), "no lists for {left:?}: tests/fixtures/quant/README.md says how types.json is made");
    }

    #[test]
    fn layers_are_ordered_by_number_and_towers_by_name() {
        let names = ["blk.10.a", "blk.2.b", "blk.2.a", "token_embd.weight", "a.blk.2.x", "a.blk.10.x", "output.weight"];
        assert_eq!(order(names), [5, 4, 6, 3, 2, 1, 0]);
    }

    #[test]
    fn types_are_found_by_number_and_by_name_in_either_case() {
        for mix in FileType::ALL {
            assert_eq!(FileType::from_name(&mix.name().to_uppercase()), Some(mix));
            assert_eq!(FileType::from_general_file_type(mix.general_file_type()), Some(mix));
        }
        // The aliases of llama-quantize.
        for (name, mix) in [("q3_k", FileType::Q3_K_M), ("Q4_K", FileType::Q4_K_M), ("q5_k", FileType::Q5_K_M)] {
            assert_eq!(FileType::from_name(name), Some(mix));
        }
        assert_eq!(FileType::from_name("q8_k"), None);
    }
}
