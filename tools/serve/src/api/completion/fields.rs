//! [`Asking`]: what the fields of a request for text ask for, and those that are refused.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use models::generate::Writer;
use models::sample::{Sampling, Step};
use models::tokenizer::Special;
use serde_json::{Value, json};

use crate::App;
use crate::api::error::ApiError;
use crate::api::fields::Fields;

/// Most texts that end an answer.
const MAX_STOP: usize = 16;
/// Most alternatives of a token.
const MAX_PROBS: i64 = 128;
/// Most tokens whose logits are changed.
const MAX_BIAS: usize = 1024;
/// Highest temperature: there all tokens are about equally likely.
const MAX_TEMPERATURE: f64 = 1000.0;
/// Largest penalties and changes of logits, either way.
const MAX_PENALTY: f64 = 100.0;

/// Whose endpoint it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// llama.cpp's `/completion`.
    Native,
    /// OpenAI's completions.
    Completion,
    /// OpenAI's chat.
    Chat,
}

/// How prompts are to be continued.
pub(crate) struct Asking {
    /// Most tokens; as many as fit where none is given.
    pub max_tokens: Option<usize>,
    pub sampling: Sampling,
    pub bias: Vec<(u32, f32)>,
    pub stop: Vec<String>,
    pub is_streamed: bool,
    /// Whether a stream ends with what it took.
    pub wants_usage: bool,
    /// Answers for every prompt.
    pub n: usize,
    pub n_probs: Option<usize>,
    pub ignore_eos: bool,
    /// Whether the ids are told.
    pub wants_tokens: bool,
    /// Longest time from the first token on.
    pub most: Option<Duration>,
    /// The slot, where one is asked for.
    pub id_slot: Option<usize>,
    /// Whether what the slot has of the prompt is used, and the slot keeps what it has then.
    pub caches_prompt: bool,
}

impl Asking {
    /// Reads all fields but the prompt.
    ///
    /// Errors: 400 for values that make no sense, 501 for fields that are not built.
    pub(crate) fn of(fields: &Fields, kind: Kind, app: &App) -> Result<Self, ApiError> {
        refuse(fields)?;
        let n = match fields.whole("n", 1, 1024)? {
            Some(n) => Some(n),
            None => fields.whole("n_cmpl", 1, 1024)?,
        };
        let n = usize::try_from(n.unwrap_or(1)).unwrap_or(1);
        if n > app.options.n_slots {
            return Err(ApiError::field("n", format!("n: want at most {}, one for every slot", app.options.n_slots)));
        }
        if let Some(best_of) = fields.whole("best_of", 1, 1024)?
            && usize::try_from(best_of) != Ok(n)
        {
            return Err(ApiError::unsupported_field("best_of"));
        }
        let slots = i64::try_from(app.options.n_slots).unwrap_or(i64::MAX);
        let id_slot = fields.whole("id_slot", -1, slots - 1)?.and_then(|id| usize::try_from(id).ok());
        if id_slot.is_some() && n > 1 {
            return Err(ApiError::field("id_slot", "id_slot: one slot has one answer; n wants several"));
        }
        let mut max_tokens = None;
        for name in ["max_completion_tokens", "max_tokens", "n_predict"] {
            let most = i64::try_from(engine::session::MAX_CONTEXT).unwrap_or(i64::MAX);
            max_tokens = max_tokens.or(fields.whole(name, -1, most)?);
        }
        if max_tokens == Some(0) {
            return Err(ApiError::field("max_tokens", "max_tokens: want at least 1, or -1 for as many as fit"));
        }
        let stream_options = fields.get("stream_options");
        let includes_usage = stream_options.and_then(|options| options.get("include_usage"));
        let wants_usage = match includes_usage {
            None | Some(Value::Null) => false,
            Some(flag) => flag.as_bool().ok_or_else(|| {
                ApiError::field("stream_options", "stream_options: include_usage: want true or false")
            })?,
        };
        Ok(Self {
            max_tokens: max_tokens.and_then(|n| usize::try_from(n).ok()),
            sampling: sampling(fields)?,
            bias: bias(fields, &app.model.writer)?,
            stop: stop(fields)?,
            is_streamed: fields.flag("stream")?.unwrap_or(false),
            wants_usage,
            n,
            n_probs: n_probs(fields, kind)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            wants_tokens: fields.flag("return_tokens")?.unwrap_or(false),
            most: fields
                .number("t_max_predict_ms", 0.0, 1e9)?
                .filter(|&ms| ms > 0.0)
                .map(|ms| Duration::from_secs_f64(ms / 1000.0)),
            id_slot,
            caches_prompt: fields.flag("cache_prompt")?.unwrap_or(true) && app.options.keeps_prompts,
        })
    }
}

