//! Random numbers by position: any range of any tensor, in any order and on any machine, is the same bits.

/// The step of SplitMix64. Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators, figure 16.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// Parts of a random word that are added up: enough for the shape of a bell.
const N_PARTS: u32 = 4;
/// Mean of the sum of [`N_PARTS`] numbers of 16 bits.
const CENTRE: i32 = 2 * 0xffff;
/// Standard deviation of that sum: `sqrt(4 * (2^16 ^ 2 - 1) / 12)`.
const SPREAD: f32 = 37_837.227;

/// The numbers of one tensor: about normal, at most 3.47 standard deviations from the mean, rounded to BF16 as published
/// weights are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Noise {
    key: u64,
    mean: f32,
    scale: f32,
}

impl Noise {
    /// The numbers of the tensor `name` of the model `seed`.
    pub fn new(seed: u64, name: &str, mean: f32, deviation: f32) -> Self {
        Self { key: word(seed, hash(name)), mean, scale: deviation / SPREAD }
    }

    /// Elements from `start` on.
    pub fn fill(&self, start: u64, x: &mut [f32]) {
        for (i, x) in (start..).zip(x) {
            let bits = word(self.key, i);
            let sum: u64 = (0..N_PARTS).map(|part| bits >> (16 * part) & 0xffff).sum();
            // Every step is exact or rounded once, so that all machines agree: no function of a library, nothing fused.
            let deviate = (sum as i32 - CENTRE) as f32;
            *x = to_bf16(self.mean + deviate * self.scale);
        }
    }
}

/// Word `i` of SplitMix64 that begins with `seed`.
fn word(seed: u64, i: u64) -> u64 {
    let z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(GAMMA));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a. Source: Fowler, Noll, Vo.
fn hash(text: &str) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x100_0000_01b3;
    text.bytes().fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// The nearest BF16, of two the even one. `x`: finite.
fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_splitmix64() {
        // The values that Rosetta Code lists for seed 1234567.
        let want = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!([0, 1, 2, 3, 4].map(|i| word(1_234_567, i)), want);
        // The authors' list of vectors.
        assert_eq!(
            [hash(""), hash("a"), hash("foobar")],
            [0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c, 0x8594_4171_f739_67e8]
        );
    }

    #[test]
    fn rounding_is_that_of_half() {
        for x in [0.0f32, -0.0, 1.0, 0.02, -0.019_97, 1.003_906_3, 1.011_718_8, 3.3e-41, -65_000.1] {
            assert_eq!(to_bf16(x).to_bits(), half::bf16::from_f32(x).to_f32().to_bits(), "{x}");
        }
    }

    #[test]
    fn numbers_have_mean_deviation_and_shape() {
        const N: usize = 1 << 20;
        let mut x = vec![0.0; N];
        Noise::new(1, "a", 0.5, 0.25).fill(0, &mut x);
        let moment = |power: i32| x.iter().map(|&x| (f64::from(x) - 0.5).powi(power)).sum::<f64>() / N as f64;
        // Six standard errors of a million numbers, and of rounding to 8 bits nothing that shows.
        let error = 6.0 / (N as f64).sqrt();
        assert!(moment(1).abs() < 0.25 * error, "{}", moment(1));
        assert!((moment(2).sqrt() / 0.25 - 1.0).abs() < error, "{}", moment(2));
        assert!((moment(3) / 0.25f64.powi(3)).abs() < 4.0 * error, "{}", moment(3));
        // Four uniform numbers: 3 less 6 / (5 * 4).
        assert!((moment(4) / 0.25f64.powi(4) - 2.7).abs() < 10.0 * error, "{}", moment(4));
        let neighbours: f64 = x.windows(2).map(|x| f64::from(x[0] - 0.5) * f64::from(x[1] - 0.5)).sum();
        assert!((neighbours / N as f64 / 0.0625).abs() < error, "{neighbours}");
    }

    #[test]
    fn seeds_and_names_have_numbers_of_their_own_and_cuts_do_not_matter() {
        let all = |noise: Noise| {
            let mut x = vec![0.0; 1000];
            noise.fill(0, &mut x);
            x
        };
        let whole = all(Noise::new(7, "blk.0", 0.0, 1.0));
        let mut pieces = vec![0.0; 1000];
        let noise = Noise::new(7, "blk.0", 0.0, 1.0);
        for (start, end) in [(333, 1000), (0, 1), (1, 333)] {
            noise.fill(start as u64, &mut pieces[start..end]);
        }
        assert_eq!(whole, pieces);
        for other in [Noise::new(8, "blk.0", 0.0, 1.0), Noise::new(7, "blk.1", 0.0, 1.0)] {
            let equal = all(other).iter().zip(&whole).filter(|(a, b)| a == b).count();
            assert!(equal < 20, "{equal}");
        }
    }
}
