//! The encoder of LFM2-Audio: a Fast-Conformer behind strided convolutions, and the adapter to the decoder's width.
//! Source: liquid-audio 1.3.0, `model/conformer/{encoder,subsampling,mha,modules}.py`, `model/mlp.py`; Rekesh et al. 2023,
//! "Fast Conformer with Linearly Scalable Attention"; Gulati et al. 2020, "Conformer".

use engine::builder::{ClipInputs, GraphBuilder, Spans};
use engine::gguf::Gguf;
use engine::key::GraphKey;
use engine::model::EncoderSpec;
use engine::op::Unary;
use engine::tensor::Tensor;
use engine::weights::{Weight, WeightStore};

use crate::blocks::affine::{LayerNorm, Linear};
use crate::blocks::rows_of;
use crate::encoder_decoder::AudioEncoder;
use crate::error::Result;
use crate::hparams::Hparams;

/// Frames that make an audio token: three convolutions of step 2.
const FRAMES_PER_TOKEN: usize = 8;
/// The line of clips is padded to a multiple of this, so that clips of similar length share a graph.
const FRAME_MULTIPLE: usize = 32;
/// Kernel extent of the strided convolutions.
const KERNEL: usize = 3;
/// Step of the strided convolutions.
const STRIDE: u8 = 2;
/// Zeros around the input of the strided convolutions.
const PAD: u8 = 1;
/// Share of a feed-forward module in the residual stream.
const HALF: f32 = 0.5;

/// Audio tokens of a clip of `n_frames` frames.
pub fn audio_tokens(n_frames: usize) -> usize {
    n_frames.div_ceil(FRAMES_PER_TOKEN)
}

/// A convolution of the stem.
struct Conv {
    weight: Weight, // [channels, 1, time, mel]
    bias: Weight,   // [channels]
}

/// `linear2(silu(linear1(norm(x))))`.
struct FeedForward {
    norm: LayerNorm,
    linear1: Linear,
    linear2: Linear,
}

/// Attention with relative positions.
struct SelfAttention {
    norm: LayerNorm,
    linear_q: Linear,
    linear_k: Linear,
    linear_v: Linear,
    linear_pos: Weight, // [d_model, d_model]
    pos_bias_u: Weight, // [n_head, head_dim]
    pos_bias_v: Weight, // [n_head, head_dim]
    linear_out: Linear,
}

/// Gated convolution along time.
struct Convolution {
    norm: LayerNorm,
    pointwise_conv1: Linear,
    depthwise_conv: Weight,  // [d_model, d_conv]
    depthwise_bias: Weight,  // [d_model]
    batch_norm: [Weight; 2], // [d_model] each: scale and shift, folded from the statistics when the file was made
    pointwise_conv2: Linear,
}

struct Layer {
    feed_forward1: FeedForward,
    self_attn: SelfAttention,
    conv: Convolution,
    feed_forward2: FeedForward,
    norm_out: LayerNorm,
}

/// Conformer and adapter.
pub struct Encoder {
    n_mels: usize,
    n_head: usize,
    conv: [Conv; 3],
    pointwise: [Linear; 2],
    pre_encode_out: Linear,
    layers: Vec<Layer>,
    adapter_norm: LayerNorm,
    adapter_linear1: Linear,
    adapter_linear2: Linear,
}

impl Encoder {
    /// The tensors `a.*` and `mm.a.*`; `n_embd` is the width that the decoder takes.
    ///
    /// Errors: keys or tensors that are missing or do not fit each other.
    pub fn load(files: &[Gguf], w: &WeightStore, n_embd: usize) -> Result<Self> {
        let hp = Hparams::new(files, "clip.audio");
        let (d, n_head) = (hp.size("embedding_length")?, hp.size("attention.head_count")?);
        let n_mels = hp.size("num_mel_bins")?;
        let eps = hp.positive("attention.layer_norm_epsilon")?;
        if !d.is_multiple_of(n_head) || !d.is_multiple_of(2) {
            return Err(hp.bad("attention.head_count", format!("want a divisor of the even width {d}, got {n_head}")));
        }
        if !n_mels.is_multiple_of(FRAMES_PER_TOKEN) {
            return Err(hp.bad("num_mel_bins", format!("want a multiple of {FRAMES_PER_TOKEN}, got {n_mels}")));
        }
        let projection = hp.size("projection_dim")?;
        if projection != n_embd {
            return Err(hp.bad("projection_dim", format!("want the text model's width {n_embd}, got {projection}")));
        }
        let channels = rows_of(w, "a.conv1d.0.weight")?;
        let conv = |i: usize| -> Result<Conv> {
            Ok(Conv {
                weight: w.get(&format!("a.conv1d.{i}.weight"), [channels, 1, KERNEL, KERNEL])?,
                bias: w.get_squeezed(&format!("a.conv1d.{i}.bias"), [channels])?,
            })
        };
        let pointwise = |i: usize| Linear::load(w, &format!("a.conv1d.{i}"), channels, channels);
        let layer = |i: usize| Layer::load(w, &format!("a.blk.{i}"), d, n_head, eps);
        let hidden = rows_of(w, "mm.a.mlp.1.weight")?;
        Ok(Self {
            n_mels,
            n_head,
            conv: [conv(0)?, conv(2)?, conv(5)?],
            pointwise: [pointwise(3)?, pointwise(6)?],
            pre_encode_out: Linear::load(w, "a.pre_encode.out", d, channels * n_mels / FRAMES_PER_TOKEN)?,
            layers: (0..hp.size("block_count")?).map(layer).collect::<Result<_>>()?,
            adapter_norm: LayerNorm::load(w, "mm.a.mlp.0", d, eps)?,
            adapter_linear1: Linear::load(w, "mm.a.mlp.1", hidden, d)?,
            adapter_linear2: Linear::load(w, "mm.a.mlp.3", n_embd, hidden)?,
        })
    }

