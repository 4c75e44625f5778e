//! Vocabularies of published sizes without the published words: tokenizers that load, and split text about as finely.
//!
//! What prompts consist of stands in its published place, so that a prompt has its published ids; everything else is made
//! of letters, pairs of letters and pairs of pairs, the frequent ones of English first. [`tokenizer`] is where to start.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

use super::shapes::{Kind, Shape};

/// Letters of English, the most frequent first.
const LETTERS: &str = "etaoinshrdlcumwfgypbvkjxqz";
/// A space in the alphabet of vocabularies.
const SPACE: &str = "\u{120}";

/// Ordinary ids of all Qwen3 models begin with the single bytes. Qwen3.5 has more of them: here they are rows without a token.
const QWEN_FIRST: u32 = 0;
/// One past the ordinary ids.
const QWEN_END: u32 = 151_643;
/// Words that prompts name, with their ids; languages have a space in front. Source: Qwen3-ASR, `vocab.json`.
const QWEN_WORDS: [(&str, u32); 32] = [
    ("\u{120}English", 6364),
    ("\u{120}Chinese", 8453),
    ("\u{120}Russian", 8522),
    ("\u{120}French", 8585),
    ("\u{120}German", 5938),
    ("\u{120}Japanese", 10769),
    ("\u{120}Italian", 14811),
    ("\u{120}Spanish", 15154),
    ("\u{120}Korean", 16134),
    ("\u{120}Greek", 17860),
    ("\u{120}Dutch", 23234),
    ("\u{120}Turkish", 23734),
    ("\u{120}Thai", 26392),
    ("\u{120}Swedish", 30109),
    ("\u{120}Polish", 31984),
    ("\u{120}Czech", 33150),
    ("\u{120}Arabic", 34117),
    ("\u{120}Portuguese", 42188),
    ("\u{120}Danish", 43680),
    ("\u{120}Hindi", 43980),
    ("\u{120}Vietnamese", 48477),
    ("\u{120}Persian", 49861),
    ("\u{120}Hungarian", 56769),
    ("\u{120}Finnish", 57853),
    ("\u{120}Indonesian", 58829),
    ("\u{120}Filipino", 62417),
    ("\u{120}Romanian", 73597),
    ("\u{120}Malay", 79140),
    ("user", 872),
    ("system", 8948),
    ("language", 11528),
    ("assistant", 77091),
];
/// Control tokens of Qwen3, from [`QWEN_END`] on. Source: Qwen3, `tokenizer_config.json`.
const QWEN_CONTROL: [&str; 14] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];
/// Added tokens of Qwen3 that are text, behind those. Source: as above.
const QWEN_TEXT: [&str; 12] = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
];
/// What Qwen3-ASR has behind them, but for the blanks. Source: Qwen3-ASR, `tokenizer_config.json`.
const QWEN_ASR_ADDED: [&str; 8] = [
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
    "<non_speech>",
    "<|audio_pad|>",
];
/// Number of blanks behind those.
const QWEN_ASR_BLANKS: u32 = 27;
/// Last of Qwen3-ASR's.
const QWEN_ASR_LAST: [&str; 2] = ["<asr_text>", "<timestamp>"];
/// Those of Qwen3-ASR that are text.
const QWEN_ASR_TEXT: [&str; 2] = ["<non_speech>", "<asr_text>"];

