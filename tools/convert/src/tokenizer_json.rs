//! What kind of tokenizer a `tokenizer.json` describes. [`Kind`] is the type to read first.
//!
//! llama.cpp's converter knows pre-tokenizers by a hash of what they make of a text; here they are known by their rule, so that
//! a vocabulary that nobody has published is converted too. Rules that nothing here computes are refused.

use models::tokenizer::{Expression, PreTokenizer};
use serde_json::Value;

use crate::files::brief;

/// Expressions as `tokenizer.json` has them, with what they are called here.
const EXPRESSIONS: [(&str, Expression); 3] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Expression::Llama { max_digits: 1, marks_are_letters: false },
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Expression::Llama { max_digits: 1, marks_are_letters: true },
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Expression::Llama { max_digits: 3, marks_are_letters: false },
    ),
];

/// What SentencePiece has in place of a space.
const SPACE: &str = "\u{2581}";

/// A kind of tokenizer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Byte-level BPE. Names of its pre-tokenizer in GGUF files, of which any is right; none where the file has no
    /// pre-tokenizer.
    ByteLevel(&'static [&'static str]),
    /// SentencePiece's BPE.
    SentencePiece {
        /// Whether a text begins as if a space stood before it.
        has_space_prefix: bool,
    },
}

/// The kind of tokenizer of `tokenizer.json`; else what is not supported in it.
pub(crate) fn kind(file: &Value) -> Result<Kind, String> {
    let model = &file["model"];
    let (normalizer, pre_tokenizer) = (&file["normalizer"], &file["pre_tokenizer"]);
    if model["byte_fallback"] == true {
        return sentence_piece(normalizer, pre_tokenizer);
    }
    if pre_tokenizer.is_null() {
        return Ok(Kind::ByteLevel(&[]));
    }
    let unknown = || format!("pre_tokenizer: not a rule that is supported: {}", brief(pre_tokenizer));
    let expression = expression(&parts(pre_tokenizer, "pretokenizers")).ok_or_else(unknown)?;
    let normalizes = match parts(normalizer, "normalizers")[..] {
        [] => false,
        [one] if one["type"] == "NFC" => true,
        _ => return Err(format!("normalizer: want none or NFC, got {}", brief(normalizer))),
    };
    match PreTokenizer::names_of(expression, normalizes, model["ignore_merges"] == true) {
        [] => Err(unknown()),
        names => Ok(Kind::ByteLevel(names)),
    }
}

