//! Answers as the clients of several servers read them, whole and in pieces.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use models::generate::End;
use models::sample::Sampling;
use serde_json::{Value, json};

use super::fields::{Asking, Kind};
use super::reasoning::{Parts, Reasoning, parts_of};
use crate::App;
use crate::api::drafts::tell_drafts;
use crate::api::error::ApiError;
use crate::http::events::Shape;
use crate::http::log::{Record, rounded};
use crate::work::{Answer, Piece, TextAnswer, TokenView};

/// What follows the last event of OpenAI's streams.
pub(super) const END: &str = "data: [DONE]\n\n";

/// What all parts of an answer say of it.
pub(super) struct Naming {
    kind: Kind,
    id: String,
    created: u64,
    starts_in_thought: bool,
}

impl Naming {
    pub(super) fn new(app: &App, kind: Kind, starts_in_thought: bool) -> Self {
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let id = format!("{prefix}-{created:016x}{:016x}", app.next_id());
        Self { kind, id, created, starts_in_thought }
    }

    fn object(&self, is_piece: bool) -> &'static str {
        match self.kind {
            Kind::Chat if is_piece => "chat.completion.chunk",
            Kind::Chat => "chat.completion",
            Kind::Native | Kind::Completion => "text_completion",
        }
    }

    /// A reply of OpenAI's with these choices.
    pub(super) fn reply(&self, app: &App, is_piece: bool, choices: Value) -> Value {
        json!({
            "id": self.id, "object": self.object(is_piece), "created": self.created, "model": app.model.alias,
            "system_fingerprint": concat!("tympan-", env!("CARGO_PKG_VERSION")), "choices": choices,
        })
    }
}

/// Answers with what was asked.
pub(super) struct Shaped<'a> {
    pub app: &'a App,
    pub naming: &'a Naming,
    pub asking: &'a Asking,
    pub prompts: &'a [Value],
}

impl Shaped<'_> {
    /// The reply that is not streamed.
    pub(super) fn whole(&self, answers: &[TextAnswer]) -> Value {
        if self.naming.kind == Kind::Native {
            let mut all: Vec<Value> = answers.iter().enumerate().map(|(i, answer)| self.native(i, answer)).collect();
            return if all.len() == 1 { all.remove(0) } else { Value::Array(all) };
        }
        let choices = answers.iter().enumerate().map(|(index, answer)| {
            let text = &answer.generated.text;
            let finish_reason = finish_reason(answer);
            match self.naming.kind {
                Kind::Chat => {
                    let Parts { thought, said } = parts_of(text, self.naming.starts_in_thought);
                    let mut message = json!({"role": "assistant", "content": said});
                    if !thought.is_empty() {
                        message["reasoning_content"] = json!(thought);
                    }
                    json!({
                        "index": index, "message": message, "finish_reason": finish_reason,
                        "logprobs": self.chat_logprobs(&answer.tokens),
                    })
                }
                Kind::Native | Kind::Completion => json!({
                    "index": index, "text": text, "finish_reason": finish_reason,
                    "logprobs": self.logprobs(&answer.tokens, 0),
                }),
            }
        });
        let mut reply = self.naming.reply(self.app, false, choices.collect());
        reply["usage"] = usage(answers);
        if let [answer] = answers {
            reply["timings"] = timings_of(answer);
        }
        reply
    }

    /// The reply of llama.cpp's server to one prompt.
    fn native(&self, i: usize, answer: &TextAnswer) -> Value {
        let generated = &answer.generated;
        let (stop_type, stopping_word) = match &generated.end {
            End::Limit => ("limit", ""),
            End::Token(_) => ("eos", ""),
            End::Text(text) => ("word", text.as_str()),
        };
        let tokens = if self.asking.wants_tokens { json!(generated.ids) } else { json!([]) };
        let mut reply = json!({
            "index": i, "content": generated.text, "tokens": tokens, "id_slot": answer.place, "stop": true,
            "model": self.app.model.alias,
            "tokens_predicted": generated.n_chosen, "tokens_evaluated": answer.n_prompt,
            "generation_settings": settings(self.asking, self.app), "prompt": self.prompts.get(i),
            "has_new_line": generated.text.contains('\n'), "truncated": false,
            "stop_type": stop_type, "stopping_word": stopping_word,
            "tokens_cached": answer.n_prompt + generated.n_chosen, "timings": timings_of(answer),
        });
        if self.asking.n_probs.is_some() {
            reply["completion_probabilities"] = self.native_probs(&answer.tokens);
        }
        reply
    }

    fn text_of(&self, id: u32) -> String {
        String::from_utf8_lossy(self.app.model.writer.tokenizer().token_bytes(id)).into_owned()
    }

    fn token(&self, id: u32, logprob: f64) -> Value {
        let bytes = self.app.model.writer.tokenizer().token_bytes(id);
        json!({"token": self.text_of(id), "bytes": bytes, "logprob": finite(logprob)})
    }

    fn native_probs(&self, tokens: &[TokenView]) -> Value {
        let token = |id: u32, logprob: f64| {
            let mut token = self.token(id, logprob);
            token["id"] = json!(id);
            token
        };
        let all = tokens.iter().map(|view| {
            let mut one = token(view.id, view.logprob);
            one["top_logprobs"] = view.top.iter().map(|&(id, logprob)| token(id, logprob)).collect();
            one
        });
        all.collect()
    }

    fn chat_logprobs(&self, tokens: &[TokenView]) -> Value {
        if self.asking.n_probs.is_none() {
            return Value::Null;
        }
        let content = tokens.iter().map(|view| {
            let mut one = self.token(view.id, view.logprob);
            one["top_logprobs"] = view.top.iter().map(|&(id, logprob)| self.token(id, logprob)).collect();
            one
        });
        json!({"content": content.collect::<Vec<_>>()})
    }

    /// As OpenAI's completions have them; `offset` is where in the text the tokens begin.
    fn logprobs(&self, tokens: &[TokenView], offset: usize) -> Value {
        if self.asking.n_probs.is_none() {
            return Value::Null;
        }
        let mut at = offset;
        let texts: Vec<String> = tokens.iter().map(|view| self.text_of(view.id)).collect();
        let offsets: Vec<usize> = texts
            .iter()
            .map(|text| {
                let here = at;
                at += text.chars().count();
                here
            })
            .collect();
        let top = tokens.iter().map(|view| {
            let pairs = view.top.iter().map(|&(id, logprob)| (self.text_of(id), json!(finite(logprob))));
            Value::Object(pairs.collect())
        });
        json!({
            "tokens": texts, "token_logprobs": tokens.iter().map(|view| finite(view.logprob)).collect::<Vec<_>>(),
            "top_logprobs": top.collect::<Vec<_>>(), "text_offset": offsets,
        })
    }
}

