//! Sound inside of AVI files and MPEG transport streams.

use models::audio::{Decoded, decode_bytes, media_container};
use tests::avi::{self, format};
use tests::ts;

use crate::audio::fixture;

/// Samples of a frame of AAC and of MPEG layer 2, and their rate in the fixtures.
const AAC_SAMPLES: usize = 1024;
const MP2_SAMPLES: usize = 1152;
const RATE_HZ: u32 = 16_000;
/// Bytes of the header of ADTS, and of every frame of the fixture of layer 2.
const ADTS_HEADER: usize = 7;
const MP2_BYTES: usize = 864;

fn fixture_bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(&format!("formats/{name}"))).unwrap()
}

/// The frames of the fixture of AAC in ADTS.
pub fn aac_frames() -> Vec<Vec<u8>> {
    let bytes = fixture_bytes("aac.aac");
    let mut rest = &bytes[..];
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let n = usize::from(rest[3] & 3) << 11 | usize::from(rest[4]) << 3 | usize::from(rest[5] >> 5);
        frames.push(rest[..n].to_vec());
        rest = &rest[n..];
    }
    frames
}

/// The frames of the fixture of layer 2.
pub fn mp2_frames() -> Vec<Vec<u8>> {
    fixture_bytes("mp2.mp2").chunks_exact(MP2_BYTES).map(<[u8]>::to_vec).collect()
}

fn seconds(n_samples: usize) -> f64 {
    n_samples as f64 / f64::from(RATE_HZ)
}

/// Streams of a transport stream: sound of the fixtures from a time on.
pub fn aac(start_s: f64) -> ts::Stream {
    ts::Stream::new(0x0f, start_s, seconds(AAC_SAMPLES), aac_frames())
}

pub fn mp2(start_s: f64) -> ts::Stream {
    ts::Stream::new(0x03, start_s, seconds(MP2_SAMPLES), mp2_frames())
}

/// Pictures that nobody decodes.
pub fn film(start_s: f64) -> ts::Stream {
    ts::Stream::new(0x1b, start_s, 0.04, vec![vec![0x55; 300]; 24])
}

fn read(what: &str, file: &[u8]) -> Decoded {
    decode_bytes(what, file).unwrap_or_else(|e| panic!("{e}"))
}

fn error(file: &[u8]) -> String {
    decode_bytes("clip", file).unwrap_err().to_string()
}

/// A clip without losses that has the samples of a fixture.
fn is_whole(what: &str, file: &[u8], container: &str, codec: &str, want: &str) -> Decoded {
    let clip = read(what, file);
    assert_eq!((clip.container, clip.codec, clip.losses.len()), (container, codec, 0), "{what}");
    assert!(clip.samples == read(want, &fixture_bytes(want)).samples, "{what}: {} samples", clip.samples.len());
    clip
}

#[test]
fn sound_of_transport_streams_is_that_of_its_frames() {
    for (lead, tail) in [(0, 0), (4, 0), (0, 16)] {
        let file = ts::file(&[film(1.4), aac(1.4)], lead, tail).bytes;
        assert_eq!(media_container(&file[..4096]), Some("mpeg-ts"));
        let clip = is_whole("aac", &file, "mpeg-ts", "aac", "aac.aac");
        assert_eq!((clip.start_s, clip.track), (0.0, None));
        is_whole("mp2", &ts::file(&[mp2(0.0)], lead, tail).bytes, "mpeg-ts", "mp2", "mp2.mp2");
    }
    // From the middle of a packet on, and from before the tables.
    let file = ts::file(&[mp2(0.0)], 0, 0).bytes;
    is_whole("cut", &[&[0x55; 100], &file[..]].concat(), "mpeg-ts", "mp2", "mp2.mp2");
    // Frames of any number in a packet, or with a part of the next one.
    for n_per_packet in [1, 20] {
        is_whole(
            "packets",
            &ts::file(&[ts::Stream { n_per_packet, ..aac(0.0) }], 0, 0).bytes,
            "mpeg-ts",
            "aac",
            "aac.aac",
        );
    }
    let bytes = mp2_frames().concat();
    let pieces = bytes.chunks(MP2_BYTES + 10).map(<[u8]>::to_vec).collect();
    let unaligned = ts::Stream { n_per_packet: 1, ..ts::Stream::new(0x03, 0.0, seconds(MP2_SAMPLES), pieces) };
    is_whole("unaligned", &ts::file(&[unaligned], 0, 0).bytes, "mpeg-ts", "mp2", "mp2.mp2");
}

