//! What samplers leave of logits, against the processors of transformers.

use models::sample::{Sampler, Sampling};
use serde_json::Value;

use crate::checkpoint::fixture;

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn probabilities_are_those_of_transformers() {
    let cases: Value = serde_json::from_slice(&std::fs::read(fixture("sampling/cases.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 30);
    for case in cases {
        let settings = &case["settings"];
        let number = |name: &str, default: f64| settings.get(name).map_or(default, |x| x.as_f64().unwrap()) as f32;
        let sampling = Sampling {
            temperature: number("temperature", 1.0),
            top_k: number("top_k", 0.0) as usize,
            top_p: number("top_p", 1.0),
            min_p: number("min_p", 0.0),
            repetition_penalty: number("repetition_penalty", 1.0),
            presence_penalty: number("presence_penalty", 0.0),
            seed: 0,
            ..Sampling::default()
        };
        let logits: Vec<f32> = floats(&case["logits"]).iter().map(|&x| x as f32).collect();
        let mut sampler = Sampler::new(sampling);
        floats(&case["prompt"]).iter().for_each(|&id| sampler.see(id as usize));
        for id in floats(&case["generated"]) {
            // Only this one can be chosen, and then it counts as generated.
            let only: Vec<f32> =
                (0..logits.len()).map(|i| if i as f64 == id { 0.0 } else { f32::NEG_INFINITY }).collect();
            assert_eq!(sampler.choose(&only), Ok(id as usize));
        }
        let mut got = vec![0.0; logits.len()];
        sampler.probabilities(&logits).unwrap().iter().for_each(|&(i, p)| got[i] = p);
        for (i, (got, want)) in got.iter().zip(floats(&case["probabilities"])).enumerate() {
            assert!((got - want).abs() <= 1e-6, "{settings}: {i}: want {want}, got {got}");
            assert_eq!(*got == 0.0, want == 0.0, "{settings}: {i}");
        }
    }
}
