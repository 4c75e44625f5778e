//! Bodies of requests, within limits: [`read`] a whole one, or [`Watched`] for those that come in pieces.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Body as _, Frame, SizeHint};

use crate::api::error::ApiError;

/// Bytes that requests hold together.
pub(crate) struct Held {
    bytes: AtomicUsize,
    most: usize,
}

/// What one request holds, until this is dropped.
pub(crate) struct Holding {
    held: Arc<Held>,
    bytes: usize,
}

impl Held {
    /// Nothing is held.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), most })
    }

    /// Begins to hold nothing.
    pub(crate) fn begin(self: &Arc<Self>) -> Holding {
        Holding { held: Arc::clone(self), bytes: 0 }
    }
}

impl Holding {
    /// Holds so many bytes more.
    ///
    /// Errors: 429 where all requests together hold too much then.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let Held { bytes: held, most } = &*self.held;
        let fits = |now: usize| now.checked_add(bytes).filter(|sum| sum <= most);
        if held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_err() {
            return Err(ApiError::busy(format!("all requests together hold {most} bytes already")));
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Why a body was not read to its end, for whoever only gets an error of another crate.
#[derive(Clone, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<ApiError>>>);

impl Trouble {
    fn set(&self, error: ApiError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// The reason, once.
    pub(crate) fn take(&self) -> Option<ApiError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body of which every piece is shown to somebody before it goes on, and its end, without a piece.
pub(crate) struct Watched {
    body: Body,
    watch: Watch,
}

/// Sees pieces of a body; its error is the body's.
type Watch = Box<dyn FnMut(Option<&Bytes>) -> Result<(), axum::Error> + Send>;

impl Watched {
    pub(crate) fn new(
        body: Body,
        watch: impl FnMut(Option<&Bytes>) -> Result<(), axum::Error> + Send + 'static,
    ) -> Self {
        Self { body, watch: Box::new(watch) }
    }

    /// A body of at most so many bytes, which are held by `holding`. It ends with an error where it has more; `trouble` says
    /// which.
    pub(crate) fn limited(body: Body, most: usize, holding: Arc<Mutex<Holding>>, trouble: Trouble) -> Self {
        let mut left = most;
        Self::new(body, move |piece| {
            let n = piece.map_or(0, Bytes::len);
            let counted = left.checked_sub(n).ok_or_else(|| too_large(most)).and_then(|now| {
                left = now;
                holding.lock().unwrap_or_else(PoisonError::into_inner).grow(n)
            });
            counted.map_err(|error| {
                trouble.set(error);
                axum::Error::new(std::io::Error::other("the body is too large"))
            })
        })
    }
}

fn too_large(most: usize) -> ApiError {
    ApiError::too_large(format!("the body has more than {most} bytes"))
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let piece = match &frame {
            Some(Ok(frame)) => frame.data_ref(),
            Some(Err(_)) | None => None,
        };
        match (self.watch)(piece) {
            Ok(()) => Poll::Ready(frame),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A whole body of at most so many bytes.
///
/// Errors: 413, 429; 400 where it breaks off.
pub(crate) async fn read(body: Body, most: usize, holding: &mut Holding) -> Result<Vec<u8>, ApiError> {
    if body.size_hint().lower() > most as u64 {
        return Err(too_large(most));
    }
    let mut body = body;
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|_| ApiError::invalid("the body broke off"))?;
        let Some(data) = frame.data_ref() else { continue };
        if data.len() > most - bytes.len() {
            return Err(too_large(most));
        }
        holding.grow(data.len())?;
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}
