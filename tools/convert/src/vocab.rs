//! The vocabulary of a checkpoint, as GGUF stores it.
//!
//! Reads `tokenizer.json`, or `vocab.json` with `merges.txt` where there is none, and `tokenizer_config.json`. What ends up
//! in the file (token types, padding rows, which special ids) follows llama.cpp's converter: `conversion/base.py`,
//! `get_vocab_base`, and `gguf-py`, `SpecialVocab`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use engine::gguf::{Value as GgufValue, quoted};
use models::tokenizer::{BYTE_LEVEL, SENTENCE_PIECE, Tokenizer, Vocabulary};
use serde_json::Value;

use crate::files::{Files, brief, parse};
use crate::tokenizer_json::{self, Kind};

/// Largest file read as a whole; published `tokenizer.json` files stay under 40 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// `tokenizer.ggml.pre` of SentencePiece's tokenizers, which have none.
const NO_PRE_TOKENIZER: &str = "default";
/// Scores of tokens that no text is merged to. Source: llama.cpp, `TextModel._create_vocab_sentencepiece`.
const ADDED_SCORE: f32 = -1000.0;
const UNUSED_SCORE: f32 = -10_000.0;

/// ChatML without anything of the model's own, which llama.cpp's converter stores for Qwen3-ASR.
const PLAIN_CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}\
     {{ '<|im_start|>assistant\\n' }}{% endif %}";
/// End of a turn in ChatML.
const IM_END: &str = "<|im_end|>";

/// The `tokenizer.*` metadata of a model file.
#[derive(Clone, Debug)]
pub struct CheckpointVocabulary {
    /// Tokens, types, merges, and the special ids the engine uses.
    pub vocabulary: Vocabulary,
    /// Whether text ends with the end-of-text token, where the checkpoint says so.
    pub add_eos: Option<bool>,
    /// Whether a token separates the texts of a pair, where the checkpoint says so.
    pub add_sep: Option<bool>,
    /// Jinja chat template, where the checkpoint has one.
    pub chat_template: Option<String>,
}

impl CheckpointVocabulary {
    /// Reads the vocabulary in `files`. The pre-tokenizer is that of `tokenizer.json`; where that names none, or several names
    /// have the same rule, it is the architecture's usual one, which GGUF calls `pre`.
    ///
    /// `n_vocab`: rows of the embedding. Rows without a token become unused tokens `[PADn]`.
    /// Errors name the file and what was expected in it.
    pub fn read(files: impl Into<Files>, pre: &str, n_vocab: usize) -> Result<Self> {
        let files = &files.into();
        let folder = files.path();
        let tokenizer = JsonFile::read(files, "tokenizer.json")?;
        let config = JsonFile::read(files, "tokenizer_config.json")?;
        let model_config = JsonFile::read(files, "config.json")?;

        ensure!(
            n_vocab <= Tokenizer::MAX_TOKENS,
            "{}: {n_vocab} rows, at most {} are supported",
            folder.display(),
            Tokenizer::MAX_TOKENS
        );
        let kind = match &tokenizer {
            Some(tokenizer) => tokenizer_json::kind(&tokenizer.value).map_err(|what| tokenizer.error(what))?,
            None => Kind::ByteLevel(&[]),
        };
        let Bpe { ids, merges } = match &tokenizer {
            Some(tokenizer) => Bpe { ids: model_ids(tokenizer)?, merges: model_merges(tokenizer)? },
            None => read_vocab_and_merges(files)?,
        };
        let listed = tokenizer.as_ref().map_or(Ok(Vec::new()), listed_tokens)?;
        let configured = config.as_ref().map_or(Ok(Vec::new()), configured_tokens)?;
        let (tokens, token_types) = place(ids, listed.iter().chain(&configured), n_vocab)
            .with_context(|| format!("{}: vocabulary", folder.display()))?;

        let mut special = SpecialIds::default();
        if let Some(tokenizer) = &tokenizer {
            special.read_post_processor(tokenizer, config.as_ref());
        }
        if let Some(config) = &config {
            special.read_tokenizer_config(config, &listed);
        }
        if let Some(model_config) = &model_config {
            special.read_model_config(model_config);
        }
        let SpecialIds { bos, eos, unknown, padding, add_bos, add_eos, add_sep } = special;

        let special = Vocabulary { tokens, token_types, bos, eos, unknown, padding, add_bos, ..Vocabulary::default() };
        let vocabulary = match kind {
            Kind::ByteLevel(names) => {
                let pre = if names.contains(&pre) { pre } else { names.first().unwrap_or(&pre) };
                Vocabulary { model: BYTE_LEVEL.into(), pre: (*pre).into(), merges, ..special }
            }
            Kind::SentencePiece { has_space_prefix } => {
                let configured = config.as_ref().and_then(|config| config.value["add_prefix_space"].as_bool());
                // A space before a text is what a file stands for that says nothing.
                let add_space_prefix = configured.or((!has_space_prefix).then_some(false));
                sentence_piece(Vocabulary { merges, add_space_prefix, ..special })
                    .with_context(|| format!("{}: vocabulary", folder.display()))?
            }
        };
        Tokenizer::new(vocabulary.clone()).with_context(|| folder.display().to_string())?;
        let chat_template = read_chat_template(files, config.as_ref())?;
        Ok(Self { vocabulary, add_eos, add_sep, chat_template })
    }

