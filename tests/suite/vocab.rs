//! The vocabulary of a checkpoint folder against what llama.cpp's converter stores.

use std::path::{Path, PathBuf};

use convert::vocab::CheckpointVocabulary;
use engine::gguf::{Array, Value};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/tiny-qwen3-asr")
}

/// A copy of the tokenizer files of the tiny checkpoint, without those named.
fn copy_without(left_out: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"] {
        if !left_out.contains(&name) {
            std::fs::copy(tiny().join(name), folder.path().join(name)).unwrap();
        }
    }
    folder
}

fn read(folder: &Path) -> CheckpointVocabulary {
    CheckpointVocabulary::read(folder, "qwen2", 768).unwrap()
}

#[test]
fn metadata_are_those_of_llama_cpp() {
    let metadata = read(&tiny()).with_plain_chatml().unwrap().into_metadata();
    let value = |key: &str| metadata.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
    for (key, want) in [
        ("tokenizer.ggml.model", Value::from("gpt2")),
        ("tokenizer.ggml.pre", Value::from("qwen2")),
        ("tokenizer.ggml.bos_token_id", Value::U32(699)),
        ("tokenizer.ggml.eos_token_id", Value::U32(699)),
        ("tokenizer.ggml.padding_token_id", Value::U32(697)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
        (
            "tokenizer.chat_template",
            Value::from(
                "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                 '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
                 {% endif %}",
            ),
        ),
    ] {
        assert_eq!(value(key), Some(want), "{key}");
    }
    assert_eq!(metadata.len(), 11);

    let Some(Value::Array(Array::String(tokens))) = value("tokenizer.ggml.tokens") else { panic!("no tokens") };
    let Some(Value::Array(Array::I32(types))) = value("tokenizer.ggml.token_type") else { panic!("no types") };
    let Some(Value::Array(Array::String(merges))) = value("tokenizer.ggml.merges") else { panic!("no merges") };
    assert_eq!((tokens.len(), types.len(), merges.len()), (768, 768, 441));
    assert_eq!(merges[0], "\u{120} t".as_bytes());
    assert_eq!(tokens[760], b"[PAD760]");
    assert_eq!(tokens[767], b"[PAD767]");
    let user_defined = [
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
        "<think>",
        "</think>",
        "<non_speech>",
        "<asr_text>",
    ];
    for (id, (token, token_type)) in tokens.iter().zip(types).enumerate() {
        // Tokens of the form <|..|> are control tokens even where the checkpoint does not mark them as special.
        let want = match id {
            0..697 => 1,
            697..760 if user_defined.iter().any(|text| text.as_bytes() == token) => 4,
            697..760 => 3,
            _ => 5,
        };
        assert_eq!(token_type, want, "{}", String::from_utf8_lossy(token));
    }
}

#[test]
fn a_folder_without_tokenizer_json_gives_the_same_tokens() {
    let whole = read(&tiny()).vocabulary;
    let parts = read(copy_without(&["tokenizer.json"]).path());
    assert_eq!(parts.vocabulary.tokens, whole.tokens);
    assert_eq!(parts.vocabulary.token_types, whole.token_types);
    assert_eq!(parts.vocabulary.merges, whole.merges);
    // llama.cpp's converter finds the ids of special tokens in tokenizer.json only.
    assert_eq!((parts.vocabulary.eos, parts.vocabulary.padding), (None, None));
    assert_eq!((parts.vocabulary.add_bos, parts.add_eos), (Some(false), None));

    let json = read(copy_without(&["vocab.json", "merges.txt", "tokenizer_config.json"]).path()).vocabulary;
    assert_eq!((json.tokens, json.token_types, json.merges), (whole.tokens, whole.token_types, whole.merges));
}

#[test]
fn special_ids_of_config_json_are_taken_where_the_tokenizer_names_none() {
    let folder = copy_without(&["tokenizer.json"]);
    let config =
        r#"{"bos_token_id": 5, "eos_token_id": [1, 2], "text_config": {"pad_token_id": 7, "unk_token_id": null}}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let vocabulary = read(folder.path()).vocabulary;
    assert_eq!(
        (vocabulary.bos, vocabulary.eos, vocabulary.padding, vocabulary.unknown),
        (Some(5), None, Some(7), None)
    );
}

#[test]
fn lfm2_begins_texts_with_its_token() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/tiny-lfm2-audio");
    let read = CheckpointVocabulary::read(&folder, "lfm2", 896).unwrap();
    assert_eq!(read.vocabulary.add_bos, Some(true));
    assert_eq!(read.vocabulary.token_types[..132], [3; 132]);
    assert_eq!(read.vocabulary.tokens[1], "<|startoftext|>");
    assert_eq!(read.vocabulary.tokens[829], "[PAD829]");
}

