//! Added tokens: texts that are found in raw text before it is split into words.

use std::ops::Range;

/// A set of texts to be found, each with the id of its token.
#[derive(Debug)]
pub(super) struct AddedTokens {
    /// Sorted by text, so that all texts with a common beginning are neighbours.
    tokens: Vec<(String, u32)>,
    /// Whether any text begins with this byte.
    begins: [bool; 256],
}

impl AddedTokens {
    /// `tokens`: texts, none empty and none twice, with their ids.
    pub(super) fn new(mut tokens: Vec<(String, u32)>) -> Self {
        tokens.sort_unstable();
        let mut begins = [false; 256];
        for (text, _) in &tokens {
            begins[text.as_bytes()[0] as usize] = true;
        }
        Self { tokens, begins }
    }

    /// The first token at or after byte `start` of `text`; where several begin there, the longest.
    ///
    /// Source: crate tokenizers, `AddedVocabulary` (an automaton that matches leftmost-longest).
    pub(super) fn find(&self, text: &str, start: usize) -> Option<(Range<usize>, u32)> {
        let bytes = text.as_bytes();
        (start..bytes.len()).find_map(|at| {
            let (len, id) = self.longest(&bytes[at..])?;
            Some((at..at + len, id))
        })
    }

    /// The longest token that `text` begins with, as length and id.
    fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        if !self.begins[text[0] as usize] {
            return None;
        }
        let mut longest = None;
        let mut candidates = &self.tokens[..];
        for (depth, &byte) in text.iter().enumerate() {
            // The candidates share their first `depth` bytes and none ends there: one that did was taken below.
            let from = candidates.partition_point(|(token, _)| token.as_bytes()[depth] < byte);
            let to = candidates.partition_point(|(token, _)| token.as_bytes()[depth] <= byte);
            candidates = &candidates[from..to];
            let Some((first, id)) = candidates.first() else { break };
            if first.len() == depth + 1 {
                longest = Some((first.len(), *id));
                candidates = &candidates[1..];
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tokens: &[&str], text: &str) -> Vec<String> {
        let added = AddedTokens::new((0u32..).zip(tokens).map(|(id, token)| (token.to_string(), id)).collect());
        let mut found = Vec::new();
        let mut start = 0;
        while let Some((at, id)) = added.find(text, start) {
            assert_eq!(&text[at.clone()], tokens[id as usize]);
            found.push(format!("{}:{}", at.start, tokens[id as usize]));
            start = at.end;
        }
        found
    }

    #[test]
    fn leftmost_then_longest_wins() {
        assert_eq!(found(&["ab", "abcd", "bcdefg", "d"], "xabcdefgabc"), ["1:abcd", "8:ab"]);
        assert_eq!(found(&["<a>", "<a", "a>"], "<a<a>a>"), ["0:<a", "2:<a>", "5:a>"]);
        assert_eq!(found(&["\u{e9}", "\u{e9}t"], "\u{e8}\u{e9}t\u{e9}"), ["2:\u{e9}t", "5:\u{e9}"]);
    }

    #[test]
    fn nothing_is_found_in_empty_text_or_set() {
        assert!(found(&["a"], "").is_empty());
        assert!(found(&[], "abc").is_empty());
    }
}