    /// The same with the plain ChatML template and the end of a turn as begin and end of text: what llama.cpp's converter
    /// stores for Qwen3-ASR, whatever the checkpoint says.
    pub fn with_plain_chatml(mut self) -> Result<Self> {
        let id = self.vocabulary.tokens.iter().position(|token| token == IM_END);
        let id = id.ok_or_else(|| anyhow!("the vocabulary has no token {IM_END}"))?;
        let id = u32::try_from(id).context("token id")?;
        self.vocabulary.bos = Some(id);
        self.vocabulary.eos = Some(id);
        self.chat_template = Some(PLAIN_CHATML.into());
        Ok(self)
    }

    /// The GGUF metadata, in the order in which llama.cpp's converter writes them.
    pub fn into_metadata(self) -> Vec<(&'static str, GgufValue)> {
        let Self { vocabulary, add_eos, add_sep, chat_template } = self;
        let has_scores = vocabulary.model == SENTENCE_PIECE;
        let mut metadata: Vec<(&'static str, GgufValue)> = Vec::new();
        metadata.extend(vocabulary.add_space_prefix.map(|add| ("tokenizer.ggml.add_space_prefix", add.into())));
        metadata.push(("tokenizer.ggml.model", vocabulary.model.into()));
        metadata.push(("tokenizer.ggml.pre", vocabulary.pre.into()));
        metadata.push(("tokenizer.ggml.tokens", vocabulary.tokens.into()));
        if has_scores {
            metadata.push(("tokenizer.ggml.scores", vocabulary.scores.into()));
        }
        metadata.push(("tokenizer.ggml.token_type", vocabulary.token_types.into()));
        if !has_scores {
            metadata.push(("tokenizer.ggml.merges", vocabulary.merges.into()));
        }
        let ids = [
            ("tokenizer.ggml.bos_token_id", vocabulary.bos),
            ("tokenizer.ggml.eos_token_id", vocabulary.eos),
            ("tokenizer.ggml.unknown_token_id", vocabulary.unknown),
            ("tokenizer.ggml.padding_token_id", vocabulary.padding),
        ];
        metadata.extend(ids.into_iter().filter_map(|(key, id)| Some((key, id?.into()))));
        let adds = [
            ("tokenizer.ggml.add_bos_token", vocabulary.add_bos),
            ("tokenizer.ggml.add_eos_token", add_eos),
            ("tokenizer.ggml.add_sep_token", add_sep),
        ];
        metadata.extend(adds.into_iter().filter_map(|(key, add)| Some((key, add?.into()))));
        metadata.extend(chat_template.map(|template| ("tokenizer.chat_template", template.into())));
        metadata
    }
}

/// The vocabulary of SentencePiece's BPE with `merges`: what is merged first has the highest score.
///
/// SentencePiece numbers its pieces in the order of their merges and takes the negative number as the score, single characters
/// last; `tokenizer.json` has the order, not the scores.
fn sentence_piece(mut vocabulary: Vocabulary) -> Result<Vocabulary> {
    for (text, token_type) in vocabulary.tokens.iter().zip(&mut vocabulary.token_types) {
        let is_byte = text.len() == "<0x00>".len() && text.starts_with("<0x") && text.ends_with('>');
        if *token_type == NORMAL && is_byte {
            *token_type = BYTE;
        }
    }
    let ids: HashMap<&str, usize> = vocabulary.tokens.iter().enumerate().map(|(id, text)| (&**text, id)).collect();
    let mut scores: Vec<Option<f32>> = vec![None; vocabulary.tokens.len()];
    let mut n_scored = 0;
    let mut next_score = || {
        n_scored += 1;
        // Exact in f32 up to 2^24 tokens, the most that a vocabulary has.
        (1 - n_scored) as f32
    };
    for merge in &vocabulary.merges {
        let text = merge.replacen(' ', "", 1);
        let id = ids.get(&*text).ok_or_else(|| anyhow!("merge {} makes no token", quoted(merge)))?;
        if scores[*id].is_none() {
            scores[*id] = Some(next_score());
        }
    }
    let score = |(score, token_type): (Option<f32>, &i32)| match (*token_type, score) {
        (NORMAL, Some(score)) => score,
        (NORMAL, None) => next_score(),
        (BYTE, _) => 0.0,
        (UNUSED, _) => UNUSED_SCORE,
        _ => ADDED_SCORE,
    };
    let scores = scores.into_iter().zip(&vocabulary.token_types).map(score).collect();
    drop(ids);
    Ok(Vocabulary {
        model: SENTENCE_PIECE.into(),
        pre: NO_PRE_TOKENIZER.into(),
        merges: Vec::new(),
        scores,
        ..vocabulary
    })
}

/// A JSON document and where it came from.
struct JsonFile {
    path: PathBuf,
    value: Value,
}

impl JsonFile {
    /// `None` when there is no such file.
    fn read(files: &Files, name: &str) -> Result<Option<Self>> {
        let Some((path, bytes)) = files.read(name, MAX_FILE_BYTES)? else { return Ok(None) };
        let value = parse(&bytes).with_context(|| format!("{}: not JSON", path.display()))?;
        Ok(Some(Self { path, value }))
    }

