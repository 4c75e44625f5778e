//! The audio tower of Qwen3-ASR: strided convolutions over one-second chunks, then transformer layers that attend inside
//! windows of some seconds, eight in every release. Source: qwen-asr, `Qwen3ASRAudioEncoder.forward`; transformers,
//! `models/qwen3_asr/modeling_qwen3_asr.py`.

use engine::builder::{ClipInputs, GraphBuilder, Spans};
use engine::gguf::Gguf;
use engine::key::GraphKey;
use engine::model::EncoderSpec;
use engine::op::{Unary, Window};
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use super::AudioAttention;
use crate::blocks::affine::{LayerNorm, Linear};
use crate::blocks::rows_of;
use crate::encoder_decoder::AudioEncoder;
use crate::error::{Error, Result};
use crate::hparams::Hparams;

/// Frames of a chunk, which is convolved by itself: one second. Not in the files: `2 * n_window` of every release.
const CHUNK_FRAMES: usize = 100;
/// Prefix of the keys that llama.cpp does not know: it computes with the windows of the releases.
const OWN_KEYS: &str = "tympan.audio";
/// Frames that attend to each other, a part of a chunk left out: `n_window_infer`.
const WINDOW_FRAMES_KEY: &str = "window_frames";
/// The same where the key is not there, as in every release.
const WINDOW_FRAMES: usize = 800;
/// Kernel extent of the convolutions.
const KERNEL: usize = 3;
/// One row for each token of a chunk, and often more.
const POSITIONS: &str = "a.position_embd.weight";
/// Step of the convolutions.
const STRIDE: u8 = 2;
/// Zeros around the input of the convolutions.
const PAD: u8 = 1;
/// Chunks that go through the convolutions at once: bounds the size of their results, which are the largest of all.
const STEM_CHUNKS: usize = 8;

/// Extent after one convolution.
const fn halved(n: usize) -> usize {
    (n + 2 * PAD as usize - KERNEL) / STRIDE as usize + 1
}

/// Extent after the three convolutions of the stem.
const fn stem_extent(n: usize) -> usize {
    halved(halved(halved(n)))
}

/// Audio tokens of a whole chunk.
const CHUNK_TOKENS: usize = stem_extent(CHUNK_FRAMES);

/// Audio tokens of a clip of `n_frames` frames: 13 a second, and one for every 8 frames of the rest, rounded up.
pub fn audio_tokens(n_frames: usize) -> usize {
    let rest = n_frames % CHUNK_FRAMES;
    let tail = if rest == 0 { 0 } else { stem_extent(rest) };
    n_frames / CHUNK_FRAMES * CHUNK_TOKENS + tail
}

/// Audio tokens that attend to each other. Errors: windows shorter than a chunk.
fn window_tokens(files: &[Gguf]) -> Result<u32> {
    let own = Hparams::new(files, OWN_KEYS);
    let n_frames = own.size_or(WINDOW_FRAMES_KEY, WINDOW_FRAMES)?;
    if n_frames < CHUNK_FRAMES {
        return Err(own.bad(WINDOW_FRAMES_KEY, format!("want at least {CHUNK_FRAMES}, got {n_frames}")));
    }
    Ok(u32::try_from(n_frames / CHUNK_FRAMES * CHUNK_TOKENS).expect("sizes in metadata are far below 32 bits"))
}

struct Conv {
    weight: Weight, // [channels, channels or 1, mel, time]
    bias: Weight,   // [channels]
}

