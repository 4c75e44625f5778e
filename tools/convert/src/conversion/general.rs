//! The `general.*` keys: what the file is called, and how the publisher samples from it.
//!
//! llama.cpp's converter guesses base name, size and fine-tune from the checkpoint's name; the rules here are those of
//! `gguf-py/gguf/metadata.py`, `Metadata.get_model_id_components`. Model cards are not read.

use std::collections::HashSet;

use anyhow::Result;
use engine::gguf::Value;

use super::config::Section;
use super::plan::{self, FilePlan};

/// What a name like `Qwen3-ASR-0.6B` says, part by part.
#[derive(Default, PartialEq, Eq, Debug)]
struct NameParts {
    title: String,
    organization: Option<String>,
    basename: Option<String>,
    finetune: Option<String>,
    version: Option<String>,
    size_label: Option<String>,
}

/// Sizes written as words.
const SIZE_WORDS: [&str; 6] = ["small", "mini", "medium", "large", "xl", "xxl"];
/// Fine-tunes that are known by name.
const FINETUNE_WORDS: [&str; 4] = ["chat", "instruct", "vision", "lora"];

/// Keys that describe the file `plan`. `kind`: `general.type`; `folder`: the checkpoint's name.
pub(super) fn keys(
    architecture: &str,
    kind: &str,
    folder: &str,
    config: &Section<'_>,
    generation: Option<&Section<'_>>,
    plan: &FilePlan,
) -> Result<Vec<(String, Value)>> {
    let n_params = plan.elements();
    let mut keys = vec![("general.architecture".to_owned(), architecture.into()), ("general.type".into(), kind.into())];
    if let Some(generation) = generation {
        sampling_keys(generation, &mut keys)?;
    }
    let mut parts = NameParts::default();
    // A path of the publisher's own disk is no name.
    let published = config.text_or_none("_name_or_path")?.filter(|name| name.matches('/').count() <= 1);
    for name in published.into_iter().chain([folder]) {
        parts.fill_from(NameParts::of(name, n_params));
    }
    let size_label = parts.size_label.unwrap_or_else(|| match plan::experts(plan) {
        Some(experts) => format!("{}x{}", experts.n_expert, rounded(experts.one_of_each)),
        None => rounded(n_params),
    });
    let texts = [
        ("name", Some(parts.title)),
        ("version", parts.version),
        ("organization", parts.organization),
        ("finetune", parts.finetune),
        ("basename", parts.basename),
        ("size_label", Some(size_label)),
    ];
    keys.extend(texts.into_iter().filter_map(|(key, text)| Some((format!("general.{key}"), text?.into()))));
    Ok(keys)
}

/// The publisher's sampling parameters, from `generation_config.json`.
fn sampling_keys(generation: &Section<'_>, keys: &mut Vec<(String, Value)>) -> Result<()> {
    enum Kind {
        Text,
        Integer,
        Number,
    }
    const PARAMETERS: [(&str, &[&str], Kind); 12] = [
        ("sequence", &["sequence"], Kind::Text),
        ("top_k", &["top_k"], Kind::Integer),
        ("top_p", &["top_p"], Kind::Number),
        ("min_p", &["min_p"], Kind::Number),
        ("xtc_probability", &["xtc_probability"], Kind::Number),
        ("xtc_threshold", &["xtc_threshold"], Kind::Number),
        ("temp", &["temperature"], Kind::Number),
        ("penalty_last_n", &["penalty_last_n"], Kind::Integer),
        ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], Kind::Number),
        ("mirostat", &["mirostat"], Kind::Integer),
        ("mirostat_tau", &["mirostat_tau"], Kind::Number),
        ("mirostat_eta", &["mirostat_eta"], Kind::Number),
    ];
    for (name, stored, kind) in PARAMETERS {
        let Some(stored) = stored.iter().find(|key| generation.has(key)) else { continue };
        let value: Option<Value> = match kind {
            Kind::Text => generation.text_or_none(stored)?.map(Value::from),
            Kind::Integer => generation.i32_or_none(stored)?.map(Value::from),
            Kind::Number => generation.number_or_none(stored)?.map(Value::from),
        };
        keys.extend(value.map(|value| (format!("general.sampling.{name}"), value)));
    }
    Ok(())
}

/// What one part of a name may be. Several can be true before the base name is settled.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Guess {
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    format: bool,
}