/// JSON has no infinity: a token that could not be chosen is as unlikely as can be said.
fn finite(logprob: f64) -> f64 {
    logprob.max(-9999.0)
}

fn finish_reason(answer: &TextAnswer) -> &'static str {
    match answer.generated.end {
        End::Limit => "length",
        End::Token(_) | End::Text(_) => "stop",
    }
}

fn usage(answers: &[TextAnswer]) -> Value {
    let n_prompt: usize = answers.iter().map(|answer| answer.n_prompt).sum();
    let n_chosen: usize = answers.iter().map(|answer| answer.generated.n_chosen).sum();
    let n_cached: usize = answers.iter().map(|answer| answer.n_cached).sum();
    json!({
        "prompt_tokens": n_prompt, "completion_tokens": n_chosen, "total_tokens": n_prompt + n_chosen,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    })
}

fn timings_of(answer: &TextAnswer) -> Value {
    // The first token comes with the prompt.
    let n_fed = answer.n_prompt - answer.n_cached;
    let mut timings = timings((n_fed, answer.prompt_time), (answer.generated.n_chosen, answer.decode_time));
    timings["cache_n"] = json!(answer.n_cached);
    tell_drafts(&mut timings, answer.drafts.as_deref());
    timings
}

/// Numbers of tokens and times of a prompt, of which nothing was in memory, and of its answer.
pub(super) fn timings(prompt: (usize, Duration), predicted: (usize, Duration)) -> Value {
    let part = |(n, time): (usize, Duration)| {
        let ms = time.as_secs_f64() * 1000.0;
        let (per_token, per_second) =
            if n > 0 && ms > 0.0 { (ms / n as f64, n as f64 / ms * 1000.0) } else { (0.0, 0.0) };
        [ms, per_token, per_second].map(rounded)
    };
    let (prompt_n, predicted_n) = (prompt.0, predicted.0);
    let (prompt, predicted) = (part(prompt), part(predicted));
    json!({
        "cache_n": 0, "prompt_n": prompt_n, "prompt_ms": prompt[0], "prompt_per_token_ms": prompt[1],
        "prompt_per_second": prompt[2], "predicted_n": predicted_n, "predicted_ms": predicted[0],
        "predicted_per_token_ms": predicted[1], "predicted_per_second": predicted[2],
    })
}

fn settings(asking: &Asking, app: &App) -> Value {
    let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } =
        asking.sampling;
    json!({
        "n_ctx": app.model.n_ctx, "n_predict": asking.max_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "repeat_penalty": repetition_penalty, "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty, "repeat_last_n": asking.sampling.penalty_last_n,
        "seed": asking.sampling.seed, "stop": asking.stop, "ignore_eos": asking.ignore_eos, "stream": asking.is_streamed,
        "n_probs": asking.n_probs.unwrap_or(0),
    })
}

