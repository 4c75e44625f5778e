//! What the user wants otherwise than a plan would have it: types of tensors, values of keys. [`Overrides`] is the type
//! to read first.

use anyhow::{Context, Result, anyhow, bail, ensure};
use engine::DType;
use engine::gguf::Value;
use fancy_regex::Regex;
use models::languages::nearest;

use crate::assembly::FilePlan;

/// Beginnings of keys that say how a file is built; another value would make it unreadable.
const STRUCTURAL_KEYS: [&str; 3] = ["general.architecture", "general.alignment", "split."];
/// Bytes of a key. Source: llama.cpp, `string_parse_kv_override`.
const MAX_KEY_BYTES: usize = 127;
/// Beginning of the keys of an audio tower.
const TOWER_KEYS: &str = "clip.";

/// Types and keys.
#[derive(Clone, Default)]
pub struct Overrides {
    types: Vec<(Regex, DType)>,
    keys: Vec<(String, Value)>,
}

impl Overrides {
    /// Reads `REGEX=TYPE` and `KEY=TYPE:VALUE`. Errors: what is malformed and what was expected.
    pub fn parse(types: &[String], keys: &[String]) -> Result<Self> {
        let types = types.iter().map(|text| parse_type(text).with_context(|| format!("--tensor-type {text}")));
        let keys = keys.iter().map(|text| parse_key(text).with_context(|| format!("--override-kv {text}")));
        Ok(Self { types: types.collect::<Result<_>>()?, keys: keys.collect::<Result<_>>()? })
    }

    /// The type that the first matching expression gives to the tensor `name`, and which expression that is.
    ///
    /// Source: llama.cpp, `llama-quant.cpp`: the first match wins, anywhere in the name.
    pub(crate) fn dtype_of(&self, name: &str) -> Option<DType> {
        let matches = |regex: &Regex| regex.is_match(name).unwrap_or(false);
        self.types.iter().find(|(regex, _)| matches(regex)).map(|(_, dtype)| *dtype)
    }

    /// Checks that every expression matches one of `names`, tensors whose type can be chosen.
    pub(crate) fn check_types<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        for (regex, _) in &self.types {
            let is_used = names.clone().any(|name| regex.is_match(name).unwrap_or(false));
            ensure!(is_used, "--tensor-type {}: no tensor whose type can be chosen has such a name", regex.as_str());
        }
        Ok(())
    }

    /// Sets the keys: those of an audio tower in `tower`, where that is a file of its own, all others in `decoder`.
    ///
    /// Errors: a key whose value has another kind.
    pub(crate) fn set_keys<S>(&self, decoder: &mut FilePlan<S>, mut tower: Option<&mut FilePlan<S>>) -> Result<()> {
        for (key, value) in &self.keys {
            let plan = match &mut tower {
                Some(tower) if key.starts_with(TOWER_KEYS) => tower,
                _ => &mut *decoder,
            };
            let found = plan.keys.iter().find(|(found, _)| found == key);
            if let Some((_, old)) = found {
                let (want, got) = (kind(old), kind(value));
                ensure!(want == got, "--override-kv {key}: want {want}, as the file has it, got {got}");
            }
            plan.set_key(key, value.clone());
        }
        Ok(())
    }
}

