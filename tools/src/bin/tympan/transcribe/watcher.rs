//! What is done with a transcript while it grows: [`Watcher`] prints it or keeps a journal, copies what `--dump` wants, and ends
//! it when a signal comes or nothing can be written any more.

use std::io::IsTerminal;
use std::mem::take;

use models::transcribe::{Observer, Partial, Tensors, Transcript};
use transcripts::Paragraphs;

use super::dump::Dumped;
use super::formats::timed_lines;
use super::journal::Journal;
use crate::exit::{Failure, Outcome};
use crate::interrupt::Interrupt;
use crate::progress::Position;
use crate::streams::print;

/// The text of a clip on standard output. What is finished is printed at once, on a terminal every word; there, paragraphs end
/// between segments only.
pub(super) struct TextStream {
    /// Whether segments stand on lines of their own, with their times.
    has_times: bool,
    is_terminal: bool,
    /// Segments that are out.
    n_segments: usize,
    paragraphs: Paragraphs,
    /// What is out of the segment at hand.
    printed: String,
    /// Whether a line has begun.
    is_open: bool,
}

impl TextStream {
    /// Nothing is out yet.
    pub(super) fn new(has_times: bool) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self {
            has_times,
            is_terminal,
            n_segments: 0,
            paragraphs: Paragraphs::default(),
            printed: String::new(),
            is_open: false,
        }
    }

    fn answer(&mut self, answer: &Partial<'_>) -> Outcome<()> {
        if self.has_times || !self.is_terminal {
            return Ok(());
        }
        let Some(text) = answer.segment_so_far() else { return Ok(()) };
        // A text that turns out otherwise is printed when its segment is finished.
        let Some(more) = text.strip_prefix(self.printed.as_str()) else { return Ok(()) };
        if more.is_empty() {
            return Ok(());
        }
        let gap = if self.printed.is_empty() { self.paragraphs.gap(&text, answer.loud) } else { "" };
        print(&format!("{gap}{more}"))?;
        self.is_open = true;
        self.printed = text;
        Ok(())
    }

    fn segment(&mut self, so_far: &Transcript) -> Outcome<()> {
        let segments = &so_far.segments[self.n_segments..];
        self.n_segments = so_far.segments.len();
        if self.has_times {
            return print(&timed_lines(segments));
        }
        for segment in segments {
            let whole = self.paragraphs.push(segment);
            let printed = take(&mut self.printed);
            match segment.text.strip_prefix(printed.as_str()) {
                // Paragraphs within a segment are known when it is finished: what is out by then has none.
                Some(more) if !printed.is_empty() => print(more)?,
                Some(_) => print(&whole)?,
                None => print(&format!("\n{}", segment.text))?,
            }
            self.is_open |= !segment.text.is_empty();
        }
        Ok(())
    }

    /// Ends the last line.
    fn end(&self) -> Outcome<()> {
        if self.has_times { Ok(()) } else { print("\n") }
    }
}

/// Watches over a clip.
pub(super) struct Watcher {
    /// The input's number among those of the run.
    pub number: usize,
    stream: Option<TextStream>,
    /// Whether all inputs before are done, and what is known of this one may be shown.
    has_turn: bool,
    /// Shown until all is transcribed.
    position: Option<Position>,
    /// Taken by those who end it.
    pub journal: Option<Journal>,
    wants_tensors: bool,
    /// Tensors of the segments so far.
    pub dumped: Vec<Dumped>,
    interrupt: Interrupt,
    failure: Option<Failure>,
}

impl Watcher {
    /// Signals are left to it as long as it lives. Nothing is shown before its turn.
    pub(super) fn new(
        number: usize,
        stream: Option<TextStream>,
        journal: Option<Journal>,
        wants_tensors: bool,
    ) -> Self {
        let (position, dumped, failure) = (None, Vec::new(), None);
        let interrupt = Interrupt::watch();
        Self { number, stream, has_turn: false, position, journal, wants_tensors, dumped, interrupt, failure }
    }

    /// Shows what there is, and from now on what comes: how far the work is too, unless the text itself does so on a terminal.
    pub(super) fn take_turn(
        &mut self,
        position: impl FnOnce() -> Position,
        so_far: &Transcript,
        answer: Option<&Partial<'_>>,
    ) {
        self.has_turn = true;
        if !self.stream.as_ref().is_some_and(|stream| stream.is_terminal) {
            self.position = Some(position());
        }
        self.show(so_far);
        answer.into_iter().for_each(|answer| self.answer(answer));
    }

    /// Shows the segments that are finished.
    fn show(&mut self, so_far: &Transcript) {
        if let (Some(position), Some(first), Some(last)) =
            (&self.position, so_far.segments.first(), so_far.segments.last())
        {
            position.set(last.end_s - first.start_s);
        }
        let result = self.stream.as_mut().map_or(Ok(()), |stream| stream.segment(so_far));
        self.keep(result);
    }

    /// Whether the text is on standard output already.
    pub(super) fn prints(&self) -> bool {
        self.stream.is_some()
    }

    /// Ends the line of a whole text.
    ///
    /// Errors: standard output or the journal could not be written, now or before.
    pub(super) fn finish(&mut self) -> Outcome<()> {
        self.position = None;
        match (self.failure.take(), &self.stream) {
            (Some(failure), _) => Err(failure),
            (None, Some(stream)) => stream.end(),
            (None, None) => Ok(()),
        }
    }

    /// Ends the line of a text that nothing will be added to, where one has begun.
    ///
    /// Errors: as [`Self::finish`].
    pub(super) fn break_off(&mut self) -> Outcome<()> {
        self.stream.take_if(|stream| !stream.is_open);
        self.finish()
    }

    fn keep(&mut self, result: Outcome<()>) {
        if let Err(failure) = result {
            self.failure.get_or_insert(failure);
        }
    }
}

impl Observer for Watcher {
    fn is_cancelled(&self) -> bool {
        self.failure.is_some() || self.interrupt.is_set()
    }

    fn waits_for_text(&self) -> bool {
        self.stream.is_some()
    }

    fn answer(&mut self, answer: &Partial<'_>) {
        let mut stream = self.stream.as_mut().filter(|_| self.has_turn);
        let result = stream.as_mut().map_or(Ok(()), |stream| stream.answer(answer));
        self.keep(result);
    }

    fn segment(&mut self, so_far: &Transcript) {
        if self.has_turn {
            self.show(so_far);
        }
        let result = self.journal.as_mut().map_or(Ok(()), |journal| journal.append(so_far));
        self.keep(result.map_err(Failure::output));
    }

    fn tensors(&mut self, segment: usize, tensors: &Tensors<'_>) {
        if self.wants_tensors {
            let dumped = Dumped::new(tensors);
            match self.dumped.get_mut(segment) {
                // It was asked again.
                Some(earlier) => *earlier = dumped,
                None => self.dumped.push(dumped),
            }
        }
    }
}
