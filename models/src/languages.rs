//! Languages that speech models name: names, codes, and finding one from what a user typed.

use std::fmt;

/// Most characters of a name that are compared when the nearest match is looked for.
const MAX_COMPARED_CHARS: usize = 32;

/// A language as the model names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language {
    /// English name, the one the model reads and writes.
    pub name: &'static str,
    /// ISO 639 code: two letters, or three where there are no two.
    pub code: &'static str,
}

/// All languages that any of the models supports, in the order of Qwen3-ASR's official list, which has them all.
///
/// Source: `qwen_asr`, `SUPPORTED_LANGUAGES`; the codes are those of transformers' Qwen3-ASR processor.
pub const LANGUAGES: [Language; 30] = [
    Language { name: "Chinese", code: "zh" },
    Language { name: "English", code: "en" },
    Language { name: "Cantonese", code: "yue" },
    Language { name: "Arabic", code: "ar" },
    Language { name: "German", code: "de" },
    Language { name: "French", code: "fr" },
    Language { name: "Spanish", code: "es" },
    Language { name: "Portuguese", code: "pt" },
    Language { name: "Indonesian", code: "id" },
    Language { name: "Italian", code: "it" },
    Language { name: "Korean", code: "ko" },
    Language { name: "Russian", code: "ru" },
    Language { name: "Thai", code: "th" },
    Language { name: "Vietnamese", code: "vi" },
    Language { name: "Japanese", code: "ja" },
    Language { name: "Turkish", code: "tr" },
    Language { name: "Hindi", code: "hi" },
    Language { name: "Malay", code: "ms" },
    Language { name: "Dutch", code: "nl" },
    Language { name: "Swedish", code: "sv" },
    Language { name: "Danish", code: "da" },
    Language { name: "Finnish", code: "fi" },
    Language { name: "Polish", code: "pl" },
    Language { name: "Czech", code: "cs" },
    Language { name: "Filipino", code: "fil" },
    Language { name: "Persian", code: "fa" },
    Language { name: "Greek", code: "el" },
    Language { name: "Romanian", code: "ro" },
    Language { name: "Hungarian", code: "hu" },
    Language { name: "Macedonian", code: "mk" },
];

/// A language that the model does not support.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownLanguage {
    /// What was asked for.
    pub wanted: String,
    /// The supported name that is spelled most alike, when one is near.
    pub nearest: Option<String>,
    /// Supported names, in the order of the list.
    pub supported: Vec<String>,
}

impl fmt::Display for UnknownLanguage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "language {:?} is not supported", self.wanted)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean {nearest}?")?;
        }
        write!(f, " (supported:")?;
        for (i, name) in self.supported.iter().enumerate() {
            write!(f, "{} {name}", if i == 0 { "" } else { "," })?;
            if let Some(code) = code_of(name) {
                write!(f, " {code}")?;
            }
        }
        f.write_str(")")
    }
}

impl std::error::Error for UnknownLanguage {}

/// ISO code of a language by its name in any case.
fn code_of(name: &str) -> Option<&'static str> {
    LANGUAGES.iter().find(|language| language.name.eq_ignore_ascii_case(name)).map(|language| language.code)
}

/// The supported language that `wanted` names, by name or ISO code in any case.
///
/// `supported`: names from the model's own list; empty means all of [`LANGUAGES`]. Returns the name as the list has it.
pub fn find(wanted: &str, supported: &[String]) -> Result<String, UnknownLanguage> {
    let supported: Vec<&str> = if supported.is_empty() {
        LANGUAGES.iter().map(|language| language.name).collect()
    } else {
        supported.iter().map(String::as_str).collect()
    };
    let asked = wanted.trim().to_lowercase();
    let is_asked = |name: &str| name.to_lowercase() == asked || code_of(name) == Some(asked.as_str());
    match supported.iter().find(|name| is_asked(name)) {
        Some(name) => Ok((*name).to_owned()),
        None => Err(UnknownLanguage {
            nearest: nearest(&asked, &supported).map(str::to_owned),
            wanted: wanted.to_owned(),
            supported: supported.into_iter().map(str::to_owned).collect(),
        }),
    }
}

/// The name with the fewest edits from `asked`, which is in lower case, if fewer than half of its letters change.
pub fn nearest<'a>(asked: &str, supported: &[&'a str]) -> Option<&'a str> {
    let asked: Vec<char> = asked.chars().take(MAX_COMPARED_CHARS).collect();
    supported
        .iter()
        .map(|&name| {
            let letters: Vec<char> = name.to_lowercase().chars().take(MAX_COMPARED_CHARS).collect();
            (edits(&asked, &letters), letters.len(), name)
        })
        .filter(|&(edits, n_letters, _)| 2 * edits < n_letters)
        .min_by_key(|&(edits, ..)| edits)
        .map(|(.., name)| name)
}

/// Fewest letters inserted, deleted or replaced, or neighbours swapped, that turn `a` into `b`.
fn edits(a: &[char], b: &[char]) -> usize {
    // Rows of the table for the prefixes of `a` of two less, one less and the present length.
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, &ca) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, &cb) in b.iter().enumerate() {
            let replaced = above[j] + usize::from(ca != cb);
            row[j + 1] = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && ca == b[j - 1] && a[i - 1] == cb {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_is_found_by_name_or_code_in_any_case() {
        for language in LANGUAGES {
            for wanted in [language.name, language.code, &language.name.to_uppercase(), &format!(" {} ", language.code)]
            {
                assert_eq!(find(wanted, &[]).as_deref(), Ok(language.name), "{wanted:?}");
            }
        }
    }

    #[test]
    fn the_model_list_decides() {
        let list = ["English".to_owned(), "Klingon".to_owned()];
        assert_eq!(find("EN", &list).as_deref(), Ok("English"));
        assert_eq!(find("klingon", &list).as_deref(), Ok("Klingon"));
        let message = find("German", &list).unwrap_err().to_string();
        assert_eq!(message, "language \"German\" is not supported (supported: English en, Klingon)");
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        for (wanted, nearest) in
            [("Englsih", "English"), ("frensh", "French"), ("Portugese", "Portuguese"), ("chines", "Chinese")]
        {
            assert_eq!(find(wanted, &[]).unwrap_err().nearest.as_deref(), Some(nearest));
        }
        for wanted in ["", "xx", "Esperanto-like", &"x".repeat(100_000)] {
            assert_eq!(find(wanted, &[]).unwrap_err().nearest, None, "{wanted:?}");
        }
    }
}