#[test]
fn sound_that_starts_late_starts_late_also_where_the_clock_begins_anew() {
    // The clock begins anew after 2^33 / 90000 s.
    for start_s in [0.0, 95_443.0, 95_441.5] {
        let clip = read("late", &ts::file(&[film(start_s), mp2(start_s + 2.5)], 0, 0).bytes);
        assert!((clip.start_s - 2.5).abs() < 1e-4, "{start_s}: {}", clip.start_s);
        assert_eq!((clip.losses.len(), clip.samples.len()), (0, 13 * MP2_SAMPLES));
        let early = read("early", &ts::file(&[film(start_s + 2.5), mp2(start_s)], 0, 0).bytes);
        assert_eq!(early.start_s, 0.0);
    }
}

#[test]
fn packets_that_are_lost_are_silence_where_they_were() {
    let file = ts::file(&[film(0.0), mp2(0.0)], 0, 0);
    let whole = read("whole", &file.bytes).samples;
    let sound: Vec<usize> = file.payload.iter().filter(|(i, _)| *i == 1).map(|(_, at)| at.start / 188 * 188).collect();
    // A packet inside of the fifth frame: that is gone, or those beside it too.
    let mut lost = file.bytes.clone();
    lost.drain(sound[21]..sound[21] + 188);
    let mut marked = file.bytes.clone();
    marked[sound[21] + 1] |= 0x80;
    let mut moved = file.bytes.clone();
    moved.splice(sound[21]..sound[21], [0; 77]);
    for (what, file, most) in [("lost", &lost, 1), ("marked", &marked, 1), ("in the way", &moved, 0)] {
        let clip = read(what, file);
        assert_eq!(clip.samples.len(), whole.len(), "{what}");
        let n: f64 = clip.losses.iter().map(|l| l.seconds()).sum();
        assert!((n - most as f64 * seconds(MP2_SAMPLES)).abs() < 1e-3, "{what}: {:?}", clip.losses);
        let differ = |i: &usize| clip.samples[*i] != whole[*i];
        let (first, last) = ((0..whole.len()).find(differ), (0..whole.len()).rfind(differ));
        let frame = |i: Option<usize>| i.map(|i| i / MP2_SAMPLES);
        // The decoder's filter bank remembers the frame before.
        let want = if most == 0 { (None, None) } else { (Some(4), Some(5)) };
        assert_eq!((frame(first), frame(last)), want, "{what}");
    }
    // Three frames, in so many packets that their counter seems to stand.
    let mut lost = file.bytes.clone();
    for at in sound[15..30].iter().rev() {
        lost.drain(*at..at + 188);
    }
    let clip = read("frames", &lost);
    let [loss] = &clip.losses[..] else { panic!("{:?}", clip.losses) };
    assert_eq!((clip.samples.len(), loss.what.as_str()), (whole.len(), "packets are missing"));
    assert!((loss.seconds() - 3.0 * seconds(MP2_SAMPLES)).abs() < 1e-3, "{loss:?}");
    // A packet that is there twice is read once.
    let mut twice = file.bytes.clone();
    twice.splice(sound[21]..sound[21], file.bytes[sound[21]..sound[21] + 188].to_vec());
    is_whole("twice", &twice, "mpeg-ts", "mp2", "mp2.mp2");
    // A stream that was cut gives what there is of it.
    let cut = read("cut", &file.bytes[..file.bytes.len() * 2 / 3]);
    assert!(cut.samples[..] == whole[..cut.samples.len()] && cut.samples.len() > whole.len() / 2);
}

