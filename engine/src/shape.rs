//! Extents of tensors. [`Shape`] lists them outermost first, as PyTorch does; GGUF's reversed order ends in `gguf`.

use smallvec::SmallVec;

/// Highest rank of a tensor.
pub const MAX_RANK: usize = 4;

/// Up to four extents, outermost first; the last one is contiguous in a freshly written tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [u32; MAX_RANK],
    rank: u8,
}

impl Shape {
    /// The shape with these extents, or `None` for more than [`MAX_RANK`] of them, a zero extent, or more than
    /// `u32::MAX` elements.
    pub fn new(dims: &[usize]) -> Option<Self> {
        if dims.len() > MAX_RANK {
            return None;
        }
        let mut out = [1u32; MAX_RANK];
        let mut elements = 1u32;
        for (o, &d) in out.iter_mut().zip(dims) {
            *o = u32::try_from(d).ok().filter(|&d| d > 0)?;
            elements = elements.checked_mul(*o)?;
        }
        Some(Self { dims: out, rank: u8::try_from(dims.len()).ok()? })
    }

    /// `n` of these behind each other, which together may have more than `u32::MAX` elements: strides count those of one.
    /// `None` for 0 and where the rank is used up.
    pub(crate) fn stacked(self, n: usize) -> Option<Self> {
        let mut dims = [1; MAX_RANK];
        dims[0] = u32::try_from(n).ok().filter(|&n| n > 0)?;
        dims.get_mut(1..=self.rank())?.copy_from_slice(self.dims());
        Some(Self { dims, rank: self.rank + 1 })
    }

    /// Extents, outermost first.
    pub fn dims(&self) -> &[u32] {
        &self.dims[..usize::from(self.rank)]
    }

    /// Extents to change and to make a shape of again, with room for one more.
    pub fn extents(&self) -> SmallVec<[usize; MAX_RANK + 1]> {
        let mut extents = SmallVec::new();
        for &d in self.dims() {
            extents.push(d as usize);
        }
        extents
    }

    /// Number of extents.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Extent `i`, outermost first. Panics past the rank.
    pub fn dim(&self, i: usize) -> usize {
        self.dims()[i] as usize
    }

    /// The innermost extent; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().map_or(1, |&d| d as usize)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims().iter().map(|&d| d as usize).product()
    }

    /// Product of all extents but the last.
    pub fn rows(&self) -> usize {
        self.dims().split_last().map_or(1, |(_, outer)| outer.iter().map(|&d| d as usize).product())
    }

    /// The same shape with another innermost extent; `None` for a scalar and where [`Shape::new`] gives it.
    pub(crate) fn with_last(mut self, n: usize) -> Option<Self> {
        let last = self.rank().checked_sub(1)?;
        self.dims[last] = u32::try_from(n).ok().filter(|&n| n > 0)?;
        self.dims().iter().try_fold(1u32, |elements, &d| elements.checked_mul(d))?;
        Some(self)
    }

    /// Element strides of a contiguous tensor of this shape; unused places are 0.
    pub fn strides(&self) -> [u32; MAX_RANK] {
        let mut strides = [0; MAX_RANK];
        let mut step = 1u32;
        for i in (0..self.rank()).rev() {
            strides[i] = step;
            // Past the outermost extent it may not fit, and is not needed.
            step = step.wrapping_mul(self.dims[i]);
        }
        strides
    }
}

/// For shapes that code writes down. Panics where [`Shape::new`] gives `None`.
impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::new(&dims).unwrap_or_else(|| panic!("{dims:?} is not a shape"))
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.dims()).finish()
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_count_elements_from_the_inside() {
        let s = Shape::from([2, 3, 5]);
        assert_eq!(s.strides(), [15, 5, 1, 0]);
        assert_eq!((s.elements(), s.rows(), s.last()), (30, 6, 5));
    }

    #[test]
    fn a_stack_may_be_larger_than_a_shape() {
        let one = Shape::from([1 << 10, 1 << 8, 1 << 12]);
        let stack = one.stacked(9).unwrap();
        assert_eq!(stack.dims(), [9, 1 << 10, 1 << 8, 1 << 12]);
        assert_eq!(stack.strides(), [1 << 30, 1 << 20, 1 << 12, 1]);
        assert_eq!(stack.elements(), 9 << 30);
        assert!(one.stacked(0).is_none() && stack.stacked(1).is_none());
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert!(Shape::new(&[1, 0]).is_none());
        assert!(Shape::new(&[1 << 20, 1 << 20]).is_none());
        assert!(Shape::new(&[1; 5]).is_none());
    }
}
