//! Published models without their weights: configurations, and the tensors that checkpoints have.
//!
//! [`Shape`] is the type to read first. Scales are those of freshly initialised models, so that activations stay finite and
//! logits are spread as in trained ones.

use serde_json::{Value, json};

use super::llama::Llama;
use super::qwen3_next::{FeedForward, Qwen3Next};
use super::ssm::{Generation, Granite, Jamba, Mamba};

/// Mean and standard deviation of matrices.
pub(super) const MATRIX: Scale = Scale(0.0, 0.02);
/// Of the factors of norms.
pub(super) const NORM: Scale = Scale(1.0, 0.01);
/// Of biases and whatever else is added.
const BIAS: Scale = Scale(0.0, 0.01);
/// Of kernels with few inputs.
const KERNEL: Scale = Scale(0.0, 0.2);
/// Of kernels that only mix channels.
const POINTWISE: Scale = Scale(0.0, 0.06);
/// Of the short convolutions of LFM2.
pub(super) const TAPS: Scale = Scale(0.0, 0.3);

/// Rows of the embedding of all Qwen3 models.
const QWEN_VOCAB: usize = 151_936;
/// Rows of the embedding of the first generation of LFM2.
const LFM2_VOCAB: usize = 65_536;
/// Taps of a short convolution.
const L_CACHE: usize = 3;
/// Width of LFM2's feed-forward layers is a multiple of this.
const FF_MULTIPLE: usize = 256;
/// Mel bands of both speech models.
const N_MELS: usize = 128;
/// Channels of Qwen3-ASR's stem.
const STEM_CHANNELS: usize = 480;

/// Mean and standard deviation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale(pub(super) f32, pub(super) f32);

/// A published model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// As the command line calls it.
    pub name: &'static str,
    /// Its architecture with its numbers.
    pub(crate) kind: Kind,
}

/// Architectures.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A Qwen3 text model.
    Qwen3(Qwen3),
    /// Qwen3-ASR, original layout.
    Qwen3Asr(AudioTower, Qwen3),
    /// An LFM2 text model, dense or with experts.
    Lfm2(Lfm2),
    /// LFM2-Audio, without speech output but for what llama.cpp's files carry.
    Lfm2Audio(Conformer, Lfm2),
    /// Llama.
    Llama(Llama),
    /// A Qwen3-Next or a Qwen3.5 text model.
    Qwen3Next(Qwen3Next),
    /// State-space blocks alone.
    Mamba(Mamba),
    /// Jamba.
    Jamba(Jamba),
    /// Granite 4 hybrid with experts.
    Granite(Granite),
}

/// The numbers of a Qwen3 decoder that differ between sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Qwen3 {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Heads of queries.
    pub(super) n_head: usize,
    /// Heads of keys and values.
    pub(super) n_head_kv: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// Width of the feed-forward layers.
    pub(super) n_ff: usize,
    /// Longest context.
    pub(super) n_ctx: usize,
}

/// The numbers of Qwen3-ASR's encoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AudioTower {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Heads.
    pub(super) n_head: usize,
    /// Width of the feed-forward layers.
    pub(super) n_ff: usize,
}

/// The numbers of an LFM2 decoder that differ between sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lfm2 {
    /// Width.
    pub(super) n_embd: usize,
    /// Heads of queries; there are 8 of keys and values.
    pub(super) n_head: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Which layers have attention.
    pub(super) attention: &'static [usize],
    /// Width of the feed-forward layers, as the configuration names it.
    pub(super) n_ff: usize,
    /// Whether two thirds of that are meant, rounded up to a multiple of 256.
    pub(super) adjusts_ff: bool,
    /// Experts, where there are any.
    pub(super) experts: Option<Experts>,
}

/// Layers with experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Experts {
    /// Experts of a layer.
    pub(super) n_expert: usize,
    /// Experts of a token.
    pub(super) n_used: usize,
    /// Width of an expert.
    pub(super) n_ff: usize,
    /// Layers without experts, all in front.
    pub(super) n_dense: usize,
}

/// The numbers of LFM2-Audio's encoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conformer {
    /// Width.
    pub(super) n_embd: usize,
    /// Layers.
    pub(super) n_layer: usize,
    /// Heads.
    pub(super) n_head: usize,
    /// Channels of the stem.
    pub(super) n_channels: usize,
    /// Taps of the convolution along time.
    pub(super) n_taps: usize,
    /// Audio tokens of all codebooks.
    pub(super) n_audio_tokens: usize,
}

