//! Files that symphonia demuxes and decodes: which track is taken, what of it is missing.

use std::io::ErrorKind;
use std::sync::LazyLock;

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known::*;
use symphonia::core::codecs::audio::{
    AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions, CODEC_ID_NULL_AUDIO,
};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::{Hint, Probe, ProbeOptions};
use symphonia::core::formats::{FormatOptions, FormatReader, Track, TrackFlags};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;
use symphonia::core::units::{Duration, TimeBase, Timestamp};

use super::elementary::{self, MISSING};
use super::elementary::{MAX_GAP_S, MIN_GAP_S, MIN_START_S};
use super::error::AudioErrorKind;
use super::loss::TrackChoice;
use super::mp4::{Mp4, Mp4Track};
use super::patched::{Patch, Patched};
use super::recording::{Decoded, ENDS_EARLY, MAX_STRETCH, Recording, check_channels, check_rate};
use super::{aac, names};

/// How far into a file its format is looked for. More finds MPEG frame headers in any large file.
const PROBE_BYTES: u32 = 1 << 16;

/// Consecutive packets without sound after which a file counts as ended. Headers can promise billions of them.
const MAX_FRUITLESS_PACKETS: usize = 1000;

/// The same for packets of other tracks: an hour of video before the first sound.
const MAX_FOREIGN_PACKETS: usize = 216_000;

/// Said of codecs that are not known.
pub(super) const NO_DECODER: &str = "there is no decoder";

/// Most frames that a packet may be said to have: twice the bytes of the longest block of ADPCM. Decoders make room for
/// them before they see one.
const MAX_PACKET_FRAMES: u64 = 1 << 17;

/// Most channels of AAC that are decoded.
const MAX_AAC_CHANNELS: usize = 2;

/// What was found out about a file before it is demuxed.
pub(super) struct Known {
    /// Code of the sample format of a WAV file.
    pub wave_format: Option<u16>,
    /// An MP4 file.
    pub mp4: Mp4,
    /// The file is shorter than its container says.
    pub cut_short: bool,
    /// The first sound of a stream is broken.
    pub begins_broken: bool,
    /// Bytes of the file.
    pub len: u64,
}

/// What a file turned out to be.
pub(super) enum Found {
    /// A clip.
    Clip(Decoded),
    /// An MPEG stream, which is read elsewhere.
    Mpeg,
}

/// Decodes the first track that can be.
///
/// Errors: no format that is known, no such track, more packets bad than good, samples that are not accepted.
pub(super) fn decode(
    source: &mut impl MediaSource,
    patches: Vec<Patch>,
    known: &Known,
) -> Result<Found, AudioErrorKind> {
    let source = Patched::new(source, patches).map_err(AudioErrorKind::Io)?;
    let stream = MediaSourceStream::new(Box::new(source), Default::default());
    let probed = PROBE.probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default());
    let format = probed.map_err(|e| match e {
        SymphoniaError::Unsupported(why) if why.starts_with("core (probe)") => AudioErrorKind::NotRecognised,
        SymphoniaError::Unsupported("wav: unsupported wave format") => AudioErrorKind::Codec {
            codec: known.wave_format.map_or("unknown".into(), names::wave_format),
            container: "wav",
            why: NO_DECODER,
        },
        e => container_error(e),
    })?;
    let container = names::container(format.format_info());
    if matches!(container, "mp1" | "mp2" | "mp3") {
        return Ok(Found::Mpeg);
    }
    let selected = select(&*format, container, &known.mp4)?;
    let clock = Clock::new(format.tracks(), selected.track);
    let demuxed = Demuxed {
        format,
        selected,
        container,
        clock,
        known,
        announced: true,
        believed_s: 0.0,
        packet_bytes: 0,
        n_decoded: 0,
    };
    demuxed.decode().map(Found::Clip)
}

/// Formats and codecs that symphonia has.
static PROBE: LazyLock<Probe> = LazyLock::new(|| {
    let mut probe = Probe::new_with_options(&ProbeOptions { max_probe_depth: PROBE_BYTES, ..Default::default() });
    symphonia::default::register_enabled_formats(&mut probe);
    probe
});

