//! [`decode_file`], [`decode_reader`], [`decode_bytes`]: a file in any format that is read, to mono samples.
//!
//! Plain samples, whose headers programs write in many ways, are read here (modules `wav`, `aiff`, `au`, `caf`), MPEG streams
//! frame by frame (`mpeg`), AVI and MPEG transport streams by readers of ours (`avi`, `ts`), everything else with symphonia
//! (`demux`). Samples keep the rate of the file and are not scaled; see [`super::resample()`] and [`super::normalize`] for the
//! rest of what the official loaders do. Nothing here trusts a length in a file: memory grows with what was decoded.

use std::fs::File;
use std::io::{Cursor, Read, SeekFrom};
use std::path::Path;

use symphonia::core::io::MediaSource;

use super::caught::caught;
use super::demux::{self, Known};
use super::error::{AudioError, AudioErrorKind};
use super::limits::{MAX_INPUT_BYTES, within};
use super::patched::Spliced;
use super::recording::Decoded;
use super::{aiff, au, avi, caf, mkv, mp4, mpeg, names, ogg, pcm, ts, unread, wav};

/// Samples of a file. Pipes and devices are buffered like [`decode_reader`] does.
///
/// Errors: [`AudioErrorKind`].
pub fn decode_file(path: &Path) -> Result<Decoded, AudioError> {
    let name = path.display().to_string();
    let io = |e| AudioErrorKind::Io(e).of(&name);
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if meta.is_dir() {
        return Err(io(std::io::ErrorKind::IsADirectory.into()));
    }
    if !meta.is_file() {
        return decode_reader(&name, file);
    }
    decode(&name, file, meta.len())
}

/// Samples of a stream of at most [`MAX_INPUT_BYTES`], which is buffered whole. `name` stands for it in errors.
///
/// Errors: [`AudioErrorKind`].
pub fn decode_reader(name: &str, reader: impl Read) -> Result<Decoded, AudioError> {
    let bytes = read_all(reader, MAX_INPUT_BYTES).map_err(|kind| kind.of(name))?;
    decode_bytes(name, &bytes)
}

fn read_all(reader: impl Read, limit: u64) -> Result<Vec<u8>, AudioErrorKind> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes).map_err(AudioErrorKind::Io)?;
    if bytes.len() as u64 > limit { Err(AudioErrorKind::TooManyBytes) } else { Ok(bytes) }
}

/// Samples of a file in memory. `name` stands for it in errors.
///
/// Errors: [`AudioErrorKind`].
pub fn decode_bytes(name: &str, bytes: &[u8]) -> Result<Decoded, AudioError> {
    decode(name, Cursor::new(bytes), bytes.len() as u64)
}

/// As [`decode_bytes`], of a file that may be as long as this: a small file can hold hours.
///
/// Errors: [`AudioErrorKind`], `TooLong` as soon as more was decoded.
pub fn decode_bytes_within(name: &str, bytes: &[u8], max_s: u32) -> Result<Decoded, AudioError> {
    within(Some(max_s), || decode_bytes(name, bytes))
}

fn decode(name: &str, source: impl MediaSource, len: u64) -> Result<Decoded, AudioError> {
    if len == 0 {
        return Err(AudioErrorKind::Empty.of(name));
    }
    let panicked = |why| AudioErrorKind::Container { why: format!("the decoder stopped on it ({why})") };
    let decoded = caught(|| decode_known(source, len)).unwrap_or_else(|why| Err(panicked(why)));
    decoded.map_err(|kind| kind.of(name))
}

