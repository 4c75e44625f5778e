//! [`Mailbox`]: the way from the engine thread to one client. Whoever writes never waits: what was not read yet is put together,
//! so that a mailbox holds no more than one answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What can be put together with what follows.
pub(crate) trait Merge: Sized {
    /// Takes `next` in, or gives it back.
    fn merge(&mut self, next: Self) -> Option<Self>;
}

struct State<T> {
    /// Not read yet; the last one takes in what follows it, where it can.
    events: Vec<T>,
    /// When the first of them was written.
    unread_since: Option<Duration>,
    /// Nothing more will come.
    is_closed: bool,
    /// Nobody reads any more.
    is_gone: bool,
    waker: Option<Waker>,
}

/// The writer's end.
pub(crate) struct Mailbox<T>(Arc<Mutex<State<T>>>);

/// The reader's end. Dropping it tells the writer that nobody reads any more.
pub(crate) struct Reader<T>(Arc<Mutex<State<T>>>);

/// Both ends.
pub(crate) fn mailbox<T: Merge>() -> (Mailbox<T>, Reader<T>) {
    let state = State { events: Vec::new(), unread_since: None, is_closed: false, is_gone: false, waker: None };
    let state = Arc::new(Mutex::new(state));
    (Mailbox(Arc::clone(&state)), Reader(state))
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Merge> Mailbox<T> {
    /// Writes an event.
    pub(crate) fn put(&self, event: T, now: Duration) {
        let mut state = lock(&self.0);
        if state.is_gone {
            return;
        }
        let left = match state.events.last_mut() {
            Some(last) => last.merge(event),
            None => Some(event),
        };
        state.events.extend(left);
        state.unread_since.get_or_insert(now);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Whether nobody reads any more.
    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.0).is_gone
    }

    /// Since when something waits to be read.
    pub(crate) fn unread_since(&self) -> Option<Duration> {
        lock(&self.0).unread_since
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_closed = true;
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl<T> Reader<T> {
    /// The next event; none where nothing more will come.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.0);
        if state.events.is_empty() {
            if state.is_closed {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let event = state.events.remove(0);
        if state.events.is_empty() {
            state.unread_since = None;
        }
        Poll::Ready(Some(event))
    }

    /// As [`Self::poll`], to be awaited.
    pub(crate) async fn next(&mut self) -> Option<T> {
        std::future::poll_fn(|context| self.poll(context)).await
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.is_gone = true;
        state.events.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    impl Merge for String {
        fn merge(&mut self, next: Self) -> Option<Self> {
            if next.starts_with('!') {
                return Some(next);
            }
            self.push_str(&next);
            None
        }
    }

    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    #[test]
    fn what_was_not_read_is_put_together() {
        let (writer, mut reader) = mailbox::<String>();
        let count = Arc::new(Count(0.into()));
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        assert_eq!(reader.poll(&mut context), Poll::Pending);
        let at = Duration::from_secs;
        for (i, text) in ["a", "b", "!c", "d"].into_iter().enumerate() {
            writer.put(text.into(), at(i as u64 + 5));
        }
        assert_eq!(count.0.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert_eq!(writer.unread_since(), Some(at(5)));
        assert_eq!(reader.poll(&mut context), Poll::Ready(Some("ab".into())));
        assert_eq!(writer.unread_since(), Some(at(5)));
        assert_eq!(reader.poll(&mut context), Poll::Ready(Some("!cd".into())));
        assert_eq!((writer.unread_since(), writer.is_gone()), (None, false));
        writer.put("e".into(), at(20));
        drop(writer);
        assert_eq!(reader.poll(&mut context), Poll::Ready(Some("e".into())));
        assert_eq!(reader.poll(&mut context), Poll::Ready(None));
    }

    #[test]
    fn the_writer_learns_that_nobody_reads() {
        let (writer, reader) = mailbox::<String>();
        drop(reader);
        assert!(writer.is_gone());
        writer.put("x".into(), Duration::ZERO);
        assert_eq!(writer.unread_since(), None);
    }
}
