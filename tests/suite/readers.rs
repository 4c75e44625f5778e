//! Plain samples behind the headers that programs write: WAV and its relatives, AIFF, AU, CAF, QuickTime.

use models::audio::{Decoded, decode_bytes, media_container};
use tests::alloc::measure;

use crate::audio::{fixture, wav};

/// Frames of every file made here, and their rate.
const N_FRAMES: usize = 4000;
const RATE_HZ: u32 = 8000;

/// A ramp of 16-bit values, all of them different.
fn ramp() -> Vec<i16> {
    (0..N_FRAMES as i16).map(|i| i * 8 - 16_000).collect()
}

/// The ramp as every reader must give it.
fn want() -> Vec<f32> {
    ramp().iter().map(|&x| f32::from(x) / 32768.0).collect()
}

/// The ramp in `width` bytes, as often as there are channels.
fn data(width: usize, big_endian: bool, n_channels: usize) -> Vec<u8> {
    let sample = |x: i16| {
        let mut bytes = vec![0; width - 2];
        bytes.extend(x.to_le_bytes());
        if big_endian {
            bytes.reverse();
        }
        bytes.repeat(n_channels)
    };
    ramp().into_iter().flat_map(sample).collect()
}

fn read(what: &str, file: &[u8]) -> Decoded {
    let clip = decode_bytes(what, file).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(clip.rate_hz, RATE_HZ, "{what}");
    clip
}

fn is_whole(what: &str, file: &[u8], codec: &str) {
    let clip = read(what, file);
    assert_eq!(clip.codec, codec, "{what}");
    assert!(clip.samples == want(), "{what}");
    assert_eq!(clip.losses, [], "{what}");
}

/// The fields of a PCM format chunk.
fn format(tag: u16, n_channels: u16, bits: u16) -> Vec<u8> {
    let block = n_channels * bits.div_ceil(8);
    let mut fmt = [tag.to_le_bytes(), n_channels.to_le_bytes()].concat();
    fmt.extend(RATE_HZ.to_le_bytes());
    fmt.extend((RATE_HZ * u32::from(block)).to_le_bytes());
    fmt.extend(block.to_le_bytes());
    fmt.extend(bits.to_le_bytes());
    fmt
}

fn chunk(tag: &[u8; 4], size: u32, body: &[u8]) -> Vec<u8> {
    [&tag[..], &size.to_le_bytes(), body].concat()
}

fn riff(outer: &[u8; 4], chunks: &[Vec<u8>]) -> Vec<u8> {
    let body = chunks.concat();
    [&outer[..], &(body.len() as u32 + 4).to_le_bytes(), b"WAVE", &body].concat()
}

fn sized(tag: &[u8; 4], body: &[u8]) -> Vec<u8> {
    chunk(tag, body.len() as u32, body)
}

/// Files of the containers that are made here, with their names and the bytes of their samples, which come last.
pub fn generated() -> Vec<(&'static str, Vec<u8>, usize)> {
    let (little, big) = (data(2, false, 1), data(2, true, 1));
    let n = little.len();
    let fmt = sized(b"fmt ", &format(1, 1, 16));
    let rf64 = |outer: &[u8; 4]| {
        let ds64 = [(n as u64 + 72).to_le_bytes(), (n as u64).to_le_bytes(), (N_FRAMES as u64).to_le_bytes()].concat();
        riff(outer, &[sized(b"ds64", &[ds64, vec![0; 4]].concat()), fmt.clone(), chunk(b"data", u32::MAX, &little)])
    };
    let bytes = big.len() as u32;
    vec![
        ("rf64", rf64(b"RF64"), n),
        ("bw64", rf64(b"BW64"), n),
        ("wave64", wave64(&little), n),
        ("rifx", rifx(16, 1, &big), n),
        ("aiff-c", aiff(b"NONE", 16, &big, [bytes + 42, N_FRAMES as u32, bytes + 8]), n),
        ("au", au(3, bytes, &big), n),
        ("caf", caf(b"lpcm", [0, 2, 1, 16], announced(&big), &big), n),
    ]
}