/// Qwen3-0.6B, and inside Qwen3-ASR 0.6B.
const QWEN3_06B: Qwen3 =
    Qwen3 { n_embd: 1024, n_layer: 28, n_head: 16, n_head_kv: 8, head_dim: 128, n_ff: 3072, n_ctx: 40_960 };
/// Layers with attention of the models with 16 layers.
const ATTENTION_16: &[usize] = &[2, 5, 8, 10, 12, 14];
/// LFM2-1.2B, and inside LFM2-Audio.
const LFM2_12B: Lfm2 = Lfm2 {
    n_embd: 2048,
    n_head: 32,
    n_layer: 16,
    attention: ATTENTION_16,
    n_ff: 12_288,
    adjusts_ff: true,
    experts: None,
};

/// Layers of Qwen3-Next 80B.
const QWEN3_NEXT_LAYERS: usize = 48;
/// Jamba Mini 1.7.
pub(super) const JAMBA_MINI: Jamba =
    Jamba { n_embd: 4096, n_layer: 32, n_head: 32, n_head_kv: 8, n_ff: 14_336, n_expert: 16, dt_rank: 256 };

impl Shape {
    /// All models, by architecture and size.
    ///
    /// Source: `config.json` of the published checkpoints: Qwen/Qwen3-ASR-*, LiquidAI/LFM2-Audio-1.5B, LiquidAI/LFM2-*
    /// (LFM2-350M, -700M and -1.2B with `block_ff_dim` before its adjustment, LFM2-2.6B as in LFM2-2.6B-Transcript, LFM2-8B-A1B),
    /// Qwen/Qwen3-*, meta-llama/Llama-3.2-1B, Qwen/Qwen3.5-4B,
    /// Qwen/Qwen3-Next-80B-A3B-Instruct, state-spaces/mamba-130m-hf and mamba2-370m, ai21labs/AI21-Jamba-Mini-1.7,
    /// ibm-granite/granite-4.0-h-tiny. The numbers of parameters in the tests are those of the model cards and of the checkpoints' headers.
    pub const ALL: [Self; 18] = [
        Self {
            name: "qwen3-asr-0.6b",
            kind: Kind::Qwen3Asr(
                AudioTower { n_embd: 896, n_layer: 18, n_head: 14, n_ff: 3584 },
                Qwen3 { n_ctx: 65_536, ..QWEN3_06B },
            ),
        },
        Self {
            name: "qwen3-asr-1.7b",
            kind: Kind::Qwen3Asr(
                AudioTower { n_embd: 1024, n_layer: 24, n_head: 16, n_ff: 4096 },
                Qwen3 { n_embd: 2048, n_ff: 6144, n_ctx: 65_536, ..QWEN3_06B },
            ),
        },
        Self {
            name: "lfm2-audio-1.5b",
            kind: Kind::Lfm2Audio(
                Conformer { n_embd: 512, n_layer: 17, n_head: 8, n_channels: 256, n_taps: 9, n_audio_tokens: 16_392 },
                LFM2_12B,
            ),
        },
        Self { name: "lfm2-350m", kind: Kind::Lfm2(Lfm2 { n_embd: 1024, n_head: 16, n_ff: 6656, ..LFM2_12B }) },
        Self { name: "lfm2-700m", kind: Kind::Lfm2(Lfm2 { n_embd: 1536, n_head: 24, n_ff: 10_240, ..LFM2_12B }) },
        Self { name: "lfm2-1.2b", kind: Kind::Lfm2(LFM2_12B) },
        Self {
            name: "lfm2-2.6b",
            kind: Kind::Lfm2(Lfm2 {
                n_layer: 30,
                attention: &[2, 5, 9, 13, 17, 21, 24, 27],
                n_ff: 10_752,
                adjusts_ff: false,
                ..LFM2_12B
            }),
        },
        Self {
            name: "lfm2-8b-a1b",
            kind: Kind::Lfm2(Lfm2 {
                n_layer: 24,
                attention: &[2, 6, 10, 14, 18, 21],
                n_ff: 7168,
                adjusts_ff: false,
                experts: Some(Experts { n_expert: 32, n_used: 4, n_ff: 1792, n_dense: 2 }),
                ..LFM2_12B
            }),
        },
        Self { name: "qwen3-0.6b", kind: Kind::Qwen3(QWEN3_06B) },
        Self { name: "qwen3-1.7b", kind: Kind::Qwen3(Qwen3 { n_embd: 2048, n_ff: 6144, ..QWEN3_06B }) },
        Self {
            name: "qwen3-4b",
            kind: Kind::Qwen3(Qwen3 { n_embd: 2560, n_layer: 36, n_head: 32, n_ff: 9728, ..QWEN3_06B }),
        },
        Self {
            name: "llama-3.2-1b",
            kind: Kind::Llama(Llama {
                sizes: Qwen3 {
                    n_embd: 2048,
                    n_layer: 16,
                    n_head: 32,
                    n_head_kv: 8,
                    head_dim: 64,
                    n_ff: 8192,
                    n_ctx: 131_072,
                },
                n_vocab: 128_256,
            }),
        },
        Self {
            name: "qwen3.5-4b",
            kind: Kind::Qwen3Next(Qwen3Next {
                n_embd: 2560,
                n_layer: 32,
                n_head: 16,
                n_head_kv: 4,
                n_value: 32,
                n_vocab: 248_320,
                ffn: FeedForward::Dense(9216),
            }),
        },
        // Of 48 layers with 512 experts.
        Self {
            name: "qwen3-next-80b-8-layers-128-experts",
            kind: Kind::Qwen3Next(Qwen3Next {
                n_embd: 2048,
                n_layer: 8,
                n_head: 16,
                n_head_kv: 2,
                n_value: 32,
                n_vocab: QWEN_VOCAB,
                ffn: FeedForward::Experts { n_expert: 128, n_used: 10, n_ff: 512 },
            }),
        },
        Self {
            name: "mamba-130m",
            kind: Kind::Mamba(Mamba {
                n_embd: 768,
                n_layer: 24,
                d_state: 16,
                generation: Generation::Channels(48),
                n_vocab: 50_280,
            }),
        },
        Self {
            name: "mamba2-370m",
            kind: Kind::Mamba(Mamba {
                n_embd: 1024,
                n_layer: 48,
                d_state: 128,
                generation: Generation::Heads(64),
                n_vocab: 50_288,
            }),
        },
        // Of 32 layers with 16 experts.
        Self {
            name: "jamba-mini-8-layers-4-experts",
            kind: Kind::Jamba(Jamba { n_layer: 8, n_expert: 4, ..JAMBA_MINI }),
        },
        Self {
            name: "granite-4.0-h-tiny",
            kind: Kind::Granite(Granite {
                n_embd: 1536,
                n_layer: 40,
                attention: &[5, 15, 25, 35],
                n_head: 12,
                n_head_kv: 4,
                n_ssm_head: 48,
                ssm_head_dim: 64,
                d_state: 128,
                n_expert: 64,
                n_used: 6,
                n_ff: 512,
                n_ff_shared: 1024,
            }),
        },
    ];

