//! Metadata values. [`Value`] keeps what the file says, bit by bit; the checked conversions are [`super::Gguf`]'s.

use std::fmt;

/// The type of a metadata value. Source: GGUF specification, `gguf_metadata_value_type`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ValueType {
    /// Unsigned 8 bits.
    U8,
    /// Signed 8 bits.
    I8,
    /// Unsigned 16 bits.
    U16,
    /// Signed 16 bits.
    I16,
    /// Unsigned 32 bits.
    U32,
    /// Signed 32 bits.
    I32,
    /// IEEE single precision.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// Bytes, UTF-8 by convention.
    String,
    /// Values of one type; never arrays.
    Array,
    /// Unsigned 64 bits.
    U64,
    /// Signed 64 bits.
    I64,
    /// IEEE double precision.
    F64,
}

impl ValueType {
    /// Every type, in the order of the ids in the file: a type's id is its place here.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The id in the file.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type with this id.
    pub(crate) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of one value; `None` where the value itself tells.
    pub const fn bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// The type's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A metadata value with the type that the file gives it. Strings are bytes: the format does not force UTF-8.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the variants are those of ValueType")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Vec<u8>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Values of one type, in order.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the variants are those of ValueType, without arrays")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<Vec<u8>>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// One arm per variant that holds a plain value or a list of them.
macro_rules! each_plain {
    ($on:expr, $enum:ident, $v:ident => $plain:expr, $($rest:tt)*) => {
        match $on {
            $enum::U8($v) => $plain,
            $enum::I8($v) => $plain,
            $enum::U16($v) => $plain,
            $enum::I16($v) => $plain,
            $enum::U32($v) => $plain,
            $enum::I32($v) => $plain,
            $enum::F32($v) => $plain,
            $enum::Bool($v) => $plain,
            $enum::U64($v) => $plain,
            $enum::I64($v) => $plain,
            $enum::F64($v) => $plain,
            $($rest)*
        }
    };
}

/// The type in the file of one of these variants, which has its name.
macro_rules! type_of {
    ($on:expr, $($variant:ident)*) => {
        match $on {
            $(Self::$variant(_) => ValueType::$variant,)*
        }
    };
}

impl Value {
    /// The type in the file.
    pub const fn value_type(&self) -> ValueType {
        type_of!(self, U8 I8 U16 I16 U32 I32 F32 Bool String Array U64 I64 F64)
    }

    /// The value of any integer type.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::I8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::U64(v) => Some(v.into()),
            Self::I64(v) => Some(v.into()),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }

    /// The value of a float type, widened; NaN and infinities as they are.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            _ => None,
        }
    }

    /// The value of a bool.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The text of a string that is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(v) => std::str::from_utf8(v).ok(),
            _ => None,
        }
    }

    /// The elements of an array.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(v) => Some(v),
            _ => None,
        }
    }

    /// Appends the value as it stands in a file, after its type.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        each_plain!(self, Self, v => v.put(out),
            Self::String(v) => put_string(v, out),
            Self::Array(v) => v.encode(out),
        );
    }

    /// The value of a plain or string type. `bytes`: the value's own, without a string's length.
    pub(super) fn decode(ty: ValueType, bytes: &[u8]) -> Self {
        match ty {
            ValueType::U8 => Self::U8(u8::get(bytes)),
            ValueType::I8 => Self::I8(i8::get(bytes)),
            ValueType::U16 => Self::U16(u16::get(bytes)),
            ValueType::I16 => Self::I16(i16::get(bytes)),
            ValueType::U32 => Self::U32(u32::get(bytes)),
            ValueType::I32 => Self::I32(i32::get(bytes)),
            ValueType::F32 => Self::F32(f32::get(bytes)),
            ValueType::Bool => Self::Bool(bool::get(bytes)),
            ValueType::String => Self::String(bytes.to_vec()),
            ValueType::U64 => Self::U64(u64::get(bytes)),
            ValueType::I64 => Self::I64(i64::get(bytes)),
            ValueType::F64 => Self::F64(f64::get(bytes)),
            ValueType::Array => unreachable!("arrays have their own decode"),
        }
    }
}

