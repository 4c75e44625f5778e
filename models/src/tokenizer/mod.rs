//! Text to token ids and back: byte-level BPE as GPT-2 defined it, and the BPE of SentencePiece, built from the vocabulary
//! stored in a model file.
//!
//! [`Tokenizer`] is the type to read first. Added tokens are cut out of the raw text ([`Special`] says which). In between, the
//! first kind splits the text into words ([`PreTokenizer`]) and merges each byte by byte; the second knows no words.
//! Chat prompts are not made here.

mod added;
mod bpe;
mod decode;
mod gguf;
mod pretokenize;
mod sentencepiece;

use std::collections::HashMap;

use engine::gguf::quoted;

use added::AddedTokens;
use bpe::Bpe;
use sentencepiece::Pieces;

use crate::error::{Error, Result};
use crate::languages::nearest;
pub use decode::Decoder;
pub(crate) use decode::Unfinished;
pub use pretokenize::{Expression, PreTokenizer, Words};

/// `tokenizer.ggml.model` of byte-level BPE.
pub const BYTE_LEVEL: &str = "gpt2";
/// `tokenizer.ggml.model` of SentencePiece's BPE.
pub const SENTENCE_PIECE: &str = "llama";

/// A vocabulary as model files store it: token texts, their types, and the merges in order of rank or the scores.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// Kind of tokenizer (`tokenizer.ggml.model`): [`BYTE_LEVEL`] or [`SENTENCE_PIECE`].
    pub model: String,
    /// Name of the pre-tokenizer (`tokenizer.ggml.pre`), see [`PreTokenizer::from_name`]. SentencePiece has none.
    pub pre: String,
    /// Text of each id; ordinary tokens in the byte-to-unicode alphabet or with U+2581 for spaces, added tokens as they stand
    /// in the text.
    pub tokens: Vec<String>,
    /// Type of each id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, and 6 byte with SentencePiece.
    pub token_types: Vec<i32>,
    /// Merges, `left right`, in the alphabet of the ordinary tokens. SentencePiece has none.
    pub merges: Vec<String>,
    /// Scores of SentencePiece's tokens; the highest is merged first.
    pub scores: Vec<f32>,
    /// Begin of text, where the file names one.
    pub bos: Option<u32>,
    /// End of text, where the file names one.
    pub eos: Option<u32>,
    /// Stands for what cannot be encoded, where the file names one.
    pub unknown: Option<u32>,
    /// Padding, where the file names one.
    pub padding: Option<u32>,
    /// Whether text begins with [`Vocabulary::bos`], where the file says so.
    pub add_bos: Option<bool>,
    /// Whether SentencePiece encodes a text as if a space stood before it, where the file says so.
    pub add_space_prefix: Option<bool>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text made by merging bytes.
    Normal,
    /// Stands for text that cannot be encoded. Treated as a control token.
    Unknown,
    /// Steers the model, is not part of the text.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// A row of the embedding without a token. Never matched, never printed.
    Unused,
    /// One byte of a character that is no piece of SentencePiece's.
    Byte,
}

