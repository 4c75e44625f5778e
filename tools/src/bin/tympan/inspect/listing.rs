//! [`Listing`]: metadata and tensors of a file, as text and as JSON.

use std::collections::BTreeMap;

use engine::gguf::shown;
use serde_json::{Map, Value, json};

use super::statistics::Statistics;
/// Elements of an array that are shown.
const SHOWN_ELEMENTS: usize = 8;
/// Characters of a text that are shown.
const SHOWN_CHARS: usize = 96;
/// Characters of an element of an array that are shown.
const SHOWN_ELEMENT_CHARS: usize = 24;

/// A plain value.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Shown {
    /// Text; what is not UTF-8 was replaced.
    Text(String),
    /// Of any width.
    Integer(i128),
    /// The value, and its shortest text in its own precision.
    Float(f64, String),
    /// True or false.
    Bool(bool),
    /// Nothing.
    Null,
}

impl Shown {
    /// The bytes of a string.
    pub(super) fn text(bytes: &[u8]) -> Self {
        Self::Text(String::from_utf8_lossy(bytes).into_owned())
    }

    /// On one line, text of at most `max` characters.
    fn line(&self, max: Option<usize>) -> String {
        match self {
            Self::Text(text) => {
                let n = text.chars().count();
                let max = max.unwrap_or(n);
                let kept: String = text.chars().take(max).collect();
                if n > max { format!("{kept:?}... ({n} characters)") } else { format!("{kept:?}") }
            }
            Self::Integer(v) => v.to_string(),
            Self::Float(_, text) => text.clone(),
            Self::Bool(v) => v.to_string(),
            Self::Null => "null".into(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => text.clone().into(),
            Self::Integer(v) => match (u64::try_from(*v), i64::try_from(*v)) {
                (Ok(v), _) => v.into(),
                (_, Ok(v)) => v.into(),
                _ => v.to_string().into(),
            },
            // JSON has no infinities.
            Self::Float(v, text) if !v.is_finite() => text.clone().into(),
            // The shortest text of an f32 is not that of the f64 it widens to.
            Self::Float(v, text) => text.parse::<f64>().unwrap_or(*v).into(),
            Self::Bool(v) => (*v).into(),
            Self::Null => Value::Null,
        }
    }
}

/// A value of metadata, and the type that the file gives it.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Meta {
    /// A plain value.
    One {
        /// Its type.
        kind: &'static str,
        /// The value.
        value: Shown,
    },
    /// An array.
    Many {
        /// Type of its elements.
        kind: &'static str,
        /// The elements.
        values: Vec<Shown>,
    },
}

impl Meta {
    fn kind(&self) -> String {
        match self {
            Self::One { kind, .. } => (*kind).to_owned(),
            Self::Many { kind, .. } => format!("[{kind}]"),
        }
    }

    fn line(&self, in_full: bool) -> String {
        match self {
            Self::One { value, .. } => value.line((!in_full).then_some(SHOWN_CHARS)),
            Self::Many { values, .. } => {
                let n = if in_full { values.len() } else { SHOWN_ELEMENTS };
                let max = (!in_full).then_some(SHOWN_ELEMENT_CHARS);
                let shown: Vec<String> = values.iter().take(n).map(|v| v.line(max)).collect();
                let rest = if values.len() > n { ", ..." } else { "" };
                format!("{}: {}{rest}", values.len(), shown.join(", "))
            }
        }
    }

    fn json(&self, in_full: bool) -> Value {
        let list = |values: &[Shown]| values.iter().map(Shown::json).collect::<Vec<_>>();
        match self {
            Self::One { value, .. } => value.json(),
            Self::Many { values, .. } if in_full || values.len() <= SHOWN_ELEMENTS => list(values).into(),
            Self::Many { kind, values } => {
                json!({ "type": kind, "length": values.len(), "first": list(&values[..SHOWN_ELEMENTS]) })
            }
        }
    }
}

/// A tensor.
#[derive(Clone, Debug)]
pub(super) struct TensorRow {
    /// Its name.
    pub name: String,
    /// Its element type, as the file calls it.
    pub dtype: String,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: u64,
    /// Of its values, where they were read and are numbers.
    pub statistics: Option<Statistics>,
}

impl TensorRow {
    fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    fn json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("name".into(), self.name.clone().into());
        fields.insert("type".into(), self.dtype.clone().into());
        fields.insert("shape".into(), self.shape.clone().into());
        fields.insert("elements".into(), self.elements().into());
        fields.insert("bytes".into(), self.bytes.into());
        if let Some(s) = self.statistics {
            for (name, value) in [("min", s.min), ("max", s.max), ("mean", s.mean), ("rms", s.rms)] {
                fields.insert(name.into(), value.into());
            }
            fields.insert("non_finite".into(), s.n_non_finite.into());
        }
        fields.into()
    }
}

/// All tensors of one type, or all.
#[derive(Clone, Copy, Default, Debug)]
struct Total {
    tensors: u64,
    elements: u64,
    bytes: u64,
}

impl Total {
    fn add(&mut self, row: &TensorRow) {
        self.tensors += 1;
        self.elements += row.elements();
        self.bytes += row.bytes;
    }

    fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.elements.max(1) as f64
    }

    fn json(&self) -> Map<String, Value> {
        let bits = self.bits_per_weight();
        let fields = json!({
            "tensors": self.tensors, "elements": self.elements, "bytes": self.bytes, "bits_per_weight": bits,
        });
        fields.as_object().cloned().unwrap_or_default()
    }
}

/// What is in a file.
pub(super) struct Listing {
    /// The file, or the first of several.
    pub file: String,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// Version of the format, where it has one.
    pub version: Option<u32>,
    /// Bytes of all parts.
    pub bytes: u64,
    /// Keys and values in file order.
    pub metadata: Vec<(String, Meta)>,
    /// Tensors in file order.
    pub tensors: Vec<TensorRow>,
    /// Whether values were read.
    pub with_statistics: bool,
}

impl Listing {
    fn types(&self) -> (BTreeMap<&str, Total>, Total) {
        let (mut types, mut all) = (BTreeMap::<&str, Total>::new(), Total::default());
        for row in &self.tensors {
            types.entry(&row.dtype).or_default().add(row);
            all.add(row);
        }
        (types, all)
    }

    /// One JSON document. Arrays of metadata with more than eight elements become their type, length and first elements,
    /// unless `in_full`.
    pub(super) fn json(&self, in_full: bool) -> String {
        let (types, all) = self.types();
        let types = types.iter().map(|(name, total)| {
            let mut fields = Map::new();
            fields.insert("type".into(), (*name).into());
            fields.extend(total.json());
            Value::Object(fields)
        });
        let metadata: Map<String, Value> =
            self.metadata.iter().map(|(key, value)| (key.clone(), value.json(in_full))).collect();
        let document = json!({
            "file": self.file, "format": self.format, "version": self.version, "bytes": self.bytes,
            "metadata": metadata, "tensors": self.tensors.iter().map(TensorRow::json).collect::<Vec<_>>(),
            "types": types.collect::<Vec<_>>(), "total": all.json(),
        });
        format!("{document:#}\n")
    }

    /// Tables for people.
    pub(super) fn text(&self, in_full: bool) -> String {
        let version = self.version.map_or(String::new(), |v| format!(" version {v}"));
        let mut text = format!(
            "{}: {}{version}, {}, {} keys, {} tensors\n",
            self.file,
            self.format,
            size(self.bytes),
            self.metadata.len(),
            self.tensors.len()
        );
        if !self.metadata.is_empty() {
            let row = |(key, value): &(String, Meta)| vec![shown(key), value.kind(), value.line(in_full)];
            let rows: Vec<Vec<String>> = self.metadata.iter().map(row).collect();
            text += &format!("\n{}", table(&["key", "type", "value"], &rows, &[]));
        }
        if !self.tensors.is_empty() {
            text += &format!("\n{}", self.tensor_table());
        }
        let (types, all) = self.types();
        let total = |name: &str, t: &Total| {
            let share = 100.0 * t.bytes as f64 / all.bytes.max(1) as f64;
            let bits = format!("{:.3}", t.bits_per_weight());
            vec![name.into(), t.tensors.to_string(), t.elements.to_string(), size(t.bytes), format!("{share:.1}"), bits]
        };
        let mut rows: Vec<Vec<String>> = types.iter().map(|(name, t)| total(name, t)).collect();
        rows.push(total("all", &all));
        let heads = ["type", "tensors", "elements", "bytes", "% bytes", "bits per weight"];
        text + &format!("\n{}", table(&heads, &rows, &[1, 2, 3, 4, 5]))
    }

    fn tensor_table(&self) -> String {
        let mut heads = vec!["tensor", "type", "shape", "elements", "bytes"];
        if self.with_statistics {
            heads.extend(["min", "max", "mean", "rms", "non-finite"]);
        }
        let row = |t: &TensorRow| {
            let shape = format!("{:?}", t.shape);
            let mut cells = vec![shown(&t.name), t.dtype.clone(), shape, t.elements().to_string(), size(t.bytes)];
            if self.with_statistics {
                let number = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.5e}"));
                let s = t.statistics.map(|s| [s.min, s.max, s.mean, s.rms]).unwrap_or_default();
                cells.extend(s.map(number));
                cells.push(t.statistics.map_or("-".into(), |s| s.n_non_finite.to_string()));
            }
            cells
        };
        let rows: Vec<Vec<String>> = self.tensors.iter().map(row).collect();
        table(&heads, &rows, &[3, 4, 5, 6, 7, 8, 9])
    }
}

/// Bytes in the unit in which they have one to four digits before the point.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let i = (bytes.max(1).ilog2() / 10) as usize;
    match i.checked_sub(1) {
        None => format!("{bytes} B"),
        Some(unit) => {
            let unit = unit.min(units.len() - 1);
            format!("{:.2} {}", bytes as f64 / 1024f64.powi(unit as i32 + 1), units[unit])
        }
    }
}

/// Columns as wide as they must be, two spaces apart; the numbered ones to the right.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>], to_the_right: &[usize]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
        cells.chain([heads[i].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(i, (cell, &n))| {
            if to_the_right.contains(&i) { format!("{cell:>n$}") } else { format!("{cell:<n$}") }
        });
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let head: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    let rule: Vec<String> = widths.iter().map(|&n| "-".repeat(n)).collect();
    [line(&head), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row))).collect()
}