    /// `config.json` of the checkpoint.
    pub(crate) fn config(&self) -> Value {
        match &self.kind {
            Kind::Qwen3(text) => {
                let ids = json!({"bos_token_id": 151_643, "eos_token_id": 151_645});
                merged(json!({"architectures": ["Qwen3ForCausalLM"]}), [text.config(), ids])
            }
            Kind::Qwen3Asr(audio, text) => {
                let rope = json!({"mrope_section": [24, 20, 20], "mrope_interleaved": true, "rope_type": "default"});
                json!({
                    "architectures": ["Qwen3ASRForConditionalGeneration"],
                    "model_type": "qwen3_asr",
                    "thinker_config": {
                        "model_type": "qwen3_asr",
                        "audio_token_id": 151_676,
                        "audio_start_token_id": 151_669,
                        "audio_end_token_id": 151_670,
                        "audio_config": audio.config(text.n_embd),
                        "text_config": merged(text.config(), [json!({"rope_scaling": rope})]),
                    },
                })
            }
            Kind::Lfm2(text) => text.config(),
            Kind::Lfm2Audio(audio, text) => json!({
                "architectures": ["Lfm2AudioForConditionalGeneration"],
                "preprocessor": {
                    "sample_rate": 16_000, "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01,
                    "window": "hann", "features": N_MELS, "n_fft": 512, "log": true, "frame_splicing": 1,
                    "dither": 1e-5, "pad_to": 0, "pad_value": 0.0,
                },
                "encoder": audio.config(),
                "lfm": text.config(),
            }),
            Kind::Llama(text) => text.config(),
            Kind::Qwen3Next(text) => text.config(),
            Kind::Mamba(text) => text.config(),
            Kind::Jamba(text) => text.config(),
            Kind::Granite(text) => text.config(),
        }
    }