    /// Subsampling by 8 in time and in frequency: `[n_tokens, d_model]`.
    ///
    /// Rows between two clips are zeroed before every strided convolution, so that it sees the border of a clip and not what
    /// the layers before made of the padding. A gap of one audio token leaves such a row at every stage.
    fn pre_encode(&self, g: &GraphBuilder<'_>, clips: &ClipInputs) -> Tensor {
        let mask = |x, unit| {
            let [_, time, mel, channels] = dims(g, x);
            let rows = g.mask_rows(g.reshape(x, [time, mel, channels]), clips.frames, unit);
            g.reshape(rows, [1, time, mel, channels])
        };
        let n_frames = g.shape(clips.features).last();
        let [first, second, third] = &self.conv;
        // [1, time, mel, 1]
        let x = g.permute(g.reshape(clips.features, [1, self.n_mels, n_frames, 1]), [0, 2, 1, 3]);
        let x = g.unary(Unary::Relu, g.conv2d(x, first.weight, first.bias, STRIDE, PAD));
        let x = mask(x, 2);
        let x = g.depthwise_conv2d(x, second.weight, second.bias, STRIDE, PAD);
        let x = g.unary(Unary::Relu, self.pointwise[0].build(g, x));
        let x = mask(x, 4);
        let x = g.depthwise_conv2d(x, third.weight, third.bias, STRIDE, PAD);
        let x = g.unary(Unary::Relu, self.pointwise[1].build(g, x)); // [1, n_tokens, mel / 8, channels]
        let [_, n_tokens, mel, channels] = dims(g, x);
        let x = g.permute(g.reshape(x, [n_tokens, mel, channels]), [0, 2, 1]);
        self.pre_encode_out.build(g, g.merge_heads(g.copy(x)))
    }
}

impl AudioEncoder for Encoder {
    fn spec(&self) -> EncoderSpec {
        EncoderSpec {
            n_mels: self.n_mels,
            clip_frames: FRAMES_PER_TOKEN,
            gap_frames: FRAMES_PER_TOKEN,
            line_frames: FRAME_MULTIPLE,
            window_frames: None,
            tokens: audio_tokens,
        }
    }

    fn build(&self, g: &GraphBuilder<'_>, key: &GraphKey) {
        g.precise_products();
        let clips = ClipInputs::new(g, key, self.n_mels, audio_tokens(key.n_tokens as usize));
        let mut x = g.name(self.pre_encode(g, &clips), "enc.stem");
        let positions = g.rel_positions(x);
        for (i, layer) in self.layers.iter().enumerate() {
            g.layer(i);
            x = g.name(layer.build(g, i, x, positions, clips.spans, self.n_head), ("enc.blk", i, "out"));
        }
        g.layer(None);
        let x = self.adapter_norm.build(g, x);
        let x = g.unary(Unary::Gelu, self.adapter_linear1.build(g, x));
        g.output(g.name(self.adapter_linear2.build(g, x), "enc.embeddings"));
    }
}

