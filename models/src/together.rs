//! [`Together`]: several segments on their way to text at once, those of one clip and of the next ones. A [`Transcriber`] lends its
//! slots; what is computed is done by its thread, a segment's audio or a call of the decoder at a time.
//!
//! What comes of a segment are the same bits as alone: the encoder hears one at a time, a prompt is read in calls of its own
//! ([`Scheduler::read_apart`]), and calls in which several segments decode have a row of each. Only they are faster together, since
//! all rows share a pass over the weights.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use engine::batch;

use crate::audio::Features;
use crate::decoding::Event;
use crate::error::{Error, Result};
use crate::scheduler::{Scheduler, SequenceId};
use crate::transcribe::{Observer, Partial, Request, Tensors, Transcriber, Transcript};
use crate::transcription::{Stage, Transcription};

/// While somebody waits for text, a call decodes for so many tokens of a prompt that was read, before the next segment is heard.
/// Answers have about a quarter of the tokens of their prompts: eight segments that share their calls end that far apart.
const PROMPT_PER_CALL: usize = 32;

/// Clips on their way to text, and who watches each of them.
///
/// Where an observer waits for text ([`Observer::waits_for_text`]), the first segment of all has the model to itself, and others
/// join one by one. A segment that fails for a reason that may be its company, such as memory, is tried again without.
pub struct Together<'a, O: Observer> {
    transcriber: &'a mut Transcriber,
    /// In the order in which they came.
    clips: VecDeque<Clip<'a, O>>,
    /// Segments at once.
    n_most: usize,
    /// Whether a segment is finished.
    has_text: bool,
    /// Calls that decode before the next segment is heard, where somebody waits for text.
    n_calls: usize,
    reduced: Option<Error>,
    spent: Duration,
}

/// A clip that is not over, or whose end nobody has asked for.
struct Clip<'a, O> {
    transcription: Transcription<'a>,
    observer: O,
    /// Segments that have a sequence, in their order.
    running: Vec<Running>,
    /// The first segment that cannot be answered, and why. Those before it are finished first.
    failure: Option<(usize, Error)>,
}

/// A segment that has a sequence.
struct Running {
    id: SequenceId,
    i_segment: usize,
    /// Until its prompt is in memory.
    heard: Option<Heard>,
    /// Why it cannot go on.
    error: Option<Error>,
    is_over: bool,
}

/// What a segment's prompt is made of.
struct Heard {
    features: Features,
    embeddings: Vec<f32>,
    prompt_ids: Vec<i32>,
}

/// A clip that is over.
#[derive(Debug)]
pub struct Ended<O> {
    /// Who watched it.
    pub observer: O,
    /// The text, as far as it goes.
    pub transcript: Transcript,
    /// Why it goes no further, where something is missing: `Cancelled`, or as [`Transcriber::transcribe`].
    pub result: Result<()>,
}

/// How far the clip is that came first.
pub struct First<'t, O> {
    /// Who watches it.
    pub observer: &'t mut O,
    /// The segments that are finished.
    pub transcript: &'t Transcript,
    /// What there is of the answer for the next one.
    pub answer: Option<Partial<'t>>,
}

impl<'a, O: Observer> Together<'a, O> {
    /// Without clips.
    pub fn new(transcriber: &'a mut Transcriber) -> Self {
        let n_most = transcriber.n_parallel();
        let (spent, reduced) = (Duration::ZERO, None);
        Self { transcriber, clips: VecDeque::new(), n_most, has_text: false, n_calls: 0, reduced, spent }
    }

