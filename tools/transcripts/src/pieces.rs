//! A text in [`Piece`]s that a line or a cue may end after, and [`wrap`], which sets them in lines.

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// Words before whose full stop no sentence ends, in lower case.
const TITLES: [&str; 8] = ["mr", "mrs", "ms", "dr", "prof", "st", "vs", "nr"];
/// What ends a sentence; a full stop only before a space.
const SENTENCE_ENDS: &str =
    "!?\u{2026}\u{3002}\u{ff01}\u{ff1f}\u{ff0e}\u{ff61}\u{964}\u{965}\u{61f}\u{6d4}\u{104b}\u{17d4}\u{17d5}";
/// What ends part of a sentence.
const CLAUSE_ENDS: &str = ",;:\u{2013}\u{2014}\u{3001}\u{ff0c}\u{ff1b}\u{ff1a}\u{ff64}\u{60c}\u{61b}\u{104a}";
/// Closing punctuation, small kana and repetition marks, which no line begins with.
/// Source: JIS X 4051 and W3C "Requirements for Japanese Text Layout", appendix A.
const CLOSING: &str = "!?.,;:)]}%\"'\u{2019}\u{201d}\u{bb}\u{2026}\u{2025}\u{2014}\u{2013}\u{2010}\u{30fb}\u{3001}\u{3002}\u{ff0c}\
    \u{ff0e}\u{ff01}\u{ff1f}\u{ff1a}\u{ff1b}\u{ff05}\u{ff09}\u{ff3d}\u{ff5d}\u{ff60}\u{3009}\u{300b}\u{300d}\u{300f}\u{3011}\
    \u{3015}\u{3017}\u{3019}\u{301b}\u{301c}\u{ff5e}\u{ff61}\u{ff63}\u{ff64}\u{ff9e}\u{ff9f}\u{30fc}\u{ff70}\u{3005}\u{303b}\
    \u{309d}\u{309e}\u{30fd}\u{30fe}\u{3041}\u{3043}\u{3045}\u{3047}\u{3049}\u{3063}\u{3083}\u{3085}\u{3087}\u{308e}\u{3095}\
    \u{3096}\u{30a1}\u{30a3}\u{30a5}\u{30a7}\u{30a9}\u{30c3}\u{30e3}\u{30e5}\u{30e7}\u{30ee}\u{30f5}\u{30f6}\u{964}\u{965}\
    \u{e2f}\u{e46}\u{eaf}\u{ec6}\u{104a}\u{104b}\u{17d4}\u{17d5}\u{17d7}";
/// Opening punctuation and vowels that are written before their consonant, which no line ends with.
const OPENING: &str = "([{$\u{a5}\u{ffe5}\u{2018}\u{201c}\u{ab}\u{ff08}\u{ff3b}\u{ff5b}\u{ff5f}\u{3008}\u{300a}\u{300c}\u{300e}\
    \u{3010}\u{3014}\u{3016}\u{3018}\u{301a}\u{ff62}\u{e40}\u{e41}\u{e42}\u{e43}\u{e44}\u{ec0}\u{ec1}\u{ec2}\u{ec3}\u{ec4}";
/// Brackets and quotation marks that may stand between a full stop and the end of its sentence.
const QUOTES: &str = ")]}\"'\u{2019}\u{201d}\u{bb}\u{ff09}\u{ff3d}\u{300b}\u{300d}\u{300f}\u{3011}";

/// What ends with a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// A sentence.
    Sentence,
    /// A part of a sentence, with its punctuation.
    Clause,
    /// A word, or a character of a script that is written without spaces.
    Word,
    /// Nothing: a word too long for a line is cut.
    Inside,
}

/// A part of a text, at most a line wide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece<'t> {
    pub text: &'t str,
    /// Whether a space stands before it, unless it begins a line.
    pub is_spaced: bool,
    pub columns: usize,
    pub end: End,
}

impl Piece<'_> {
    /// Columns that it adds to a line that has begun.
    pub(crate) fn added(&self) -> usize {
        usize::from(self.is_spaced) + self.columns
    }
}

/// Columns of a text on a screen with fixed widths: wide characters are two, combining ones none.
pub(crate) fn columns(text: &str) -> usize {
    text.width()
}

/// The pieces of a text, none wider than `max_columns`, at least two. White space of any kind is one space.
pub(crate) fn pieces(text: &str, max_columns: usize) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let words: Vec<&str> = text.split_whitespace().collect();
    for (i, word) in words.iter().enumerate() {
        let next = words.get(i + 1).copied();
        let mut is_spaced = i > 0;
        let mut chunks = chunks(word).into_iter().peekable();
        while let Some(chunk) = chunks.next() {
            let end = if chunks.peek().is_some() { end_inside(chunk) } else { end_of_word(chunk, word, next) };
            let mut parts = cut(chunk, max_columns).into_iter().peekable();
            while let Some(text) = parts.next() {
                let end = if parts.peek().is_some() { End::Inside } else { end };
                pieces.push(Piece { text, is_spaced, columns: columns(text), end });
                is_spaced = false;
            }
        }
    }
    pieces
}

