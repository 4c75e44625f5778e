//! Speech to text.

use axum::http::{Method, header};
use engine::DType;
use models::audio::Audio;
use models::transcribe::{Request, Transcriber, Transcript};
use serde_json::{Value, json};

use crate::ask::{Asked, clip, computing, fixtures, form, options, request, speech};

/// Every clip of the fixtures, by name.
fn clips() -> Vec<(String, Vec<u8>)> {
    let mut clips = Vec::new();
    for folder in ["audio", "audio/fsdd"] {
        for entry in std::fs::read_dir(fixtures().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "wav") {
                clips.push((path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap()));
            }
        }
    }
    clips.sort();
    assert!(clips.len() >= 29, "{}", clips.len());
    clips
}

/// What the library makes of them, one at a time.
fn transcripts(clips: &[(String, Vec<u8>)]) -> Vec<Transcript> {
    let mut transcriber = Transcriber::open(speech(), &computing().backends, DType::F16).unwrap();
    let transcript = |(name, bytes): &(String, Vec<u8>)| {
        let audio = Audio::of_bytes(name, bytes, 3600).unwrap();
        let request = Request { start_s: audio.start_s, ..Request::default() };
        transcriber.transcribe(&audio.samples, &request, &mut ()).unwrap()
    };
    clips.iter().map(transcript).collect()
}

#[test]
fn clips_have_the_texts_of_the_library_one_at_a_time_and_eight_at_once() {
    let clips = clips();
    let want = transcripts(&clips);
    let asked = Asked::open(speech(), serve::Options { n_slots: 8, ..options() });
    for ((name, bytes), want) in clips.iter().zip(&want) {
        let got = asked.transcribe(&[("response_format", "verbose_json")], Some(bytes)).expect(200).json();
        assert_eq!(got["text"], want.text, "{name}");
        let ids: Vec<Value> = want.segments.iter().map(|segment| json!(segment.token_ids)).collect();
        let got: Vec<Value> = got["segments"].as_array().unwrap().iter().map(|s| s["tokens"].clone()).collect();
        assert_eq!(got, ids, "{name}");
    }
    for (at_once, want) in clips.chunks(8).zip(want.chunks(8)) {
        let requests = at_once.iter().map(|(_, bytes)| {
            let (content_type, body) = form(&[], Some(bytes));
            request(Method::POST, "/v1/audio/transcriptions", &content_type, body)
        });
        for (((name, _), want), got) in at_once.iter().zip(want).zip(asked.all(requests.collect())) {
            assert_eq!(got.expect(200).json()["text"], want.text, "{name}");
        }
    }
}

