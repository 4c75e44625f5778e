//! Checkpoints that are made instead of read: published shapes with random weights. [`Synthetic`] is the type to read first.
//!
//! Speed and memory of a model depend on its shape, not on what it learned: these stand in for published checkpoints where
//! there is none, for measuring. Nothing is stored: any range of any tensor is computed when it is asked for.

mod argument;
mod lfm2;
mod llama;
pub(crate) mod noise;
mod qwen3;
mod qwen3_next;
mod shapes;
mod ssm;
mod tensors;
mod vocabulary;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use engine::DType;

use self::noise::Noise;
use crate::assembly::Xxh64;
use crate::weights::{Values, Weight, Weights};

pub use self::argument::{SyntheticModel, checkpoint};
pub use self::shapes::Shape;

/// Counts up when the same shape, type and seed give other files, so that no older file stands in for them.
pub const VERSION: u32 = 1;
/// The seed where none is given.
pub(crate) const DEFAULT_SEED: u64 = 1;

/// A checkpoint of a published shape with random weights.
#[derive(Clone, Debug)]
pub struct Synthetic {
    name: PathBuf,
    shape: Shape,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
}

/// A tensor and its elements.
#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dims: Vec<usize>,
    noise: Noise,
}

impl Synthetic {
    /// The checkpoint of this shape and seed.
    pub fn new(shape: &Shape, seed: u64) -> Self {
        let mut name = format!("synth-{}", shape.name);
        if seed != DEFAULT_SEED {
            name.push_str(&format!("-seed{seed}"));
        }
        let tensor = |t: tensors::Tensor| {
            let noise = Noise::new(seed, t.noise_of.as_ref().unwrap_or(&t.name), t.scale.0, t.scale.1);
            Tensor { name: t.name, dims: t.dims, noise }
        };
        let tensors: Vec<Tensor> = shape.tensors().into_iter().map(tensor).collect();
        let by_name = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Self { name: name.into(), shape: *shape, tensors, by_name }
    }

    /// What stands for its folder in messages, and what files made from it are called.
    pub fn path(&self) -> &Path {
        &self.name
    }

    /// Contents of the file `name`, if it has one.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        let value = match name {
            "config.json" => self.shape.config(),
            "tokenizer.json" => vocabulary::tokenizer(&self.shape),
            "tokenizer_config.json" => vocabulary::tokenizer_config(&self.shape),
            _ => return None,
        };
        Some(value.to_string().into_bytes())
    }
}

