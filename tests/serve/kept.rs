//! What the encoder made of a clip is kept for when the clip comes again.

use serde_json::{Value, json};

use crate::ask::{Asked, clip, encoded, metric, options, speech};

const CLIPS: [&str; 5] = ["yes.wav", "digits_short.wav", "open_door.wav", "light_off.wav", "digits_eight.wav"];

/// Clips that were found, that were not, and calls of the encoder.
fn counts(asked: &Asked) -> (usize, usize, usize) {
    (
        metric(asked, "audio_cache_hits_total"),
        metric(asked, "audio_cache_misses_total"),
        metric(asked, "n_encode_total"),
    )
}

fn transcript(asked: &Asked, bytes: &[u8]) -> Value {
    let mut json = asked.transcribe(&[("response_format", "verbose_json")], Some(bytes)).expect(200).json();
    json["timings"].take();
    json
}

#[test]
fn a_clip_that_comes_again_is_not_encoded_again_and_says_the_same() {
    let asked = Asked::speech();
    let bytes = clip("long_24s.wav");
    let want = transcript(&asked, &bytes);
    let n_segments = want["segments"].as_array().unwrap().len();
    let (hits, misses, n_encode) = counts(&asked);
    assert!(n_segments > 2 && (hits, misses) == (0, n_segments) && n_encode >= n_segments);
    assert_eq!(transcript(&asked, &bytes), want);
    assert_eq!(counts(&asked), (n_segments, misses, n_encode));
    // In a conversation too, and beside another prompt: neither is anything that the encoder sees.
    let part = json!({"type": "input_audio", "input_audio": {"data": encoded(&bytes)}});
    let body = json!({"messages": [{"role": "user", "content": [part]}]});
    let chat = asked.post("/v1/chat/completions", &body).expect(200).json();
    assert_eq!(chat["choices"][0]["message"]["content"], want["text"]);
    asked.transcribe(&[("prompt", "five"), ("language", "en")], Some(&bytes)).expect(200);
    assert_eq!(counts(&asked), (3 * n_segments, misses, n_encode));
    // The same sound in another file is the same; one sample that differs is another.
    let mut padded = bytes.clone();
    padded.extend_from_slice(b"LIST\x04\0\0\0xxxx");
    assert_eq!(transcript(&asked, &padded)["text"], want["text"]);
    assert_eq!(counts(&asked), (4 * n_segments, misses, n_encode));
    let mut other = clip("yes.wav");
    transcript(&asked, &other);
    let at = other.len() / 2;
    other[at] ^= 0x7f;
    transcript(&asked, &other);
    let (hits, misses_now, n_encode_now) = counts(&asked);
    assert_eq!((hits, misses_now, n_encode_now), (4 * n_segments, misses + 2, n_encode + 2));
}

#[test]
fn what_is_kept_is_bounded_and_the_newest_stay() {
    let asked = Asked::speech();
    let bytes: Vec<Vec<u8>> = CLIPS.iter().map(|name| clip(name)).collect();
    let want: Vec<Value> = bytes.iter().map(|bytes| transcript(&asked, bytes)).collect();
    let all = metric(&asked, "audio_cache_bytes");
    let most = all * 6 / 10;
    let small = Asked::open(speech(), serve::Options { audio_cache_bytes: most, ..options() });
    for _ in 0..4 {
        for (bytes, want) in bytes.iter().zip(&want) {
            assert_eq!(transcript(&small, bytes), *want);
            assert!(metric(&small, "audio_cache_bytes") <= most);
        }
    }
    // Full, and in turns none is there when it is asked for again; at once it is.
    assert!(metric(&small, "audio_cache_bytes") > most / 2);
    assert_eq!(metric(&small, "audio_cache_hits_total"), 0);
    transcript(&small, bytes.last().unwrap());
    assert_eq!(metric(&small, "audio_cache_hits_total"), 1);

    let none = Asked::open(speech(), serve::Options { audio_cache_bytes: 0, ..options() });
    for _ in 0..2 {
        assert_eq!(transcript(&none, &bytes[0]), want[0]);
    }
    assert_eq!((metric(&none, "audio_cache_hits_total"), metric(&none, "audio_cache_bytes")), (0, 0));
}

#[test]
fn what_is_kept_counts_as_memory() {
    let memory = |audio_cache_bytes| {
        let options = serve::Options { audio_cache_bytes, ..options() };
        serve::Memory::of(speech(), &crate::ask::computing(), &options).unwrap()
    };
    assert_eq!(memory(5000).fixed(), memory(0).fixed() + 5000);
}