/// Where scripts that are written without spaces may be cut: between characters, not before closing punctuation.
fn chunks(word: &str) -> Vec<&str> {
    let mut chunks = Vec::new();
    let mut start = 0;
    let mut before: Option<&str> = None;
    for (at, grapheme) in word.grapheme_indices(true) {
        if before.is_some_and(|before| may_part(before, grapheme)) {
            chunks.push(&word[start..at]);
            start = at;
        }
        before = Some(grapheme);
    }
    chunks.push(&word[start..]);
    chunks
}

fn may_part(before: &str, after: &str) -> bool {
    let is = |set: &str, text: &str| text.chars().next().is_some_and(|c| set.contains(c));
    let is_unspaced = |text: &str| text.chars().next().is_some_and(is_unspaced);
    (is_unspaced(before) || is_unspaced(after)) && !is(CLOSING, after) && !is(OPENING, before)
}

/// Characters of scripts that are written without spaces between words.
fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c),
        0x0e00..=0x0eff // Thai, Lao
        | 0x1000..=0x109f // Myanmar
        | 0x1780..=0x17ff // Khmer
        | 0x2e80..=0x312f // radicals, CJK punctuation, kana, bopomofo
        | 0x3190..=0x4dbf // annotations, strokes, enclosed characters, Han extension A
        | 0x4e00..=0x9fff // Han
        | 0xf900..=0xfaff // compatibility Han
        | 0xff00..=0xff9f // full-width forms, half-width kana
        | 0x20000..=0x3ffff // Han extensions B and later
    )
}

/// A chunk in parts that fit a line.
fn cut(chunk: &str, max_columns: usize) -> Vec<&str> {
    if columns(chunk) <= max_columns {
        return vec![chunk];
    }
    let mut parts = Vec::new();
    let (mut start, mut used) = (0, 0);
    let mut push = |at: usize, text: &str| {
        let n = columns(text);
        if used + n > max_columns && used > 0 {
            parts.push(&chunk[start..at]);
            (start, used) = (at, 0);
        }
        used += n;
    };
    for (at, grapheme) in chunk.grapheme_indices(true) {
        if columns(grapheme) <= max_columns {
            push(at, grapheme);
        } else {
            grapheme.char_indices().for_each(|(i, c)| push(at + i, &grapheme[i..i + c.len_utf8()]));
        }
    }
    parts.push(&chunk[start..]);
    parts
}

/// What ends with a chunk that the word goes on after.
fn end_inside(chunk: &str) -> End {
    match last_of(chunk) {
        Some(c) if SENTENCE_ENDS.contains(c) && !c.is_ascii() => End::Sentence,
        Some(c) if CLAUSE_ENDS.contains(c) && !c.is_ascii() => End::Clause,
        _ => End::Word,
    }
}

/// What ends with the last chunk of a word.
fn end_of_word(chunk: &str, word: &str, next: Option<&str>) -> End {
    match last_of(chunk) {
        Some('.') if !ends_sentence(word, next) => End::Word,
        Some('.') => End::Sentence,
        Some(c) if SENTENCE_ENDS.contains(c) => End::Sentence,
        Some(c) if CLAUSE_ENDS.contains(c) => End::Clause,
        _ => End::Word,
    }
}

/// The last character before quotation marks and brackets.
fn last_of(chunk: &str) -> Option<char> {
    chunk.trim_end_matches(|c| QUOTES.contains(c)).chars().next_back()
}

/// Whether a full stop is the end of a sentence, not of an abbreviation.
fn ends_sentence(word: &str, next: Option<&str>) -> bool {
    if next.is_some_and(|next| next.starts_with(char::is_lowercase)) {
        return false;
    }
    let stem = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let is_initial = stem.chars().count() == 1 && stem.chars().all(char::is_alphabetic) && stem != "i";
    !is_initial && !TITLES.contains(&stem.as_str())
}

/// How many lines of `max_columns` the pieces need, and whether they fit into `max_lines`, piece by piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filling {
    max_columns: usize,
    /// Lines so far.
    pub lines: usize,
    used: usize,
}

impl Filling {
    /// Nothing so far.
    pub(crate) fn new(max_columns: usize) -> Self {
        Self { max_columns, lines: 0, used: 0 }
    }

    /// Adds the next piece: to the last line where there is room.
    pub(crate) fn push(&mut self, piece: &Piece<'_>) {
        if self.lines > 0 && self.used + piece.added() <= self.max_columns {
            self.used += piece.added();
        } else {
            (self.lines, self.used) = (self.lines + 1, piece.columns);
        }
    }
}

