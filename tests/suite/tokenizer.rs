//! The tokenizer against the `tokenizers` crate, which the official code uses, and against published ids.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use convert::vocab::CheckpointVocabulary;
use engine::gguf::Gguf;
use models::tokenizer::{PreTokenizer, Special, TokenKind, Tokenizer, Vocabulary};
use rayon::prelude::*;
use regex_syntax::hir::{Class, HirKind};
use tests::rng::Rng;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior,
};

const N_STRINGS: u64 = 100_000;

/// Splits of the published tokenizers, by the names that GGUF files use.
const SPLITS: [(&[&str], &str); 4] = [
    (
        &["qwen2"],
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        &["qwen35"],
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (&["gpt-2", "mpt", "olmo"], r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    (
        &["llama-bpe", "lfm2", "dbrx"],
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// Our tokenizer and the official one, both from the files of one checkpoint.
fn pair(folder: &Path, pre: &str, n_vocab: usize) -> (Tokenizer, tokenizers::Tokenizer) {
    let ours = CheckpointVocabulary::read(folder, pre, n_vocab).unwrap().vocabulary;
    let mut official = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    // GGUF knows some tokens as control tokens that `tokenizer.json` does not mark as special (`<|fim_prefix|>`).
    let control = ours.tokens.iter().zip(&ours.token_types).filter(|&(_, &token_type)| token_type == 3);
    let control = control.map(|(text, _)| AddedToken::from(text.as_str(), true));
    official.add_special_tokens(control.collect::<Vec<_>>()).unwrap();
    (Tokenizer::new(ours).unwrap(), official)
}

fn kind(name: &str) -> (Tokenizer, tokenizers::Tokenizer) {
    pair(&fixture("tokenizers").join(name), "gpt-2", 704)
}

fn tiny_qwen() -> (Tokenizer, tokenizers::Tokenizer) {
    pair(&fixture("models/tiny-qwen3-asr"), "qwen2", 768)
}

fn tiny_lfm2() -> (Tokenizer, tokenizers::Tokenizer) {
    pair(&fixture("models/tiny-lfm2-audio"), "lfm2", 896)
}

/// User-defined tokens of the published LFM2 vocabulary.
const LFM2_USER_DEFINED: [&str; 2] = ["python", "Mathias"];
/// Words of our own that are tokens but not made by any merge.
const LFM2_WHOLE_WORDS: [&str; 3] = ["turnoff", "\u{120}language", "turned"];
/// Id of the first of them: the rows from here on are free.
const LFM2_FREE: u32 = 829;

/// The tokenizer of the tiny checkpoint with what the published one has and the tiny one lacks.
fn extended_lfm2() -> (Tokenizer, tokenizers::Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("models/tiny-lfm2-audio").join(name), folder.path().join(name)).unwrap();
    }
    let file = std::fs::read(fixture("models/tiny-lfm2-audio/tokenizer.json")).unwrap();
    let mut file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(file["model"]["ignore_merges"], true);
    let mut ids = LFM2_FREE..;
    for (word, id) in LFM2_WHOLE_WORDS.iter().zip(&mut ids) {
        let before = file["model"]["vocab"].as_object_mut().unwrap().insert((*word).into(), id.into());
        assert_eq!(before, None, "{word}");
    }
    for (text, id) in LFM2_USER_DEFINED.iter().zip(&mut ids) {
        file["added_tokens"].as_array_mut().unwrap().push(serde_json::json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": false,
        }));
    }
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    pair(folder.path(), "lfm2", 896)
}

/// Characters of a regular expression's class that Unicode 12.1 assigns.
///
/// The class comes from regex-syntax, whose tables carry the age of each character. 12.1 is the version of the regular
/// expression engine behind the Python package; on characters that are newer the official tokenizers disagree.
fn characters(class: &str) -> Vec<char> {
    let hir = regex_syntax::parse(&format!(r"[{class}&&\p{{Age=12.1}}]")).unwrap();
    let HirKind::Class(Class::Unicode(class)) = hir.kind() else { panic!("{class} is a class of characters") };
    class.iter().flat_map(|range| range.start()..=range.end()).collect()
}

