//! What is lost of a file, and said: holes, cut ends, streams that change, tracks that are left out.

use models::audio::{Decoded, decode_bytes};
use tests::mp4::{index_first, movie_timescale, two_tracks, with_empty_edit};

use crate::audio::fixture;

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture(&format!("formats/{name}"))).unwrap()
}

fn decode(bytes: &[u8]) -> Decoded {
    decode_bytes("clip", bytes).unwrap_or_else(|e| panic!("{e}"))
}

fn seconds(clip: &Decoded) -> f64 {
    clip.samples.len() as f64 / f64::from(clip.rate_hz)
}

fn lost_s(clip: &Decoded) -> f64 {
    clip.losses.iter().map(|l| l.seconds()).sum()
}

#[track_caller]
fn near(got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance, "got {got}, want {want}");
}

#[test]
fn joined_mp3_files_are_read_to_the_end() {
    let (mono, stereo) = (read("mp3.mp3"), read("stereo_44k.mp3"));
    let id3 = b"ID3\x03\0\0\0\0\0\x14TIT2\0\0\0\x0a\0\0\0a chapter".to_vec();
    let id3v1 = [&b"TAG"[..], &[b' '; 125]].concat();
    let one = seconds(&decode(&mono));
    for between in [vec![], id3, id3v1] {
        let clip = decode(&[&mono[..], &between, &mono, &between, &mono].concat());
        near(seconds(&clip), 3.0 * one, 0.01);
        assert_eq!(clip.losses, []);
    }
    // Of another rate and another number of channels: at the reference rate, in their order.
    let both = decode(&[&mono[..], &stereo, &mono].concat());
    // The second has no tag, so that the padding before it is not known to be some.
    near(seconds(&both), 2.0 * one + seconds(&decode(&stereo)), 0.05);
    assert_eq!((both.rate_hz, both.losses.len()), (16_000, 0));
}

/// Offsets of the frames of an MP3 file, MPEG-2 and mono, the tag's first.
fn frames(file: &[u8]) -> Vec<usize> {
    let tag = file.windows(4).position(|w| w == b"Info").unwrap();
    let start = tag - 13;
    let is_header = |i: &usize| file[*i..*i + 2] == file[start..start + 2] && file[i + 3] == file[start + 3];
    (start..file.len() - 4).filter(is_header).collect()
}

#[test]
fn a_tag_that_counts_too_few_frames_ends_nothing() {
    let mut file = read("mp3.mp3");
    let whole = seconds(&decode(&file));
    let tag = file.windows(4).position(|w| w == b"Xing" || w == b"Info").unwrap();
    file[tag + 8..tag + 12].copy_from_slice(&3u32.to_be_bytes());
    // The padding is not known to be there, then.
    near(seconds(&decode(&file)), whole, 0.1);
}

#[test]
fn holes_in_mp3_files_are_silence_of_their_length() {
    let file = read("mp3.mp3");
    let whole = decode(&file);
    let frames = frames(&file);
    assert!(frames.len() > 12, "{frames:?}");
    let (from, to) = (frames[6], frames[10]);
    let mut damaged = file.clone();
    damaged[from..to].fill(0x55);
    let clip = decode(&damaged);
    near(seconds(&clip), seconds(&whole), 0.04);
    let frame_s = 576.0 / 16_000.0;
    near(lost_s(&clip), 4.0 * frame_s, 1.5 * frame_s);
    let [loss] = &clip.losses[..] else { panic!("{:?}", clip.losses) };
    assert!(loss.what.contains("no MPEG frames"), "{}", loss.what);
    let middle = (((loss.start_s + loss.end_s) / 2.0) * f64::from(clip.rate_hz)) as usize;
    assert!(clip.samples[middle - 100..middle + 100].iter().all(|x| *x == 0.0));
    // What follows is where it was.
    let after = clip.samples.len() - 2000;
    let error = (after..after + 1500).map(|i| (clip.samples[i] - whole.samples[i]).abs()).fold(0.0, f32::max);
    assert!(error < 1e-3, "{error}");
}