impl TokenKind {
    fn from_type(token_type: i32) -> Option<Self> {
        match token_type {
            1 => Some(Self::Normal),
            2 => Some(Self::Unknown),
            3 => Some(Self::Control),
            4 => Some(Self::UserDefined),
            5 => Some(Self::Unused),
            6 => Some(Self::Byte),
            _ => None,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// What control tokens written out in a text mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// They become control tokens. For text of our own.
    Parse,
    /// They are letters like any others. For text of a user. User-defined tokens are still one token each.
    AsText,
}

/// How text between added tokens is encoded.
#[derive(Debug)]
enum Algorithm {
    ByteLevel(Box<Bpe>),
    SentencePiece(Pieces),
}

/// Encoding and decoding with one vocabulary.
#[derive(Debug)]
pub struct Tokenizer {
    algorithm: Algorithm,
    kinds: Vec<TokenKind>,
    ids: HashMap<String, u32>,
    printed: Printed,
    /// Control and user-defined tokens.
    added: AddedTokens,
    /// User-defined tokens only.
    added_text: AddedTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    padding: Option<u32>,
    add_bos: bool,
}

impl Tokenizer {
    /// Most tokens a vocabulary may hold; published ones stay under 300,000.
    pub const MAX_TOKENS: usize = 1 << 24;

    /// Checks a vocabulary and builds the tables of encoding and decoding.
    ///
    /// Errors: `Tokenizer` for another tokenizer model or an unknown pre-tokenizer; for token types that are not as many as
    /// the tokens or have no meaning here; for tokens that occur twice, a byte without a token, and merges of anything but
    /// ordinary and user-defined tokens; for scores that are not as many as the tokens; for special ids outside the vocabulary.
    pub fn new(vocabulary: Vocabulary) -> Result<Self> {
        let Vocabulary { model, pre, tokens, token_types, merges, scores, .. } = vocabulary;
        let Vocabulary { bos, eos, unknown, padding, add_bos, add_space_prefix, .. } = vocabulary;
        let pre = match &*model {
            BYTE_LEVEL => Some(known_rule(&pre)?),
            SENTENCE_PIECE => None,
            _ => {
                let model = quoted(&model);
                let known = [BYTE_LEVEL, SENTENCE_PIECE].join(", ");
                return Err(malformed(format!("tokenizer model {model} is not supported (supported: {known})")));
            }
        };
        if tokens.len() > Self::MAX_TOKENS {
            let (n, max) = (tokens.len(), Self::MAX_TOKENS);
            return Err(malformed(format!("{n} tokens, at most {max} are supported")));
        }
        let kinds = kinds(&tokens, &token_types, pre.is_none())?;
        let special = [("begin-of-text", bos), ("end-of-text", eos), ("unknown", unknown), ("padding", padding)];
        for (name, id) in special {
            if let Some(id) = id.filter(|&id| id as usize >= tokens.len()) {
                return Err(malformed(format!("{name} id {id} is outside the vocabulary of {} tokens", tokens.len())));
            }
        }

        let printed = Printed::new(&tokens, &kinds, pre.is_some());
        let added = |is_added: fn(TokenKind) -> bool| {
            let tokens = (0u32..).zip(&tokens).zip(&kinds).filter(|&(_, &kind)| is_added(kind));
            AddedTokens::new(tokens.map(|((id, text), _)| (text.clone(), id)).collect())
        };
        let added_text = added(|kind| kind == TokenKind::UserDefined);
        let added = added(|kind| kind == TokenKind::UserDefined || kind.is_control());

        let n_tokens = tokens.len();
        let mut ids = HashMap::with_capacity(n_tokens);
        for (id, text) in (0u32..).zip(tokens) {
            if let Some(first) = ids.insert(text, id) {
                return Err(malformed(format!("tokens {first} and {id} are the same text")));
            }
        }
        let adds_bos = pre.is_none_or(|pre| pre.adds_bos);
        let algorithm = match pre {
            Some(pre) => Algorithm::ByteLevel(Box::new(Bpe::new(pre, &merges, &ids, &kinds, &printed)?)),
            None => {
                let has_space_prefix = add_space_prefix.unwrap_or(true);
                Algorithm::SentencePiece(Pieces::new(&ids, &kinds, &scores, unknown, has_space_prefix)?)
            }
        };
        Ok(Self {
            add_bos: add_bos.unwrap_or(adds_bos && bos.is_some()),
            algorithm,
            kinds,
            ids,
            printed,
            added,
            added_text,
            bos,
            eos,
            padding,
        })
    }

    /// Token ids of `text`. No begin-of-text token is added.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let added = match special {
            Special::Parse => &self.added,
            Special::AsText => &self.added_text,
        };
        let mut ids = Vec::new();
        let mut start = 0;
        while let Some((at, id)) = added.find(text, start) {
            self.encode_plain(&text[start..at.start], &mut ids);
            ids.push(id);
            start = at.end;
        }
        self.encode_plain(&text[start..], &mut ids);
        ids
    }