/// Ordinary ids of LFM2 begin with the single bytes.
const LFM2_FIRST: u32 = 510;
/// One past the ordinary ids.
const LFM2_END: u32 = 64_000;
/// Words of the prompt of LFM2-Audio, or parts of them, with their ids. Source: liquid-audio, `ChatState`.
const LFM2_WORDS: [(&str, u32); 8] = [
    ("\u{120}AS", 11866),
    ("\u{120}in", 797),
    ("\u{120}japan", 41035),
    ("user", 6423),
    ("system", 24131),
    ("ese", 3391),
    ("Per", 8173),
    ("form", 1199),
];
/// Control tokens from 0 on; those behind them are called after their id less 10. Source: LFM2, `tokenizer_config.json`.
const LFM2_CONTROL: [&str; 14] = [
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|fim_pre|>",
    "<|fim_mid|>",
    "<|fim_suf|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|tool_list_start|>",
    "<|tool_list_end|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_response_start|>",
    "<|tool_response_end|>",
];
/// Control tokens between the reserved ones.
const LFM2_AUDIO: [(u32, &str); 3] = [(128, "<|audio_start|>"), (129, "<|text_start|>"), (130, "<|text_end|>")];
/// Text that is one token wherever it stands.
const LFM2_TEXT: [(u32, &str); 3] = [(64_011, "Mathias"), (64_014, "python"), (64_015, "assistant")];

