//! From what the model wrote to language and text.
//!
//! Source: `qwen_asr`, `inference/utils.py`: `parse_asr_output`, `detect_and_fix_repetitions`. White space and lines are those
//! of Python's `str`.

use crate::speech::{Parsed, trim};

/// Between the language and the text.
pub(crate) const ASR_TEXT: &str = "<asr_text>";
/// Begins the line that names the language.
const LANGUAGE: &str = "language ";
/// Named instead of a language when nothing is spoken.
const NO_SPEECH: &str = "language none";
/// A character that is repeated more often, and a pattern that is repeated at least as often, is kept once.
const MAX_REPEATS: usize = 20;
/// Longest pattern in characters whose repeats are looked for.
const MAX_PATTERN: usize = 20;

/// Takes an answer apart: `language English<asr_text>Hello.`
///
/// `answer`: the decoded tokens without control tokens. `forced`: the language that was forced, if one was; the answer
/// then is the text. Repetitions that no one speaks are cut down, see [`fix_repetitions`].
pub fn parse(answer: &str, forced: Option<&str>) -> Parsed {
    let answer = trim(answer);
    if answer.is_empty() {
        return Parsed::default();
    }
    let answer = fix_repetitions(answer);
    if let Some(language) = forced {
        return Parsed { language: language.to_owned(), text: answer };
    }
    let Some((meta, text)) = answer.split_once(ASR_TEXT) else {
        return Parsed { language: String::new(), text: trim(&answer).to_owned() };
    };
    let language = if meta.to_lowercase().contains(NO_SPEECH) { String::new() } else { language(meta) };
    Parsed { language, text: trim(text).to_owned() }
}

