//! [`Source`]: where metadata and tensors come from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use convert::Files;
use convert::safetensors::{Checkpoint, SourceTensor};
use convert::synth::SyntheticModel;
use engine::gguf::{Array, Gguf, Value};
use rayon::prelude::*;
use serde_json::Value as Json;

use super::listing::{Listing, Meta, Shown, TensorRow};
use super::statistics::{self, Encoding, Statistics};
use crate::cache;
use crate::exit::{Failure, Outcome};
use crate::report::Verbosity;
use tympan::Model;
use tympan::find::the_model_in;

/// Largest configuration of a checkpoint that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// An open file or directory.
pub(super) enum Source {
    /// A GGUF file, all parts of a split one, or the built-in model.
    Gguf(Gguf),
    /// A checkpoint as it is stored.
    Checkpoint {
        /// Its tensors.
        weights: Checkpoint,
        /// Its `config.json`, if it has one.
        config: Option<Json>,
    },
}

impl Source {
    /// Opens what `path` names; the built-in model without.
    ///
    /// Errors: a file that is missing or malformed.
    pub(super) fn open(path: Option<&Path>, say: Verbosity) -> Outcome<Self> {
        let Some(path) = path else {
            say.note("no model given: showing the built-in demonstration model as it is converted in memory");
            return Ok(Self::Gguf(Model::demonstration()?.loaded.files.swap_remove(0)));
        };
        let made = SyntheticModel::parse(path)?.map(|wanted| cache::open(&wanted, say)).transpose()?;
        if let Some(projector) = made.as_ref().and_then(|made| made.projector.as_ref()) {
            say.note(format!("this is the language model; the audio encoder is in {}", projector.display()));
        }
        Self::open_path(made.as_ref().map_or(path, |made| &made.text)).map_err(Failure::model)
    }

    fn open_path(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
            return Ok(Self::Checkpoint { weights: Checkpoint::open(path)?, config: None });
        }
        if !path.is_dir() {
            return Ok(Self::Gguf(Gguf::open(path)?));
        }
        let files: Files = path.into();
        if !files.has("config.json") {
            return Ok(Self::Gguf(Gguf::open(&the_model_in(path)?)?));
        }
        let config = files.read("config.json", MAX_CONFIG_BYTES)?;
        let parse = |(path, bytes): (PathBuf, std::borrow::Cow<'_, [u8]>)| {
            serde_json::from_slice(&bytes).with_context(|| format!("{}: malformed", path.display()))
        };
        Ok(Self::Checkpoint { weights: Checkpoint::of(&files)?, config: config.map(parse).transpose()? })
    }

    /// Everything in it; with `statistics` all values are read.
    pub(super) fn listing(&self, statistics: bool) -> Result<Listing> {
        Ok(match self {
            Self::Gguf(file) => of_gguf(file, statistics),
            Self::Checkpoint { weights, config } => of_checkpoint(weights, config.as_ref(), statistics),
        })
    }
}

fn of_gguf(file: &Gguf, statistics: bool) -> Listing {
    let tensors: Vec<_> = file.tensors().collect();
    let row = |t: &engine::gguf::GgufTensor<'_>| TensorRow {
        name: t.name.to_owned(),
        dtype: t.dtype.to_string(),
        shape: t.shape.dims().iter().map(|&d| d as usize).collect(),
        bytes: t.bytes.len() as u64,
        statistics: statistics.then(|| {
            let release = |range| file.release(t.name, range);
            statistics::of(Encoding::of(t.dtype), t.bytes, t.shape.elements(), release)
        }),
    };
    Listing {
        file: file.path().display().to_string(),
        format: "gguf",
        version: Some(file.version()),
        bytes: file.file_bytes() as u64,
        metadata: file.metadata().map(|(key, value)| (key.to_owned(), of_value(&value))).collect(),
        tensors: tensors.par_iter().map(row).collect(),
        with_statistics: statistics,
    }
}