struct Characters {
    all: Vec<char>,
    spaces: Vec<char>,
    numbers: Vec<char>,
    marks: Vec<char>,
    letters: Vec<char>,
    /// Characters that NFC may change together with a mark.
    composed: Vec<char>,
}

fn classes() -> &'static Characters {
    static CLASSES: OnceLock<Characters> = OnceLock::new();
    CLASSES.get_or_init(|| Characters {
        all: characters(r"\p{Any}"),
        spaces: characters(r"\s"),
        numbers: characters(r"\p{N}"),
        marks: characters(r"\p{M}"),
        letters: characters(r"\p{L}"),
        composed: characters(
            r"\u{a0}-\u{24f}\u{370}-\u{3ff}\u{900}-\u{dff}\u{1100}-\u{11ff}\u{1e00}-\u{1fff}\u{ac00}-\u{d7a3}",
        ),
    })
}

/// One of `texts`.
fn any<'a>(random: &mut Rng, texts: &[&'a str]) -> &'a str {
    texts[random.below(texts.len())]
}

/// A string of up to 24 pieces, weighted towards what the rules treat specially.
fn random_text(seed: u64, added: &[&str]) -> String {
    let mut random = Rng::new(seed);
    let classes = classes();
    let mut text = String::new();
    for _ in 0..random.below(25) {
        match random.below(16) {
            0 => text.push(*random.pick(&classes.all)),
            1 => text.push(*random.pick(&classes.spaces)),
            2 => {
                text.push_str(any(&mut random, &[" ", "  ", "\n", "\r\n", " \n", "\t", "\u{a0}", "\u{3000}", "\u{85}"]))
            }
            3 => text.push(*random.pick(&classes.numbers)),
            4 => text.push_str(any(&mut random, &["0", "12", "345", "6789", "\u{bd}", "\u{2167}"])),
            5 => text.push_str(any(&mut random, &["'", "\u{2019}", "''", " '", "\u{ff07}"])),
            6 => text.push_str(any(
                &mut random,
                &["'s", "'S", "'\u{17f}", "'T", "'re", "'rE", "'Ve", "'m", "'LL", "'l", "'d", "'r"],
            )),
            7 | 8 => text.push(*random.pick(&classes.marks)),
            9 => text.push(*random.pick(&classes.letters)),
            10 => text.push(*random.pick(&classes.composed)),
            11 => text.push_str(any(&mut random, added)),
            12 => {
                let token = any(&mut random, added);
                let cut = token.char_indices().map(|(i, _)| i).nth(random.below(token.chars().count())).unwrap();
                text.push_str(if random.below(2) == 0 { &token[..cut] } else { &token[cut..] });
            }
            13 => text.push_str(any(
                &mut random,
                &["the", "turn", "light", " on", " three", "A", "e", "language", "English", "off"],
            )),
            14 => text.push_str(any(
                &mut random,
                &["!", "...", "<", "|>", "_", "\u{1f600}", "\u{1f468}\u{200d}\u{1f469}", "-", "\u{3002}"],
            )),
            _ => text.push_str(any(
                &mut random,
                &["a", "B", "\u{df}", "\u{e9}", "\u{4e2d}\u{6587}", "\u{ac00}", "\u{e01}\u{e33}"],
            )),
        }
    }
    text
}

/// Texts of the tokens that are found in raw text.
fn added_tokens(tokenizer: &Tokenizer) -> Vec<String> {
    let ids = 0..u32::try_from(tokenizer.n_vocab()).unwrap();
    ids.filter(|&id| matches!(tokenizer.kind(id), Some(TokenKind::Control | TokenKind::UserDefined)))
        .map(|id| String::from_utf8(tokenizer.token_bytes(id).to_vec()).unwrap())
        .collect()
}