impl Array {
    /// The elements' type in the file.
    pub const fn value_type(&self) -> ValueType {
        type_of!(self, U8 I8 U16 I16 U32 I32 F32 Bool String U64 I64 F64)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        each_plain!(self, Self, v => v.len(), Self::String(v) => v.len(),)
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends element type, length and elements.
    fn encode(&self, out: &mut Vec<u8>) {
        self.value_type().id().put(out);
        (self.len() as u64).put(out);
        each_plain!(self, Self, v => v.iter().for_each(|v| v.put(out)),
            Self::String(v) => v.iter().for_each(|v| put_string(v, out)),
        );
    }

    /// The elements from `bytes`, which hold them and nothing else.
    pub(super) fn decode(ty: ValueType, bytes: &[u8]) -> Self {
        match ty {
            ValueType::U8 => Self::U8(u8::get_all(bytes)),
            ValueType::I8 => Self::I8(i8::get_all(bytes)),
            ValueType::U16 => Self::U16(u16::get_all(bytes)),
            ValueType::I16 => Self::I16(i16::get_all(bytes)),
            ValueType::U32 => Self::U32(u32::get_all(bytes)),
            ValueType::I32 => Self::I32(i32::get_all(bytes)),
            ValueType::F32 => Self::F32(f32::get_all(bytes)),
            ValueType::Bool => Self::Bool(bool::get_all(bytes)),
            ValueType::String => Self::String(strings(bytes).map(<[u8]>::to_vec).collect()),
            ValueType::U64 => Self::U64(u64::get_all(bytes)),
            ValueType::I64 => Self::I64(i64::get_all(bytes)),
            ValueType::F64 => Self::F64(f64::get_all(bytes)),
            ValueType::Array => unreachable!("the scan refuses nested arrays"),
        }
    }
}

/// The strings of an array whose extent was checked: each a 64-bit length and its bytes.
pub(super) fn strings(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (n, rest) = bytes.split_first_chunk::<8>()?;
        let n = usize::try_from(u64::from_le_bytes(*n)).expect("the scan walked over these bytes");
        let (text, rest) = rest.split_at(n);
        bytes = rest;
        Some(text)
    })
}

fn put_string(text: &[u8], out: &mut Vec<u8>) {
    (text.len() as u64).put(out);
    out.extend_from_slice(text);
}

/// A value of fixed width, little-endian in the file.
pub(super) trait Plain: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// The value that `bytes`, of its exact width, hold.
    fn get(bytes: &[u8]) -> Self;
    /// The values that `bytes` hold.
    fn get_all(bytes: &[u8]) -> Vec<Self> {
        bytes.chunks_exact(size_of::<Self>()).map(Self::get).collect()
    }
}

impl Plain for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn get(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }
}

/// [`Plain`] and `From` for number types.
macro_rules! numbers {
    ($($number:ty => $variant:ident),*) => {$(
        impl Plain for $number {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn get(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("the scan cut the bytes to the type's width"))
            }
        }

        from_plain!($number => $variant);
    )*};
}

/// `From` for one plain type and lists of it.
macro_rules! from_plain {
    ($plain:ty => $variant:ident) => {
        impl From<$plain> for Value {
            fn from(v: $plain) -> Self {
                Self::$variant(v)
            }
        }

        impl From<Vec<$plain>> for Value {
            fn from(v: Vec<$plain>) -> Self {
                Self::Array(Array::$variant(v))
            }
        }
    };
}

numbers!(
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, u64 => U64, i64 => I64, f64 => F64
);
from_plain!(bool => Bool);

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Self::String(v.as_bytes().to_vec())
    }
}

impl From<String> for Value {
    fn from(v: String) -> Self {
        Self::String(v.into_bytes())
    }
}

impl From<Vec<&str>> for Value {
    fn from(v: Vec<&str>) -> Self {
        Self::Array(Array::String(v.into_iter().map(|s| s.as_bytes().to_vec()).collect()))
    }
}

impl From<Vec<String>> for Value {
    fn from(v: Vec<String>) -> Self {
        Self::Array(Array::String(v.into_iter().map(String::into_bytes).collect()))
    }
}

impl From<Array> for Value {
    fn from(v: Array) -> Self {
        Self::Array(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_specification() {
        let ids = [
            (ValueType::U8, 0),
            (ValueType::I8, 1),
            (ValueType::U16, 2),
            (ValueType::I16, 3),
            (ValueType::U32, 4),
            (ValueType::I32, 5),
            (ValueType::F32, 6),
            (ValueType::Bool, 7),
            (ValueType::String, 8),
            (ValueType::Array, 9),
            (ValueType::U64, 10),
            (ValueType::I64, 11),
            (ValueType::F64, 12),
        ];
        for (ty, id) in ids {
            assert_eq!((ty.id(), ValueType::from_id(id)), (id, Some(ty)));
        }
        assert_eq!(ValueType::from_id(13), None);
    }

    #[test]
    fn integers_of_every_width_are_exact() {
        assert_eq!(Value::U64(u64::MAX).as_integer(), Some(u64::MAX.into()));
        assert_eq!(Value::I64(i64::MIN).as_integer(), Some(i64::MIN.into()));
        assert_eq!(Value::F32(1.0).as_integer(), None);
        assert_eq!(Value::Bool(true).as_integer(), None);
    }

    #[test]
    fn bytes_follow_the_specification() {
        let mut out = Vec::new();
        Value::from(vec!["a", "bc"]).encode(&mut out);
        let mut want = vec![8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        want.extend([1, 0, 0, 0, 0, 0, 0, 0, b'a', 2, 0, 0, 0, 0, 0, 0, 0, b'b', b'c']);
        assert_eq!(out, want);
        out.clear();
        Value::I16(-2).encode(&mut out);
        assert_eq!(out, [0xfe, 0xff]);
    }
}
