//! Headers of frames: of MPEG audio, layers 1 to 3, and of AAC in ADTS.
//!
//! Sources: ISO 11172-3, 2.4.1.3 and 2.4.2.3; ISO 13818-3, 2.4.2.3; ISO 13818-7, 6.2 (ADTS).

/// Length of a header of MPEG audio, and of the least one of ADTS.
pub(super) const HEADER_BYTES: usize = 4;
const ADTS_BYTES: usize = 7;

/// Bytes of the checksum behind a header of ADTS.
const CHECKSUM_BYTES: usize = 2;

/// kbit/s by the field's value; for layers 1, 2 and 3 of MPEG-1, for layer 1 and for layers 2 and 3 of MPEG-2.
const BIT_RATES: [[u16; 15]; 5] = [
    [0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
    [0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
    [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    [0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
    [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
];

/// Sample rates of MPEG-1. Those of MPEG-2 are half, of MPEG-2.5 a quarter.
const RATES_HZ: [u32; 3] = [44_100, 48_000, 32_000];

/// Sample rates of AAC. Source: ISO 14496-3, table 1.18.
const AAC_RATES_HZ: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8000, 7350];

/// How a stream writes its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// MPEG audio, layers 1 to 3.
    Mpeg,
    /// AAC in ADTS.
    Adts,
}

/// What the first bytes of a frame say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// 1 to 3, or 0 for AAC.
    pub layer: u8,
    pub mpeg1: bool,
    pub rate_hz: u32,
    /// 0 where AAC says it elsewhere.
    pub n_channels: u8,
    /// Length of the frame, its header included.
    pub bytes: usize,
    /// Length of what is before the packet of a decoder.
    pub lead_bytes: usize,
    /// The AudioSpecificConfig of AAC.
    pub aac_config: [u8; 2],
}

impl Header {
    /// The header that `bytes` begin with.
    pub(super) fn parse(bytes: &[u8], syntax: Syntax) -> Option<Self> {
        match syntax {
            Syntax::Mpeg => Self::mpeg(*bytes.first_chunk()?),
            Syntax::Adts => Self::adts(*bytes.first_chunk()?),
        }
    }

    fn mpeg(word: [u8; HEADER_BYTES]) -> Option<Self> {
        let bits = u32::from_be_bytes(word);
        let field = |at: u32, n: u32| (bits >> at & ((1 << n) - 1)) as usize;
        if field(21, 11) != 0x7ff {
            return None;
        }
        let halvings = match field(19, 2) {
            0 => 2,
            2 => 1,
            3 => 0,
            _ => return None,
        };
        let mpeg1 = halvings == 0;
        let layer = match field(17, 2) {
            1..=3 => 4 - field(17, 2) as u8,
            _ => return None,
        };
        let table = match (mpeg1, layer) {
            (true, layer) => usize::from(layer) - 1,
            (false, 1) => 3,
            (false, _) => 4,
        };
        let kbps = u32::from(*BIT_RATES[table].get(field(12, 4)).filter(|&&k| k > 0)?);
        let rate_hz = RATES_HZ.get(field(10, 2))? >> halvings;
        let mono = field(6, 2) == 3;
        let slots = |factor: u32| (factor * kbps * 1000 / rate_hz) as usize + field(9, 1);
        let bytes = match layer {
            1 => slots(12) * 4,
            3 if !mpeg1 => slots(72),
            _ => slots(144),
        };
        // Layer 2 has no narrow stereo and no wide mono.
        let allowed = layer != 2 || !mpeg1 || if mono { kbps <= 192 } else { ![32, 48, 56, 80].contains(&kbps) };
        let n_channels = if mono { 1 } else { 2 };
        allowed.then_some(Self { layer, mpeg1, rate_hz, n_channels, bytes, lead_bytes: 0, aac_config: [0; 2] })
    }

    /// Frames of several packets, which nobody seems to write, are not read.
    fn adts(bytes: [u8; ADTS_BYTES]) -> Option<Self> {
        let bits = bytes.iter().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
        let field = |at: u32, n: u32| (bits >> at & ((1 << n) - 1)) as usize;
        let (sync, layer, has_checksum, n_more_packets) = (field(44, 12), field(41, 2), field(40, 1) == 0, field(0, 2));
        let (object_type, rate, channels, bytes) = (field(38, 2) + 1, field(34, 4), field(30, 3), field(13, 13));
        let lead_bytes = ADTS_BYTES + if has_checksum { CHECKSUM_BYTES } else { 0 };
        if sync != 0xfff || layer != 0 || n_more_packets > 0 || bytes <= lead_bytes {
            return None;
        }
        // Source: ISO 14496-3, 1.6.2.1 and table 1.19.
        let config = (object_type << 11 | rate << 7 | channels << 3) as u16;
        Some(Self {
            layer: 0,
            mpeg1: false,
            rate_hz: *AAC_RATES_HZ.get(rate)?,
            n_channels: if channels == 7 { 8 } else { channels as u8 },
            bytes,
            lead_bytes,
            aac_config: config.to_be_bytes(),
        })
    }

    /// Frames of sound in a packet.
    pub(super) fn n_samples(self) -> usize {
        match (self.layer, self.mpeg1) {
            (0, _) => 1024,
            (1, _) => 384,
            (3, false) => 576,
            _ => 1152,
        }
    }

    /// Whether a stream goes on in the same way.
    pub(super) fn is_like(self, other: Self) -> bool {
        Self { bytes: 0, ..self } == Self { bytes: 0, ..other }
    }

    /// Short name of the codec.
    pub(super) fn codec(self) -> &'static str {
        match self.layer {
            0 => "aac",
            1 => "mp1",
            2 => "mp2",
            _ => "mp3",
        }
    }

    /// Bytes between the header and the main data of a frame of layer 3.
    pub(super) fn side_bytes(self) -> usize {
        match (self.mpeg1, self.n_channels) {
            (true, 1) | (false, 2) => 17,
            (true, _) => 32,
            (false, _) => 9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_length_and_kind() {
        let header = |word: [u8; 4]| Header::parse(&word, Syntax::Mpeg);
        let mp3 = header([0xff, 0xfb, 0x90, 0x44]).unwrap(); // MPEG-1 layer 3, 128 kbit/s, 44100 Hz, joint stereo
        assert_eq!((mp3.layer, mp3.rate_hz, mp3.n_channels, mp3.bytes, mp3.n_samples()), (3, 44_100, 2, 417, 1152));
        let low = header([0xff, 0xf3, 0x48, 0xc4]).unwrap(); // MPEG-2 layer 3, 32 kbit/s, 16 kHz, mono
        assert_eq!((low.layer, low.rate_hz, low.n_channels, low.bytes, low.n_samples()), (3, 16_000, 1, 144, 576));
        let mp2 = header([0xff, 0xfd, 0xa4, 0x04]).unwrap(); // MPEG-1 layer 2, 192 kbit/s, 48 kHz, stereo
        assert_eq!((mp2.layer, mp2.rate_hz, mp2.bytes, mp2.n_samples()), (2, 48_000, 576, 1152));
        for word in
            [[0xff, 0xfb, 0x00, 0x44], [0xff, 0xfb, 0x9c, 0x44], [0xff, 0xf9, 0x90, 0x44], [0xfe, 0xfb, 0x90, 0]]
        {
            assert_eq!(header(word), None, "{word:x?}");
        }
    }

    #[test]
    fn headers_of_adts_say_length_and_configuration() {
        let header = |bytes: [u8; 7]| Header::parse(&bytes, Syntax::Adts);
        // AAC-LC, 48 kHz, stereo, 371 bytes; with a checksum; 16 kHz, mono.
        let stereo = header([0xff, 0xf1, 0x4c, 0x80, 0x2e, 0x7f, 0xfc]).unwrap();
        assert_eq!((stereo.rate_hz, stereo.n_channels, stereo.bytes, stereo.lead_bytes), (48_000, 2, 371, 7));
        assert_eq!((stereo.aac_config, stereo.n_samples(), stereo.codec()), ([0x11, 0x90], 1024, "aac"));
        assert_eq!(header([0xff, 0xf0, 0x4c, 0x80, 0x2e, 0x7f, 0xfc]).unwrap().lead_bytes, 9);
        let mono = header([0xff, 0xf1, 0x60, 0x40, 0x2e, 0x7f, 0xfc]).unwrap();
        assert_eq!((mono.rate_hz, mono.n_channels, mono.aac_config), (16_000, 1, [0x14, 0x08]));
        // No rate, no length, another layer, two packets.
        for bytes in [
            [0xff, 0xf1, 0x74, 0x80, 0x2e, 0x7f, 0xfc],
            [0xff, 0xf1, 0x4c, 0x80, 0x00, 0xff, 0xfc],
            [0xff, 0xfb, 0x4c, 0x80, 0x2e, 0x7f, 0xfc],
            [0xff, 0xf1, 0x4c, 0x80, 0x2e, 0x7f, 0xfd],
        ] {
            assert_eq!(header(bytes), None, "{bytes:x?}");
        }
    }
}
