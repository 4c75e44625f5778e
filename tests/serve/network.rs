//! Connections: what only a network shows. All of them on this machine, on ports that the system chooses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use serve::{Options, Server, Stopped};

use crate::ask::{computing, options, speech};

/// A server that listens, until it is told to stop.
pub struct Listening {
    pub address: SocketAddr,
    is_stopped: Arc<AtomicBool>,
    pub thread: std::thread::JoinHandle<Stopped>,
}

pub fn listen(options: Options) -> Listening {
    let server = Server::open(speech(), &computing(), options, Arc::new(|_| ())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let is_stopped = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_stopped);
    let thread = std::thread::spawn(move || server.serve(listener, &move || flag.load(Ordering::SeqCst)).unwrap());
    Listening { address, is_stopped, thread }
}

impl Listening {
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    fn post(&self, path: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let n = body.len();
        let host = self.address;
        write!(stream, "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {n}\r\n\r\n{body}")
            .unwrap();
        stream
    }

    fn get(&self, path: &str) -> TcpStream {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address).unwrap();
        stream
    }
}

/// The status line of an answer; empty where the connection ends without one.
fn status(stream: &mut TcpStream) -> String {
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    line.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn long(n: usize) -> String {
    json!({"prompt": "one", "n_predict": n, "ignore_eos": true, "stream": true}).to_string()
}

#[test]
fn what_was_asked_is_answered_before_the_end_and_what_comes_then_is_not() {
    let server = listen(Options { n_ctx: 4096, ..options() });
    let mut stream = server.post("/completion", &long(4000));
    let mut begin = [0; 64];
    stream.read_exact(&mut begin).unwrap();
    server.stop();
    // Until it is known that it stops, requests may still be taken.
    while status(&mut server.get("/v1/models")) == "200" {}
    assert_eq!(status(&mut server.post("/tokenize", "{\"content\": \"x\"}")), "503");
    assert_eq!(status(&mut server.get("/health")), "503");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"stop\":true") && rest.contains("\"tokens_predicted\":4000"), "{:.300}", rest);
    assert_eq!(server.thread.join().unwrap(), Stopped::Asked);
}

#[test]
fn what_takes_too_long_ends_in_an_error() {
    let server = listen(Options { n_ctx: 4096, shutdown_time: Duration::from_millis(50), ..options() });
    let mut stream = server.post("/completion", &long(4000));
    let mut begin = [0; 64];
    stream.read_exact(&mut begin).unwrap();
    server.stop();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("unavailable_error"), "{rest:.300}");
    assert_eq!(server.thread.join().unwrap(), Stopped::Late);
}

#[test]
fn connections_and_heads_are_bounded() {
    let server = listen(Options { max_connections: 2, header_time: Duration::from_millis(200), ..options() });
    let mut first = server.get("/health");
    assert_eq!(status(&mut first), "200");
    let mut slow = server.connect();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: local").unwrap();
    let mut third = server.get("/health");
    assert_eq!(status(&mut third), "503");
    // Both are given up: the one says nothing more, the other never ends its head.
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    slow.read_to_end(&mut rest).unwrap();
    let mut large = server.connect();
    write!(large, "GET /health HTTP/1.1\r\nHost: {}\r\nX: {}\r\n\r\n", server.address, "x".repeat(200_000)).unwrap();
    assert_eq!(status(&mut large), "431");
    assert_eq!(status(&mut server.get("/health")), "200");
    server.stop();
    assert_eq!(server.thread.join().unwrap(), Stopped::Asked);
}

#[test]
fn whoever_is_refused_while_sending_reads_why() {
    const N_BYTES: usize = 4 << 20;
    let server = listen(Options { max_upload_bytes: 1000, ..options() });
    for _ in 0..20 {
        let mut stream = server.connect();
        let host = server.address;
        write!(stream, "POST /completion HTTP/1.1\r\nHost: {host}\r\nContent-Length: {N_BYTES}\r\n\r\n").unwrap();
        stream.write_all(&vec![b' '; N_BYTES]).unwrap();
        assert_eq!(status(&mut stream), "413");
    }
    server.stop();
    assert_eq!(server.thread.join().unwrap(), Stopped::Asked);

    let server = listen(Options { max_connections: 1, ..options() });
    let mut only = server.get("/health");
    assert_eq!(status(&mut only), "200");
    for _ in 0..20 {
        let mut stream = server.post("/completion", &" ".repeat(100_000));
        assert_eq!(status(&mut stream), "503");
    }
    drop(only);
    server.stop();
    assert_eq!(server.thread.join().unwrap(), Stopped::Asked);
}

/// Status and body of an answer that ends with its connection; nothing where none came.
fn whole(stream: &mut TcpStream) -> Option<(u16, String)> {
    let mut text = String::new();
    // A connection that the server never took is reset.
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

#[test]
fn whoever_asked_before_the_end_has_the_whole_reply() {
    const N_CLIENTS: usize = 32;
    let server = listen(Options { max_queue: 8, ..options() });
    let body = |i: usize| {
        json!({"prompt": format!("count {i}"), "n_predict": 20 + i, "temperature": 0, "ignore_eos": true}).to_string()
    };
    let ask = |i: usize| -> Option<(u16, String)> {
        // Nobody listens any more once all is over.
        let mut stream = TcpStream::connect(server.address).ok()?;
        let (address, body) = (server.address, body(i));
        let n = body.len();
        write!(
            stream,
            "POST /completion HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {n}\r\n\r\n{body}"
        )
        .ok()?;
        whole(&mut stream)
    };
    let content = |body: &str| serde_json::from_str::<serde_json::Value>(body).unwrap()["content"].clone();
    let want: Vec<_> = (0..8).map(|i| content(&ask(i).unwrap().1)).collect();
    let n_done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..N_CLIENTS {
            let (ask, want, n_done, server, content) = (&ask, &want, &n_done, &server, &content);
            scope.spawn(move || {
                for i in 0.. {
                    let i = (client + i) % want.len();
                    let was_stopped = server.is_stopped.load(Ordering::SeqCst);
                    match ask(i) {
                        Some((200, body)) => {
                            assert_eq!(content(&body), want[i]);
                            n_done.fetch_add(1, Ordering::SeqCst);
                        }
                        Some((429, _)) => {}
                        Some((503, _)) => break,
                        // Asked for when it was about to end, and never taken.
                        None if was_stopped || server.is_stopped.load(Ordering::SeqCst) => break,
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        while n_done.load(Ordering::SeqCst) < 100 {
            std::thread::sleep(Duration::from_millis(1));
        }
        server.stop();
    });
    assert_eq!(server.thread.join().unwrap(), Stopped::Asked);
}
