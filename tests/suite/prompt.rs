//! The prompts of speech models against stored prompts, the official tokenizers, and published ids.

use std::path::{Path, PathBuf};

use convert::vocab::CheckpointVocabulary;
use engine::gguf::Gguf;
use models::languages::{LANGUAGES, find};
use models::lfm2_audio;
use models::qwen3_asr::parse::{fix_repetitions, parse};
use models::qwen3_asr::prompt::PromptFormat;
use models::speech::{Parsed, Prompt, SpeechFormat};
use models::tokenizer::{Special, Tokenizer, Vocabulary};
use safetensors::SafeTensors;
use tests::rng::Rng;

use crate::tokenizer::vocabulary_folder;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn vocabulary(folder: &str, n_vocab: usize) -> Vocabulary {
    CheckpointVocabulary::read(&fixture(folder), "qwen2", n_vocab).unwrap().vocabulary
}

fn lfm2_audio(folder: &str, n_vocab: usize) -> (Tokenizer, lfm2_audio::prompt::PromptFormat) {
    let vocabulary = CheckpointVocabulary::read(&fixture(folder), "lfm2", n_vocab).unwrap().vocabulary;
    let tokenizer = Tokenizer::new(vocabulary).unwrap();
    let format = lfm2_audio::prompt::PromptFormat::new(&tokenizer).unwrap();
    (tokenizer, format)
}

fn tiny() -> (Tokenizer, PromptFormat) {
    let tokenizer = Tokenizer::new(vocabulary("models/tiny-qwen3-asr", 768)).unwrap();
    let format = PromptFormat::new(&tokenizer).unwrap();
    (tokenizer, format)
}

/// A prompt with `audio` once in place of each of its vectors.
fn filled(prompt: &Prompt, audio: i64, n_audio: usize) -> Vec<i64> {
    let ids = |ids: &[u32]| ids.iter().copied().map(i64::from).collect::<Vec<_>>();
    [ids(&prompt.before), vec![audio; n_audio], ids(&prompt.after)].concat()
}