/// A container, with a decoder for one of its tracks.
struct Demuxed<'s, 'k> {
    format: Box<dyn FormatReader + 's>,
    selected: Selected,
    container: &'static str,
    clock: Clock,
    known: &'k Known,
    /// The length that the container announces is that of the track at hand.
    announced: bool,
    /// A time up to which a start is believed, in seconds.
    believed_s: f64,
    /// Bytes of the packets that were decoded, and the frames that they gave.
    packet_bytes: u64,
    n_decoded: u64,
}

/// A track that can be decoded.
struct Selected {
    track: u32,
    decoder: Box<dyn AudioDecoder>,
    codec: &'static str,
    rate_hz: u32,
    choice: Option<TrackChoice>,
}

/// Times of packets in seconds, and where the next one is expected.
struct Clock {
    base: Option<TimeBase>,
    next_s: Option<f64>,
    /// Length of the last packet.
    packet_s: f64,
    /// A packet or more could not be read since the last one.
    broken: bool,
}

impl Clock {
    fn new(tracks: &[Track], id: u32) -> Self {
        let base = tracks.iter().find(|t| t.id == id).and_then(|t| t.time_base);
        Self { base, next_s: None, packet_s: 0.0, broken: false }
    }

    fn time_s(&self, at: Timestamp) -> Option<f64> {
        self.base?.calc_time(at).map(|t| t.as_secs_f64())
    }

    fn duration_s(&self, length: Duration) -> f64 {
        self.base.and_then(|base| base.calc_duration(length)).map_or(0.0, |t| t.as_secs_f64())
    }
}

impl Demuxed<'_, '_> {
    fn decode(mut self) -> Result<Decoded, AudioErrorKind> {
        let mp4 = self.mp4_track();
        let could_hold = self.known.len.saturating_mul(frames_per_byte(self.selected.codec));
        self.believed_s = could_hold.saturating_mul(MAX_STRETCH) as f64 / f64::from(self.selected.rate_hz.max(1));
        let start_s = mp4.map_or(0.0, |t| t.start_s);
        let mut recording = Recording::starting_at(if start_s < self.believed_s { start_s } else { 0.0 });
        recording.could_hold(could_hold);
        let (mut fruitless, mut foreign) = (0, 0);
        while fruitless < MAX_FRUITLESS_PACKETS && foreign < MAX_FOREIGN_PACKETS {
            let before = recording.n_frames();
            match self.step(&mut recording)? {
                Step::Packet => {}
                Step::Foreign => {
                    foreign += 1;
                    continue;
                }
                Step::End => break,
            }
            fruitless = if recording.n_frames() > before { 0 } else { fruitless + 1 };
            foreign = 0;
        }
        if let Some(end_s) = self.announced_s() {
            let lead_s = mp4.map_or(0.0, |t| t.start_s - t.lead.seconds());
            // Some containers count whole packets. One that could not be read is missing.
            let packet_s = if self.clock.broken { 0.0 } else { self.clock.packet_s };
            recording.announced_end(end_s + lead_s, packet_s);
        }
        let Selected { codec, choice, .. } = self.selected;
        recording.finish(self.container, codec, choice)
    }

    fn mp4_track(&self) -> Option<Mp4Track> {
        self.known.mp4.track(self.selected.track).copied()
    }

    /// The end that the container announces for the track at hand, in seconds of its own clock.
    fn announced_s(&self) -> Option<f64> {
        let track = self.format.tracks().iter().find(|t| t.id == self.selected.track)?;
        // Without an index, what an ADTS stream announces is a guess.
        if !self.announced || self.container == "adts" {
            return None;
        }
        if let Some(n) = track.num_frames {
            return Some(n as f64 / f64::from(self.selected.rate_hz.max(1)));
        }
        if let (Some(duration), Some(_)) = (track.duration, self.clock.base) {
            return Some(self.clock.duration_s(duration));
        }
        let media = self.format.media_info();
        // That of the longest track.
        let of_track = self.known.cut_short || self.format.tracks().len() == 1;
        let duration = media.time_base?.calc_duration(media.duration.filter(|_| of_track)?)?;
        Some(duration.as_secs_f64())
    }