/// An answer in pieces.
pub(super) struct Streamed {
    app: Arc<App>,
    naming: Naming,
    asking: Asking,
    prompts: Vec<Value>,
    reasoning: Reasoning,
    /// Whether the role was told.
    has_begun: bool,
    n_chars: usize,
}

impl Streamed {
    pub(super) fn new(app: Arc<App>, naming: Naming, asking: Asking, prompts: Vec<Value>) -> Self {
        let reasoning = Reasoning::new(naming.starts_in_thought);
        Self { app, naming, asking, prompts, reasoning, has_begun: false, n_chars: 0 }
    }

    fn shaped(&self) -> Shaped<'_> {
        Shaped { app: &self.app, naming: &self.naming, asking: &self.asking, prompts: &self.prompts }
    }

    /// A piece of a chat.
    fn delta(&self, delta: Value, finish_reason: Option<&str>, tokens: &[TokenView]) -> Value {
        let logprobs = self.shaped().chat_logprobs(tokens);
        let choice = json!([{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}]);
        self.naming.reply(&self.app, true, choice)
    }

    /// More of a chat; the first piece has the role.
    fn chat(&mut self, parts: &Parts, tokens: &[TokenView]) -> Vec<Value> {
        let mut events = Vec::new();
        if !self.has_begun {
            self.has_begun = true;
            events.push(self.delta(json!({"role": "assistant", "content": ""}), None, &[]));
        }
        if !parts.thought.is_empty() {
            events.push(self.delta(json!({"reasoning_content": parts.thought}), None, &[]));
        }
        if !parts.said.is_empty() || !tokens.is_empty() {
            events.push(self.delta(json!({"content": parts.said}), None, tokens));
        }
        events
    }

    /// More of a text.
    fn text(&mut self, text: &str, tokens: &[TokenView]) -> Value {
        let logprobs = self.shaped().logprobs(tokens, self.n_chars);
        self.n_chars += text.chars().count();
        let choice = json!([{"index": 0, "text": text, "finish_reason": null, "logprobs": logprobs}]);
        self.naming.reply(&self.app, true, choice)
    }

    /// More of a text, as llama.cpp sends it.
    fn native(&self, text: &str, tokens: &[TokenView]) -> Value {
        let mut event = json!({
            "index": 0, "content": text, "tokens": tokens.iter().map(|view| view.id).collect::<Vec<_>>(),
            "stop": false, "id_slot": -1,
        });
        if self.asking.n_probs.is_some() {
            event["completion_probabilities"] = self.shaped().native_probs(tokens);
        }
        event
    }
}

impl Shape for Streamed {
    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        match self.naming.kind {
            Kind::Chat => {
                let parts = self.reasoning.push(&piece.text);
                self.chat(&parts, &piece.tokens)
            }
            Kind::Completion => vec![self.text(&piece.text, &piece.tokens)],
            Kind::Native => vec![self.native(&piece.text, &piece.tokens)],
        }
    }

    fn done(&mut self, answer: Answer, record: &Record) -> Vec<Value> {
        let Answer::Text(answer) = answer else {
            return vec![ApiError::server("the answer is of another request").body()];
        };
        let answers = [answer];
        super::count(record, &answers);
        let [answer] = answers;
        let has_rest = !answer.rest.is_empty() || !answer.tokens.is_empty();
        let mut events = Vec::new();
        match self.naming.kind {
            Kind::Chat => {
                let mut parts = self.reasoning.push(&answer.rest);
                let rest = self.reasoning.finish();
                parts.thought.push_str(&rest.thought);
                parts.said.push_str(&rest.said);
                events.extend(self.chat(&parts, &answer.tokens));
                events.push(self.delta(json!({}), Some(finish_reason(&answer)), &[]));
            }
            Kind::Completion => {
                if has_rest {
                    events.push(self.text(&answer.rest, &answer.tokens));
                }
                let choice =
                    json!([{"index": 0, "text": "", "finish_reason": finish_reason(&answer), "logprobs": null}]);
                events.push(self.naming.reply(&self.app, true, choice));
            }
            Kind::Native => {
                if has_rest {
                    events.push(self.native(&answer.rest, &answer.tokens));
                }
                let mut last = self.shaped().native(0, &answer);
                // All of it was sent.
                last["content"] = json!("");
                last["tokens"] = json!([]);
                events.push(last);
            }
        }
        if self.naming.kind != Kind::Native {
            if self.asking.wants_usage {
                let mut last = self.naming.reply(&self.app, true, json!([]));
                last["usage"] = usage(std::slice::from_ref(&answer));
                last["timings"] = timings_of(&answer);
                events.push(last);
            } else if let Some(last) = events.last_mut() {
                last["timings"] = timings_of(&answer);
            }
        }
        events
    }

    fn end(&self) -> &'static str {
        if self.naming.kind == Kind::Native { "" } else { END }
    }
}
