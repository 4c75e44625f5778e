//! [`Recording`]: what was decoded so far, mixed down, with what was lost on the way. At the end it is [`Decoded`].

use symphonia::core::audio::GenericAudioBufferRef;

use super::error::AudioErrorKind;
use super::limits::{MAX_CHANNELS, MAX_MAGNITUDE, MAX_RATE_HZ, MIN_RATE_HZ, REFERENCE_RATE_HZ, max_samples};
use super::loss::{self, Loss, TrackChoice};
use super::resample::resample;

/// Less than this at the end of a file, in seconds, is how encoders and containers count, not a loss.
const END_TOLERANCE_S: f64 = 0.1;

/// A length is believed up to so many times what the bytes of a file could hold.
pub(super) const MAX_STRETCH: u64 = 64;

/// Said of a file that ends before the end that it announces.
pub(super) const ENDS_EARLY: &str = "the file ends early";

/// Said of samples that are no numbers, or far too large.
const NO_NUMBERS: &str = "samples that are no numbers";

/// Said of one that announces an end which is not believed.
const ANNOUNCES_TOO_MUCH: &str = "the file ends early, and announces more than is believed";

/// Mono samples of a clip.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Arithmetic mean over the channels. In [-1, 1] except for floating point files that are not. What was lost between
    /// two samples is silence.
    pub samples: Vec<f32>,
    /// Samples per second.
    pub rate_hz: u32,
    /// When the first sample sounds, in seconds of the file's own clock: sound may start later than its film.
    pub start_s: f64,
    /// Short name of the container.
    pub container: &'static str,
    /// Short name of the codec.
    pub codec: &'static str,
    /// What could not be decoded, in order of time.
    pub losses: Vec<Loss>,
    /// Which track this is, where the file has several with sound.
    pub track: Option<TrackChoice>,
}

/// Mono samples with the losses among them.
#[derive(Default)]
pub(super) struct Recording {
    /// Stretches of another rate before this one.
    finished: Vec<(u32, Vec<f32>)>,
    /// Samples of the present rate.
    samples: Vec<f32>,
    rate_hz: u32,
    /// Seconds of `finished`.
    finished_s: f64,
    /// Frames decoded, kept or not.
    n_frames: u64,
    /// Frames at hand that are still to be left out.
    n_skip: u64,
    /// When the sound starts, in seconds of the file's clock.
    start_s: f64,
    /// Frames up to which an end is believed.
    believed_frames: Option<u64>,
    losses: Vec<Loss>,
    n_packets: usize,
    n_bad: usize,
    first_reason: Option<String>,
    /// Frames with a sample that is not accepted, and the first of them.
    n_bad_frames: u64,
    first_bad_sample: Option<(u64, f32)>,
    planes: Vec<Vec<f32>>,
}

impl Recording {
    /// A recording that starts at this time.
    pub(super) fn starting_at(start_s: f64) -> Self {
        Self { start_s, ..Self::default() }
    }

    /// Moves the start, before the first sample.
    pub(super) fn start_at(&mut self, start_s: f64) {
        self.start_s = start_s;
    }

    /// Moves all of it, and where it starts.
    pub(super) fn move_by(&mut self, by_s: f64) {
        self.start_s += by_s;
        for loss in &mut self.losses {
            loss.start_s += by_s;
            loss.end_s += by_s;
        }
    }

    /// Leaves out the next `n` frames, which an encoder put there.
    pub(super) fn skip(&mut self, n: u64) {
        self.n_skip = n;
    }

    /// The bytes of the file could hold this many frames: [`MAX_STRETCH`] times that is believed of what it announces.
    pub(super) fn could_hold(&mut self, n_frames: u64) {
        self.believed_frames = Some(n_frames.saturating_mul(MAX_STRETCH));
    }

    /// Takes back the last `n` frames, which an encoder put there.
    pub(super) fn take_back(&mut self, n: usize) {
        self.samples.truncate(self.samples.len().saturating_sub(n));
    }

    /// Frames decoded so far, kept or not.
    pub(super) fn n_frames(&self) -> u64 {
        self.n_frames
    }

    /// Frames kept at the present rate.
    pub(super) fn n_kept(&self) -> usize {
        self.samples.len()
    }

    /// The present rate, 0 before the first sample.
    pub(super) fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// Where the next sample belongs, in seconds of the file's clock.
    pub(super) fn position_s(&self) -> f64 {
        let here = if self.rate_hz == 0 { 0.0 } else { self.samples.len() as f64 / f64::from(self.rate_hz) };
        self.start_s + self.finished_s + here
    }

