//! The page's files. What a browser makes of them is in `browser.rs`.

use axum::http::header;

use crate::ask::{Asked, options, speech};

#[test]
fn the_page_is_whole_and_asks_nobody_else() {
    let asked = Asked::speech();
    let index = asked.get("/").expect(200);
    assert_eq!(index.headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    let mut left = vec!["/".to_owned()];
    let mut seen: Vec<String> = Vec::new();
    while let Some(path) = left.pop() {
        if seen.contains(&path) {
            continue;
        }
        let file = asked.get(&path).expect(200);
        let policy = file.headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{path}: {policy}");
        assert_eq!(file.headers["x-content-type-options"], "nosniff");
        let text = file.text();
        assert!(!text.contains("http://") || path == "/page/main.js", "{path}");
        for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!text.contains(unsafe_way), "{path}: {unsafe_way}");
        }
        for part in text.split('"').filter(|part| part.starts_with("/page/")) {
            left.push(part.to_owned());
        }
        seen.push(path);
    }
    assert_eq!(seen.len(), 7, "{seen:?}");
    asked.get("/page/other.js").expect(404);
    let without = Asked::open(speech(), serve::Options { has_page: false, ..options() });
    without.get("/").expect(404);
    without.get("/page/main.js").expect(404);
}

/// Every control has a label or a text.
#[test]
fn controls_have_names() {
    let asked = Asked::speech();
    let index = asked.get("/").expect(200);
    let text = index.text();
    for tag in text.split('<').filter(|tag| tag.starts_with("input ")) {
        let id = tag.split("id=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(text.contains(&format!("<label for=\"{id}\">")), "{id}");
    }
    for button in text.split("<button").skip(1) {
        let name = button.split('>').nth(1).unwrap().split('<').next().unwrap();
        assert!(!name.trim().is_empty(), "{button:.60}");
    }
}