fn assert_equal_on_random_strings(seed: u64, (ours, mut official): (Tokenizer, tokenizers::Tokenizer)) {
    let added = added_tokens(&ours);
    let added: Vec<&str> = added.iter().map(String::as_str).collect();
    // The rest of the way differs only in which added tokens are looked for: fewer strings do for that.
    for (special, n_strings) in [(Special::Parse, N_STRINGS), (Special::AsText, N_STRINGS / 10)] {
        official.set_encode_special_tokens(special == Special::AsText);
        (0..n_strings).into_par_iter().for_each(|i| {
            let text = random_text(seed + i, &added);
            let want = official.encode_fast(text.as_str(), false).unwrap();
            let got = ours.encode(&text, special);
            assert_eq!(got, want.get_ids(), "{special:?} {text:?}");
        });
    }
}

#[test]
fn random_strings_encode_as_the_official_qwen2_tokenizer_does() {
    assert_equal_on_random_strings(1 << 32, tiny_qwen());
}

#[test]
fn random_strings_encode_as_the_official_lfm2_tokenizer_does() {
    assert_equal_on_random_strings(2 << 32, tiny_lfm2());
}

#[test]
fn random_strings_encode_as_the_official_tokenizers_of_other_kinds_do() {
    for (seed, name) in [(5, "olmo"), (6, "dbrx"), (7, "refact"), (8, "qwen35")] {
        assert_equal_on_random_strings(seed << 32, kind(name));
    }
}

/// Every section of a text begins with a space there as here.
#[test]
fn random_strings_encode_as_the_official_sentencepiece_tokenizer_does() {
    assert_equal_on_random_strings(9 << 32, kind("spm"));
}

#[test]
fn random_strings_with_user_defined_tokens_and_whole_words_encode_as_the_official_lfm2_tokenizer_does() {
    assert_equal_on_random_strings(3 << 32, extended_lfm2());
}

#[test]
fn words_and_user_defined_tokens_of_lfm2_are_one_token() {
    let (tokenizer, _) = extended_lfm2();
    let [turnoff, language, turned, python, mathias] = [0, 1, 2, 3, 4].map(|i| LFM2_FREE + i);
    for (text, ids) in [
        ("turnoff language", vec![turnoff, language]),
        // The space before them stays by itself, and they are found inside words.
        ("python and Mathias write pythonic code", vec![python, mathias, python]),
    ] {
        for special in [Special::AsText, Special::Parse] {
            let got = tokenizer.encode(text, special);
            let ours: Vec<u32> = got.iter().copied().filter(|&id| id >= LFM2_FREE).collect();
            assert_eq!(ours, ids, "{text:?}");
            assert_eq!(tokenizer.decode(&got, true), text);
        }
    }
    let got = tokenizer.encode("a Mathias", Special::AsText);
    assert_eq!(got[got.len() - 2..], [tokenizer.id_of("\u{120}").unwrap(), mathias]);
    // A word that is a token is taken whole, a longer one is merged.
    assert_eq!(tokenizer.encode("turned", Special::AsText), [turned]);
    assert!(!tokenizer.encode("turneds", Special::AsText).contains(&turned));
}

fn assert_equal_splits(names: &[&str], split: &Split, text: &str) {
    let mut pieces = PreTokenizedString::from(text);
    split.pre_tokenize(&mut pieces).unwrap();
    let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let want: Vec<&str> = pieces.iter().map(|&(word, _, _)| word).filter(|word| !word.is_empty()).collect();
    for name in names {
        let ours = PreTokenizer::from_name(name).unwrap();
        assert_eq!(ours.words(text).collect::<Vec<_>>(), want, "{name} {text:?}");
    }
}

#[test]
fn random_strings_split_as_digits_and_then_the_published_expression_do() {
    let digits = Digits::new(true);
    let bytes = ByteLevel::new(false, false, true);
    (0..N_STRINGS).into_par_iter().for_each(|i| {
        let text = random_text((10 << 32) + i, &["<|im_end|>", "assistant"]);
        let mut pieces = PreTokenizedString::from(text.as_str());
        digits.pre_tokenize(&mut pieces).unwrap();
        bytes.pre_tokenize(&mut pieces).unwrap();
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let want: Vec<&str> = pieces.iter().map(|&(_, (from, to), _)| &text[from..to]).collect();
        let ours = PreTokenizer::from_name("refact").unwrap();
        assert_eq!(ours.words(&text).collect::<Vec<_>>(), want, "{text:?}");
    });
}

