//! Audio files that were cut or changed: what is decoded and what is said to be lost are together what was announced, and
//! nothing panics, hangs or takes memory without bound.
//!
//! A tenth of the changes runs by default. `TYMPAN_DAMAGE` sets how many each kind has, or is `full`.

use std::ops::Range;
use std::time::{Duration, Instant};

use models::audio::{AudioError, Decoded, decode_bytes};
use tests::alloc::measure;
use tests::mp4::index_first;
use tests::rng::Rng;

use crate::audio::{fixture, mutated};

/// Changes of each kind: cuts, changes of the sound, half as many as changes anywhere.
const N_CHANGES: usize = 500;
/// The share of them that runs by default is one in so many.
const SHARE: usize = 10;
/// How long a file may take. Only a hang or a flood of samples does.
const MAX_TIME: Duration = Duration::from_secs(2);
/// What a file may take, in bytes: far more than the clips here need.
const MAX_BYTES: usize = 200 << 20;
/// A tenth of a second and the longest packet of the files here, 4608 samples of FLAC at 16 kHz.
const TOLERANCE_S: f64 = 0.1 + 0.288;

/// A file, with what is known of it.
struct Subject {
    name: &'static str,
    file: Vec<u8>,
    /// Bytes of sound; headers are before.
    sound: Range<usize>,
    /// The length shows in what is there: of cut files, of files with changed sound.
    announced: [bool; 2],
}

impl Subject {
    fn new(name: &'static str, mark: &[u8], behind: usize, announced: [bool; 2]) -> Self {
        let mut file = std::fs::read(fixture(&format!("formats/{name}"))).unwrap();
        if name.ends_with(".m4a") {
            file = index_first(&file);
        }
        let at = file.windows(mark.len()).position(|w| w == mark).unwrap() + mark.len() + behind;
        let sound = at..file.len();
        Self { name, file, sound, announced }
    }

    /// Decodes a copy within the limits.
    fn decode(&self, file: &[u8], what: &str) -> Result<Decoded, AudioError> {
        let start = Instant::now();
        let (result, usage) = measure(|| decode_bytes(self.name, file));
        let name = self.name;
        assert!(start.elapsed() < MAX_TIME, "{name}, {what}: {:?}", start.elapsed());
        assert!(usage.peak_bytes < MAX_BYTES, "{name}, {what}: {} bytes", usage.peak_bytes);
        match &result {
            Ok(clip) => {
                assert!(clip.samples.iter().all(|x| x.is_finite()), "{name}, {what}");
                let ordered = |l: &models::audio::Loss| l.start_s <= l.end_s && !l.what.is_empty();
                assert!(clip.losses.iter().all(ordered), "{name}, {what}: {:?}", clip.losses);
            }
            Err(e) => {
                let message = e.to_string();
                assert!(message.starts_with(name) && message.lines().count() == 1, "{name}, {what}: {message}");
                assert!(!message.contains("stopped on it"), "{name}, {what}: {message}");
            }
        }
        result
    }

    /// Decodes a copy whose sound and losses must be as long as `whole_s`; more than half of the packets may be bad.
    fn adds_up(&self, file: &[u8], whole_s: f64, what: &str) {
        match self.decode(file, what) {
            Ok(clip) => {
                let end = end_s(&clip);
                let (name, losses) = (self.name, &clip.losses);
                assert!((end - whole_s).abs() < TOLERANCE_S, "{name}, {what}: {end} of {whole_s}, {losses:?}");
            }
            Err(e) => assert!(e.to_string().contains("damaged: ") || e.to_string().contains("ends early"), "{e}"),
        }
    }
}

/// The end of what was decoded or is said to be lost. What was lost in the middle is silence there.
fn end_s(clip: &Decoded) -> f64 {
    let decoded = clip.start_s + clip.samples.len() as f64 / f64::from(clip.rate_hz);
    clip.losses.iter().map(|l| l.end_s).fold(decoded, f64::max)
}

fn n_changes() -> usize {
    match std::env::var("TYMPAN_DAMAGE").as_deref() {
        Err(_) => N_CHANGES.div_ceil(SHARE),
        Ok("full") => N_CHANGES,
        Ok(number) => number.parse().expect("a number, or full"),
    }
}

fn check(subject: &Subject) {
    let whole = subject.decode(&subject.file, "unchanged").unwrap();
    assert_eq!(whole.losses, [], "{}", subject.name);
    let whole_s = end_s(&whole);
    let mut rng = Rng::named(subject.name);
    let Range { start, end } = subject.sound;
    for i in 0..n_changes() {
        let cut = &subject.file[..start + rng.below(end - start)];
        if subject.announced[0] {
            subject.adds_up(cut, whole_s, &format!("cut {i}"));
        } else {
            let _ = subject.decode(cut, &format!("cut {i}"));
        }
        let mut changed = subject.file.clone();
        for _ in 0..=rng.below(8) {
            changed[start + rng.below(end - start)] = rng.below(256) as u8;
        }
        if subject.announced[1] {
            subject.adds_up(&changed, whole_s, &format!("sound {i}"));
        } else {
            let _ = subject.decode(&changed, &format!("sound {i}"));
        }
        for j in 0..2 {
            let anywhere = mutated(&subject.file, &mut |n| rng.below(n));
            let _ = subject.decode(&anywhere, &format!("anywhere {i}, {j}"));
        }
    }
}

#[test]
fn plain_samples_add_up() {
    for (name, mark, behind) in
        [("s32.wav", b"data", 4), ("mulaw.wav", b"data", 4), ("aiff.aiff", b"SSND", 12), ("sowt.aifc", b"SSND", 12)]
    {
        check(&Subject::new(name, mark, behind, [true, true]));
    }
}

#[test]
fn mpeg_streams_add_up() {
    // Frames are counted, so that a changed frame header is a hole; without a tag nothing tells of a cut.
    check(&Subject::new("mp3.mp3", b"Info", 1500, [true, true]));
    check(&Subject::new("stereo_44k.mp3", &[0xff, 0xfb], 1500, [false, true]));
    check(&Subject::new("mp2.mp2", &[0xff], 600, [false, true]));
}

#[test]
fn mp4_files_add_up() {
    check(&Subject::new("aac.m4a", b"mdat", 4, [true, true]));
    check(&Subject::new("alac.m4a", b"mdat", 4, [true, true]));
    check(&Subject::new("pcm.mov", b"mdat", 4, [false, false]));
}

#[test]
fn matroska_files_add_up() {
    check(&Subject::new("aac.mka", &[0x1f, 0x43, 0xb6, 0x75], 40, [true, false]));
    check(&Subject::new("vorbis.webm", &[0x1f, 0x43, 0xb6, 0x75], 40, [true, false]));
}

#[test]
fn other_containers_survive() {
    check(&Subject::new("pcm.caf", b"data", 12, [true, true]));
    check(&Subject::new("flac.flac", &[0xff, 0xf8], 0, [true, false]));
    check(&Subject::new("aac.aac", &[0xff], 100, [false, false]));
    check(&Subject::new("vorbis.ogg", b"OggS", 4000, [false, false]));
}
