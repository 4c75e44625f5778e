//! [`decode_file`], [`decode_reader`], [`decode_bytes`]: a file in any format that symphonia reads, to mono samples.
//!
//! Samples keep the rate of the file and are not scaled; see [`super::resample()`] and [`super::normalize`] for the rest of
//! what the official loaders do. Nothing here trusts a length in a file: memory grows with what was decoded.

use std::any::Any;
use std::cell::Cell;
use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{LazyLock, Once};

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::well_known::CODEC_ID_AAC;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::codecs::{CodecParameters, audio::CODEC_ID_NULL_AUDIO};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::{Hint, Probe, ProbeOptions};
use symphonia::core::formats::{FormatOptions, FormatReader, TrackFlags};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;

use super::error::{AudioError, AudioErrorKind};
use super::limits::{MAX_CHANNELS, MAX_INPUT_BYTES, MAX_MAGNITUDE, MAX_RATE_HZ, MAX_SAMPLES, MIN_RATE_HZ};
use super::mp4::{self, Start};
use super::riff::{self, Patched, Riff};
use super::{aac, names};

/// Rate that [`MAX_SAMPLES`] also holds for.
const REFERENCE_RATE_HZ: u64 = 16_000;

/// How far into a file its format is looked for. More finds MPEG frame headers in any large file.
const PROBE_BYTES: u32 = 1 << 16;

/// Consecutive packets without sound after which a file counts as ended. Headers can promise billions of them.
const MAX_FRUITLESS_PACKETS: usize = 1000;

/// The same for packets of other tracks: an hour of video before the first sound.
const MAX_FOREIGN_PACKETS: usize = 216_000;

/// Said of codecs that are not known.
const NO_DECODER: &str = "there is no decoder";

/// Mono samples of a clip.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Arithmetic mean over the channels. In [-1, 1] except for floating point files that are not.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub rate_hz: u32,
    /// Short name of the container.
    pub container: &'static str,
    /// Short name of the codec.
    pub codec: &'static str,
    /// What was lost, if anything.
    pub loss: Loss,
}

/// What a damaged file did not give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Packets that were left out because they could not be decoded.
    pub bad_packets: usize,
    /// The file ends before the end that it announces.
    pub cut_short: bool,
}

impl Loss {
    /// Nothing was lost.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Samples of a file. Pipes and devices are buffered like [`decode_reader`] does.
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
pub fn decode_bytes(name: &str, bytes: &[u8]) -> Result<Decoded, AudioError> {
    decode(name, Cursor::new(bytes), bytes.len() as u64)
}

fn decode<'s>(name: &str, mut source: impl MediaSource + 's, len: u64) -> Result<Decoded, AudioError> {
    if len == 0 {
        return Err(AudioErrorKind::Empty.of(name));
    }
    let decoded = caught(|| {
        let riff = riff::inspect(&mut source, len).map_err(AudioErrorKind::Io)?;
        let starts = mp4::starts(&mut source, len).map_err(AudioErrorKind::Io)?;
        let source = Patched::new(source, &riff).map_err(AudioErrorKind::Io)?;
        let stream = MediaSourceStream::new(Box::new(source), Default::default());
        Demuxed::open(stream, &riff)?.decode(&starts)
    });
    let panicked = |why| AudioErrorKind::Container { why: format!("the decoder stopped on it ({why})") };
    decoded.unwrap_or_else(|why| Err(panicked(why))).map_err(|kind| kind.of(name))
}

/// Formats and codecs that symphonia has.
static PROBE: LazyLock<Probe> = LazyLock::new(|| {
    let mut probe = Probe::new_with_options(&ProbeOptions { max_probe_depth: PROBE_BYTES, ..Default::default() });
    symphonia::default::register_enabled_formats(&mut probe);
    probe
});

/// A container, with a decoder for one of its tracks.
struct Demuxed<'s> {
    format: Box<dyn FormatReader + 's>,
    track: u32,
    decoder: Box<dyn AudioDecoder>,
    container: &'static str,
    codec: &'static str,
}

