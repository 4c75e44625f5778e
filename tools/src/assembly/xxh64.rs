//! XXH64 of bytes that come in pieces. [`Xxh64`] tells files and tensors apart; it is no protection against forgery.

const PRIMES: [u64; 5] =
    [0x9E37_79B1_85EB_CA87, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9, 0x85EB_CA77_C2B2_AE63, 0x27D4_EB2F_1656_67C5];
/// Bytes that the lanes take together.
const STRIPE: usize = 32;

/// The hash with seed 0 of what was added so far.
///
/// Source: "xxHash fast digest algorithm", version 0.1.1, section "XXH64".
#[derive(Clone)]
pub struct Xxh64 {
    lanes: [u64; 4],
    /// What does not fill a stripe yet.
    rest: Vec<u8>,
    n_bytes: u64,
}

impl Default for Xxh64 {
    fn default() -> Self {
        let [p1, p2, ..] = PRIMES;
        let lanes = [p1.wrapping_add(p2), p2, 0, 0u64.wrapping_sub(p1)];
        Self { lanes, rest: Vec::with_capacity(STRIPE), n_bytes: 0 }
    }
}

impl Xxh64 {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::default();
        hash.add(bytes);
        hash.value()
    }

    /// Adds bytes; the cut does not matter.
    pub fn add(&mut self, mut bytes: &[u8]) {
        self.n_bytes = self.n_bytes.wrapping_add(bytes.len() as u64);
        if !self.rest.is_empty() {
            let (head, tail) = bytes.split_at(bytes.len().min(STRIPE - self.rest.len()));
            self.rest.extend(head);
            bytes = tail;
            if self.rest.len() < STRIPE {
                return;
            }
            let stripe = std::mem::take(&mut self.rest);
            self.stripes(&stripe);
        }
        let whole = bytes.len() - bytes.len() % STRIPE;
        self.stripes(&bytes[..whole]);
        self.rest.extend(&bytes[whole..]);
    }

    /// Adds a number, so that it cannot run into its neighbours.
    pub fn add_number(&mut self, n: u64) {
        self.add(&n.to_le_bytes());
    }

    /// Adds bytes behind their number.
    pub fn add_text(&mut self, text: &[u8]) {
        self.add_number(text.len() as u64);
        self.add(text);
    }

    fn stripes(&mut self, bytes: &[u8]) {
        let [mut a, mut b, mut c, mut d] = self.lanes;
        for stripe in bytes.as_chunks::<STRIPE>().0 {
            let [x, y, z, w] = stripe.as_chunks().0 else { unreachable!("a stripe is four words") };
            a = round(a, u64::from_le_bytes(*x));
            b = round(b, u64::from_le_bytes(*y));
            c = round(c, u64::from_le_bytes(*z));
            d = round(d, u64::from_le_bytes(*w));
        }
        self.lanes = [a, b, c, d];
    }

    /// The hash.
    pub fn value(&self) -> u64 {
        let [p1, p2, p3, p4, p5] = PRIMES;
        let mut hash = p5;
        if self.n_bytes >= STRIPE as u64 {
            let [a, b, c, d] = self.lanes;
            hash = a.rotate_left(1);
            hash = hash.wrapping_add(b.rotate_left(7)).wrapping_add(c.rotate_left(12)).wrapping_add(d.rotate_left(18));
            for lane in self.lanes {
                hash = (hash ^ round(0, lane)).wrapping_mul(p1).wrapping_add(p4);
            }
        }
        hash = hash.wrapping_add(self.n_bytes);
        let (words, rest) = self.rest.as_chunks::<8>();
        for word in words {
            hash ^= round(0, u64::from_le_bytes(*word));
            hash = hash.rotate_left(27).wrapping_mul(p1).wrapping_add(p4);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for half in halves {
            hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(p1);
            hash = hash.rotate_left(23).wrapping_mul(p2).wrapping_add(p3);
        }
        for byte in rest {
            hash ^= u64::from(*byte).wrapping_mul(p5);
            hash = hash.rotate_left(11).wrapping_mul(p1);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(p2);
        hash = (hash ^ (hash >> 29)).wrapping_mul(p3);
        hash ^ (hash >> 32)
    }
}

const fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
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
