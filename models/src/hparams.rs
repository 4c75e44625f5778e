//! [`Hparams`]: checked reading of a model's metadata over the files it consists of.

use std::ops::RangeInclusive;

use engine::gguf::{Gguf, quoted};
use engine::session::MAX_CONTEXT;

use crate::error::{Error, Result};

/// Largest value of a size in metadata; far above every published model, far below what would overflow.
const MAX_SIZE: u32 = 1 << 24;

/// Tokens of the context of the language model in `file`, and of those that a session holds.
///
/// Errors: `WrongType`, `BadValue` for 0.
pub(crate) fn context_length(file: &Gguf) -> Result<usize> {
    let key = format!("{}.context_length", file.get_str("general.architecture")?);
    if !file.contains(&key) {
        return Ok(MAX_CONTEXT);
    }
    match file.get_u32(&key)? as usize {
        0 => Err(wrong(file, key, "want a positive number, got 0".into())),
        n_ctx => Ok(n_ctx.min(MAX_CONTEXT)),
    }
}

/// Metadata of a text file and, for speech, of its projector file or of a bundle that holds both.
#[derive(Clone, Copy)]
pub(crate) struct Hparams<'a> {
    files: &'a [Gguf],
    prefix: &'a str,
}

impl<'a> Hparams<'a> {
    /// Keys that begin with `prefix`, in any of the files.
    pub(crate) fn new(files: &'a [Gguf], prefix: &'a str) -> Self {
        Self { files, prefix }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn file(&self, key: &str) -> Result<&'a Gguf> {
        let found = self.files.iter().find(|f| f.contains(key));
        found.ok_or_else(|| Error::MissingKey {
            paths: self.files.iter().map(|f| f.path().to_owned()).collect(),
            key: key.to_owned(),
        })
    }

