//! Names of containers and codecs for messages.

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::AudioCodecId;
use symphonia::core::codecs::audio::well_known::*;
use symphonia::core::codecs::video::VideoCodecId;
use symphonia::core::codecs::video::well_known::*;
use symphonia::core::formats::{FormatInfo, Track, well_known::*};

use super::error::UNKNOWN_TRACK;

/// Short name of a container, as users write it.
pub(super) fn container(info: &FormatInfo) -> &'static str {
    match info.format {
        FORMAT_ID_WAVE => "wav",
        FORMAT_ID_ISOMP4 => "mp4",
        FORMAT_ID_MKV => "mkv",
        FORMAT_ID_ADTS => "adts",
        _ => info.short_name,
    }
}

/// Kind and codec of a track: `video h264`.
pub(super) fn track(track: &Track) -> String {
    match &track.codec_params {
        Some(CodecParameters::Audio(p)) => format!("audio {}", audio_codec(p.codec)),
        Some(CodecParameters::Video(p)) => format!("video {}", video_codec(p.codec)),
        Some(CodecParameters::Subtitle(_)) => "subtitle".into(),
        _ => UNKNOWN_TRACK.into(),
    }
}

/// Name of an audio codec.
pub(super) fn audio_codec(codec: AudioCodecId) -> &'static str {
    if let Some(known) = symphonia::default::get_codecs().get_audio_decoder(codec) {
        return known.codec.info.short_name;
    }
    match codec {
        CODEC_ID_OPUS => "opus",
        CODEC_ID_SPEEX => "speex",
        CODEC_ID_MUSEPACK => "musepack",
        CODEC_ID_AC3 => "ac3",
        CODEC_ID_EAC3 => "eac3",
        CODEC_ID_AC4 => "ac4",
        CODEC_ID_DCA => "dts",
        CODEC_ID_ATRAC1 | CODEC_ID_ATRAC3 | CODEC_ID_ATRAC3PLUS | CODEC_ID_ATRAC9 => "atrac",
        CODEC_ID_WMA => "wma",
        CODEC_ID_RA10 | CODEC_ID_RA20 | CODEC_ID_SIPR | CODEC_ID_COOK | CODEC_ID_RALF => "realaudio",
        CODEC_ID_ADPCM_G722 => "g722",
        CODEC_ID_ADPCM_G726 | CODEC_ID_ADPCM_G726LE => "g726",
        CODEC_ID_WAVPACK => "wavpack",
        CODEC_ID_MONKEYS_AUDIO => "monkey's audio",
        CODEC_ID_TTA => "tta",
        CODEC_ID_TRUEHD => "truehd",
        _ => "unknown",
    }
}

/// Name of a sample format of WAV files. Source: RFC 2361 and mmreg.h.
pub(super) fn wave_format(tag: u16) -> String {
    let name = match tag {
        0x0001 => "pcm",
        0x0002 => "adpcm_ms",
        0x0003 => "pcm_float",
        0x0006 => "alaw",
        0x0007 => "mulaw",
        0x0011 => "adpcm_ima_wav",
        0x0031 => "gsm 6.10",
        0x0040 => "g721",
        0x0014 => "g723",
        0x0045 | 0x0064 => "g726",
        0x0065 | 0x028f => "g722",
        0x0050 => "mp2",
        0x0055 => "mp3",
        0x00ff | 0x1600..=0x1602 | 0x1610 => "aac",
        0x0160..=0x0163 => "wma",
        0x2000 => "ac3",
        0x2001 => "dts",
        0x566f | 0x674f..=0x6771 => "vorbis",
        0x704f => "opus",
        0xa109 => "speex",
        0xf1ac => "flac",
        _ => return format!("{tag:#06x}"),
    };
    name.into()
}

/// A codec with its number of channels: `mp3, 2 channels`.
pub(super) fn with_channels(codec: String, n_channels: u16) -> String {
    match n_channels {
        0 => codec,
        1 => format!("{codec}, 1 channel"),
        n => format!("{codec}, {n} channels"),
    }
}

/// Name of a video codec.
fn video_codec(codec: VideoCodecId) -> &'static str {
    match codec {
        CODEC_ID_MJPEG => "mjpeg",
        CODEC_ID_VP8 => "vp8",
        CODEC_ID_VP9 => "vp9",
        CODEC_ID_THEORA => "theora",
        CODEC_ID_AV1 => "av1",
        CODEC_ID_MPEG1 => "mpeg1",
        CODEC_ID_MPEG2 => "mpeg2",
        CODEC_ID_MPEG4 => "mpeg4",
        CODEC_ID_H263 => "h263",
        CODEC_ID_H264 => "h264",
        CODEC_ID_HEVC => "hevc",
        CODEC_ID_VVC => "vvc",
        CODEC_ID_VC1 => "vc1",
        _ => "unknown",
    }
}
