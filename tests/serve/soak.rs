//! Many clients for a while: every reply belongs to its request, whatever the others do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tests::rng::Rng;
use tower::ServiceExt;

use crate::ask::{Asked, answer, clip, encoded, form, metric, options, request, speech};

/// Set to anything: all of it, by hand. Otherwise a fiftieth.
const WHOLE: &str = "TYMPAN_SOAK";
const N_CLIENTS: usize = 32;
/// Time in which a client reads something.
const STALL: Duration = Duration::from_millis(50);
const CLIPS: [&str; 4] = ["yes.wav", "digits_short.wav", "open_door.wav", "long_9s.wav"];

/// All of so many rounds, or a share of them.
pub fn n_rounds(whole: usize, share: usize) -> usize {
    if std::env::var_os(WHOLE).is_some() { whole } else { whole.div_ceil(share) }
}

/// Resident memory in bytes, where the system tells.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok().map(|kilobytes| kilobytes << 10)
}

/// A clip of which two samples differ a little, so that it is another one that says the same.
fn changed(name: &str, i: usize) -> Vec<u8> {
    const HEADER: usize = 44;
    let mut bytes = clip(name);
    let n_samples = (bytes.len() - HEADER) / 2;
    for at in [i % n_samples, (i * 7919 + 1) % n_samples] {
        bytes[HEADER + 2 * at] ^= 1;
    }
    bytes
}

fn transcription(bytes: &[u8]) -> Request<Body> {
    let (content_type, body) = form(&[], Some(bytes));
    request(Method::POST, "/v1/audio/transcriptions", &content_type, body)
}

fn post(path: &str, body: &Value) -> Request<Body> {
    request(Method::POST, path, "application/json", body.to_string())
}

fn conversation(bytes: &[u8]) -> Request<Body> {
    let part = json!({"type": "input_audio", "input_audio": {"data": encoded(bytes), "format": "wav"}});
    post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": [part]}]}))
}

fn completion(i: usize, is_streamed: bool) -> Request<Body> {
    let prompt = format!("count {i}");
    let n = 4 + i;
    post(
        "/completion",
        &json!({"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": true, "stream": is_streamed}),
    )
}

/// What clients know before they ask.
struct Known {
    router: Router,
    texts: Vec<Value>,
    continued: Vec<Value>,
    n_full: AtomicUsize,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Known {
    /// The answer, unless there was no room for it.
    async fn ask(&self, request: Request<Body>) -> Option<Value> {
        let answer = answer(self.router.clone(), request).await;
        if answer.status == 429 {
            assert_eq!(answer.headers[header::RETRY_AFTER], "1");
            self.n_full.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        Some(answer.expect(200).json())
    }

    /// A request of one of twelve kinds, of which four are no good.
    async fn one(&self, rng: &mut Rng, number: usize) {
        let i = rng.below(8);
        let i_clip = i % CLIPS.len();
        // Every other clip was not heard before.
        let bytes = || if i < 4 { clip(CLIPS[i_clip]) } else { changed(CLIPS[i_clip], number) };
        match rng.below(12) {
            0..=2 => {
                let got = self.ask(transcription(&bytes())).await;
                assert!(got.as_ref().is_none_or(|got| got["text"] == self.texts[i_clip]), "{got:?}");
            }
            3..=5 => {
                let got = self.ask(completion(i, false)).await;
                assert!(got.as_ref().is_none_or(|got| got["content"] == self.continued[i]), "{got:?}");
            }
            6 | 7 => {
                let got = self.ask(conversation(&bytes())).await;
                let text = |got: &Value| got["choices"][0]["message"]["content"] == self.texts[i_clip];
                assert!(got.as_ref().is_none_or(text), "{got:?}");
            }
            8 => {
                // Goes before there is an answer.
                let pending = answer(self.router.clone(), completion(i, i < 4));
                let _ = tokio::time::timeout(Duration::from_micros(300 * i as u64), pending).await;
            }
            9 => {
                let broken = request(Method::POST, "/completion", "application/json", "{\"prompt\":");
                let status = answer(self.router.clone(), broken).await.status;
                assert!([400, 429].contains(&status), "{status}");
            }
            10 => {
                let large = request(Method::POST, "/completion", "application/json", "x".repeat(2 << 20));
                let status = answer(self.router.clone(), large).await.status;
                assert!([413, 429].contains(&status), "{status}");
            }
            _ => {
                // Reads nothing for longer than it may.
                let Ok(response) = self.router.clone().oneshot(completion(i, true)).await;
                tokio::time::sleep(2 * STALL).await;
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let text = String::from_utf8(body.to_vec()).unwrap();
                assert!(text.contains("\"stop\":true") || text.contains("\"error\""), "{text}");
            }
        }
    }
}

#[test]
fn every_reply_belongs_to_its_request() {
    serve::keep_large_blocks_apart();
    let audio_cache_bytes = 16 << 20;
    let limits =
        serve::Options { max_queue: 24, max_upload_bytes: 1 << 20, stall: STALL, audio_cache_bytes, ..options() };
    let asked = Asked::open(speech(), limits);
    let texts = CLIPS.iter().map(|name| asked.ask(transcription(&clip(name))).expect(200).json()["text"].clone());
    let continued = (0..8).map(|i| asked.ask(completion(i, false)).expect(200).json()["content"].clone());
    let known = Arc::new(Known {
        texts: texts.collect(),
        continued: continued.collect(),
        router: asked.router.clone(),
        n_full: AtomicUsize::new(0),
        lines: Arc::clone(&asked.lines),
    });
    let n = n_rounds(1000, 50);
    // What is kept is as much as may be, from the beginning on.
    for i in 0.. {
        if metric(&asked, "audio_cache_bytes") > audio_cache_bytes * 9 / 10 {
            break;
        }
        asked.ask(transcription(&changed("long_9s.wav", N_CLIENTS * n + i))).expect(200);
    }
    let n_answers = Arc::new(AtomicUsize::new(0));
    let early = Arc::new(AtomicUsize::new(0));
    asked.runtime.block_on(async {
        let clients = (0..N_CLIENTS).map(|i_client| {
            let (known, n_answers, early) = (Arc::clone(&known), Arc::clone(&n_answers), Arc::clone(&early));
            tokio::spawn(async move {
                let mut rng = Rng::named(&format!("client {i_client}"));
                for i in 0..n {
                    known.one(&mut rng, i_client * n + i).await;
                    // What the test remembers is not the server's.
                    known.lines.lock().unwrap().clear();
                    if n_answers.fetch_add(1, Ordering::SeqCst) + 1 == 1000 {
                        early.store(resident().unwrap_or_default(), Ordering::SeqCst);
                    }
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    });
    assert_eq!(n_answers.load(Ordering::SeqCst), N_CLIENTS * n);
    let kept = metric(&asked, "audio_cache_bytes");
    assert!(kept <= audio_cache_bytes && kept > audio_cache_bytes * 9 / 10, "{kept} bytes are kept");
    assert!(metric(&asked, "audio_cache_hits_total") > 0);
    let n_full = known.n_full.load(Ordering::SeqCst);
    assert!(n_full > 0, "the queue was never full");
    let (early, late) = (early.load(Ordering::SeqCst), resident().unwrap_or_default());
    if early > 0 {
        println!("resident after 1,000 requests: {early}, at the end: {late}; {n_full} found the queue full");
        assert!(late <= early + early / 20, "{early} bytes after 1,000 requests, {late} at the end");
    }
}
