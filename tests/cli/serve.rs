//! `serve` as a process: where it listens, how it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Stdio};

use crate::run::{command, fixtures, tympan};
use crate::signals::{send, signals};

/// A server that listens, and what it says from then on.
struct Listening {
    child: Child,
    said: BufReader<ChildStderr>,
    address: String,
    /// What it said before.
    report: String,
}

fn listen(arguments: &[&str]) -> Listening {
    let mut command = command(["serve", "--port", "0"].iter().chain(arguments));
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    let mut server = Listening { child, said, address: String::new(), report: String::new() };
    while server.address.is_empty() {
        let mut line = String::new();
        assert!(server.said.read_line(&mut line).unwrap() > 0, "it ended: {}", server.report);
        if let Some((_, address)) = line.split_once("listening on http://") {
            server.address = address.trim().to_owned();
        }
        server.report.push_str(&line);
    }
    server
}

impl Listening {
    fn ask(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let Self { address, .. } = self;
        let n = body.len();
        write!(stream, "{head} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {n}\r\n\r\n{body}")
            .unwrap();
        stream
    }

    fn answer(&self, head: &str, body: &str) -> String {
        let mut answer = String::new();
        self.ask(head, body).read_to_string(&mut answer).unwrap();
        answer
    }

    /// Its exit code, and what it said in the end.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

#[test]
fn a_signal_ends_it_when_everything_is_answered() {
    for (signal, code) in signals() {
        let server = listen(&[]);
        assert!(server.report.contains("memory: weights ") && server.report.contains("vectors of recordings up to 64"));
        assert!(server.answer("GET /health", "").starts_with("HTTP/1.1 200 "));
        let body = r#"{"prompt": "one", "n_predict": 1000, "ignore_eos": true, "stream": true}"#;
        let mut stream = server.ask("POST /completion", body);
        let mut begin = [0; 64];
        stream.read_exact(&mut begin).unwrap();
        send(signal, &server.child);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("\"tokens_predicted\":1000"), "{rest:.300}");
        let (got, said) = server.end();
        assert_eq!(got, Some(code), "{said}");
        let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["path"], &lines[1]["generated_tokens"]), (&"/health".into(), &1000.into()));
    }
}

#[test]
fn an_address_that_is_taken_is_said() {
    let server = listen(&[]);
    let (host, port) = server.address.split_once(':').unwrap();
    let second = tympan(["serve", "--host", host, "--port", port]).expect(1);
    assert!(second.err.contains(&format!("{host}:{port}: cannot listen there")), "{}", second.err);
    send("TERM", &server.child);
    server.end();
}

#[test]
fn a_budget_that_does_not_suffice_is_found_before_it_listens() {
    let run = tympan(["serve", "--port", "0", "--memory-budget", "100M"]).expect(5);
    for part in ["weights", "states of a sequence", "uploads and audio", "vectors of recordings", "--memory-budget"] {
        assert!(run.err.contains(part), "{part}: {}", run.err);
    }
    assert!(!run.err.contains("listening"));
    let fits = ["--memory-budget", "1G", "--max-held-mb", "100", "--audio-cache-mb", "3"];
    let server = listen(&fits);
    assert!(server.report.contains("vectors of recordings up to 3"), "{}", server.report);
    send("TERM", &server.child);
    server.end();
}

#[test]
fn variables_are_flags_and_flags_come_first() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "\n one \n\ntwo\n").unwrap();
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        command(["serve"].iter().chain(arguments)).envs(variables.iter().copied()).output().unwrap()
    };
    let said = |output: std::process::Output| (output.status.code(), String::from_utf8(output.stderr).unwrap());
    let (code, err) = said(run(&[("TYMPAN_AUDIO_CACHE_MB", "x")], &["--port", "0"]));
    assert!(code == Some(2) && err.contains("audio-cache-mb"), "{err}");
    let (code, err) = said(run(&[("TYMPAN_MEMORY_BUDGET", "1M")], &["--port", "0"]));
    assert!(code == Some(5), "{err}");
    let (code, err) =
        said(run(&[("TYMPAN_CTX_SIZE", "7")], &["--port", "0", "--ctx-size", "99999999", "--memory-budget", "1M"]));
    assert!(code == Some(2) && err.contains("99999999"), "{err}");

    let server = listen(&["--api-key-file", keys.to_str().unwrap(), "--no-page"]);
    assert!(server.answer("GET /v1/models", "").starts_with("HTTP/1.1 401 "));
    assert!(server.answer("GET /", "").starts_with("HTTP/1.1 404 "));
    send("TERM", &server.child);
    server.end();
    let empty = folder.path().join("none");
    std::fs::write(&empty, "\n").unwrap();
    tympan(["serve", "--api-key-file", empty.to_str().unwrap()]).expect(2);
    let model = fixtures().join("golden/qwen3");
    tympan(["serve", "-m", model.to_str().unwrap(), "--parallel", "0"]).expect(2);
}
