//! [`Format`]: the list of formats as a type.

use super::*;

/// Defines [`Format`] from the list.
macro_rules! define {
    ($($(#[$doc:meta])* $name:ident: $block:ident, id $id:literal, files [$($file:ident = $number:literal),*];)*) => {
        /// A format of weights, named as in GGUF.
        #[allow(non_camel_case_types, reason = "upstream spelling of formats")]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Format {
            $($(#[$doc])* $name,)*
        }

        impl Format {
            /// Every format, in declaration order.
            pub const ALL: [Self; [$($id),*].len()] = [$(Self::$name),*];

            /// The name as GGUF tools write it: `F32`, `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The type id in a GGUF tensor table. Source: ggml, `enum ggml_type`.
            pub const fn gguf_id(self) -> u32 {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// Elements of one block; plain types are blocks of one element.
            pub const fn block_len(self) -> usize {
                match self {
                    $(Self::$name => <$block>::LEN,)*
                }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Self::$name => size_of::<$block>(),)*
                }
            }

            /// See [`Block::SCALES`].
            pub const fn scales(self) -> &'static [usize] {
                match self {
                    $(Self::$name => <$block>::SCALES,)*
                }
            }

            /// See [`Block::LIMIT`].
            pub const fn limit(self) -> f32 {
                match self {
                    $(Self::$name => <$block>::LIMIT,)*
                }
            }

            /// See [`Block::SUBSTITUTE`].
            pub const fn substitute(self) -> Self {
                match self {
                    $(Self::$name => <$block>::SUBSTITUTE,)*
                }
            }

            /// Whether importance changes what [`encode_row`] writes.
            pub const fn uses_importance(self) -> bool {
                match self {
                    $(Self::$name => <$block>::USES_IMPORTANCE,)*
                }
            }

            /// How weights are multiplied.
            pub const fn arithmetic(self) -> Arithmetic {
                match self {
                    $(Self::$name => const { <$block>::INTEGERS.arithmetic() },)*
                }
            }

            /// Whether every value, or every scale and minimum, in `bytes` of whole blocks is finite.
            pub fn is_finite(self, bytes: &[u8]) -> bool {
                match self {
                    $(Self::$name => bytemuck::cast_slice(bytes).iter().all(<$block>::is_finite),)*
                }
            }

            /// Decodes one row; `out.len()` is a multiple of [`block_len`](Self::block_len) and `bytes` holds exactly that row.
            #[inline(always)]
            pub fn decode_row(self, bytes: &[u8], out: &mut [f32]) {
                match self {
                    $(Self::$name => decode_row::<$block>(bytes, out),)*
                }
            }

            /// Encodes one row; `x.len()` is a multiple of [`block_len`](Self::block_len) and `out` takes exactly that row.
            ///
            /// Rows are independent of each other, and so are blocks: a row may be encoded in pieces of whole blocks.
            ///
            /// Infinities and NaN keep their meaning in F32, F16 and BF16. In the quantized formats they give a scale that is
            /// not finite or levels without meaning: the caller checks its rows first.
            pub fn encode_row(self, x: &[f32], out: &mut [u8]) {
                match self {
                    $(Self::$name => encode_row::<$block>(x, None, out),)*
                }
            }
        }

        $(impl Listed for $block {
            const FORMAT: Format = Format::$name;
        })*

        // Kernels take a row apart at multiples of 256.
        const _: () = {
            $(assert!(align_of::<$block>() == 1 && SUPER_BLOCK.is_multiple_of(<$block>::LEN));)*
        };
    };
}

formats!(define);

impl Format {
    /// Bytes of a row of `n` elements; `n` is a multiple of [`block_len`](Self::block_len).
    pub const fn row_bytes(self, n: usize) -> usize {
        assert!(n.is_multiple_of(self.block_len()), "a row is whole blocks");
        n / self.block_len() * self.block_bytes()
    }
}