    /// The tensors of the checkpoint, in its order.
    pub(crate) fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = Tensors(Vec::new());
        match &self.kind {
            Kind::Qwen3(text) => text.tensors("model.", &mut tensors),
            Kind::Qwen3Asr(audio, text) => {
                audio.tensors(text.n_embd, &mut tensors);
                text.tensors("thinker.model.", &mut tensors);
                tensors.add("thinker.lm_head.weight", &[QWEN_VOCAB, text.n_embd], MATRIX);
                // The published files store the tied head a second time.
                tensors.last().noise_of = Some("thinker.model.embed_tokens.weight".into());
            }
            Kind::Lfm2(text) => text.tensors("model.", &mut tensors),
            Kind::Lfm2Audio(audio, text) => {
                text.tensors("lfm.", &mut tensors);
                audio.tensors(text.n_embd, &mut tensors);
            }
            Kind::Llama(text) => text.tensors(&mut tensors),
            Kind::Qwen3Next(text) => text.tensors(&mut tensors),
            Kind::Mamba(text) => text.tensors(&mut tensors),
            Kind::Jamba(text) => text.tensors(&mut tensors),
            Kind::Granite(text) => text.tensors(&mut tensors),
        }
        tensors.0
    }

    /// The published number of layers of the same kinds in the same order, but a few channels wide: what does not depend on
    /// width, as the work of finding and feeding a graph, is what it is for the published model. Text models alone.
    pub fn narrow(&self) -> Option<Self> {
        const N_EMBD: usize = 64;
        const N_FF: usize = 32;
        const N_VOCAB: usize = 512;
        let kind = match self.kind {
            Kind::Mamba(text) => {
                let generation = match text.generation {
                    Generation::Channels(_) => Generation::Channels(4),
                    Generation::Heads(_) => Generation::Heads(16),
                };
                Kind::Mamba(Mamba { n_embd: N_EMBD, d_state: 16, generation, n_vocab: N_VOCAB, ..text })
            }
            Kind::Jamba(_) => {
                Kind::Jamba(Jamba { n_embd: N_EMBD, n_head: 4, n_head_kv: 2, n_ff: N_FF, dt_rank: 4, ..JAMBA_MINI })
            }
            Kind::Granite(text) => Kind::Granite(Granite {
                n_embd: N_EMBD,
                n_head: 4,
                n_head_kv: 2,
                n_ssm_head: 8,
                ssm_head_dim: 16,
                d_state: 16,
                n_ff: N_FF,
                n_ff_shared: N_FF,
                ..text
            }),
            Kind::Qwen3Next(text) => {
                let (n_layer, ffn) = match text.ffn {
                    FeedForward::Dense(_) => (text.n_layer, FeedForward::Dense(N_FF)),
                    FeedForward::Experts { n_expert, n_used, .. } => {
                        (QWEN3_NEXT_LAYERS, FeedForward::Experts { n_expert, n_used, n_ff: N_FF })
                    }
                };
                Kind::Qwen3Next(Qwen3Next { n_embd: N_EMBD, n_layer, ffn, ..text })
            }
            Kind::Qwen3(text) => Kind::Qwen3(Qwen3 { n_embd: N_EMBD, head_dim: 16, n_ff: N_FF, ..text }),
            Kind::Lfm2(text) => Kind::Lfm2(Lfm2 { n_embd: N_EMBD, n_head: 8, n_ff: N_FF, adjusts_ff: false, ..text }),
            Kind::Llama(text) => {
                let narrow = Qwen3 { n_embd: N_EMBD, n_head: 4, n_head_kv: 2, head_dim: 16, n_ff: N_FF, ..text.sizes };
                Kind::Llama(Llama { sizes: narrow, ..text })
            }
            Kind::Qwen3Asr(..) | Kind::Lfm2Audio(..) => return None,
        };
        Some(Self { kind, ..*self })
    }

    /// Whether it hears.
    pub fn has_audio(&self) -> bool {
        matches!(self.kind, Kind::Qwen3Asr(..) | Kind::Lfm2Audio(..))
    }

    /// Rows of the embedding.
    pub fn n_vocab(&self) -> usize {
        match self.kind {
            Kind::Qwen3(_) | Kind::Qwen3Asr(..) => QWEN_VOCAB,
            Kind::Lfm2(_) | Kind::Lfm2Audio(..) => LFM2_VOCAB,
            Kind::Llama(text) => text.n_vocab,
            Kind::Qwen3Next(text) => text.n_vocab,
            Kind::Mamba(text) => text.n_vocab,
            Kind::Jamba(text) => text.n_vocab(),
            Kind::Granite(text) => text.n_vocab(),
        }
    }
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    /// Its name.
    pub(super) name: String,
    /// Its extents, outermost first.
    pub(super) dims: Vec<usize>,
    /// What its elements are like.
    pub(super) scale: Scale,
    /// The tensor whose elements it has, if not its own.
    pub(super) noise_of: Option<String>,
}