/// Refuses fields of llama.cpp's server and of OpenAI's that are not built.
fn refuse(fields: &Fields) -> Result<(), ApiError> {
    let empty = || [json!([]), json!(""), json!({})];
    for name in [
        "tools",
        "functions",
        "grammar",
        "json_schema",
        "suffix",
        "lora",
        "multimodal_data",
        "audio",
        "prediction",
        "web_search_options",
        "function_call",
        "reasoning_effort",
        "grammar_triggers",
    ] {
        fields.refuse(name, &empty())?;
    }
    for (name, changes_nothing) in [
        ("tool_choice", vec![json!("none"), json!("auto")]),
        ("response_format", vec![json!({"type": "text"})]),
        ("modalities", vec![json!(["text"])]),
        ("store", vec![json!(false)]),
        ("echo", vec![json!(false)]),
        ("verbosity", vec![json!("medium")]),
        ("return_progress", vec![json!(false)]),
        ("timings_per_token", vec![json!(false)]),
        ("dry_multiplier", vec![json!(0)]),
        ("xtc_probability", vec![json!(0)]),
        ("mirostat", vec![json!(0)]),
        ("typical_p", vec![json!(1)]),
        ("typ_p", vec![json!(1)]),
        ("dynatemp_range", vec![json!(0)]),
        ("top_n_sigma", vec![json!(-1), json!(0)]),
    ] {
        fields.refuse(name, &changes_nothing)?;
    }
    Ok(())
}

/// How tokens are drawn, by default as llama.cpp's server does.
fn sampling(fields: &Fields) -> Result<Sampling, ApiError> {
    let number = |name: &str, least: f64, most: f64, usual: f32| {
        fields.number(name, least, most).map(|x| x.map_or(usual, |x| x as f32))
    };
    let seed = fields.whole("seed", -1, i64::MAX)?.and_then(|seed| u64::try_from(seed).ok());
    let last_n = fields.whole("repeat_last_n", -1, 1 << 20)?.unwrap_or(64);
    let top_k = fields.whole("top_k", -1, i64::MAX)?.unwrap_or(40);
    Ok(Sampling {
        temperature: number("temperature", 0.0, MAX_TEMPERATURE, 0.8)?,
        top_k: usize::try_from(top_k).unwrap_or(0),
        top_p: number("top_p", 0.0, 1.0, 0.95)?,
        min_p: number("min_p", 0.0, 1.0, 0.05)?,
        repetition_penalty: number("repeat_penalty", 1.0 / MAX_PENALTY, MAX_PENALTY, 1.0)?,
        presence_penalty: number("presence_penalty", -MAX_PENALTY, MAX_PENALTY, 0.0)?,
        frequency_penalty: number("frequency_penalty", -MAX_PENALTY, MAX_PENALTY, 0.0)?,
        penalty_last_n: usize::try_from(last_n).ok(),
        order: order(fields)?,
        // Another one every time.
        seed: seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
    })
}

/// The order of samplers. Those that change nothing as they are may be named.
fn order(fields: &Fields) -> Result<[Option<Step>; Step::N], ApiError> {
    let Some(value) = fields.get("samplers") else { return Ok(Step::OF_LLAMA_CPP) };
    let wrong = || {
        let message = "samplers: want a list of penalties, top_k, top_p, min_p and temperature, each at most once";
        ApiError::field("samplers", message)
    };
    let names = value.as_array().ok_or_else(wrong)?;
    let mut order = [None; Step::N];
    let mut n = 0;
    for (i, name) in names.iter().enumerate() {
        let step = match name.as_str().ok_or_else(wrong)? {
            "penalties" if i == 0 => continue,
            "penalties" => return Err(ApiError::field("samplers", "samplers: penalties come first here")),
            // What they do is switched off.
            "dry" | "typ_p" | "typical_p" | "xtc" | "top_n_sigma" => continue,
            "top_k" => Step::TopK,
            "top_p" => Step::TopP,
            "min_p" => Step::MinP,
            "temperature" => Step::Temperature,
            _ => return Err(wrong()),
        };
        if order.contains(&Some(step)) {
            return Err(wrong());
        }
        order[n] = Some(step);
        n += 1;
    }
    Ok(order)
}

