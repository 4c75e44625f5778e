//! [`Fields`]: the fields of a request in JSON, by type. `null` counts as absent.

use serde_json::{Map, Value};

use super::error::ApiError;
use crate::http::body::Holding;

/// A JSON object, and what is held for it.
pub(crate) struct Fields {
    map: Map<String, Value>,
    _holding: Holding,
}

impl Fields {
    /// Those of a body.
    ///
    /// Errors: 400 for anything else than an object.
    pub(crate) fn read(body: &[u8], holding: Holding) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map, _holding: holding }),
            Ok(_) => Err(ApiError::invalid("body: want a JSON object")),
            Err(error) => Err(ApiError::invalid(format!("body: not JSON: {error}"))),
        }
    }

    /// A value that is there.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn wrong(name: &str, want: &str) -> ApiError {
        ApiError::field(name, format!("{name}: want {want}"))
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let text = |value: &'_ Value| value.as_str().map(str::len).ok_or_else(|| Self::wrong(name, "a text"));
        self.get(name).map(text).transpose()?;
        Ok(self.get(name).and_then(Value::as_str))
    }

    /// Yes or no.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| Self::wrong(name, "true or false"));
        self.get(name).map(flag).transpose()
    }

    /// A number from `least` to `most`.
    pub(crate) fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f64>, ApiError> {
        let number = |value: &Value| {
            let number = value.as_f64().filter(|x| (least..=most).contains(x));
            number.ok_or_else(|| Self::wrong(name, &format!("a number from {least} to {most}")))
        };
        self.get(name).map(number).transpose()
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn whole(&self, name: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let whole = |value: &Value| {
            // Some clients send 5.0.
            let n = value.as_i64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0).map(|x| x as i64));
            let n = n.filter(|n| (least..=most).contains(n));
            n.ok_or_else(|| Self::wrong(name, &format!("a whole number from {least} to {most}")))
        };
        self.get(name).map(whole).transpose()
    }

    /// Refuses a field that is not built, unless its value is one that changes nothing.
    pub(crate) fn refuse(&self, name: &str, changes_nothing: &[Value]) -> Result<(), ApiError> {
        let is_equal = |value: &Value, other: &Value| match (value.as_f64(), other.as_f64()) {
            (Some(x), Some(y)) => x == y,
            _ => value == other,
        };
        match self.get(name) {
            Some(value) if !changes_nothing.iter().any(|other| is_equal(value, other)) => {
                Err(ApiError::unsupported_field(name))
            }
            _ => Ok(()),
        }
    }
}