#[test]
fn random_strings_split_as_the_published_expressions_do() {
    for (names, expression) in SPLITS {
        let split =
            Split::new(SplitPattern::Regex(expression.into()), SplitDelimiterBehavior::Isolated, false).unwrap();
        (0..N_STRINGS).into_par_iter().for_each(|i| {
            assert_equal_splits(names, &split, &random_text((3 << 32) + i, &["<|im_end|>", "assistant"]));
        });
    }
}

#[test]
fn every_character_splits_as_in_the_published_expressions() {
    for (names, expression) in SPLITS {
        let split =
            Split::new(SplitPattern::Regex(expression.into()), SplitDelimiterBehavior::Isolated, false).unwrap();
        // Many characters in one string cost less than a string for each; the neighbours tell the classes apart.
        classes().all.par_chunks(64).for_each(|chars| {
            let text: String = chars.iter().flat_map(|&c| ['x', c, '1', c, ' ', c, '\'', c, '\n']).collect();
            assert_equal_splits(names, &split, &text);
        });
    }
}

#[test]
fn random_tokens_decode_as_the_official_tokenizers_do() {
    for (ours, official) in [tiny_qwen(), tiny_lfm2()] {
        let n_vocab = ours.n_vocab();
        (0..N_STRINGS / 10).into_par_iter().for_each(|i| {
            let mut random = Rng::new((4 << 32) + i);
            let n_ids = random.below(12);
            let ids: Vec<u32> = (0..n_ids).map(|_| random.below(n_vocab + 5) as u32).collect();
            for skip_control in [false, true] {
                let want = official.decode(&ids, skip_control).unwrap();
                assert_eq!(ours.decode(&ids, skip_control), want, "{ids:?}");
                let mut decoder = ours.decoder(skip_control);
                let mut streamed = String::new();
                for &id in &ids {
                    decoder.push(id, &mut streamed);
                }
                decoder.finish(&mut streamed);
                assert_eq!(streamed, want, "{ids:?}");
            }
        });
    }
}

/// Tokens of whole characters: what is printed for others differs by the number of U+FFFD.
#[test]
fn texts_decode_as_the_official_sentencepiece_tokenizer_does() {
    let (ours, official) = kind("spm");
    let added = ["<s>", "</s>"];
    (0..N_STRINGS / 10).into_par_iter().for_each(|i| {
        let ids = ours.encode(&random_text((11 << 32) + i, &added), Special::Parse);
        for skip_control in [false, true] {
            assert_eq!(ours.decode(&ids, skip_control), official.decode(&ids, skip_control).unwrap(), "{ids:?}");
        }
    });
    let text = "\u{4e2d} \u{1f600}";
    let ids = ours.encode(text, Special::AsText);
    assert!(ids.iter().filter(|&&id| ours.kind(id) == Some(TokenKind::Byte)).count() == 7, "{ids:?}");
    assert_eq!(ours.decode(&ids, true), text);
    // What goes on with a text keeps its space.
    let mut printed = String::new();
    ids.iter().for_each(|&id| ours.decoder(true).push(id, &mut printed));
    assert!(printed.starts_with(' '));
}

#[test]
fn decoder_prints_each_character_with_its_last_byte() {
    let (tokenizer, _) = tiny_qwen();
    let text = "a\u{e9}\u{4e2d}\u{1f600}";
    let ids = tokenizer.encode(text, Special::AsText);
    let mut decoder = tokenizer.decoder(true);
    let mut printed = Vec::new();
    for id in ids {
        let mut piece = String::new();
        decoder.push(id, &mut piece);
        printed.push(piece);
    }
    // The small vocabulary has no token for these characters: one token per byte.
    assert_eq!(printed, ["a", "", "\u{e9}", "", "", "\u{4e2d}", "", "", "", "\u{1f600}"]);
    let mut rest = String::new();
    decoder.finish(&mut rest);
    assert_eq!(rest, "");
}