#[test]
fn every_format_says_the_same() {
    let asked = Asked::speech();
    let bytes = clip("long_24s.wav");
    let ask = |format| asked.transcribe(&[("response_format", format)], Some(&bytes)).expect(200);
    let plain = ask("json").json();
    let text = plain["text"].as_str().unwrap();
    assert!(text.split(' ').count() > 20, "{text}");
    assert_eq!(plain["usage"]["type"], "tokens");
    let same = |other: &str| other.split_whitespace().collect::<Vec<_>>() == text.split(' ').collect::<Vec<_>>();
    let answer = ask("text");
    assert_eq!(answer.headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    assert!(same(answer.text()) && answer.text().ends_with('\n'), "{}", answer.text());
    for (format, content_type, head) in
        [("srt", "application/x-subrip", "1\n00:00:"), ("vtt", "text/vtt; charset=utf-8", "WEBVTT\n\n")]
    {
        let answer = ask(format);
        assert_eq!(answer.headers[header::CONTENT_TYPE], content_type);
        assert!(answer.text().starts_with(head), "{}", answer.text());
        let is_text = |line: &&str| {
            !line.contains("-->")
                && !line.contains("WEBVTT")
                && !line.starts_with("NOTE")
                && line.parse::<u32>().is_err()
        };
        assert!(same(&answer.text().lines().filter(is_text).collect::<Vec<_>>().join(" ")), "{}", answer.text());
    }
    let verbose = ask("verbose_json").json();
    assert_eq!((&verbose["text"], &verbose["task"]), (&plain["text"], &json!("transcribe")));
    assert_eq!(verbose["language"], "english");
    let segments = verbose["segments"].as_array().unwrap();
    assert!(segments.len() > 1);
    for segment in segments {
        let logprob = segment["avg_logprob"].as_f64().unwrap();
        assert!((-1.0..0.0).contains(&logprob), "{segment}");
        assert!(segment["no_speech_prob"].is_null() && segment["compression_ratio"].is_null());
    }
    assert_eq!(segments.last().unwrap()["end"], verbose["duration"]);
}

#[test]
fn streams_say_what_whole_answers_say() {
    let asked = Asked::speech();
    let bytes = clip("long_24s.wav");
    let want = asked.transcribe(&[], Some(&bytes)).expect(200).json();
    let events = asked.transcribe(&[("stream", "true")], Some(&bytes)).expect(200).events();
    let (last, deltas) = events.split_last().unwrap();
    assert!(deltas.len() > 10 && deltas.iter().all(|event| event["type"] == "transcript.text.delta"));
    let text: String = deltas.iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(text, want["text"]);
    assert_eq!((&last["type"], &last["text"]), (&json!("transcript.text.done"), &want["text"]));
    assert_eq!(last["usage"], want["usage"]);

    let fields = [("response_format", "streaming_verbose_json")];
    let events = asked.transcribe(&fields, Some(&bytes)).expect(200).events();
    let (last, tokens) = events.split_last().unwrap();
    let mut text = String::new();
    for token in tokens {
        assert_eq!(token["byte_offset"], text.len());
        text.push_str(token["token"].as_str().unwrap());
    }
    assert_eq!((&json!(text), &last["done"], &last["text"]), (&want["text"], &json!(true), &want["text"]));
    let starts: Vec<u64> = tokens.iter().map(|token| token["audio_ms"].as_u64().unwrap()).collect();
    assert!(starts.is_sorted() && starts[0] == 0 && *starts.last().unwrap() > 8000, "{starts:?}");
}

#[test]
fn fields_are_obeyed_or_refused_by_name() {
    let asked = Asked::speech();
    let bytes = clip("yes.wav");
    let ask = |fields: &[(&str, &str)]| asked.transcribe(fields, Some(&bytes));
    let text = |fields: &[(&str, &str)]| ask(fields).expect(200).json()["text"].clone();
    let plain = text(&[]);
    assert_eq!(text(&[("language", "en"), ("temperature", "0"), ("model", "x"), ("unheard", "of")]), plain);
    assert_eq!(text(&[("language", "auto"), ("prompt", ""), ("chunking_strategy", "auto")]), plain);
    let cut = ask(&[("max_tokens", "1")]).expect(200).json();
    assert_eq!(cut["truncated"], true);
    for (fields, status, param) in [
        (&[("language", "Klingon")][..], 400, "language"),
        (&[("response_format", "xml")], 400, "response_format"),
        (&[("temperature", "3")], 400, "temperature"),
        (&[("temperature", "x")], 400, "temperature"),
        (&[("temperature", "0.5")], 501, "temperature"),
        (&[("max_tokens", "0")], 400, "max_tokens"),
        (&[("stream", "maybe")], 400, "stream"),
        (&[("stream", "true"), ("response_format", "srt")], 400, "stream"),
        (&[("timestamp_granularities[]", "word"), ("response_format", "verbose_json")], 400, "timestamp_granularities"),
        (&[("timestamp_granularities[]", "segment")], 400, "timestamp_granularities"),
        (&[("include[]", "logprobs")], 501, "include"),
        (&[("chunking_strategy", "{\"type\":\"server_vad\"}")], 501, "chunking_strategy"),
    ] {
        let answer = ask(fields).expect(status);
        let want = if status == 501 { "not_supported_error" } else { "invalid_request_error" };
        assert_eq!(answer.error(), (want.to_owned(), json!(param)), "{fields:?}");
    }
    let whisper = |fields: &[(&str, &str)]| {
        let (content_type, body) = form(fields, Some(&bytes));
        asked.ask(request(Method::POST, "/inference", &content_type, body))
    };
    let usual =
        [("temperature", "0.0"), ("temperature_inc", "0.2"), ("response_format", "json"), ("translate", "false")];
    assert_eq!(whisper(&usual).expect(200).json()["text"], plain);
    assert_eq!(whisper(&[("translate", "true")]).expect(501).error().1, "translate");
}

#[test]
fn recordings_that_are_none_are_the_clients_fault() {
    let asked = Asked::open(speech(), serve::Options { max_audio_s: 20, max_upload_bytes: 1 << 20, ..options() });
    for (file, status, param) in
        [(None, 400, "file"), (Some(&b""[..]), 400, "file"), (Some(b"not a recording, whatever it says"), 400, "file")]
    {
        assert_eq!(asked.transcribe(&[], file).expect(status).error().1, param);
    }
    // 24 s are too long, and a body of 2 MiB is too large.
    assert_eq!(asked.transcribe(&[], Some(&clip("long_24s.wav"))).expect(413).error().0, "invalid_request_error");
    assert_eq!(asked.transcribe(&[], Some(&vec![0; 2 << 20])).expect(413).error().0, "invalid_request_error");
    let ask = |content_type: &str, body: &str| {
        asked.ask(request(Method::POST, "/v1/audio/transcriptions", content_type, body.to_owned()))
    };
    ask("application/json", "{}").expect(415);
    ask("multipart/form-data", "").expect(415);
    ask("multipart/form-data; boundary=x", "--x\r\nbroken").expect(400);
    ask("multipart/form-data; boundary=x", "").expect(400);
    // Damaged files give what is left of them, and say so.
    let mut cut = clip("long_9s.wav");
    cut.truncate(cut.len() / 2);
    let answer = asked.transcribe(&[], Some(&cut)).expect(200).json();
    assert!(answer["damaged"][0]["end"].as_f64().unwrap() > 4.0, "{answer}");
}

#[test]
fn other_formats_are_heard_too() {
    let asked = Asked::speech();
    for name in ["flac.flac", "mp3.mp3", "vorbis.ogg", "aac.m4a", "aiff.aiff"] {
        let bytes = std::fs::read(fixtures().join("formats").join(name)).unwrap();
        let answer = asked.transcribe(&[], Some(&bytes)).expect(200).json();
        assert!(answer["usage"]["input_token_details"]["audio_tokens"].as_u64().unwrap() > 0, "{name}: {answer}");
    }
}
