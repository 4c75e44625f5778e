//! Audio encoders with several clips in one call: each clip's embeddings, and what is said in it, are those it has alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::batch::{Features, Tokens};
use engine::parallel::Serial;
use engine::session::{Session, SessionOptions};
use models::LoadOptions;
use models::audio::{self, MelSpectrogram};
use models::sample::greedy;
use models::tokenizer::Tokenizer;
use serde_json::Value;
use tests::compare::nmse;
use tests::rng::Rng;
use tests::sessions::session_options;

use crate::checkpoint::{converted, fixture};

/// Rate of the models' samples.
const RATE_HZ: u32 = 16_000;
/// Sums in another order, where calls of few rows take other kernels.
const CLOSE_NMSE: f64 = 1e-10;
/// Ids of an answer that are compared.
const N_IDS: usize = 48;
/// Calls of several clips for each model.
const ROUNDS: usize = 6;
/// Most clips of a call.
const MAX_CLIPS: usize = 8;
/// Seconds of the clips that the f64 interpreter encodes.
const SHORT_S: usize = 3;

/// A speech model and the features of the clips.
struct Speech {
    loaded: models::Loaded,
    prompt: models::speech::Prompt,
    clips: Vec<(String, audio::Features)>,
}

impl Speech {
    fn open(model: &str) -> Self {
        let file = converted(&fixture("models").join(model), FileType::F32);
        let loaded = models::load(vec![file], LoadOptions::default()).unwrap();
        let tokenizer = Tokenizer::from_gguf(&loaded.files[0]).unwrap();
        let format = loaded.arch.speech_format(&tokenizer).unwrap();
        let mel = MelSpectrogram::new(format.mel(loaded.model.encoder().unwrap().n_mels)).unwrap();
        let prompt = format.prompt(&tokenizer, "", None).unwrap();
        let features = |name: String| {
            let features = mel.compute(&samples(&name), &Serial).unwrap();
            (name, features)
        };
        let clips = names(model).into_iter().map(features).collect();
        Self { loaded, prompt, clips }
    }

    fn session(&self, backend: &Arc<dyn Backend>) -> Session {
        let options = SessionOptions { n_ctx: 1024, kv_dtype: DType::F32, ..session_options() };
        let backends = std::slice::from_ref(backend);
        Session::open(Arc::clone(&self.loaded.model), &self.loaded.weights, backends, options).unwrap()
    }

    /// The first ids that follow a clip.
    fn answer(&self, s: &mut Session, embeddings: &[f32]) -> Vec<u32> {
        let n_audio = embeddings.len() / self.loaded.model.n_embd();
        let signed = |ids: &[u32]| ids.iter().map(|id| id.cast_signed()).collect::<Vec<_>>();
        let prompt = [signed(&self.prompt.before), vec![-1; n_audio], signed(&self.prompt.after)].concat();
        let slot = s.memory_mut().acquire().unwrap();
        let pick = |logits: &[f32]| u32::try_from(greedy(logits).unwrap()).unwrap();
        let mut ids = vec![pick(s.feed(slot, Tokens::Mixed { ids: &prompt, embeddings }).unwrap())];
        while ids.len() < N_IDS {
            ids.push(pick(s.feed(slot, Tokens::Ids(&ids[ids.len() - 1..])).unwrap()));
        }
        s.memory_mut().release(slot);
        ids
    }
}

/// The clips that the official implementations were asked about.
pub fn names(model: &str) -> Vec<String> {
    let all: Value = serde_json::from_slice(&std::fs::read(fixture("audio/reference.json")).unwrap()).unwrap();
    let by_implementation = all[model].as_object().unwrap().values().next().unwrap();
    let names: Vec<String> = by_implementation["clips"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(names.len(), 29);
    names
}

fn samples(name: &str) -> Vec<f32> {
    let path: PathBuf = fixture("audio").join(Path::new(name));
    let clip = audio::decode_file(&path).unwrap();
    let mut samples = audio::resample(clip.samples, clip.rate_hz, RATE_HZ);
    audio::normalize(&mut samples);
    samples
}

fn input(clip: &audio::Features) -> Features<'_> {
    Features { n_mels: clip.n_mels, n_frames: clip.n_frames, values: &clip.values }
}

fn backend(name: &str) -> Arc<dyn Backend> {
    backends::open(name, &backends::Options::default()).unwrap()
}

const MODELS: [&str; 2] = ["tiny-qwen3-asr", "tiny-lfm2-audio"];

