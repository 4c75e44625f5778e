//! Checkpoints that mean something else than before, or nothing: every one is refused, with file and cause.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use convert::{Conversion, Error, ErrorKind, FileType};
use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;
use tests::rng::Rng;

use crate::checkpoint::{copy_of, pair, read_tensors};

/// Corruptions, of each kind as many.
const N_CORRUPTIONS: usize = 500;
const N_SHARDS: usize = 3;
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of a header's length.
const LENGTH_BYTES: usize = 8;

/// Numbers of the configuration that shapes depend on.
const SIZES: [&str; 11] = [
    "/thinker_config/text_config/hidden_size",
    "/thinker_config/text_config/num_hidden_layers",
    "/thinker_config/text_config/num_attention_heads",
    "/thinker_config/text_config/num_key_value_heads",
    "/thinker_config/text_config/head_dim",
    "/thinker_config/text_config/intermediate_size",
    "/thinker_config/text_config/vocab_size",
    "/thinker_config/audio_config/d_model",
    "/thinker_config/audio_config/encoder_layers",
    "/thinker_config/audio_config/encoder_ffn_dim",
    "/thinker_config/audio_config/output_dim",
];

fn shard_name(i: usize) -> String {
    format!("model-{:05}-of-{N_SHARDS:05}.safetensors", i + 1)
}

/// The golden Qwen3-ASR checkpoint in shards.
fn sharded() -> TempDir {
    let dir = copy_of("golden/qwen3_asr");
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

/// What a corruption needs: the folder, and a choice.
struct Corruption<'a> {
    dir: &'a Path,
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
                let other = *rng.pick(&[b"F32\" ", b"F64\" ", b"I64\" ", b"U8\"  ", b"BF8\" ", b"\"    "]);
                value.copy_from_slice(other);
            }),
            // A tensor under another name.
            7 => {
                let path = self.shard();
                self.edit(&path, |bytes, rng| {
                    let header = header(bytes);
                    let text = std::str::from_utf8(&bytes[header.clone()]).unwrap();
                    let places: Vec<usize> = text.match_indices("thinker.").map(|(at, _)| at).collect();
                    bytes[header.start + rng.pick(&places) + rng.below(8)] = b'_';
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
            10 => self.edit_json("config.json", |config, rng| {
                let size = config.pointer_mut(rng.pick::<&str>(&SIZES)).unwrap();
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
            }),
            // A size that is not there.
            11 => self.edit_json("config.json", |config, rng| {
                let (parent, key) = rng.pick(&SIZES).rsplit_once('/').unwrap();
                config.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
            }),
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
                let path = self.shard();
                self.edit(&path, |bytes, rng| {
                    let start = header(bytes).end;
                    let at = start + rng.below((bytes.len() - start) / 2) * 2;
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

#[test]
fn every_corruption_is_refused_with_file_and_cause() {
    let good = sharded();
    let out = tempfile::tempdir().unwrap();
    convert(good.path(), out.path()).unwrap();
    let files = |dir: &Path| -> Vec<PathBuf> { std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect() };
    files(out.path()).iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let n_kinds = (0..).find(|&kind| {
        let probe = sharded();
        !Corruption { dir: probe.path(), rng: Rng::new(0) }.make(kind)
    });
    for seed in 0..N_CORRUPTIONS {
        files(dir.path()).iter().for_each(|path| std::fs::remove_file(path).unwrap());
        for path in files(good.path()) {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let kind = seed % n_kinds.unwrap();
        Corruption { dir: dir.path(), rng: Rng::new(seed as u64) }.make(kind);
        let Err(failure) = convert(dir.path(), out.path()) else { panic!("kind {kind}, seed {seed}: a success") };
        let text = format!("{failure:#}");
        assert_eq!(failure.kind(), ErrorKind::Model, "kind {kind}, seed {seed}: {text}");
        let cause = text.strip_prefix(&*dir.path().to_string_lossy()).unwrap_or_else(|| panic!("no file: {text}"));
        assert!(cause.len() > 10 && !text.contains('\n') && text.len() < 1000, "kind {kind}, seed {seed}: {text}");
        assert!(files(out.path()).is_empty(), "kind {kind}, seed {seed}: files are left");
    }
}