#[test]
fn mp3_files_that_end_before_their_tag_says_so_say_so() {
    let file = read("mp3.mp3");
    let whole = seconds(&decode(&file));
    let clip = decode(&file[..file.len() / 2]);
    near(seconds(&clip) + lost_s(&clip), whole, 0.14);
    assert!(lost_s(&clip) > 0.3, "{:?}", clip.losses);
}

#[test]
fn files_that_were_cut_give_their_beginning_and_say_what_is_missing() {
    let index_first = index_first(&read("aac.m4a"));
    // Names, files, and the bytes of long headers.
    for (name, file, header) in [
        ("aac.m4a", index_first, 0),
        ("aac.mka", read("aac.mka"), 0),
        ("flac.mka", read("flac.mka"), 0),
        ("flac.flac", read("flac.flac"), 8256),
        ("aiff.aiff", read("aiff.aiff"), 0),
        ("pcm.caf", read("pcm.caf"), 0),
        ("f32.wav", read("f32.wav"), 0),
        ("mulaw.wav", read("mulaw.wav"), 0),
    ] {
        let whole = seconds(&decode_bytes(name, &file).unwrap());
        for part in [0.5, 0.7] {
            let cut = decode_bytes(name, &file[..header + ((file.len() - header) as f64 * part) as usize]);
            let clip = cut.unwrap_or_else(|e| panic!("{part}: {e}"));
            assert!(seconds(&clip) > 0.2 * whole && seconds(&clip) < 0.95 * whole, "{name}: {}", seconds(&clip));
            let sum = seconds(&clip) + lost_s(&clip);
            assert!((sum - whole).abs() < 0.2, "{name}, {part}: {sum} of {whole}, {:?}", clip.losses);
        }
    }
}

#[test]
fn an_empty_edit_delays_the_sound() {
    let file = read("aac.m4a");
    let plain = decode(&file);
    assert_eq!(plain.start_s, 0.0);
    let clip = decode(&with_empty_edit(&file, 2500));
    near(clip.start_s, 2500.0 / f64::from(movie_timescale(&file)), 1e-9);
    assert_eq!(clip.samples, plain.samples);
}

#[test]
fn a_track_that_is_left_out_is_named() {
    let (ac3, aac) = (read("ac3.mp4"), read("aac.m4a"));
    let plain = decode(&aac).samples;
    let clip = decode(&two_tracks(&ac3, &aac));
    let track = clip.track.unwrap();
    assert_eq!((track.index, track.codec), (2, "aac"));
    assert_eq!(track.left_out, ["ac3"]);
    assert!(clip.samples == plain);
    // The second is not looked at where the first can be decoded.
    let track = decode(&two_tracks(&aac, &ac3)).track.unwrap();
    assert_eq!((track.index, track.codec, track.left_out.len()), (1, "aac", 0));
    assert_eq!(decode(&aac).track, None);
}

#[test]
fn chained_streams_of_another_rate_are_decoded() {
    let vorbis = read("vorbis.ogg");
    let one = decode(&vorbis);
    let clip = decode(&[vorbis.clone(), at_8_khz(&vorbis)].concat());
    assert_eq!((clip.rate_hz, clip.losses.len()), (16_000, 0));
    near(seconds(&clip), 3.0 * seconds(&one), 0.01);
}

/// An Ogg Vorbis stream with another rate in its first page, and a serial number of its own. Sources: RFC 3533, section 6;
/// Vorbis I specification, section 4.2.2.
fn at_8_khz(stream: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let n_segments = usize::from(rest[26]);
        let head = 27 + n_segments;
        let bytes = head + rest[27..head].iter().map(|&b| usize::from(b)).sum::<usize>();
        let (page, behind) = rest.split_at(bytes);
        let mut page = page.to_vec();
        page[14..18].copy_from_slice(b"next");
        if out.is_empty() {
            page[head + 12..head + 16].copy_from_slice(&8000u32.to_le_bytes());
        }
        page[22..26].fill(0);
        let crc = page.iter().fold(0u32, |crc, &byte| {
            let shift = |crc: u32| if crc >> 31 == 1 { (crc << 1) ^ 0x04c1_1db7 } else { crc << 1 };
            (0..8).fold(crc ^ u32::from(byte) << 24, |crc, _| shift(crc))
        });
        page[22..26].copy_from_slice(&crc.to_le_bytes());
        out.extend(page);
        rest = behind;
    }
    out
}