/// `tokenizer.json` has no scores, but their order: it gives those of SentencePiece.
#[test]
fn scores_are_those_of_sentencepiece() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/spm");
    let read = CheckpointVocabulary::read(&*folder, "llama-bpe", 704).unwrap();
    let want: Vec<f32> = serde_json::from_slice(&std::fs::read(folder.join("scores.json")).unwrap()).unwrap();
    let vocabulary = &read.vocabulary;
    assert_eq!((want.len(), vocabulary.scores.len()), (700, 704));
    for (id, want) in want.iter().enumerate().filter(|&(id, _)| vocabulary.token_types[id] == 1) {
        assert_eq!(vocabulary.scores[id], *want, "{id}: {:?}", vocabulary.tokens[id]);
    }
    assert_eq!(vocabulary.token_types[..6], [3, 3, 3, 6, 6, 6]);
    assert_eq!(vocabulary.token_types[700..], [5; 4]);
    let metadata = read.into_metadata();
    let value = |key: &str| metadata.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
    assert_eq!(value("tokenizer.ggml.model"), Some("llama".into()));
    assert_eq!(value("tokenizer.ggml.pre"), Some("default".into()));
    assert_eq!(value("tokenizer.ggml.bos_token_id"), Some(Value::U32(1)));
    assert!(value("tokenizer.ggml.merges").is_none() && value("tokenizer.ggml.add_space_prefix").is_none());
}

/// As in the files of Jamba, where nothing stands before a text.
#[test]
fn a_file_says_where_no_space_is_thought_before_a_text() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers/spm");
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(from.join("tokenizer.json")).unwrap();
    let prepend = r#"{"type": "Prepend", "prepend": "\u2581"}, "#;
    assert!(text.contains(prepend));
    std::fs::write(folder.path().join("tokenizer.json"), text.replace(prepend, "")).unwrap();
    let read = CheckpointVocabulary::read(folder.path(), "llama-bpe", 704).unwrap();
    assert_eq!(read.vocabulary.add_space_prefix, Some(false));
    assert!(read.into_metadata().contains(&("tokenizer.ggml.add_space_prefix", Value::Bool(false))));
}

#[test]
fn bad_files_are_errors_that_name_the_file() {
    let cases: [(&str, &str, &[&str]); 16] = [
        ("tokenizer.json", "{", &["tokenizer.json", "not JSON"]),
        ("tokenizer.json", "[]", &["tokenizer.json", "model.vocab"]),
        ("tokenizer.json", r#"{"model": {"type": "Unigram"}}"#, &["tokenizer.json", "want BPE", "Unigram"]),
        ("tokenizer.json", r#"{"model": {"vocab": {"a": -1}}}"#, &["tokenizer.json", "\"a\"", "-1"]),
        ("tokenizer.json", r#"{"model": {"vocab": {"a": 1e3}}}"#, &["tokenizer.json", "\"a\""]),
        ("tokenizer.json", r#"{"model": {"vocab": {}, "merges": 3}}"#, &["tokenizer.json", "model.merges"]),
        ("tokenizer.json", r#"{"model": {"vocab": {}, "merges": [["a"]]}}"#, &["tokenizer.json", "bad merge"]),
        ("tokenizer.json", r#"{"model": {"vocab": {"a": 1, "b": 1}, "merges": []}}"#, &["same id 1"]),
        ("tokenizer.json", r#"{"model": {"vocab": {"a": 768}, "merges": []}}"#, &["id 768", "768 rows"]),
        (
            "tokenizer.json",
            r#"{"model": {"vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Whitespace"}}"#,
            &["tokenizer.json", "pre_tokenizer: not a rule that is supported", "Whitespace"],
        ),
        (
            "tokenizer.json",
            r#"{"model": {"vocab": {"a": 1, "b": 2}, "merges": ["a b"], "byte_fallback": true}}"#,
            &["merge \"a b\" makes no token"],
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": []}"#,
            &["tokenizer_config.json", "added_tokens_decoder"],
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#,
            &["tokenizer_config.json", "y"],
        ),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"3": {"content": "y"}}}"#, &["same id 3", "\"y\""]),
        ("tokenizer_config.json", "\u{feff}", &["tokenizer_config.json", "not JSON"]),
        ("config.json", "nothing", &["config.json", "not JSON"]),
    ];
    for (name, content, wants) in cases {
        let folder = copy_without(&[]);
        std::fs::write(folder.path().join(name), content).unwrap();
        let error = CheckpointVocabulary::read(folder.path(), "qwen2", 768).unwrap_err();
        let message = format!("{error:#}");
        for want in wants {
            assert!(message.contains(want), "want {want:?} in {message:?}");
        }
    }

    let message =
        |folder: &Path, n_vocab| format!("{:#}", CheckpointVocabulary::read(folder, "qwen2", n_vocab).unwrap_err());
    assert!(message(copy_without(&["tokenizer.json", "vocab.json"]).path(), 768).contains("no vocabulary"));
    assert!(message(copy_without(&["tokenizer.json", "merges.txt"]).path(), 768).contains("merges.txt"));
    assert!(message(&tiny(), usize::MAX).contains("rows"));
    let folder = copy_without(&["tokenizer.json"]);
    std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\na b\na b c\n").unwrap();
    assert!(message(folder.path(), 768).contains("merges.txt: line 3"));
    std::fs::write(folder.path().join("merges.txt"), [0xff, 0xfe]).unwrap();
    assert!(message(folder.path(), 768).contains("merges.txt"));
}
