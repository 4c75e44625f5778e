//! Checked reading of JSON configurations. [`Section`] is an object of a file that knows its place in it.
//!
//! A key without a value is an error: no default of a Python class stands in for a checkpoint's own number.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use engine::gguf::{Value as GgufValue, quoted};
use serde_json::{Map, Value};

use crate::files::{Files, brief, parse};

/// Largest configuration read; published ones are a few KB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A number of a configuration as metadata.
pub(super) fn integer(n: usize) -> GgufValue {
    GgufValue::U32(u32::try_from(n).expect("limits of the configuration are below 2^32"))
}

/// Metadata of an architecture, whose name stands before their own.
pub(super) fn prefixed(architecture: &str, keys: Vec<(&str, GgufValue)>) -> Vec<(String, GgufValue)> {
    keys.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)).collect()
}

/// A JSON file whose root is an object.
pub(super) struct Config {
    path: PathBuf,
    root: Map<String, Value>,
}

impl Config {
    /// Reads the file `name`. Errors name it: absent, too large, not JSON, not an object.
    pub(super) fn read(files: &Files, name: &str) -> Result<Self> {
        let missing = || anyhow!("{}: no such file", files.path().join(name).display());
        Self::read_optional(files, name)?.ok_or_else(missing)
    }

    /// Like [`Config::read`], with `None` where there is no such file.
    pub(super) fn read_optional(files: &Files, name: &str) -> Result<Option<Self>> {
        let Some((path, bytes)) = files.read(name, MAX_FILE_BYTES)? else { return Ok(None) };
        let name = path.display();
        let value = parse(&bytes).with_context(|| format!("{name}: not JSON"))?;
        let Value::Object(root) = value else {
            return Err(anyhow!("{name}: want a JSON object, got {}", brief(&value)));
        };
        Ok(Some(Self { path, root }))
    }

    /// The whole file.
    pub(super) fn root(&self) -> Section<'_> {
        Section { file: &self.path, place: String::new(), values: &self.root }
    }
}