fn parse_type(text: &str) -> Result<(Regex, DType)> {
    // An expression may have an equals sign, as in `(?=...)`; a type has none.
    let (pattern, name) = text.rsplit_once('=').context("want REGEX=TYPE")?;
    ensure!(!pattern.is_empty(), "want REGEX=TYPE, got no expression");
    let is_weight = |dtype: &DType| *dtype != DType::I32;
    let mut all = DType::ALL.into_iter().filter(is_weight);
    let Some(dtype) = all.clone().find(|dtype| dtype.name().eq_ignore_ascii_case(name)) else {
        let names: Vec<String> = all.by_ref().map(|dtype| dtype.name().to_lowercase()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let hint =
            nearest(&name.to_lowercase(), &names).map_or(String::new(), |near| format!("; did you mean {near}?"));
        bail!("{name} is no type of tensors{hint} (want one of {})", names.join(", "));
    };
    let regex = Regex::new(pattern).context("not a regular expression")?;
    Ok((regex, dtype))
}

/// Source: llama.cpp, `string_parse_kv_override`; integers become u32 as in llama-quantize.
fn parse_key(text: &str) -> Result<(String, Value)> {
    const WANT: &str = "want KEY=int:N, KEY=float:X, KEY=bool:true|false or KEY=str:TEXT";
    let (key, rest) = text.split_once('=').context(WANT)?;
    let (kind, value) = rest.split_once(':').context(WANT)?;
    ensure!(!key.is_empty() && key.len() <= MAX_KEY_BYTES, "want a key of 1 to {MAX_KEY_BYTES} bytes");
    let is_structural = STRUCTURAL_KEYS.iter().any(|start| key.starts_with(start));
    ensure!(!is_structural, "{key} says how the file is built and cannot be changed");
    let value = match kind {
        "int" => Value::U32(value.parse().map_err(|_| anyhow!("want an integer from 0 to {}, got {value}", u32::MAX))?),
        "float" => {
            let number = value.parse().ok().filter(|x: &f32| x.is_finite());
            Value::F32(number.with_context(|| format!("want a number, got {value}"))?)
        }
        "bool" => Value::Bool(value.parse().map_err(|_| anyhow!("want true or false, got {value}"))?),
        "str" => value.into(),
        _ => bail!(WANT),
    };
    Ok((key.to_owned(), value))
}

/// What kinds of values readers tell apart.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "bool",
        Value::String(_) => "str",
        Value::Array(_) => "a list",
        value if value.as_integer().is_some() => "int",
        _ => "float",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn the_first_match_wins_anywhere_in_a_name() {
        let types = strings(&["ffn_(up|gate)=Q8_0", r"blk\.(?!1\.).*ffn_up=F16", "attn_v=q5_1"]);
        let overrides = Overrides::parse(&types, &[]).unwrap();
        assert_eq!(overrides.dtype_of("blk.0.ffn_up.weight"), Some(DType::Q8_0));
        assert_eq!(overrides.dtype_of("blk.0.attn_v.weight"), Some(DType::Q5_1));
        assert_eq!(overrides.dtype_of("blk.0.attn_k.weight"), None);
        let reversed = Overrides::parse(&types.iter().rev().cloned().collect::<Vec<_>>(), &[]).unwrap();
        assert_eq!(reversed.dtype_of("blk.0.ffn_up.weight"), Some(DType::F16));
        assert_eq!(reversed.dtype_of("blk.1.ffn_up.weight"), Some(DType::Q8_0));
        let names = ["blk.0.ffn_up.weight"];
        let error = overrides.check_types(names.into_iter()).unwrap_err().to_string();
        assert!(error.starts_with("--tensor-type attn_v: no tensor"), "{error}");
    }

    #[test]
    fn an_expression_is_taken_as_it_is() {
        for (text, name, dtype) in [
            ("ffn_(?=up)=q5_1", "blk.0.ffn_up.weight", Some(DType::Q5_1)),
            ("ffn_(?=up)=q5_1", "blk.0.ffn_gate.weight", None),
            // \S is not \s, and names keep their case.
            (r"^blk\S+$=q8_0", "blk.0.ffn_up.weight", Some(DType::Q8_0)),
            ("FFN_UP=q8_0", "blk.0.ffn_up.weight", None),
            ("(?i)FFN_UP=Q8_0", "blk.0.ffn_up.weight", Some(DType::Q8_0)),
        ] {
            let overrides = Overrides::parse(&strings(&[text]), &[]).unwrap();
            assert_eq!(overrides.dtype_of(name), dtype, "{text} {name}");
        }
    }

    #[test]
    fn malformed_overrides_say_what_is_wanted() {
        for (types, keys, want) in [
            (&["x"][..], &[][..], "--tensor-type x: want REGEX=TYPE"),
            (&["=q8_0"], &[], "got no expression"),
            (&["a=q9_8_7_6_5"], &[], "q9_8_7_6_5 is no type of tensors (want one of f32, f16,"),
            (&["a=q4k"], &[], "q4k is no type of tensors; did you mean q4_k? (want one of"),
            (&["a="], &[], " is no type of tensors (want"),
            (&["a=i32"], &[], "i32 is no type"),
            (&["(=q8_0"], &[], "not a regular expression"),
            (&[], &["a"], "--override-kv a: want KEY=int:N"),
            (&[], &["a=int"], "want KEY=int:N"),
            (&[], &["a=u32:1"], "want KEY=int:N"),
            (&[], &["a=int:-1"], "want an integer from 0 to 4294967295, got -1"),
            (&[], &["a=float:inf"], "want a number, got inf"),
            (&[], &["a=bool:1"], "want true or false, got 1"),
            (&[], &["general.architecture=str:llama"], "cannot be changed"),
            (&[], &["split.count=int:1"], "cannot be changed"),
        ] {
            let error = format!("{:#}", Overrides::parse(&strings(types), &strings(keys)).err().unwrap());
            assert!(error.contains(want), "{error}: want {want}");
        }
    }

    #[test]
    fn keys_go_behind_all_others_and_keep_their_kind() {
        let keys = strings(&["a.n=int:7", "clip.x=str:b:c=d", "a.new=bool:true"]);
        let overrides = Overrides::parse(&[], &keys).unwrap();
        let plan = |keys: &[(&str, Value)]| FilePlan::<()> {
            keys: keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
            tensors: Vec::new(),
        };
        let mut decoder = plan(&[("a.n", Value::U64(1)), ("a.z", Value::F32(0.5))]);
        let mut tower = plan(&[]);
        overrides.set_keys(&mut decoder, Some(&mut tower)).unwrap();
        let want = plan(&[("a.z", Value::F32(0.5)), ("a.n", Value::U32(7)), ("a.new", Value::Bool(true))]);
        assert_eq!(decoder.keys, want.keys);
        assert_eq!(tower.keys, [("clip.x".to_owned(), "b:c=d".into())]);
        let mut other = plan(&[("a.n", "text".into())]);
        let error = overrides.set_keys(&mut other, None).unwrap_err().to_string();
        assert_eq!(error, "--override-kv a.n: want str, as the file has it, got int");
    }
}
