//! [`Queue`]: several inputs on their way, so that the last segments of one and the first ones of the next are decoded together.
//! What is printed and written comes in the order of the inputs.

use std::collections::VecDeque;
use std::time::Duration;

use engine::error::Chain;
use models::together::{Ended, First, Together};
use models::transcribe::Transcriber;

use super::Tally;
use super::inputs::Input;
use super::outputs::Outputs;
use super::run::{Opened, Run};
use super::watcher::Watcher;
use crate::exit::{Exit, Failure, Outcome};
use crate::interrupt;

/// Inputs that have begun and are not done, in their order; the first one has its turn.
pub(super) struct Queue<'a, 't> {
    run: &'a Run<'a>,
    together: Together<'t, Watcher>,
    entries: VecDeque<Entry<'a>>,
    /// Time to read inputs so far.
    reading: Duration,
    /// Whether the run ends before other inputs begin.
    is_ending: bool,
}

/// An input that has begun.
enum Entry<'a> {
    /// It cannot be read, and that is said when its turn comes.
    Failed(Failure),
    /// It is transcribed.
    Opened(Box<Underway<'a>>),
}

/// An input that is transcribed.
struct Underway<'a> {
    number: usize,
    opened: Opened<'a>,
    has_turn: bool,
    /// What came of it.
    ended: Option<Ended<Watcher>>,
}

impl<'a, 't> Queue<'a, 't> {
    /// Without inputs.
    pub(super) fn new(run: &'a Run<'a>, transcriber: &'t mut Transcriber) -> Self {
        let together = Together::new(transcriber);
        Self { run, together, entries: VecDeque::new(), reading: Duration::ZERO, is_ending: false }
    }

    /// Transcribes inputs and counts what becomes of them.
    ///
    /// Errors: what ends the run.
    pub(super) fn transcribe(mut self, inputs: &'a [(Input, Outputs)], tally: &mut Tally) -> Outcome<()> {
        let result = self.all(inputs, tally);
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn all(&mut self, inputs: &'a [(Input, Outputs)], tally: &mut Tally) -> Outcome<()> {
        let mut waiting = inputs.iter().enumerate();
        let mut next = waiting.next();
        loop {
            match next {
                None if self.entries.is_empty() => return Ok(()),
                Some((_, (input, _))) if self.entries.is_empty() && interrupt::exit().is_some() => {
                    return Err(Failure::interrupted(format_args!("interrupted before {}", input.name())));
                }
                Some((number, input)) if self.may_open(&input.0) => {
                    self.open(number, input, tally);
                    next = waiting.next();
                }
                Some(_) | None => self.step(),
            }
            self.close(tally)?;
        }
    }

    /// Whether an input would be worked on at once. Those that may wait for somebody do not let others wait.
    fn may_open(&self, input: &Input) -> bool {
        let is_welcome = !self.is_ending && interrupt::exit().is_none() && self.together.has_room();
        is_welcome && (self.together.is_idle() || !input.may_wait())
    }

    fn open(&mut self, number: usize, (input, outputs): &'a (Input, Outputs), tally: &mut Tally) {
        let spent = self.spent();
        let is_on_screen = self.run.is_on_screen();
        match self.run.open(number, (input, outputs), &self.together, spent) {
            Ok((opened, transcription, watcher)) => {
                self.reading += opened.reading;
                if !is_on_screen {
                    self.run.say_condition(&opened);
                }
                self.together.add(transcription, watcher);
                let underway = Underway { number, opened, has_turn: false, ended: None };
                self.entries.push_back(Entry::Opened(Box::new(underway)));
            }
            Err(failure) => {
                self.is_ending |= failure.ends_run;
                if failure.ends_run || is_on_screen {
                    self.entries.push_back(Entry::Failed(failure));
                } else {
                    tally.fail(&failure);
                }
            }
        }
    }

    /// Time that all inputs took so far.
    fn spent(&self) -> Duration {
        self.reading + self.together.spent()
    }

    fn step(&mut self) {
        self.together.step();
        if let Some(error) = self.together.take_reduced() {
            let error = Chain(&error);
            self.run.say.note(format_args!("segments failed together and are decoded one by one from here: {error}"));
        }
    }

    /// Writes inputs that are whole, as far as all before them are done, and gives the next one its turn.
    fn close(&mut self, tally: &mut Tally) -> Outcome<()> {
        self.take_ended();
        loop {
            self.give_turn()?;
            let is_done = |entry: &mut Entry<'_>| !matches!(entry, Entry::Opened(underway) if underway.ended.is_none());
            let outcome = match self.entries.pop_front_if(is_done) {
                Some(Entry::Opened(underway)) => self.finish(*underway),
                Some(Entry::Failed(failure)) => Err(failure),
                None => return Ok(()),
            };
            match outcome {
                Ok(exit) => tally.done(exit),
                Err(failure) if failure.ends_run => return Err(failure),
                Err(failure) => tally.fail(&failure),
            }
        }
    }

    /// Writes an input that has ended.
    fn finish(&self, underway: Underway<'_>) -> Outcome<Exit> {
        let ended = underway.ended.expect("only inputs that have ended are finished");
        let stats = self.together.transcriber().stats();
        self.run.close(underway.opened, ended, self.spent(), &stats)
    }

    /// Gives the first input its turn, where it has not had it.
    fn give_turn(&mut self) -> Outcome<()> {
        let Self { run, together, entries, .. } = self;
        let Some(Entry::Opened(underway)) = entries.front_mut() else { return Ok(()) };
        let Underway { opened, has_turn, ended, .. } = &mut **underway;
        if std::mem::replace(has_turn, true) {
            return Ok(());
        }
        if run.is_on_screen() {
            run.say_condition(opened);
        }
        match (ended, together.first()) {
            (Some(Ended { observer, transcript, .. }), _) => run.give_turn(opened, observer, transcript, None),
            (None, Some(First { observer, transcript, answer })) => {
                run.give_turn(opened, observer, transcript, answer.as_ref())
            }
            (None, None) => Ok(()),
        }
    }

    /// Takes what has ended to where it belongs.
    fn take_ended(&mut self) {
        while let Some(over) = self.together.ended() {
            let number = over.observer.number;
            if let Some(ended) = self.entries.iter_mut().find_map(|entry| entry.end_of(number)) {
                *ended = Some(over);
            }
        }
    }

    /// Ends what has begun.
    fn abandon(&mut self) {
        self.together.cancel();
        self.take_ended();
        for entry in self.entries.drain(..) {
            if let Entry::Opened(underway) = entry
                && let Some(ended) = underway.ended
            {
                Run::abandon(&underway.opened, ended.observer);
            }
        }
    }
}

impl Entry<'_> {
    /// The place for what came of the input of this number.
    fn end_of(&mut self, wanted: usize) -> Option<&mut Option<Ended<Watcher>>> {
        match self {
            Self::Opened(underway) if underway.number == wanted => Some(&mut underway.ended),
            Self::Opened(_) | Self::Failed(_) => None,
        }
    }
}