/// Random clips in random order, 2 to [`MAX_CLIPS`] of them.
fn company(rng: &mut Rng, among: &[usize]) -> Vec<usize> {
    let mut rest = among.to_vec();
    let n = 2 + rng.below(MAX_CLIPS - 1);
    (0..n.min(rest.len())).map(|_| rest.swap_remove(rng.below(rest.len()))).collect()
}

#[test]
fn every_clip_in_company_says_what_it_says_alone() {
    for model in MODELS {
        let speech = Speech::open(model);
        let mut s = speech.session(&backend("cpu"));
        let all: Vec<usize> = (0..speech.clips.len()).collect();
        let mut alone: Vec<Option<(Vec<f32>, Vec<u32>)>> = vec![None; all.len()];
        let mut rng = Rng::named(model);
        for _ in 0..ROUNDS {
            let chosen = company(&mut rng, &all);
            let inputs: Vec<Features<'_>> = chosen.iter().map(|&i| input(&speech.clips[i].1)).collect();
            let together = s.encode(&inputs).unwrap();
            let together: Vec<Vec<f32>> = (0..chosen.len()).map(|k| together.clip(k).to_vec()).collect();
            for (&i, got) in chosen.iter().zip(&together) {
                let (name, features) = &speech.clips[i];
                let want = alone[i].get_or_insert_with(|| {
                    let embeddings = s.encode(&[input(features)]).unwrap().clip(0).to_vec();
                    let ids = speech.answer(&mut s, &embeddings);
                    (embeddings, ids)
                });
                let error = nmse(got, &want.0);
                assert!(error <= CLOSE_NMSE, "{model} {name} among {chosen:?}: {error:e}");
                assert_eq!(speech.answer(&mut s, got), want.1, "{model} {name} among {chosen:?}");
            }
        }
    }
}

#[test]
fn clips_in_company_have_the_same_bits_in_f64_arithmetic() {
    for model in MODELS {
        let speech = Speech::open(model);
        let mut s = speech.session(&backend("reference"));
        let short = |&i: &usize| speech.clips[i].1.n_frames <= SHORT_S * 100;
        let short: Vec<usize> = (0..speech.clips.len()).filter(short).collect();
        let mut rng = Rng::named(model);
        for _ in 0..2 {
            let chosen = company(&mut rng, &short);
            let inputs: Vec<Features<'_>> = chosen.iter().map(|&i| input(&speech.clips[i].1)).collect();
            let together = s.encode(&inputs).unwrap();
            let together: Vec<Vec<f32>> = (0..chosen.len()).map(|k| together.clip(k).to_vec()).collect();
            for (&i, got) in chosen.iter().zip(&together) {
                let want = s.encode(&[input(&speech.clips[i].1)]).unwrap();
                assert!(got[..] == *want.clip(0), "{model} {} among {chosen:?}", speech.clips[i].0);
            }
        }
    }
}

#[test]
fn nan_in_one_clip_changes_no_bit_of_another() {
    for model in MODELS {
        let speech = Speech::open(model);
        let mut s = speech.session(&backend("cpu"));
        // Lengths that fill their last chunk and lengths that do not, before and behind the clip of NaN.
        let lengths = [100, 37, 61, 104, 96];
        let longest = &speech.clips.iter().max_by_key(|(_, clip)| clip.n_frames).unwrap().1;
        let clips: Vec<audio::Features> = lengths.iter().map(|&n| cut(longest, n)).collect();
        for poisoned in 0..clips.len() {
            let mut bad = clips[poisoned].clone();
            bad.values.fill(f32::NAN);
            let sound: Vec<Features<'_>> = clips.iter().map(input).collect();
            let mut mixed = sound.clone();
            mixed[poisoned] = input(&bad);
            let want = s.encode(&sound).unwrap();
            let want: Vec<Vec<f32>> = (0..clips.len()).map(|k| want.clip(k).to_vec()).collect();
            let got = s.encode(&mixed).unwrap();
            for (k, want) in want.iter().enumerate() {
                let is_nan = got.clip(k).iter().any(|v| v.is_nan());
                assert_eq!(is_nan, k == poisoned, "{model}: clip {k} beside NaN in {poisoned}");
                assert!(k == poisoned || got.clip(k) == want, "{model}: clip {k} beside NaN in {poisoned}");
            }
        }
    }
}

/// The first frames of a clip.
fn cut(clip: &audio::Features, n_frames: usize) -> audio::Features {
    let bands = clip.values.chunks_exact(clip.n_frames);
    let values = bands.flat_map(|band| band[..n_frames].to_vec()).collect();
    audio::Features { values, n_frames, ..clip.clone() }
}
