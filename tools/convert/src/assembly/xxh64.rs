//! XXH64 of bytes that come in pieces. [`Xxh64`] tells files and tensors apart; it is no protection against forgery.

use std::hash::Hasher;

use twox_hash::XxHash64;

/// The hash with seed 0 of what was added so far.
#[derive(Clone)]
pub struct Xxh64(XxHash64);

impl Default for Xxh64 {
    fn default() -> Self {
        Self(XxHash64::with_seed(0))
    }
}

impl Xxh64 {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> u64 {
        XxHash64::oneshot(0, bytes)
    }

    /// Adds bytes; the cut does not matter.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Adds a number, so that it cannot run into its neighbours.
    pub(crate) fn add_number(&mut self, n: u64) {
        self.add(&n.to_le_bytes());
    }

    /// Adds bytes behind their number.
    pub(crate) fn add_text(&mut self, text: &[u8]) {
        self.add_number(text.len() as u64);
        self.add(text);
    }

    /// The hash.
    pub fn value(&self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests by the xxHash package of Python (4.1.0, xxHash 0.8.4).
    #[test]
    fn digests_are_those_of_the_reference() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 31 % 251) as u8).collect();
        let want: [(usize, u64); 8] = [
            (0, 0xef46_db37_51d8_e999),
            (1, 0xe934_a84a_db05_2768),
            (7, 0xf952_f190_1a5a_fc9b),
            (31, 0x5836_f086_07db_da19),
            (32, 0xb3f0_ec9d_8d21_6dea),
            (33, 0xc480_db42_8c35_ab3e),
            (63, 0x9522_a419_d608_28f2),
            (1000, 0xd1be_e8e4_f060_3bbf),
        ];
        for (n, want) in want {
            assert_eq!(Xxh64::of(&bytes[..n]), want, "{n} bytes");
        }
        assert_eq!(Xxh64::of(b"abc"), 0x44bc_2cf5_ad77_0999);
    }

    #[test]
    fn the_cut_does_not_matter() {
        let bytes: Vec<u8> = (0..300u32).map(|i| i as u8).collect();
        for cut in 0..bytes.len() {
            let mut hash = Xxh64::default();
            hash.add(&bytes[..cut]);
            hash.add(&bytes[cut..]);
            assert_eq!(hash.value(), Xxh64::of(&bytes), "{cut}");
        }
    }
}
