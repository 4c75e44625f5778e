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
    /// Its other codes: those of ISO 639-3 and 639-2, of the standard language of a macrolanguage, and of Tagalog, by which
    /// CLDR means Filipino.
    pub other_codes: &'static [&'static str],
}

/// All languages that any of the models supports, in the order of Qwen3-ASR's official list, which has them all.
///
/// Source: `qwen_asr`, `SUPPORTED_LANGUAGES`; the codes are those of transformers' Qwen3-ASR processor, the other ones those of
/// the ISO 639-3 registry and of CLDR's `languageAlias`.
pub const LANGUAGES: [Language; 30] = [
    Language { name: "Chinese", code: "zh", other_codes: &["zho", "chi", "cmn"] },
    Language { name: "English", code: "en", other_codes: &["eng"] },
    Language { name: "Cantonese", code: "yue", other_codes: &[] },
    Language { name: "Arabic", code: "ar", other_codes: &["ara", "arb"] },
    Language { name: "German", code: "de", other_codes: &["deu", "ger"] },
    Language { name: "French", code: "fr", other_codes: &["fra", "fre"] },
    Language { name: "Spanish", code: "es", other_codes: &["spa"] },
    Language { name: "Portuguese", code: "pt", other_codes: &["por"] },
    Language { name: "Indonesian", code: "id", other_codes: &["ind"] },
    Language { name: "Italian", code: "it", other_codes: &["ita"] },
    Language { name: "Korean", code: "ko", other_codes: &["kor"] },
    Language { name: "Russian", code: "ru", other_codes: &["rus"] },
    Language { name: "Thai", code: "th", other_codes: &["tha"] },
    Language { name: "Vietnamese", code: "vi", other_codes: &["vie"] },
    Language { name: "Japanese", code: "ja", other_codes: &["jpn"] },
    Language { name: "Turkish", code: "tr", other_codes: &["tur"] },
    Language { name: "Hindi", code: "hi", other_codes: &["hin"] },
    Language { name: "Malay", code: "ms", other_codes: &["msa", "may", "zsm"] },
    Language { name: "Dutch", code: "nl", other_codes: &["nld", "dut"] },
    Language { name: "Swedish", code: "sv", other_codes: &["swe"] },
    Language { name: "Danish", code: "da", other_codes: &["dan"] },
    Language { name: "Finnish", code: "fi", other_codes: &["fin"] },
    Language { name: "Polish", code: "pl", other_codes: &["pol"] },
    Language { name: "Czech", code: "cs", other_codes: &["ces", "cze"] },
    Language { name: "Filipino", code: "fil", other_codes: &["tl", "tgl"] },
    Language { name: "Persian", code: "fa", other_codes: &["fas", "per", "pes"] },
    Language { name: "Greek", code: "el", other_codes: &["ell", "gre"] },
    Language { name: "Romanian", code: "ro", other_codes: &["ron", "rum"] },
    Language { name: "Hungarian", code: "hu", other_codes: &["hun"] },
    Language { name: "Macedonian", code: "mk", other_codes: &["mkd", "mac"] },
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

/// Whether an ISO code, in lower case, is one of the language with this name.
fn has_code(name: &str, code: &str) -> bool {
    let named = LANGUAGES.iter().find(|language| language.name.eq_ignore_ascii_case(name));
    named.is_some_and(|language| language.code == code || language.other_codes.contains(&code))
}

/// The code that says the language in a tag of several parts, with hyphens or, as in locales, underscores: the first one, or
/// the second where that is a language of its own (`zh-yue`). Nothing for what is no tag.
///
/// Source: RFC 5646, section 2.1.
fn language_of_tag(tag: &str) -> Option<&str> {
    let parts: Vec<&str> = tag.split(['-', '_']).collect();
    let is_part = |part: &&str| (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_extended = |part: &str| part.len() == 3 && part.bytes().all(|b| b.is_ascii_alphabetic());
    match parts[..] {
        [_, second, ..] if parts.iter().all(is_part) && is_extended(second) => Some(second),
        [first, _, ..] if parts.iter().all(is_part) => Some(first),
        _ => None,
    }
}

/// The supported language that `wanted` names in any case: by its name, an ISO 639 code (`de`, `deu`), or a tag that begins
/// with one (`de-AT`, `zh_Hant_TW`).
///
/// `supported`: names from the model's own list; empty means all of [`LANGUAGES`]. Returns the name as the list has it.
pub fn find(wanted: &str, supported: &[String]) -> Result<String, UnknownLanguage> {
    let supported: Vec<&str> = if supported.is_empty() {
        LANGUAGES.iter().map(|language| language.name).collect()
    } else {
        supported.iter().map(String::as_str).collect()
    };
    let asked = wanted.trim().to_lowercase();
    let code = language_of_tag(&asked).unwrap_or(&asked);
    let is_asked = |name: &str| name.to_lowercase() == asked || has_code(name, code);
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

    // Expected values: the ISO 639-3 registry, and examples of RFC 5646.
    #[test]
    fn a_language_is_found_by_other_codes_and_by_tags() {
        for (wanted, name) in [
            ("deu", "German"),
            ("ger", "German"),
            ("ENG", "English"),
            ("fre", "French"),
            ("ces", "Czech"),
            ("mac", "Macedonian"),
            ("zsm", "Malay"),
            ("tl", "Filipino"),
            ("de-AT", "German"),
            ("en_US", "English"),
            ("EN-us", "English"),
            ("zh-CN", "Chinese"),
            ("zh-Hant-TW", "Chinese"),
            ("zh-cmn-Hans-CN", "Chinese"),
            ("zh-yue-HK", "Cantonese"),
            ("yue-Hant", "Cantonese"),
            ("es-419", "Spanish"),
            ("de-CH-1996", "German"),
            ("eng-GB", "English"),
            ("fil-PH", "Filipino"),
        ] {
            assert_eq!(find(wanted, &[]).as_deref(), Ok(name), "{wanted}");
        }
        for wanted in
            ["zh-nan", "eo", "epo-US", "de-", "-de", "de--AT", "de-AT!", "d-e", "german-AT", "de-abcdefghi", "-", "_"]
        {
            assert!(find(wanted, &[]).is_err(), "{wanted}");
        }
    }

    #[test]
    fn no_code_means_two_languages() {
        let codes = LANGUAGES.iter().flat_map(|l| std::iter::once(&l.code).chain(l.other_codes));
        let mut codes: Vec<&str> = codes.copied().collect();
        let n = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), n);
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
