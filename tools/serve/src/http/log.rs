//! [`Record`]: what is known of a request, and the line that is written about it when its answer has gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use models::draft::Statistics;
use serde_json::{Map, Value, json};

use super::body::Watched;
use crate::App;

/// Where lines go, one JSON document each.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// What is known of a request. Nothing that was said is among it.
#[derive(Debug)]
pub(crate) struct Facts {
    pub id: String,
    pub method: String,
    /// The endpoint, where there is one.
    pub path: Option<&'static str>,
    pub status: u16,
    pub outcome: &'static str,
    /// Numbers about the answer.
    pub numbers: Map<String, Value>,
}

/// [`Facts`] that the parts of a request share.
#[derive(Clone)]
pub(crate) struct Record(Arc<Mutex<Facts>>);

impl Record {
    pub(crate) fn new(id: String, method: String, path: Option<&'static str>) -> Self {
        let numbers = Map::new();
        Self(Arc::new(Mutex::new(Facts { id, method, path, status: 0, outcome: "disconnected", numbers })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a number.
    pub(crate) fn set(&self, name: &str, value: impl Into<Value>) {
        self.lock().numbers.insert(name.to_owned(), value.into());
    }

    /// Adds what came of drafts, where there were drafters.
    pub(crate) fn set_drafts(&self, drafts: Option<&Statistics>) {
        if let Some(drafts) = drafts {
            self.set("draft_tokens", drafts.verified);
            self.set("accepted_tokens", drafts.accepted);
            self.set("missed_tokens", drafts.missed);
        }
    }

    /// Says how it ended.
    pub(crate) fn end(&self, outcome: &'static str) {
        self.lock().outcome = outcome;
    }
}

/// Writes the line when it is dropped: the answer has gone, or nobody waits for it.
pub(crate) struct Line {
    app: Arc<App>,
    record: Record,
    start: std::time::Duration,
}

impl Line {
    pub(crate) fn begin(app: &Arc<App>, record: &Record) -> Self {
        app.open_requests.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Self { app: Arc::clone(app), record: record.clone(), start: (app.clock)() }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let ms = ((self.app.clock)().saturating_sub(self.start)).as_secs_f64() * 1000.0;
        let facts = self.record.lock();
        let mut line = json!({
            "time": rounded(time), "id": facts.id, "method": facts.method, "path": facts.path, "status": facts.status,
            "outcome": facts.outcome, "ms": rounded(ms),
        });
        if let Value::Object(line) = &mut line {
            line.extend(facts.numbers.clone());
        }
        let path = facts.path.unwrap_or("other");
        *self.app.figures.lock().requests.entry((path, facts.status)).or_default() += 1;
        drop(facts);
        (self.app.log)(&line.to_string());
        self.app.open_requests.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// A number with three decimals.
pub(crate) fn rounded(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

/// A body that is followed by the line, or by which it goes when nobody reads to its end.
pub(crate) fn logged(body: Body, line: Line) -> Body {
    let mut line = Some(line);
    Body::new(Watched::new(body, move |piece| {
        if piece.is_none() {
            drop(line.take());
        }
        Ok(())
    }))
}