/// The members of a sequence, or the one thing that is no sequence.
fn parts<'a>(value: &'a Value, members: &str) -> Vec<&'a Value> {
    match value[members].as_array() {
        Some(list) => list.iter().collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

/// How words are found.
fn expression(parts: &[&Value]) -> Option<Expression> {
    let is_byte_level = |part: &Value, use_regex: bool| {
        part["type"] == "ByteLevel" && part["add_prefix_space"] != true && (part["use_regex"] != false) == use_regex
    };
    match parts {
        [one] if is_byte_level(one, true) => Some(Expression::Gpt2 { single_digits: false }),
        [digits, one]
            if digits["type"] == "Digits" && digits["individual_digits"] == true && is_byte_level(one, true) =>
        {
            Some(Expression::Gpt2 { single_digits: true })
        }
        [split, one] if split["type"] == "Split" && is_byte_level(one, false) => {
            let is_whole = split["behavior"] == "Isolated" && split["invert"] != true;
            let text = split["pattern"]["Regex"].as_str().filter(|_| is_whole)?;
            EXPRESSIONS.iter().find(|(known, _)| *known == text).map(|&(_, expression)| expression)
        }
        _ => None,
    }
}

/// Spaces are made part of the words by the normalizer, or by the pre-tokenizer `Metaspace`.
fn sentence_piece(normalizer: &Value, pre_tokenizer: &Value) -> Result<Kind, String> {
    let mut has_space_prefix = false;
    for part in parts(normalizer, "normalizers") {
        match part["type"].as_str() {
            Some("Prepend") if part["prepend"] == SPACE => has_space_prefix = true,
            Some("Replace") if part["pattern"]["String"] == " " && part["content"] == SPACE => {}
            _ => return Err(format!("normalizer: not one of SentencePiece's BPE that is supported: {}", brief(part))),
        }
    }
    for part in parts(pre_tokenizer, "pretokenizers") {
        let is_metaspace = part["type"] == "Metaspace" && part["replacement"] == SPACE && part["split"] != true;
        match part["prepend_scheme"].as_str() {
            Some("always" | "first") if is_metaspace => has_space_prefix = true,
            Some("never") if is_metaspace => {}
            _ => return Err(format!("pre_tokenizer: not one of SentencePiece's BPE: {}", brief(part))),
        }
    }
    Ok(Kind::SentencePiece { has_space_prefix })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn byte_level(pre_tokenizer: Value, normalizer: Value, ignore_merges: bool) -> Result<Kind, String> {
        kind(&json!({
            "model": {"ignore_merges": ignore_merges}, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        }))
    }

    #[test]
    fn rules_are_those_of_the_published_tokenizers() {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex});
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"});
        let both = |a: Value, b: Value| json!({"type": "Sequence", "pretokenizers": [a, b]});
        let [qwen2, qwen35, llama3] = EXPRESSIONS.map(|(regex, _)| both(split(regex), bytes(false)));
        let digits = json!({"type": "Digits", "individual_digits": true});
        let (nfc, none) = (json!({"type": "NFC"}), Value::Null);
        for (pre_tokenizer, normalizer, ignore_merges, want) in [
            (&qwen2, &nfc, false, &["qwen2"][..]),
            (&qwen35, &nfc, false, &["qwen35"]),
            (&llama3, &none, true, &["llama-bpe", "lfm2"]),
            (&llama3, &none, false, &["dbrx"]),
            (&bytes(true), &nfc, false, &["mpt", "olmo"]),
            (&bytes(true), &none, false, &["gpt-2"]),
            (&both(digits, bytes(true)), &none, false, &["refact"]),
            (&none, &none, false, &[]),
        ] {
            let got = byte_level(pre_tokenizer.clone(), normalizer.clone(), ignore_merges);
            assert_eq!(got, Ok(Kind::ByteLevel(want)), "{pre_tokenizer}");
        }
        for pre_tokenizer in [
            both(split(r"\s+"), bytes(false)),
            both(split(EXPRESSIONS[0].0), bytes(true)),
            json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}),
            json!({"type": "Whitespace"}),
        ] {
            assert!(byte_level(pre_tokenizer, nfc.clone(), false).unwrap_err().starts_with("pre_tokenizer: "));
        }
        let message = byte_level(bytes(true), json!({"type": "Lowercase"}), false).unwrap_err();
        assert!(message.starts_with("normalizer: want none or NFC"), "{message}");
    }

    #[test]
    fn sentence_piece_has_two_layouts() {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let prepend = json!({"type": "Prepend", "prepend": SPACE});
        let model = json!({"byte_fallback": true});
        let with = |normalizer: Value, pre_tokenizer: Value| {
            kind(&json!({"model": model, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}))
        };
        let metaspace =
            |scheme: &str| json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false});
        let sequence = json!({"type": "Sequence", "normalizers": [prepend, replace]});
        for (got, want) in [
            (with(sequence, Value::Null), true),
            (with(replace.clone(), Value::Null), false),
            (with(Value::Null, metaspace("first")), true),
            (with(Value::Null, metaspace("never")), false),
        ] {
            assert_eq!(got, Ok(Kind::SentencePiece { has_space_prefix: want }));
        }
        assert!(with(json!({"type": "NFKC"}), Value::Null).unwrap_err().starts_with("normalizer: "));
        assert!(with(replace, json!({"type": "ByteLevel"})).unwrap_err().starts_with("pre_tokenizer: "));
    }
}