/// Tensors as they are collected.
pub(super) struct Tensors(Vec<Tensor>);

impl Tensors {
    /// A tensor with noise of its own.
    pub(super) fn add(&mut self, name: impl Into<String>, dims: &[usize], scale: Scale) {
        self.0.push(Tensor { name: name.into(), dims: dims.to_vec(), scale, noise_of: None });
    }

    /// `name.weight`, and `name.bias` of the first extent.
    fn pair(&mut self, name: &str, dims: &[usize], scale: Scale) {
        self.add(format!("{name}.weight"), dims, scale);
        self.add(format!("{name}.bias"), &dims[..1], BIAS);
    }

    fn last(&mut self) -> &mut Tensor {
        self.0.last_mut().expect("a tensor was added")
    }
}

impl Qwen3 {
    fn config(&self) -> Value {
        json!({
            "model_type": "qwen3",
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_head_kv,
            "head_dim": self.head_dim,
            "intermediate_size": self.n_ff,
            "vocab_size": QWEN_VOCAB,
            "max_position_embeddings": self.n_ctx,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000,
            "hidden_act": "silu",
            "attention_bias": false,
            "tie_word_embeddings": true,
        })
    }

    fn tensors(&self, prefix: &str, tensors: &mut Tensors) {
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let (n_q, n_kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        tensors.add(format!("{prefix}embed_tokens.weight"), &[QWEN_VOCAB, n_embd], MATRIX);
        for i in 0..self.n_layer {
            let mut add = |name: &str, dims: &[usize], scale| {
                tensors.add(format!("{prefix}layers.{i}.{name}.weight"), dims, scale);
            };
            add("input_layernorm", &[n_embd], NORM);
            add("self_attn.q_proj", &[n_q, n_embd], MATRIX);
            add("self_attn.k_proj", &[n_kv, n_embd], MATRIX);
            add("self_attn.v_proj", &[n_kv, n_embd], MATRIX);
            add("self_attn.o_proj", &[n_embd, n_q], MATRIX);
            add("self_attn.q_norm", &[self.head_dim], NORM);
            add("self_attn.k_norm", &[self.head_dim], NORM);
            add("post_attention_layernorm", &[n_embd], NORM);
            add("mlp.gate_proj", &[n_ff, n_embd], MATRIX);
            add("mlp.up_proj", &[n_ff, n_embd], MATRIX);
            add("mlp.down_proj", &[n_embd, n_ff], MATRIX);
        }
        tensors.add(format!("{prefix}norm.weight"), &[n_embd], NORM);
    }
}

impl AudioTower {
    fn config(&self, n_out: usize) -> Value {
        json!({
            "model_type": "qwen3_asr_audio_encoder",
            "num_mel_bins": N_MELS,
            "d_model": self.n_embd,
            "encoder_layers": self.n_layer,
            "num_hidden_layers": self.n_layer,
            "encoder_attention_heads": self.n_head,
            "encoder_ffn_dim": self.n_ff,
            "activation_function": "gelu",
            "max_source_positions": 1500,
            "n_window": 50,
            "n_window_infer": 800,
            "conv_chunksize": 500,
            "downsample_hidden_size": STEM_CHANNELS,
            "output_dim": n_out,
            "scale_embedding": false,
        })
    }

    fn tensors(&self, n_out: usize, tensors: &mut Tensors) {
        const PREFIX: &str = "thinker.audio_tower.";
        let n_embd = self.n_embd;
        for (i, n_in, scale) in [(1, 1, KERNEL), (2, STEM_CHANNELS, MATRIX), (3, STEM_CHANNELS, MATRIX)] {
            tensors.pair(&format!("{PREFIX}conv2d{i}"), &[STEM_CHANNELS, n_in, 3, 3], scale);
        }
        // Three halvings of the mel axis.
        tensors.add(format!("{PREFIX}conv_out.weight"), &[n_embd, STEM_CHANNELS * N_MELS / 8], MATRIX);
        for i in 0..self.n_layer {
            let mut pair = |name: &str, dims: &[usize], scale| {
                tensors.pair(&format!("{PREFIX}layers.{i}.{name}"), dims, scale);
            };
            for part in ["q", "k", "v", "out"] {
                pair(&format!("self_attn.{part}_proj"), &[n_embd, n_embd], MATRIX);
            }
            pair("self_attn_layer_norm", &[n_embd], NORM);
            pair("final_layer_norm", &[n_embd], NORM);
            pair("fc1", &[self.n_ff, n_embd], MATRIX);
            pair("fc2", &[n_embd, self.n_ff], MATRIX);
        }
        tensors.pair(&format!("{PREFIX}ln_post"), &[n_embd], NORM);
        tensors.pair(&format!("{PREFIX}proj1"), &[n_embd, n_embd], MATRIX);
        tensors.pair(&format!("{PREFIX}proj2"), &[n_out, n_embd], MATRIX);
    }
}

impl Lfm2 {
    /// Heads of keys and values.
    const N_HEAD_KV: usize = 8;

