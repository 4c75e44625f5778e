//! [`Events`]: an answer as server-sent events, written as it is decoded.
//! Source: WHATWG HTML, "Server-sent events".

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use http_body::Frame;
use serde_json::Value;
use tokio::time::{Sleep, sleep};

use super::log::Record;
use crate::api::error::ApiError;
use crate::mailbox::Reader;
use crate::work::{Answer, Piece, Reply};

/// A comment is sent so often where nothing else is, so that proxies keep the connection.
const PING: Duration = Duration::from_secs(30);

/// How replies are written as events of an endpoint.
pub(crate) trait Shape: Send {
    /// More of the text.
    fn piece(&mut self, piece: Piece) -> Vec<Value>;

    /// The end of the answer, and its last events.
    fn done(&mut self, answer: Answer, record: &Record) -> Vec<Value>;

    /// What follows the last event.
    fn end(&self) -> &'static str {
        ""
    }
}

/// A body of events.
struct Events {
    first: Option<Reply>,
    reader: Reader<Reply>,
    shape: Box<dyn Shape>,
    record: Record,
    ping: Pin<Box<Sleep>>,
    is_over: bool,
}

/// The answer that grows, or the error that came before anything else.
///
/// Errors: what the engine said before it said anything of the answer.
pub(crate) async fn respond(
    mut reader: Reader<Reply>,
    shape: impl Shape + 'static,
    record: Record,
) -> Result<Response<Body>, ApiError> {
    let first = match reader.next().await {
        Some(Reply::Failed(error)) => return Err(error),
        None => return Err(died()),
        Some(first) => first,
    };
    let body = Body::new(Events {
        first: Some(first),
        reader,
        shape: Box::new(shape),
        record,
        ping: Box::pin(sleep(PING)),
        is_over: false,
    });
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// The engine thread ended without an answer.
pub(crate) fn died() -> ApiError {
    ApiError::server("the engine has stopped")
}

impl Events {
    /// The bytes of a reply; none of one that says nothing.
    fn write(&mut self, reply: Option<Reply>) -> Option<Bytes> {
        let (events, end) = match reply {
            Some(Reply::Piece(piece)) => (self.shape.piece(piece), ""),
            Some(Reply::Done(answer)) => {
                self.is_over = true;
                self.record.end("done");
                (self.shape.done(*answer, &self.record), self.shape.end())
            }
            Some(Reply::Failed(error)) => {
                self.is_over = true;
                self.record.end("failed");
                (vec![error.body()], "")
            }
            None => {
                self.is_over = true;
                self.record.end("failed");
                (vec![died().body()], "")
            }
        };
        let text: String = events.into_iter().map(|event| format!("data: {event}\n\n")).collect();
        let text = text + end;
        (!text.is_empty()).then(|| text.into())
    }
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        while !self.is_over {
            let reply = match self.first.take() {
                Some(first) => Poll::Ready(Some(first)),
                None => self.reader.poll(context),
            };
            match reply {
                Poll::Ready(reply) => {
                    self.ping.as_mut().reset(tokio::time::Instant::now() + PING);
                    if let Some(bytes) = self.write(reply) {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                Poll::Pending => {
                    if self.ping.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    self.ping.as_mut().reset(tokio::time::Instant::now() + PING);
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": ping\n\n")))));
                }
            }
        }
        Poll::Ready(None)
    }
}