impl NameParts {
    /// `n_params` tells a size from a context length.
    fn of(name: &str, n_params: u64) -> Self {
        if name.contains(' ') {
            return Self { title: title(name), ..Self::default() };
        }
        let (organization, name) = match name.split_once('/') {
            Some((organization, name)) => (Some(organization).filter(|o| !o.starts_with('.') && !o.is_empty()), name),
            None => (None, name),
        };
        let mut parts: Vec<String> = name.split('-').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let mut guesses: Vec<Guess> = parts.iter_mut().enumerate().map(|(i, part)| guess(i, part, n_params)).collect();
        prefer_numbers_as_sizes(&parts, &mut guesses);
        settle_basename(&parts, &mut guesses);

        let chosen = |is: fn(&Guess) -> bool| -> Vec<&str> {
            parts.iter().zip(&guesses).filter(|(_, g)| is(g)).map(|(part, _)| part.as_str()).collect()
        };
        let join = |is| Some(chosen(is).join("-")).filter(|joined| !joined.is_empty());
        let mut sizes = chosen(|g| g.size);
        let mut seen = HashSet::new();
        sizes.retain(|size| seen.insert(*size));
        let size_label = Some(sizes.join("-")).filter(|joined| !joined.is_empty());
        let (finetune, version) = (join(|g| g.finetune), join(|g| g.version && !g.basename));
        // A name without any of these is too vague to take apart.
        let is_clear = size_label.is_some() || finetune.is_some() || version.is_some();
        Self {
            title: title(name),
            organization: organization.map(title),
            basename: if is_clear { join(|g| g.basename) } else { None },
            finetune,
            version,
            size_label,
        }
    }

    /// Takes from `other` what is not known yet.
    fn fill_from(&mut self, other: Self) {
        if self.title.is_empty() {
            self.title = other.title;
        }
        self.organization = self.organization.take().or(other.organization);
        self.basename = self.basename.take().or(other.basename);
        self.finetune = self.finetune.take().or(other.finetune);
        self.version = self.version.take().or(other.version);
        self.size_label = self.size_label.take().or(other.size_label);
    }
}

/// What part `i` of a name looks like; writes sizes and formats in their usual form.
fn guess(i: usize, part: &mut String, n_params: u64) -> Guess {
    let lower = part.to_lowercase();
    let mut guess = Guess::default();
    if is_version(&lower) {
        guess.version = true;
    } else if is_format(&lower) {
        guess.format = true;
        *part = part.to_uppercase();
    } else if i > 0 && (SIZE_WORDS.contains(&lower.as_str()) || is_size(&lower)) {
        let (label, is_context) = size_label(part, n_params);
        *part = label;
        (guess.finetune, guess.size) = (is_context, !is_context);
    } else if i > 0 && FINETUNE_WORDS.contains(&lower.as_str()) {
        guess.finetune = true;
    }
    guess
}