/// Decodes with the reader for this kind of file.
fn decode_known(mut source: impl MediaSource, len: u64) -> Result<Decoded, AudioErrorKind> {
    let io = AudioErrorKind::Io;
    let wav = wav::inspect(&mut source, len).map_err(io)?;
    let layout = match wav.layout {
        Some(layout) => Some(layout),
        None => aiff::layout(&mut source, len).map_err(io)?,
    };
    let layout = match layout {
        Some(layout) => Some(layout),
        None => au::layout(&mut source, len).map_err(io)?,
    };
    let caf = caf::inspect(&mut source, len).map_err(io)?;
    if let Some(layout) = layout.or(caf.layout) {
        return pcm::decode(&mut source, &layout);
    }
    if let Some(clip) = avi::decode(&mut source, len)? {
        return Ok(clip);
    }
    if let Some(clip) = ts::decode(&mut source, len)? {
        return Ok(clip);
    }
    // Before a demuxer finds frames inside of something else.
    match unread::named(&mut source).map_err(io)? {
        AudioErrorKind::NotRecognised => {}
        refusal => return Err(refusal),
    }
    source.seek(SeekFrom::Start(0)).map_err(io)?;
    if mpeg::begins(&mut source).map_err(io)? {
        source.seek(SeekFrom::Start(0)).map_err(io)?;
        return mpeg::decode(&mut source);
    }
    let mut mp4 = mp4::inspect(&mut source, len).map_err(io)?;
    if mp4.without_index {
        return Err(AudioErrorKind::Unfinished);
    }
    let segment = mkv::cut_segment(&mut source, len).map_err(io)?;
    let cut_short = !segment.is_empty() || caf.cut_short;
    let patches = [wav.patches, std::mem::take(&mut mp4.patches), caf.patches, segment].concat();
    let ogg = ogg::inspect(&mut source).map_err(io)?;
    let begins_broken = ogg.begins_broken;
    let known = Known { wave_format: wav.format_tag, mp4, cut_short, begins_broken, len };
    let found = if ogg.whole.is_empty() {
        demux::decode(&mut source, patches, &known)
    } else {
        demux::decode(&mut Spliced::new(&mut source, ogg.whole), patches, &known)
    };
    match found {
        // Frames that begin behind something else.
        Ok(demux::Found::Mpeg) => {
            source.seek(SeekFrom::Start(0)).map_err(io)?;
            mpeg::decode(&mut source)
        }
        Ok(demux::Found::Clip(clip)) => Ok(clip),
        Err(AudioErrorKind::NoAudioTrack { container: "mkv", tracks }) => {
            Err(match mkv::codec(&mut source, len).map_err(io)? {
                Some(codec) => AudioErrorKind::Codec { codec, container: "mkv", why: demux::NO_DECODER },
                None => AudioErrorKind::NoAudioTrack { container: "mkv", tracks },
            })
        }
        Err(AudioErrorKind::NotRecognised) => Err(match wav.format_tag {
            Some(tag) => AudioErrorKind::Codec {
                codec: names::wave_format(tag),
                container: "wav",
                why: "a relative of WAV, read with plain samples",
            },
            None => AudioErrorKind::NotRecognised,
        }),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_read_up_to_the_limit() {
        assert_eq!(read_all(&[1u8, 2, 3][..], 3).unwrap(), [1, 2, 3]);
        assert!(matches!(read_all(&[1u8, 2, 3, 4][..], 3), Err(AudioErrorKind::TooManyBytes)));
        assert!(matches!(read_all(std::io::repeat(0), 1000), Err(AudioErrorKind::TooManyBytes)));
    }

    #[test]
    fn a_clip_ends_where_it_may_not_be_longer() {
        // AU: mu-law, 8 kHz, mono, 16,000 bytes of silence.
        let mut file = b".snd\0\0\0\x18\0\0\x3e\x80\0\0\0\x01\0\0\x1f\x40\0\0\0\x01".to_vec();
        file.resize(24 + 16_000, 0xff);
        assert_eq!(decode_bytes_within("x", &file, 2).unwrap().samples.len(), 16_000);
        let error = decode_bytes_within("x", &file, 1).unwrap_err();
        assert!(matches!(error.kind, AudioErrorKind::TooLong { limit_s: 1 }), "{error}");
        assert_eq!(decode_bytes("x", &file).unwrap().samples.len(), 16_000);
    }
}