/// The language named by the first line of `meta` that begins with `language `, first letter upper case, rest lower.
fn language(meta: &str) -> String {
    let named = meta.split(is_line_break).map(trim).find_map(|line| {
        let (start, name) = line.split_at_checked(LANGUAGE.len())?;
        start.eq_ignore_ascii_case(LANGUAGE).then(|| trim(name))
    });
    let mut letters = named.unwrap_or_default().chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

/// Where Python's `str.splitlines` splits. `\r\n` gives an empty line more here, which names no language.
fn is_line_break(c: char) -> bool {
    matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Cuts down what a model that got stuck repeats: first runs of one character longer than 20, then patterns of up to 20
/// characters that follow each other 20 times or more. What is repeated stays once.
///
/// Counted in Unicode code points. Time: linear, about 20 steps for a character.
pub fn fix_repetitions(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    fix_patterns(&fix_runs(&chars)).into_iter().collect()
}

/// Runs of one character longer than [`MAX_REPEATS`] become one character.
fn fix_runs(text: &[char]) -> Vec<char> {
    text.chunk_by(|a, b| a == b)
        .flat_map(|run| if run.len() > MAX_REPEATS { &run[..1] } else { run })
        .copied()
        .collect()
}

/// Patterns that follow each other at least [`MAX_REPEATS`] times become one; at each place the shortest is taken.
fn fix_patterns(text: &[char]) -> Vec<char> {
    // Nothing is looked for where fewer characters are left, even of a pattern of one character.
    const MIN_REST: usize = 2 * MAX_REPEATS;
    // For each length `k`, the first place from the present one on where a character differs from the one `k` later.
    let mut differs = [0; MAX_PATTERN + 1];
    let mut fixed = Vec::with_capacity(text.len());
    let mut at = 0;
    while text.len() - at >= MIN_REST {
        let found = (1..=MAX_PATTERN.min((text.len() - at) / MAX_REPEATS)).find_map(|k| {
            let end = differs[k].max(at);
            let equal = text[end..].iter().zip(&text[end + k..]).take_while(|(a, b)| a == b).count();
            differs[k] = end + equal;
            let n_repeats = (differs[k] - at) / k + 1;
            (n_repeats >= MAX_REPEATS).then_some((k, n_repeats))
        });
        match found {
            Some((k, n_repeats)) => {
                fixed.extend_from_slice(&text[at..at + k]);
                at += k * n_repeats;
            }
            None => {
                fixed.push(text[at]);
                at += 1;
            }
        }
    }
    fixed.extend_from_slice(&text[at..]);
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values: `parse_asr_output` and `detect_and_fix_repetitions` of qwen_asr 0.0.6.

    #[test]
    fn answers_are_parsed_as_the_official_code_does() {
        let cases = [
            ("language English<asr_text>Hello there.", "English", "Hello there."),
            ("language None<asr_text>", "", ""),
            ("language None<asr_text> noise ", "", "noise"),
            ("LANGUAGE NONE<asr_text>x", "", "x"),
            ("  language cHINESE \n<asr_text>\u{4f60}\u{597d}\n", "Chinese", "\u{4f60}\u{597d}"),
            ("\n\nfoo\nLanguage  greek \nlanguage Thai<asr_text>t", "Greek", "t"),
            ("language <asr_text>t", "", "t"),
            ("language\nGerman<asr_text>t", "", "t"),
            ("languages German<asr_text>t", "", "t"),
            ("language \u{3c3}\u{39f}\u{3a3}<asr_text>t", "\u{3a3}\u{3bf}\u{3c2}", "t"),
            ("language \u{df}x<asr_text>t", "SSx", "t"),
            ("foo\u{85}language Dutch\u{2028}bar<asr_text>t", "Dutch", "t"),
            ("\u{1f}\u{1c}language Dutch\u{1d}<asr_text>\u{1e}t\u{a0}", "Dutch", "t"),
            ("just text ", "", "just text"),
            ("a<asr_text>b<asr_text>c", "", "b<asr_text>c"),
            ("<asr_text>b", "", "b"),
            ("<ASR_TEXT>b", "", "<ASR_TEXT>b"),
            ("   ", "", ""),
            ("", "", ""),
        ];
        for (answer, language, text) in cases {
            let want = Parsed { language: language.into(), text: text.into() };
            assert_eq!(parse(answer, None), want, "{answer:?}");
        }
    }

    #[test]
    fn a_forced_language_leaves_the_answer_as_it_is() {
        let parsed = |language: &str, text: &str| Parsed { language: language.into(), text: text.into() };
        assert_eq!(parse(" hello ", Some("English")), parsed("English", "hello"));
        let tagged = "language German<asr_text>hallo";
        assert_eq!(parse(tagged, Some("English")), parsed("English", tagged));
        assert_eq!(parse(" \n", Some("English")), Parsed::default());
    }

    #[test]
    fn repetitions_are_cut_down_as_the_official_code_does() {
        let cases = [
            ("a".repeat(25), "a".into()),
            ("x".repeat(39), "x".into()),
            ("x".repeat(20), "x".repeat(20)),
            ("ab".repeat(20), "ab".into()),
            ("ab".repeat(19), "ab".repeat(19)),
            ("\u{54c8}".repeat(21) + "!", "\u{54c8}!".into()),
            ("hello ".repeat(30) + "bye", "hello bye".into()),
            ("Q ".to_owned() + &"I think. ".repeat(30) + "end.", "Q I think. end.".into()),
            // A run of 20 survives the first pass; the second takes it where 40 characters or more are left.
            ("x".repeat(20) + &"0123456789".repeat(2), "x0123456789".to_owned() + "0123456789"),
            ("x".repeat(20) + "0123456789012345678", "x".repeat(20) + "0123456789012345678"),
            // Two stuck places, the second with a pattern of the longest length.
            ("ab".repeat(21) + "!" + &"0123456789abcdefghij".repeat(22) + "0123", "ab!0123456789abcdefghij0123".into()),
            ("0123456789abcdefghijk".repeat(22), "0123456789abcdefghijk".repeat(22)),
        ];
        for (text, want) in cases {
            assert_eq!(fix_repetitions(&text), want, "{text:?}");
        }
        let answer = "language English<asr_text>".to_owned() + &"no ".repeat(50);
        assert_eq!(parse(&answer, None), Parsed { language: "English".into(), text: "no no".into() });
    }

    #[test]
    fn a_megabyte_of_near_repeats_is_parsed() {
        // Each pattern breaks just before it would count, and what breaks it never repeats.
        for pattern in ["a", "ab", "abcdefghij", "abcdefghijklmnopqrst"] {
            let breaks = ('\u{4e00}'..='\u{9fff}').cycle().take((1 << 20) / (19 * pattern.len() + 1));
            let text: String = breaks.map(|c| pattern.repeat(19) + &c.to_string()).collect();
            assert!(fix_repetitions(&text) == text, "{pattern}");
        }
        assert_eq!(fix_repetitions(&"ab".repeat(1 << 19)), "ab");
    }
}