    /// An error about this file.
    fn error(&self, what: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{}: {what}", self.path.display())
    }
}

/// A text in UTF-8; `None` when there is no such file.
fn read_text(files: &Files, name: &str) -> Result<Option<String>> {
    let Some((path, bytes)) = files.read(name, MAX_FILE_BYTES)? else { return Ok(None) };
    let text = String::from_utf8(bytes.into_owned()).with_context(|| path.display().to_string())?;
    Ok(Some(text))
}

/// Ordinary tokens with their ids, and the merges that make them.
struct Bpe {
    ids: Vec<(String, u32)>,
    merges: Vec<String>,
}

/// A token found in raw text, as `tokenizer.json` and `tokenizer_config.json` describe it.
struct AddedToken {
    id: u32,
    content: String,
    special: bool,
}

impl AddedToken {
    fn new(file: &JsonFile, id: Option<u32>, value: &Value) -> Result<Self> {
        let content = value.get("content").and_then(Value::as_str);
        let special = value.get("special").map_or(Some(false), Value::as_bool);
        match (id, content, special) {
            (Some(id), Some(content), Some(special)) => Ok(Self { id, content: content.into(), special }),
            _ => Err(file.error(format_args!("added token without id, content and special: {}", brief(value)))),
        }
    }

    /// GGUF's type. Some checkpoints do not mark all control tokens as special; llama.cpp's converter knows them by their
    /// form.
    fn token_type(&self) -> i32 {
        let text = self.content.as_str();
        let enclosed = |start, end| text.starts_with(start) && text.ends_with(end);
        let looks_special = matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
            || enclosed("<|", "|>")
            || enclosed("<\u{ff5c}", "\u{ff5c}>")
            || enclosed("<unused", ">");
        if self.special || looks_special { CONTROL } else { USER_DEFINED }
    }

