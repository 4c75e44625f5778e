//! What the tests of the page ask it, in its own language.

/// Texts whose colours have a contrast of less than 4.5 to 1. Source: W3C, Web Content Accessibility Guidelines 2.2, "contrast
/// ratio".
pub const LOW_CONTRAST: &str = r#"(() => {
    const parse = (text) => text.match(/[\d.]+/g).map(Number);
    const linear = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
    const back = (e) => {
        for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return c;
        }
        return [255, 255, 255];
    };
    const bad = [];
    for (const e of document.querySelectorAll("body *")) {
        const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!e.offsetParent || !(hasText || e.matches("input"))) continue;
        const [a, b] = [light(parse(getComputedStyle(e).color)), light(back(e))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) bad.push(`${e.tagName} ${e.textContent.trim().slice(0, 20)} ${ratio.toFixed(2)}`);
    }
    return bad;
})()"#;

/// Controls without a name.
pub const NAMELESS: &str = r#"[...document.querySelectorAll("input, button, audio")].filter((e) =>
    !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label"))).map((e) => e.outerHTML)"#;

/// Whether whoever looks sees what has the focus.
pub const HAS_FOCUS_MARK: &str = r#"(() => {
    const style = getComputedStyle(document.activeElement);
    return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
})()"#;

/// Answers transcriptions with markup.
pub const ANSWER_MARKUP: &str = r#"(() => {
    const text = '<img src=x onerror="window.wasRun = true"><b>bold</b>';
    const own = window.fetch;
    window.fetch = async (url, options) => {
        if (!String(url).includes("transcriptions")) return own(url, options);
        const events = [{ token: text, audio_ms: 0, byte_offset: 0 },
            { done: true, text, segments: [{ start: 0, end: 1, text }] }];
        return new Response(events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join(""));
    };
    return true;
})()"#;

/// Saves in a format: the file's name and text.
pub fn saved(format: &str) -> String {
    format!(
        r#"new Promise((resolve) => {{
    const own = URL.createObjectURL;
    let text;
    URL.createObjectURL = (blob) => {{ text = blob.text(); URL.createObjectURL = own; return own.call(URL, blob); }};
    const click = HTMLAnchorElement.prototype.click;
    HTMLAnchorElement.prototype.click = function () {{
        HTMLAnchorElement.prototype.click = click;
        const name = this.download;
        text.then((text) => resolve({{ name, text }}));
    }};
    document.querySelector("[data-format={format}]").click();
}})"#
    )
}

/// Remembers the name of the next file that is saved.
pub const SAVING: &str = r#"(() => {
    const click = HTMLAnchorElement.prototype.click;
    HTMLAnchorElement.prototype.click = function () {
        HTMLAnchorElement.prototype.click = click;
        window.savedName = this.download;
    };
    return true;
})()"#;
