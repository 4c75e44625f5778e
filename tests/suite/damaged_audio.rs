//! Audio files that were cut or changed: what is decoded and what is said to be lost are together what was announced, and
//! nothing panics, hangs or takes memory without bound.
//!
//! `TYMPAN_DAMAGE` raises the number of changes that each kind has.

use std::ops::Range;
use std::time::{Duration, Instant};

use models::audio::{AudioError, Decoded, Loss, decode_bytes};
use rayon::prelude::*;
use tests::alloc::measure;
use tests::mp4::index_first;
use tests::rng::Rng;
use tests::{avi, ts};

use crate::audio::{fixture, mutated};
use crate::{films, readers};

/// Changes of each kind: cuts, changes of the sound, half as many as changes anywhere.
const N_CHANGES: usize = 500;
/// How long a file may take. Only a hang or a flood of samples does.
const MAX_TIME: Duration = Duration::from_secs(2);
/// What a file may take, in bytes: far more than the clips here need.
const MAX_BYTES: usize = 200 << 20;
/// How exact lengths are, in seconds, beside one packet.
const TOLERANCE_S: f64 = 0.1;
/// A length is at most so many times what the bytes of the file could hold.
const MAX_STRETCH: f64 = 64.0;

/// Frames that a byte holds at most, by codec: a channel of plain samples; else what frames of silence take.
fn frames_per_byte(codec: &str) -> f64 {
    match codec {
        wide if ["s16", "s24", "s32", "f32", "f64"].iter().any(|width| wide.contains(width)) => 0.5,
        "adpcm_ms" | "adpcm_ima_wav" => 2.0,
        "mp2" | "mp3" => 48.0,
        "aac" | "vorbis" => 128.0,
        "flac" | "alac" => 512.0,
        _ => 1.0,
    }
}

/// What a header announces, so that it shows in a damaged file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Announced {
    /// Everything, of cut files and of files with changed sound.
    Always,
    /// The same, but in one field alone: of less than a part in 64 it is not believed.
    Alone,
    /// Of files with changed sound alone: a cut takes away what announces.
    WhenWhole,
    /// Nothing.
    Never,
}
use Announced::{Alone, Always, Never, WhenWhole};

/// A file, with what is known of it.
struct Subject {
    name: String,
    file: Vec<u8>,
    /// Bytes of sound; headers are before.
    sound: Range<usize>,
    /// Parts of them that are no headers either.
    payload: Vec<Range<usize>>,
    /// Seconds that the whole file has.
    whole_s: f64,
    announced: Announced,
    /// The longest packet, in seconds.
    packet_s: f64,
}

impl Subject {
    /// A file of the fixtures, whose sound begins `behind` bytes after `mark`.
    fn new(name: &str, mark: &[u8], behind: usize, announced: Announced, packet_s: f64) -> Self {
        let mut file = std::fs::read(fixture(&format!("formats/{name}"))).unwrap();
        if name.ends_with(".m4a") || name.ends_with(".mov") {
            file = index_first(&file);
        }
        let at = file.windows(mark.len()).position(|w| w == mark).unwrap() + mark.len() + behind;
        let sound = at..file.len();
        Self::of(name, file, sound, announced, packet_s)
    }

    fn of(name: &str, file: Vec<u8>, sound: Range<usize>, announced: Announced, packet_s: f64) -> Self {
        let payload = vec![sound.clone()];
        Self { name: name.into(), file, sound, payload, whole_s: 0.0, announced, packet_s }
    }

    /// Decodes a copy within the limits.
    fn decode(&self, file: &[u8], what: &str) -> Result<Decoded, AudioError> {
        let start = Instant::now();
        let name = &self.name;
        let (result, usage) = measure(|| decode_bytes(name, file));
        assert!(start.elapsed() < MAX_TIME, "{name}, {what}: {:?}", start.elapsed());
        assert!(usage.peak_bytes < MAX_BYTES, "{name}, {what}: {} bytes", usage.peak_bytes);
        match &result {
            Ok(clip) => {
                assert!(clip.samples.iter().all(|x| x.is_finite()), "{name}, {what}");
                let ordered = |l: &Loss| l.start_s <= l.end_s && !l.what.is_empty();
                assert!(clip.losses.iter().all(ordered), "{name}, {what}: {:?}", clip.losses);
                let limit = most_s(clip, file.len()).max(self.whole_s + TOLERANCE_S);
                assert!(end_s(clip) <= limit, "{name}, {what}: {} of at most {limit}, {:?}", end_s(clip), clip.losses);
            }
            Err(e) => {
                let message = e.to_string();
                assert!(message.starts_with(name) && message.lines().count() == 1, "{name}, {what}: {message}");
                // Offsets in fragments make the demuxer assert, which is caught.
                let panicked = message.contains("stopped on it") && !name.contains("fragmented");
                assert!(!panicked, "{name}, {what}: {message}");
            }
        }
        result
    }