    /// Reads a packet and appends its samples.
    fn step(&mut self, recording: &mut Recording) -> Result<Step, AudioErrorKind> {
        let packet = match self.format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(Step::End),
            Err(SymphoniaError::ResetRequired) => {
                // A stream chained to the first: it has tracks of its own.
                let choice = self.selected.choice.take();
                self.selected = select(&*self.format, self.container, &self.known.mp4)?;
                self.selected.choice = choice;
                self.clock = Clock::new(self.format.tracks(), self.selected.track);
                self.announced = false;
                return Ok(Step::Foreign);
            }
            Err(SymphoniaError::IoError(e)) if e.kind() == ErrorKind::UnexpectedEof => {
                self.clock.broken = true;
                recording.note(ENDS_EARLY);
                return Ok(Step::End);
            }
            Err(SymphoniaError::IoError(e)) => return Err(AudioErrorKind::Io(e)),
            Err(e) => {
                self.clock.broken = true;
                recording.bad_packet(self.selected.rate_hz, 0, &reason(&e))?;
                return Ok(Step::Packet);
            }
        };
        if packet.track_id != self.selected.track {
            return Ok(Step::Foreign);
        }
        self.fill_gap(&packet, recording)?;
        self.packet(&packet, recording)?;
        Ok(Step::Packet)
    }

    fn packet(&mut self, packet: &Packet, recording: &mut Recording) -> Result<(), AudioErrorKind> {
        let mut length_s = self.clock.duration_s(packet.dur);
        match self.selected.decoder.decode(packet) {
            Ok(buffer) => {
                let rate_hz = buffer.spec().rate();
                if recording.n_frames() == 0
                    && let Some(track) = self.known.mp4.track(packet.track_id)
                {
                    recording.skip(track.lead.frames(rate_hz));
                }
                recording.packet(&buffer)?;
                self.n_decoded += buffer.frames() as u64;
                self.packet_bytes += packet.data.len() as u64;
                self.selected.rate_hz = rate_hz;
                length_s = length_s.max(buffer.frames() as f64 / f64::from(rate_hz.max(1)));
            }
            Err(SymphoniaError::ResetRequired) => self.selected.decoder.reset(),
            Err(e) => {
                if length_s == 0.0 {
                    length_s = self.clock.packet_s;
                }
                let n = (length_s * f64::from(self.selected.rate_hz)).round() as usize;
                let room = self.room(recording);
                recording.bad_packet(self.selected.rate_hz, n.min(room), &reason(&e))?;
            }
        }
        self.clock.packet_s = length_s;
        self.clock.next_s = self.clock.time_s(packet.pts).map(|at| at + length_s);
        Ok(())
    }

    /// Frames of silence that there is still room for.
    fn room(&self, recording: &Recording) -> usize {
        let room = elementary::room(self.known.len, self.packet_bytes, self.n_decoded);
        let gap = (MAX_GAP_S * f64::from(self.selected.rate_hz)) as usize;
        usize::try_from(room.saturating_sub(recording.n_frames())).unwrap_or(usize::MAX).min(gap)
    }

    /// Silence for the time between the last packet and this one; before the first one, the sound starts late.
    fn fill_gap(&mut self, packet: &Packet, recording: &mut Recording) -> Result<(), AudioErrorKind> {
        let broken = std::mem::take(&mut self.clock.broken);
        let Some(at_s) = self.clock.time_s(packet.pts) else { return Ok(()) };
        let Some(expected_s) = self.clock.next_s else {
            if recording.n_frames() == 0 && self.container == "mkv" && (MIN_START_S..self.believed_s).contains(&at_s) {
                recording.start_at(at_s);
            }
            if recording.n_frames() == 0 && self.known.begins_broken && at_s > MIN_GAP_S {
                let n = (at_s * f64::from(self.selected.rate_hz)).round() as usize;
                return recording.hole(self.selected.rate_hz, n.min(self.room(recording)), MISSING);
            }
            return Ok(());
        };
        let gap_s = at_s - expected_s;
        if !(MIN_GAP_S..MAX_GAP_S).contains(&gap_s) {
            return Ok(());
        }
        let n = ((gap_s * f64::from(self.selected.rate_hz)).round() as usize).min(self.room(recording));
        // Matroska files of live recordings have pauses.
        if self.container == "mkv" && !broken {
            return recording.pause(self.selected.rate_hz, n);
        }
        recording.hole(self.selected.rate_hz, n, MISSING)
    }
}