    /// Begins with mono samples as [`Transcriber::transcribe`] takes them; they are given to [`Self::add`].
    ///
    /// Errors: a context or language that the model has no prompt for.
    pub fn begin(&self, samples: impl Into<Cow<'a, [f32]>>, request: &Request<'_>) -> Result<Transcription<'a>> {
        self.transcriber.listener.begin(samples, request)
    }

    /// Adds a clip behind the others.
    pub fn add(&mut self, transcription: Transcription<'a>, observer: O) {
        self.clips.push_back(Clip { transcription, observer, running: Vec::new(), failure: None });
    }

    /// Whether a clip that is added now would be worked on next.
    pub fn has_room(&self) -> bool {
        self.has_place() && !self.clips.iter().any(Clip::is_waiting)
    }

    /// Whether there are no clips.
    pub fn is_idle(&self) -> bool {
        self.clips.is_empty()
    }

    /// What computes.
    pub fn transcriber(&self) -> &Transcriber {
        self.transcriber
    }

    /// Time that all clips took so far: the sum of what is in their [`crate::transcribe::Timings`].
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Why segments are answered one by one from now on, where something failed for them together. Said once.
    pub fn take_reduced(&mut self) -> Option<Error> {
        self.reduced.take()
    }

    /// The clip that came first, where there is one.
    pub fn first(&mut self) -> Option<First<'_, O>> {
        let Clip { transcription, observer, .. } = self.clips.front_mut()?;
        Some(First { observer, transcript: transcription.transcript(), answer: transcription.partial() })
    }

    /// A clip that is over, if there is one.
    pub fn ended(&mut self) -> Option<Ended<O>> {
        let i = self.clips.iter().position(Clip::is_over)?;
        let Clip { transcription, observer, failure, .. } = self.clips.remove(i)?;
        let result = failure.map_or(Ok(()), |(_, error)| Err(error));
        Some(Ended { observer, transcript: transcription.into_transcript(), result })
    }

    /// Ends all clips where they are, as `Cancelled`.
    pub fn cancel(&mut self) {
        for clip in &mut self.clips {
            clip.failure = Some((0, Error::Cancelled));
            clip.cut(&mut self.transcriber.scheduler);
        }
    }

    /// Does the next thing, if there is one: the encoder hears a segment, or a call of the decoder. Whatever fails is told where
    /// its clip has ended.
    pub fn step(&mut self) {
        match self.clips.iter().position(Clip::is_waiting).filter(|_| self.has_place()) {
            Some(i_clip) => self.hear(i_clip),
            None => self.call(),
        }
    }

    fn n_running(&self) -> usize {
        self.clips.iter().map(|clip| clip.running.len()).sum()
    }

    /// Whether a segment may join those that have a sequence.
    fn has_place(&self) -> bool {
        let n_running = self.n_running();
        let text_is_awaited = self.clips.iter().any(|clip| clip.observer.waits_for_text());
        let is_early = n_running > 0 && text_is_awaited && (!self.has_text || self.n_calls > 0);
        n_running < self.n_most && !is_early && !self.clips.iter().any(Clip::reads)
    }

    /// Encodes the next segment of a clip and gives it a sequence.
    fn hear(&mut self, i_clip: usize) {
        let n_others = self.n_running();
        let Self { transcriber, clips, .. } = self;
        let clip = &mut clips[i_clip];
        let Some(i_segment) = clip.transcription.next_segment() else { return };
        let before = clip.transcription.timings().sum();
        let heard = clip.hear(transcriber, i_segment);
        self.spent += clip.transcription.timings().sum() - before;
        match heard {
            Ok(n_prompt) => self.n_calls = n_prompt / PROMPT_PER_CALL,
            Err(error) => self.fail(i_clip, i_segment, error, n_others > 0),
        }
    }

    /// Makes a call of the decoder: more of a prompt, or a token for every segment that has a sequence.
    fn call(&mut self) {
        let n_running = self.n_running();
        let Self { transcriber: Transcriber { scheduler, listener }, clips, .. } = self;
        let reading = clips.iter().position(Clip::reads);
        let start = Instant::now();
        let result = scheduler.step(&mut |progress| {
            let clip = clips.iter_mut().find_map(|clip| Some((clip.index_of(progress.id)?, clip)));
            let Some((i, clip)) = clip else { return };
            match progress.result {
                Ok(event) => clip.advance(i, event, progress.logits, listener.n_embd()),
                Err(error) => clip.running[i].error = Some(error),
            }
        });
        self.charge(start.elapsed(), reading);
        self.settle(result, n_running > 1);
    }

    /// Adds the time of a call to the clip whose prompt was read, or divides it among all segments that decode.
    fn charge(&mut self, time: Duration, reading: Option<usize>) {
        self.spent += time;
        if let Some(i_clip) = reading {
            self.clips[i_clip].transcription.timings().prefill += time;
            return;
        }
        self.n_calls = self.n_calls.saturating_sub(1);
        let share = time.div_f64(self.n_running().max(1) as f64);
        for clip in &mut self.clips {
            clip.transcription.timings().decode += share.mul_f64(clip.running.len() as f64);
        }
    }

    /// Finishes segments behind a call and deals with what failed.
    fn settle(&mut self, result: Result<()>, had_company: bool) {
        let scheduler = &mut self.transcriber.scheduler;
        let mut failed = Vec::new();
        let mut lost = Vec::new();
        for (i_clip, clip) in self.clips.iter_mut().enumerate() {
            clip.running.retain_mut(|running| {
                if let Some(error) = running.error.take() {
                    failed.push((i_clip, running.i_segment, error));
                    return false;
                }
                let is_lost = !running.is_over && scheduler.sequence(running.id).is_none();
                lost.extend(is_lost.then_some((i_clip, running.i_segment)));
                !running.is_over && !is_lost
            });
            let n_before = clip.transcription.transcript().segments.len();
            clip.transcription.settle(&mut clip.observer);
            self.has_text |= clip.transcription.transcript().segments.len() > n_before;
            clip.cut(scheduler);
        }
        match (result, &lost[..]) {
            (Ok(()), _) | (Err(_), []) => {}
            (Err(error), &[(i_clip, i_segment)]) => self.fail(i_clip, i_segment, error, had_company),
            (Err(error), several) => {
                several.iter().for_each(|&(i_clip, i_segment)| self.clips[i_clip].transcription.ask_again(i_segment));
                self.reduce(error);
            }
        }
        failed.into_iter().for_each(|(i_clip, i_segment, error)| self.fail(i_clip, i_segment, error, had_company));
    }

    /// Deals with a segment that has no sequence because of an error.
    fn fail(&mut self, i_clip: usize, i_segment: usize, error: Error, had_company: bool) {
        let clip = &mut self.clips[i_clip];
        let may_be_company =
            matches!(&error, Error::Engine(engine::Error::OutOfMemory { .. } | engine::Error::Device { .. }));
        if had_company && may_be_company {
            clip.transcription.ask_again(i_segment);
            return self.reduce(error);
        }
        // Whoever wants no more does not wait for the segments before either.
        let i_segment = if matches!(error, Error::Cancelled) { 0 } else { i_segment };
        if clip.failure.as_ref().is_none_or(|(first, _)| i_segment < *first) {
            clip.failure = Some((i_segment, error));
        }
        clip.cut(&mut self.transcriber.scheduler);
    }

    /// One segment at a time from now on.
    fn reduce(&mut self, error: Error) {
        self.n_most = 1;
        self.reduced.get_or_insert(error);
    }
}

