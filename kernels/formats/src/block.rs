//! What a format is: the trait [`Block`].

use bytemuck::Pod;

use super::{Format, SMALL_BLOCK, SUPER_BLOCK, f16};

/// What blocks of integer levels have alike: a length, and [`Block::INTEGERS`], of the given kind, [`Block::decode`] and
/// [`Block::encode`] by the functions `integers`, `decode` and `encode` of the module. The last two take the elements of whole
/// blocks as arrays.
macro_rules! in_whole_blocks {
    ($len:expr, $kind:ident) => {
        const LEN: usize = $len;
        const INTEGERS: Integers<Self> = Integers::$kind(integers);

        #[inline(always)]
        fn decode(blocks: &[Self], out: &mut [f32]) {
            decode(blocks, out.as_chunks_mut().0);
        }

        #[inline(always)]
        fn encode(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]) {
            encode(x.as_chunks().0, importance.map(|w| w.as_chunks().0), out);
        }
    };
}
pub(crate) use in_whole_blocks;

/// A block of a format as it lies in a file, with all that there is to know about the format.
///
/// Plain numbers are blocks of one element. Blocks have no alignment.
pub trait Block: Pod {
    /// Elements of a block; a divisor of [`SUPER_BLOCK`].
    const LEN: usize;
    /// Where a block has halves that scale its levels or are added to them, in bytes. What is finite in the other bytes is
    /// finite.
    const SCALES: &'static [usize];
    /// Whether importance changes what [`encode`](Self::encode) writes.
    const USES_IMPORTANCE: bool = true;
    /// The smallest size of a value whose block has a scale or a value that is not finite; infinity where that depends on the
    /// other values of the block.
    const LIMIT: f32 = f32::INFINITY;
    /// The format that takes this one's place where rows are not whole blocks. Source: llama.cpp, `llama-quant.cpp`,
    /// `tensor_type_fallback`.
    const SUBSTITUTE: Format = Format::F16;
    /// How weights are multiplied in integers.
    const INTEGERS: Integers<Self> = Integers::None;

    /// Decodes whole blocks, exactly; `out` has [`LEN`](Self::LEN) elements for each.
    fn decode(blocks: &[Self], out: &mut [f32]);

    /// Encodes a row, exactly, with an importance for each column or none; `x` has [`LEN`](Self::LEN) elements for each block.
    fn encode(x: &[f32], importance: Option<&[f32]>, out: &mut [Self]);

    /// Whether every value, or every scale and minimum, is finite.
    #[inline]
    fn is_finite(&self) -> bool {
        let bytes = bytemuck::bytes_of(self);
        Self::SCALES.iter().all(|&at| f16::is_finite(u16::from_le_bytes([bytes[at], bytes[at + 1]])))
    }
}

/// A block of the list of formats.
pub trait Listed: Block {
    /// Its format.
    const FORMAT: Format;
}

/// How weights of blocks `B` are multiplied in integers with activations of 8 bits.
#[derive(Clone, Copy)]
pub enum Integers<B> {
    /// Not at all: they are decoded, and multiplied in f32.
    None,
    /// As a group of 32 weights.
    Small(fn(&B) -> Group),
    /// As 256 weights.
    Super(fn(&B) -> SuperBlock),
}

/// How weights of a format are multiplied, without the functions of [`Integers`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arithmetic {
    /// In f32.
    Float,
    /// In integers, 32 weights at a time.
    Small,
    /// In integers, 256 weights at a time.
    Super,
}

impl<B: Block> Integers<B> {
    /// The function of [`Integers::Small`]; to be called when compiling, for a format that has it.
    pub const fn small(self) -> fn(&B) -> Group {
        match self {
            Self::Small(group) => group,
            Self::None | Self::Super(_) => panic!("weights in groups of 32"),
        }
    }

    /// The function of [`Integers::Super`]; to be called when compiling, for a format that has it.
    pub const fn super_block(self) -> fn(&B) -> SuperBlock {
        match self {
            Self::Super(super_block) => super_block,
            Self::None | Self::Small(_) => panic!("weights in blocks of 256"),
        }
    }

    /// Without the functions. The length of a block is what they need.
    pub const fn arithmetic(self) -> Arithmetic {
        match self {
            Self::None => Arithmetic::Float,
            Self::Small(_) => {
                assert!(B::LEN == SMALL_BLOCK);
                Arithmetic::Small
            }
            Self::Super(_) => {
                assert!(B::LEN == SUPER_BLOCK);
                Arithmetic::Super
            }
        }
    }
}

/// 32 weights, `scale * level + offset`.
pub struct Group {
    /// Levels.
    pub levels: [i8; SMALL_BLOCK],
    /// Factor of all levels.
    pub scale: f32,
    /// Summand of all weights.
    pub offset: f32,
}

/// 256 weights, `d scale level - dmin min`.
pub struct SuperBlock {
    /// Scale of the scales.
    pub d: f32,
    /// Scale of the minima; 0 in formats without.
    pub dmin: f32,
    /// The weights.
    pub sixteens: [Sixteen; SUPER_BLOCK / 16],
}

/// Levels, scale and minimum of 16 weights of a 256-block.
pub struct Sixteen {
    /// Levels.
    pub levels: [i8; 16],
    /// Factor of the levels.
    pub scale: i8,
    /// What is taken off.
    pub min: u8,
}

/// Decodes one row; `out.len()` is a multiple of the block and `bytes` holds exactly that row.
#[inline(always)]
pub fn decode_row<B: Block>(bytes: &[u8], out: &mut [f32]) {
    assert!(out.len().is_multiple_of(B::LEN), "a row is whole blocks");
    assert_eq!(bytes.len(), out.len() / B::LEN * size_of::<B>(), "bytes of a row");
    B::decode(bytemuck::cast_slice(bytes), out);
}

/// Encodes one row; `x.len()` is a multiple of the block and `out` takes exactly that row.
#[inline(always)]
pub fn encode_row<B: Block>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    assert!(x.len().is_multiple_of(B::LEN), "a row is whole blocks");
    assert_eq!(out.len(), x.len() / B::LEN * size_of::<B>(), "bytes of a row");
    assert!(importance.is_none_or(|importance| importance.len() == x.len()), "an importance for each column");
    B::encode(x, importance, bytemuck::cast_slice_mut(out));
}