    fn config(&self) -> Value {
        let kind = |i| if self.attention.contains(&i) { "full_attention" } else { "conv" };
        let shared = json!({
            "hidden_size": self.n_embd,
            "num_hidden_layers": self.n_layer,
            "layer_types": (0..self.n_layer).map(kind).collect::<Vec<_>>(),
            "num_attention_heads": self.n_head,
            "num_key_value_heads": Self::N_HEAD_KV,
            "intermediate_size": self.n_ff,
            "norm_eps": 1e-5,
            "conv_L_cache": L_CACHE,
            "conv_bias": false,
            "vocab_size": LFM2_VOCAB,
            "rope_theta": 1_000_000.0,
            "max_position_embeddings": 128_000,
            "tie_embedding": true,
            "bos_token_id": 1,
            "eos_token_id": 7,
            "pad_token_id": 0,
        });
        let own = match &self.experts {
            None => json!({
                "architectures": ["Lfm2ForCausalLM"],
                "model_type": "lfm2",
                "block_ff_dim": self.n_ff,
                "block_auto_adjust_ff_dim": self.adjusts_ff,
                "block_ffn_dim_multiplier": 1.0,
                "block_multiple_of": FF_MULTIPLE,
            }),
            Some(experts) => json!({
                "architectures": ["Lfm2MoeForCausalLM"],
                "model_type": "lfm2_moe",
                "num_experts": experts.n_expert,
                "num_experts_per_tok": experts.n_used,
                "moe_intermediate_size": experts.n_ff,
                "num_dense_layers": experts.n_dense,
                "norm_topk_prob": true,
                "use_expert_bias": true,
                "routed_scaling_factor": 1.0,
            }),
        };
        merged(own, [shared])
    }

    fn tensors(&self, prefix: &str, tensors: &mut Tensors) {
        let n_embd = self.n_embd;
        tensors.add(format!("{prefix}embed_tokens.weight"), &[LFM2_VOCAB, n_embd], MATRIX);
        for i in 0..self.n_layer {
            let mut add = |name: &str, dims: &[usize], scale| {
                tensors.add(format!("{prefix}layers.{i}.{name}.weight"), dims, scale);
            };
            if self.attention.contains(&i) {
                let head_dim = n_embd / self.n_head;
                let n_kv = Self::N_HEAD_KV * head_dim;
                add("self_attn.q_proj", &[n_embd, n_embd], MATRIX);
                add("self_attn.k_proj", &[n_kv, n_embd], MATRIX);
                add("self_attn.v_proj", &[n_kv, n_embd], MATRIX);
                add("self_attn.out_proj", &[n_embd, n_embd], MATRIX);
                add("self_attn.q_layernorm", &[head_dim], NORM);
                add("self_attn.k_layernorm", &[head_dim], NORM);
            } else {
                add("conv.in_proj", &[3 * n_embd, n_embd], MATRIX);
                add("conv.conv", &[n_embd, 1, L_CACHE], TAPS);
                add("conv.out_proj", &[n_embd, n_embd], MATRIX);
            }
            add("operator_norm", &[n_embd], NORM);
            add("ffn_norm", &[n_embd], NORM);
            match &self.experts {
                Some(experts) if i >= experts.n_dense => {
                    add("feed_forward.gate", &[experts.n_expert, n_embd], MATRIX);
                    for e in 0..experts.n_expert {
                        feed_forward(&mut add, &format!("feed_forward.experts.{e}"), n_embd, experts.n_ff);
                    }
                    let bias = format!("{prefix}layers.{i}.feed_forward.expert_bias");
                    tensors.add(bias, &[experts.n_expert], BIAS);
                }
                _ => feed_forward(&mut add, "feed_forward", n_embd, self.feed_forward_width()),
            }
        }
        tensors.add(format!("{prefix}embedding_norm.weight"), &[n_embd], NORM);
    }

