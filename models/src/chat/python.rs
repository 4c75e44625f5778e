//! Values as Python prints them: `json.dumps` and `str`.

use std::fmt::Write;

use minijinja::Value;
use minijinja::value::ValueKind;

/// How `json.dumps` lays a document out.
pub(super) struct Json {
    /// Behind a value, and between a name and its value.
    pub separators: [String; 2],
    /// What a level is indented with; one line without.
    pub indent: Option<String>,
    /// Whether names are sorted.
    pub sort_keys: bool,
    /// Whether other characters than those of ASCII become escapes.
    pub ensure_ascii: bool,
}

impl Json {
    /// The document. Undefined values become `null`, what is no JSON its text.
    pub(super) fn write(&self, value: &Value) -> String {
        let mut out = String::new();
        self.value(value, 0, &mut out);
        out
    }

    fn value(&self, value: &Value, level: usize, out: &mut String) {
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter().map_or(Vec::new(), Iterator::collect);
                self.members(['[', ']'], &items, level, out, |item, out| self.value(item, level + 1, out));
            }
            ValueKind::Map => {
                let mut names: Vec<Value> = value.try_iter().map_or(Vec::new(), Iterator::collect);
                if self.sort_keys {
                    names.sort_by_key(ToString::to_string);
                }
                self.members(['{', '}'], &names, level, out, |name, out| {
                    self.text(&name.to_string(), out);
                    out.push_str(&self.separators[1]);
                    self.value(&value.get_item(name).unwrap_or_default(), level + 1, out);
                });
            }
            _ => self.text(&value.to_string(), out),
        }
    }

    fn members(
        &self,
        [open, close]: [char; 2],
        items: &[Value],
        level: usize,
        out: &mut String,
        write: impl Fn(&Value, &mut String),
    ) {
        let line = |level: usize, out: &mut String| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !items.is_empty()) {
                out.push('\n');
                out.push_str(&indent.repeat(level));
            }
        };
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.separators[0]);
            }
            line(level + 1, out);
            write(item, out);
        }
        line(level, out);
        out.push(close);
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                _ if c < ' ' || self.ensure_ascii && !c.is_ascii() || self.ensure_ascii && c == '\u{7f}' => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Strings take everything.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                _ => out.push(c),
            }
        }
        out.push('"');
    }
}

/// What `{{ value }}` prints.
pub(super) fn printed(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        _ => repr(value),
    }
}

/// Python's `repr`.
fn repr(value: &Value) -> String {
    let items = |value: &Value| value.try_iter().map_or(Vec::new(), Iterator::collect);
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number => number(value),
        ValueKind::String => quoted(&value.to_string()),
        ValueKind::Seq => format!("[{}]", items(value).iter().map(repr).collect::<Vec<_>>().join(", ")),
        ValueKind::Map => {
            let entry = |name: &Value| format!("{}: {}", repr(name), repr(&value.get_item(name).unwrap_or_default()));
            format!("{{{}}}", items(value).iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

/// A text between the quotes that it does not have.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => out.extend(['\\', c]),
            _ if c.is_control() => {
                // Strings take everything.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A number, with a fraction where it is a float.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x),
        _ => value.to_string(),
    }
}

/// The shortest digits that are this number; an exponent below -4 and from 16 on. Source: CPython, `float_repr_style`.
fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the format has an exponent");
    if (-4..16).contains(&exponent) {
        return format!("{x:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        for (x, want) in [
            (1.5, "1.5"),
            (1000.0, "1000.0"),
            (-0.0, "-0.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (1e300, "1e+300"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(float(x), want);
        }
    }

    #[test]
    fn values_are_written_as_python_does() {
        let list = Value::from(vec![Value::from("it's"), Value::from("a\n\"'"), Value::from(()), Value::from(true)]);
        assert_eq!(printed(&list), r#"["it's", 'a\n"\'', None, True]"#);
        let map = Value::from_pairs([("k", vec![1.0, 2.5])]);
        assert_eq!(printed(&map), "{'k': [1.0, 2.5]}");
        let json = |indent: Option<&str>, ensure_ascii| Json {
            separators: [", ".into(), ": ".into()],
            indent: indent.map(str::to_owned),
            sort_keys: false,
            ensure_ascii,
        };
        assert_eq!(json(None, false).write(&map), r#"{"k": [1.0, 2.5]}"#);
        assert_eq!(json(None, true).write(&Value::from("\u{e4}\u{1f600}\u{1}")), r#""\u00e4\ud83d\ude00\u0001""#);
        let empty = Value::from_pairs([("a", Vec::<i64>::new())]);
        assert_eq!(json(Some("  "), false).write(&empty), "{\n  \"a\": []\n}");
    }
}
