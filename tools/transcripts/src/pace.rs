//! [`Pace`]: when which piece of a text is spoken, as far as the length of the text and the pauses of the sound tell.

use std::ops::Range;

use crate::pieces::{End, Piece};

/// Nobody speaks so many columns in a second: a text that is longer is spread over all of its segment.
const MAX_COLUMNS_PER_S: f64 = 40.0;
/// What is gained by a pause, per second, that a sentence, a clause or a word ends at.
const GAINS: [f64; 3] = [1.0, 0.6, 0.2];
/// What is lost, per second, by a pause within a word.
const LOSS: f64 = 0.3;
/// Longer pauses gain and lose no more, in seconds.
const LONG_PAUSE_S: f64 = 1.0;
/// By how much the time that a stretch of text takes usually differs from what its length says: in seconds, and as a part.
const SLACK: [f64; 2] = [0.3, 0.25];
/// Times do not differ by more than this much of the usual.
const REACH: f64 = 2.0;
/// Most pauses in a row that are within words.
const MAX_SKIPPED: usize = 16;
/// Most places that one pause is tried at.
const MAX_TRIED: usize = 24;
/// Times that are nearer are one, in seconds.
const TICK_S: f64 = 1e-6;

/// Times of the places between pieces; place `k` is before piece `k`, the last one after all.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Pace {
    /// When the piece after a place begins. That of the last place means nothing.
    pub begins: Vec<f64>,
    /// When the piece before a place ends. That of the first place means nothing.
    pub ends: Vec<f64>,
}

impl Pace {
    /// Spreads pieces over the sound of a segment, in proportion to their columns; pauses are where sentences, clauses or at
    /// least words end, if one is expected to end nearby.
    ///
    /// `pieces`: at least one. `loud`: in order, apart, within `start_s..end_s`.
    pub(crate) fn new(pieces: &[Piece<'_>], loud: &[Range<f64>], start_s: f64, end_s: f64) -> Self {
        // A piece of no columns takes time too.
        let weights: Vec<f64> = sums(pieces.iter().map(|piece| piece.added().max(1) as f64));
        let sound = Sound::new(loud, start_s..end_s, weights[pieces.len()]);
        let mut at: Vec<f64> = vec![0.0; weights.len()];
        for pair in sound.marks(pieces, &weights).windows(2) {
            let [(first, from), (last, to)] = [pair[0], pair[1]];
            let rate = (to - from) / (weights[last] - weights[first]);
            (first..last).for_each(|k| at[k] = from + (weights[k] - weights[first]) * rate);
        }
        at[pieces.len()] = sound.seconds();
        Self {
            begins: at.iter().map(|&t| sound.after(t)).collect(),
            ends: at.iter().map(|&t| sound.before(t)).collect(),
        }
    }

    /// Length of the pause at a place within the text.
    pub(crate) fn pause_s(&self, k: usize) -> f64 {
        self.begins[k] - self.ends[k]
    }
}

/// The loud spans of a segment, one after the other without the pauses.
struct Sound {
    spans: Vec<Range<f64>>,
    /// When each span begins in seconds of sound, and the end of all.
    sums: Vec<f64>,
}

impl Sound {
    fn new(loud: &[Range<f64>], segment: Range<f64>, columns: f64) -> Self {
        let within = |span: &Range<f64>| span.start.max(segment.start)..span.end.min(segment.end);
        let spans: Vec<Range<f64>> = loud.iter().map(within).filter(|span| span.end - span.start > TICK_S).collect();
        let sums = sums(spans.iter().map(|span| span.end - span.start));
        if sums[spans.len()] * MAX_COLUMNS_PER_S < columns {
            let seconds = segment.end - segment.start;
            return Self { spans: vec![segment], sums: vec![0.0, seconds] };
        }
        Self { spans, sums }
    }

    /// All of it, in seconds.
    fn seconds(&self) -> f64 {
        self.sums[self.spans.len()]
    }