impl Weights for Arc<Synthetic> {
    fn path(&self) -> &Path {
        &self.name
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.iter().map(|tensor| &*tensor.name))
    }

    fn weight(&self, name: &str) -> Result<Weight<'_>> {
        let missing = || format!("{}: tensor {name} is missing", self.name.display());
        let tensor = &self.tensors[*self.by_name.get(name).with_context(missing)?];
        Ok(Weight { dtype: DType::BF16, dims: &tensor.dims, values: Values::Random(tensor.noise) })
    }

    fn release(&self, _: &str, _: Range<usize>) {}

    fn stamp(&self, hash: &mut Xxh64) {
        hash.add_text(format!("{}, version {VERSION}", self.name.display()).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use engine::DType;
    use engine::gguf::Gguf;
    use models::LoadOptions;
    use models::generate::{Generator, Request};
    use models::sample::Sampling;

    use super::lfm2::{Conformer, Experts, Lfm2};
    use super::llama::Llama;
    use super::qwen3::{AudioTower, Qwen3};
    use super::qwen3_next::{FeedForward, Qwen3Next};
    use super::shapes::Kind;
    use super::ssm::{Generation, Granite, Jamba, Mamba};
    use super::*;
    use crate::{Conversion, FileType, Options};

    const TEXT: Qwen3 = Qwen3 { n_embd: 64, n_layer: 2, n_head: 2, n_head_kv: 1, head_dim: 128, n_ff: 96, n_ctx: 4096 };
    const HYBRID: Lfm2 = Lfm2 {
        n_embd: 256,
        n_head: 16,
        n_layer: 3,
        attention: &[1],
        n_ff: 256,
        adjusts_ff: false,
        experts: Some(Experts { n_expert: 4, n_used: 2, n_ff: 64, n_dense: 1 }),
    };

    const LLAMA: Llama = Llama { sizes: Qwen3 { n_embd: 256, n_ff: 256, ..TEXT }, n_vocab: 2048 };
    const DELTA: Qwen3Next = Qwen3Next {
        n_embd: 256,
        n_layer: 4,
        n_head: 2,
        n_head_kv: 1,
        n_value: 32,
        n_vocab: 151_936,
        ffn: FeedForward::Dense(256),
    };

    const MAMBA: Mamba =
        Mamba { n_embd: 256, n_layer: 2, d_state: 16, generation: Generation::Channels(16), n_vocab: 2048 };
    const JAMBA: Jamba =
        Jamba { n_embd: 256, n_layer: 8, n_head: 4, n_head_kv: 2, n_ff: 256, n_expert: 4, dt_rank: 16 };
    const GRANITE: Granite = Granite {
        n_embd: 256,
        n_layer: 3,
        attention: &[1],
        n_head: 4,
        n_head_kv: 2,
        n_ssm_head: 8,
        ssm_head_dim: 64,
        d_state: 32,
        n_expert: 8,
        n_used: 2,
        n_ff: 256,
        n_ff_shared: 256,
    };

    fn open(shape: &Shape, seed: u64, file_type: FileType) -> Conversion {
        Conversion::open(Synthetic::new(shape, seed), |_| Options::new(file_type)).unwrap()
    }

    /// Bytes of the files that so many threads write.
    fn written(conversion: &Conversion, n_threads: usize) -> Vec<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = conversion.file_names().iter().map(|name| dir.path().join(name)).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let flag = std::sync::atomic::AtomicBool::new(false);
        pool.install(|| conversion.write(&paths, &flag)).unwrap();
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    #[test]
    fn every_shape_becomes_the_published_files() {
        for shape in &Shape::ALL {
            let conversion = open(shape, 1, FileType::Q4_K_M);
            let (text, projector) = (conversion.text[0].tensors.len(), conversion.projector.as_ref());
            let projector = projector.map(|(plan, file_type)| (plan.tensors.len(), *file_type));
            assert_eq!(projector.is_some(), shape.has_audio(), "{}", shape.name);
            // What llama.cpp's converter makes of the published checkpoints.
            match shape.name {
                "qwen3-asr-0.6b" => assert_eq!((text, projector), (311, Some((302, FileType::Q8_0)))),
                "lfm2-audio-1.5b" => assert_eq!((text, projector), (148, Some((650, FileType::Q8_0)))),
                "lfm2-350m" | "lfm2-700m" | "lfm2-1.2b" => assert_eq!(text, 148, "{}", shape.name),
                "qwen3-0.6b" | "qwen3-1.7b" => assert_eq!(text, 310, "{}", shape.name),
                "qwen3-4b" => assert_eq!(text, 398),
                _ => {}
            }
        }
    }

    /// Sizes that llama-bench published of the files (llama.cpp, pull request 16490), in MiB.
    #[test]
    fn files_have_the_published_sizes() {
        let mini = Shape { name: "jamba-mini", kind: Kind::Jamba(shapes::JAMBA_MINI) };
        let of = |name: &str| *Shape::ALL.iter().find(|shape| shape.name == name).unwrap();
        for (shape, file_type, mib, unit) in [
            (of("mamba-130m"), FileType::F16, 256.96, 0.005),
            (of("granite-4.0-h-tiny"), FileType::Q8_0, 6.88 * 1024.0, 5.12),
            (mini, FileType::Q8_0, 51.05 * 1024.0, 5.12),
            (of("lfm2-2.6b"), FileType::Q4_K_M, 1.45 * 1024.0, 5.12),
        ] {
            let conversion = open(&shape, 1, file_type);
            // The published file of Mamba is of a time when llama.cpp's converter kept these matrices in F32.
            let is_full = |name: &str| name.ends_with(".ssm_x.weight") || name.ends_with(".ssm_dt.weight");
            let halved = conversion.text[0].tensors.iter().filter(|t| t.dtype == DType::F16 && is_full(&t.name));
            let bytes = conversion.bytes() + 2 * halved.map(|t| t.elements()).sum::<u64>();
            let found = bytes as f64 / f64::from(1 << 20);
            assert!((found - mib).abs() <= unit, "{} {file_type}: {found} MiB, want {mib}", shape.name);
        }
    }

    #[test]
    fn files_are_the_same_for_any_number_of_threads_and_differ_by_seed() {
        let audio = AudioTower { n_embd: 64, n_layer: 1, n_head: 2, n_ff: 96 };
        let shape = Shape { name: "small", kind: Kind::Qwen3Asr(audio, TEXT) };
        for file_type in [FileType::BF16, FileType::Q4_0] {
            let conversion = open(&shape, 5, file_type);
            assert_eq!(conversion.file_names()[0], format!("synth-small-seed5-{file_type}.gguf"));
            let files = written(&conversion, 1);
            assert_eq!(files.len(), 2);
            assert!(written(&conversion, 3) == files);
            let other = written(&open(&shape, 6, file_type), 2);
            assert!(other.iter().zip(&files).all(|(a, b)| a != b));
        }
    }

    #[test]
    fn files_hold_the_numbers_of_the_generator() {
        let shape = Shape { name: "small", kind: Kind::Qwen3(TEXT) };
        let [file] = &written(&open(&shape, 2, FileType::F32), 2)[..] else { panic!("want one file") };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, file).unwrap();
        let file = Gguf::open(&path).unwrap();
        let tensor = file.tensor("blk.1.ffn_down.weight").unwrap();
        assert_eq!(tensor.dtype, DType::F32);
        let mut want = vec![0.0; 64 * 96];
        Noise::new(2, "model.layers.1.mlp.down_proj.weight", 0.0, 0.02).fill(0, &mut want);
        let want: Vec<u8> = want.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(tensor.bytes == want);
    }

    #[test]
    fn small_models_of_every_architecture_load_and_their_logits_are_sane() {
        let audio = AudioTower { n_embd: 64, n_layer: 1, n_head: 2, n_ff: 96 };
        let conformer = Conformer { n_embd: 64, n_layer: 1, n_head: 2, n_channels: 32, n_taps: 9, n_audio_tokens: 64 };
        for (kind, file_type) in [
            (Kind::Qwen3(TEXT), FileType::Q8_0),
            (Kind::Qwen3Asr(audio, TEXT), FileType::F16),
            (Kind::Lfm2(HYBRID), FileType::Q4_K_M),
            (Kind::Lfm2Audio(conformer, Lfm2 { experts: None, ..HYBRID }), FileType::Q6_K),
            (Kind::Llama(LLAMA), FileType::Q4_K_M),
            (Kind::Qwen3Next(DELTA), FileType::Q4_K_M),
            (Kind::Mamba(MAMBA), FileType::Q8_0),
            (Kind::Mamba(Mamba { generation: Generation::Heads(64), d_state: 32, ..MAMBA }), FileType::Q4_K_M),
            (Kind::Jamba(JAMBA), FileType::Q8_0),
            (Kind::Granite(GRANITE), FileType::Q6_K),
            (
                Kind::Qwen3Next(Qwen3Next { ffn: FeedForward::Experts { n_expert: 6, n_used: 2, n_ff: 64 }, ..DELTA }),
                FileType::Q8_0,
            ),
        ] {
            let shape = Shape { name: "small", kind };
            let dir = tempfile::tempdir().unwrap();
            let files = written(&open(&shape, 1, file_type), 2);
            let gguf = |(i, bytes): (usize, &Vec<u8>)| {
                let path = dir.path().join(format!("{i}.gguf"));
                std::fs::write(&path, bytes).unwrap();
                Gguf::open(&path).unwrap()
            };
            let loaded = models::load(files.iter().enumerate().map(gguf).collect(), LoadOptions::default()).unwrap();
            let backend = backends::open("cpu", &backends::Options::default()).unwrap();
            let mut generator = Generator::open(&loaded, &[backend], DType::F16).unwrap();
            let prompt = generator.writer().prompt("a random walk");
            let request = Request {
                prompt: &prompt,
                max_tokens: 4,
                sampling: Sampling::default(),
                stop: &[],
                ignore_stop: true,
                prompt_logits: true,
            };
            let generated = generator.generate(&request, &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
            assert_eq!(generated.ids.len(), 4);
            let logits = &generated.prompt_logits;
            assert_eq!(logits.len(), prompt.len() * shape.n_vocab());
            assert!(logits.iter().all(|x| x.is_finite()));
            // Rows of 0.02 times a normed vector: about 0.02 times the root of its length.
            let square = logits.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / logits.len() as f64;
            let divided_by = if matches!(kind, Kind::Granite(_)) { 6.0 } else { 1.0 };
            assert!((0.1..0.5).contains(&(divided_by * square.sqrt())), "{kind:?}: {}", square.sqrt());
        }
    }
}