    /// Whether the key is there.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.file(&self.key(name)).is_ok()
    }

    /// A size: at least 1.
    ///
    /// Errors: `MissingKey`, `WrongType`, `BadValue` for 0 and for sizes that no model has.
    pub(crate) fn size(&self, name: &str) -> Result<usize> {
        let key = self.key(name);
        let file = self.file(&key)?;
        let value = file.get_u32(&key)?;
        if value == 0 || value > MAX_SIZE {
            return Err(wrong(file, key, format!("want 1 to {MAX_SIZE}, got {value}")));
        }
        Ok(value as usize)
    }

    /// A size, or `absent` where the key is not there.
    ///
    /// Errors: as [`Self::size`].
    pub(crate) fn size_or(&self, name: &str, absent: usize) -> Result<usize> {
        if self.contains(name) { self.size(name) } else { Ok(absent) }
    }

    /// A number that may be 0, or `absent` where the key is not there.
    ///
    /// Errors: `WrongType`, `BadValue` for numbers that no model has.
    pub(crate) fn count_or(&self, name: &str, absent: usize) -> Result<usize> {
        let key = self.key(name);
        let Ok(file) = self.file(&key) else { return Ok(absent) };
        let value = file.get_u32(&key)?;
        if value > MAX_SIZE {
            return Err(wrong(file, key, format!("want at most {MAX_SIZE}, got {value}")));
        }
        Ok(value as usize)
    }

    /// A flag, or `absent` where the key is not there.
    ///
    /// Errors: `WrongType`.
    pub(crate) fn flag_or(&self, name: &str, absent: bool) -> Result<bool> {
        let key = self.key(name);
        self.file(&key).map_or(Ok(absent), |file| Ok(file.get_bool(&key)?))
    }

    /// One number for each of `n_layer` layers, which may be 0; a single number holds for all.
    ///
    /// Errors: `MissingKey`, `WrongType`, `BadValue` for a list of another length and for numbers that no model has.
    pub(crate) fn sizes_of_layers(&self, name: &str, n_layer: usize) -> Result<Vec<usize>> {
        let key = self.key(name);
        let file = self.file(&key)?;
        let values = match file.get_u32(&key) {
            Ok(value) => vec![value; n_layer],
            Err(_) => file.get_u32_array(&key)?,
        };
        if values.len() != n_layer {
            return Err(wrong(file, key, format!("want {n_layer} layers, got {}", values.len())));
        }
        match values.iter().find(|&&value| value > MAX_SIZE) {
            Some(value) => Err(wrong(file, key, format!("want at most {MAX_SIZE}, got {value}"))),
            None => Ok(values.into_iter().map(|value| value as usize).collect()),
        }
    }

    /// A flag for each of `n_layer` layers, if there are some.
    ///
    /// Errors: `WrongType`, `BadValue` for a list of another length.
    pub(crate) fn flags_of_layers(&self, name: &str, n_layer: usize) -> Result<Option<Vec<bool>>> {
        let key = self.key(name);
        let Ok(file) = self.file(&key) else { return Ok(None) };
        let flags = file.get_bool_array(&key)?;
        if flags.len() != n_layer {
            return Err(wrong(file, key, format!("want {n_layer} layers, got {}", flags.len())));
        }
        Ok(Some(flags))
    }

    /// A positive, finite number.
    ///
    /// Errors: `MissingKey`, `WrongType`, `BadValue`.
    pub(crate) fn positive(&self, name: &str) -> Result<f32> {
        let key = self.key(name);
        let file = self.file(&key)?;
        let value = file.get_f32(&key)?;
        if !(value.is_finite() && value > 0.0) {
            return Err(wrong(file, key, format!("want a positive number, got {value}")));
        }
        Ok(value)
    }

    /// A positive, finite number, or `absent` where the key is not there.
    ///
    /// Errors: as [`Self::positive`].
    pub(crate) fn positive_or(&self, name: &str, absent: f32) -> Result<f32> {
        if self.contains(name) { self.positive(name) } else { Ok(absent) }
    }

    /// A positive, finite number, or `absent` where the key is not there or 0, which stands for it in files.
    ///
    /// Errors: as [`Self::positive`].
    pub(crate) fn factor_or(&self, name: &str, absent: f32) -> Result<f32> {
        if self.within(name, &(0.0..=0.0)).is_ok_and(|zero| zero.is_some()) {
            return Ok(absent);
        }
        self.positive_or(name, absent)
    }

    /// The error unless the text is one of `known`, or the key is not there.
    ///
    /// Errors: `WrongType`, `BadValue`.
    pub(crate) fn expect_text(&self, name: &str, known: &[&str]) -> Result<()> {
        let key = self.key(name);
        let Ok(file) = self.file(&key) else { return Ok(()) };
        let value = file.get_str(&key)?;
        if !known.contains(&value) {
            return Err(wrong(file, key, format!("want {}, got {}", known.join(" or "), quoted(value))));
        }
        Ok(())
    }

    /// A number inside `range`, if there is one.
    ///
    /// Errors: `WrongType`, `BadValue`.
    pub(crate) fn within(&self, name: &str, range: &RangeInclusive<f32>) -> Result<Option<f32>> {
        let key = self.key(name);
        let Ok(file) = self.file(&key) else { return Ok(None) };
        let value = file.get_f32(&key)?;
        if !range.contains(&value) {
            return Err(wrong(file, key, format!("want {} to {}, got {value}", range.start(), range.end())));
        }
        Ok(Some(value))
    }

    /// The error for a value that does not fit the others.
    pub(crate) fn bad(&self, name: &str, what: String) -> Error {
        let key = self.key(name);
        match self.file(&key) {
            Ok(file) => wrong(file, key, what),
            Err(missing) => missing,
        }
    }
}

/// The error for a value of this file.
fn wrong(file: &Gguf, key: String, what: String) -> Error {
    Error::BadValue { path: file.path().to_owned(), key, what }
}