impl<'s> Demuxed<'s> {
    fn open(stream: MediaSourceStream<'s>, riff: &Riff) -> Result<Self, AudioErrorKind> {
        let probed = PROBE.probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default());
        let format = probed.map_err(|e| match e {
            SymphoniaError::Unsupported(why) if why.starts_with("core (probe)") => AudioErrorKind::NotRecognised,
            SymphoniaError::Unsupported("wav: unsupported wave format") => AudioErrorKind::Codec {
                codec: riff.format_tag.map_or("unknown".into(), names::wave_format),
                container: "wav",
                why: NO_DECODER,
            },
            e => container_error(e),
        })?;
        let container = names::container(format.format_info());
        let (track, decoder, codec) = first_decodable(&*format, container)?;
        Ok(Self { format, track, decoder, container, codec })
    }

    fn decode(mut self, starts: &[Start]) -> Result<Decoded, AudioErrorKind> {
        let start = starts.iter().find(|s| s.track == self.track).copied();
        // Without an announced length, the end of the file is the end of the sound.
        let announced = self.format.tracks().iter().any(|t| t.id == self.track && t.num_frames.is_some());
        let mut mono = Mono { start, ..Mono::default() };
        let mut loss = Loss::default();
        let (mut n_packets, mut fruitless, mut foreign) = (0, 0, 0);
        let mut first_reason = None;
        while fruitless < MAX_FRUITLESS_PACKETS && foreign < MAX_FOREIGN_PACKETS {
            let before = mono.n_frames;
            match self.step(&mut mono) {
                Ok(Step::Packet) => n_packets += 1,
                Ok(Step::Foreign) => {
                    foreign += 1;
                    continue;
                }
                Ok(Step::End) => break,
                Err(StepError::Fatal(kind)) => return Err(kind),
                Err(StepError::End(why)) => {
                    loss.cut_short = announced;
                    first_reason.get_or_insert(why);
                    break;
                }
                Err(StepError::Bad(why)) => {
                    n_packets += 1;
                    loss.bad_packets += 1;
                    first_reason.get_or_insert(why);
                }
            }
            fruitless = if mono.n_frames > before { 0 } else { fruitless + 1 };
            foreign = 0;
        }
        loss.cut_short |= fruitless == MAX_FRUITLESS_PACKETS || foreign == MAX_FOREIGN_PACKETS;

        let why = || first_reason.unwrap_or_default();
        if loss.bad_packets > n_packets / 2 {
            return Err(AudioErrorKind::Damaged { bad: loss.bad_packets, of: n_packets, why: why() });
        }
        if mono.samples.is_empty() {
            return Err(if loss.is_none() {
                AudioErrorKind::NoSamples
            } else {
                AudioErrorKind::Container { why: why() }
            });
        }
        let Self { container, codec, .. } = self;
        Ok(Decoded { samples: mono.samples, rate_hz: mono.rate_hz, container, codec, loss })
    }

    /// Reads a packet and appends its samples.
    fn step(&mut self, mono: &mut Mono) -> Result<Step, StepError> {
        let packet = match self.format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(Step::End),
            Err(SymphoniaError::ResetRequired) => {
                // A stream chained to the first: it has tracks of its own.
                let (track, decoder, _) = first_decodable(&*self.format, self.container).map_err(StepError::Fatal)?;
                (self.track, self.decoder) = (track, decoder);
                return Ok(Step::Foreign);
            }
            Err(SymphoniaError::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(StepError::End("the file ends early".into()));
            }
            Err(SymphoniaError::IoError(e)) => return Err(StepError::Fatal(AudioErrorKind::Io(e))),
            Err(e) => return Err(StepError::Bad(reason(&e))),
        };
        if packet.track_id != self.track {
            return Ok(Step::Foreign);
        }
        match self.decoder.decode(&packet) {
            Ok(buffer) => mono.append(&buffer).map(|()| Step::Packet).map_err(StepError::Fatal),
            Err(SymphoniaError::ResetRequired) => {
                self.decoder.reset();
                Ok(Step::Packet)
            }
            Err(e) => Err(StepError::Bad(reason(&e))),
        }
    }
}