/// An object inside a file. JSON's `null` counts as absent.
pub struct Section<'a> {
    file: &'a Path,
    /// Its keys from the root, each with a dot behind.
    place: String,
    values: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// The object under `key`.
    pub fn section(&self, key: &str) -> Result<Section<'a>> {
        self.section_or_none(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// The object under `key`, if there is one.
    pub fn section_or_none(&self, key: &str) -> Result<Option<Section<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(values)) => {
                Ok(Some(Section { file: self.file, place: format!("{}{key}.", self.place), values }))
            }
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// Whether `key` has a value.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The integer under `key`, inside `range`.
    pub fn integer(&self, key: &str, range: RangeInclusive<u64>) -> Result<usize> {
        let value = self.want(key)?;
        let found = value.as_u64().filter(|n| range.contains(n)).and_then(|n| usize::try_from(n).ok());
        found.ok_or_else(|| self.wrong(key, &format!("an integer from {} to {}", range.start(), range.end()), value))
    }

    /// The number under `key`, as the nearest f32, which must be positive and finite.
    pub fn positive(&self, key: &str) -> Result<f32> {
        let value = self.want(key)?;
        let found = value.as_f64().map(|x| x as f32).filter(|x| *x > 0.0 && x.is_finite());
        found.ok_or_else(|| self.wrong(key, "a positive number", value))
    }

    /// The number under `key`, as the nearest f32, inside `range`.
    pub fn number(&self, key: &str, range: RangeInclusive<f32>) -> Result<f32> {
        let value = self.want(key)?;
        let found = value.as_f64().map(|x| x as f32).filter(|x| range.contains(x));
        found.ok_or_else(|| self.wrong(key, &format!("a number from {} to {}", range.start(), range.end()), value))
    }

    /// The number under `key` as the nearest f32, if there is one; it must be finite.
    pub fn number_or_none(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let found = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        found.map(Some).ok_or_else(|| self.wrong(key, "a number", value))
    }

    /// The number under `key`, if there is one; it must be finite.
    pub fn decimal_or_none(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let found = value.as_f64().filter(|x| x.is_finite());
        found.map(Some).ok_or_else(|| self.wrong(key, "a number", value))
    }

    /// The integer under `key`, if there is one; it must fit an i32.
    pub fn i32_or_none(&self, key: &str) -> Result<Option<i32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let found = value.as_i64().and_then(|n| i32::try_from(n).ok());
        found.map(Some).ok_or_else(|| self.wrong(key, "an integer of 32 bits", value))
    }

    /// The text under `key`, if there is one.
    pub fn text_or_none(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a text", other)),
        }
    }

    /// The text under `key`, if there is one; other values are for others to read.
    pub fn text_or_none_of(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// The numbers of the list under `key`, if there is one. As Python writes it, infinity is no JSON: it is `null` here
    /// ([`Config::read`]), or an object in the way of transformers 5.
    pub fn decimals_or_none(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let item = |v: &Value| match v {
            Value::Null => Some(f64::INFINITY),
            Value::Object(object) if object.get("__float__").is_some_and(|v| v == "Infinity") => Some(f64::INFINITY),
            other => other.as_f64(),
        };
        let found = value.as_array().and_then(|list| list.iter().map(item).collect());
        Some(found.ok_or_else(|| self.wrong(key, "a list of numbers", value))).transpose()
    }

    /// The bool under `key`, or `absent`.
    pub fn flag(&self, key: &str, absent: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// The bool under `key`.
    pub fn required_flag(&self, key: &str) -> Result<bool> {
        self.want(key)?;
        self.flag(key, false)
    }

    /// The texts of the list under `key`, if there is one.
    pub fn texts_or_none(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let found = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        Some(found.ok_or_else(|| self.wrong(key, "a list of texts", value))).transpose()
    }

    /// The integers of the list under `key`, if there is one; each inside `range`.
    pub fn integers_or_none(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<Vec<u64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let item = |v: &Value| v.as_u64().filter(|n| range.contains(n));
        let found = value.as_array().and_then(|list| list.iter().map(item).collect());
        let want = || format!("a list of integers from {} to {}", range.start(), range.end());
        Some(found.ok_or_else(|| self.wrong(key, &want(), value))).transpose()
    }

    /// Checks that the text under `key`, where there is one, is `want`.
    pub fn expect_text(&self, key: &str, want: &str) -> Result<()> {
        match self.text_or_none(key)? {
            Some(found) if found != want => Err(self.error(key, &format!("want {want:?}, got {}", quoted(found)))),
            _ => Ok(()),
        }
    }

    /// Checks that the value under `key`, where there is one, is `want`; numbers are compared as numbers.
    pub fn expect(&self, key: &str, want: &Value) -> Result<()> {
        match self.get(key) {
            Some(found) if !is_same(found, want) => Err(self.wrong(key, &want.to_string(), found)),
            _ => Ok(()),
        }
    }

    /// Checks that the bool under `key`, where there is one, is false.
    pub fn expect_off(&self, key: &str) -> Result<()> {
        ensure!(!self.flag(key, false)?, self.error(key, "want false, got true"));
        Ok(())
    }

    /// An error about the value of `key`.
    pub fn error(&self, key: &str, what: &str) -> anyhow::Error {
        anyhow!("{}: {}{key}: {what}", self.file.display(), self.place)
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn want(&self, key: &str) -> Result<&'a Value> {
        self.get(key).ok_or_else(|| self.error(key, "is missing"))
    }

    fn wrong(&self, key: &str, want: &str, got: &Value) -> anyhow::Error {
        self.error(key, &format!("want {want}, got {}", brief(got)))
    }
}

/// Whether two values are equal, however their numbers are written.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        _ => a == b,
    }
}