#[test]
fn format_chunks_of_any_length_are_read() {
    for n in [0, 2, 4, 8, 12, 24, 40] {
        let fmt = [format(1, 1, 16), vec![0; n]].concat();
        let file = riff(b"RIFF", &[sized(b"JUNK", &[1; 10]), sized(b"fmt ", &fmt), sized(b"data", &data(2, false, 1))]);
        is_whole(&format!("format chunk of {} bytes", 16 + n), &file, "pcm_s16le");
    }
}

#[test]
fn samples_of_odd_widths_fill_their_bytes_from_the_top() {
    for (bits, width) in [(12, 2), (14, 2), (20, 3), (24, 3), (32, 4)] {
        let file = wav_of(bits, width, 1);
        let clip = read("odd width", &file);
        assert!(clip.samples == want(), "{bits} bits");
    }
    // 20 and 24 bits in four bytes, as the block length says.
    for bits in [20, 24] {
        let mut fmt = format(1, 1, bits);
        fmt[12..14].copy_from_slice(&4u16.to_le_bytes());
        let file = riff(b"RIFF", &[sized(b"fmt ", &fmt), sized(b"data", &data(4, false, 1))]);
        is_whole("four bytes", &file, "pcm_s32le");
    }
}

fn wav_of(bits: u16, width: usize, n_channels: u16) -> Vec<u8> {
    let data = data(width, false, n_channels.into());
    riff(b"RIFF", &[sized(b"fmt ", &format(1, n_channels, bits)), sized(b"data", &data)])
}

#[test]
fn any_number_of_channels_is_mixed() {
    for n_channels in [1, 2, 3, 7, 18, 19, 32, 50, 64] {
        is_whole("plain", &wav_of(16, 2, n_channels), "pcm_s16le");
        // Extensible, with masks that name none, one and all channels.
        for mask in [0u32, 4, u32::MAX] {
            let mut fmt = format(0xfffe, n_channels, 16);
            fmt.extend(22u16.to_le_bytes());
            fmt.extend(16u16.to_le_bytes());
            fmt.extend(mask.to_le_bytes());
            fmt.extend(b"\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71");
            let file = riff(b"RIFF", &[sized(b"fmt ", &fmt), sized(b"data", &data(2, false, n_channels.into()))]);
            is_whole("extensible", &file, "pcm_s16le");
        }
    }
    let error = decode_bytes("clip", &wav_of(16, 2, 65)).unwrap_err().to_string();
    assert_eq!(error, "clip: 65 channels, want 1 to 64");
}

#[test]
fn announced_lengths_of_streams_are_no_loss() {
    let data = data(2, false, 1);
    for size in [0, 0x7fff_f000, 0x7fff_ffff - 36, 0x8000_0000, 0x8000_0024, 0xffff_fffe, 0xffff_ffdb, u32::MAX] {
        let file = riff(b"RIFF", &[sized(b"fmt ", &format(1, 1, 16)), chunk(b"data", size, &data)]);
        is_whole(&format!("{size:#x}"), &file, "pcm_s16le");
    }
    // What is announced and is not a placeholder is missing.
    let file = riff(b"RIFF", &[sized(b"fmt ", &format(1, 1, 16)), chunk(b"data", 2 * data.len() as u32, &data)]);
    let clip = read("cut", &file);
    let [loss] = &clip.losses[..] else { panic!("{:?}", clip.losses) };
    assert_eq!((loss.start_s, loss.end_s, loss.what.as_str()), (0.5, 1.0, "the file ends early"));
}

#[test]
fn relatives_of_wav_are_read() {
    let data = data(2, false, 1);
    for outer in [b"RF64", b"BW64"] {
        for long in [data.len() as u64, u64::MAX, 0] {
            let ds64 = [0u64.to_le_bytes(), long.to_le_bytes(), [0; 8], [0; 8]].concat();
            let rest = [sized(b"fmt ", &format(1, 1, 16)), chunk(b"data", u32::MAX, &data)];
            let file = riff(outer, &[&[sized(b"ds64", &ds64[..28])][..], &rest].concat());
            is_whole(&format!("{} {long}", outer.escape_ascii()), &file, "pcm_s16le");
        }
    }
    // A chunk behind the samples is none of them.
    let ds64 = [0u64.to_le_bytes(), (data.len() as u64).to_le_bytes(), [0; 8]].concat();
    let tail = sized(b"LIST", b"INFOISFT\x04\0\0\0test");
    let parts = [sized(b"ds64", &ds64), sized(b"fmt ", &format(1, 1, 16)), chunk(b"data", u32::MAX, &data), tail];
    is_whole("RF64 with a tail", &riff(b"RF64", &parts), "pcm_s16le");

    is_whole("Wave64", &wave64(&data), "pcm_s16le");
}