    /// Decodes a copy whose sound and losses must be as long as the whole; more than half of the packets may be bad, and a
    /// floating point number may be none that can be heard.
    fn adds_up(&self, file: &[u8], what: &str) {
        match self.decode(file, what) {
            Ok(clip) => {
                let end = end_s(&clip);
                let alone = self.announced == Alone;
                let want = if alone { self.whole_s.min(most_s(&clip, file.len())) } else { self.whole_s };
                let (name, losses) = (&self.name, &clip.losses);
                let tolerance = TOLERANCE_S + self.packet_s;
                assert!((end - want).abs() < tolerance, "{name}, {what}: {end} of {want}, {losses:?}");
            }
            Err(e) => {
                let said = ["damaged: ", "ends early", "no samples", "want a number"]
                    .iter()
                    .any(|part| e.to_string().contains(part));
                assert!(said, "{what}: {e}");
            }
        }
    }

    fn check(mut self) {
        let start = Instant::now();
        let whole = self.decode(&self.file, "unchanged").unwrap();
        assert_eq!(whole.losses, [], "{}", self.name);
        self.whole_s = end_s(&whole);
        (0..n_changes()).into_par_iter().for_each(|i| self.check_one(i));
        println!("{}: {} changes of each kind in {:?}", self.name, n_changes(), start.elapsed());
    }

    /// A cut, a change of the sound and two changes anywhere.
    fn check_one(&self, i: usize) {
        let mut rng = Rng::named(&format!("{} {i}", self.name));
        let Range { start, end } = self.sound;
        let n = rng.below(end - start);
        let cut = &self.file[..start + n];
        let what = format!("cut {i} after {n} bytes of sound");
        match self.announced {
            Always | Alone => self.adds_up(cut, &what),
            WhenWhole | Never => drop(self.decode(cut, &what)),
        }
        let mut changed = self.file.clone();
        for _ in 0..=rng.below(8) {
            let part = rng.pick(&self.payload);
            changed[part.start + rng.below(part.len())] = rng.below(256) as u8;
        }
        match self.announced {
            Always | Alone | WhenWhole => self.adds_up(&changed, &format!("sound {i}")),
            Never => drop(self.decode(&changed, &format!("sound {i}"))),
        }
        for j in 0..2 {
            let anywhere = mutated(&self.file, &mut |n| rng.below(n));
            let _ = self.decode(&anywhere, &format!("anywhere {i}, {j}"));
        }
    }
}

/// The end of what was decoded or is said to be lost. What was lost in the middle is silence there.
fn end_s(clip: &Decoded) -> f64 {
    let decoded = clip.start_s + clip.samples.len() as f64 / f64::from(clip.rate_hz);
    clip.losses.iter().map(|l| l.end_s).fold(decoded, f64::max)
}

/// The longest that a file of so many bytes may be.
fn most_s(clip: &Decoded, n_bytes: usize) -> f64 {
    MAX_STRETCH * n_bytes as f64 * frames_per_byte(clip.codec) / f64::from(clip.rate_hz)
}

fn n_changes() -> usize {
    let asked = std::env::var("TYMPAN_DAMAGE").map_or(0, |number| number.parse().expect("a number"));
    N_CHANGES.max(asked)
}

#[test]
fn plain_samples_add_up() {
    for (name, mark, behind, announced) in [
        ("u8.wav", b"data", 4, Always),
        ("s32.wav", b"data", 4, Always),
        ("f32.wav", b"data", 4, Always),
        ("f64.wav", b"data", 4, Always),
        ("s24_left.wav", b"data", 4, Always),
        ("mulaw.wav", b"data", 4, Always),
        ("alaw.wav", b"data", 4, Always),
        ("streamed.wav", b"data", 4, WhenWhole),
        ("aiff.aiff", b"SSND", 12, Always),
        ("sowt.aifc", b"SSND", 12, Always),
        ("pcm.caf", b"data", 12, Alone),
        ("pcm.mov", b"mdat", 0, Always),
    ] {
        Subject::new(name, mark, behind, announced, 0.0).check();
    }
}

#[test]
fn plain_samples_of_other_containers_add_up() {
    for (name, file, n_sound_bytes) in readers::generated() {
        let sound = file.len() - n_sound_bytes..file.len();
        let announced = if name == "au" || name == "caf" { Alone } else { Always };
        Subject::of(name, file, sound, announced, 0.0).check();
    }
}

#[test]
fn adpcm_adds_up() {
    for name in ["adpcm_ms.wav", "adpcm_ima.wav"] {
        Subject::new(name, b"data", 4, Always, 2048.0 / 16_000.0).check();
    }
}

#[test]
fn mpeg_streams_add_up() {
    // Frames are counted, so that a changed frame header is a hole; without a tag nothing tells of a cut.
    Subject::new("mp3.mp3", b"Info", 1500, Always, 576.0 / 16_000.0).check();
    Subject::new("stereo_44k.mp3", &[0xff, 0xfb], 1500, WhenWhole, 1152.0 / 44_100.0).check();
    Subject::new("mp2.mp2", &[0xff], 600, WhenWhole, 1152.0 / 16_000.0).check();
}

