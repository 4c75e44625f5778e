//! Bytes of a file that was made in memory. [`AlignedBytes`] begin where tensors may begin.

use std::ops::Deref;

use super::TENSOR_ALIGNMENT;

/// The unit that the bytes are allocated in.
#[repr(C, align(32))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Unit([u8; TENSOR_ALIGNMENT]);

const _: () = assert!(align_of::<Unit>() == TENSOR_ALIGNMENT);

/// A growing buffer whose first byte is aligned to [`TENSOR_ALIGNMENT`].
#[derive(Default)]
pub(super) struct AlignedBytes {
    units: Vec<Unit>,
    len: usize,
}

impl AlignedBytes {
    /// Makes room for `n` more bytes in one allocation; `false` where memory does not suffice.
    pub(super) fn reserve(&mut self, n: usize) -> bool {
        let units = self.len.checked_add(n).map(|n| n.div_ceil(TENSOR_ALIGNMENT));
        units.is_some_and(|n| self.units.try_reserve_exact(n - self.units.len()).is_ok())
    }

    /// Appends `bytes`.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.units.resize(end.div_ceil(TENSOR_ALIGNMENT), Unit([0; TENSOR_ALIGNMENT]));
        bytemuck::cast_slice_mut(&mut self.units)[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.units)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_follow_each_other() {
        let mut bytes = AlignedBytes::default();
        let want: Vec<u8> = (0..200).collect();
        assert!(bytes.reserve(100));
        for cut in [0..1, 1..31, 31..64, 64..64, 64..200] {
            bytes.extend(&want[cut]);
        }
        assert_eq!(*bytes, want[..]);
        assert!(bytes.as_ptr().addr().is_multiple_of(TENSOR_ALIGNMENT));
        assert!(!bytes.reserve(usize::MAX));
    }
}