fn of_checkpoint(weights: &Checkpoint, config: Option<&Json>, statistics: bool) -> Listing {
    let tensors: Vec<SourceTensor<'_>> = weights.tensors().collect();
    let of = |t: &SourceTensor<'_>| -> Option<Statistics> {
        let encoding = Encoding::of_stored(t.dtype)?;
        Some(statistics::of(encoding, t.bytes, t.shape.iter().product(), |range| weights.release(t.name, range)))
    };
    let row = |t: &SourceTensor<'_>| TensorRow {
        name: t.name.to_owned(),
        dtype: t.dtype.to_string(),
        shape: t.shape.to_vec(),
        bytes: t.bytes.len() as u64,
        statistics: if statistics { of(t) } else { None },
    };
    let mut metadata = Vec::new();
    if let Some(config) = config {
        flatten("", config, &mut metadata);
    }
    Listing {
        file: weights.path().display().to_string(),
        format: "safetensors",
        version: None,
        bytes: tensors.iter().map(|t| t.bytes.len() as u64).sum(),
        metadata,
        tensors: tensors.par_iter().map(row).collect(),
        with_statistics: statistics,
    }
}

/// A value of a GGUF file.
fn of_value(value: &Value) -> Meta {
    let one = |value: Shown| Meta::One { kind: value_kind(&value), value };
    match value {
        Value::Array(array) => of_array(array),
        Value::String(bytes) => one(Shown::text(bytes)),
        Value::Bool(v) => one(Shown::Bool(*v)),
        Value::F32(v) => Meta::One { kind: "f32", value: Shown::Float(f64::from(*v), format!("{v:?}")) },
        Value::F64(v) => Meta::One { kind: "f64", value: Shown::Float(*v, format!("{v:?}")) },
        integer => {
            let kind = integer.value_type().name();
            Meta::One { kind, value: Shown::Integer(integer.as_integer().expect("floats and others come before")) }
        }
    }
}

fn value_kind(value: &Shown) -> &'static str {
    match value {
        Shown::Text(_) => "string",
        Shown::Bool(_) => "bool",
        Shown::Integer(_) => "integer",
        Shown::Float(..) => "number",
        Shown::Null => "null",
    }
}

fn of_array(array: &Array) -> Meta {
    fn integers<T: Copy + Into<i128>>(kind: &'static str, list: &[T]) -> Meta {
        Meta::Many { kind, values: list.iter().map(|&v| Shown::Integer(v.into())).collect() }
    }
    match array {
        Array::U8(list) => integers("u8", list),
        Array::I8(list) => integers("i8", list),
        Array::U16(list) => integers("u16", list),
        Array::I16(list) => integers("i16", list),
        Array::U32(list) => integers("u32", list),
        Array::I32(list) => integers("i32", list),
        Array::U64(list) => integers("u64", list),
        Array::I64(list) => integers("i64", list),
        Array::F32(list) => Meta::Many {
            kind: "f32",
            values: list.iter().map(|v| Shown::Float(f64::from(*v), format!("{v:?}"))).collect(),
        },
        Array::F64(list) => {
            Meta::Many { kind: "f64", values: list.iter().map(|v| Shown::Float(*v, format!("{v:?}"))).collect() }
        }
        Array::Bool(list) => Meta::Many { kind: "bool", values: list.iter().map(|&v| Shown::Bool(v)).collect() },
        Array::String(list) => Meta::Many { kind: "string", values: list.iter().map(|v| Shown::text(v)).collect() },
    }
}

/// Leaves of a configuration, by their path.
fn flatten(path: &str, value: &Json, out: &mut Vec<(String, Meta)>) {
    let plain = |value: &Json| match value {
        Json::String(text) => Shown::Text(text.clone()),
        Json::Bool(v) => Shown::Bool(*v),
        Json::Null => Shown::Null,
        Json::Number(n) => match n.to_string().parse() {
            Ok(integer) => Shown::Integer(integer),
            Err(_) => Shown::Float(n.as_f64().unwrap_or(f64::NAN), n.to_string()),
        },
        nested => Shown::Text(nested.to_string()),
    };
    match value {
        Json::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, out);
            }
        }
        Json::Array(list) => {
            out.push((path.to_owned(), Meta::Many { kind: "json", values: list.iter().map(plain).collect() }));
        }
        leaf => {
            let value = plain(leaf);
            out.push((path.to_owned(), Meta::One { kind: value_kind(&value), value }));
        }
    }
}