#[test]
fn mp4_files_add_up() {
    Subject::new("aac.m4a", b"mdat", 0, Always, 1024.0 / 16_000.0).check();
    Subject::new("alac.m4a", b"mdat", 0, Always, 4096.0 / 16_000.0).check();
    // The index is behind the samples, or in pieces among them.
    Subject::new("with_video.mp4", b"ftyp", 40, Never, 1024.0 / 16_000.0).check();
    Subject::new("aac_fragmented.mp4", b"moof", 0, Never, 1024.0 / 16_000.0).check();
}

/// Identifier of a Matroska cluster.
const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];

/// Where the frames are in the simple blocks of a Matroska file. Source: RFC 9559, 5.1.3 and 10.2.
fn blocks(file: &[u8]) -> Vec<Range<usize>> {
    const SIMPLE_BLOCK: u8 = 0xa3;
    const BLOCK_HEADER: usize = 4;
    let size = |at: usize| {
        let n = file[at].leading_zeros() as usize + 1;
        let value =
            file[at + 1..at + n].iter().fold(u64::from(file[at]) & ((1 << (8 - n)) - 1), |v, &b| v << 8 | u64::from(b));
        (value as usize, n)
    };
    let starts = (0..file.len() - 4).filter(|&i| file[i..i + 4] == CLUSTER);
    let mut found = Vec::new();
    for start in starts {
        let (content, n) = size(start + 4);
        let mut at = start + 4 + n;
        // A cluster of unknown length has all ones.
        let end = at.saturating_add(content).min(file.len());
        while at < end {
            let (content, n) = size(at + 1);
            let body = at + 1 + n;
            if file[at] == SIMPLE_BLOCK {
                found.push(body + BLOCK_HEADER..body + content);
            }
            at = body + content;
        }
    }
    found
}

#[test]
fn matroska_files_add_up() {
    for (name, packet) in [("aac.mka", 1024.0), ("flac.mka", 4608.0), ("vorbis.webm", 2048.0)] {
        let mut subject = Subject::new(name, &CLUSTER, 12, Always, packet / 16_000.0);
        subject.payload = blocks(&subject.file);
        subject.sound.end = subject.payload[subject.payload.len() - 1].end;
        assert!(subject.payload.len() > 3, "{name}: {:?}", subject.payload);
        subject.check();
    }
}

#[test]
fn flac_and_ogg_add_up() {
    Subject::new("flac.flac", &[0xff, 0xf8], 0, Always, 4608.0 / 16_000.0).check();
    // The last page announces the length.
    for (name, packet) in [("vorbis_pages.ogg", 2048.0), ("flac_pages.ogg", 4608.0)] {
        let mut subject = Subject::new(name, b"OggS", 0, WhenWhole, packet / 16_000.0);
        let pages: Vec<usize> =
            (0..subject.file.len() - 4).filter(|&i| subject.file[i..].starts_with(b"OggS")).collect();
        assert!(pages.len() > 3, "{name}: {pages:?}");
        subject.sound = pages[2]..pages[pages.len() - 1];
        subject.payload = vec![subject.sound.clone()];
        subject.check();
    }
}

#[test]
fn avi_files_add_up() {
    let mp2_s = 1152.0 / 16_000.0;
    for (name, sound, announced, packet_s) in
        [("plain", films::plain(), Alone, 0.0), ("mp2", films::mp2_chunks(), Always, mp2_s)]
    {
        let chunks = sound.chunks.clone();
        let file = avi::file(&[films::pictures(), sound]);
        let movi = file.windows(4).position(|w| w == b"movi").unwrap() + 4;
        let place = |chunk: &Vec<u8>| {
            let at = file.windows(chunk.len()).position(|w| w == chunk).unwrap();
            at..at + chunk.len()
        };
        let payload = chunks.iter().map(place).collect();
        // An index comes last.
        let sound = movi..file.len() - 40;
        Subject { payload, ..Subject::of(&format!("{name}.avi"), file, sound, announced, packet_s) }.check();
    }
}

#[test]
fn transport_streams_add_up() {
    for (name, sound, lead, packet) in [
        ("mp2.ts", films::mp2(1.0), 0, 1152.0),
        ("aac.ts", films::aac(1.0), 0, 1024.0),
        ("aac.m2ts", films::aac(3.0), 4, 1024.0),
    ] {
        let file = ts::file(&[films::film(1.0), sound], lead, 0);
        let payload = file.payload.into_iter().filter(|(stream, _)| *stream == 1).map(|(_, at)| at).collect();
        // What is missing at the end is known up to a PES packet.
        let packet_s = 3.0 * packet / 16_000.0;
        let sound = 3 * ts::PACKET_BYTES..file.bytes.len();
        Subject { payload, ..Subject::of(name, file.bytes, sound, WhenWhole, packet_s) }.check();
    }
}

#[test]
fn other_streams_survive() {
    // ADTS announces nothing; the packet table of this CAF file is behind its sound.
    Subject::new("aac.aac", &[0xff], 100, Never, 1024.0 / 16_000.0).check();
    let mut caf = Subject::new("alac.caf", b"data", 12, WhenWhole, 4096.0 / 16_000.0);
    let table = caf.file.windows(4).position(|w| w == b"pakt").unwrap();
    caf.payload[0].end = table;
    caf.check();
}
