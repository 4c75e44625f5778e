//! Pre-tokenizers: how text is split into words, across which no merge reaches.
//!
//! The published definitions are regular expressions with look-ahead. They are matched by hand here: one pass, and no
//! input that takes more than linear time.

use unicode_general_category::{GeneralCategory, get_general_category};

/// A rule for splitting text into words, and what else tokenizers with that rule have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreTokenizer {
    expression: Expression,
    /// Names in GGUF files.
    names: &'static [&'static str],
    /// Whether text is brought to Unicode normal form C.
    pub(super) normalizes: bool,
    /// Whether a word that is a token is taken as it is, without merging (`ignore_merges` of `tokenizer.json`).
    pub(super) looks_up_whole_words: bool,
    /// Whether text begins with the begin-of-text token unless the file says otherwise.
    pub(super) adds_bos: bool,
}

/// How words are found: the first alternative that fits at each position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Up to `max_digits` digits are a word:
    ///
    /// ```text
    /// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,D}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
    /// ```
    ///
    /// With `marks_are_letters`, `[\p{L}\p{M}]+` and `[^\s\p{L}\p{M}\p{N}]+`. Source: `tokenizer.json` of Qwen2, Qwen3.5 and
    /// Llama 3.
    Llama {
        /// Longest run of digits in one word.
        max_digits: usize,
        /// Whether marks belong to words.
        marks_are_letters: bool,
    },
    /// Source: GPT-2, `encoder.py`; `ByteLevel` of the tokenizers crate. With `single_digits`, digits are cut out before.
    ///
    /// ```text
    /// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
    /// ```
    Gpt2 {
        /// Whether every digit is a word.
        single_digits: bool,
    },
}

const QWEN: Expression = Expression::Llama { max_digits: 1, marks_are_letters: false };
const LLAMA3: Expression = Expression::Llama { max_digits: 3, marks_are_letters: false };
const GPT2: Expression = Expression::Gpt2 { single_digits: false };

/// A tokenizer with this expression and nothing special.
const fn plain(expression: Expression, names: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { expression, names, normalizes: false, looks_up_whole_words: false, adds_bos: false }
}

impl PreTokenizer {
    /// Every rule. Of those with the same expression and form, the one that `tokenizer.json` stands for comes first.
    const ALL: [Self; 7] = [
        Self { normalizes: true, ..plain(QWEN, &["qwen2"]) },
        Self { normalizes: true, ..plain(Expression::Llama { max_digits: 1, marks_are_letters: true }, &["qwen35"]) },
        Self { looks_up_whole_words: true, adds_bos: true, ..plain(LLAMA3, &["llama-bpe", "lfm2"]) },
        plain(LLAMA3, &["dbrx"]),
        // GPT-NeoX, whose tokenizer MPT and OLMo have, brings text to NFC.
        Self { normalizes: true, ..plain(GPT2, &["mpt", "olmo"]) },
        plain(GPT2, &["gpt-2"]),
        plain(Expression::Gpt2 { single_digits: true }, &["refact"]),
    ];

    /// Names that [`PreTokenizer::from_name`] knows.
    pub fn names() -> Vec<&'static str> {
        Self::ALL.iter().flat_map(|rule| rule.names).copied().collect()
    }

    /// The rule that GGUF files call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.names.contains(&name))
    }

    /// The names of the rule with this expression, where `normalizes` says whether text is brought to NFC and
    /// `looks_up_whole_words` whether words that are tokens are not merged; none where there is no such rule.
    pub fn names_of(expression: Expression, normalizes: bool, looks_up_whole_words: bool) -> &'static [&'static str] {
        let has = |rule: &&Self| {
            rule.expression == expression
                && rule.normalizes == normalizes
                && rule.looks_up_whole_words == looks_up_whole_words
        };
        Self::ALL.iter().find(has).map_or(&[], |rule| rule.names)
    }

    /// The words of `text`, which they cover without gaps.
    pub fn words(self, text: &str) -> Words<'_> {
        Words { expression: self.expression, part: "", rest: text }
    }
}