#[test]
fn a_time_that_is_damaged_moves_nothing_and_a_pause_is_none_lost() {
    let mut file = ts::file(&[film(0.0), aac(0.0)], 0, 0);
    let whole = read("whole", &file.bytes).samples;
    let time = file.bytes.windows(9).rposition(|w| w == [0, 0, 1, 0xc0, 0, 0, 0x80, 0x80, 5]).unwrap() + 9;
    for (byte, bit) in [(4, 4), (1, 3), (1, 7), (0, 2)] {
        file.bytes[time + byte] ^= 1 << bit;
        let clip = read("damaged", &file.bytes);
        assert!(clip.samples == whole && clip.losses.is_empty(), "{byte}, {bit}: {:?}", clip.losses);
        file.bytes[time + byte] ^= 1 << bit;
    }
    // Sound that pauses for two seconds, without a packet lost.
    let mut parts = aac_frames();
    let later = parts.split_off(6);
    let stream = |start_s, frames| ts::Stream::new(0x0f, start_s, seconds(AAC_SAMPLES), frames);
    let first = ts::file(&[stream(0.0, parts)], 0, 0).bytes;
    let mut second = ts::file(&[stream(6.0 * seconds(AAC_SAMPLES) + 2.0, later)], 0, 0).bytes;
    // Counters go on.
    let last = first[first.len() - 185] & 0xf;
    for packet in second.chunks_exact_mut(188).filter(|p| p[2] == 1 && p[1] & 0x1f == 1) {
        packet[3] = packet[3] & 0xf0 | (packet[3] + last + 1) & 0xf;
    }
    let clip = read("pause", &[first, second].concat());
    assert_eq!((clip.samples.len(), clip.losses.len()), (whole.len() + 2 * RATE_HZ as usize, 0));
    assert!(clip.samples[6 * AAC_SAMPLES..][..2 * RATE_HZ as usize].iter().all(|&x| x == 0.0));
}

#[test]
fn what_transport_streams_hold_is_named() {
    let other = |kind: u8, descriptors: &[u8]| ts::Stream {
        descriptors: descriptors.to_vec(),
        ..ts::Stream::new(kind, 0.0, 0.032, vec![vec![0; 200]; 9])
    };
    for (kind, descriptors, codec) in [
        (0x81, &b""[..], "ac3"),
        (0x06, b"\x6a\x01\0", "ac3"),
        (0x06, b"\x0a\x04eng\0\x7a\x01\0", "eac3"),
        (0x06, b"\x7b\x05\0\0\0\0\0", "dts"),
        (0x06, b"\x05\x04Opus", "opus"),
        (0x06, b"\x05\x04BSSD", "pcm (smpte 302m)"),
        (0x11, b"", "aac (latm)"),
        (0x87, b"", "eac3"),
    ] {
        let file = ts::file(&[film(0.0), other(kind, descriptors)], 0, 0).bytes;
        let e = decode_bytes("clip", &file).unwrap_err();
        let want = format!("clip: codec {codec} is not supported (container mpeg-ts; there is no decoder)");
        assert_eq!(e.to_string(), want);
        assert!(e.kind.is_convertible());
        // The next track is taken instead.
        let clip = read("two", &ts::file(&[film(0.0), other(kind, descriptors), aac(0.0)], 0, 0).bytes);
        let track = clip.track.unwrap();
        assert_eq!((track.index, track.codec, track.left_out), (2, "aac", vec![codec.to_string()]));
    }
    let many = ts::Stream { frames: aac_frames().into_iter().map(six_channels).collect(), ..aac(0.0) };
    let refused = "codec AAC, 6 channels is not supported (container mpeg-ts; AAC is decoded with one or two)";
    assert_eq!(error(&ts::file(&[many], 0, 0).bytes), format!("clip: {refused}"));
    let silent = "clip: no audio track (container mpeg-ts; tracks: video h264, unknown)";
    assert_eq!(error(&ts::file(&[film(0.0), other(0x06, b"\x56\0")], 0, 0).bytes), silent);
    let untold = [&[0x47, 0x41, 0, 0x10][..], &[0; 184]].concat().repeat(9);
    assert_eq!(error(&untold), "clip: cannot be read: no table says what its streams are");
}

/// A frame in ADTS that says that it has six channels.
fn six_channels(mut frame: Vec<u8>) -> Vec<u8> {
    frame[2] |= 1;
    frame[3] = frame[3] & 0x3f | 0x80;
    frame
}

/// The sound of a WAV file of the fixtures: its samples, in chunks of so many bytes.
fn wav_chunks(name: &str, n: usize) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(fixture(name)).unwrap();
    let data = bytes.windows(4).position(|w| w == b"data").unwrap() + 8;
    bytes[data..].chunks(n).map(<[u8]>::to_vec).collect()
}

