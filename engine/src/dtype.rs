//! Element formats of tensors: [`DType`]. What the bytes of weights mean is in the crate `formats`.

use formats::Format;

/// Geometry of a format: `len` elements are stored in `bytes` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Elements per block.
    pub len: usize,
    /// Bytes per block.
    pub bytes: usize,
}

/// Defines [`DType`] from the list of formats.
macro_rules! define {
    ($($(#[$doc:meta])* $name:ident: $block:ident, id $id:literal, files [$($file:ident = $number:literal),*];)*) => {
        /// The format of a tensor's elements, named as in GGUF: one of weights, or integers.
        #[allow(non_camel_case_types, reason = "upstream spelling of formats")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum DType {
            $($(#[$doc])* $name,)*
            /// 32-bit signed integers: ids, positions, lengths.
            I32,
        }

        impl DType {
            /// Every format, in declaration order.
            pub const ALL: [Self; Format::ALL.len() + 1] = [$(Self::$name,)* Self::I32];

            /// The format of weights; none for integers.
            pub const fn format(self) -> Option<Format> {
                match self {
                    $(Self::$name => Some(Format::$name),)*
                    Self::I32 => None,
                }
            }

            /// The type of weights in this format.
            pub const fn of(format: Format) -> Self {
                match format {
                    $(Format::$name => Self::$name,)*
                }
            }
        }
    };
}

formats::formats!(define);

impl DType {
    /// Elements and bytes of one block; plain types are blocks of one element.
    pub const fn block(self) -> Block {
        match self.format() {
            Some(format) => Block { len: format.block_len(), bytes: format.block_bytes() },
            None => Block { len: 1, bytes: size_of::<i32>() },
        }
    }

    /// Bytes of a row of `n` elements; `n` is a multiple of `self.block().len`.
    pub const fn row_bytes(self, n: usize) -> usize {
        let block = self.block();
        debug_assert!(n.is_multiple_of(block.len));
        n / block.len * block.bytes
    }

    /// The type id in a GGUF tensor table. Source: ggml, `enum ggml_type`.
    pub const fn gguf_id(self) -> u32 {
        match self.format() {
            Some(format) => format.gguf_id(),
            None => 26,
        }
    }

    /// The format with this GGUF type id, if the engine stores it.
    pub(crate) fn from_gguf_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.gguf_id() == id)
    }

    /// The format's name as GGUF tools write it: `F32`, `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self.format() {
            Some(format) => format.name(),
            None => "I32",
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
        assert_eq!(DType::from_gguf_id(28), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(DType::Q4_K.row_bytes(512), 288);
        assert_eq!(DType::BF16.row_bytes(7), 14);
    }
}
