//! [`AudioError`]: why a file gives no samples.

use std::fmt;

use super::limits::{MAX_CHANNELS, MAX_INPUT_BYTES, MAX_MAGNITUDE, MAX_RATE_HZ, MIN_RATE_HZ};

/// An input and what is wrong with it. Displayed with its causes ([`engine::error::Chain`]): `jfk.m4a: no audio track (container mp4; tracks: video h264)`.
#[derive(Debug)]
pub struct AudioError {
    /// The path, or a name for bytes from elsewhere.
    pub input: String,
    /// What is wrong.
    pub kind: AudioErrorKind,
}

/// Name of a track of which nothing is known.
pub(super) const UNKNOWN_TRACK: &str = "unknown";

/// What is wrong with an audio input.
#[derive(Debug)]
pub enum AudioErrorKind {
    /// The operating system refused to open or read it.
    Io(std::io::Error),
    /// It has no bytes.
    Empty,
    /// It is a stream of more than [`MAX_INPUT_BYTES`].
    TooManyBytes,
    /// It is in no format that is known here.
    NotRecognised,
    /// It is a media file of a kind that is not read here.
    NotRead {
        /// Short name of the container.
        container: &'static str,
        /// Codec and channels of its sound, where it says so at its beginning.
        sound: Option<String>,
    },
    /// Its container is malformed, or uses a part of the format that is not read here.
    Container {
        /// What is wrong.
        why: String,
    },
    /// It is an MP4 or QuickTime file without its index.
    Unfinished,
    /// The container holds no sound.
    NoAudioTrack {
        /// Short name of the container.
        container: &'static str,
        /// Kind and codec of what it does hold.
        tracks: Vec<String>,
    },
    /// The sound is in a codec that is not decoded here.
    Codec {
        /// Its name.
        codec: String,
        /// Short name of the container.
        container: &'static str,
        /// What the decoder says.
        why: &'static str,
    },
    /// More packets are damaged than not.
    Damaged {
        /// Packets that could not be decoded.
        bad: usize,
        /// All packets.
        of: usize,
        /// The first reason.
        why: String,
    },
    /// It has no samples.
    NoSamples,
    /// It has more samples than are kept in memory.
    TooLong {
        /// Seconds that fit.
        limit_s: u64,
    },
    /// Its sample rate is not between [`MIN_RATE_HZ`] and [`MAX_RATE_HZ`].
    SampleRate {
        /// The rate.
        rate_hz: u32,
    },
    /// It has no channels, or more than [`MAX_CHANNELS`].
    Channels {
        /// The number.
        n_channels: usize,
    },
    /// Most samples are not numbers, or above [`MAX_MAGNITUDE`].
    BadSample {
        /// Index of the frame of the first.
        at: u64,
        /// The first.
        value: f32,
    },
}

impl AudioErrorKind {
    /// This error of the input with this name.
    pub(super) fn of(self, input: &str) -> AudioError {
        AudioError { input: input.into(), kind: self }
    }

    /// Whether this is sound that other programs convert to a format that is read here.
    pub fn is_convertible(&self) -> bool {
        match self {
            Self::NotRead { .. } | Self::Codec { .. } | Self::Channels { n_channels: 1.. } => true,
            // It may be sound.
            Self::NoAudioTrack { tracks, .. } => tracks.iter().any(|track| track == UNKNOWN_TRACK),
            _ => false,
        }
    }

    /// What the system said.
    fn cause(&self) -> Option<&std::io::Error> {
        match self {
            Self::Io(e) => Some(e),
            Self::Empty
            | Self::TooManyBytes
            | Self::NotRecognised
            | Self::NotRead { .. }
            | Self::Container { .. }
            | Self::Unfinished
            | Self::NoAudioTrack { .. }
            | Self::Codec { .. }
            | Self::Damaged { .. }
            | Self::NoSamples
            | Self::TooLong { .. }
            | Self::SampleRate { .. }
            | Self::Channels { .. }
            | Self::BadSample { .. } => None,
        }
    }
}

impl fmt::Display for AudioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.cause() {
            // `source` has the rest.
            Some(_) => f.write_str(&self.input),
            None => write!(f, "{}: {}", self.input, self.kind),
        }
    }
}

impl fmt::Display for AudioErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "{}", engine::error::Chain(e)),
            Self::Empty => f.write_str("empty file"),
            Self::TooManyBytes => write!(f, "longer than {} MiB, the limit for a stream", MAX_INPUT_BYTES >> 20),
            Self::NotRecognised => f.write_str("not an audio file in a known format"),
            Self::NotRead { container, sound: None } => write!(f, "{container} files are not read"),
            Self::NotRead { container, sound: Some(sound) } => {
                write!(f, "{container} files are not read (sound: {sound})")
            }
            Self::Container { why } => write!(f, "cannot be read: {why}"),
            Self::Unfinished => f.write_str(
                "mp4 without its index (moov): the recording was not finished, or its end is missing; programs that repair \
                 it (untrunc) want another recording of the same device",
            ),
            Self::NoAudioTrack { container, tracks } => {
                let tracks = if tracks.is_empty() { "none".into() } else { tracks.join(", ") };
                write!(f, "no audio track (container {container}; tracks: {tracks})")
            }
            Self::Codec { codec, container, why } => {
                write!(f, "codec {codec} is not supported (container {container}; {why})")
            }
            Self::Damaged { bad, of, why } => write!(f, "damaged: {bad} of {of} packets cannot be decoded ({why})"),
            Self::NoSamples => f.write_str("no samples"),
            Self::TooLong { limit_s } => write!(f, "longer than {limit_s} s, the limit at its sample rate"),
            Self::SampleRate { rate_hz } => {
                write!(f, "sample rate {rate_hz} Hz, want {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
            }
            Self::Channels { n_channels } => write!(f, "{n_channels} channels, want 1 to {MAX_CHANNELS}"),
            Self::BadSample { at, value } => {
                write!(f, "sample {at} is {value}, want a number of at most {MAX_MAGNITUDE:e}")
            }
        }
    }
}

impl std::error::Error for AudioError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.kind.cause().map(|e| e as _)
    }
}