/// Pre-norm transformer layer with biases everywhere and the exact GELU.
struct Layer {
    self_attn_layer_norm: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    final_layer_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// Audio tower and projector.
pub struct Encoder {
    n_mels: usize,
    n_head: usize,
    window: Window,
    conv2d: [Conv; 3],
    conv_out: Weight,             // [d_model, channels * mel bands left]
    positional_embedding: Weight, // [n_positions, d_model], the first CHUNK_TOKENS rows count
    layers: Vec<Layer>,
    ln_post: LayerNorm,
    proj1: Linear,
    proj2: Linear,
}

impl Encoder {
    /// The tensors `a.*` and `mm.a.*`; `n_embd` is the width that the decoder takes.
    ///
    /// Errors: keys or tensors that are missing or do not fit each other.
    pub fn load(files: &[Gguf], w: &WeightStore, n_embd: usize, attention: AudioAttention) -> Result<Self> {
        let hp = Hparams::new(files, "clip.audio");
        let (d, n_ff) = (hp.size("embedding_length")?, hp.size("feed_forward_length")?);
        let (n_mels, n_head) = (hp.size("num_mel_bins")?, hp.size("attention.head_count")?);
        let eps = hp.positive("attention.layer_norm_epsilon")?;
        if !d.is_multiple_of(n_head) {
            return Err(hp.bad("attention.head_count", format!("want a divisor of {d}, got {n_head}")));
        }
        let projection = hp.size("projection_dim")?;
        if projection != n_embd {
            return Err(hp.bad("projection_dim", format!("want the text model's width {n_embd}, got {projection}")));
        }
        let channels = rows_of(w, "a.conv2d.1.weight")?;
        let conv = |i: usize| -> Result<Conv> {
            let c_in = if i == 1 { 1 } else { channels };
            Ok(Conv {
                weight: w.get(&format!("a.conv2d.{i}.weight"), [channels, c_in, KERNEL, KERNEL])?,
                bias: w.get_squeezed(&format!("a.conv2d.{i}.bias"), [channels])?,
            })
        };
        let layer = |i: usize| -> Result<Layer> {
            let name = |part: &str| format!("a.blk.{i}.{part}");
            Ok(Layer {
                self_attn_layer_norm: LayerNorm::load(w, &name("ln1"), d, eps)?,
                q_proj: Linear::load(w, &name("attn_q"), d, d)?,
                k_proj: Linear::load(w, &name("attn_k"), d, d)?,
                v_proj: Linear::load(w, &name("attn_v"), d, d)?,
                out_proj: Linear::load(w, &name("attn_out"), d, d)?,
                final_layer_norm: LayerNorm::load(w, &name("ln2"), d, eps)?,
                fc1: Linear::load(w, &name("ffn_up"), n_ff, d)?,
                fc2: Linear::load(w, &name("ffn_down"), d, n_ff)?,
            })
        };
        let (positions, desc) = w.find(POSITIONS).ok_or_else(|| w.missing(POSITIONS))?;
        let n_positions = desc.shape.dims().first().map_or(0, |&d| d as usize);
        if n_positions < CHUNK_TOKENS {
            return Err(Error::BadWeight {
                path: w.path(positions).to_owned(),
                name: POSITIONS.into(),
                what: format!("want at least {CHUNK_TOKENS} rows, got {n_positions}"),
            });
        }
        Ok(Self {
            n_mels,
            n_head,
            window: match attention {
                AudioAttention::Windowed => Window::Blocks(window_tokens(files)?),
                AudioAttention::Full => Window::Full,
            },
            conv2d: [conv(1)?, conv(2)?, conv(3)?],
            conv_out: w.get("a.conv_out.weight", [d, channels * stem_extent(n_mels)])?,
            positional_embedding: w.get(POSITIONS, [n_positions, d])?,
            layers: (0..hp.size("block_count")?).map(layer).collect::<Result<_>>()?,
            ln_post: LayerNorm::load(w, "a.post_ln", d, eps)?,
            proj1: Linear::load(w, "mm.a.mlp.1", d, d)?,
            proj2: Linear::load(w, "mm.a.mlp.2", n_embd, d)?,
        })
    }

    /// The stem of chunks `start .. start + n`, `[n, CHUNK_TOKENS, d_model]`. Halves, so that every result is copied
    /// only log n times when the groups are joined.
    fn stems(&self, g: &GraphBuilder<'_>, chunks: Tensor, start: usize, n: usize) -> Tensor {
        if n <= STEM_CHUNKS {
            return self.stem(g, g.slice(chunks, 0, start, n), start);
        }
        let left = (n / 2).next_multiple_of(STEM_CHUNKS);
        g.concat(self.stems(g, chunks, start, left), self.stems(g, chunks, start + left, n - left))
    }

