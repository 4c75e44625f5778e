//! Checkpoints that mean something else than before, or nothing: every one is refused, with file and cause.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use convert::{Conversion, Error, ErrorKind, FileType};
use rayon::prelude::*;
use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;
use tests::rng::Rng;

use crate::checkpoint::{copy_of, pair, read_tensors};

/// Corruptions of the speech model and of each text model, of each kind as many.
const N_CORRUPTIONS: [usize; 2] = [500, 140];
const N_SHARDS: usize = 3;
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of a header's length.
const LENGTH_BYTES: usize = 8;

/// A golden checkpoint, and what of it can be damaged.
#[derive(Clone, Copy)]
struct Fixture {
    name: &'static str,
    /// How the names of the tensors that are converted begin.
    prefix: &'static str,
    /// Where the numbers of the configuration are that shapes depend on.
    config: &'static str,
    /// Those that must be there.
    sizes: &'static [&'static str],
    /// Those that follow from others where they are not.
    derived: &'static [&'static str],
}

const QWEN3_ASR: Fixture = Fixture {
    name: "qwen3_asr",
    prefix: "thinker.",
    config: "/thinker_config",
    sizes: &[
        "/text_config/hidden_size",
        "/text_config/num_hidden_layers",
        "/text_config/num_attention_heads",
        "/text_config/num_key_value_heads",
        "/text_config/head_dim",
        "/text_config/intermediate_size",
        "/text_config/vocab_size",
        "/audio_config/d_model",
        "/audio_config/encoder_layers",
        "/audio_config/encoder_ffn_dim",
        "/audio_config/output_dim",
    ],
    derived: &[],
};

const TEXT: [Fixture; 12] = [
    text("llama", &["/num_attention_heads", "/num_key_value_heads", "/intermediate_size"], &["/head_dim"]),
    text("qwen3", &["/num_attention_heads", "/num_key_value_heads", "/head_dim", "/intermediate_size"], &[]),
    text("lfm2", &["/num_attention_heads", "/num_key_value_heads", "/conv_L_cache"], &[]),
    text("lfm2_moe", &["/num_attention_heads", "/num_key_value_heads", "/num_experts", "/moe_intermediate_size"], &[]),
    Fixture {
        prefix: "backbone.",
        ..text("mamba", &["/state_size", "/conv_kernel", "/time_step_rank"], &["/intermediate_size"])
    },
    Fixture {
        prefix: "backbone.",
        ..text("mamba2", &["/state_size", "/conv_kernel", "/num_heads", "/head_dim", "/n_groups"], &[])
    },
    text("jamba", &["/mamba_d_state", "/mamba_d_conv", "/mamba_dt_rank", "/num_experts", "/intermediate_size"], &[]),
    text("granitemoehybrid", &["/mamba_d_state", "/mamba_d_conv", "/mamba_n_heads", "/shared_intermediate_size"], &[]),
    text("granitemoehybrid_moe", &["/mamba_d_state", "/num_local_experts", "/intermediate_size"], &[]),
    text("qwen3_next", &["/linear_num_value_heads", "/linear_value_head_dim", "/num_experts", "/head_dim"], &[]),
    Fixture {
        config: "/text_config",
        prefix: "model.language_model.",
        ..text("qwen3_5", &["/linear_num_value_heads", "/linear_key_head_dim", "/intermediate_size"], &[])
    },
    Fixture {
        config: "/text_config",
        prefix: "model.language_model.",
        ..text("qwen3_5_moe", &["/linear_num_value_heads", "/num_experts", "/moe_intermediate_size"], &[])
    },
];

/// Sizes of every text model.
const OF_TEXT: [&str; 3] = ["/hidden_size", "/num_hidden_layers", "/vocab_size"];

