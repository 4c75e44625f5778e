//! What an AAC track's AudioSpecificConfig says about channels and spectral band replication.

/// Audio object types of ISO 14496-3, table 1.17.
const SBR: u32 = 5;
const PS: u32 = 29;
const ESCAPE: u32 = 31;

/// Object types whose configuration is a plain `GASpecificConfig`: AAC Main, LC, SSR, LTP.
const GENERAL: std::ops::RangeInclusive<u32> = 1..=4;

/// Marks a backward compatible extension after the configuration.
const SYNC_EXTENSION: u32 = 0x2b7;

/// Name of the HE-AAC variant that an AudioSpecificConfig signals, in either of its two explicit ways.
///
/// The decoder does not notice the second one and would give the lower half of the band. Source: ISO 14496-3, 1.6.2.1.
pub(super) fn high_efficiency(config: &[u8]) -> Option<&'static str> {
    let mut bits = Bits { bytes: config, at: 0 };
    let object_type = bits.object_type()?;
    if object_type == SBR {
        return Some("he-aac");
    }
    if object_type == PS {
        return Some("he-aac v2");
    }
    bits.sampling_frequency()?;
    let channels = bits.take(4)?;
    if !GENERAL.contains(&object_type) || channels == 0 {
        return None;
    }
    let _frame_length = bits.take(1)?;
    if bits.take(1)? == 1 {
        let _core_coder_delay = bits.take(14)?;
    }
    let _extension = bits.take(1)?;
    if bits.take(11)? != SYNC_EXTENSION || bits.object_type()? != SBR || bits.take(1)? == 0 {
        return None;
    }
    Some("he-aac")
}

/// Channels that an AudioSpecificConfig states; none if they are defined elsewhere. Source: ISO 14496-3, table 1.19.
pub(super) fn n_channels(config: &[u8]) -> Option<usize> {
    let mut bits = Bits { bytes: config, at: 0 };
    bits.object_type()?;
    bits.sampling_frequency()?;
    match bits.take(4)? {
        n @ 1..=6 => Some(n as usize),
        11 => Some(7),
        7 | 12 | 14 => Some(8),
        _ => None,
    }
}

/// Bits of a byte string, highest first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next `n` bits, at most 32, or `None` past the end.
    fn take(&mut self, n: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..n {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    fn object_type(&mut self) -> Option<u32> {
        match self.take(5)? {
            ESCAPE => Some(32 + self.take(6)?),
            t => Some(t),
        }
    }

    fn sampling_frequency(&mut self) -> Option<()> {
        const EXPLICIT: u32 = 15;
        if self.take(4)? == EXPLICIT {
            self.take(24)?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::{high_efficiency, n_channels};

    #[test]
    fn plain_aac_is_not_high_efficiency() {
        assert_eq!(high_efficiency(&[0x12, 0x10]), None); // LC, 44100 Hz, stereo
        assert_eq!(high_efficiency(&[0x14, 0x08, 0x56, 0xe5, 0x00]), None); // extension without SBR
        assert_eq!(high_efficiency(&[]), None);
        assert_eq!(high_efficiency(&[0x12]), None);
        assert_eq!(high_efficiency(&[0xff; 3]), None);
    }

    #[test]
    fn channels_are_those_of_the_table() {
        assert_eq!(n_channels(&[0x12, 0x10]), Some(2));
        assert_eq!(n_channels(&[0x11, 0xb0]), Some(6));
        assert_eq!(n_channels(&[0x11, 0xb8]), Some(8));
        assert_eq!(n_channels(&[0x11, 0x80]), None);
        assert_eq!(n_channels(&[]), None);
    }

    #[test]
    fn both_explicit_signals_are_found() {
        assert_eq!(high_efficiency(&[0x2b, 0x92, 0x08, 0x00]), Some("he-aac")); // SBR first, 22050 -> 44100 Hz
        assert_eq!(high_efficiency(&[0xeb, 0x8a, 0x08, 0x00]), Some("he-aac v2")); // PS first
        // LC at 22050 Hz, stereo, then 0x2b7, SBR, present, 44100 Hz.
        assert_eq!(high_efficiency(&[0x13, 0x90, 0x56, 0xe5, 0xa0]), Some("he-aac"));
    }
}