impl<O: Observer> Drop for Together<'_, O> {
    /// Frees the slots.
    fn drop(&mut self) {
        let scheduler = &mut self.transcriber.scheduler;
        self.clips.iter().flat_map(|clip| &clip.running).for_each(|running| scheduler.cancel(running.id));
    }
}

impl<O: Observer> Clip<'_, O> {
    /// Whether a segment of it is to be heard.
    fn is_waiting(&self) -> bool {
        let end = self.failure.as_ref().map_or(usize::MAX, |(first, _)| *first);
        self.transcription.next_segment().is_some_and(|next| next < end)
    }

    fn is_over(&self) -> bool {
        match &self.failure {
            Some((first, _)) => self.transcription.transcript().segments.len() >= *first,
            None => self.transcription.is_over(),
        }
    }

    /// Whether the prompt of a segment is being read.
    fn reads(&self) -> bool {
        self.running.iter().any(|running| running.heard.is_some())
    }

    /// Where in `running` a sequence is.
    fn index_of(&self, id: SequenceId) -> Option<usize> {
        self.running.iter().position(|running| running.id == id)
    }

    /// Encodes the next segment and gives it a sequence. Returns the length of its prompt.
    fn hear(&mut self, transcriber: &mut Transcriber, i_segment: usize) -> Result<usize> {
        let Transcriber { scheduler, listener } = transcriber;
        let Self { transcription, observer, running, .. } = self;
        go_on(observer)?;
        let start = Instant::now();
        let samples = transcription.segment().unwrap_or_default();
        let features = listener.features(samples, scheduler.session().parallel())?;
        transcription.timings().mel += start.elapsed();

        go_on(observer)?;
        let start = Instant::now();
        let input = batch::Features { n_mels: features.n_mels, n_frames: features.n_frames, values: &features.values };
        let embeddings = scheduler.session_mut().encode(&[input])?.clip(0).to_vec();
        transcription.timings().encode += start.elapsed();

        go_on(observer)?;
        let start = Instant::now();
        let prompt_ids = transcription.prompt_ids(embeddings.len() / listener.n_embd());
        let n_prompt = prompt_ids.len();
        let id = scheduler.submit(transcription.ask(embeddings.clone()))?;
        transcription.timings().prefill += start.elapsed();
        let heard = Some(Heard { features, embeddings, prompt_ids });
        running.push(Running { id, i_segment, heard, error: None, is_over: false });
        Ok(n_prompt)
    }

    /// Takes what came of a call for the segment at `i` in `running`.
    fn advance(&mut self, i: usize, event: &Event, logits: &[f32], n_embd: usize) {
        let Self { transcription, observer, running, failure } = self;
        let running = &mut running[i];
        if transcription.advance(running.i_segment, event, observer) == Stage::First
            && let Some(Heard { features, embeddings, prompt_ids }) = running.heard.take()
        {
            let tensors = Tensors {
                mel: &features,
                audio_embeddings: &embeddings,
                n_embd,
                prompt_ids: &prompt_ids,
                first_logits: logits,
            };
            observer.tensors(running.i_segment, &tensors);
        }
        running.is_over = event.finish.is_some();
        if !running.is_over && failure.is_none() && observer.is_cancelled() {
            *failure = Some((0, Error::Cancelled));
        }
    }

    /// Ends the sequences of segments that nobody waits for behind a failure.
    fn cut(&mut self, scheduler: &mut Scheduler) {
        let Some((first, _)) = &self.failure else { return };
        for running in self.running.extract_if(.., |running| running.i_segment >= *first) {
            scheduler.cancel(running.id);
        }
    }
}

/// Errors: `Cancelled`.
fn go_on(observer: &dyn Observer) -> Result<()> {
    if observer.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}