/// A text model whose configuration is not part of another, with sizes beside [`OF_TEXT`].
const fn text(name: &'static str, sizes: &'static [&'static str], derived: &'static [&'static str]) -> Fixture {
    Fixture { name, prefix: "model.", config: "", sizes, derived }
}

impl Fixture {
    /// Where the sizes are that must be there.
    fn required(&self) -> Vec<String> {
        let of_text = if self.name == QWEN3_ASR.name { &[][..] } else { &OF_TEXT };
        of_text.iter().chain(self.sizes).map(|size| format!("{}{size}", self.config)).collect()
    }

    /// Where all sizes are.
    fn sizes(&self) -> Vec<String> {
        let derived = self.derived.iter().map(|size| format!("{}{size}", self.config));
        self.required().into_iter().chain(derived).collect()
    }
}

fn shard_name(i: usize) -> String {
    format!("model-{:05}-of-{N_SHARDS:05}.safetensors", i + 1)
}

/// A checkpoint in shards.
fn sharded(fixture: &Fixture) -> TempDir {
    let dir = copy_of(&format!("golden/{}", fixture.name));
    let all = read_tensors(dir.path());
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let mut index = Map::new();
    for (i, part) in all.chunks(all.len().div_ceil(N_SHARDS)).enumerate() {
        index.extend(part.iter().map(|(tensor, _)| (tensor.clone(), json!(shard_name(i)))));
        safetensors::serialize_to_file(part.iter().cloned(), None, &dir.path().join(shard_name(i))).unwrap();
    }
    std::fs::write(dir.path().join(INDEX), json!({ "metadata": {}, "weight_map": index }).to_string()).unwrap();
    dir
}

/// What a corruption needs: the folder, what is in it, and a choice.
struct Corruption<'a> {
    dir: &'a Path,
    fixture: &'a Fixture,
    rng: Rng,
}

impl Corruption<'_> {
    fn shard(&mut self) -> PathBuf {
        let i = self.rng.below(N_SHARDS);
        self.dir.join(shard_name(i))
    }

    fn json_file(&mut self) -> PathBuf {
        let name = *self.rng.pick(&["config.json", INDEX, "tokenizer.json", "tokenizer_config.json"]);
        self.dir.join(name)
    }

    fn edit(&mut self, path: &Path, edit: impl FnOnce(&mut Vec<u8>, &mut Rng)) {
        let mut bytes = std::fs::read(path).unwrap();
        edit(&mut bytes, &mut self.rng);
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn edit_json(&mut self, name: &str, edit: impl FnOnce(&mut Json, &mut Rng)) {
        self.edit(&self.dir.join(name), |bytes, rng| {
            let mut document: Json = serde_json::from_slice(bytes).unwrap();
            edit(&mut document, rng);
            *bytes = document.to_string().into_bytes();
        });
    }

    /// Changes the part of a shard's header that is the value of `key`, of one of its tensors.
    fn edit_header(&mut self, key: &str, edit: impl FnOnce(&mut [u8], &mut Rng)) {
        let path = self.shard();
        self.edit(&path, |bytes, rng| {
            let header = header(bytes);
            let text = std::str::from_utf8(&bytes[header.clone()]).unwrap();
            let places: Vec<usize> = text.match_indices(key).map(|(at, _)| at + key.len()).collect();
            let from = *rng.pick(&places);
            let to = from + text[from..].find([']', '}', ',']).unwrap();
            edit(&mut bytes[header.start + from..header.start + to], rng);
        });
    }

    /// Makes a random change of kind `kind`; `false` where there is no such kind.
    fn make(&mut self, kind: usize) -> bool {
        match kind {
            // A file is cut short.
            0 => {
                let path = self.shard();
                self.edit(&path, |bytes, rng| bytes.truncate(rng.below(bytes.len())));
            }
            1 => {
                let path = self.json_file();
                self.edit(&path, |bytes, rng| {
                    let end = bytes.trim_ascii_end().len();
                    bytes.truncate(rng.below(end));
                });
            }
            // A file is longer than it says.
            2 => {
                let path = self.shard();
                self.edit(&path, |bytes, rng| {
                    let n = 1 + rng.below(100);
                    bytes.extend(rng.bytes(n));
                });
            }
            // A file is missing.
            3 => {
                let shard = self.shard();
                let other = [self.dir.join("config.json"), self.dir.join(INDEX), shard];
                std::fs::remove_file(self.rng.pick(&other)).unwrap();
            }
            // A digit of a shape or of an offset.
            4 | 5 => {
                let key = if kind == 4 { "\"shape\":[" } else { "\"data_offsets\":[" };
                self.edit_header(key, |value, rng| {
                    let at = rng.below(value.len());
                    let digit = value[at] - b'0';
                    value[at] = b'0' + (digit + 1 + rng.below(9) as u8) % 10;
                });
            }
            // A type of another width, or one that does not exist.
            6 => self.edit_header("\"dtype\":\"", |value, rng| {
                let others = [&b"F64\""[..], b"I64\"", b"U8\"", b"BF8\"", b"\""];
                let other = *rng.pick(&others);
                value.fill(b' ');
                value[..other.len()].copy_from_slice(other);
            }),
            // A tensor under another name.
            7 => {
                let (path, prefix) = (self.shard(), self.fixture.prefix);
                self.edit(&path, |bytes, rng| {
                    let header = header(bytes);
                    let text = std::str::from_utf8(&bytes[header.clone()]).unwrap();
                    let places: Vec<usize> = text.match_indices(prefix).map(|(at, _)| at).collect();
                    bytes[header.start + rng.pick(&places) + rng.below(prefix.len())] = b'_';
                });
            }
            // The header's length.
            8 => {
                let path = self.shard();
                self.edit(&path, |bytes, rng| {
                    let length = header(bytes).len() as u64;
                    let off = 9 + rng.below(90) as u64;
                    let other = *rng.pick(&[length + off, length - off, u64::MAX, 0]);
                    bytes[..LENGTH_BYTES].copy_from_slice(&other.to_le_bytes());
                });
            }
            // A place in the index.
            9 => self.edit_json(INDEX, |index, rng| {
                let map = index["weight_map"].as_object_mut().unwrap();
                let names: Vec<String> = map.keys().cloned().collect();
                let name = rng.pick(&names).clone();
                match rng.below(4) {
                    0 => drop(map.remove(&name)),
                    1 => drop(map.insert(format!("{name}2"), map[&name].clone())),
                    2 => drop(map.insert(name, json!("../model.safetensors"))),
                    _ => {
                        let here = map[&name].clone();
                        let others: Vec<Json> = map.values().filter(|shard| **shard != here).cloned().collect();
                        map.insert(name, rng.pick(&others).clone());
                    }
                }
            }),
            // A size in the configuration.
            10 => {
                let sizes = self.fixture.sizes();
                self.edit_json("config.json", |config, rng| {
                    let size = config.pointer_mut(rng.pick::<String>(&sizes)).unwrap();
                    let n = size.as_u64().unwrap();
                    let others = [
                        json!(n + 1),
                        json!(n * 2),
                        json!(n - 1),
                        json!(0),
                        json!(-1),
                        json!(0.5),
                        json!("8"),
                        json!(1u64 << 40),
                    ];
                    *size = rng.pick(&others).clone();
                });
            }
            // A size that is not there.
            11 => {
                let sizes = self.fixture.required();
                self.edit_json("config.json", |config, rng| {
                    let (parent, key) = rng.pick::<String>(&sizes).rsplit_once('/').unwrap();
                    config.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
                });
            }
            // A merge of pieces that are no tokens, and a token with an impossible number.
            12 => self.edit_json("tokenizer.json", |tokenizer, rng| {
                let model = &mut tokenizer["model"];
                if rng.below(2) == 0 {
                    let merges = model["merges"].as_array_mut().unwrap();
                    let i = rng.below(merges.len());
                    merges[i] = if merges[i].is_string() { json!("no such") } else { json!(["no", "such"]) };
                } else {
                    let vocab = model["vocab"].as_object_mut().unwrap();
                    let names: Vec<String> = vocab.keys().cloned().collect();
                    let id = rng.pick(&[json!(-1), json!("7"), json!(1u64 << 33), json!(100_000), Json::Null]).clone();
                    vocab.insert(rng.pick(&names).clone(), id);
                }
            }),
            // A weight that is no number.
            13 => {
                let (path, prefix) = (self.shard(), self.fixture.prefix);
                self.edit(&path, |bytes, rng| {
                    let header = header(bytes);
                    let tensors: Map<String, Json> = serde_json::from_slice(&bytes[header.clone()]).unwrap();
                    let converted: Vec<&Json> =
                        tensors.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, tensor)| tensor).collect();
                    let tensor = *rng.pick(&converted);
                    let [from, to] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap() as usize);
                    // The upper half of an f32 is a bf16.
                    let width = if tensor["dtype"] == "F32" { 4 } else { 2 };
                    let at = header.end + from + rng.below((to - from) / width) * width + width - 2;
                    let value: u16 = *rng.pick(&[0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f81]);
                    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
                });
            }
            _ => return false,
        }
        true
    }
}

