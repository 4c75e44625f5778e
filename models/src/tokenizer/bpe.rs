//! Byte-level BPE ([`Bpe`]), and the byte-to-unicode alphabet of its vocabularies.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use engine::gguf::quoted;
use unicode_normalization_alignments::UnicodeNormalization;

use super::{PreTokenizer, Printed, TokenKind, malformed};
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

/// Whether an assigned character has this byte in UTF-8. Published vocabularies lack tokens for others: those of GPT-NeoX and
/// StarCoder.
fn is_in_use(byte: u8) -> bool {
    !matches!(byte, 0xc0 | 0xc1 | 0xf1 | 0xf2 | 0xf5..)
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

/// Byte-level BPE: words, and the merges inside them.
#[derive(Debug)]
pub(super) struct Bpe {
    pre: PreTokenizer,
    /// Ordinary tokens by what they print, for pre-tokenizers that look whole words up before merging.
    whole_words: HashMap<Vec<u8>, u32>,
    merges: Merges,
}

impl Bpe {
    /// `merges`: `left right` in order of rank; `printed`: what tokens print.
    ///
    /// Errors: as [`Merges::new`].
    pub(super) fn new(
        pre: PreTokenizer,
        merges: &[String],
        ids: &HashMap<String, u32>,
        kinds: &[TokenKind],
        printed: &Printed,
    ) -> Result<Self> {
        let mut whole_words = HashMap::new();
        if pre.looks_up_whole_words {
            whole_words.extend(printed.in_alphabet.iter().map(|&id| (printed.bytes_of(id).to_vec(), id)));
        }
        Ok(Self { pre, whole_words, merges: Merges::new(merges, ids, kinds)? })
    }

    /// Appends the tokens of a text without added tokens: normal form, words, merges.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let text = if self.pre.normalizes && !text.is_ascii() {
            Cow::Owned(text.nfc().map(|(c, _)| c).collect())
        } else {
            Cow::Borrowed(text)
        };
        for word in self.pre.words(&text) {
            match self.whole_words.get(word.as_bytes()) {
                Some(&id) => ids.push(id),
                None => self.merges.encode(word.as_bytes(), ids),
            }
        }
    }
}

/// Which pairs of tokens merge, in which order, and into what.
#[derive(Debug)]
struct Merges {
    /// Ids of the single bytes.
    bytes: [Option<u32>; 256],
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
    /// Errors: `Tokenizer` for a byte of assigned characters without a token, and for a merge that is not two texts, occurs twice, or names
    /// or makes anything but an ordinary or user-defined token.
    fn new(merges: &[String], ids: &HashMap<String, u32>, kinds: &[TokenKind]) -> Result<Self> {
        let mut bytes = [None; 256];
        for (byte, id) in (0..=u8::MAX).zip(&mut bytes) {
            let text = char_of_byte(byte).to_string();
            *id = ids.get(&text).copied().filter(|&id| kinds[id as usize] == TokenKind::Normal);
            if id.is_none() && is_in_use(byte) {
                return Err(malformed(format!("no ordinary token {text:?} for byte {byte:#04x}")));
            }
        }

        // Runs of spaces of GPT-NeoX are user-defined tokens, which are stored as they stand in the text.
        let user_defined = |text: &str| {
            let mut bytes = Vec::new();
            push_bytes(text, &mut bytes).then_some(())?;
            let id = *ids.get(std::str::from_utf8(&bytes).ok()?)?;
            (kinds[id as usize] == TokenKind::UserDefined).then_some(id)
        };
        let text_id = |text: &str| {
            let is_text = |id: &u32| matches!(kinds[*id as usize], TokenKind::Normal | TokenKind::UserDefined);
            ids.get(text).copied().filter(is_text).or_else(|| user_defined(text))
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

    /// Appends the tokens of `word`: the pair of lowest rank is merged first, the leftmost of equals, until none is left. Bytes
    /// without a token are left out.
    ///
    /// Time: `n log n` for n bytes. Source: crate tokenizers, `Word::merge_all`.
    fn encode(&self, word: &[u8], ids: &mut Vec<u32>) {
        let bytes = word.iter().filter_map(|&byte| self.bytes[usize::from(byte)]);
        let mut symbols: Vec<Symbol> = (0..)
            .zip(bytes)
            .map(|(i, id): (usize, u32)| Symbol {
                id,
                previous: i.checked_sub(1).unwrap_or(NONE),
                next: i + 1,
                gone: false,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }

        let mut queue = BinaryHeap::new();
        let candidate = |symbols: &[Symbol], left: usize| {
            let right = symbols[left].next;
            let pair = (right != NONE).then(|| (symbols[left].id, symbols[right].id))?;
            self.pairs.get(&pair).map(|merge| Reverse((merge.rank, left, merge.id)))
        };
        queue.extend((0..symbols.len()).filter_map(|left| candidate(&symbols, left)));

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
