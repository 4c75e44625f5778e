//! Cues: their limits, their times, and what an independent parser reads of them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use subtp::srt::{SrtTimestamp, SubRip};
use subtp::vtt::{VttBlock, VttTimestamp, WebVtt};

use crate::run::{clip, command};

/// Samples of a WAV file of 16-bit mono at 16 kHz.
fn samples(name: &str) -> Vec<i16> {
    let wav = std::fs::read(clip(name)).unwrap();
    let data = wav.windows(4).position(|w| w == b"data").unwrap() + 8;
    wav[data..].as_chunks().0.iter().map(|&bytes| i16::from_le_bytes(bytes)).collect()
}

/// A recording of these clips with silence before and after each, in seconds, and when the sound of each begins and ends.
pub fn recording(folder: &Path, clips: &[&str], silence_s: f64) -> (PathBuf, Vec<[f64; 2]>) {
    let mut all = Vec::new();
    let mut spoken = Vec::new();
    let pause = vec![0i16; (silence_s * 16_000.0) as usize];
    for name in clips {
        all.extend(&pause);
        let samples = samples(name);
        // A twentieth of the clip's peak is sound.
        let peak = samples.iter().map(|x| x.unsigned_abs()).max().unwrap();
        let is_loud = |x: &i16| x.unsigned_abs() > peak / 20;
        let seconds = |i: usize| (all.len() + i) as f64 / 16_000.0;
        let ends = [samples.iter().position(is_loud), samples.iter().rposition(is_loud)];
        spoken.push(ends.map(|i| seconds(i.unwrap())));
        all.extend(samples);
    }
    all.extend(&pause);
    let n_bytes = u32::try_from(all.len() * 2).unwrap();
    let mut wav = b"RIFF".to_vec();
    wav.extend((n_bytes + 36).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data");
    wav.extend(n_bytes.to_le_bytes());
    wav.extend(all.iter().flat_map(|x| x.to_le_bytes()));
    let path = folder.join("recording.wav");
    std::fs::write(&path, wav).unwrap();
    (path, spoken)
}

/// A cue as a parser read it: milliseconds and lines.
#[derive(Clone, PartialEq, Debug)]
pub struct Cue {
    pub start: u64,
    pub end: u64,
    pub lines: Vec<String>,
}

fn run(flags: &[&str], input: &Path) -> String {
    let output = command(["transcribe", "-q"]).args(flags).arg(input).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Reads SRT.
pub fn of_srt(srt: &str) -> Vec<Cue> {
    let ms = |t: &SrtTimestamp| {
        ((u64::from(t.hours) * 60 + u64::from(t.minutes)) * 60 + u64::from(t.seconds)) * 1000
            + u64::from(t.milliseconds)
    };
    let parsed = SubRip::parse(srt).unwrap();
    let numbers: Vec<_> = parsed.subtitles.iter().map(|cue| cue.sequence).collect();
    assert_eq!(numbers, (1..=numbers.len() as u32).collect::<Vec<_>>());
    parsed.subtitles.iter().map(|c| Cue { start: ms(&c.start), end: ms(&c.end), lines: c.text.clone() }).collect()
}

/// Reads WebVTT.
pub fn of_vtt(vtt: &str) -> Vec<Cue> {
    let ms = |t: &VttTimestamp| {
        ((u64::from(t.hours) * 60 + u64::from(t.minutes)) * 60 + u64::from(t.seconds)) * 1000
            + u64::from(t.milliseconds)
    };
    let parsed = WebVtt::parse(vtt).unwrap();
    let cue = |block: &VttBlock| match block {
        VttBlock::Que(cue) => {
            Some(Cue { start: ms(&cue.timings.start), end: ms(&cue.timings.end), lines: cue.payload.clone() })
        }
        _ => None,
    };
    parsed.blocks.iter().filter_map(cue).collect()
}

/// Checks cues against the segments of the JSON: all of the text, within its segment, in order.
fn check(cues: &[Cue], segments: &[Value], [max_columns, max_lines, max_ms]: [usize; 3]) {
    let ms = |seconds: &Value| (seconds.as_f64().unwrap() * 1000.0).round() as u64;
    let mut rest = cues;
    let mut earliest = 0;
    for segment in segments.iter().filter(|segment| segment["text"] != "") {
        let (start, end) = (ms(&segment["start"]), ms(&segment["end"]));
        let (cues, later) = rest.split_at(rest.partition_point(|cue| cue.end <= end));
        let text: Vec<String> = cues.iter().map(|cue| cue.lines.join(" ")).collect();
        assert_eq!(segment["text"], text.join(" "));
        for cue in cues {
            assert!(cue.start >= earliest.max(start) && cue.start < cue.end, "{cue:?} of {segment}");
            assert!(cue.end - cue.start <= max_ms as u64, "{cue:?}");
            assert!(
                cue.lines.len() <= max_lines && cue.lines.iter().all(|l| l.chars().count() <= max_columns),
                "{cue:?}"
            );
            earliest = cue.end;
        }
        rest = later;
    }
    assert_eq!(rest, []);
}

/// Fifty clips without silence between them: speech of a minute and a half.
const TALK: [&str; 5] = ["open_door.wav", "light_off.wav", "digits_eight.wav", "speech_to_text.wav", "long_9s.wav"];

#[test]
fn an_independent_parser_reads_cues_that_fit_a_screen() {
    let folder = tempfile::tempdir().unwrap();
    let talk: Vec<&str> = (0..20).map(|i| TALK[i % TALK.len()]).collect();
    let (long, _) = recording(folder.path(), &talk, 0.1);
    let run = |format, flags: &[&str]| run(&[&["--segment", "16", "-f", format], flags].concat(), &long);
    for (flags, limits) in [
        (&[][..], [42, 2, 7000]),
        (&["--max-line", "20"], [20, 2, 7000]),
        (&["--max-line", "32", "--max-lines", "3", "--max-cue", "4.5"], [32, 3, 4500]),
        (&["--max-lines", "1"], [42, 1, 7000]),
    ] {
        let document: Value = serde_json::from_str(&run("json", &[])).unwrap();
        let segments = document["segments"].as_array().unwrap();
        assert!(segments.len() > 3 && segments.iter().all(|s| s["timing"] == "estimated"), "{document}");
        let cues = of_srt(&run("srt", flags));
        check(&cues, segments, limits);
        assert_eq!(of_vtt(&run("vtt", flags)), cues);
        // The other formats have the same cues in a row each.
        let rows: Vec<String> =
            cues.iter().map(|cue| format!("{}\t{}\t{}", cue.start, cue.end, cue.lines.join(" "))).collect();
        let tsv = run("tsv", flags);
        assert_eq!(tsv.lines().collect::<Vec<_>>(), [&["start\tend\ttext".to_owned()], &rows[..]].concat());
        // The texts have neither commas nor quotes.
        let csv = run("csv", flags).replace("\r\n", "\n").replace('"', "");
        assert_eq!(csv, tsv.replace('\t', ","));
        let lrc = run("lrc", flags);
        let of_lrc = |line: &str| {
            let (time, text) = line.strip_prefix('[').unwrap().split_once(']').unwrap();
            let (minutes, seconds) = time.split_once(':').unwrap();
            let ms = minutes.parse::<u64>().unwrap() * 60_000 + seconds.replace('.', "").parse::<u64>().unwrap() * 10;
            (ms, text.to_owned())
        };
        let lyrics: Vec<_> = lrc.lines().skip(1).map(of_lrc).collect();
        let want: Vec<_> = cues.iter().map(|cue| (cue.start / 10 * 10, cue.lines.join(" "))).collect();
        assert_eq!(lyrics, want);
    }
}

#[test]
fn cues_are_when_speech_is() {
    let folder = tempfile::tempdir().unwrap();
    let clips = ["open_door.wav", "yes.wav", "light_off.wav"];
    let (path, spoken) = recording(folder.path(), &clips, 3.0);
    for segment in ["0", "6"] {
        let cues = of_srt(&run(&["-f", "srt", "--segment", segment], &path));
        assert_eq!(cues.len(), clips.len(), "{cues:?}");
        for (cue, [start, end]) in cues.iter().zip(&spoken) {
            let (early, late) = (start - cue.start as f64 / 1000.0, cue.end as f64 / 1000.0 - end);
            // Soft sounds around the loud ones are speech, and a cue lingers.
            assert!((-0.05..0.2).contains(&early) && (0.0..0.8).contains(&late), "{cue:?}: {start} to {end}");
        }
    }
}

#[test]
fn nothing_said_is_no_cue() {
    for (format, is_empty) in [("srt", ""), ("vtt", "WEBVTT")] {
        let written = run(&["-f", format], &clip("silence.wav"));
        assert!(written.starts_with(is_empty) && !written.contains("-->"), "{written}");
    }
    assert_eq!(run(&["-f", "srt"], &clip("silence.wav")), "");
    assert_eq!(run(&["-f", "tsv"], &clip("silence.wav")), "start\tend\ttext\n");
}