impl Layer {
    fn load(w: &WeightStore, prefix: &str, d: usize, n_head: usize, eps: f32) -> Result<Self> {
        let name = |part: &str| format!("{prefix}.{part}");
        let norm = |part: &str| LayerNorm::load(w, &name(part), d, eps);
        let square = |part: &str| Linear::load(w, &name(part), d, d);
        let vector = |part: &str| w.get(&name(part), [d]);
        // The projector's key for this width holds another number.
        let n_ff = rows_of(w, &name("ffn_up.weight"))?;
        let feed_forward = |n: &str, up: &str, down: &str| -> Result<FeedForward> {
            Ok(FeedForward {
                norm: norm(n)?,
                linear1: Linear::load(w, &name(up), n_ff, d)?,
                linear2: Linear::load(w, &name(down), d, n_ff)?,
            })
        };
        let bias = |part: &str| w.get(&name(part), [n_head, d / n_head]);
        let d_conv = columns_of(w, &name("conv_dw.weight"))?;
        Ok(Self {
            feed_forward1: feed_forward("ffn_norm", "ffn_up", "ffn_down")?,
            self_attn: SelfAttention {
                norm: norm("ln1")?,
                linear_q: square("attn_q")?,
                linear_k: square("attn_k")?,
                linear_v: square("attn_v")?,
                linear_pos: w.get(&name("linear_pos.weight"), [d, d])?,
                pos_bias_u: bias("pos_bias_u")?,
                pos_bias_v: bias("pos_bias_v")?,
                linear_out: square("attn_out")?,
            },
            conv: Convolution {
                norm: norm("norm_conv")?,
                pointwise_conv1: Linear::load(w, &name("conv_pw1"), 2 * d, d)?,
                depthwise_conv: w.get(&name("conv_dw.weight"), [d, d_conv])?,
                depthwise_bias: vector("conv_dw.bias")?,
                batch_norm: [vector("conv_norm.weight")?, vector("conv_norm.bias")?],
                pointwise_conv2: square("conv_pw2")?,
            },
            feed_forward2: feed_forward("ffn_norm_1", "ffn_up_1", "ffn_down_1")?,
            norm_out: norm("ln2")?,
        })
    }

    /// Layer `i`. `x` and the result: `[n_tokens, d_model]`; `positions [2 n_tokens - 1, d_model]`.
    fn build(
        &self,
        g: &GraphBuilder<'_>,
        i: usize,
        x: Tensor,
        positions: Tensor,
        spans: Spans,
        n_head: usize,
    ) -> Tensor {
        let tap = |t: Tensor, part| g.name(t, ("enc.blk", i, part));
        let x = g.add_scaled(x, tap(self.feed_forward1.build(g, x), "ff1"), HALF);
        let x = g.add(x, tap(self.self_attn.build(g, x, positions, spans, n_head), "attn"));
        let x = g.add(x, tap(self.conv.build(g, x, spans), "conv"));
        let x = g.add_scaled(x, tap(self.feed_forward2.build(g, x), "ff2"), HALF);
        self.norm_out.build(g, x)
    }
}

impl FeedForward {
    fn build(&self, g: &GraphBuilder<'_>, x: Tensor) -> Tensor {
        let h = self.norm.build(g, x);
        self.linear2.build(g, g.unary(Unary::Silu, self.linear1.build(g, h)))
    }
}

impl SelfAttention {
    fn build(&self, g: &GraphBuilder<'_>, x: Tensor, positions: Tensor, spans: Spans, n_head: usize) -> Tensor {
        let h = self.norm.build(g, x);
        let qkv = [&self.linear_q, &self.linear_k, &self.linear_v].map(|p| g.split_heads(p.build(g, h), n_head));
        let p = g.split_heads(g.linear(positions, self.linear_pos), n_head);
        // Head widths are small integers, exact in f32.
        let scale = 1.0 / (g.shape(p).last() as f32).sqrt();
        let y = g.rel_pos_attention(qkv, p, [self.pos_bias_u, self.pos_bias_v], spans, scale);
        self.linear_out.build(g, g.merge_heads(y))
    }
}

impl Convolution {
    fn build(&self, g: &GraphBuilder<'_>, x: Tensor, spans: Spans) -> Tensor {
        let h = self.norm.build(g, x);
        let [value, gate] = g.chunk(self.pointwise_conv1.build(g, h));
        let y = g.glu(Unary::Sigmoid, gate, value);
        let y = g.depthwise_conv1d(y, self.depthwise_conv, self.depthwise_bias, spans);
        let [scale, shift] = self.batch_norm.map(|w| g.weight(w));
        let y = g.unary(Unary::Silu, g.add(g.mul(y, scale), shift));
        self.pointwise_conv2.build(g, y)
    }
}

/// The four extents of an image.
fn dims(g: &GraphBuilder<'_>, x: Tensor) -> [usize; 4] {
    let shape = g.shape(x);
    std::array::from_fn(|i| shape.dim(i))
}

/// Extent 1 of a matrix.
fn columns_of(w: &WeightStore, name: &str) -> Result<usize> {
    let (_, desc) = w.find(name).ok_or_else(|| w.missing(name))?;
    Ok(desc.shape.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_counts_are_the_published_ones() {
        for (frames, tokens) in [(1, 1), (31, 4), (101, 13), (361, 46), (1101, 138), (3001, 376), (6501, 813)] {
            assert_eq!(audio_tokens(frames), tokens, "{frames} frames");
        }
    }
}