    /// Places that are at pauses, with their times in seconds of sound; the first and the last place among them.
    ///
    /// The best of all ways to match pauses and places in order, by what pauses gain and lose and by how far the text between
    /// two of them is from taking its usual time; of these at most [`MAX_TRIED`] are followed at every pause.
    fn marks(&self, pieces: &[Piece<'_>], weights: &[f64]) -> Vec<(usize, f64)> {
        let (n, n_spans) = (pieces.len(), self.spans.len());
        let rate = weights[n] / self.seconds();
        let pause_s = |i: usize| (self.spans[i].start - self.spans[i - 1].end).min(LONG_PAUSE_S);
        // Of the pauses before pause i.
        let pauses = sums((1..n_spans).map(pause_s));
        let mut marks = vec![Mark { place: 0, pause: 0, score: 0.0, before: 0 }];
        let mut firsts = vec![0, 1];
        for pause in 1..n_spans {
            let mut found = Vec::new();
            let gain = |k: usize| kind(pieces[k - 1].end).map(|kind| GAINS[kind] * pause_s(pause));
            let first = firsts[pause.saturating_sub(MAX_SKIPPED + 1)];
            for (before, mark) in marks.iter().enumerate().skip(first) {
                let step = Step { sound_s: self.sums[pause] - self.sums[mark.pause], rate };
                let score = mark.score - LOSS * (pauses[pause - 1] - pauses[mark.pause]);
                let reach = step.reach(weights[mark.place]);
                let near = weights.partition_point(|&w| w < reach.start).max(mark.place + 1);
                for place in (near..n).take_while(|&k| weights[k] < reach.end) {
                    let Some(gain) = gain(place) else { continue };
                    let score = score + gain - step.cost(weights[place] - weights[mark.place]);
                    found.push(Mark { place, pause, score, before });
                }
            }
            // The best for every place, then the best of these.
            found.sort_by(|a, b| a.place.cmp(&b.place).then(b.score.total_cmp(&a.score)));
            found.dedup_by_key(|mark| mark.place);
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
            found.truncate(MAX_TRIED);
            marks.extend(found);
            firsts.push(marks.len());
        }
        let total = |mark: &Mark| {
            let step = Step { sound_s: self.seconds() - self.sums[mark.pause], rate };
            let skipped = pauses[n_spans - 1] - pauses[mark.pause];
            mark.score - LOSS * skipped - step.cost(weights[n] - weights[mark.place])
        };
        let best = (0..marks.len()).max_by(|&a, &b| total(&marks[a]).total_cmp(&total(&marks[b])));
        let mut i = best.expect("the start is one");
        let mut way = vec![(n, self.seconds())];
        while i > 0 {
            way.push((marks[i].place, self.sums[marks[i].pause]));
            i = marks[i].before;
        }
        way.push((0, 0.0));
        way.reverse();
        way
    }

    /// The time of the file when so much sound is over.
    fn before(&self, t: f64) -> f64 {
        let i = self.sums[1..].partition_point(|&end| end < t - TICK_S).min(self.spans.len() - 1);
        (self.spans[i].start + (t - self.sums[i])).min(self.spans[i].end)
    }

    /// The time of the file when sound goes on after so much.
    fn after(&self, t: f64) -> f64 {
        let i = self.sums[..self.spans.len()].partition_point(|&start| start <= t + TICK_S).saturating_sub(1);
        (self.spans[i].start + (t - self.sums[i])).clamp(self.spans[i].start, self.spans[i].end)
    }
}

/// A place that is at a pause, and the best way to there.
#[derive(Clone, Debug)]
struct Mark {
    place: usize,
    /// The pause before the span of this number; 0 is the beginning.
    pause: usize,
    score: f64,
    /// The mark before it.
    before: usize,
}

/// From one mark to the next.
struct Step {
    sound_s: f64,
    /// Columns in a second of sound.
    rate: f64,
}

impl Step {
    fn slack_s(&self) -> f64 {
        SLACK[0] + SLACK[1] * self.sound_s
    }

    /// Where the text may be at the end of the step, in columns.
    fn reach(&self, from: f64) -> Range<f64> {
        let [least, most] = [-REACH, REACH].map(|reach| self.sound_s + reach * self.slack_s());
        from + least * self.rate..from + most * self.rate
    }

    /// What it costs that so many columns are spoken in the step.
    fn cost(&self, columns: f64) -> f64 {
        ((columns / self.rate - self.sound_s) / self.slack_s()).powi(2) / 2.0
    }
}

/// Index into [`GAINS`]; nobody pauses within a word.
fn kind(end: End) -> Option<usize> {
    match end {
        End::Sentence => Some(0),
        End::Clause => Some(1),
        End::Word => Some(2),
        End::Inside => None,
    }
}

/// 0 and the sums of the first, the first two, ...
fn sums(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let later = values.scan(0.0, |sum, value| {
        *sum += value;
        Some(*sum)
    });
    std::iter::once(0.0).chain(later).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pieces::pieces;

    fn pace(text: &str, loud: &[Range<f64>], end_s: f64) -> Pace {
        Pace::new(&pieces(text, 42), loud, 0.0, end_s)
    }

    #[test]
    fn text_is_spread_over_the_sound_in_proportion_to_its_columns() {
        // 1 + 4 and 4 columns, with their spaces: 4, 5 and 1 in ten seconds.
        let pace = pace("aaaa bbbb", &[1.0..5.0, 5.0..10.0], 20.0);
        assert_eq!(pace.begins[0], 1.0);
        assert!((pace.begins[1] - 5.0).abs() < 1e-9 && (pace.ends[1] - 5.0).abs() < 1e-9, "{pace:?}");
        assert_eq!(pace.ends[2], 10.0);
    }

    #[test]
    fn sentences_end_at_pauses() {
        // Spoken evenly, the second sentence would begin at 2.1 s of sound; the pause is at 3.
        let text = "One two three four. Five six seven eight nine ten.";
        let pace = pace(text, &[0.5..3.5, 5.0..9.0], 10.0);
        assert_eq!((pace.ends[4], pace.begins[4]), (3.5, 5.0));
        assert_eq!((pace.begins[0], pace.ends[10]), (0.5, 9.0));
    }

    #[test]
    fn a_pause_far_from_any_sentence_is_between_words() {
        let text = "one two three four five six seven eight nine ten";
        let pace = pace(text, &[0.0..2.0, 3.0..5.0], 5.0);
        let k = (1..10).find(|&k| pace.pause_s(k) > 0.9).unwrap();
        assert_eq!((pace.ends[k], pace.begins[k]), (2.0, 3.0));
    }

    #[test]
    fn a_text_without_sound_or_too_long_for_it_takes_all_of_its_segment() {
        for loud in [&[][..], &[3.0..3.2]] {
            let pace = pace("one two three", loud, 6.0);
            assert_eq!((pace.begins[0], pace.ends[3]), (0.0, 6.0), "{loud:?}");
        }
    }
}
