//! LFM2-Audio as a recogniser: a conformer whose vectors stand in the prompt of an LFM2 decoder. The parts that make
//! speech are not read. Source: liquid-audio 1.3.0, `model/lfm2_audio.py`.

mod encoder;
pub mod prompt;

use engine::gguf::Gguf;
use engine::model::Model;
use engine::weights::WeightStore;

pub use encoder::{Encoder, audio_tokens};

use crate::decoder::Decoder;
use crate::encoder_decoder::EncoderDecoder;
use crate::error::Result;
use crate::lfm2;

/// Loads a text file `lfm2` with its projector file `lfm2a`, or a bundle of both.
///
/// Errors: keys or tensors that are missing or do not fit each other.
pub fn load(files: &[Gguf], w: &WeightStore) -> Result<EncoderDecoder<Encoder, Decoder>> {
    let decoder = lfm2::load(files, w)?;
    let encoder = Encoder::load(files, w, decoder.n_embd())?;
    Ok(EncoderDecoder::new("lfm2-audio", encoder, decoder))
}