    /// `[n, n_mels, CHUNK_FRAMES, 1]` to `[n, CHUNK_TOKENS, d_model]`; positions restart in every chunk.
    fn stem(&self, g: &GraphBuilder<'_>, chunks: Tensor, start: usize) -> Tensor {
        let conv = |x, c: &Conv| g.conv2d(x, c.weight, c.bias, STRIDE, PAD);
        let [first, second, third] = &self.conv2d;
        let x = g.name(g.unary(Unary::Gelu, conv(chunks, first)), ("enc.gelu1", start));
        let x = g.name(g.unary(Unary::Gelu, conv(x, second)), ("enc.gelu2", start));
        let x = g.name(conv(x, third), ("enc.conv2d3", start));
        // [n, mel bands left, CHUNK_TOKENS, channels]
        let x = g.name(g.unary(Unary::Gelu, x), ("enc.gelu3", start));
        let x = g.copy(g.permute(x, [0, 2, 3, 1])); // [n, CHUNK_TOKENS, channels, mel bands left]
        let x = g.linear(g.merge_heads(x), self.conv_out);
        let positions = g.slice(g.weight(self.positional_embedding), 0, 0, CHUNK_TOKENS);
        g.add(x, positions)
    }

    fn layer(&self, g: &GraphBuilder<'_>, i: usize, layer: &Layer, x: Tensor, spans: Spans) -> Tensor {
        let h = g.name(layer.self_attn_layer_norm.build(g, x), ("enc.blk", i, "ln1"));
        let qkv = [&layer.q_proj, &layer.k_proj, &layer.v_proj].map(|p| g.split_heads(p.build(g, h), self.n_head));
        // Head widths are small integers, exact in f32.
        let scale = 1.0 / (g.shape(qkv[0]).last() as f32).sqrt();
        let h = g.merge_heads(g.attention(qkv, spans, scale, self.window));
        let h = g.name(layer.out_proj.build(g, h), ("enc.blk", i, "attn"));
        let x = g.add(x, h);
        let h = layer.final_layer_norm.build(g, x);
        let h = g.unary(Unary::Gelu, layer.fc1.build(g, h));
        g.add(x, layer.fc2.build(g, h))
    }
}

impl AudioEncoder for Encoder {
    fn spec(&self) -> EncoderSpec {
        EncoderSpec {
            n_mels: self.n_mels,
            clip_frames: CHUNK_FRAMES,
            gap_frames: 0,
            line_frames: CHUNK_FRAMES,
            window_frames: match self.window {
                Window::Blocks(n_tokens) => Some(n_tokens as usize / CHUNK_TOKENS * CHUNK_FRAMES),
                Window::Full => None,
            },
            tokens: audio_tokens,
        }
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        g.precise_products();
        let n_frames = key.n_tokens as usize;
        let n_chunks = n_frames / CHUNK_FRAMES;
        let clips = ClipInputs::new(g, key, self.n_mels, n_chunks * CHUNK_TOKENS);
        // Cut along time: [n_chunks, n_mels, CHUNK_FRAMES, 1].
        let chunks = g.permute(g.reshape(clips.features, [self.n_mels, n_chunks, CHUNK_FRAMES, 1]), [1, 0, 2, 3]);
        let x = self.stems(g, chunks, 0, n_chunks);
        let width = g.shape(x).last();
        let mut x = g.name(g.reshape(x, [n_chunks * CHUNK_TOKENS, width]), "enc.stem");
        for (i, layer) in self.layers.iter().enumerate() {
            g.layer(i);
            x = g.name(self.layer(g, i, layer, x, clips.spans), ("enc.blk", i, "out"));
        }
        g.layer(None);
        let x = g.name(self.ln_post.build(g, x), "enc.ln_post");
        let x = g.name(self.proj1.build(g, x), "enc.proj1");
        let x = self.proj2.build(g, g.unary(Unary::Gelu, x));
        g.output(g.name(x, "enc.embeddings"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_counts_are_the_published_ones() {
        let table = [
            (10, 2),
            (30, 4),
            (49, 7),
            (50, 7),
            (75, 10),
            (99, 13),
            (100, 13),
            (101, 14),
            (360, 47),
            (800, 104),
            (808, 105),
            (1100, 143),
            (1600, 208),
            (3000, 390),
            (6500, 845),
            (0, 0),
        ];
        for (frames, tokens) in table {
            assert_eq!(audio_tokens(frames), tokens, "{frames} frames");
        }
    }
}
