//! [`ApiError`]: why a request has no answer, as clients are told.

use engine::error::Chain;
use models::audio::{AudioError, AudioErrorKind};
use serde_json::{Value, json};

/// Seconds after which a client may try again where there was no room.
pub(crate) const RETRY_AFTER_S: u32 = 1;

/// An error with its status. The body is `{"error": {"code", "message", "type", "param"}}`, as the clients of OpenAI and of
/// llama.cpp read it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// What kind of error it is.
    pub kind: &'static str,
    /// What failed, expected and found.
    pub message: String,
    /// The field to blame, where one is.
    pub param: Option<String>,
    /// Tokens of the prompt and of the context, where the one does not fit the other.
    pub context: Option<(usize, usize)>,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, context: None }
    }

    /// A request that makes no sense.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// A field that makes no sense.
    pub(crate) fn field(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::invalid(message) }
    }

    /// A recording that is none, in a field to blame. Names of clients' files are not repeated.
    pub(crate) fn audio(error: &AudioError, param: &str) -> Self {
        let too_long = matches!(error.kind, AudioErrorKind::TooLong { .. } | AudioErrorKind::TooManyBytes);
        let message = Chain(error).to_string();
        if too_long { Self::too_large(message) } else { Self::field(param, message) }
    }

    /// A prompt that does not fit the context.
    pub(crate) fn context(n_prompt_tokens: usize, n_ctx: usize, message: impl Into<String>) -> Self {
        let context = Some((n_prompt_tokens, n_ctx));
        Self { context, ..Self::new(400, "exceed_context_size_error", message) }
    }

    /// No key, or a wrong one.
    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "authentication_error", "want an API key: Authorization: Bearer KEY")
    }

    /// A request from elsewhere.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "permission_error", message)
    }

    /// No such endpoint or thing.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "not_found_error", message)
    }

    /// An endpoint that is used in another way.
    pub(crate) fn method(method: &str, path: &str) -> Self {
        Self::new(405, "invalid_request_error", format!("{method} {path}: the endpoint has no such method"))
    }

    /// A body that did not come in time.
    pub(crate) fn slow(seconds: u64) -> Self {
        Self::new(408, "invalid_request_error", format!("the body did not come within {seconds} s"))
    }

    /// A body or clip that is too large.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "invalid_request_error", message)
    }

    /// A body of another type.
    pub(crate) fn media_type(message: impl Into<String>) -> Self {
        Self::new(415, "invalid_request_error", message)
    }

    /// No room for now.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(429, "rate_limit_error", message)
    }

    /// Something broke that is not the client's fault.
    pub(crate) fn server(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", message)
    }

    /// What this version or this model does not have.
    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(501, "not_supported_error", format!("{what}: not in this version"))
    }

    /// A field that this version does not have.
    pub(crate) fn unsupported_field(param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..Self::unsupported(param) }
    }

    /// What this model cannot do.
    pub(crate) fn cannot(message: impl Into<String>) -> Self {
        Self::new(501, "not_supported_error", message)
    }

    /// The server is about to end.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "unavailable_error", message)
    }

    /// A request that took longer than requests may take.
    pub(crate) fn late(seconds: u64) -> Self {
        Self::new(504, "server_error", format!("no answer within {seconds} s"))
    }

    /// The body that says it.
    pub(crate) fn body(&self) -> Value {
        let mut error = json!({
            "code": self.status, "message": self.message, "type": self.kind, "param": self.param,
        });
        if let Some((n_prompt_tokens, n_ctx)) = self.context {
            error["n_prompt_tokens"] = json!(n_prompt_tokens);
            error["n_ctx"] = json!(n_ctx);
        }
        json!({"error": error})
    }
}

/// What is wrong with a request by a model's judgement; anything else is the server's fault.
impl From<models::Error> for ApiError {
    fn from(error: models::Error) -> Self {
        match error {
            models::Error::Argument { name, what } => Self::field(name, format!("{name}: {what}")),
            models::Error::Template { what } => Self::invalid(format!("chat template: {what}")),
            models::Error::Engine(engine::Error::ContextFull { capacity, wanted }) => Self::context(
                wanted,
                capacity,
                format!("want {wanted} tokens, prompt and answer together; the context holds {capacity}"),
            ),
            models::Error::Engine(error @ engine::Error::OutOfMemory { .. }) => {
                Self::unavailable(format!("no memory for now: {}", Chain(&error)))
            }
            error => Self::server(Chain(&error).to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_body_that_clients_read() {
        let error = ApiError::context(300, 256, "too long");
        let want = json!({"error": {
            "code": 400, "message": "too long", "type": "exceed_context_size_error", "param": null,
            "n_prompt_tokens": 300, "n_ctx": 256,
        }});
        assert_eq!(error.body(), want);
        assert_eq!(ApiError::field("stop", "x").body()["error"]["param"], "stop");
        assert_eq!(ApiError::unsupported_field("tools").body()["error"]["message"], "tools: not in this version");
    }
}
