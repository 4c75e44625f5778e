//! The sinusoids that Qwen3-ASR's encoder adds to its frames. llama.cpp's projector files store them as a tensor.

/// Positions in the file. Source: llama.cpp, `conversion/qwenvl.py`, `Qwen25AudioModel.generate_extra_tensors`.
pub(super) const N_POSITIONS: usize = 1500;
/// Longest wavelength over 2 pi. Source: transformers, `SinusoidsPositionEmbedding`.
const MAX_TIMESCALE: f64 = 10_000.0;

/// The frequencies of `width` columns: `exp(-i * ln(10000) / (width / 2 - 1))`, `i` below half the width.
///
/// `width`: even, at least 4. Products and results are rounded to f32 where the official code does so, and each function
/// is the nearest f32 to the exact one. PyTorch's are those of MKL, which has other last bits on processors with SSE4.2,
/// AVX2 and AVX-512: llama.cpp's converter writes a table of its own on each of them.
fn frequencies(width: usize) -> Vec<f32> {
    let half = width / 2;
    let step = -(MAX_TIMESCALE.ln() / (half - 1) as f64) as f32;
    (0..half).map(|i| f64::from(step * i as f32).exp() as f32).collect()
}

/// The table `[N_POSITIONS, width]`: row `p` is `[sin(p * frequency)..., cos(p * frequency)...]`.
pub(super) fn table(width: usize) -> Vec<f32> {
    let frequencies = frequencies(width);
    let angle = |position: usize, f: &f32| f64::from(position as f32 * f);
    let row = |p| {
        let sines = frequencies.iter().map(move |f| angle(p, f).sin() as f32);
        sines.chain(frequencies.iter().map(move |f| angle(p, f).cos() as f32))
    };
    (0..N_POSITIONS).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoids_have_their_period() {
        let frequencies = frequencies(192);
        assert_eq!(frequencies[0], 1.0);
        // The exponent, -9.2, is rounded to f32: half a unit in its last place is 4.8e-7.
        assert!((frequencies[95] / 1e-4 - 1.0).abs() < 6e-7, "{}", frequencies[95]);
        let table = table(192);
        assert!(table[..96].iter().all(|&s| s == 0.0) && table[96..192].iter().all(|&c| c == 1.0));
        assert_eq!((table[192], table[192 + 96]), (1f64.sin() as f32, 1f64.cos() as f32));
        assert_eq!(table.len(), N_POSITIONS * 192);
    }
}