/// Changes of logits: pairs of a token, or a text of one or more, and a number or `false` for never; or a map, as OpenAI's.
fn bias(fields: &Fields, writer: &Writer) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = || {
        let message = "logit_bias: want {token: change} or [[token or text, change or false], ...]";
        ApiError::field("logit_bias", message)
    };
    let Some(value) = fields.get("logit_bias") else { return Ok(Vec::new()) };
    let pairs: Vec<(Value, Value)> = match value {
        Value::Object(map) => {
            let id = |text: &String| text.parse::<u32>().map(Value::from).map_err(|_| wrong());
            map.iter().map(|(name, change)| Ok((id(name)?, change.clone()))).collect::<Result<_, ApiError>>()?
        }
        Value::Array(list) => {
            let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
                Some([token, change]) => Ok((token.clone(), change.clone())),
                _ => Err(wrong()),
            };
            list.iter().map(pair).collect::<Result<_, ApiError>>()?
        }
        _ => return Err(wrong()),
    };
    let mut bias = Vec::new();
    for (token, change) in pairs {
        let change = match change {
            Value::Bool(false) => f32::NEG_INFINITY,
            change => match change.as_f64().filter(|x| x.abs() <= MAX_PENALTY) {
                Some(x) => x as f32,
                None => return Err(wrong()),
            },
        };
        match token {
            Value::String(text) => {
                bias.extend(writer.tokenizer().encode(&text, Special::Parse).into_iter().map(|id| (id, change)));
            }
            token => {
                let id = token.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?;
                bias.push((id, change));
            }
        }
        if bias.len() > MAX_BIAS {
            return Err(ApiError::field("logit_bias", format!("logit_bias: want at most {MAX_BIAS} tokens")));
        }
    }
    Ok(bias)
}

fn stop(fields: &Fields) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::field("stop", format!("stop: want a text, or up to {MAX_STOP} of them, none empty"));
    let texts = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
            list.iter().map(text).collect::<Result<Vec<_>, _>>()?
        }
        Some(_) => return Err(wrong()),
    };
    if texts.len() > MAX_STOP || texts.iter().any(String::is_empty) { Err(wrong()) } else { Ok(texts) }
}

fn n_probs(fields: &Fields, kind: Kind) -> Result<Option<usize>, ApiError> {
    let n = match kind {
        Kind::Chat => match fields.flag("logprobs")? {
            Some(true) => Some(fields.whole("top_logprobs", 0, MAX_PROBS)?.unwrap_or(0)),
            Some(false) | None if fields.get("top_logprobs").is_some_and(|n| *n != json!(0)) => {
                return Err(ApiError::field("top_logprobs", "top_logprobs: only with logprobs"));
            }
            Some(false) | None => None,
        },
        Kind::Completion => fields.whole("logprobs", 0, MAX_PROBS)?,
        Kind::Native => match fields.whole("n_probs", 0, MAX_PROBS)? {
            Some(n) => Some(n),
            None => fields.whole("logprobs", 0, MAX_PROBS)?,
        }
        .filter(|&n| n > 0),
    };
    Ok(n.and_then(|n| usize::try_from(n).ok()))
}

/// The prompts: a text, tokens, both mixed, or a list of these; each with the value that it was.
///
/// Errors: 400 for anything else.
pub(crate) fn prompts(fields: &Fields, writer: &Writer) -> Result<Vec<(Vec<u32>, Value)>, ApiError> {
    let wrong = || ApiError::field("prompt", "prompt: want a text, a list of tokens and texts, or a list of prompts");
    let value = fields.get("prompt").ok_or_else(wrong)?;
    match value {
        Value::Array(list) if list.is_empty() => Err(wrong()),
        // A list with a token among it is one prompt; of texts and lists every one is a prompt.
        Value::Array(list) if !list.iter().any(Value::is_number) => {
            list.iter().map(|prompt| Ok((ids(prompt, writer).ok_or_else(wrong)?, prompt.clone()))).collect()
        }
        prompt => Ok(vec![(ids(prompt, writer).ok_or_else(wrong)?, prompt.clone())]),
    }
}

/// The tokens of one prompt.
fn ids(prompt: &Value, writer: &Writer) -> Option<Vec<u32>> {
    match prompt {
        Value::String(text) => Some(writer.prompt(text)),
        Value::Array(parts) => {
            let mut all = Vec::new();
            for (i, part) in parts.iter().enumerate() {
                match part {
                    Value::String(text) if i == 0 => all.extend(writer.prompt(text)),
                    Value::String(text) => all.extend(writer.chat_prompt(text)),
                    part => all.push(u32::try_from(part.as_u64()?).ok()?),
                }
            }
            Some(all)
        }
        _ => None,
    }
}