    /// Appends the mean over the channels of a packet.
    ///
    /// Errors: a rate or a number of channels that is not accepted; too many samples.
    pub(super) fn packet(&mut self, buffer: &GenericAudioBufferRef<'_>) -> Result<(), AudioErrorKind> {
        self.n_packets += 1;
        if buffer.frames() == 0 {
            return Ok(());
        }
        check_channels(buffer.num_planes())?;
        let mut planes = std::mem::take(&mut self.planes);
        buffer.copy_to_vecs_planar(&mut planes);
        let rate_hz = buffer.spec().rate();
        if !planes.iter().all(|plane| are_samples(plane)) {
            for i in 0..buffer.frames() {
                let mut frame = planes.iter_mut().filter_map(|plane| plane.get_mut(i));
                self.silence(rate_hz, i, &mut frame);
            }
        }
        let n_channels = planes.len() as f64;
        let mean = |i: usize| (planes.iter().map(|plane| f64::from(plane[i])).sum::<f64>() / n_channels) as f32;
        self.extend(rate_hz, buffer.frames(), mean)?;
        self.planes = planes;
        Ok(())
    }

    /// Appends the mean over the channels of whole frames.
    ///
    /// Errors: as [`Self::packet`].
    pub(super) fn interleaved(&mut self, rate_hz: u32, n_channels: usize, x: &mut [f32]) -> Result<(), AudioErrorKind> {
        self.n_packets += 1;
        if !are_samples(x) {
            for (i, frame) in x.chunks_mut(n_channels).enumerate() {
                self.silence(rate_hz, i, &mut frame.iter_mut());
            }
        }
        if n_channels == 1 {
            return self.extend(rate_hz, x.len(), |i| x[i]);
        }
        let frame = |i: usize| &x[i * n_channels..(i + 1) * n_channels];
        let mean = |i: usize| (frame(i).iter().map(|&v| f64::from(v)).sum::<f64>() / n_channels as f64) as f32;
        self.extend(rate_hz, x.len() / n_channels, mean)
    }

    /// A packet of `n` frames that cannot be decoded: silence.
    ///
    /// Errors: too many samples.
    pub(super) fn bad_packet(&mut self, rate_hz: u32, n: usize, why: &str) -> Result<(), AudioErrorKind> {
        self.n_packets += 1;
        self.n_bad += 1;
        self.hole(rate_hz, n, why)
    }

    /// `n` frames in which nothing sounds.
    ///
    /// Errors: too many samples.
    pub(super) fn pause(&mut self, rate_hz: u32, n: usize) -> Result<(), AudioErrorKind> {
        if rate_hz == 0 { Ok(()) } else { self.extend(rate_hz, n, |_| 0.0) }
    }

    /// What to say if nothing can be decoded.
    pub(super) fn note(&mut self, why: &str) {
        self.first_reason.get_or_insert_with(|| why.into());
    }

    /// `n` frames that are not in the file: silence.
    ///
    /// Errors: too many samples.
    pub(super) fn hole(&mut self, rate_hz: u32, n: usize, why: &str) -> Result<(), AudioErrorKind> {
        self.note(why);
        if n == 0 || rate_hz == 0 {
            return Ok(());
        }
        let start_s = self.position_s();
        self.extend(rate_hz, n, |_| 0.0)?;
        let end_s = self.position_s();
        if end_s > start_s {
            loss::add(&mut self.losses, start_s, end_s, why);
        }
        Ok(())
    }

    /// `n` frames of silence before the frame `at` of the present rate: a loss where there is a reason, else a pause.
    ///
    /// Errors: too many samples.
    pub(super) fn insert(&mut self, at: usize, n: usize, why: Option<&str>) -> Result<(), AudioErrorKind> {
        let tail = self.samples.split_off(at.min(self.samples.len()));
        let start_s = self.position_s();
        let later = self.losses.split_off(self.losses.partition_point(|loss| loss.start_s < start_s));
        match why {
            Some(why) => self.hole(self.rate_hz, n, why)?,
            None => self.pause(self.rate_hz, n)?,
        }
        let by_s = self.position_s() - start_s;
        self.samples.extend(tail);
        let moved = |loss: Loss| Loss { start_s: loss.start_s + by_s, end_s: loss.end_s + by_s, ..loss };
        self.losses.extend(later.into_iter().map(moved));
        Ok(())
    }

