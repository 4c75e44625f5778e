//! Polynomial approximations that all instruction sets share, each with its largest error.
//!
//! The functions are branchless and always inlined: a loop over them inside a function with vector instructions becomes
//! vector code. `FMA` says whether that function has fused multiply-add; without it a fused operation would be a
//! library call. Results with and without it differ in the last bits.

use std::f32::consts::LOG2_E;

/// `a * b + c`, rounded once if `FMA`.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Coefficients of a polynomial from the highest power down, by Horner's rule.
#[inline(always)]
fn horner<const FMA: bool>(x: f32, coefficients: &[f32]) -> f32 {
    let mut y = 0.0;
    for c in coefficients {
        y = fma::<FMA>(y, x, *c);
    }
    y
}

/// `e^x` within 2 ulp for normal results, 1.5e-45 absolute below; infinity from 88.73 on, NaN for NaN.
///
/// `x = n ln 2 + r` with `ln 2` in two parts (Cody and Waite), then a minimax polynomial of degree 6 in `r`.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding it puts the nearest integer into the low bits.
    const MAGIC: f32 = 12582912.0;
    // The upper part has enough trailing zeros that n * LN2_HIGH is exact for every n in use.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.1219444e-4;
    let x = x.clamp(-104.0, 89.0);
    let shifted = fma::<FMA>(x, LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let p = horner::<FMA>(r, &[0.001_392_617_6, 0.008_363_173, 0.041_666_556, 0.166_665_77, 0.5]);
    let y = fma::<FMA>(r * r, p, r) + 1.0;
    // Two factors, since 2^n alone may be subnormal or infinite where the result is not.
    let n = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `2^n` for n in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// `1 / (1 + e^-x)` within 4 ulp; 0 from -88.7 down.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// `ln(1 + e^x)` within 6 ulp for normal results; `x` from 17 on. Where others have a threshold of 20 the difference is 2e-9.
///
/// `max(x, 0) + ln(1 + u)`, `u = e^-|x|`, and `ln(1 + u) = 2 atanh(s)`, `s = u / (2 + u)`, by the series of atanh, whose
/// rest is below 2e-9 relative as `s` is at most 1 / 3.
#[inline(always)]
pub fn softplus<const FMA: bool>(x: f32) -> f32 {
    let u = exp::<FMA>(-x.abs());
    let s = u / (2.0 + u);
    let series = [1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0];
    x.max(0.0) + 2.0 * s * horner::<FMA>(s * s, &series)
}

/// `x * sigmoid(x)` within 5 ulp; 0 from -88.7 down, where it is 3e-37 in size.
#[inline(always)]
pub fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

/// The exact GELU, `x * Phi(x)` with the normal distribution's `Phi`, not its tanh form; error below 2e-7 absolute.
///
/// `Phi(-a) = e^(-a^2 / 2) t P(t)` with `t = 1 / (1 + 0.35 a)`; P is fitted to 4e-8 relative on a in 0..=14.
#[inline(always)]
pub fn gelu<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / fma::<FMA>(a, 0.35, 1.0);
    let p = horner::<FMA>(
        t,
        &[
            -0.029_679_522,
            0.146_545_83,
            -0.260_961_23,
            0.165_050_99,
            -0.027_046_608,
            0.107_114_59,
            0.119_444_92,
            0.139_912_3,
            0.139_618_71,
        ],
    );
    let tail = exp::<FMA>(-0.5 * a * a) * t * p;
    // Phi(x) is 1 - tail on the right; written so that nothing cancels on the left.
    if x < 0.0 { x * tail } else { x - x * tail }
}

/// The tanh form of GELU, `x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`; error below 5e-7 absolute.
#[inline(always)]
pub fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    // 1 + tanh(u) = 2 sigmoid(2u).
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
    let u = TWO_SQRT_2_OVER_PI * x * fma::<FMA>(0.044715, x * x, 1.0);
    x / (1.0 + exp::<FMA>(-u))
}