    fn feed_forward_width(&self) -> usize {
        if self.adjusts_ff { (2 * self.n_ff / 3).next_multiple_of(FF_MULTIPLE) } else { self.n_ff }
    }
}

/// The three matrices of a feed-forward layer.
fn feed_forward(add: &mut impl FnMut(&str, &[usize], Scale), name: &str, n_embd: usize, n_ff: usize) {
    add(&format!("{name}.w1"), &[n_ff, n_embd], MATRIX);
    add(&format!("{name}.w2"), &[n_embd, n_ff], MATRIX);
    add(&format!("{name}.w3"), &[n_ff, n_embd], MATRIX);
}

impl Conformer {
    /// Width of the feed-forward layers, in widths.
    const EXPANSION: usize = 4;

    fn config(&self) -> Value {
        json!({
            "feat_in": N_MELS,
            "feat_out": -1,
            "n_layers": self.n_layer,
            "d_model": self.n_embd,
            "n_heads": self.n_head,
            "ff_expansion_factor": Self::EXPANSION,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": self.n_channels,
            "causal_downsampling": false,
            "reduction": null,
            "self_attention_model": "rel_pos",
            "att_context_size": [-1, -1],
            "xscaling": false,
            "untie_biases": true,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": self.n_taps,
            "conv_norm_type": "batch_norm",
            "conv_context_size": null,
        })
    }

    /// `n_out`: width of the decoder.
    fn tensors(&self, n_out: usize, tensors: &mut Tensors) {
        let (n, n_embd) = (self.n_channels, self.n_embd);
        for (i, n_in, side, scale) in
            [(0, 1, 3, KERNEL), (2, 1, 3, KERNEL), (3, n, 1, POINTWISE), (5, 1, 3, KERNEL), (6, n, 1, POINTWISE)]
        {
            tensors.pair(&format!("conformer.pre_encode.conv.{i}"), &[n, n_in, side, side], scale);
        }
        tensors.pair("conformer.pre_encode.out", &[n_embd, n * N_MELS / 8], MATRIX);
        for i in 0..self.n_layer {
            self.layer(&format!("conformer.layers.{i}"), tensors);
        }
        tensors.pair("audio_adapter.model.0", &[n_embd], NORM);
        tensors.pair("audio_adapter.model.1", &[n_out, n_embd], MATRIX);
        tensors.pair("audio_adapter.model.3", &[n_out, n_out], MATRIX);
        tensors.add("audio_embedding.embedding.weight", &[self.n_audio_tokens, n_out], MATRIX);
        tensors.add("audio_embedding.embedding_norm.weight", &[n_out], NORM);
        tensors.add("audio_embedding.to_logits.weight", &[self.n_audio_tokens, n_out], MATRIX);
    }