    /// The text as it stands in input.
    fn text(&self) -> String {
        match self.token_type() {
            USER_DEFINED => self.content.replace('\u{2581}', " "),
            _ => self.content.clone(),
        }
    }
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// `model.vocab` of `tokenizer.json`.
fn model_ids(file: &JsonFile) -> Result<Vec<(String, u32)>> {
    let model = &file.value["model"];
    // Files of older versions have no type.
    if let Some(other) = model.get("type").filter(|kind| kind.as_str() != Some("BPE")) {
        return Err(file.error(format_args!("model.type: want BPE, got {}", brief(other))));
    }
    token_ids(file, "model.vocab", &model["vocab"])
}

fn token_ids(file: &JsonFile, what: &str, value: &Value) -> Result<Vec<(String, u32)>> {
    let map = value.as_object().ok_or_else(|| file.error(format_args!("{what}: want an object of token ids")))?;
    map.iter()
        .map(|(token, id)| match as_u32(id) {
            Some(id) => Ok((token.clone(), id)),
            None => Err(file.error(format_args!("{what}: token {token:?} has id {}", brief(id)))),
        })
        .collect()
}

/// `model.merges` of `tokenizer.json`: texts `left right`, or pairs.
fn model_merges(file: &JsonFile) -> Result<Vec<String>> {
    let merges = file.value["model"]["merges"].as_array();
    let merges = merges.ok_or_else(|| file.error("model.merges: want a list of merges"))?;
    let merge = |value: &Value| match value {
        Value::String(merge) => Some(merge.clone()),
        Value::Array(pair) => match pair.as_slice() {
            // A space inside a part would be read as the separator: write it as the alphabet of the vocabulary does.
            [Value::String(left), Value::String(right)] => {
                Some([left, right].map(|part| part.replace(' ', "\u{120}")).join(" "))
            }
            _ => None,
        },
        _ => None,
    };
    merges
        .iter()
        .map(|value| merge(value).ok_or_else(|| file.error(format_args!("model.merges: bad merge {}", brief(value)))))
        .collect()
}

/// `vocab.json` and `merges.txt`.
fn read_vocab_and_merges(files: &Files) -> Result<Bpe> {
    const MERGES: &str = "merges.txt";
    let Some(vocab) = JsonFile::read(files, "vocab.json")? else {
        let path = files.path().display();
        let has_model = files.read("tokenizer.model", MAX_FILE_BYTES)?.is_some();
        ensure!(
            !has_model,
            "{path}: tokenizer.model alone is not read: want the tokenizer.json that transformers saves"
        );
        bail!("{path}: no vocabulary (tokenizer.json, or vocab.json and merges.txt)");
    };
    let ids = token_ids(&vocab, "vocabulary", &vocab.value)?;
    let path = files.path().join(MERGES);
    let text = read_text(files, MERGES)?.ok_or_else(|| anyhow!("{}: no such file", path.display()))?;
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if (i == 0 && line.starts_with('#')) || line.trim().is_empty() {
            continue;
        }
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [left, right] => merges.push(format!("{left} {right}")),
            _ => bail!("{}: line {}: want two texts, got {}", path.display(), i + 1, quoted(line)),
        }
    }
    Ok(Bpe { ids, merges })
}

/// `added_tokens` of `tokenizer.json`.
fn listed_tokens(file: &JsonFile) -> Result<Vec<AddedToken>> {
    let Some(list) = file.value.get("added_tokens").filter(|list| !list.is_null()) else { return Ok(Vec::new()) };
    let list = list.as_array().ok_or_else(|| file.error("added_tokens: want a list"))?;
    list.iter().map(|token| AddedToken::new(file, as_u32(&token["id"]), token)).collect()
}

/// `added_tokens_decoder` of `tokenizer_config.json`.
fn configured_tokens(file: &JsonFile) -> Result<Vec<AddedToken>> {
    let Some(map) = file.value.get("added_tokens_decoder").filter(|map| !map.is_null()) else { return Ok(Vec::new()) };
    let map = map.as_object().ok_or_else(|| file.error("added_tokens_decoder: want an object"))?;
    map.iter().map(|(id, token)| AddedToken::new(file, id.parse().ok(), token)).collect()
}

/// Texts and types of all `n_vocab` rows. Where `added` names a token twice, the last wins.
fn place<'a>(
    ids: Vec<(String, u32)>,
    added: impl Iterator<Item = &'a AddedToken>,
    n_vocab: usize,
) -> Result<(Vec<String>, Vec<i32>)> {
    let mut rows: BTreeMap<u32, (String, i32)> = BTreeMap::new();
    for (text, id) in ids {
        if let Some((other, _)) = rows.insert(id, (text.clone(), NORMAL)) {
            bail!("tokens {} and {} have the same id {id}", quoted(&other), quoted(&text));
        }
    }
    for token in added {
        match rows.get(&token.id) {
            Some((other, _)) if *other != token.content && *other != token.text() => {
                bail!("tokens {} and {} have the same id {}", quoted(other), quoted(&token.content), token.id)
            }
            _ => rows.insert(token.id, (token.text(), token.token_type())),
        };
    }
    if let Some((id, (text, _))) = rows.last_key_value().filter(|&(&id, _)| id as usize >= n_vocab) {
        bail!("token {} has id {id}, but the model has {n_vocab} rows", quoted(text));
    }
    Ok((0..n_vocab)
        .map(|row| {
            let row_id = u32::try_from(row).unwrap_or(u32::MAX);
            rows.remove(&row_id).unwrap_or_else(|| (format!("[PAD{row}]"), UNUSED))
        })
        .unzip())
}

/// What a checkpoint says about special tokens, the first answer found winning.
#[derive(Default)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    add_sep: Option<bool>,
}

