//! Groups of elements side by side: lane l of element e belongs to group l. [`Lanes`] is the type to read first.
//!
//! A sum over a group has one order, so that a group alone cannot be summed by vectors. Several groups can: each lane
//! computes what plain code computes for its group.

use std::array::from_fn;
use std::ops::{Add, Div, Mul, Neg, Sub};

use super::round;

/// Groups that are searched together.
pub(super) const WIDTH: usize = 16;

/// One value of each of `W` groups.
#[derive(Clone, Copy)]
pub(super) struct Lanes<const W: usize = WIDTH>(pub [f32; W]);

/// A condition for each of `W` groups.
#[derive(Clone, Copy)]
pub(super) struct Mask<const W: usize>([bool; W]);

macro_rules! operator {
    ($trait:ident, $name:ident, $op:tt) => {
        impl<const W: usize> $trait for Lanes<W> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                Self(from_fn(|l| self.0[l] $op other.0[l]))
            }
        }
    };
}

operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);
operator!(Div, div, /);

impl<const W: usize> Neg for Lanes<W> {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        Self(self.0.map(|x| -x))
    }
}

impl<const W: usize> Lanes<W> {
    /// +0.0 everywhere, with which every sum begins.
    pub(crate) const ZERO: Self = Self([0.0; W]);

    #[inline(always)]
    pub(crate) fn splat(x: f32) -> Self {
        Self([x; W])
    }

    #[inline(always)]
    pub(crate) fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    pub(crate) fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    pub(crate) fn gt(self, other: Self) -> Mask<W> {
        Mask(from_fn(|l| self.0[l] > other.0[l]))
    }

    #[inline(always)]
    pub(crate) fn ge(self, other: Self) -> Mask<W> {
        Mask(from_fn(|l| self.0[l] >= other.0[l]))
    }

    #[inline(always)]
    pub(crate) fn eq(self, other: Self) -> Mask<W> {
        Mask(from_fn(|l| self.0[l] == other.0[l]))
    }

    /// The nearest integers, ties to even, between `low` and `high`.
    #[inline(always)]
    pub(crate) fn round_clamped(self, low: i32, high: i32) -> Self {
        Self(self.0.map(|x| round(x).max(low).min(high) as f32))
    }
}

impl<const W: usize> Mask<W> {
    #[inline(always)]
    pub(crate) fn select(self, yes: Lanes<W>, no: Lanes<W>) -> Lanes<W> {
        Lanes(from_fn(|l| if self.0[l] { yes.0[l] } else { no.0[l] }))
    }

    #[inline(always)]
    pub(crate) fn and(self, other: Self) -> Self {
        Self(from_fn(|l| self.0[l] & other.0[l]))
    }

    #[inline(always)]
    pub(crate) fn not(self) -> Self {
        Self(self.0.map(|x| !x))
    }

    #[inline(always)]
    pub(crate) fn any(self) -> bool {
        self.0.iter().fold(false, |any, x| any | x)
    }
}

/// Up to [`WIDTH`] groups of `G` elements by lane; lanes without a group are zeros.
#[inline(always)]
pub(super) fn by_lane<const G: usize>(groups: &[[f32; G]]) -> [Lanes; G] {
    let mut lanes = [Lanes::ZERO; G];
    for (l, group) in groups.iter().enumerate() {
        for (lanes, x) in lanes.iter_mut().zip(group) {
            lanes.0[l] = *x;
        }
    }
    lanes
}

/// The levels of group `l`.
#[inline(always)]
pub(super) fn group<const G: usize>(levels: &[Lanes; G], l: usize) -> [u8; G] {
    from_fn(|e| levels[e].0[l] as u8)
}

/// `sum x x` of each group.
#[inline(always)]
pub(super) fn sum_of_squares<const G: usize>(x: &[Lanes; G]) -> Lanes {
    x.iter().fold(Lanes::ZERO, |sum, x| sum + *x * *x)
}
