//! Bytes in base64, as requests carry them. Source: RFC 4648, section 4.

/// A letter stands for so many bits.
const LETTER_BITS: u32 = 6;
/// Fills the last group of four.
const PADDING: u8 = b'=';

/// Most bytes that so many letters stand for.
pub(super) fn most_bytes(n_letters: usize) -> usize {
    n_letters.div_ceil(4) * 3
}

/// The bytes that a text stands for. It is padded, or ends without padding; nothing else may stand in it.
///
/// Errors: where in the text it goes wrong, in bytes.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, usize> {
    let letters = text.as_bytes();
    let n_padding = letters.iter().rev().take_while(|&&letter| letter == PADDING).count();
    let n = letters.len() - n_padding;
    let mut bytes = Vec::with_capacity(most_bytes(n));
    let (mut word, mut n_bits) = (0u32, 0);
    for (at, &letter) in letters[..n].iter().enumerate() {
        word = word << LETTER_BITS | value(letter).ok_or(at)?;
        n_bits += LETTER_BITS;
        if n_bits >= u8::BITS {
            n_bits -= u8::BITS;
            bytes.push((word >> n_bits) as u8);
            word &= (1 << n_bits) - 1;
        }
    }
    // A group of one letter is no byte; what is padded is padded to four.
    if n % 4 == 1 || n_padding > 0 && (n_padding > 2 || !letters.len().is_multiple_of(4)) {
        return Err(n);
    }
    // Bits that are left over belong to no byte: another text stands for the same ones where they are not zero.
    if word == 0 { Ok(bytes) } else { Err(n - 1) }
}

fn value(letter: u8) -> Option<u32> {
    let value = match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_standard_are_read_and_others_are_not() {
        // RFC 4648, section 10.
        for (n, text) in ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"].into_iter().enumerate() {
            let bytes = &b"foobar"[..n];
            assert_eq!(decode(text), Ok(bytes.to_vec()), "{text}");
            assert_eq!(decode(text.trim_end_matches('=')), Ok(bytes.to_vec()), "{text} without padding");
            assert!(bytes.len() <= most_bytes(text.len()));
        }
        assert_eq!(decode("+/+/"), Ok(vec![0xfb, 0xff, 0xbf]));
        for (text, at) in [
            ("Z", 1),
            ("Zg=", 2),
            ("Zg===", 2),
            ("Z===", 1),
            ("====", 0),
            ("Zm9v=", 4),
            ("Zh==", 1),
            ("Zm9v\n", 4),
            ("Zm-v", 2),
            ("Zg==Zg==", 2),
            ("\u{e9}mm", 0),
        ] {
            assert_eq!(decode(text), Err(at), "{text:?}");
        }
    }
}