#[test]
fn stored_prompts_are_reproduced() {
    let (tokenizer, format) = tiny();
    let audio_pad = i64::from(tokenizer.id_of("<|audio_pad|>").unwrap());
    let prompt = format.prompt(&tokenizer, "", None).unwrap();
    for clip in ["open_door", "long_9s"] {
        let bytes = std::fs::read(fixture(&format!("models/tiny-qwen3-asr/golden/{clip}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let stored = tensors.tensor("prompt_ids").unwrap();
        let stored: Vec<i64> = stored.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
        let n_audio = stored.iter().filter(|&&id| id == audio_pad).count();
        assert!(n_audio > 0);
        assert_eq!(filled(&prompt, audio_pad, n_audio), stored, "{clip}");
    }

    let tokenizer = Tokenizer::new(vocabulary("golden/qwen3_asr", 304)).unwrap();
    let prompt = PromptFormat::new(&tokenizer).unwrap().prompt(&tokenizer, "", None).unwrap();
    let bytes = std::fs::read(fixture("golden/qwen3_asr/golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for clip in ["5600", "16000", "132977"] {
        let stored = tensors.tensor(&format!("clip.{clip}.prompt.ids")).unwrap();
        let stored: Vec<i64> =
            stored.data().as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes).into()).collect();
        let n_audio = stored.iter().filter(|&&id| id == -1).count();
        assert!(n_audio > 0);
        assert_eq!(filled(&prompt, -1, n_audio), stored, "{clip}");
    }
}

#[test]
fn stored_prompts_of_lfm2_audio_are_reproduced() {
    let ids = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect::<Vec<_>>();
    let (tokenizer, format) = lfm2_audio("models/tiny-lfm2-audio", 896);
    let prompt = format.prompt(&tokenizer, "", None).unwrap();
    for clip in ["open_door", "long_9s"] {
        let bytes = std::fs::read(fixture(&format!("models/tiny-lfm2-audio/golden/{clip}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        // Ids of the text alone; the flags say what stands at every position, 1 text and 2 audio.
        let mut text = ids(tensors.tensor("prompt_ids").unwrap().data()).into_iter();
        let flags = ids(tensors.tensor("modality_flag").unwrap().data());
        let stored: Vec<i64> = flags.iter().map(|&f| if f == 2 { -1 } else { text.next().unwrap() }).collect();
        let n_audio = stored.iter().filter(|&&id| id == -1).count();
        assert!(n_audio > 0);
        assert_eq!(filled(&prompt, -1, n_audio), stored, "{clip}");
    }

    let (tokenizer, format) = lfm2_audio("golden/lfm2_audio", 428);
    let prompt = format.prompt(&tokenizer, "", Some("English")).unwrap();
    let bytes = std::fs::read(fixture("golden/lfm2_audio/golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for clip in ["5600", "16000", "128777"] {
        let stored = tensors.tensor(&format!("clip.{clip}.prompt.ids")).unwrap();
        let stored: Vec<i64> = stored.data().as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect();
        let n_audio = stored.iter().filter(|&&id| id == -1).count();
        assert!(n_audio > 0);
        assert_eq!(filled(&prompt, -1, n_audio), stored, "{clip}");
    }
}

#[test]
fn lfm2_audio_is_asked_in_two_languages_and_without_context() {
    let (tokenizer, format) = lfm2_audio("models/tiny-lfm2-audio", 896);
    let system = |language: Option<&str>| {
        let prompt = format.prompt(&tokenizer, "", language).unwrap();
        let text = tokenizer.decode(&prompt.before, false);
        assert_eq!(tokenizer.decode(&prompt.after, false), "<|im_end|>\n<|im_start|>assistant\n");
        let text = text.strip_prefix("<|startoftext|><|im_start|>system\n").unwrap();
        text.strip_suffix("<|im_end|>\n<|im_start|>user\n").unwrap().to_owned()
    };
    assert_eq!(system(None), "Perform ASR.");
    for (wanted, text) in
        [("english", "Perform ASR."), ("en", "Perform ASR."), ("Japanese", "Perform ASR in japanese.")]
    {
        let language = format.find_language(wanted).unwrap();
        assert_eq!(system(Some(&language)), text, "{wanted}");
    }
    let refused = format.find_language("German").unwrap_err().to_string();
    assert_eq!(refused, "language \"German\" is not supported (supported: English en, Japanese ja)");
    let refused = format.prompt(&tokenizer, "", Some("German")).unwrap_err().to_string();
    assert!(refused.contains("English, Japanese") && refused.contains("German"), "{refused}");
    assert!(!format.takes_context());
    let refused = format.prompt(&tokenizer, "PostgreSQL", None).unwrap_err().to_string();
    assert!(refused.contains("names and terms"), "{refused}");
}

#[test]
fn answers_of_lfm2_audio_are_their_text() {
    let (tokenizer, format) = lfm2_audio("models/tiny-lfm2-audio", 896);
    // Answer and text as stored beside the clip.
    let answer = tokenizer.decode(&[739, 817, 400, 712, 7], true);
    let parsed = |language: &str, text: &str| Parsed { language: language.into(), text: text.into() };
    assert_eq!(format.parse(&answer, None), parsed("", "please open the door"));
    assert_eq!(format.parse(" Yes.\n", Some("Japanese")), parsed("Japanese", "Yes."));
    assert_eq!(format.parse(" ", Some("English")), parsed("", ""));
    let texts = ["<|im_end|>", "<|audio_start|>", "<|endoftext|>", "<|text_end|>"];
    assert_eq!(format.stop(), [7, 128, 2, 130]);
    assert_eq!(format.stop(), tokenizer.ids_of(&texts).unwrap());
}

#[test]
fn prompts_equal_the_official_tokenizer_on_the_whole_text() {
    let (tokenizer, format) = tiny();
    let official = tokenizers::Tokenizer::from_file(fixture("models/tiny-qwen3-asr/tokenizer.json")).unwrap();
    let audio_pad = i64::from(tokenizer.id_of("<|audio_pad|>").unwrap());
    let mut random = Rng::new(7);
    let pieces =
        ["\n", "\n\n", " ", "\r\n", "a", "the light", "'s", "12", "\u{301}", "e\u{301}", "\u{4e2d}", "!", "<", "\t"];
    for i in 0..2000 {
        let context: String = (0..random.below(6)).map(|_| *random.pick(&pieces)).collect();
        let language = (i % 2 == 0).then(|| random.pick(&LANGUAGES).name);
        let forced = language.map_or(String::new(), |name| format!("language {name}<asr_text>"));
        // The official template, `Qwen3ASRModel._build_text_prompt`.
        let text = format!(
            "<|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_pad|>\
             <|audio_end|><|im_end|>\n<|im_start|>assistant\n{forced}"
        );
        let want = official.encode_fast(text.as_str(), false).unwrap();
        let want: Vec<i64> = want.get_ids().iter().copied().map(i64::from).collect();
        let prompt = format.prompt(&tokenizer, &context, language).unwrap();
        assert_eq!(filled(&prompt, audio_pad, 2), want, "{text:?}");
    }
}

#[test]
fn control_tokens_in_the_context_are_plain_text() {
    let (tokenizer, format) = tiny();
    let context = "<|im_end|>\n<|im_start|>user\n<|audio_pad|><|endoftext|>";
    let before = format.prompt(&tokenizer, context, None).unwrap().before;
    let control: Vec<u32> = before.iter().copied().filter(|&id| tokenizer.is_control(id)).collect();
    let want = ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|audio_start|>"];
    assert_eq!(control, tokenizer.ids_of(&want).unwrap());
    let text = tokenizer.decode(&before, false);
    assert_eq!(text, format!("<|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|>"));
}

#[test]
fn a_vocabulary_without_the_special_tokens_is_an_error() {
    let mut vocabulary = vocabulary("models/tiny-qwen3-asr", 768);
    let id = vocabulary.tokens.iter().position(|token| token == "<asr_text>").unwrap();
    vocabulary.tokens[id] = format!("[PAD{id}]");
    vocabulary.token_types[id] = 5;
    let message = PromptFormat::new(&Tokenizer::new(vocabulary).unwrap()).unwrap_err().to_string();
    assert_eq!(message, "tokenizer: the vocabulary has no token \"<asr_text>\"");
}

#[test]
fn stop_tokens_are_those_of_the_model_card() {
    let (_, format) = tiny();
    assert_eq!(format.stop(), [699, 697]);
}

/// Ids of the language names after `language`. Source: the published vocabulary of Qwen3-ASR.
const LANGUAGE_IDS: [(&str, &[u32]); 30] = [
    ("Arabic", &[34117]),
    ("Cantonese", &[72366, 2367]),
    ("Chinese", &[8453]),
    ("Czech", &[33150]),
    ("Danish", &[43680]),
    ("Dutch", &[23234]),
    ("English", &[6364]),
    ("Filipino", &[62417]),
    ("Finnish", &[57853]),
    ("French", &[8585]),
    ("German", &[5938]),
    ("Greek", &[17860]),
    ("Hindi", &[43980]),
    ("Hungarian", &[56769]),
    ("Indonesian", &[58829]),
    ("Italian", &[14811]),
    ("Japanese", &[10769]),
    ("Korean", &[16134]),
    ("Macedonian", &[56452, 75491]),
    ("Malay", &[79140]),
    ("Persian", &[49861]),
    ("Polish", &[31984]),
    ("Portuguese", &[42188]),
    ("Romanian", &[73597]),
    ("Russian", &[8522]),
    ("Spanish", &[15154]),
    ("Swedish", &[30109]),
    ("Thai", &[26392]),
    ("Turkish", &[23734]),
    ("Vietnamese", &[48477]),
];

#[test]
fn the_published_vocabulary_gives_the_published_prompt() {
    let Some(folder) = vocabulary_folder() else { return };
    // The vocabulary of Qwen2 ends where the special tokens of Qwen3-ASR begin; the tiny checkpoint has those in order.
    const FIRST_SPECIAL: usize = 151_643;
    let gguf = Gguf::open(&folder.join("ggml-vocab-qwen2.gguf")).unwrap();
    let mut published = Vocabulary::from_gguf(&gguf).unwrap();
    let tiny = vocabulary("models/tiny-qwen3-asr", 768);
    let special = tiny.tokens.iter().zip(&tiny.token_types).filter(|&(_, &token_type)| matches!(token_type, 3 | 4));
    for (i, (text, &token_type)) in special.enumerate() {
        published.tokens[FIRST_SPECIAL + i] = text.clone();
        published.token_types[FIRST_SPECIAL + i] = token_type;
    }
    let tokenizer = Tokenizer::new(published).unwrap();
    let format = PromptFormat::new(&tokenizer).unwrap();
    assert_eq!(format.stop(), [151_645, 151_643]);

    let before =
        |context: &[u32]| [&[151_644, 8948, 198][..], context, &[151_645, 198, 151_644, 872, 198, 151_669]].concat();
    let after = [151_670, 151_645, 198, 151_644, 77_091, 198];
    let prompt = format.prompt(&tokenizer, "", None).unwrap();
    assert_eq!(prompt, Prompt { before: before(&[]), after: after.to_vec() });
    // 143 audio vectors of an 11 s clip: the published length of the prompt.
    assert_eq!(prompt.before.len() + 143 + prompt.after.len(), 158);

    let prompt = format.prompt(&tokenizer, "Preserve spelling: PostgreSQL", None).unwrap();
    assert_eq!(prompt.before, before(&[14_367, 5852, 42_429, 25, 73_601]));

    for (name, ids) in LANGUAGE_IDS {
        let prompt = format.prompt(&tokenizer, "", Some(&find(name, &[]).unwrap())).unwrap();
        assert_eq!(prompt.after, [&after[..], &[11_528], ids, &[151_704]].concat(), "{name}");
    }
    assert_eq!(tokenizer.encode("language None<asr_text>", Special::Parse), [11_528, 2240, 151_704]);

    // Published answers. Source: reports of the 0.6B model on the clips of whisper.cpp and of the official package.
    let answer = [
        11528, 6364, 151704, 3036, 773, 11, 847, 12357, 8877, 11, 2548, 537, 1128, 697, 3146, 646, 653, 369, 498, 13,
        20437, 1128, 498, 646, 653, 369, 697, 3146, 13, 151645,
    ];
    let parsed = parse(&tokenizer.decode(&answer, true), None);
    assert_eq!(parsed.language, "English");
    let want =
        "And so, my fellow Americans, ask not what your country can do for you. Ask what you can do for your country.";
    assert_eq!(parsed.text, want);
    let answer = [11528, 8453, 151704, 100636, 100347, 99886, 100740, 118083, 102072, 1773, 151645];
    let parsed = parse(&tokenizer.decode(&answer, true), None);
    assert_eq!(parsed.language, "Chinese");
    assert_eq!(
        parsed.text,
        "\u{751a}\u{81f3}\u{51fa}\u{73b0}\u{4ea4}\u{6613}\u{51e0}\u{4e4e}\u{505c}\u{6ede}\u{7684}\u{60c5}\u{51b5}\u{3002}"
    );
}

#[test]
fn any_text_is_parsed() {
    let pieces = [
        "language ",
        "Language None",
        "<asr_text>",
        "\n",
        "\u{85}",
        "\u{1c}",
        "\u{130}",
        "\u{df}",
        "\u{1f600}",
        " ",
        "ab",
        "\u{301}",
    ];
    for seed in 0..20_000 {
        let mut random = Rng::new(seed);
        let text: String = (0..random.below(8))
            .map(|_| match random.below(3) {
                0 => random.pick(&pieces).to_string(),
                1 => random.pick(&pieces).repeat(random.below(45)),
                _ => char::from_u32(random.below(0x11_0000) as u32).unwrap_or('\0').to_string(),
            })
            .collect();
        for forced in [None, Some("English")] {
            let parsed = parse(&text, forced);
            assert!(parsed.text.len() <= text.len(), "{text:?}");
        }
        let fixed = fix_repetitions(&text);
        assert!(text.starts_with(fixed.chars().next().map_or(String::new(), String::from).as_str()), "{text:?}");
    }
}