#[test]
fn golden_cases_encode_as_stored() {
    for arch in ["qwen3", "qwen3_asr"] {
        let folder = fixture("golden").join(arch);
        let manifest: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("manifest.json")).unwrap()).unwrap();
        let tokenizer = CheckpointVocabulary::read(&folder, "qwen2", 304).unwrap().vocabulary;
        let tokenizer = Tokenizer::new(tokenizer).unwrap();
        let cases = manifest["tokenizer"]["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let want: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode(case["text"].as_str().unwrap(), Special::Parse), want, "{arch} {case}");
        }
    }
}

/// `spm` by SentencePiece, which knows no control tokens in a text; the others by the `tokenizers` package.
#[test]
fn tokenizers_of_other_kinds_encode_as_stored() {
    for (name, pre, special) in [
        ("spm", "", Special::AsText),
        ("olmo", "olmo", Special::Parse),
        ("dbrx", "dbrx", Special::Parse),
        ("refact", "refact", Special::Parse),
        ("qwen35", "qwen35", Special::Parse),
    ] {
        let folder = fixture("tokenizers").join(name);
        let vocabulary = CheckpointVocabulary::read(&folder, "olmo", 704).unwrap().vocabulary;
        assert_eq!(vocabulary.pre, if pre.is_empty() { "default" } else { pre });
        let tokenizer = Tokenizer::new(vocabulary).unwrap();
        let cases: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() > 50);
        for case in cases {
            let want: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, special), want, "{name} {text:?}");
        }
    }
}

#[test]
fn a_word_of_a_megabyte_is_encoded() {
    for tokenizer in [tiny_qwen().0, kind("spm").0, kind("refact").0] {
        check_long_words(&tokenizer);
    }
}