/// Iterator over the words of a text.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    expression: Expression,
    /// What no word reaches across the end of.
    part: &'a str,
    /// What follows it.
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.part.is_empty() {
            (self.part, self.rest) = self.rest.split_at(self.expression.part_len(self.rest));
        }
        let first = self.part.chars().next()?;
        let (word, part) = self.part.split_at(self.expression.word_len(self.part, first));
        self.part = part;
        Some(word)
    }
}

impl Expression {
    /// Bytes at the beginning of `text` that the expression is applied to by themselves.
    fn part_len(self, text: &str) -> usize {
        match self {
            Self::Llama { .. } | Self::Gpt2 { single_digits: false } => text.len(),
            Self::Gpt2 { single_digits: true } => {
                let mut chars = text.char_indices();
                match chars.next() {
                    Some((_, c)) if Class::of(c) == Class::Number => c.len_utf8(),
                    _ => chars.find(|&(_, c)| Class::of(c) == Class::Number).map_or(text.len(), |(i, _)| i),
                }
            }
        }
    }

    /// Bytes of the word that `text` begins with; `first` is its first character.
    fn word_len(self, text: &str, first: char) -> usize {
        match self {
            Self::Llama { max_digits, marks_are_letters: false } => llama_word_len(text, first, max_digits, Class::of),
            Self::Llama { max_digits, marks_are_letters: true } => {
                llama_word_len(text, first, max_digits, Class::with_marks)
            }
            Self::Gpt2 { .. } => gpt2_word_len(text, first),
        }
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

    /// The same where marks are letters.
    fn with_marks(c: char) -> Self {
        use GeneralCategory::*;
        match Self::of(c) {
            Self::Other if matches!(get_general_category(c), NonspacingMark | SpacingMark | EnclosingMark) => {
                Self::Letter
            }
            class => class,
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

/// Bytes of the word that `text` begins with by [`Expression::Llama`]; `first` is its first character.
fn llama_word_len(text: &str, first: char, max_digits: usize, class_of: fn(char) -> Class) -> usize {
    if first == '\'' {
        let n = contraction_len(&text[1..]);
        if n > 0 {
            return 1 + n;
        }
    }
    let class = class_of(first);
    let before_letters = match class {
        Class::Letter => Some(0),
        Class::Space | Class::Other => Some(first.len_utf8()),
        Class::Number | Class::Newline => None,
    };
    if let Some(start) = before_letters {
        let n = run_len(&text[start..], |c| class_of(c) == Class::Letter);
        if n > 0 {
            return start + n;
        }
    }
    if class == Class::Number {
        return text.chars().take(max_digits).take_while(|&c| class_of(c) == Class::Number).map(char::len_utf8).sum();
    }
    let start = usize::from(first == ' ');
    let n = run_len(&text[start..], |c| class_of(c) == Class::Other);
    if n > 0 {
        let end = start + n;
        return end + run_len(&text[end..], |c| class_of(c) == Class::Newline);
    }
    space_len(text)
}

/// Bytes of the word that `text` begins with by [`Expression::Gpt2`]; `first` is its first character.
fn gpt2_word_len(text: &str, first: char) -> usize {
    const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    if let Some(contraction) = CONTRACTIONS.iter().find(|contraction| text.starts_with(**contraction)) {
        return contraction.len();
    }
    let start = usize::from(first == ' ');
    let class = text[start..].chars().next().map(Class::of);
    if let Some(class @ (Class::Letter | Class::Number | Class::Other)) = class {
        return start + run_len(&text[start..], |c| Class::of(c) == class);
    }
    let n = run_len(text, char::is_whitespace);
    // The last of several spaces belongs to what follows.
    let last = text[..n].chars().next_back().map_or(0, char::len_utf8);
    if n == text.len() || n == last { n } else { n - last }
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

/// Bytes of the characters at the beginning of `text` that are in a class.
fn run_len(text: &str, is_in: impl Fn(char) -> bool) -> usize {
    text.char_indices().find(|&(_, c)| !is_in(c)).map_or(text.len(), |(i, _)| i)
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
