//! Sound inside of containers: [`Elementary`], its bytes; [`Timeline`], where it belongs by the times beside it; [`first`], the
//! track to take.

use std::collections::VecDeque;
use std::io::Read;

use super::error::AudioErrorKind;
use super::limits::REFERENCE_RATE_HZ;
use super::loss::TrackChoice;
use super::recording::{Decoded, MAX_STRETCH, Recording};

/// Shorter differences of times, in seconds, are how containers round them, or a clock that drifts.
pub(super) const MIN_GAP_S: f64 = 0.1;

/// The same where something is known to be missing.
const MIN_BROKEN_GAP_S: f64 = 0.01;

/// A longer gap, in seconds, is another clock or a damaged time. Sound that starts later starts at the start.
pub(super) const MAX_GAP_S: f64 = 600.0;

/// A first frame before this time, in seconds, is the delay of an encoder.
pub(super) const MIN_START_S: f64 = 0.1;

/// Frames of silence for a byte of the file, so that a small file fills no memory: that of 8 kbit/s at 16 kHz.
const MAX_SILENCE_PER_BYTE: u64 = 16;

/// Said of times without packets.
pub(super) const MISSING: &str = "packets are missing";

/// The bytes of a stream, without those of its container.
pub(super) trait Elementary: Read {
    /// Goes on behind the present break, where bytes are missing and reading ends; first of all to the start. False at the end.
    fn resume(&mut self) -> std::io::Result<bool>;

    /// The time that is written for a frame that begins at this offset behind the last break, in seconds of the file's clock.
    ///
    /// Frames are asked for in order.
    fn time_s(&mut self, offset: u64) -> Option<f64>;
}

/// Times, with the places in a stream that they are written for.
#[derive(Default)]
pub(super) struct Times(VecDeque<(u64, f64)>);

impl Times {
    /// The time of what begins at `place` or behind it. A later one for the same place counts.
    pub(super) fn note(&mut self, place: u64, time_s: f64) {
        self.0.pop_back_if(|(last, _)| *last == place);
        self.0.push_back((place, time_s));
    }