/// `v1.2`, `iter3`, `2507`.
fn is_version(lower: &str) -> bool {
    let digits = lower.strip_prefix("iter").or_else(|| lower.strip_prefix('v')).unwrap_or(lower);
    digits.split('.').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// `q8_0`, `iq4_x`, `bf16`, `fp32`.
fn is_format(lower: &str) -> bool {
    let float = lower.strip_prefix('b').unwrap_or(lower);
    let float = float.strip_prefix("fp").or_else(|| float.strip_prefix('f'));
    if float.is_some_and(|bits| bits == "16" || bits == "32") {
        return true;
    }
    let quantized = lower.strip_prefix('i').unwrap_or(lower).strip_prefix('q');
    let Some(rest) = quantized.and_then(|rest| rest.strip_prefix(|c: char| c.is_ascii_digit())) else { return false };
    let rest: Vec<char> = rest.chars().collect();
    rest.chunks(2).all(|pair| matches!(pair, ['_', c] if c.is_alphanumeric() || *c == '_'))
}

/// `7b`, `8x7b`, `a3b`, `0.6b`, `7b1`.
fn is_size(lower: &str) -> bool {
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let number = |s: &str| -> bool {
        let whole = digits(s);
        let mut rest = &s[whole..];
        if whole == 0 {
            return false;
        }
        if let Some(fraction) = rest.strip_prefix(['.', '_']).filter(|fraction| digits(fraction) > 0) {
            rest = &fraction[digits(fraction)..];
        }
        let Some(rest) = rest.strip_prefix(['k', 'm', 'b', 't']) else { return false };
        rest.is_empty() || rest.len() == 1 && digits(rest) == 1
    };
    let n = digits(lower);
    let experts = lower[n..].strip_prefix('x').filter(|_| n > 0);
    number(lower) || experts.is_some_and(number) || lower.strip_prefix('a').is_some_and(number)
}

/// A size in its usual form, and whether it is a context length instead: far from the number of parameters.
fn size_label(part: &str, n_params: u64) -> (String, bool) {
    let mut label: Vec<char> = part.replace('_', ".").chars().collect();
    if let [.., unit, digit] = label[..]
        && digit.is_ascii_digit()
    {
        let n = label.len();
        label.splice(n - 2.., ['.', digit, unit]);
    }
    if let [.., before, unit] = &mut label[..]
        && before.is_ascii_digit()
        && "kmbt".contains(*unit)
    {
        *unit = unit.to_ascii_uppercase();
    }
    let text: String = label.iter().collect();
    let number = text.get(..text.len() - 1).and_then(|number| number.parse::<f64>().ok());
    let power = " KMBT".chars().position(|unit| Some(&unit) == label.last());
    if let (Some(number), Some(power)) = (number, power) {
        let claimed = number * 1000f64.powi(power as i32);
        if n_params != 0 && (claimed - n_params as f64).abs() > (7 * n_params / 8) as f64 {
            return (text.to_lowercase(), true);
        }
    }
    (text, false)
}

/// Words are sizes only where no number is.
fn prefer_numbers_as_sizes(parts: &[String], guesses: &mut [Guess]) {
    let is_number = |part: &String| part.bytes().any(|b| b.is_ascii_digit());
    if parts.iter().zip(guesses.iter()).any(|(part, guess)| guess.size && is_number(part)) {
        for (_, guess) in parts.iter().zip(guesses).filter(|(part, _)| part.chars().all(char::is_alphabetic)) {
            guess.size = false;
        }
    }
}

/// The base name is what stands at the start, without versions at its end; what has no other meaning is a fine-tune.
fn settle_basename(parts: &[String], guesses: &mut [Guess]) {
    let mut at_start = true;
    for (part, guess) in parts.iter().zip(guesses.iter_mut()) {
        let is_plain = *guess == Guess::default();
        if at_start && (guess.version || is_plain && part.starts_with(char::is_alphabetic)) {
            guess.basename = true;
        } else {
            at_start = false;
            guess.finetune |= is_plain;
        }
    }
    for guess in guesses.iter_mut().rev() {
        if !(guess.basename && guess.version) {
            break;
        }
        guess.basename = false;
    }
}

/// `qwen3-asr-0.6b` as `Qwen3 Asr 0.6b`: lower-case words get capitals, versions and numbers stay.
fn title(name: &str) -> String {
    let word = |word: &str| {
        let is_lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        let is_number = word.starts_with(|c: char| c.is_ascii_digit());
        let is_version = word.strip_prefix('v').is_some_and(is_version);
        if !is_lower || is_number || is_version {
            return word.to_owned();
        }
        let mut inside = false;
        let mut out = String::with_capacity(word.len());
        for c in word.chars() {
            if inside {
                out.push(c)
            } else {
                out.extend(c.to_uppercase())
            }
            inside = c.is_alphabetic();
        }
        out
    };
    name.replace('-', " ").split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// `751632384` as `752M`: two digits at least.
fn rounded(n_params: u64) -> String {
    let n = n_params as f64;
    let (scaled, unit) = match n_params {
        1_000_000_000_001.. => (n * 1e-12, 'T'),
        1_000_000_001.. => (n * 1e-9, 'B'),
        1_000_001.. => (n * 1e-6, 'M'),
        _ => (n * 1e-3, 'K'),
    };
    // Whole digits; a zero counts as none.
    let whole = format!("{scaled:.0}");
    let fraction = 2usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.fraction$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(name: &str, n_params: u64) -> [Option<String>; 5] {
        let p = NameParts::of(name, n_params);
        [p.organization, p.basename, p.finetune, p.version, p.size_label]
    }

    fn some(texts: [&str; 5]) -> [Option<String>; 5] {
        texts.map(|t| (!t.is_empty()).then(|| t.to_owned()))
    }

    /// Answers of gguf-py's `Metadata.get_model_id_components`.
    #[test]
    fn names_are_taken_apart_as_gguf_py_does() {
        let cases: &[(&str, u64, [&str; 5])] = &[
            ("qwen3-asr-0.6b", 751_632_384, ["", "qwen3-asr", "", "", "0.6B"]),
            ("qwen3-asr-0.6b", 187_720_192, ["", "qwen3-asr", "0.6b", "", ""]),
            ("tiny-qwen3-asr", 3_000_000, ["", "", "", "", ""]),
            ("Qwen/Qwen3-ASR-1.7B-hf", 2_031_739_904, ["Qwen", "Qwen3-ASR", "hf", "", "1.7B"]),
            ("Mistral-7B-Instruct-v0.2", 7_000_000_000, ["", "Mistral", "Instruct", "v0.2", "7B"]),
            ("bloom-7b1", 7_100_000_000, ["", "bloom", "", "", "7.1B"]),
            ("Mixtral-8x7B-q4_0", 47_000_000_000, ["", "Mixtral", "", "", "8x7B"]),
            ("Qwen3-30B-A3B-2507", 30_000_000_000, ["", "Qwen3", "", "2507", "30B-A3B"]),
            ("whisper-large-v3", 1_500_000_000, ["", "whisper", "", "v3", "large"]),
            ("small-model-small-3B", 3_000_000_000, ["", "small-model-small", "", "", "3B"]),
        ];
        for (name, n, want) in cases {
            assert_eq!(parts(name, *n), some(*want), "{name}");
        }
    }

    #[test]
    fn titles_keep_capitals_and_numbers() {
        assert_eq!(title("qwen3-asr-0.6b"), "Qwen3 Asr 0.6b");
        assert_eq!(title("Qwen3-ASR-v1.2"), "Qwen3 ASR v1.2");
    }

    #[test]
    fn counts_have_two_digits() {
        assert_eq!([rounded(751_632_384), rounded(2_031_739_904), rounded(187_720_192)], ["752M", "2.0B", "188M"]);
        assert_eq!(rounded(3_364_000), "3.4M");
    }
}
