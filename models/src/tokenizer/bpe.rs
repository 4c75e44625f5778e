//! Byte pair encoding of one word, and the byte-to-unicode alphabet of the vocabulary.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use engine::gguf::quoted;

use super::{TokenKind, malformed};

use crate::error::Result;

/// End of the list of symbols.
const NONE: usize = usize::MAX;

/// The printable character that stands for `byte` in a vocabulary.
///
/// Printable ASCII and most of Latin-1 stand for themselves; the other bytes are numbered from U+0100 on.
/// Source: GPT-2, `bytes_to_unicode`.
fn char_of_byte(byte: u8) -> char {
    let code = u32::from(byte);
    let shifted = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => code,
        0..=0x20 => 0x100 + code,
        0x7f..=0xa0 => 0x121 + code - 0x7f,
        0xad => 0x143,
    };
    char::from_u32(shifted).expect("all below the surrogates")
}

/// Inverse of [`char_of_byte`].
fn byte_of_char(c: char) -> Option<u8> {
    match c {
        '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}' => Some(c as u8),
        '\u{100}'..='\u{120}' => Some((c as u32 - 0x100) as u8),
        '\u{121}'..='\u{142}' => Some((c as u32 - 0x121) as u8 + 0x7f),
        '\u{143}' => Some(0xad),
        _ => None,
    }
}

/// Appends the bytes that an ordinary token stands for; false, with nothing appended, when a character is outside the
/// alphabet.
pub(super) fn push_bytes(token: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    for c in token.chars() {
        let Some(byte) = byte_of_char(c) else {
            bytes.truncate(start);
            return false;
        };
        bytes.push(byte);
    }
    true
}

/// Which pairs of tokens merge, in which order, and into what.
#[derive(Debug)]
pub(super) struct Merges {
    /// Ids of the 256 single bytes.
    bytes: [u32; 256],
    pairs: HashMap<(u32, u32), Merge>,
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    id: u32,
}

/// A token of a word while it is being merged: a link of a doubly linked list, kept in place.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    previous: usize,
    next: usize,
    /// Whether it was merged into its left neighbour.
    gone: bool,
}

impl Merges {
    /// `merges`: `left right` in order of rank. `ids`, `kinds`: the vocabulary.
    ///
    /// Errors: `Tokenizer` for a byte without a token, and for a merge that is not two texts, occurs twice, or names
    /// or makes anything but an ordinary or user-defined token.
    pub(super) fn new(merges: &[String], ids: &HashMap<String, u32>, kinds: &[TokenKind]) -> Result<Self> {
        let mut bytes = [0; 256];
        for (byte, id) in (0..=u8::MAX).zip(&mut bytes) {
            let text = char_of_byte(byte).to_string();
            *id = ids
                .get(&text)
                .copied()
                .filter(|&id| kinds[id as usize] == TokenKind::Normal)
                .ok_or_else(|| malformed(format!("no ordinary token {text:?} for byte {byte:#04x}")))?;
        }

        let text_id = |text: &str| {
            ids.get(text)
                .copied()
                .filter(|&id| matches!(kinds[id as usize], TokenKind::Normal | TokenKind::UserDefined))
        };
        let mut pairs = HashMap::with_capacity(merges.len());
        let mut joined = String::new();
        for (rank, merge) in (0u32..).zip(merges) {
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| malformed(format!("merge {rank} {} is not two texts", quoted(merge))))?;
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let [left, right, id] = [left, right, &joined].map(|text| {
                text_id(text).ok_or_else(|| {
                    let (merge, text) = (quoted(merge), quoted(text));
                    malformed(format!("merge {rank} {merge}: {text} is not a text token of the vocabulary"))
                })
            });
            let merged = Merge { rank, id: id? };
            if let Some(first) = pairs.insert((left?, right?), merged) {
                let (first, merge) = (first.rank, quoted(merge));
                return Err(malformed(format!("merges {first} and {rank} are the same pair {merge}")));
            }
        }
        Ok(Self { bytes, pairs })
    }

    /// Appends the tokens of `word`: the pair of lowest rank is merged first, the leftmost of equals, until none is left.
    ///
    /// Time: `n log n` for n bytes. Source: crate tokenizers, `Word::merge_all`.
    pub(super) fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        let n = word.len();
        let mut symbols: Vec<Symbol> = word
            .iter()
            .enumerate()
            .map(|(i, &byte)| Symbol {
                id: self.bytes[byte as usize],
                previous: i.checked_sub(1).unwrap_or(NONE),
                next: if i + 1 < n { i + 1 } else { NONE },
                gone: false,
            })
            .collect();

        let mut queue = BinaryHeap::new();
        let candidate = |symbols: &[Symbol], left: usize| {
            let right = symbols[left].next;
            let pair = (right != NONE).then(|| (symbols[left].id, symbols[right].id))?;
            self.pairs.get(&pair).map(|merge| Reverse((merge.rank, left, merge.id)))
        };
        queue.extend((0..n).filter_map(|left| candidate(&symbols, left)));

        while let Some(Reverse((_, left, id))) = queue.pop() {
            if symbols[left].gone || candidate(&symbols, left).is_none_or(|Reverse((_, _, now))| now != id) {
                continue;
            }
            let right = symbols[left].next;
            let after = symbols[right].next;
            symbols[right].gone = true;
            symbols[left] = Symbol { id, next: after, ..symbols[left] };
            if after != NONE {
                symbols[after].previous = left;
            }
            let before = symbols[left].previous;
            if before != NONE {
                queue.extend(candidate(&symbols, before));
            }
            queue.extend(candidate(&symbols, left));
        }
        ids.extend(symbols.iter().filter(|symbol| !symbol.gone).map(|symbol| symbol.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_are_paired_one_to_one() {
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        // The characters that published vocabularies show for space, newline, tab and the soft hyphen.
        assert_eq!([' ', '\n', '\t'].map(|c| char_of_byte(c as u8)), ['\u{120}', '\u{10a}', '\u{109}']);
        assert_eq!(char_of_byte(0xad), '\u{143}');
        assert_eq!(byte_of_char('\u{144}'), None);
    }
}