/// The pieces in as few lines as they need, as even as can be: the sum of the squares of the widths is smallest.
pub(crate) fn wrap(pieces: &[Piece<'_>], max_columns: usize) -> Vec<String> {
    let mut filling = Filling::new(max_columns);
    pieces.iter().for_each(|piece| filling.push(piece));
    let n = pieces.len();
    // Costs of the first pieces in so many lines, and where the last of these begins.
    let mut costs = vec![f64::INFINITY; n + 1];
    costs[0] = 0.0;
    let mut begins = Vec::with_capacity(filling.lines);
    for _ in 0..filling.lines {
        let mut next = vec![f64::INFINITY; n + 1];
        let mut begin = vec![0; n + 1];
        for first in (0..n).filter(|&first| costs[first].is_finite()) {
            let mut width = 0;
            for (i, piece) in pieces.iter().enumerate().skip(first) {
                width += if i == first { piece.columns } else { piece.added() };
                if width > max_columns {
                    break;
                }
                let cost = costs[first] + (width as f64).powi(2);
                if cost < next[i + 1] {
                    (next[i + 1], begin[i + 1]) = (cost, first);
                }
            }
        }
        costs = next;
        begins.push(begin);
    }
    let mut lines = Vec::with_capacity(begins.len());
    let mut end = n;
    for begin in begins.iter().rev() {
        lines.push(join(&pieces[begin[end]..end]));
        end = begin[end];
    }
    lines.reverse();
    lines
}

/// The pieces as one line.
pub(crate) fn join(pieces: &[Piece<'_>]) -> String {
    let mut line = String::new();
    for (i, piece) in pieces.iter().enumerate() {
        if piece.is_spaced && i > 0 {
            line.push(' ');
        }
        line.push_str(piece.text);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(text: &str) -> Vec<(&str, End)> {
        pieces(text, 42).iter().map(|piece| (piece.text, piece.end)).collect()
    }

    #[test]
    fn words_are_pieces_and_know_what_ends_with_them() {
        use End::{Clause, Sentence, Word};
        assert_eq!(
            ends("Well, \"no.\"\n\nDr. J. Smith  paid 3.50 at 5 p.m. today\u{2026} So do I. (Yes!)"),
            [
                ("Well,", Clause),
                ("\"no.\"", Sentence),
                ("Dr.", Word),
                ("J.", Word),
                ("Smith", Word),
                ("paid", Word),
                ("3.50", Word),
                ("at", Word),
                ("5", Word),
                ("p.m.", Word),
                ("today\u{2026}", Sentence),
                ("So", Word),
                ("do", Word),
                ("I.", Sentence),
                ("(Yes!)", Sentence),
            ]
        );
    }

    #[test]
    fn scripts_without_spaces_are_cut_between_characters() {
        use End::{Clause, Sentence, Word};
        // Not before a full stop or small kana, not after an opening bracket, not within a Latin word.
        assert_eq!(
            ends("\u{4f60}\u{597d}\u{ff0c}\u{300c}\u{4e16}\u{754c}\u{3002}\u{300d}Linux\u{304d}\u{3083}"),
            [
                ("\u{4f60}", Word),
                ("\u{597d}\u{ff0c}", Clause),
                ("\u{300c}\u{4e16}", Word),
                ("\u{754c}\u{3002}\u{300d}", Sentence),
                ("Linux", Word),
                ("\u{304d}\u{3083}", Word),
            ]
        );
        // Thai: a vowel that is written first stays with its consonant, marks with their letter. Hangul is cut at spaces.
        assert_eq!(ends("\u{e40}\u{e21}\u{e37}\u{e2d}").len(), 2);
        assert_eq!(ends("\u{c548}\u{b155} \u{c138}\u{acc4}").len(), 2);
    }

    #[test]
    fn wide_characters_count_two_columns_and_combining_ones_none() {
        let widths = |text| pieces(text, 42).iter().map(|piece| piece.columns).collect::<Vec<_>>();
        assert_eq!(widths("ab \u{4f60}\u{597d} e\u{301} \u{ff21} \u{1f600}"), [2, 2, 2, 1, 2, 2]);
    }

    #[test]
    fn words_wider_than_a_line_are_cut() {
        let cut: Vec<_> = pieces("see https://example.org/a yes", 10).iter().map(|p| (p.text, p.end)).collect();
        assert_eq!(
            cut,
            [
                ("see", End::Word),
                ("https://ex", End::Inside),
                ("ample.org/", End::Inside),
                ("a", End::Word),
                ("yes", End::Word)
            ]
        );
        // A letter keeps its marks.
        let marked = "e\u{301}".repeat(25);
        assert!(pieces(&marked, 10).iter().all(|piece| piece.text.starts_with('e') && piece.columns <= 10));
        let jamo = "\u{1100}".repeat(40);
        assert!(pieces(&jamo, 10).iter().all(|piece| piece.columns <= 10), "one grapheme of 80 columns");
    }

    #[test]
    fn lines_are_as_few_and_as_even_as_can_be() {
        let wrapped = |text: &str, max| wrap(&pieces(text, max), max);
        assert_eq!(wrapped("one two three four five six", 42), ["one two three four five six"]);
        assert_eq!(wrapped("one two three four five six", 20), ["one two three", "four five six"]);
        assert_eq!(wrapped("aaaaaaaaaa b", 10), ["aaaaaaaaaa", "b"]);
        assert_eq!(
            wrapped("\u{4f60}\u{597d}\u{4e16}\u{754c}\u{3002}", 6),
            ["\u{4f60}\u{597d}", "\u{4e16}\u{754c}\u{3002}"]
        );
        assert_eq!(wrapped("", 10), [""; 0]);
    }
}
