//! SentencePiece's BPE, as Llama 2 uses it: characters merge by the scores of what they make, and what is no piece is bytes.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use super::{TokenKind, malformed};
use crate::error::Result;

/// What pieces have in place of a space.
pub(super) const SPACE: char = '\u{2581}';
/// End of the list of symbols.
const NONE: usize = usize::MAX;

/// The byte that a token stands for: `<0xAB>`.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

/// Pieces with their scores, and what there is for other characters.
#[derive(Debug)]
pub(super) struct Pieces {
    pieces: HashMap<String, Piece>,
    /// Bytes of the longest piece.
    max_len: usize,
    fallback: Fallback,
    /// Whether a text begins as if a space stood before it.
    has_space_prefix: bool,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u32,
    score: f32,
}

/// What a character becomes that is no piece.
#[derive(Debug)]
enum Fallback {
    /// Its bytes, by these tokens.
    Bytes(Box<[u32; 256]>),
    /// The unknown token, one for several characters in a row.
    Unknown(u32),
}

/// Two neighbours that make a piece.
#[derive(Clone, Copy, PartialEq)]
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both, by which it is known whether they are still what they were.
    len: usize,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

/// A character or piece of a text: a link of a doubly linked list, kept in place.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0 for one that was merged into its left neighbour.
    len: usize,
    previous: usize,
    next: usize,
}

impl Pieces {
    /// `ids` of the texts of tokens; their `kinds` and `scores`.
    ///
    /// Errors: `Tokenizer` for scores that are not as many as the tokens or not finite; for byte tokens that stand for no
    /// byte or for the same; for a vocabulary with neither all bytes nor an unknown token.
    pub(super) fn new(
        ids: &HashMap<String, u32>,
        kinds: &[TokenKind],
        scores: &[f32],
        unknown: Option<u32>,
        has_space_prefix: bool,
    ) -> Result<Self> {
        if scores.len() != kinds.len() {
            return Err(malformed(format!("{} scores for {} tokens", scores.len(), kinds.len())));
        }
        let mut pieces = HashMap::with_capacity(ids.len());
        let mut bytes = [None; 256];
        for (text, &id) in ids {
            let score = scores[id as usize];
            match kinds[id as usize] {
                TokenKind::Normal if !score.is_finite() => {
                    return Err(malformed(format!("token {id} has score {score}, want a finite number")));
                }
                TokenKind::Normal => {
                    pieces.insert(text.clone(), Piece { id, score });
                }
                TokenKind::Byte => {
                    let byte =
                        byte_of(text).ok_or_else(|| malformed(format!("byte token {id} is {text:?}, want <0xAB>")))?;
                    if let Some(first) = bytes[usize::from(byte)].replace(id) {
                        return Err(malformed(format!("tokens {first} and {id} are the same byte {byte:#04x}")));
                    }
                }
                TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined | TokenKind::Unused => {}
            }
        }
        let missing = bytes.iter().position(Option::is_none);
        let unknown = unknown.or_else(|| kinds.iter().position(|&kind| kind == TokenKind::Unknown)?.try_into().ok());
        let fallback = match (missing, unknown) {
            (None, _) => Fallback::Bytes(Box::new(bytes.map(|id| id.expect("none is missing")))),
            (Some(_), Some(id)) if bytes.iter().all(Option::is_none) => Fallback::Unknown(id),
            (Some(byte), _) => return Err(malformed(format!("no token for byte {byte:#04x}"))),
        };
        let max_len = pieces.keys().map(String::len).max().unwrap_or(0);
        Ok(Self { pieces, max_len, fallback, has_space_prefix })
    }

    /// Whether a text begins as if a space stood before it.
    pub(super) fn has_space_prefix(&self) -> bool {
        self.has_space_prefix
    }

    /// Appends the tokens of a text without added tokens: of all neighbours that make a piece those with the highest score
    /// are merged first, the leftmost of equals, until there are none.
    ///
    /// Time: `n log n` for n characters. Source: SentencePiece, `bpe_model.cc`, `Model::SampleEncode`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let prefix = if self.has_space_prefix { " " } else { "" };
        let text: String = prefix.chars().chain(text.chars()).map(|c| if c == ' ' { SPACE } else { c }).collect();
        let mut symbols: Vec<Symbol> = (0..)
            .zip(text.char_indices())
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                previous: if i == 0 { NONE } else { i - 1 },
                next: i + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let candidate = |symbols: &[Symbol], left: usize| {
            let right = symbols.get(left)?.next;
            let (first, second) = (symbols[left], symbols.get(right)?);
            let len = first.len + second.len;
            let piece = (len <= self.max_len).then(|| self.pieces.get(&text[first.start..first.start + len]))??;
            Some(Candidate { score: piece.score, left, right, len })
        };
        let mut queue: BinaryHeap<Candidate> = (0..symbols.len()).filter_map(|i| candidate(&symbols, i)).collect();
        while let Some(Candidate { left, right, len, .. }) = queue.pop() {
            let (first, second) = (symbols[left], symbols[right]);
            if first.len == 0 || second.len == 0 || first.len + second.len != len {
                continue;
            }
            symbols[left] = Symbol { len, next: second.next, ..first };
            symbols[right].len = 0;
            if let Some(after) = symbols.get_mut(second.next) {
                after.previous = left;
            }
            queue.extend(candidate(&symbols, first.previous));
            queue.extend(candidate(&symbols, left));
        }
        let mut is_after_unknown = false;
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let part = &text[symbol.start..symbol.start + symbol.len];
            let piece = self.pieces.get(part);
            match (piece, &self.fallback) {
                (Some(piece), _) => ids.push(piece.id),
                (None, Fallback::Bytes(bytes)) => ids.extend(part.bytes().map(|byte| bytes[usize::from(byte)])),
                (None, Fallback::Unknown(_)) if is_after_unknown => {}
                (None, Fallback::Unknown(id)) => ids.push(*id),
            }
            is_after_unknown = piece.is_none();
        }
    }
}