    /// Text without added tokens.
    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) {
        match &self.algorithm {
            Algorithm::ByteLevel(bpe) => bpe.encode(text, ids),
            Algorithm::SentencePiece(pieces) => pieces.encode(text, ids),
        }
    }

    /// Text of `ids`. Bytes that are not UTF-8 become U+FFFD, as with Python's `errors="replace"`.
    ///
    /// `skip_control`: leave control tokens out. Unused tokens and ids outside the vocabulary print nothing. The space that
    /// [`Tokenizer::encode`] thinks before a text is left out.
    pub fn decode(&self, ids: &[u32], skip_control: bool) -> String {
        let mut decoder = self.decoder(skip_control);
        let mut text = String::new();
        for &id in ids {
            decoder.push(id, &mut text);
        }
        decoder.finish(&mut text);
        if self.has_space_prefix() && text.starts_with(' ') {
            text.remove(0);
        }
        text
    }

    /// Whether a text is encoded as if a space stood before it, as SentencePiece does.
    pub fn has_space_prefix(&self) -> bool {
        match &self.algorithm {
            Algorithm::ByteLevel(_) => false,
            Algorithm::SentencePiece(pieces) => pieces.has_space_prefix(),
        }
    }

    /// A decoder that takes the tokens one by one, and keeps a space before the first: what it prints goes on with a text.
    pub fn decoder(&self, skip_control: bool) -> Decoder<'_> {
        Decoder::new(self, skip_control)
    }

    /// Bytes that a token prints; none for unused tokens and ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.printed.bytes_of(id)
    }

    /// Id of the token stored as `text`: for added tokens the text itself, for ordinary tokens its byte-to-unicode form.
    /// Unused tokens are not found.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied().filter(|&id| self.kinds[id as usize] != TokenKind::Unused)
    }

    /// Ids of several tokens, such as those that end a text.
    ///
    /// Errors: `Tokenizer` naming the first text that is not in the vocabulary.
    pub fn ids_of(&self, texts: &[&str]) -> Result<Vec<u32>> {
        texts
            .iter()
            .map(|&text| self.id_of(text).ok_or_else(|| malformed(format!("the vocabulary has no token {text:?}"))))
            .collect()
    }

    /// What token `id` is for; `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether token `id` steers the model and is not part of the text.
    pub fn is_control(&self, id: u32) -> bool {
        self.kind(id).is_some_and(TokenKind::is_control)
    }

    /// Number of ids, unused ones included.
    pub fn n_vocab(&self) -> usize {
        self.kinds.len()
    }

    /// Rows of a head of `n_rows` that can be chosen from: up to the last one that stands for a token. What follows is
    /// padding.
    pub fn n_used(&self, n_rows: usize) -> usize {
        let is_used = |kind: &TokenKind| *kind != TokenKind::Unused;
        let n = n_rows.min(self.kinds.len());
        self.kinds[..n].iter().rposition(is_used).map_or(0, |last| last + 1)
    }

    /// Begin-of-text token, where the vocabulary names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-text token, where the vocabulary names one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Padding token, where the vocabulary names one.
    pub fn padding(&self) -> Option<u32> {
        self.padding
    }

    /// Whether text for this model begins with [`Tokenizer::bos`]. [`Tokenizer::encode`] leaves that to the caller.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }
}

/// What each token prints.
#[derive(Debug)]
struct Printed {
    /// All tokens, one after the other; token `i` ends at `ends[i]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Ordinary tokens that are written in the byte-to-unicode alphabet.
    in_alphabet: Vec<u32>,
}

impl Printed {
    /// `is_byte_level`: whether ordinary tokens are in the byte-to-unicode alphabet; they have U+2581 for spaces otherwise.
    fn new(tokens: &[String], kinds: &[TokenKind], is_byte_level: bool) -> Self {
        let mut printed = Self { bytes: Vec::new(), ends: Vec::with_capacity(tokens.len()), in_alphabet: Vec::new() };
        for (id, (text, &kind)) in (0u32..).zip(tokens.iter().zip(kinds)) {
            match kind {
                TokenKind::Normal if !is_byte_level => {
                    printed.bytes.extend_from_slice(text.replace(sentencepiece::SPACE, " ").as_bytes());
                }
                TokenKind::Byte => printed.bytes.extend(sentencepiece::byte_of(text)),
                TokenKind::Normal if bpe::push_bytes(text, &mut printed.bytes) => printed.in_alphabet.push(id),
                // An ordinary token outside the alphabet is never made from text; it prints as the tokenizers crate
                // prints it.
                TokenKind::Normal | TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => {
                    printed.bytes.extend_from_slice(text.as_bytes());
                }
                TokenKind::Unused => {}
            }
            printed.ends.push(printed.bytes.len());
        }
        printed
    }

    /// Bytes of one token; none outside the vocabulary.
    fn bytes_of(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }
}

/// The rule that GGUF files call `name`.
fn known_rule(name: &str) -> Result<PreTokenizer> {
    PreTokenizer::from_name(name).ok_or_else(|| {
        let names = PreTokenizer::names();
        let hint =
            nearest(&name.to_lowercase(), &names).map_or(String::new(), |near| format!("; the nearest is {near}"));
        let (name, known) = (quoted(name), names.join(", "));
        malformed(format!("pre-tokenizer {name} is not supported{hint} (supported: {known})"))
    })
}

/// Kinds of all tokens, checked against their texts. `has_bytes`: whether there may be byte tokens.
fn kinds(tokens: &[String], token_types: &[i32], has_bytes: bool) -> Result<Vec<TokenKind>> {
    if tokens.len() != token_types.len() {
        return Err(malformed(format!("{} token types for {} tokens", token_types.len(), tokens.len())));
    }
    let mut kinds = Vec::with_capacity(tokens.len());
    for (id, (text, &token_type)) in tokens.iter().zip(token_types).enumerate() {
        let kind = TokenKind::from_type(token_type).filter(|&kind| has_bytes || kind != TokenKind::Byte);
        let last = if has_bytes { 6 } else { 5 };
        let kind = kind.ok_or_else(|| malformed(format!("token {id} has type {token_type}, want 1 to {last}")))?;
        if text.is_empty() && !matches!(kind, TokenKind::Normal | TokenKind::Unused) {
            return Err(malformed(format!("added token {id} is empty")));
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

fn malformed(what: String) -> Error {
    Error::Tokenizer { path: None, what }
}