    /// From here on to `end_s` there is nothing, at the end of the file.
    pub(super) fn lost(&mut self, end_s: f64, what: &str) {
        self.note(what);
        let start_s = self.position_s();
        loss::add(&mut self.losses, start_s, end_s, what);
    }

    /// The end was announced for this time, give or take `packet_s` seconds; what is missing is a loss.
    pub(super) fn announced_end(&mut self, end_s: f64, packet_s: f64) {
        let believed_s = match self.believed_frames {
            Some(n) if self.rate_hz > 0 => n as f64 / f64::from(self.rate_hz),
            _ => f64::INFINITY,
        };
        let (end_s, what) = if end_s > believed_s { (believed_s, ANNOUNCES_TOO_MUCH) } else { (end_s, ENDS_EARLY) };
        if end_s - self.position_s() > END_TOLERANCE_S.max(packet_s) {
            self.lost(end_s, what);
        }
    }

    /// The clip.
    ///
    /// Errors: more packets or samples were bad than good, or there are no samples.
    pub(super) fn finish(
        mut self,
        container: &'static str,
        codec: &'static str,
        track: Option<TrackChoice>,
    ) -> Result<Decoded, AudioErrorKind> {
        if self.n_bad > self.n_packets / 2 {
            let why = self.first_reason.unwrap_or_default();
            return Err(AudioErrorKind::Damaged { bad: self.n_bad, of: self.n_packets, why });
        }
        if let Some((at, value)) = self.first_bad_sample.filter(|_| self.n_bad_frames > self.n_frames / 2) {
            return Err(AudioErrorKind::BadSample { at, value });
        }
        self.finish_stretch();
        if self.finished.is_empty() {
            return Err(match self.first_reason {
                Some(why) => AudioErrorKind::Container { why },
                None => AudioErrorKind::NoSamples,
            });
        }
        let (rate_hz, samples) = joined(self.finished);
        Ok(Decoded { samples, rate_hz, start_s: self.start_s, container, codec, losses: self.losses, track })
    }

    /// Samples that are not accepted become silence, and their frame, `i` from here, a loss.
    fn silence(&mut self, rate_hz: u32, i: usize, frame: &mut dyn Iterator<Item = &mut f32>) {
        let mut bad = None;
        for value in frame.filter(|value| !is_sample(**value)) {
            bad.get_or_insert(*value);
            *value = 0.0;
        }
        let Some(value) = bad else { return };
        self.n_bad_frames += 1;
        self.first_bad_sample.get_or_insert((self.n_frames + i as u64, value));
        if let Some(kept) = (i as u64).checked_sub(self.n_skip) {
            let time_s = |frame: u64| frame as f64 / f64::from(rate_hz.max(1));
            let start_s = self.position_s() + time_s(kept);
            loss::add(&mut self.losses, start_s, start_s + time_s(1), NO_NUMBERS);
        }
    }

    fn extend(&mut self, rate_hz: u32, n: usize, sample: impl Fn(usize) -> f32) -> Result<(), AudioErrorKind> {
        if rate_hz != self.rate_hz {
            check_rate(rate_hz)?;
            self.finish_stretch();
            self.rate_hz = rate_hz;
        }
        let skip = self.n_skip.min(n as u64) as usize;
        self.n_skip -= skip as u64;
        self.n_frames += n as u64;
        let limit = max_samples(rate_hz);
        let earlier = self.finished_s * f64::from(rate_hz);
        let n_after = (self.samples.len() + n - skip) as u64 + earlier as u64;
        if n_after > limit || self.samples.try_reserve(n - skip).is_err() {
            return Err(AudioErrorKind::TooLong { limit_s: limit / u64::from(rate_hz) });
        }
        self.samples.extend((skip..n).map(sample));
        Ok(())
    }

    fn finish_stretch(&mut self) {
        if !self.samples.is_empty() {
            let samples = std::mem::take(&mut self.samples);
            self.finished_s += samples.len() as f64 / f64::from(self.rate_hz);
            self.finished.push((self.rate_hz, samples));
        }
    }
}

fn is_sample(value: f32) -> bool {
    value.abs() <= MAX_MAGNITUDE
}

fn are_samples(x: &[f32]) -> bool {
    x.iter().all(|&value| is_sample(value))
}