/// Frames that a byte of a codec could hold: its silence, in the longest packets that are usual.
pub(super) fn frames_per_byte(codec: &str) -> u64 {
    match codec {
        "flac" | "alac" => 512,
        "aac" | "vorbis" => 128,
        "mp1" | "mp2" | "mp3" => 48,
        codec if codec.starts_with("adpcm") => 2,
        // Plain samples of a byte.
        _ => 1,
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

/// The track to decode: the first one that can be, those marked as default before the others.
fn select(format: &dyn FormatReader, container: &'static str, mp4: &Mp4) -> Result<Selected, AudioErrorKind> {
    let audio = |track: &Track| match &track.codec_params {
        Some(CodecParameters::Audio(params)) => Some((track.id, track.flags, params.clone())),
        _ => None,
    };
    let mut tracks: Vec<_> = format.tracks().iter().filter_map(audio).enumerate().collect();
    let n_tracks = tracks.len();
    tracks.sort_by_key(|(_, (_, flags, _))| !flags.contains(TrackFlags::DEFAULT));
    let mut refused = None;
    let mut left_out = Vec::new();
    for (i, (track, _, mut params)) in tracks {
        // Those of plain samples make room as they go.
        params.max_frames_per_packet = params.max_frames_per_packet.filter(|&n| n <= MAX_PACKET_FRAMES);
        if mp4.track(track).is_some_and(|t| t.big_endian) {
            params.codec = big_endian(params.codec);
        }
        match open_decoder(&params, container) {
            Ok(decoder) => {
                let codec = names::audio_codec(params.codec);
                let choice = (n_tracks > 1).then_some(TrackChoice { index: i + 1, codec, left_out });
                return Ok(Selected { track, decoder, codec, rate_hz: params.sample_rate.unwrap_or(0), choice });
            }
            Err(e) => {
                left_out.push(match &e {
                    AudioErrorKind::Codec { codec, .. } => codec.clone(),
                    _ => names::audio_codec(params.codec).into(),
                });
                refused = refused.or(Some(e));
            }
        }
    }
    Err(refused.unwrap_or_else(|| AudioErrorKind::NoAudioTrack {
        container,
        tracks: format.tracks().iter().map(names::track).collect(),
    }))
}

/// The codec of plain samples with the highest byte first, for one with the lowest first.
fn big_endian(codec: AudioCodecId) -> AudioCodecId {
    match codec {
        CODEC_ID_PCM_S24LE => CODEC_ID_PCM_S24BE,
        CODEC_ID_PCM_S32LE => CODEC_ID_PCM_S32BE,
        CODEC_ID_PCM_F32LE => CODEC_ID_PCM_F32BE,
        CODEC_ID_PCM_F64LE => CODEC_ID_PCM_F64BE,
        other => other,
    }
}

/// A decoder for one track.
///
/// Errors: a codec, a rate or a number of channels that is not read.
pub(super) fn open_decoder(
    params: &AudioCodecParameters,
    container: &'static str,
) -> Result<Box<dyn AudioDecoder>, AudioErrorKind> {
    let refuse = |codec: &str, why| AudioErrorKind::Codec { codec: codec.into(), container, why };
    if params.codec == CODEC_ID_AAC {
        let config = params.extra_data.as_deref();
        if let Some(variant) = config.and_then(aac::high_efficiency) {
            return Err(refuse(variant, "only AAC-LC is decoded"));
        }
        let n_channels = config.and_then(aac::n_channels).or(params.channels.as_ref().map(|c| c.count()));
        if let Some(n) = n_channels.filter(|&n| n > MAX_AAC_CHANNELS) {
            return Err(refuse(&format!("AAC, {n} channels"), "AAC is decoded with one or two"));
        }
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

fn container_error(e: SymphoniaError) -> AudioErrorKind {
    match e {
        SymphoniaError::IoError(e) if e.kind() != ErrorKind::UnexpectedEof => AudioErrorKind::Io(e),
        e => AudioErrorKind::Container { why: reason(&e) },
    }
}

/// What a demuxer or decoder says.
pub(super) fn reason(e: &SymphoniaError) -> String {
    match e {
        SymphoniaError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => ENDS_EARLY.into(),
        SymphoniaError::IoError(e) => engine::error::Chain(e).to_string(),
        SymphoniaError::DecodeError(why) | SymphoniaError::Unsupported(why) | SymphoniaError::LimitError(why) => {
            (*why).into()
        }
        e => e.to_string(),
    }
}
