//! The page in headless Chromium, where that is installed: driven over its debugging protocol, on two pipes.
//! Source: Chrome DevTools Protocol; Chromium, `content/public/common/content_switches.cc`, `--remote-debugging-pipe`.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ask::fixtures;
use crate::network::{Listening, listen};
use crate::{ask, page_script};

/// Names that distributions give the program.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "headless_shell"];
/// Most time for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// A folder for screenshots, where somebody wants to look at them.
const PICTURES: &str = "TYMPAN_PICTURES";

/// The program, where there is one.
fn installed() -> Option<&'static str> {
    let is_there = |name: &&str| {
        let run = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    };
    PROGRAMS.into_iter().find(is_there)
}

/// A browser with one page.
struct Browser {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
    /// Of what comes, what is no whole message yet.
    unread: Vec<u8>,
    session: String,
    n_calls: u64,
    /// Addresses that were asked for.
    requests: Vec<String>,
    /// What went wrong within the page.
    problems: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Browser {
    fn open(program: &str, microphone: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The shell gives it the two pipes where it looks for them.
        let script = "program=$1; shift; exec \"$program\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null";
        let mut child = Command::new("sh")
            .args(["-c", script, "sh", program])
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
            ])
            .args(["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"])
            .arg(format!("--use-file-for-fake-audio-capture={}", microphone.display()))
            .arg("--autoplay-policy=no-user-gesture-required")
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (requests, problems) = (Vec::new(), Vec::new());
        let session = String::new();
        let mut browser =
            Self { child, to, from, unread: Vec::new(), session, n_calls: 0, requests, problems, _folder: folder };
        let mut page = Value::Null;
        wait_for("a page", || {
            let targets = browser.call("Target.getTargets", json!({}));
            let found =
                targets["targetInfos"].as_array().unwrap().iter().find(|target| target["type"] == "page").cloned();
            page = found.unwrap_or_default();
            !page.is_null()
        });
        let target = json!({"targetId": page["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", target);
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Network", "DOM", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// The next message.
    fn message(&mut self) -> Value {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == 0) {
                let message: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&message[..end]).unwrap();
            }
            let mut bytes = [0; 1 << 16];
            let n = self.from.read(&mut bytes).unwrap();
            assert!(n > 0, "the browser ended");
            self.unread.extend_from_slice(&bytes[..n]);
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.n_calls += 1;
        let mut call = json!({"id": self.n_calls, "method": method, "params": params});
        if !self.session.is_empty() {
            call["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{call}\0").as_bytes()).unwrap();
        loop {
            let mut message = self.message();
            if message["id"] == self.n_calls {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].take();
            }
            match message["method"].as_str() {
                Some("Network.requestWillBeSent") => {
                    self.requests.push(message["params"]["request"]["url"].as_str().unwrap().to_owned());
                }
                Some("Runtime.exceptionThrown") => self.problems.push(message["params"].to_string()),
                Some("Log.entryAdded") if message["params"]["entry"]["level"] == "error" => {
                    self.problems.push(message["params"]["entry"].to_string());
                }
                _ => {}
            }
        }
    }

    /// The value of an expression in the page.
    fn run(&mut self, expression: &str) -> Value {
        let params =
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let mut result = self.call("Runtime.evaluate", params);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    #[track_caller]
    fn wait(&mut self, expression: &str) {
        let start = Instant::now();
        while self.run(expression) != true {
            assert!(start.elapsed() < PATIENCE, "never: {expression}; {:?}", self.problems);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
        self.wait(
            "document.readyState === 'complete' && document.getElementById('model').textContent.includes('with')",
        );
    }

    /// Gives the page a file, as its dialogue would.
    fn pick(&mut self, path: &Path) {
        let root = self.call("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
        let node = self.call("DOM.querySelector", json!({"nodeId": root, "selector": "#file"}))["nodeId"].clone();
        self.call("DOM.setFileInputFiles", json!({"nodeId": node, "files": [path.canonicalize().unwrap()]}));
    }

    /// A key, pressed and let go.
    fn key(&mut self, key: &str, code: u32, text: &str) {
        let mut event = json!({"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code});
        if !text.is_empty() {
            event["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", event.clone());
        event["type"] = json!("keyUp");
        event.as_object_mut().unwrap().remove("text");
        self.call("Input.dispatchKeyEvent", event);
    }

    fn tab(&mut self) {
        self.key("Tab", 9, "");
    }

    fn enter(&mut self) {
        self.key("Enter", 13, "\r");
    }

    /// Tabs to a control.
    fn tab_to(&mut self, selector: &str) {
        for _ in 0..80 {
            if self.run(&format!("document.activeElement?.matches({selector:?}) ?? false")) == true {
                assert_eq!(
                    self.run(page_script::HAS_FOCUS_MARK),
                    true,
                    "{selector}: nobody sees that it has the focus"
                );
                return;
            }
            self.tab();
        }
        panic!("no key leads to {selector}");
    }

    fn size(&mut self, width: u32, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os(PICTURES) else { return };
        let data = self.call("Page.captureScreenshot", json!({"format": "png"}))["data"].take();
        let folder = Path::new(&folder);
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), crate::replay::decoded(data.as_str().unwrap())).unwrap();
    }

    /// Everything that holds of the page at any time.
    fn check(&mut self, name: &str) {
        assert_eq!(self.run("document.documentElement.scrollWidth <= innerWidth"), true, "{name} scrolls sideways");
        assert_eq!(self.run(page_script::LOW_CONTRAST), json!([]), "{name}");
        assert_eq!(self.run(page_script::NAMELESS), json!([]), "{name}");
        let nodes = self.call("Accessibility.getFullAXTree", json!({}))["nodes"].take();
        for node in nodes.as_array().unwrap() {
            let role = node["role"]["value"].as_str().unwrap_or_default();
            let is_control = ["button", "textbox", "link", "slider", "checkbox", "combobox"].contains(&role);
            if is_control && node["ignored"] != true {
                assert!(!node["name"]["value"].as_str().unwrap_or_default().is_empty(), "{name}: {node}");
            }
        }
    }

    fn said(&mut self) -> String {
        let text = self.run("[...document.querySelectorAll('#segments span')].map((e) => e.textContent).join(' ')");
        text.as_str().unwrap().to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < PATIENCE, "{what} never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const DONE: &str = "document.getElementById('status').textContent === 'Done'";

fn audio(name: &str) -> std::path::PathBuf {
    // The browser opens no path that goes up.
    fixtures().join("audio").join(name).canonicalize().unwrap()
}

/// The page of a server in a browser; nothing where none is installed.
fn opened() -> Option<(Listening, Browser, String)> {
    let Some(program) = installed() else {
        eprintln!("skipped: none of {} is installed", PROGRAMS.join(", "));
        return None;
    };
    let server = listen(ask::options());
    let url = format!("http://localhost:{}/", server.address.port());
    let mut browser = Browser::open(program, &audio("digits_eight.wav"));
    browser.go(&url);
    Some((server, browser, url))
}

/// What must hold at the end: nobody else was asked, and nothing went wrong.
fn end(server: Listening, browser: &Browser, url: &str, expected: &str) {
    let is_own = |request: &&String| {
        request.starts_with(url) || ["blob:", "data:", "about:"].iter().any(|p| request.starts_with(p))
    };
    let others: Vec<&String> = browser.requests.iter().filter(|request| !is_own(request)).collect();
    assert!(others.is_empty() && browser.requests.len() > 5, "{others:?}");
    let problems: Vec<&String> =
        browser.problems.iter().filter(|problem| expected.is_empty() || !problem.contains(expected)).collect();
    assert!(problems.is_empty(), "{problems:?}");
    server.stop();
    server.thread.join().unwrap();
}

#[test]
fn files_are_transcribed_played_and_saved_at_any_width() {
    let Some((server, mut browser, url)) = opened() else { return };
    for scheme in ["light", "dark"] {
        for width in [360, 1280] {
            browser.size(width, scheme);
            browser.pick(&audio("long_24s.wav"));
            browser.wait(DONE);
            browser.check(&format!("{width} px, {scheme}"));
            browser.picture(&format!("file_{scheme}_{width}"));
        }
    }
    let said = browser.said();
    assert!(said.split(' ').count() > 20, "{said}");
    browser.run("document.querySelectorAll('#segments button')[1].click()");
    browser.wait("document.getElementById('player').currentTime > 1");
    for (kind, begins) in [("txt", &said[..10]), ("srt", "1\n00:00:00,000 --> "), ("vtt", "WEBVTT\n\n"), ("json", "{")]
    {
        let saved = browser.run(&page_script::saved(kind));
        assert!(saved["text"].as_str().unwrap().starts_with(begins), "{saved}");
        assert_eq!(saved["name"], format!("long_24s.{kind}"));
    }
    // What is no recording is said, and what was there before stays away.
    browser.pick(&fixtures().join("serve/openai_client.py"));
    browser.wait("!document.getElementById('error').hidden");
    browser.check("an error");
    browser.picture("error");
    browser.pick(&audio("yes.wav"));
    browser.wait(DONE);
    assert_eq!(browser.run("document.getElementById('error').hidden"), true);
    end(server, &browser, &url, "400");
}

#[test]
fn a_microphone_is_heard() {
    let Some((server, mut browser, url)) = opened() else { return };
    browser.run("document.getElementById('speak').click()");
    browser.wait("document.getElementById('status').textContent === 'Listening'");
    // The browser plays the clip as fast as somebody would say it: its digits are there after a while.
    browser.wait("[...document.querySelectorAll('#segments span')].some((e) => e.textContent.includes('four'))");
    browser.run("document.getElementById('stop').click()");
    browser.wait(DONE);
    let said = browser.said();
    assert!(said.contains("three one four"), "{said}");
    browser.check("a microphone");
    browser.picture("microphone");
    end(server, &browser, &url, "");
}

#[test]
fn keys_are_enough() {
    let Some((server, mut browser, url)) = opened() else { return };
    browser.size(1280, "light");
    browser.tab_to("#language");
    for letter in ["e", "n"] {
        browser.key(letter, u32::from(letter.as_bytes()[0].to_ascii_uppercase()), letter);
    }
    browser.tab_to("#context");
    browser.key("x", 88, "x");
    // The dialogue for files is the system's: a control opens it by Enter or Space, and gives it a file here.
    browser.tab_to("#file");
    browser.pick(&audio("long_24s.wav"));
    browser.wait(DONE);
    let sent = browser.run("[document.getElementById('language').value, document.getElementById('context').value]");
    assert_eq!(sent, json!(["en", "x"]));
    browser.tab_to("#segments li:nth-child(2) button");
    browser.picture("keys");
    browser.enter();
    browser.wait("document.getElementById('player').currentTime > 1");
    browser.tab_to("#downloads [data-format=vtt]");
    browser.run(page_script::SAVING);
    browser.enter();
    browser.wait("window.savedName === 'long_24s.vtt'");
    browser.tab_to("#speak");
    browser.enter();
    browser.wait("document.getElementById('status').textContent === 'Listening'");
    // The focus is on what ends it.
    browser.wait("document.activeElement.id === 'stop'");
    browser.wait("document.querySelectorAll('#segments span').length > 0");
    browser.enter();
    browser.wait(DONE);
    browser.wait("document.activeElement.id === 'speak'");
    end(server, &browser, &url, "");
}

#[test]
fn what_is_said_is_text_and_never_markup() {
    let Some((server, mut browser, url)) = opened() else { return };
    browser.run(page_script::ANSWER_MARKUP);
    browser.pick(&audio("yes.wav"));
    browser.wait(DONE);
    assert_eq!(browser.said(), "<img src=x onerror=\"window.wasRun = true\"><b>bold</b>");
    assert_eq!(browser.run("document.querySelectorAll('#result img, #result b').length"), 0);
    assert_eq!(browser.run("window.wasRun ?? false"), false);
    end(server, &browser, &url, "");
}
