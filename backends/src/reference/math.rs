//! Scalar functions in f64 that the standard library lacks, and the activation functions.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use engine::op::Unary;

/// Below it the series for erf converges fast; above it the continued fraction for erfc does.
const SERIES_LIMIT: f64 = 2.5;
/// Terms of the continued fraction: enough for 1e-16 of the result from [`SERIES_LIMIT`] on.
const FRACTION_TERMS: u32 = 120;

/// `2 / sqrt(pi)` times the integral of `exp(-t^2)` from 0 to `x`; error below 1e-15.
///
/// Source: Abramowitz and Stegun, 7.1.6: `2 / sqrt(pi) exp(-x^2) sum 2^n x^(2 n + 1) / (1 3 .. (2 n + 1))`.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() >= SERIES_LIMIT {
        return x.signum() * (1.0 - erfc_tail(x.abs()));
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * f64::EPSILON / 8.0 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}

/// `1 - erf(x)`, without cancellation for large `x`.
pub(super) fn erfc(x: f64) -> f64 {
    if x >= SERIES_LIMIT { erfc_tail(x) } else { 1.0 - erf(x) }
}

/// Source: NIST Digital Library of Mathematical Functions, 7.9.1.
fn erfc_tail(x: f64) -> f64 {
    let fraction = (1..=FRACTION_TERMS).rev().fold(x, |f, n| x + f64::from(n) / 2.0 / f);
    (-x * x).exp() / (PI.sqrt() * fraction)
}

/// The pointwise function.
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn activation(f: Unary, x: f64) -> f64 {
    match f {
        Unary::Silu => x / (1.0 + (-x).exp()),
        Unary::Gelu => x / 2.0 * erfc(-x * FRAC_1_SQRT_2),
        Unary::GeluTanh => x / 2.0 * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        // Not `max`, which would lose a NaN.
        Unary::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Abramowitz and Stegun, table 7.1, and the NIST library's tables, to the digits of an f64.
    #[test]
    fn erf_has_the_published_values() {
        for (x, want) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (1.5, 0.966_105_146_475_310_8),
            (2.0, 0.995_322_265_018_952_7),
            (2.4, 0.999_311_486_103_354_9),
            (2.6, 0.999_763_965_583_470_7),
            (3.0, 0.999_977_909_503_001_4),
            (6.0, 1.0),
        ] {
            assert!((erf(x) - want).abs() < 1e-15, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + want).abs() < 1e-15, "erf(-{x}) = {}", erf(-x));
        }
    }

    #[test]
    fn erfc_keeps_its_digits_far_out() {
        for (x, want) in [
            (2.5, 4.069_520_174_449_589e-4),
            (3.0, 2.209_049_699_858_544e-5),
            (5.0, 1.537_459_794_428_035e-12),
            (10.0, 2.088_487_583_762_545e-45),
        ] {
            assert!((erfc(x) / want - 1.0).abs() < 1e-13, "erfc({x}) = {}", erfc(x));
        }
    }

    #[test]
    fn series_and_fraction_meet() {
        let (below, above) = (erfc(SERIES_LIMIT - 1e-12), erfc(SERIES_LIMIT));
        // The derivative there is -2.2e-3.
        assert!((below - above).abs() < 1e-14, "{below} {above}");
    }

    #[test]
    fn nan_passes_through() {
        for f in [Unary::Silu, Unary::Gelu, Unary::GeluTanh, Unary::Relu, Unary::Sigmoid] {
            assert!(activation(f, f64::NAN).is_nan(), "{f:?}");
        }
    }
}
