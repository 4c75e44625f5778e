//! Batch norms of a trained encoder: statistics that no longer change are a multiplication and an addition.
//!
//! Source: llama.cpp, `conversion/gemma.py`, `ConformerAudioModel.modify_tensors`.

/// The tensors of a batch norm, in the order of [`fold`].
pub(super) const TENSORS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];
/// Added to the variance: PyTorch's default, which no configuration names.
const EPS: f32 = 1e-5;

/// A factor or a summand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchNormPart {
    /// `weight / sqrt(running_var + eps)`.
    Scale,
    /// `bias - running_mean * scale`.
    Shift,
}

/// `scale = weight / sqrt(running_var + eps)`, or `bias - running_mean * scale`; every operation is rounded to f32, as
/// in llama.cpp's converter. `tensors`: [`TENSORS`], of equal lengths.
pub(super) fn fold(tensors: &[Vec<f32>; 4], part: BatchNormPart) -> Vec<f32> {
    let [weight, bias, mean, var] = tensors;
    let scale = weight.iter().zip(var).map(|(weight, var)| weight / (var + EPS).sqrt());
    match part {
        BatchNormPart::Scale => scale.collect(),
        BatchNormPart::Shift => scale.zip(bias).zip(mean).map(|((scale, bias), mean)| bias - mean * scale).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fold_is_the_norm() {
        let tensors = [vec![1.5, -0.25], vec![0.125, 2.0], vec![3.0, -1.0], vec![4.0, 0.01]];
        let (scale, shift) = (fold(&tensors, BatchNormPart::Scale), fold(&tensors, BatchNormPart::Shift));
        for (i, x) in [(0, 0.7f64), (1, -12.0)] {
            let [weight, bias, mean, var] = tensors.each_ref().map(|t| f64::from(t[i]));
            let want = (x - mean) / (var + 1e-5).sqrt() * weight + bias;
            let got = x * f64::from(scale[i]) + f64::from(shift[i]);
            // Three roundings to f32 of numbers up to 30.
            assert!((got - want).abs() < 1e-5, "{got} for {want}");
        }
    }
}
