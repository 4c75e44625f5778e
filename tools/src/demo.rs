//! The built-in demonstration model: a bundle in bf16, made by `tympan convert` from the trained test checkpoint.
//!
//! Its weights are under CC BY-SA 4.0: see `tools/demo/MODEL_CARD.md`.

use engine::gguf::{Gguf, TENSOR_ALIGNMENT};

/// Name of the file in messages.
pub const NAME: &str = "tiny-qwen3-asr-BF16.gguf";

/// The file, where tensors may be borrowed from.
static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../demo/tiny-qwen3-asr-BF16.gguf"));

/// Bytes that begin at a multiple of [`TENSOR_ALIGNMENT`].
#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

const _: () = assert!(align_of::<Aligned<[u8; 1]>>() == TENSOR_ALIGNMENT);

/// The bytes of the model.
pub fn bytes() -> &'static [u8] {
    &MODEL.0
}

/// Opens the model.
pub fn open() -> engine::Result<Gguf> {
    Gguf::from_static(bytes(), NAME)
}