    fn layer(&self, prefix: &str, tensors: &mut Tensors) {
        let (n_embd, n_ff) = (self.n_embd, Self::EXPANSION * self.n_embd);
        let mut pair = |name: &str, dims: &[usize], scale| tensors.pair(&format!("{prefix}.{name}"), dims, scale);
        for norm in ["norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out"] {
            pair(norm, &[n_embd], NORM);
        }
        for part in ["feed_forward1", "feed_forward2"] {
            pair(&format!("{part}.linear1"), &[n_ff, n_embd], MATRIX);
            pair(&format!("{part}.linear2"), &[n_embd, n_ff], MATRIX);
        }
        for part in ["q", "k", "v", "out"] {
            pair(&format!("self_attn.linear_{part}"), &[n_embd, n_embd], MATRIX);
        }
        pair("conv.pointwise_conv1", &[2 * n_embd, n_embd, 1], MATRIX);
        pair("conv.depthwise_conv", &[n_embd, 1, self.n_taps], KERNEL);
        pair("conv.pointwise_conv2", &[n_embd, n_embd, 1], MATRIX);
        pair("conv.batch_norm", &[n_embd], NORM);
        tensors.add(format!("{prefix}.conv.batch_norm.running_mean"), &[n_embd], BIAS);
        tensors.add(format!("{prefix}.conv.batch_norm.running_var"), &[n_embd], NORM);
        tensors.add(format!("{prefix}.self_attn.linear_pos.weight"), &[n_embd, n_embd], MATRIX);
        for part in ["pos_bias_u", "pos_bias_v"] {
            tensors.add(format!("{prefix}.self_attn.{part}"), &[self.n_head, n_embd / self.n_head], BIAS);
        }
    }
}

/// The object `first` with the keys of `others` behind its own.
pub(super) fn merged<const N: usize>(mut first: Value, others: [Value; N]) -> Value {
    let into = first.as_object_mut().expect("configurations are objects");
    for other in others {
        into.extend(other.as_object().expect("configurations are objects").clone());
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str) -> Shape {
        *Shape::ALL.iter().find(|shape| shape.name == name).unwrap()
    }

    fn parameters(shape: &Shape, is_counted: impl Fn(&str) -> bool) -> usize {
        shape.tensors().iter().filter(|t| is_counted(&t.name)).map(|t| t.dims.iter().product::<usize>()).sum()
    }

    #[test]
    fn qwen3_asr_has_the_published_tensors() {
        // Tensors, elements, and elements of the encoder: from the headers of the published files.
        for (name, n_tensors, total, encoder) in
            [("qwen3-asr-0.6b", 612, 938_008_576, 186_376_192), ("qwen3-asr-1.7b", 708, 2_349_217_408, 317_477_504)]
        {
            let shape = shape(name);
            assert_eq!(shape.tensors().len(), n_tensors, "{name}");
            assert_eq!(parameters(&shape, |_| true), total, "{name}");
            assert_eq!(parameters(&shape, |name| name.contains("audio_tower")), encoder, "{name}");
        }
    }

    #[test]
    fn text_models_have_the_published_number_of_parameters() {
        for (name, total) in [
            ("lfm2-350m", 354_483_968),
            ("lfm2-700m", 742_489_344),
            ("lfm2-1.2b", 1_170_340_608),
            ("lfm2-2.6b", 2_569_272_320),
            ("lfm2-8b-a1b", 8_339_929_856),
            ("qwen3-0.6b", 596_049_920),
            ("qwen3-1.7b", 1_720_574_976),
            ("qwen3-4b", 4_022_468_096),
            ("llama-3.2-1b", 1_235_814_400),
        ] {
            // What balances experts is stored, but not trained.
            assert_eq!(parameters(&shape(name), |name| !name.ends_with("expert_bias")), total, "{name}");
        }
    }

    /// Sizes that llama-bench published of the files (llama.cpp, pull request 16490), in millions.
    #[test]
    fn state_space_models_have_the_published_number_of_parameters() {
        let mini = Shape { name: "jamba-mini", kind: Kind::Jamba(JAMBA_MINI) };
        for (shape, millions) in
            [(shape("mamba-130m"), 129.14), (shape("granite-4.0-h-tiny"), 6940.0), (mini, 51_570.0)]
        {
            let found = parameters(&shape, |_| true) as f64 / 1e6;
            // Rounded to the last digit that is there.
            let unit = if millions < 1000.0 { 0.005 } else { 5.0 };
            assert!((found - millions).abs() <= unit, "{}: {found}", shape.name);
        }
    }

    /// By hand, of a layer of each kind: no file's header is at hand.
    #[test]
    fn delta_nets_have_the_tensors_of_their_layers() {
        let layer = |name: &str, i: usize| {
            let of_layer = format!("layers.{i}.");
            parameters(&shape(name), |tensor| tensor.contains(&of_layer))
        };
        let (delta, attention) = (42_139_840, 36_700_672);
        let ffn = 3 * 9216 * 2560 + 2 * 2560;
        assert_eq!([0, 3].map(|i| layer("qwen3.5-4b", i)), [delta + ffn, attention + ffn]);
        let name = "qwen3-next-80b-8-layers-128-experts";
        // 33.7 M and 27.3 M beside 129 experts of 3.1 M each, a router, a gate and two norms.
        let experts = 129 * 3 * 512 * 2048 + 128 * 2048 + 2048 + 2 * 2048;
        assert_eq!([0, 7].map(|i| layer(name, i)), [33_718_464 + experts, 27_263_488 + experts]);
    }

    #[test]
    fn lfm2_audio_has_the_published_number_of_parameters() {
        let shape = shape("lfm2-audio-1.5b");
        assert_eq!(parameters(&shape, |name| name.starts_with("lfm.")), 1_170_340_608);
        // The statistics of norms are stored, but not trained.
        let is_trained = |name: &str| name.starts_with("conformer.") && !name.contains(".running_");
        assert_eq!(parameters(&shape, is_trained), 109_548_544);
        assert_eq!(parameters(&shape, |name| name.starts_with("audio_adapter.")), 5_248_000);
    }
}
