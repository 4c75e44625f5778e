//! How results are compared.

use engine::DType;
use half::f16;

/// Normalised mean squared error `sum (got - want)^2 / sum want^2` over the elements where `want` is not NaN; NaN if one
/// of `got` is. Where all of `want` is 0 the result is 0 or infinite.
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut error, mut size) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want).filter(|(_, w)| !w.is_nan()) {
        let (g, w) = (f64::from(*g), f64::from(*w));
        error += (g - w).powi(2);
        size += w * w;
    }
    if error == 0.0 { 0.0 } else { error / size }
}

/// Largest difference as a share of the largest of `want`, over the elements where that is not NaN; NaN if one of `got` is.
pub fn largest(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let pairs = || got.iter().zip(want).filter(|(_, w)| !w.is_nan()).map(|(g, w)| (f64::from(*g), f64::from(*w)));
    if pairs().any(|(g, _)| g.is_nan()) {
        return f64::NAN;
    }
    let error = pairs().map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
    if error == 0.0 { 0.0 } else { error / pairs().map(|(_, w)| w.abs()).fold(0.0, f64::max) }
}

/// An element of a state as a number.
pub fn state_value(dtype: DType, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        _ => panic!("states are F16 or F32, not {} bytes of {dtype}", bytes.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_skipped_and_nan_shows() {
        assert_eq!(nmse(&[1.0, f32::NAN, 2.0], &[1.0, f32::NAN, 2.0]), 0.0);
        assert_eq!(nmse(&[1.0, 7.0, 2.0], &[1.0, f32::NAN, 1.0]), 0.5);
        assert!(nmse(&[f32::NAN, 1.0], &[1.0, 1.0]).is_nan());
        assert_eq!(nmse(&[1e-30], &[0.0]), f64::INFINITY);
        assert_eq!(nmse(&[], &[]), 0.0);
        assert_eq!(largest(&[1.0, f32::NAN, 2.5], &[1.0, f32::NAN, 2.0]), 0.25);
        assert_eq!(largest(&[1.0, 7.0, -2.0], &[1.0, f32::NAN, -2.0]), 0.0);
        assert!(largest(&[f32::NAN, 1.0], &[1.0, 1.0]).is_nan());
        assert_eq!(largest(&[1e-30], &[0.0]), f64::INFINITY);
    }
}