/// Stretches as one; at [`REFERENCE_RATE_HZ`] where their rates differ.
fn joined(mut stretches: Vec<(u32, Vec<f32>)>) -> (u32, Vec<f32>) {
    if let [_] = stretches[..]
        && let Some((rate_hz, samples)) = stretches.pop()
    {
        return (rate_hz, samples);
    }
    let at_reference = stretches.into_iter().flat_map(|(rate_hz, x)| resample(x, rate_hz, REFERENCE_RATE_HZ));
    (REFERENCE_RATE_HZ, at_reference.collect())
}

/// Refuses rates that are not read.
pub(super) fn check_rate(rate_hz: u32) -> Result<(), AudioErrorKind> {
    if (MIN_RATE_HZ..=MAX_RATE_HZ).contains(&rate_hz) { Ok(()) } else { Err(AudioErrorKind::SampleRate { rate_hz }) }
}

/// Refuses numbers of channels that are not read.
pub(super) fn check_channels(n_channels: usize) -> Result<(), AudioErrorKind> {
    if (1..=MAX_CHANNELS).contains(&n_channels) { Ok(()) } else { Err(AudioErrorKind::Channels { n_channels }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_silence_and_losses() {
        let mut recording = Recording::starting_at(1.0);
        recording.interleaved(8000, 2, &mut [0.5, 0.25].repeat(800)).unwrap();
        recording.bad_packet(8000, 400, "broken").unwrap();
        recording.hole(8000, 400, "broken").unwrap();
        recording.interleaved(8000, 1, &mut [1.0; 800]).unwrap();
        recording.announced_end(2.0, 0.0);
        let clip = recording.finish("x", "y", None).unwrap();
        let want: Vec<f32> = [[0.375; 800], [0.0; 800], [1.0; 800]].concat();
        assert_eq!((clip.samples, clip.rate_hz, clip.start_s), (want, 8000, 1.0));
        let spans: Vec<_> = clip.losses.iter().map(|l| (l.start_s, l.end_s, l.what.as_str())).collect();
        assert_eq!(spans, [(1.1, 1.2, "broken"), (1.3, 2.0, ENDS_EARLY)]);
    }

    #[test]
    fn samples_that_are_no_numbers_are_silence_and_losses() {
        let mut recording = Recording::default();
        recording.interleaved(8000, 2, &mut [0.5, 0.25].repeat(800)).unwrap();
        let mut x = [0.5, 0.25].repeat(800);
        (x[8], x[10], x[11], x[1599]) = (f32::NAN, f32::INFINITY, -2e30, f32::NEG_INFINITY);
        recording.interleaved(8000, 2, &mut x).unwrap();
        let clip = recording.finish("x", "y", None).unwrap();
        assert_eq!(
            (clip.samples[804], clip.samples[805], clip.samples[1599], clip.samples[806]),
            (0.125, 0.0, 0.25, 0.375)
        );
        let spans: Vec<_> = clip.losses.iter().map(|l| ((l.start_s * 8000.0).round(), l.seconds() * 8000.0)).collect();
        assert_eq!(spans.iter().map(|s| (s.0, s.1.round())).collect::<Vec<_>>(), [(804.0, 2.0), (1599.0, 1.0)]);
        let mut recording = Recording::default();
        recording.interleaved(8000, 1, &mut [0.0, f32::NAN, f32::NAN]).unwrap();
        let error = recording.finish("x", "y", None).unwrap_err();
        assert!(matches!(error, AudioErrorKind::BadSample { at: 1, .. }), "{error}");
    }

    #[test]
    fn an_end_is_believed_up_to_64_times_what_the_bytes_could_hold() {
        for (announced_s, end_s, what) in [(63.0, 63.0, ENDS_EARLY), (65.0, 64.0, ANNOUNCES_TOO_MUCH)] {
            let mut recording = Recording::default();
            recording.could_hold(8000);
            recording.interleaved(8000, 1, &mut [0.0; 4000]).unwrap();
            recording.announced_end(announced_s, 0.0);
            let losses = recording.finish("x", "y", None).unwrap().losses;
            assert_eq!(losses, [Loss { start_s: 0.5, end_s, what: what.into() }]);
        }
    }

    #[test]
    fn stretches_of_other_rates_keep_their_length() {
        let mut recording = Recording::default();
        recording.interleaved(8000, 1, &mut [0.0; 4000]).unwrap();
        recording.interleaved(48_000, 1, &mut [0.0; 24_000]).unwrap();
        assert_eq!(recording.position_s(), 1.0);
        let clip = recording.finish("x", "y", None).unwrap();
        assert_eq!((clip.samples.len(), clip.rate_hz), (16_000, 16_000));
    }
}
