//! Published models without their weights: configurations, and the tensors that checkpoints have.
//!
//! [`Shape`] is the type to read first; the numbers of an architecture are in its file.

use serde_json::{Value, json};

use super::lfm2::{Conformer, Experts, LFM2_12B, LFM2_VOCAB, Lfm2};
use super::llama::Llama;
use super::qwen3::{AudioTower, QWEN_VOCAB, QWEN3_06B, Qwen3};
use super::qwen3_next::{FeedForward, Qwen3Next};
use super::ssm::{Generation, Granite, Jamba, Mamba};
use super::tensors::{MATRIX, N_MELS, Tensor, Tensors, merged};

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
