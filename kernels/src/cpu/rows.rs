//! Rows of plain numbers with vectors of any width: dot products, sums of scaled rows, conversions.
//!
//! The module of an instruction set says what a `Vector` of `WIDTH` lanes is and has its operations: `zero`, `splat`, `load`,
//! `store`, `load_f16`, `store_f16`, `fma`, `sum`, `sums`, for single halves `widen` and `narrow`, and `Plain` for the blocks of plain
//! formats. What is built from them, and is the same for all widths, is here and in `attention_tiles`.

/// Up to `N` elements and zeros.
#[inline]
pub(super) fn padded<T: Copy, const N: usize>(x: &[T], zero: T) -> [T; N] {
    let mut y = [zero; N];
    y[..x.len()].copy_from_slice(x);
    y
}

/// Defines the kernels of plain rows for a set of CPU features.
macro_rules! rows_for {
    ($features:literal) => {
        use crate::cpu::rows::padded;

        /// `sum a_i b_i`: element i in lane i % `WIDTH`.
        #[target_feature(enable = $features)]
        pub(super) fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
            let mut acc = zero();
            let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
            for (a, b) in a.iter().zip(b) {
                acc = fma(load(a), load(b), acc);
            }
            sum(fma(load(&padded(a_tail, 0.0)), load(&padded(b_tail, 0.0)), acc))
        }

        /// `sum a_i b_i` with `a` widened: element i in lane i % `WIDTH`.
        #[target_feature(enable = $features)]
        pub(super) fn dot_f16(a: &[half::f16], b: &[f32]) -> f32 {
            let mut acc = zero();
            let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
            for (a, b) in a.iter().zip(b) {
                acc = fma(load_f16(a), load(b), acc);
            }
            sum(fma(load_f16(&padded(a_tail, half::f16::ZERO)), load(&padded(b_tail, 0.0)), acc))
        }

        /// `y += s x` with `x` widened.
        #[target_feature(enable = $features)]
        pub(super) fn axpy_f16(y: &mut [f32], s: f32, x: &[half::f16]) {
            let factor = splat(s);
            let ((y, y_tail), (x, x_tail)) = (y.as_chunks_mut::<WIDTH>(), x.as_chunks::<WIDTH>());
            for (y, x) in y.iter_mut().zip(x) {
                store(y, fma(factor, load_f16(x), load(y)));
            }
            for (y, x) in y_tail.iter_mut().zip(x_tail) {
                *y = s.mul_add(widen(x.to_bits()), *y);
            }
        }

        /// Widens a row; exact.
        #[target_feature(enable = $features)]
        pub(super) fn f16_to_f32(x: &[half::f16], y: &mut [f32]) {
            let ((x, x_tail), (y, y_tail)) = (x.as_chunks::<WIDTH>(), y.as_chunks_mut::<WIDTH>());
            for (y, x) in y.iter_mut().zip(x) {
                store(y, load_f16(x));
            }
            for (y, x) in y_tail.iter_mut().zip(x_tail) {
                *y = widen(x.to_bits());
            }
        }

        /// Rounds a row to halves, ties to even.
        #[target_feature(enable = $features)]
        pub(super) fn f32_to_f16(x: &[f32], y: &mut [half::f16]) {
            let ((x, x_tail), (y, y_tail)) = (x.as_chunks::<WIDTH>(), y.as_chunks_mut::<WIDTH>());
            for (y, x) in y.iter_mut().zip(x) {
                store_f16(y, load(x));
            }
            for (y, x) in y_tail.iter_mut().zip(x_tail) {
                *y = half::f16::from_bits(narrow(*x));
            }
        }

        /// Numbers of a plain format.
        trait Plain: Listed {
            /// Widens as many as a vector has.
            ///
            /// # Safety
            ///
            /// The CPU has the features of this module.
            unsafe fn widen(x: &[Self; WIDTH]) -> Vector;
        }

        /// Dot products of plain rows: element i in lane i % `WIDTH`. Unless `ahead` is 0, rows lie behind each other, and memory
        /// is asked for what lies that many elements behind them, in one stream: short rows, each a stream of its own, are
        /// not foreseen.
        #[inline]
        #[target_feature(enable = $features)]
        fn tile<B: Plain, const R: usize, const M: usize>(
            mut w: [&[B]; R],
            mut x: [&[f32]; M],
            ahead: usize,
        ) -> [[f32; M]; R] {
            /// Bytes that memory moves at once.
            const LINE: usize = 64;
            let k = x[0].len();
            // One length for all rows lets the compiler drop the checks in the loop. (Not with `map`, which is no part of this
            // function when features are chosen.)
            w.iter_mut().for_each(|w| *w = &w[..k]);
            x.iter_mut().for_each(|x| *x = &x[..k]);
            let mut acc = [[zero(); M]; R];
            // A macro, since what is in a closure may be compiled without the features.
            macro_rules! vector {
                ($c:expr) => {
                    let mut wide = [zero(); R];
                    for (wide, w) in wide.iter_mut().zip(w) {
                        // SAFETY: this function has the features of the module.
                        *wide = unsafe { B::widen(&w.as_chunks().0[$c]) };
                    }
                    for (i, x) in x.iter().enumerate() {
                        let x = load(&x.as_chunks().0[$c]);
                        for (acc, wide) in acc.iter_mut().zip(wide) {
                            acc[i] = fma(wide, x, acc[i]);
                        }
                    }
                };
            }
            let in_line = const { LINE / (WIDTH * size_of::<B>()) };
            let n_lines = k / WIDTH / in_line;
            for line in 0..n_lines {
                if ahead != 0 {
                    for of_row in 0..R {
                        let at = ahead + (line * R + of_row) * in_line * WIDTH;
                        // Into the second cache: the first one has no room for rows that are not yet used.
                        _mm_prefetch::<_MM_HINT_T1>(w[0].as_ptr().wrapping_add(at).cast());
                    }
                }
                for v in 0..in_line {
                    vector!(line * in_line + v);
                }
            }
            for c in n_lines * in_line..k / WIDTH {
                vector!(c);
            }
            let done = k / WIDTH * WIDTH;
            if done < k {
                for (acc, w) in acc.iter_mut().zip(w) {
                    // SAFETY: this function has the features of the module.
                    let last = unsafe { B::widen(&padded(&w[done..], B::zeroed())) };
                    for (acc, x) in acc.iter_mut().zip(x) {
                        *acc = fma(last, load(&padded(&x[done..], 0.0)), *acc);
                    }
                }
            }
            // Four rows at a time, the last one again where there are fewer.
            let mut results = [[0.0; M]; R];
            for first in (0..R).step_by(4) {
                let row = |r: usize| &acc[(first + r).min(R - 1)];
                for i in 0..M {
                    let four = sums([row(0)[i], row(1)[i], row(2)[i], row(3)[i]]);
                    for (y, sum) in results[first..].iter_mut().zip(four) {
                        y[i] = sum;
                    }
                }
            }
            results
        }
    };
}

pub(super) use rows_for;