/// ChatML behind the begin of the text.
const LFM2_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
     {{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A token that is found in raw text.
struct Added {
    id: u32,
    text: String,
    special: bool,
}

/// Where a vocabulary has what prompts consist of.
#[derive(Clone, Copy)]
enum Words {
    Qwen,
    Lfm2,
    /// Id 0 ends a text, all others are pieces.
    Plain,
}

impl Shape {
    fn words(&self) -> Words {
        match self.kind {
            Kind::Qwen3(_) | Kind::Qwen3Asr(..) | Kind::Qwen3Next(_) => Words::Qwen,
            Kind::Lfm2(_) | Kind::Lfm2Audio(..) => Words::Lfm2,
            Kind::Llama(_) | Kind::Mamba(_) | Kind::Jamba(_) | Kind::Granite(_) => Words::Plain,
        }
    }
}

/// What stands at the beginning and at the end of texts where nothing is known of published ids.
const END_OF_TEXT: &str = "<|endoftext|>";

/// `tokenizer.json` of a model.
pub(super) fn tokenizer(shape: &Shape) -> Value {
    let (first, end, words) = match shape.words() {
        Words::Qwen => (QWEN_FIRST, QWEN_END, &QWEN_WORDS[..]),
        Words::Lfm2 => (LFM2_FIRST, LFM2_END, &LFM2_WORDS[..]),
        Words::Plain => (1, u32::try_from(shape.n_vocab()).expect("vocabularies are small"), &[][..]),
    };
    let Pieces { tokens, merges } = Pieces::of(words, (end - first) as usize);
    let mut ids: BTreeMap<u32, &str> = words.iter().map(|&(text, id)| (id, text)).collect();
    let placed: HashSet<&str> = words.iter().map(|&(text, _)| text).collect();
    let mut others = tokens.iter().map(String::as_str).filter(|text| !placed.contains(text));
    for id in first..end {
        ids.entry(id).or_insert_with(|| others.next().expect("there are as many tokens as ids"));
    }
    let vocab: Map<String, Value> = ids.into_iter().map(|(id, text)| (text.into(), id.into())).collect();
    let added: Vec<Value> = added(shape)
        .into_iter()
        .map(|Added { id, text, special }| json!({"id": id, "content": text, "special": special}))
        .collect();
    json!({"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": merges}})
}

/// `tokenizer_config.json` of a model.
pub(super) fn tokenizer_config(shape: &Shape) -> Value {
    match shape.words() {
        Words::Qwen => json!({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
        Words::Lfm2 => json!({
            "bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>", "add_bos_token": true,
            "chat_template": LFM2_TEMPLATE,
        }),
        Words::Plain => json!({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}),
    }
}

/// Tokens that are no pieces of words, in the order of their ids.
fn added(shape: &Shape) -> Vec<Added> {
    if let Words::Plain = shape.words() {
        return vec![Added { id: 0, text: END_OF_TEXT.into(), special: true }];
    }
    if let Words::Lfm2 = shape.words() {
        let control = |id: u32| match (LFM2_CONTROL.get(id as usize), LFM2_AUDIO.iter().find(|(at, _)| *at == id)) {
            (Some(text), _) | (None, Some((_, text))) => (*text).to_owned(),
            (None, None) => format!("<|reserved_{}|>", id - 10),
        };
        let control = (0..LFM2_FIRST).map(|id| Added { id, text: control(id), special: true });
        let text = LFM2_TEXT.iter().map(|&(id, text)| Added { id, text: text.into(), special: false });
        return control.chain(text).collect();
    }
    let mut texts: Vec<String> = QWEN_CONTROL.iter().chain(&QWEN_TEXT).map(|&text| text.to_owned()).collect();
    if matches!(shape.kind, Kind::Qwen3Asr(..)) {
        texts.extend(QWEN_ASR_ADDED.map(str::to_owned));
        texts.extend((1..=QWEN_ASR_BLANKS).map(|i| format!("<blank{i}>")));
        texts.extend(QWEN_ASR_LAST.map(str::to_owned));
    }
    let is_special = |text: &str| !QWEN_TEXT.contains(&text) && !QWEN_ASR_TEXT.contains(&text);
    (QWEN_END..).zip(texts).map(|(id, text)| Added { id, special: is_special(&text), text }).collect()
}

/// Ordinary tokens, and the merges that make all but the single bytes.
struct Pieces {
    tokens: Vec<String>,
    merges: Vec<String>,
}

impl Pieces {
    /// `n` tokens: bytes, the beginnings of `words`, and what letters give.
    fn of(words: &[(&str, u32)], n: usize) -> Self {
        let mut tokens: Vec<String> = bytes().map(String::from).collect();
        let mut known: HashSet<String> = tokens.iter().cloned().collect();
        let (mut merges, mut merged) = (Vec::new(), HashSet::new());
        let mut add = |left: &str, right: &str| {
            // Two merges may make one token: which letters meet first depends on the word.
            let text = format!("{left}{right}");
            let parts_exist = known.contains(left) && known.contains(right);
            if parts_exist
                && (tokens.len() < n || known.contains(&text))
                && merged.insert((left.to_owned(), right.to_owned()))
            {
                merges.push(format!("{left} {right}"));
                if known.insert(text.clone()) {
                    tokens.push(text);
                }
            }
            tokens.len() < n
        };
        // First of all merges, so that no other takes letters out of a word.
        for (word, _) in words {
            let ends: Vec<usize> = word.char_indices().map(|(at, _)| at).chain([word.len()]).collect();
            for end in ends.windows(2).skip(1) {
                add(&word[..end[0]], &word[end[0]..end[1]]);
            }
        }
        let letters = LETTERS.chars().map(String::from);
        let pairs = by_rank(LETTERS.len()).map(|(i, j)| [&LETTERS[i..=i], &LETTERS[j..=j]].concat());
        let pieces: Vec<String> = letters.chain(pairs).collect();
        for pair in &pieces[LETTERS.len()..] {
            add(&pair[..1], &pair[1..]);
        }
        for character in ('!'..='~').filter(|c| !c.is_ascii_lowercase()) {
            add(SPACE, character.encode_utf8(&mut [0; 4]));
        }
        for piece in &pieces {
            add(SPACE, piece);
        }
        for (i, j) in by_rank(pieces.len()) {
            add(&pieces[i], &pieces[j]);
            if !add(&format!("{SPACE}{}", pieces[i]), &pieces[j]) {
                break;
            }
        }
        Self { tokens, merges }
    }
}

/// All pairs of numbers below `n`, by their sum.
fn by_rank(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..(2 * n).saturating_sub(1))
        .flat_map(move |sum| (sum.saturating_sub(n - 1)..=sum.min(n - 1)).map(move |i| (i, sum - i)))
}

/// The characters that stand for single bytes, in the order of their tokens. Source: GPT-2, `bytes_to_unicode`.
fn bytes() -> impl Iterator<Item = char> {
    let printable = ('!'..='~').chain('\u{a1}'..='\u{ac}').chain('\u{ae}'..='\u{ff}');
    printable.chain('\u{100}'..='\u{143}')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use models::tokenizer::{Special, Tokenizer};

    use super::super::Synthetic;
    use super::*;
    use crate::Files;
    use crate::vocab::CheckpointVocabulary;

    fn load(name: &str) -> Tokenizer {
        let shape = Shape::ALL.iter().find(|shape| shape.name == name).unwrap();
        let pre = match shape.words() {
            Words::Qwen => "qwen2",
            Words::Lfm2 => "lfm2",
            Words::Plain => "gpt-2",
        };
        let files = Files::Synthetic(Arc::new(Synthetic::new(shape, 1)));
        Tokenizer::new(CheckpointVocabulary::read(files, pre, shape.n_vocab()).unwrap().vocabulary).unwrap()
    }

    #[test]
    fn prompts_of_qwen3_asr_have_their_published_ids() {
        let tokenizer = load("qwen3-asr-0.6b");
        let ids = |text: &str| tokenizer.encode(text, Special::Parse);
        // The prompt of the official package for one second of audio, with the answer's beginning.
        let text = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n\
                    <|im_start|>assistant\nlanguage English<asr_text>";
        let want = [
            151644, 8948, 198, 151645, 198, 151644, 872, 198, 151669, 151676, 151670, 151645, 198, 151644, 77091, 198,
            11528, 6364, 151704,
        ];
        assert_eq!(ids(text), want);
        for (word, id) in QWEN_WORDS {
            assert_eq!(ids(&word.replace(SPACE, " ")), [id], "{word}");
        }
        assert_eq!(ids("<timestamp>"), [151705]);
        assert_eq!((tokenizer.n_vocab(), tokenizer.n_used(151_936)), (151_936, 151_706));
    }

    #[test]
    fn prompts_of_lfm2_audio_have_their_published_ids() {
        let tokenizer = load("lfm2-audio-1.5b");
        let ids = |texts: &[&str]| texts.iter().flat_map(|t| tokenizer.encode(t, Special::Parse)).collect::<Vec<_>>();
        let before =
            |system| ids(&["<|startoftext|>", "<|im_start|>system\n", system, "<|im_end|>\n", "<|im_start|>user\n"]);
        let want = [1, 6, 24131, 708, 8173, 1199, 11866, 559, 523, 7, 708, 6, 6423, 708];
        assert_eq!(before("Perform ASR."), want);
        let want = [1, 6, 24131, 708, 8173, 1199, 11866, 559, 797, 41035, 3391, 523, 7, 708, 6, 6423, 708];
        assert_eq!(before("Perform ASR in japanese."), want);
        assert_eq!(ids(&["<|im_end|>\n", "<|im_start|>assistant\n"]), [7, 708, 6, 64015, 708]);
        assert_eq!(ids(&["<|reserved_30|>", "<|reserved_385|>", "<|audio_start|>"]), [40, 395, 128]);
        assert_eq!(tokenizer.n_vocab(), 65_536);
    }

    #[test]
    fn text_is_split_about_as_finely_as_by_a_trained_vocabulary_and_comes_back() {
        let text = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of \
                    foolishness, it was the epoch of belief, it was the epoch of incredulity. Stra\u{df}e, 42 \u{4f60}\u{597d}\n";
        for name in ["lfm2-1.2b", "qwen3-0.6b", "mamba-130m"] {
            let tokenizer = load(name);
            let ids = tokenizer.encode(text, Special::AsText);
            assert_eq!(tokenizer.decode(&ids, true), text, "{name}");
            // Trained vocabularies take 4 to 5 bytes of such English.
            let bytes = text.len() as f64 / ids.len() as f64;
            assert!((2.4..6.0).contains(&bytes), "{name}: {bytes}");
        }
    }
}