impl SpecialIds {
    fn by_name(&mut self) -> [(&'static str, &mut Option<u32>); 4] {
        [("bos", &mut self.bos), ("eos", &mut self.eos), ("unk", &mut self.unknown), ("pad", &mut self.padding)]
    }

    /// Whether `tokenizer.json` puts special tokens around a text.
    fn read_post_processor(&mut self, tokenizer: &JsonFile, config: Option<&JsonFile>) {
        let processor = &tokenizer.value["post_processor"];
        let processors = match processor.get("processors").and_then(Value::as_array) {
            Some(processors) => processors.as_slice(),
            None => std::slice::from_ref(processor),
        };
        for processor in processors {
            match processor["type"].as_str() {
                Some("ByteLevel") => {
                    self.add_bos.get_or_insert(false);
                    self.add_eos.get_or_insert(false);
                }
                Some("TemplateProcessing") => {
                    self.add_sep = has_separator(processor, config).or(self.add_sep);
                    let Some([first, .., last]) = processor["single"].as_array().map(Vec::as_slice) else { continue };
                    let is_named = |piece: &Value, name: &str| {
                        let id = piece["SpecialToken"]["id"].as_str()?;
                        let named = config.and_then(|config| token_content(&config.value[name]));
                        // Without a configuration the template itself names the token.
                        Some(named.is_none_or(|named| named == id))
                    };
                    self.add_bos = is_named(first, "bos_token").or(self.add_bos);
                    self.add_eos = is_named(last, "eos_token").or(self.add_eos);
                }
                _ => {}
            }
        }
    }

    /// `tokenizer_config.json` names special tokens by text; their ids stand in `tokenizer.json`, whose list is `listed`.
    fn read_tokenizer_config(&mut self, config: &JsonFile, listed: &[AddedToken]) {
        let config = &config.value;
        self.add_bos = self.add_bos.or(config["add_bos_token"].as_bool());
        self.add_eos = self.add_eos.or(config["add_eos_token"].as_bool());
        for (name, id) in self.by_name() {
            let content = token_content(&config[format!("{name}_token").as_str()]);
            let found = listed.iter().find(|token| Some(token.content.as_str()) == content);
            *id = id.or(found.map(|token| token.id));
        }
    }

    /// `config.json` names special tokens by id.
    fn read_model_config(&mut self, config: &JsonFile) {
        for (name, id) in self.by_name() {
            let key = format!("{name}_token_id");
            let value = config.value.get(&key).filter(|value| !value.is_null());
            let value = value.or_else(|| config.value["text_config"].get(&key));
            *id = id.or(value.and_then(as_u32));
        }
    }
}

/// Whether a template puts the end of a text, or a token of its own, between the texts of a pair; `None` where it puts
/// nothing there.
fn has_separator(template: &Value, config: Option<&JsonFile>) -> Option<bool> {
    let token = |piece: &Value| piece["SpecialToken"]["id"].as_str().map(str::to_owned);
    let single = template["single"].as_array()?;
    let (begin, end) = (single.first().and_then(token), single.last().and_then(token));
    let mut pair = template["pair"].as_array()?.as_slice();
    if begin.is_some() && pair.first().and_then(token) == begin {
        pair = &pair[1..];
    }
    if end.is_some() && pair.last().and_then(token) == end {
        pair = &pair[..pair.len() - 1];
    }
    let [a, between @ .., b] = pair else { return None };
    if a["Sequence"]["id"] != "A" || b["Sequence"]["id"] != "B" {
        return None;
    }
    let named = |name: &str| config.and_then(|config| token_content(&config.value[name]).map(str::to_owned));
    let separators = [named("sep_token"), named("eos_token")];
    let is_separator = |piece: &Value| token(piece).is_some_and(|token| separators.contains(&Some(token)));
    // The first of two may be the end of the first text.
    let first = end.is_none() && is_separator(between.first()?);
    Some(first || between.len() == 2 && is_separator(&between[1]))
}

/// Text of a special token: a string, or an object with `content`.
fn token_content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// The chat template: that of `tokenizer_config.json`, else the file of its own.
fn read_chat_template(files: &Files, config: Option<&JsonFile>) -> Result<Option<String>> {
    if let Some(template) = config.and_then(|config| config.value.get("chat_template")) {
        return Ok(template.as_str().map(str::to_owned));
    }
    if let Some(template) = read_text(files, "chat_template.jinja")? {
        return Ok(Some(template));
    }
    let file = JsonFile::read(files, "chat_template.json")?;
    Ok(file.and_then(|file| file.value["chat_template"].as_str().map(str::to_owned)))
}