fn check_long_words(tokenizer: &Tokenizer) {
    for unit in ["the", "a", "\u{301}", "x\u{4e2d}", "!", " ", "\u{1f600}"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = tokenizer.encode(&text, Special::Parse);
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

/// A vocabulary of the 256 bytes, which tests then spoil.
fn bytes_only() -> Vocabulary {
    let tiny = CheckpointVocabulary::read(&fixture("models/tiny-qwen3-asr"), "qwen2", 768).unwrap().vocabulary;
    let tokens: Vec<String> = tiny.tokens.into_iter().filter(|token| token.chars().count() == 1).collect();
    assert_eq!(tokens.len(), 256);
    Vocabulary { model: "gpt2".into(), pre: "qwen2".into(), token_types: vec![1; 256], tokens, ..Vocabulary::default() }
}

#[test]
fn malformed_vocabularies_are_errors() {
    let add = |v: &mut Vocabulary, text: &str, token_type| {
        v.tokens.push(text.into());
        v.token_types.push(token_type);
    };
    type Spoil<'a> = &'a dyn Fn(&mut Vocabulary);
    let cases: [(&str, Spoil); 17] = [
        ("tokenizer model \"bert\" is not supported (supported: gpt2, llama)", &|v| v.model = "bert".into()),
        ("pre-tokenizer \"qwen-2\" is not supported; the nearest is qwen2 (supp", &|v| v.pre = "qwen-2".into()),
        ("pre-tokenizer \"superbpe\" is not supported (supported: qwen2, qwen35, llama-bpe, lfm2, dbrx, mpt, ", &|v| {
            v.pre = "superbpe".into();
        }),
        ("unknown id 256 is outside", &|v| v.unknown = Some(256)),
        ("255 token types for 256 tokens", &|v| v.token_types.truncate(255)),
        ("token 7 has type 6", &|v| v.token_types[7] = 6),
        ("token 7 has type -1", &|v| v.token_types[7] = -1),
        ("for byte", &|v| v.tokens[9] = "xyz".into()),
        ("for byte", &|v| v.token_types[9] = 5),
        ("tokens 0 and 256 are the same text", &|v| add(v, &v.tokens[0].clone(), 1)),
        ("added token 256 is empty", &|v| add(v, "", 3)),
        ("\"zz\" is not a text token", &|v| v.merges = vec!["z z".into()]),
        ("\"yy\" is not a text token", &|v| {
            add(v, "yyz", 1);
            v.merges = vec!["yy z".into()];
        }),
        ("is not two texts", &|v| v.merges = vec!["z".into()]),
        ("\"ab\" is not a text token", &|v| {
            add(v, "ab", 5);
            v.merges = vec!["a b".into()];
        }),
        ("merges 0 and 1 are the same pair", &|v| {
            add(v, "ab", 1);
            v.merges = vec!["a b".into(), "a b".into()];
        }),
        ("end-of-text id 4294967295 is outside", &|v| v.eos = Some(u32::MAX)),
    ];
    for (want, spoil) in cases {
        let mut vocabulary = bytes_only();
        assert!(Tokenizer::new(vocabulary.clone()).is_ok());
        spoil(&mut vocabulary);
        let message = Tokenizer::new(vocabulary).unwrap_err().to_string();
        assert!(message.contains(want), "want {want:?} in {message:?}");
    }
}

#[test]
fn malformed_vocabularies_of_sentencepiece_are_errors() {
    let good = CheckpointVocabulary::read(&fixture("tokenizers/spm"), "", 704).unwrap().vocabulary;
    let byte = good.tokens.iter().position(|token| token == "<0x41>").unwrap();
    type Spoil<'a> = &'a dyn Fn(&mut Vocabulary);
    let cases: [(&str, Spoil); 7] = [
        ("703 scores for 704 tokens", &|v| v.scores.truncate(703)),
        ("token 400 has score NaN", &|v| v.scores[400] = f32::NAN),
        ("token 7 has type 7, want 1 to 6", &|v| v.token_types[7] = 7),
        ("is \"<0x4>\", want <0xAB>", &|v| v.tokens[byte] = "<0x4>".into()),
        ("are the same byte 0x4a", &|v| v.tokens[byte] = "<0x4a>".into()),
        ("no token for byte 0x41", &|v| v.token_types[byte] = 5),
        ("no token for byte 0x00", &|v| v.token_types.iter_mut().filter(|t| **t != 1).for_each(|t| *t = 5)),
    ];
    for (want, spoil) in cases {
        let mut vocabulary = good.clone();
        assert!(Tokenizer::new(vocabulary.clone()).is_ok());
        spoil(&mut vocabulary);
        vocabulary.unknown = None;
        let message = Tokenizer::new(vocabulary).unwrap_err().to_string();
        assert!(message.contains(want), "want {want:?} in {message:?}");
    }
}

#[test]
fn without_byte_tokens_other_characters_in_a_row_are_one_unknown_token() {
    let mut vocabulary = CheckpointVocabulary::read(&fixture("tokenizers/spm"), "", 704).unwrap().vocabulary;
    vocabulary.token_types.iter_mut().filter(|t| **t == 6).for_each(|t| *t = 5);
    vocabulary.add_space_prefix = Some(false);
    vocabulary.unknown = Some(0);
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    let a = tokenizer.id_of("a").unwrap();
    assert_eq!(tokenizer.encode("\u{4e2d}\u{1f600}a\u{4e2d}", Special::AsText), [0, a, 0]);
}

/// As the vocabularies of GPT-NeoX and StarCoder are.
#[test]
fn bytes_of_no_character_may_lack_a_token_and_are_left_out() {
    let mut vocabulary = bytes_only();
    let at = vocabulary.tokens.iter().position(|token| token == "\u{f1}").unwrap();
    vocabulary.token_types[at] = 5;
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    let last: Vec<u32> = ["\u{142}", "\u{122}", "\u{122}"].iter().map(|text| tokenizer.id_of(text).unwrap()).collect();
    assert_eq!(tokenizer.encode("\u{60000}", Special::AsText), last);
    assert!(tokenizer.encode("a", Special::AsText).len() == 1);
}

#[test]
fn only_the_tokens_asked_for_are_found_in_text() {
    let mut vocabulary = bytes_only();
    for (text, token_type) in [("<|c|>", 3), ("<u>", 4), ("[PAD258]", 5)] {
        vocabulary.tokens.push(text.into());
        vocabulary.token_types.push(token_type);
    }
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    let text = "<|c|><u>[PAD258]";
    let parsed = tokenizer.encode(text, Special::Parse);
    assert_eq!(parsed[..2], [256, 257]);
    assert_eq!(parsed.len(), 2 + "[PAD258]".len());
    let plain = tokenizer.encode(text, Special::AsText);
    assert_eq!(plain[5], 257);
    assert_eq!(plain.len(), 5 + 1 + "[PAD258]".len());
    assert!(parsed.iter().chain(&plain).all(|&id| id != 258));

    assert_eq!(tokenizer.decode(&[256, 257, 258, 1000], false), "<|c|><u>");
    assert_eq!(tokenizer.decode(&[256, 257, 258, 1000], true), "<u>");
    assert_eq!((tokenizer.id_of("<|c|>"), tokenizer.id_of("[PAD258]")), (Some(256), None));
    assert!(tokenizer.is_control(256) && !tokenizer.is_control(257) && !tokenizer.is_control(1000));
    assert_eq!(tokenizer.ids_of(&["<u>", "<|c|>"]).unwrap(), [257, 256]);
    assert!(tokenizer.ids_of(&["<x>"]).unwrap_err().to_string().contains("\"<x>\""));
}

/// The folder that a variable names, too large for this repository; a line says when it names none.
fn outside(variable: &str, what: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(PathBuf::from);
    if folder.is_none() {
        // Not through `eprintln!`, which the test runner hides.
        let _ = writeln!(std::io::stderr(), "skipped: {what} ({variable} is not set)");
    }
    folder
}

/// A folder with the vocabularies `qwen2` and `llama-bpe` of llama.cpp.
pub fn vocabulary_folder() -> Option<PathBuf> {
    outside("TYMPAN_VOCAB_DIR", "published vocabularies")
}

/// The sources of llama.cpp, as llama-cpp-python 0.3.36 carries them (`vendor/llama.cpp`).
pub fn llama_cpp_folder() -> Option<PathBuf> {
    outside("TYMPAN_LLAMA_CPP", "vocabularies and templates of llama.cpp")
}

/// What `Qwen3_5Tokenizer` of transformers 5.24.0 makes of texts with the vocabulary `qwen35`, where llama.cpp has other ids:
/// it does not bring text to NFC.
fn official_ids(name: &str, text: &str) -> Option<Vec<u32>> {
    match text {
        "e\u{301}" if name == "qwen35" => Some(vec![963]),
        "re\u{301}sume\u{301}" if name == "qwen35" => Some(vec![42611, 1242, 963]),
        _ if name == "qwen35" && text == "a\u{300}".repeat(200) => Some(vec![6362; 200]),
        _ => None,
    }
}

/// The texts and ids beside a vocabulary.
fn check_published(folder: &Path, name: &str) {
    let path = folder.join(format!("ggml-vocab-{name}.gguf"));
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let read = |extension| std::fs::read_to_string(path.with_extension(extension)).unwrap();
    let (input, output) = (read("gguf.inp"), read("gguf.out"));
    let mut texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    let lines: Vec<&str> = output.lines().collect();
    // What stands behind the last text.
    assert_eq!(texts.pop(), Some(""));
    assert!(texts.len() == lines.len() && lines.len() > 40, "{name}: {} texts, {} lines", texts.len(), lines.len());
    for (text, line) in texts.iter().zip(lines) {
        let want: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.decode(&want, true), *text, "{name}");
        let got = tokenizer.encode(text, Special::AsText);
        match official_ids(name, text) {
            None => assert_eq!(got, want, "{name} {text:?}"),
            Some(official) => assert!(got == official && got != want, "{name} {text:?}: {got:?}"),
        }
    }
}

#[test]
fn published_vocabularies_encode_the_published_cases() {
    let Some(folder) = vocabulary_folder() else { return };
    ["qwen2", "llama-bpe"].iter().for_each(|name| check_published(&folder, name));
}

#[test]
fn vocabularies_of_llama_cpp_encode_its_cases() {
    let Some(folder) = llama_cpp_folder() else { return };
    for name in ["llama-spm", "mpt", "refact", "gpt-2", "llama-bpe", "qwen2", "qwen35"] {
        check_published(&folder.join("models"), name);
    }
}