/// Where the header of a shard stands.
fn header(file: &[u8]) -> std::ops::Range<usize> {
    let (length, _) = file.split_first_chunk::<LENGTH_BYTES>().unwrap();
    LENGTH_BYTES..LENGTH_BYTES + u64::from_le_bytes(*length) as usize
}

fn convert(checkpoint: &Path, out: &Path) -> Result<(), Error> {
    let conversion = Conversion::open(checkpoint, |_| pair(FileType::Q8_0))?;
    let paths: Vec<PathBuf> = conversion.file_names().iter().map(|name| out.join(name)).collect();
    conversion.write(&paths, &AtomicBool::new(false))
}

/// Damages a checkpoint in every way, `n_corruptions` times.
fn damage(fixture: &Fixture, n_corruptions: usize) {
    let good = sharded(fixture);
    let out = tempfile::tempdir().unwrap();
    convert(good.path(), out.path()).unwrap();
    let files = |dir: &Path| -> Vec<PathBuf> { std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect() };
    files(out.path()).iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let n_kinds = (0..).find(|&kind| {
        let probe = sharded(fixture);
        !Corruption { dir: probe.path(), fixture, rng: Rng::new(0) }.make(kind)
    });
    for seed in 0..n_corruptions {
        files(dir.path()).iter().for_each(|path| std::fs::remove_file(path).unwrap());
        for path in files(good.path()) {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let kind = seed % n_kinds.unwrap();
        Corruption { dir: dir.path(), fixture, rng: Rng::new(seed as u64) }.make(kind);
        let what = format!("{}, kind {kind}, seed {seed}", fixture.name);
        let Err(failure) = convert(dir.path(), out.path()) else { panic!("{what}: a success") };
        let text = format!("{failure:#}");
        assert_eq!(failure.kind(), ErrorKind::Model, "{what}: {text}");
        let cause = text.strip_prefix(&*dir.path().to_string_lossy()).unwrap_or_else(|| panic!("no file: {text}"));
        assert!(cause.len() > 10 && !text.contains('\n') && text.len() < 1000, "{what}: {text}");
        assert!(files(out.path()).is_empty(), "{what}: files are left");
    }
}

#[test]
fn every_corruption_of_speech_models_is_refused_with_file_and_cause() {
    damage(&QWEN3_ASR, N_CORRUPTIONS[0]);
}

#[test]
fn every_corruption_of_text_models_is_refused_with_file_and_cause() {
    TEXT.par_iter().for_each(|fixture| damage(fixture, N_CORRUPTIONS[1]));
}