    /// The last time that is noted for a place up to this one; those before it are forgotten.
    pub(super) fn take(&mut self, place: u64) -> Option<f64> {
        let mut taken = None;
        while let Some((_, time_s)) = self.0.pop_front_if(|(at, _)| *at <= place) {
            taken = Some(time_s);
        }
        taken
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where sound belongs by the times that its container writes, compared with how much there is.
///
/// A difference counts when the next time has it too: single times are damaged. Only differences between neighbours count,
/// since clocks drift.
pub(super) struct Timeline {
    /// Bytes of the file, and of the frames so far.
    len: u64,
    frame_bytes: u64,
    /// Frames of silence that were filled in.
    n_filled: u64,
    /// What is to be added to a time to have that of the recording.
    offset_s: Option<f64>,
    /// A difference that is not confirmed, and the frame at which it was.
    pending: Option<(f64, usize)>,
    /// The frame at which bytes are missing since the last difference.
    broken_at: Option<usize>,
    /// Frames that were probably there.
    n_broken: usize,
}

impl Timeline {
    /// Of a file with `len` bytes.
    pub(super) fn new(len: u64) -> Self {
        Self { len, frame_bytes: 0, n_filled: 0, offset_s: None, pending: None, broken_at: None, n_broken: 0 }
    }

    /// Whether there are times.
    pub(super) fn runs(&self) -> bool {
        self.offset_s.is_some()
    }

    /// A frame of so many bytes follows.
    pub(super) fn frame(&mut self, n_bytes: usize) {
        self.frame_bytes += n_bytes as u64;
    }

    /// Bytes are missing here, of `n` frames if nothing else tells.
    pub(super) fn broken(&mut self, recording: &Recording, n: usize) {
        self.broken_at.get_or_insert(recording.n_kept());
        self.n_broken += n;
    }

    /// The next frame is said to be at `time_s`; fills what is missing before it.
    ///
    /// Errors: too many samples.
    pub(super) fn check(&mut self, time_s: f64, recording: &mut Recording) -> Result<(), AudioErrorKind> {
        let here_s = recording.position_s();
        let Some(offset_s) = self.offset_s else {
            let believed_s = room(self.len, 0, 0) as f64 / f64::from(REFERENCE_RATE_HZ);
            if recording.n_frames() == 0 && (MIN_START_S..believed_s.min(MAX_GAP_S)).contains(&time_s) {
                recording.start_at(time_s);
            }
            self.offset_s = Some(recording.position_s() - time_s);
            self.broken_at = None;
            return Ok(());
        };
        let gap_s = time_s + offset_s - here_s;
        let tolerance_s = if self.broken_at.is_some() { MIN_BROKEN_GAP_S } else { MIN_GAP_S };
        if gap_s.abs() < tolerance_s {
            self.offset_s = Some(here_s - time_s);
            (self.pending, self.broken_at, self.n_broken) = (None, None, 0);
            return Ok(());
        }
        let Some((pending_s, at)) = self.pending else {
            self.pending = Some((gap_s, self.broken_at.unwrap_or(recording.n_kept())));
            return Ok(());
        };
        // More may be missing by now.
        let grown = self.broken_at.is_some() && pending_s > 0.0 && gap_s > pending_s;
        if (gap_s - pending_s).abs() > MIN_GAP_S && !grown {
            self.pending = Some((gap_s, at));
            return Ok(());
        }
        if (0.0..MAX_GAP_S).contains(&gap_s) {
            self.fill(gap_s, at, recording)?;
        }
        self.offset_s = Some(recording.position_s() - time_s);
        (self.pending, self.broken_at, self.n_broken) = (None, None, 0);
        Ok(())
    }

    /// Fills what is missing at the end.
    ///
    /// Errors: too many samples.
    pub(super) fn finish(&mut self, recording: &mut Recording) -> Result<(), AudioErrorKind> {
        let estimate_s = self.n_broken as f64 / f64::from(recording.rate_hz().max(1));
        match (self.pending, self.broken_at) {
            (Some((gap_s, at)), Some(_)) if (0.0..MAX_GAP_S).contains(&gap_s) => self.fill(gap_s, at, recording),
            (None, Some(at)) => self.fill(estimate_s, at, recording),
            _ => Ok(()),
        }
    }

    /// Silence for a gap: a loss where something is missing, else a pause.
    fn fill(&mut self, gap_s: f64, at: usize, recording: &mut Recording) -> Result<(), AudioErrorKind> {
        let n_decoded = recording.n_frames() - self.n_filled;
        let room = room(self.len, self.frame_bytes, n_decoded).saturating_sub(recording.n_frames());
        let n = (gap_s * f64::from(recording.rate_hz())).round() as u64;
        let n = n.min(room);
        self.n_filled += n;
        recording.insert(at, n as usize, self.broken_at.map(|_| MISSING))
    }
}

/// Frames that a file of `len` bytes may have: [`MAX_STRETCH`] times what its bytes hold at the bit rate of `n_bytes` that gave
/// `n_frames`.
pub(super) fn room(len: u64, n_bytes: u64, n_frames: u64) -> u64 {
    let dense = u128::from(len) * u128::from(MAX_SILENCE_PER_BYTE);
    let all = match n_frames {
        0 => dense,
        n => u128::from(MAX_STRETCH) * dense.min(u128::from(len) * u128::from(n) / u128::from(n_bytes.max(1))),
    };
    u64::try_from(all).unwrap_or(u64::MAX)
}

/// The first of `n` tracks that can be decoded, and which that was; none if there are no tracks.
///
/// Errors: those of the first track where no codec is known; any other.
pub(super) fn first(
    n: usize,
    mut decode: impl FnMut(usize) -> Result<Decoded, AudioErrorKind>,
) -> Option<Result<Decoded, AudioErrorKind>> {
    let (mut left_out, mut refused) = (Vec::new(), None);
    for i in 0..n {
        match decode(i) {
            Ok(clip) => {
                let track = (n > 1).then_some(TrackChoice { index: i + 1, codec: clip.codec, left_out });
                return Some(Ok(Decoded { track, ..clip }));
            }
            Err(AudioErrorKind::Codec { codec, container, why }) => {
                left_out.push(codec.clone());
                refused = refused.or(Some(AudioErrorKind::Codec { codec, container, why }));
            }
            // A track without anything in it leaves nothing out.
            Err(AudioErrorKind::NoSamples) if i + 1 < n => {}
            Err(e) => return Some(Err(refused.unwrap_or(e))),
        }
    }
    refused.map(Err)
}
