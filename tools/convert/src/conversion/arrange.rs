//! Elements of a stored tensor in another order: what a checkpoint packs or splits otherwise than the file. [`Piece`] is the
//! type to read first.

use std::ops::Range;

/// Elements of a stored tensor as nested loops visit them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The first element.
    pub start: usize,
    /// Loops, outermost first: how many times, and how many elements further on each time.
    pub loops: Vec<(usize, usize)>,
    /// Elements side by side that the innermost loop takes.
    pub run: usize,
}

impl Piece {
    /// Elements `range`, in their order.
    pub fn of(range: Range<usize>) -> Self {
        Self { start: range.start, loops: Vec::new(), run: range.len() }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.loops.iter().map(|(n, _)| n).product::<usize>() * self.run
    }

    /// Where run number `i` begins in the stored tensor.
    fn stored(&self, i: usize) -> usize {
        let (mut at, mut i) = (self.start, i);
        for (n, step) in self.loops.iter().rev() {
            at += i % n * step;
            i /= n;
        }
        at
    }
}

/// The ranges of the stored tensor that elements `range` of `pieces`, one behind the other, consist of.
pub(super) fn stored_ranges(pieces: &[Piece], range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    pieces.iter().flat_map(move |piece| {
        let first = end;
        end += piece.elements();
        // What the range has of this piece, counted from the piece's first element.
        let (from, to) = (range.start.clamp(first, end) - first, range.end.clamp(first, end) - first);
        let runs = from / piece.run..to.div_ceil(piece.run).max(from / piece.run);
        runs.filter_map(move |i| {
            let (skipped, taken) = (from.saturating_sub(i * piece.run), (to - i * piece.run).min(piece.run));
            let at = piece.stored(i);
            (skipped < taken).then_some(at + skipped..at + taken)
        })
    })
}

/// What becomes of every element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It stays.
    Kept,
    /// `1 + x`: weights of norms that a checkpoint stores around 0.
    PlusOne,
    /// `-exp(x)`: decay rates that a checkpoint stores as logarithms.
    NegativeExp,
}

impl Change {
    /// Changes the elements.
    pub(super) fn apply(self, x: &mut [f32]) {
        match self {
            Self::Kept => {}
            Self::PlusOne => x.iter_mut().for_each(|x| *x += 1.0),
            Self::NegativeExp => x.iter_mut().for_each(|x| *x = -(f64::from(*x).exp() as f32)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements of a tensor that counts from 0.
    fn elements(pieces: &[Piece], range: Range<usize>) -> Vec<usize> {
        stored_ranges(pieces, range).flatten().collect()
    }

    #[test]
    fn any_range_is_a_part_of_the_whole() {
        let pieces = [
            // Every second pair of ten, the columns of a transposed 2x3, and a plain rest.
            Piece { start: 2, loops: vec![(5, 4)], run: 2 },
            Piece { start: 20, loops: vec![(3, 1), (2, 3)], run: 1 },
            Piece::of(26..31),
        ];
        let whole = [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 20, 23, 21, 24, 22, 25, 26, 27, 28, 29, 30];
        assert_eq!(pieces.iter().map(Piece::elements).sum::<usize>(), whole.len());
        for start in 0..=whole.len() {
            for end in start..=whole.len() {
                assert_eq!(elements(&pieces, start..end), whole[start..end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn the_exponential_is_rounded_once() {
        let mut x = [0.0, 1.0, -2.5];
        Change::NegativeExp.apply(&mut x);
        assert_eq!(x, [-1.0, -std::f32::consts::E, -0.082_085]);
        Change::PlusOne.apply(&mut x);
        assert_eq!(x[0], 0.0);
    }
}