/// Plain samples of the fixture `yes.wav`.
pub fn plain() -> avi::Stream {
    avi::Stream::sound(format(1, 1, RATE_HZ, 2, 16, &[]), RATE_HZ, 2, wav_chunks("audio/yes.wav", 1280))
}

/// Layer 2, a frame in a chunk.
pub fn mp2_chunks() -> avi::Stream {
    let sound = avi::Stream::sound(format(0x50, 1, RATE_HZ, 1152, 0, &[]), RATE_HZ, 0, mp2_frames());
    avi::Stream { scale: MP2_SAMPLES as u32, ..sound }
}

/// Pictures of odd lengths.
pub fn pictures() -> avi::Stream {
    avi::Stream::film(vec![vec![0x55; 333]; 22])
}

#[test]
fn sound_of_avi_files_is_that_of_its_chunks() {
    let source = read("yes.wav", &std::fs::read(fixture("audio/yes.wav")).unwrap()).samples;
    for file in [avi::file(&[plain()]), avi::file(&[pictures(), plain()]), avi::file_in_parts(&[pictures(), plain()])] {
        assert_eq!(media_container(&file), Some("avi"));
        let clip = read("plain", &file);
        assert!(clip.samples == source && clip.losses.is_empty() && clip.track.is_none(), "{:?}", clip.losses);
        assert_eq!((clip.container, clip.codec, clip.start_s), ("avi", "pcm_s16le", 0.0));
    }
    for file in [avi::file(&[pictures(), mp2_chunks()]), avi::file_in_parts(&[mp2_chunks(), pictures()])] {
        is_whole("mp2", &file, "avi", "mp2", "mp2.mp2");
    }
    // A constant bit rate, in chunks that begin anywhere.
    let bytes = fixture_bytes("stereo_44k.mp3");
    let chunks = bytes.chunks(501).map(<[u8]>::to_vec).collect();
    let mp3 = avi::Stream::sound(format(0x55, 2, 44_100, 1, 0, &[0; 12]), 8000, 1, chunks);
    is_whole("mp3", &avi::file(&[pictures(), mp3]), "avi", "mp3", "stereo_44k.mp3");
    for (name, tag, rest, codec) in
        [("adpcm_ima.wav", 0x11, &[0xf9, 0x07][..], "adpcm_ima_wav"), ("adpcm_ms.wav", 0x02, &[0; 32], "adpcm_ms")]
    {
        let header = fixture_bytes(name);
        let block = u16::from_le_bytes([header[32], header[33]]);
        let chunks = wav_chunks(&format!("formats/{name}"), block.into());
        let whole = chunks.into_iter().filter(|c| c.len() == usize::from(block)).collect();
        let sound = avi::Stream::sound(format(tag, 1, RATE_HZ, block, 4, rest), RATE_HZ, block.into(), whole);
        let clip = read(name, &avi::file(&[pictures(), sound]));
        let want = read(name, &header).samples;
        assert!(clip.samples[..] == want[..clip.samples.len()], "{name}");
        assert_eq!((clip.codec, clip.samples.len() / 2048), (codec, want.len() / 2048));
    }
    // AAC, with and without headers of its own.
    let frames = aac_frames();
    let bare = frames.iter().map(|f| f[ADTS_HEADER..].to_vec()).collect();
    for (tag, chunks) in [(0xff, bare), (0x1600, frames)] {
        let sound = avi::Stream::sound(format(tag, 1, RATE_HZ, 1, 16, &[0x14, 0x08]), RATE_HZ, 0, chunks);
        let sound = avi::Stream { scale: AAC_SAMPLES as u32, ..sound };
        is_whole("aac", &avi::file(&[pictures(), sound]), "avi", "aac", "aac.aac");
    }
}

#[test]
fn times_of_avi_files_are_those_of_their_headers_and_of_empty_chunks() {
    let late = avi::Stream { start: 2 * RATE_HZ, ..plain() };
    assert_eq!(read("late", &avi::file(&[pictures(), late])).start_s, 2.0);
    // 25 chunks of a frame each, with nothing in them.
    let empty = |n: usize, at: usize| {
        let mut stream = mp2_chunks();
        stream.chunks.splice(at..at, vec![Vec::new(); n]);
        stream.length += n as u32;
        read("empty", &avi::file(&[pictures(), stream]))
    };
    let late = empty(25, 0);
    assert!((late.start_s - 25.0 * seconds(MP2_SAMPLES)).abs() < 1e-6, "{}", late.start_s);
    assert_eq!((late.samples.len(), late.losses.len()), (13 * MP2_SAMPLES, 0));
    let pause = empty(25, 6);
    assert_eq!((pause.start_s, pause.samples.len(), pause.losses.len()), (0.0, 38 * MP2_SAMPLES, 0));
}