/// A Wave64 file of 16-bit samples.
fn wave64(data: &[u8]) -> Vec<u8> {
    let w64 = |tag: &[u8; 4], guid: &[u8; 12], body: &[u8]| {
        let mut bytes = [&tag[..], guid, &(body.len() as u64 + 24).to_le_bytes(), body].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let chunk_guid = b"\xf3\xac\xd3\x11\x8c\xd1\0\xc0\x4f\x8e\xdb\x8a";
    let mut body = [&b"wave"[..], chunk_guid].concat();
    body.extend(w64(b"junk", chunk_guid, &[7; 13]));
    body.extend(w64(b"fmt ", chunk_guid, &format(1, 1, 16)));
    body.extend(w64(b"data", chunk_guid, data));
    w64(b"riff", b"\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0", &body)
}

/// A RIFX file of these samples.
fn rifx(bits: u16, n_channels: u16, data: &[u8]) -> Vec<u8> {
    let block = n_channels * bits / 8;
    let mut file = [b"RIFX", &(data.len() as u32 + 36).to_be_bytes()[..], b"WAVEfmt "].concat();
    file.extend(16u32.to_be_bytes());
    file.extend([1u16.to_be_bytes(), n_channels.to_be_bytes()].concat());
    file.extend([RATE_HZ.to_be_bytes(), (RATE_HZ * u32::from(block)).to_be_bytes()].concat());
    file.extend([block.to_be_bytes(), bits.to_be_bytes()].concat());
    file.extend(b"data");
    file.extend((data.len() as u32).to_be_bytes());
    file.extend(data);
    file
}

#[test]
fn rifx_is_riff_with_the_highest_byte_first() {
    for (bits, width, codec) in [(16, 2, "pcm_s16be"), (24, 3, "pcm_s24be"), (32, 4, "pcm_s32be")] {
        is_whole(codec, &rifx(bits, 2, &data(width, true, 2)), codec);
    }
}

/// An AIFF-C file with these lengths; `kind` names the samples.
fn aiff(kind: &[u8; 4], bits: u16, data: &[u8], [form, frames, sound]: [u32; 3]) -> Vec<u8> {
    let mut common = 1u16.to_be_bytes().to_vec();
    common.extend(frames.to_be_bytes());
    common.extend(bits.to_be_bytes());
    common.extend(b"\x40\x0b\xfa\0\0\0\0\0\0\0");
    common.extend(kind);
    common.extend([0, 0]);
    let mut file = [b"FORM", &form.to_be_bytes()[..], b"AIFC"].concat();
    for (tag, size, body) in
        [(b"COMM", common.len() as u32, &common[..]), (b"SSND", sound, &[&[0; 8][..], data].concat())]
    {
        file.extend(tag);
        file.extend(size.to_be_bytes());
        file.extend(body);
    }
    file
}

#[test]
fn aiff_files_with_wrong_lengths_are_read() {
    let big = data(2, true, 1);
    let (n, bytes) = (N_FRAMES as u32, big.len() as u32 + 8);
    for lengths in
        [[bytes + 42, n, bytes], [0, n, bytes], [bytes + 4242, n, bytes], [9, n, bytes + 4000], [u32::MAX, 0, u32::MAX]]
    {
        is_whole(&format!("{lengths:?}"), &aiff(b"NONE", 16, &big, lengths), "pcm_s16be");
    }
    is_whole("pipe", &aiff(b"NONE", 16, &big, [0, 0, 0]), "pcm_s16be");
    for (kind, bits, width, big_endian, codec) in [
        (b"twos", 24, 3, true, "pcm_s24be"),
        (b"sowt", 16, 2, false, "pcm_s16le"),
        (b"in24", 24, 3, true, "pcm_s24be"),
        (b"in32", 32, 4, true, "pcm_s32be"),
    ] {
        let data = data(width, big_endian, 1);
        let lengths = [0, n, data.len() as u32 + 8];
        is_whole(codec, &aiff(kind, bits, &data, lengths), codec);
    }
    // A file that was cut gives its beginning and says how much is missing.
    let whole = aiff(b"NONE", 16, &big, [0, n, bytes]);
    let clip = read("cut", &whole[..whole.len() - 4001]);
    assert!(clip.samples == want()[..N_FRAMES - 2001]);
    assert_eq!(clip.losses.iter().map(|l| l.end_s).collect::<Vec<_>>(), [0.5]);
}

/// An AU file of samples with this code.
fn au(code: u32, size: u32, data: &[u8]) -> Vec<u8> {
    let header = [28, size, code, RATE_HZ, 1].map(u32::to_be_bytes).concat();
    [&b".snd"[..], &header, b"note", data].concat()
}

#[test]
fn au_files_are_read() {
    let file = au;
    for (code, width, codec) in [(3, 2, "pcm_s16be"), (4, 3, "pcm_s24be"), (5, 4, "pcm_s32be")] {
        let data = data(width, true, 1);
        is_whole(codec, &file(code, data.len() as u32, &data), codec);
        is_whole(codec, &file(code, u32::MAX, &data), codec);
    }
    let floats: Vec<u8> = want().iter().flat_map(|x| x.to_be_bytes()).collect();
    is_whole("float", &file(6, floats.len() as u32, &floats), "pcm_f32be");
    let loud = read("mu-law", &file(1, 2000, &[[0x80, 0x00].repeat(500), vec![0xff; 1000]].concat()));
    assert_eq!((loud.samples[0], loud.samples[1], loud.samples[1999]), (8031.0 / 8192.0, -8031.0 / 8192.0, 0.0));
    let cut = read("cut", &file(3, 16_000, &data(2, true, 1)));
    assert_eq!(cut.losses.iter().map(|l| (l.start_s, l.end_s)).collect::<Vec<_>>(), [(0.5, 1.0)]);
}

/// A CAF file with these description fields and these chunks around its samples; `announced` is what the data chunk says.
fn caf(kind: &[u8; 4], [flags, packet_bytes, n_channels, bits]: [u32; 4], announced: i64, data: &[u8]) -> Vec<u8> {
    let chunk = |tag: &[u8; 4], size: i64, body: &[u8]| [&tag[..], &size.to_be_bytes(), body].concat();
    let words = [flags, packet_bytes, 1, n_channels, bits].map(u32::to_be_bytes).concat();
    let description = [&f64::from(RATE_HZ).to_be_bytes()[..], kind, &words].concat();
    [
        b"caff\0\x01\0\0".to_vec(),
        chunk(b"desc", 32, &description),
        chunk(b"free", 101, &[7; 101]),
        chunk(b"info", 4, &[0; 4]),
        chunk(b"data", announced, &[0; 4]),
        data.to_vec(),
    ]
    .concat()
}

fn announced(data: &[u8]) -> i64 {
    data.len() as i64 + 4
}

#[test]
fn caf_files_of_every_plain_kind_are_read() {
    for (bits, width, names) in [
        (16, 2, ["pcm_s16be", "pcm_s16le"]),
        (24, 3, ["pcm_s24be", "pcm_s24le"]),
        (20, 3, ["pcm_s24be", "pcm_s24le"]),
        (24, 4, ["pcm_s32be", "pcm_s32le"]),
        (32, 4, ["pcm_s32be", "pcm_s32le"]),
    ] {
        for n_channels in [1, 2, 7] {
            for (little, codec) in names.into_iter().enumerate() {
                let data = data(width, little == 0, n_channels);
                let fields = [2 * little as u32, (width * n_channels) as u32, n_channels as u32, bits];
                is_whole(codec, &caf(b"lpcm", fields, announced(&data), &data), codec);
            }
        }
    }
    let bytes = |sample: &dyn Fn(f32) -> Vec<u8>| want().into_iter().flat_map(sample).collect::<Vec<u8>>();
    for (flags, width, codec, data) in [
        (1, 4, "pcm_f32be", bytes(&|x| x.to_be_bytes().into())),
        (3, 4, "pcm_f32le", bytes(&|x| x.to_le_bytes().into())),
        (1, 8, "pcm_f64be", bytes(&|x| f64::from(x).to_be_bytes().into())),
        (3, 8, "pcm_f64le", bytes(&|x| f64::from(x).to_le_bytes().into())),
    ] {
        is_whole(codec, &caf(b"lpcm", [flags, width, 1, 8 * width], announced(&data), &data), codec);
    }
    // Values of ITU-T G.711.
    for (kind, bits, data, values) in [
        (b"lpcm", 8, [0x40, 0xc0].repeat(50), [0.5, -0.5]),
        (b"ulaw", 8, [0x80, 0x00].repeat(50), [8031.0 / 8192.0, -8031.0 / 8192.0]),
        (b"alaw", 0, [0xaa, 0x2a].repeat(50), [4032.0 / 4096.0, -4032.0 / 4096.0]),
    ] {
        let clip = read("one byte", &caf(kind, [0, 1, 1, bits], announced(&data), &data));
        assert_eq!((clip.samples[98..].to_vec(), clip.losses.len()), (values.to_vec(), 0));
    }
}

#[test]
fn caf_files_of_any_length_are_read() {
    let data = data(2, true, 1);
    let fields = [0, 2, 1, 16];
    // To the end of the file: of a stream, and where a recorder left the length out.
    for size in [-1, 0, i64::MAX, i64::MIN, 0x7fff_ffff] {
        is_whole(&format!("{size:#x}"), &caf(b"lpcm", fields, size, &data), "pcm_s16be");
    }
    // Chunks behind the samples are none of them.
    let packets = [&b"pakt"[..], &24i64.to_be_bytes(), &[0; 24], b"free", &1000i64.to_be_bytes()].concat();
    is_whole("chunks behind", &[caf(b"lpcm", fields, announced(&data), &data), packets].concat(), "pcm_s16be");
    // A file that was cut gives its beginning and says how much is missing.
    let whole = caf(b"lpcm", fields, announced(&data), &data);
    let clip = read("cut", &whole[..whole.len() - 4001]);
    assert!(clip.samples == want()[..N_FRAMES - 2001]);
    assert_eq!(
        clip.losses.iter().map(|l| (l.end_s, l.what.as_str())).collect::<Vec<_>>(),
        [(0.5, "the file ends early")]
    );
}

#[test]
fn caf_files_with_absurd_packets_cost_no_memory() {
    let data = data(2, true, 1);
    let mut file = caf(b"lpcm", [0, 2, 1, 16], announced(&data), &data);
    // Frames of a packet, of samples that are plain and of others. Silence in place of bad packets is limited.
    for kind in [b"lpcm", b"ima4", b"alac", b"aac "] {
        file[28..32].copy_from_slice(kind);
        file[40..44].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
        let (result, usage) = measure(|| decode_bytes("clip", &file));
        assert!(usage.peak_bytes < 64 << 20, "{}: {} bytes", kind.escape_ascii(), usage.peak_bytes);
        assert!(result.is_ok() || kind != b"lpcm");
    }
    // A description that makes no sense is an error.
    for (at, bytes) in [(44, [0; 4]), (48, [0xff; 4]), (20, [0xff; 4])] {
        let mut file = caf(b"lpcm", [0, 2, 1, 16], announced(&data), &data);
        file[at..at + 4].copy_from_slice(&bytes);
        let (result, usage) = measure(|| decode_bytes("clip", &file));
        assert!(usage.peak_bytes < 4 << 20, "{at}: {} bytes", usage.peak_bytes);
        assert!(!result.unwrap_err().to_string().contains("stopped on it"));
    }
}

#[test]
fn quicktime_samples_have_the_highest_byte_first_unless_an_atom_says_otherwise() {
    let whole = std::fs::read(fixture("formats/pcm.mov")).unwrap();
    let source = decode_bytes("pcm.mov", &whole).unwrap().samples;
    let at = |needle: &[u8]| whole.windows(needle.len()).position(|w| w == needle).unwrap();
    // The same samples under another name, wider, with the highest byte first.
    let (entry, mdat, sizes) = (at(b"sowt"), at(b"mdat"), at(b"stsz"));
    let samples = mdat + 4..mdat + 4 + 2 * source.len();
    for (name, width, codec) in [(b"in24", 3, "pcm_s24be"), (b"in32", 4, "pcm_s32be")] {
        let mut file = whole.clone();
        file[entry..entry + 4].copy_from_slice(name);
        file[entry + 22..entry + 24].copy_from_slice(&(8 * width as u16).to_be_bytes());
        file[sizes + 8..sizes + 12].copy_from_slice(&(width as u32).to_be_bytes());
        let wide = |le: &[u8]| [&[le[1], le[0]][..], &vec![0; width - 2]].concat();
        let wide: Vec<u8> = whole[samples.clone()].chunks_exact(2).flat_map(wide).collect();
        file[mdat - 4..mdat].copy_from_slice(&(wide.len() as u32 + 8).to_be_bytes());
        file.splice(samples.clone(), wide);
        let clip = decode_bytes("clip", &file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(clip.codec, codec);
        assert!(clip.samples == source, "{codec}");
    }
}

#[test]
fn files_that_are_not_read_are_named() {
    let error = |file: &[u8]| decode_bytes("clip", file).unwrap_err();
    // The beginnings that the formats' descriptions and ffmpeg's demuxers name.
    let padded = |head: &[u8]| [head, &[0; 1200]].concat();
    for (head, name) in [
        (&b"\0\0\x01\xba\x44"[..], "mpeg-ps"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c", "asf (wma, wmv)"),
        (b"FLV\x01\x04\0\0\0\x09", "flv"),
        (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", "mxf"),
        (b"#!AMR\n", "amr"),
        (b"#!AMR-WB\n", "amr-wb"),
        (b".RMF\0\0\0\x12", "realmedia"),
        (b".ra\xfd\0\x04", "realaudio"),
        (b"wvpk\0\x01\0\0\x10\x04", "wavpack"),
        (b"MAC \x96\x0f", "monkey's audio"),
        (b"MPCKSH", "musepack"),
        (b"MP+\x07", "musepack"),
        (b"TTA1\x01\0\x02\0", "true audio"),
        (b"tBaK", "tak"),
        (b"OFR \x0c\0\0\0", "optimfrog"),
        (b"ajkg\x02", "shorten"),
        (b"DSD \x1c\0\0\0", "dsf"),
        (b"FRM8\0\0\0\0", "dsdiff"),
        (b"\x0b\x77\x4e\x1c", "ac3"),
        (b"\x7f\xfe\x80\x01\xfc", "dts"),
        (b"\xf0\x32\0\0\xf8\x72\x6f\xba", "truehd"),
        (b"Creative Voice File\x1a", "voc"),
        (b"NIST_1A\n   1024\n", "nist sphere"),
        (b"FORM\0\0\0\x408SVXVHDR", "8svx"),
    ] {
        let e = error(&padded(head));
        assert_eq!(e.to_string(), format!("clip: {name} files are not read"));
        assert!(e.kind.is_convertible());
        assert_eq!(media_container(&padded(head)), Some(name));
    }
    let sound_of = |head: &[u8], sound: &str| {
        let message = error(&padded(head)).to_string();
        assert!(message.ends_with(&format!(" files are not read (sound: {sound})")), "{message}");
    };
    let wma = [&0x161u16.to_le_bytes()[..], &1u16.to_le_bytes(), &RATE_HZ.to_le_bytes()].concat();
    let asf = b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c";
    let guid = b"\x40\x9e\x69\xf8\x4d\x5b\xcf\x11\xa8\xfd\0\x80\x5f\x5c\x44\x2b";
    sound_of(&[&asf[..], &[0; 100], guid, &[0; 38], &wma].concat(), "wma, 1 channel");
    let tag = |kind: u8, first: u8| [&[kind, 0, 0, 2][..], &[0; 7], &[first, 0], &[0; 4]].concat();
    sound_of(&[&b"FLV\x01\x05\0\0\0\x09\0\0\0\0"[..], &tag(9, 0x12), &tag(8, 0xaf)].concat(), "aac, 2 channels");
    // Frames inside of something else are not taken for all of it.
    let frames = std::fs::read(fixture("formats/mp2.mp2")).unwrap();
    for (head, name) in [(&b"\0\0\x01\xba\x44\0\x04\0"[..], "mpeg-ps"), (b"\x7f\xfe\x80\x01\xfc\x3c", "dts")] {
        assert_eq!(error(&[head, &frames].concat()).to_string(), format!("clip: {name} files are not read"));
    }
    // A page with the first packet of a Speex stream.
    let page = [b"OggS\0\x02", &[0; 20][..], &[1, 80], b"Speex   1.2rc1", &[0; 66]].concat();
    let e = error(&page);
    assert_eq!(e.to_string(), "clip: codec speex is not supported (container ogg; there is no decoder)");
    assert!(e.kind.is_convertible());
    // Known, but not with these samples.
    let message = error(&au(23, 1000, &[0; 1000])).to_string();
    assert_eq!(message, "clip: codec g721 is not supported (container au; there is no decoder)");
    let mut rf64 = generated().swap_remove(0).1;
    let fmt = rf64.windows(4).position(|w| w == b"fmt ").unwrap();
    rf64[fmt + 8] = 0x11;
    let e = error(&rf64);
    assert!(e.to_string().starts_with("clip: codec adpcm_ima_wav is not supported (container wav"), "{e}");
    assert!(e.kind.is_convertible());
    let text = error(b"just a text, which no program converts to sound");
    assert!(!text.kind.is_convertible(), "{text}");
    // What is known, but too much.
    assert!(error(&wav(1, RATE_HZ, 65, 16, &[0; 1300])).kind.is_convertible());
}

#[test]
fn codecs_that_are_not_known_in_matroska_files_are_named() {
    let whole = std::fs::read(fixture("formats/aac.mka")).unwrap();
    let at = whole.windows(5).position(|w| w == b"A_AAC").unwrap();
    for (name, want) in [(b"A_TTZ", "ttz"), (b"A_QDM", "qdm")] {
        let mut file = whole.clone();
        file[at..at + 5].copy_from_slice(name);
        let e = decode_bytes("clip", &file).unwrap_err();
        assert_eq!(e.to_string(), format!("clip: codec {want} is not supported (container mkv; there is no decoder)"));
        assert!(e.kind.is_convertible());
    }
    // A header, and a segment of unknown length with a track of Microsoft's formats: Windows Media.
    let element = |id: &[u8], body: &[u8]| [id, &[0x40, body.len() as u8], body].concat();
    let format = [0x61, 1, 2, 0, 0x80, 0xbb, 0, 0];
    let parts = [
        element(&[0xd7], &[1]),
        element(&[0x73, 0xc5], &[1]),
        element(&[0x83], &[2]),
        element(&[0x86], b"A_MS/ACM"),
        element(&[0x63, 0xa2], &format),
    ];
    let of_file = [
        element(&[0x2a, 0xd7, 0xb1], &[0x0f, 0x42, 0x40]),
        element(&[0x4d, 0x80], b"test"),
        element(&[0x57, 0x41], b"test"),
    ];
    let info = element(&[0x15, 0x49, 0xa9, 0x66], &of_file.concat());
    let tracks = element(&[0x16, 0x54, 0xae, 0x6b], &element(&[0xae], &parts.concat()));
    let cluster = element(&[0x1f, 0x43, 0xb6, 0x75], &element(&[0xe7], &[0]));
    let head = element(&[0x1a, 0x45, 0xdf, 0xa3], &element(&[0x42, 0x82], b"matroska"));
    let segment = [&[0x18, 0x53, 0x80, 0x67, 0x01][..], &[0xff; 7], &info, &tracks, &cluster].concat();
    let e = decode_bytes("clip", &[head, segment].concat()).unwrap_err();
    assert_eq!(e.to_string(), "clip: codec wma is not supported (container mkv; there is no decoder)");
}