/// What one packet gave.
enum Step {
    /// Samples, perhaps none.
    Packet,
    /// It belongs to another track, or begins another stream.
    Foreign,
    /// There are no more.
    End,
}

enum StepError {
    /// The file is not accepted.
    Fatal(AudioErrorKind),
    /// No further packet can be read.
    End(String),
    /// This packet cannot be decoded.
    Bad(String),
}

/// The track to decode: the first one that can be, those marked as default before the others.
fn first_decodable(
    format: &dyn FormatReader,
    container: &'static str,
) -> Result<(u32, Box<dyn AudioDecoder>, &'static str), AudioErrorKind> {
    let mut tracks: Vec<_> = format.tracks().iter().collect();
    tracks.sort_by_key(|t| !t.flags.contains(TrackFlags::DEFAULT));
    let mut refused = None;
    for track in &tracks {
        let Some(CodecParameters::Audio(params)) = &track.codec_params else { continue };
        match open_decoder(params, container) {
            Ok(decoder) => return Ok((track.id, decoder, names::audio_codec(params.codec))),
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    Err(refused.unwrap_or_else(|| AudioErrorKind::NoAudioTrack {
        container,
        tracks: format.tracks().iter().map(names::track).collect(),
    }))
}

fn open_decoder(
    params: &AudioCodecParameters,
    container: &'static str,
) -> Result<Box<dyn AudioDecoder>, AudioErrorKind> {
    let refuse = |codec: &str, why| AudioErrorKind::Codec { codec: codec.into(), container, why };
    if params.codec == CODEC_ID_AAC
        && let Some(variant) = params.extra_data.as_deref().and_then(aac::high_efficiency)
    {
        return Err(refuse(variant, "only AAC-LC is decoded"));
    }
    if let Some(rate_hz) = params.sample_rate {
        check_rate(rate_hz)?;
    }
    if let Some(channels) = &params.channels {
        check_channels(channels.count())?;
    }
    let name = names::audio_codec(params.codec);
    // Delay and padding that the encoder declares are left out, as the official loaders do.
    let options = AudioDecoderOptions::default().gapless(true);
    symphonia::default::get_codecs().make_audio_decoder(params, &options).map_err(|e| match e {
        _ if params.codec == CODEC_ID_NULL_AUDIO => refuse(name, "the file does not say which"),
        SymphoniaError::Unsupported("core (codec): unsupported audio codec") => refuse(name, NO_DECODER),
        SymphoniaError::Unsupported(why) => refuse(name, why),
        e => container_error(e),
    })
}

fn check_rate(rate_hz: u32) -> Result<(), AudioErrorKind> {
    if (MIN_RATE_HZ..=MAX_RATE_HZ).contains(&rate_hz) { Ok(()) } else { Err(AudioErrorKind::SampleRate { rate_hz }) }
}

fn check_channels(n_channels: usize) -> Result<(), AudioErrorKind> {
    if (1..=MAX_CHANNELS).contains(&n_channels) { Ok(()) } else { Err(AudioErrorKind::Channels { n_channels }) }
}

fn container_error(e: SymphoniaError) -> AudioErrorKind {
    match e {
        SymphoniaError::IoError(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => AudioErrorKind::Io(e),
        e => AudioErrorKind::Container { why: reason(&e) },
    }
}

fn reason(e: &SymphoniaError) -> String {
    match e {
        SymphoniaError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => "the file ends early".into(),
        SymphoniaError::IoError(e) => engine::error::Chain(e).to_string(),
        SymphoniaError::DecodeError(why) | SymphoniaError::Unsupported(why) | SymphoniaError::LimitError(why) => {
            (*why).into()
        }
        e => e.to_string(),
    }
}

/// Samples mixed down so far.
#[derive(Default)]
struct Mono {
    samples: Vec<f32>,
    rate_hz: u32,
    /// Frames decoded, kept or not.
    n_frames: u64,
    /// The part to leave out.
    start: Option<Start>,
    planes: Vec<Vec<f32>>,
}

impl Mono {
    /// Appends the mean over the channels.
    fn append(&mut self, buffer: &GenericAudioBufferRef<'_>) -> Result<(), AudioErrorKind> {
        let n = buffer.frames();
        if n == 0 {
            return Ok(());
        }
        let rate_hz = buffer.spec().rate();
        if self.n_frames == 0 {
            check_rate(rate_hz)?;
            self.rate_hz = rate_hz;
        } else if rate_hz != self.rate_hz {
            return Err(AudioErrorKind::RateChange { from_hz: self.rate_hz, to_hz: rate_hz });
        }
        check_channels(buffer.num_planes())?;
        buffer.copy_to_vecs_planar(&mut self.planes);
        for (i, &value) in self.planes.iter().flat_map(|plane| plane.iter().enumerate()) {
            if value.is_nan() || value.abs() > MAX_MAGNITUDE {
                return Err(AudioErrorKind::BadSample { at: self.n_frames + i as u64, value });
            }
        }

        let skip = self.n_skipped().saturating_sub(self.n_frames).min(n as u64) as usize;
        self.n_frames += n as u64;
        let limit = MAX_SAMPLES as u64 * u64::from(rate_hz).min(REFERENCE_RATE_HZ) / REFERENCE_RATE_HZ;
        if (self.samples.len() + n - skip) as u64 > limit || self.samples.try_reserve(n - skip).is_err() {
            return Err(AudioErrorKind::TooLong { limit_s: limit / u64::from(rate_hz) });
        }
        let n_channels = self.planes.len() as f64;
        self.samples.extend((skip..n).map(|i| {
            let sum: f64 = self.planes.iter().map(|plane| f64::from(plane[i])).sum();
            (sum / n_channels) as f32
        }));
        Ok(())
    }

    /// Frames before the start.
    fn n_skipped(&self) -> u64 {
        let frames = |s: Start| u128::from(s.media_time) * u128::from(self.rate_hz) / u128::from(s.timescale);
        self.start.map_or(0, |s| u64::try_from(frames(s)).unwrap_or(u64::MAX))
    }
}

thread_local! {
    /// Panics of this thread are caught and reported as errors.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic in it becomes its message, and nothing is printed.
///
/// Some malformed files make the demuxers and decoders panic, mostly by overflowing arithmetic in builds that check it.
/// Such a file is an error like any other.
fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !CATCHING.get() {
                previous(panic);
            }
        }));
    });
    let outer = CATCHING.replace(true);
    // Nothing that `f` borrowed is used after a panic.
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(outer);
    result.map_err(message)
}

/// The text of a panic, in one line.
fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("no reason given").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors() {
        let shout = || -> u8 { panic!("first {}\nsecond", "line") };
        assert_eq!(caught(shout).unwrap_err(), "first line");
        assert_eq!(caught(|| caught(shout).unwrap_err()).unwrap(), "first line");
        assert!(!CATCHING.get());
        assert_eq!(caught(|| 7), Ok(7));
    }

    #[test]
    fn streams_are_read_up_to_the_limit() {
        assert_eq!(read_all(&[1u8, 2, 3][..], 3).unwrap(), [1, 2, 3]);
        assert!(matches!(read_all(&[1u8, 2, 3, 4][..], 3), Err(AudioErrorKind::TooManyBytes)));
        assert!(matches!(read_all(std::io::repeat(0), 1000), Err(AudioErrorKind::TooManyBytes)));
    }
}
