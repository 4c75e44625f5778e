//! Pre-tokenizers: how text is split into words, across which no merge reaches.
//!
//! The published definitions are regular expressions with look-ahead. They are matched by hand here: one pass, and no
//! input that takes more than linear time.

use unicode_general_category::{GeneralCategory, get_general_category};

/// A rule for splitting text into words.
///
/// Both rules match, at each position, the first of these alternatives that fits:
///
/// ```text
/// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,D}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
/// ```
///
/// Source: `tokenizer.json` of Qwen2 and of Llama 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// `qwen2`: every digit is a word (`D = 1`), text is brought to NFC.
    Qwen2,
    /// `llama-bpe` and `lfm2`: up to three digits (`D = 3`), words that are tokens are not merged.
    Llama3,
}

impl PreTokenizer {
    /// Names that [`PreTokenizer::from_name`] knows.
    pub(crate) const NAMES: [&str; 3] = ["qwen2", "llama-bpe", "lfm2"];

    /// The rule that GGUF files call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "qwen2" => Some(Self::Qwen2),
            "llama-bpe" | "lfm2" => Some(Self::Llama3),
            _ => None,
        }
    }

    /// The words of `text`, which they cover without gaps.
    pub fn words(self, text: &str) -> Words<'_> {
        Words { max_digits: self.max_digits(), rest: text }
    }

    /// Longest run of digits in one word.
    fn max_digits(self) -> usize {
        match self {
            Self::Qwen2 => 1,
            Self::Llama3 => 3,
        }
    }

    /// Whether text is brought to Unicode normal form C.
    pub(super) fn normalizes(self) -> bool {
        match self {
            Self::Qwen2 => true,
            Self::Llama3 => false,
        }
    }

    /// Whether a word that is a token is taken as it is, without merging (`ignore_merges` of `tokenizer.json`).
    pub(super) fn looks_up_whole_words(self) -> bool {
        match self {
            Self::Qwen2 => false,
            Self::Llama3 => true,
        }
    }

    /// Whether text begins with the begin-of-text token unless the file says otherwise.
    pub(super) fn adds_bos(self) -> bool {
        match self {
            Self::Qwen2 => false,
            Self::Llama3 => true,
        }
    }
}

/// Iterator over the words of a text.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    max_digits: usize,
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let first = self.rest.chars().next()?;
        let (word, rest) = self.rest.split_at(word_len(self.rest, first, self.max_digits));
        self.rest = rest;
        Some(word)
    }
}

/// What the rules tell apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    /// `\r` and `\n`, which are white space too.
    Newline,
    /// White space except `\r` and `\n`.
    Space,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        match c {
            'a'..='z' | 'A'..='Z' => Self::Letter,
            '0'..='9' => Self::Number,
            '\r' | '\n' => Self::Newline,
            _ if c.is_whitespace() => Self::Space,
            _ if c.is_ascii() => Self::Other,
            _ => Self::of_category(get_general_category(c)),
        }
    }

    fn of_category(category: GeneralCategory) -> Self {
        use GeneralCategory::*;
        match category {
            UppercaseLetter | LowercaseLetter | TitlecaseLetter | ModifierLetter | OtherLetter => Self::Letter,
            DecimalNumber | LetterNumber | OtherNumber => Self::Number,
            _ => Self::Other,
        }
    }
}

/// Bytes of the word that `text` begins with; `first` is its first character.
fn word_len(text: &str, first: char, max_digits: usize) -> usize {
    if first == '\'' {
        let n = contraction_len(&text[1..]);
        if n > 0 {
            return 1 + n;
        }
    }
    let class = Class::of(first);
    let before_letters = match class {
        Class::Letter => Some(0),
        Class::Space | Class::Other => Some(first.len_utf8()),
        Class::Number | Class::Newline => None,
    };
    if let Some(start) = before_letters {
        let n = run_len(&text[start..], Class::Letter);
        if n > 0 {
            return start + n;
        }
    }
    if class == Class::Number {
        return text.chars().take(max_digits).take_while(|&c| Class::of(c) == Class::Number).map(char::len_utf8).sum();
    }
    let start = usize::from(first == ' ');
    let n = run_len(&text[start..], Class::Other);
    if n > 0 {
        let end = start + n;
        return end + run_len(&text[end..], Class::Newline);
    }
    space_len(text)
}

/// Bytes of `s`, `t`, `re`, `ve`, `m`, `ll` or `d` in any case at the beginning of `text`, which stood after an apostrophe.
fn contraction_len(text: &str) -> usize {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    match first {
        's' | 'S' | 't' | 'T' | 'm' | 'M' | 'd' | 'D' => 1,
        // The long s is the one other character that Unicode folds to a letter of the list.
        '\u{17f}' => first.len_utf8(),
        _ => match (first, chars.next()) {
            ('r' | 'R' | 'v' | 'V', Some('e' | 'E')) | ('l' | 'L', Some('l' | 'L')) => 2,
            _ => 0,
        },
    }
}

/// Bytes of the characters of one class at the beginning of `text`.
fn run_len(text: &str, class: Class) -> usize {
    text.char_indices().find(|&(_, c)| Class::of(c) != class).map_or(text.len(), |(i, _)| i)
}

/// Bytes of white space at the beginning of `text`, where there is some: up to the last line break of the run; else, all
/// but the last character when more text follows, for that one belongs to the next word.
fn space_len(text: &str) -> usize {
    let mut after_newline = None;
    let mut last = 0;
    for (i, c) in text.char_indices() {
        match Class::of(c) {
            Class::Newline => after_newline = Some(i + 1),
            Class::Space => {}
            Class::Letter | Class::Number | Class::Other => {
                return after_newline.unwrap_or(if last > 0 { last } else { i });
            }
        }
        last = i;
    }
    after_newline.unwrap_or(text.len())
}