#[test]
fn avi_files_that_are_damaged_or_not_finished_are_read() {
    let whole = read("whole", &avi::file(&[pictures(), plain()])).samples;
    // A program that was stopped: no lengths, no index.
    let mut open = avi::file(&[pictures(), avi::Stream { length: 0, ..plain() }]);
    let movi = open.windows(4).position(|w| w == b"movi").unwrap();
    open[4..8].fill(0);
    open[movi - 4..movi].fill(0);
    open.truncate(open.len() - 40);
    let clip = read("open", &open);
    assert!(clip.samples == whole && clip.losses.is_empty());
    // A length, or a name, that is damaged costs its chunk; the header says how much is missing.
    let file = avi::file(&[pictures(), plain()]);
    let chunk =
        |tag: &[u8], n: usize| file.windows(4).enumerate().filter(|(_, w)| w == &tag).nth(n).map(|(at, _)| at).unwrap();
    for (at, byte, most) in [
        (chunk(b"01wb", 4) + 5, 0x33, 0),
        (chunk(b"01wb", 4) + 7, 0xff, 0),
        (chunk(b"00dc", 4) + 6, 0x01, 0),
        (chunk(b"01wb", 4) + 2, 0x00, 640),
        (chunk(b"01wb", 4), b'7', 640),
    ] {
        let mut damaged = file.clone();
        damaged[at] = byte;
        let clip = read("damaged", &damaged);
        let lost: f64 = clip.losses.iter().map(|l| l.seconds()).sum();
        assert_eq!(whole.len() - clip.samples.len(), most, "{at}");
        // Less than a tenth of a second at the end is not said.
        assert!((lost - seconds(most)).abs() < 0.1, "{at}: {:?}", clip.losses);
        let n = 4 * 640;
        assert!(clip.samples[..n] == whole[..n] && clip.samples.ends_with(&whole[n + most..]), "{at}");
    }
    let cut = read("cut", &file[..file.len() * 2 / 3]);
    let [loss] = &cut.losses[..] else { panic!("{:?}", cut.losses) };
    assert_eq!(loss.what, "the file ends early");
    assert!((loss.end_s - seconds(whole.len())).abs() < 1e-2 && cut.samples[..] == whole[..cut.samples.len()]);
}

#[test]
fn what_avi_files_hold_is_named() {
    let other = |tag: u16, n_channels: u16| {
        avi::Stream::sound(format(tag, n_channels, 48_000, 1, 0, &[]), 48_000, 1, vec![vec![0; 100]; 9])
    };
    for (tag, n_channels, sound) in [
        (0x2000, 6, "ac3, 6 channels"),
        (0x161, 2, "wma, 2 channels"),
        (0x2001, 1, "dts, 1 channel"),
        (0x674f, 2, "vorbis, 2 channels"),
        (0x1234, 2, "0x1234, 2 channels"),
    ] {
        let e = decode_bytes("clip", &avi::file(&[pictures(), other(tag, n_channels)])).unwrap_err();
        let want = format!("clip: codec {sound} is not supported (container avi; there is no decoder)");
        assert_eq!(e.to_string(), want);
        assert!(e.kind.is_convertible());
        let clip = read("two", &avi::file(&[pictures(), other(tag, n_channels), mp2_chunks()]));
        let track = clip.track.unwrap();
        assert_eq!((track.index, track.codec, track.left_out), (2, "mp2", vec![sound.to_string()]));
    }
    assert_eq!(error(&avi::file(&[pictures()])), "clip: no audio track (container avi; tracks: video test)");
    let headers = avi::file(&[plain()]);
    let movi = headers.windows(4).position(|w| w == b"movi").unwrap();
    assert_eq!(error(&headers[..movi]), "clip: cannot be read: no list of sound and pictures (movi)");
    assert_eq!(error(&headers[..movi + 4]), "clip: no samples");
}
