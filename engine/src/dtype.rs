//! Element formats of tensors. [`DType`] knows geometry and file ids; encoding and decoding live in `kernels::quant`.

/// The format of a tensor's elements, named as in GGUF.
#[allow(non_camel_case_types, reason = "upstream spelling of formats")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    BF16,
    /// 32-bit signed integers: ids, positions, lengths.
    I32,
    /// 32 signed bytes and one f16 scale.
    Q8_0,
    /// 32 levels of 4 bits around 8 and one f16 scale.
    Q4_0,
    /// 32 levels of 4 bits, f16 scale and minimum.
    Q4_1,
    /// 32 levels of 5 bits around 16 and one f16 scale.
    Q5_0,
    /// 32 levels of 5 bits, f16 scale and minimum.
    Q5_1,
    /// 32 levels of 4 bits that index sixteen values of uneven distance, one f16 scale.
    IQ4_NL,
    /// 256 levels of 2 bits, 16 groups with 4-bit scale and minimum.
    Q2_K,
    /// 256 levels of 3 bits, 16 groups with 6-bit scale.
    Q3_K,
    /// 256 levels of 4 bits, 8 groups with 6-bit scale and minimum.
    Q4_K,
    /// 256 levels of 5 bits, 8 groups with 6-bit scale and minimum.
    Q5_K,
    /// 256 levels of 6 bits, 16 groups with 8-bit scale.
    Q6_K,
}

/// Geometry of a format: `len` elements are stored in `bytes` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Elements per block.
    pub len: usize,
    /// Bytes per block.
    pub bytes: usize,
}

impl DType {
    /// Every format, in declaration order.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::IQ4_NL,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Elements and bytes of one block; plain types are blocks of one element.
    pub const fn block(self) -> Block {
        let (len, bytes) = match self {
            Self::F32 | Self::I32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::IQ4_NL => (32, 18),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        };
        Block { len, bytes }
    }

    /// Bytes of a row of `n` elements; `n` is a multiple of `self.block().len`.
    pub const fn row_bytes(self, n: usize) -> usize {
        let block = self.block();
        debug_assert!(n.is_multiple_of(block.len));
        n / block.len * block.bytes
    }

    /// The type id in a GGUF tensor table. Source: ggml, `enum ggml_type`.
    pub const fn gguf_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::IQ4_NL => 20,
            Self::I32 => 26,
            Self::BF16 => 30,
        }
    }

    /// The format with this GGUF type id, if the engine stores it.
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.gguf_id() == id)
    }

    /// The format's name as GGUF tools write it: `F32`, `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::IQ4_NL => "IQ4_NL",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gguf_ids_name_their_type() {
        for t in DType::ALL {
            assert_eq!(DType::from_gguf_id(t.gguf_id()), Some(t));
        }
        assert_eq!(DType::from_gguf_id(40), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(DType::Q4_K.row_bytes(512), 288);
        assert_eq!(DType::BF16.row_bytes(7), 14);
    }
}
