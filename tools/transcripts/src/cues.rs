//! A segment's text in [`Cue`]s that fit a screen, with estimated times.
//!
//! Cues end where sentences end if they can, else where clauses, else where words end, and rather at pauses than between them.

use models::transcribe::{Segment, Transcript};

use crate::pace::Pace;
use crate::pieces::{End, Filling, Piece, join, pieces, wrap};

/// How long a cue stays after its last word at most, in seconds.
const LINGER_S: f64 = 0.5;
/// Shorter cues cannot be read, in seconds.
const MIN_CUE_S: f64 = 1.0;

/// What a cue costs; of all ways to cut a text the cheapest is taken.
const CUE_COST: f64 = 4.0;
/// A cue that ends after a clause, after a word, within a word; after a sentence it costs nothing.
const END_COSTS: [f64; 3] = [2.0, 5.0, 12.0];
/// A sentence that ends in a cue which goes on with part of the next.
const STRADDLE_COST: f64 = 5.0;
/// A full cue; the square of the part that is filled counts, so that neighbours are about as long.
const FULL_COST: f64 = 3.0;
/// A cue that is too short to read: more than any other way to cut the text costs.
const SHORT_COST: f64 = 50.0;
/// Per square of the seconds of a pause within a cue, beyond [`SHORT_PAUSE_S`].
const PAUSE_COST: f64 = 6.0;
/// Pauses that no cue needs to end at, in seconds.
const SHORT_PAUSE_S: f64 = 0.3;

/// How much a cue may hold.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Columns of a line, at least two.
    pub max_columns: usize,
    /// Lines of a cue, at least one.
    pub max_lines: usize,
    /// Seconds of a cue.
    pub max_s: f64,
}

impl Limits {
    /// What the subtitling guides of broadcasters ask for.
    pub const USUAL: Self = Self { max_columns: 42, max_lines: 2, max_s: 7.0 };
}

/// A text that is shown for a while. Times are milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cue {
    /// When it appears.
    pub start_ms: u64,
    /// When it goes.
    pub end_ms: u64,
    /// The text as it is shown.
    pub lines: Vec<String>,
    /// The text in one line.
    pub text: String,
}

/// The cues of all segments: in order, not overlapping, each within its segment and the limits.
pub fn cues(transcript: &Transcript, limits: &Limits) -> Vec<Cue> {
    transcript.segments.iter().flat_map(|segment| of_segment(segment, limits)).collect()
}

/// The cues of a segment; none if it has no text.
///
/// A cue begins where its first word is spoken and ends where its last one is, up to half a second later where nothing else
/// begins. Times are whole milliseconds: more cues than the segment has of these would have no length.
fn of_segment(segment: &Segment, limits: &Limits) -> Vec<Cue> {
    let pieces = pieces(&segment.text, limits.max_columns);
    if pieces.is_empty() {
        return Vec::new();
    }
    let pace = Pace::new(&pieces, &segment.loud, segment.start_s, segment.end_s);
    let until_s = segment.end_s;
    let places = Cutting { pieces: &pieces, pace: &pace, limits, until_s }.places();
    let (first_ms, last_ms) = (ms(segment.start_s), ms(segment.end_s));
    let mut cues: Vec<Cue> = Vec::with_capacity(places.len());
    for (i, &[begin, end]) in places.iter().enumerate() {
        // The cues that follow need a millisecond each.
        let room = |n: usize| last_ms.saturating_sub(n as u64);
        let n_left = places.len() - i;
        let earliest = cues.last().map_or(first_ms, |cue| cue.end_ms);
        let start_ms = ms(pace.begins[begin]).min(room(n_left)).max(earliest);
        let next = places.get(i + 1).map_or(last_ms, |next| ms(pace.begins[next[0]]).min(room(n_left - 1)));
        let until = ms(pace.ends[end] + LINGER_S).min(start_ms + (limits.max_s * 1000.0) as u64).min(next);
        let end_ms = until.max(start_ms + 1).min(last_ms.max(start_ms));
        let pieces = &pieces[begin..end];
        cues.push(Cue { start_ms, end_ms, lines: wrap(pieces, limits.max_columns), text: join(pieces) });
    }
    cues
}

/// Durations of audio files are far below 2^53 ms.
fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0).round() as u64
}

/// A text that is cut into cues.
struct Cutting<'a> {
    pieces: &'a [Piece<'a>],
    pace: &'a Pace,
    limits: &'a Limits,
    /// End of the segment.
    until_s: f64,
}

impl Cutting<'_> {
    /// The first place and the last of every cue, for the cheapest way to cut the text.
    fn places(&self) -> Vec<[usize; 2]> {
        let n = self.pieces.len();
        let mut costs = vec![f64::INFINITY; n + 1];
        let mut begins = vec![0; n + 1];
        costs[0] = 0.0;
        for begin in 0..n {
            let mut inside = Inside::new(self.limits.max_columns);
            for end in begin + 1..=n {
                inside.push(self, begin, end);
                let seconds = self.pace.ends[end] - self.pace.begins[begin];
                // One piece is a cue, however long it takes; its end comes early then.
                if inside.filling.lines > self.limits.max_lines || end > begin + 1 && seconds > self.limits.max_s {
                    break;
                }
                let cost = costs[begin] + self.cost(begin, end, &inside);
                if cost < costs[end] {
                    (costs[end], begins[end]) = (cost, begin);
                }
            }
        }
        let mut places = Vec::new();
        let mut end = n;
        while end > 0 {
            places.push([begins[end], end]);
            end = begins[end];
        }
        places.reverse();
        places
    }

    fn cost(&self, begin: usize, end: usize, inside: &Inside) -> f64 {
        let is_last = end == self.pieces.len();
        let pause_after = if is_last { self.until_s - self.pace.ends[end] } else { self.pace.pause_s(end) };
        let end_cost = match self.pieces[end - 1].end {
            End::Sentence => 0.0,
            End::Clause => END_COSTS[0],
            End::Word => END_COSTS[1],
            End::Inside => END_COSTS[2],
        };
        let straddle = if inside.has_end && end_cost > 0.0 && !is_last { STRADDLE_COST } else { 0.0 };
        let full = inside.columns as f64 / (self.limits.max_columns * self.limits.max_lines) as f64;
        let seconds = self.pace.ends[end] - self.pace.begins[begin] + pause_after.min(LINGER_S);
        // Speech that is alone is as short as it is.
        let is_alone = (begin == 0 || self.pace.pause_s(begin) >= LINGER_S) && (is_last || pause_after >= LINGER_S);
        let short = if is_alone || seconds >= MIN_CUE_S { 0.0 } else { SHORT_COST * (1.0 + MIN_CUE_S - seconds) };
        let end_cost = if is_last { 0.0 } else { end_cost * (1.0 - pause_after.min(1.0)) };
        CUE_COST + end_cost + straddle + FULL_COST * full.powi(2) + short + PAUSE_COST * inside.pauses
    }
}

/// What a cue has inside, as it grows piece by piece.
struct Inside {
    filling: Filling,
    columns: usize,
    /// Sum of the squares of pauses.
    pauses: f64,
    /// Whether a sentence ends before the last piece.
    has_end: bool,
}

impl Inside {
    fn new(max_columns: usize) -> Self {
        Self { filling: Filling::new(max_columns), columns: 0, pauses: 0.0, has_end: false }
    }

    /// Adds the last piece of `begin..end`.
    fn push(&mut self, cutting: &Cutting<'_>, begin: usize, end: usize) {
        let last = end - 1;
        let piece = &cutting.pieces[last];
        self.filling.push(piece);
        self.columns += piece.added();
        if last > begin {
            self.pauses += (cutting.pace.pause_s(last) - SHORT_PAUSE_S).max(0.0).powi(2);
            self.has_end |= cutting.pieces[last - 1].end == End::Sentence;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use ::tests::rng::Rng;

    const DEFAULT: Limits = Limits::USUAL;

    fn segment(start_s: f64, end_s: f64, text: &str, loud: &[Range<f64>]) -> Segment {
        Segment {
            start_s,
            end_s,
            text: text.into(),
            loud: loud.to_vec(),
            language: None,
            truncated: false,
            token_ids: Vec::new(),
        }
    }

    fn shown(segment: &Segment) -> Vec<(u64, u64, String)> {
        of_segment(segment, &DEFAULT).into_iter().map(|cue| (cue.start_ms, cue.end_ms, cue.lines.join("|"))).collect()
    }

    #[test]
    fn a_cue_begins_and_ends_with_speech() {
        let short = segment(10.0, 20.0, " please open the door ", &[12.5..14.25]);
        assert_eq!(shown(&short), [(12_500, 14_750, "please open the door".into())]);
        // It lingers within its segment only.
        let to_the_end = segment(10.0, 20.0, "please open the door", &[18.0..19.75]);
        assert_eq!(shown(&to_the_end), [(18_000, 20_000, "please open the door".into())]);
        assert_eq!(shown(&segment(0.0, 9.0, " \n ", &[1.0..5.0])), []);
    }

    #[test]
    fn cues_end_at_sentences_and_pauses() {
        let text = "The first sentence is here. The second one, which is a good deal longer than that, comes after a pause. \
                    Yes! The last one.";
        let found = shown(&segment(0.0, 16.0, text, &[0.5..2.5, 4.0..9.5, 12.0..12.4, 14.0..15.5]));
        let want = [
            (500, 3000, "The first sentence is here."),
            (4000, 10_000, "The second one, which is a good deal|longer than that, comes after a pause."),
            (12_000, 12_900, "Yes!"),
            (14_000, 16_000, "The last one."),
        ];
        assert_eq!(found, want.map(|(start, end, text)| (start, end, text.to_owned())));
    }

    #[test]
    fn a_long_sentence_is_cut_at_its_clauses() {
        let text = "When it rained in the morning and nobody had thought of an umbrella, we stayed inside and played cards \
                    until the sun came out again.";
        let lines: Vec<String> = shown(&segment(0.0, 9.0, text, &[0.0..9.0])).into_iter().map(|cue| cue.2).collect();
        assert!(lines.len() == 2 && lines[0].ends_with("umbrella,"), "{lines:?}");
    }

    #[test]
    fn chinese_is_cut_at_its_full_stops() {
        // Two sentences of 22 characters, 44 columns each with their stops: both do not fit into one cue.
        let sentence = "\u{4eca}\u{5929}\u{5929}\u{6c14}\u{5f88}\u{597d}\u{6211}\u{4eec}\u{4e00}\u{8d77}\u{53bb}\u{516c}\u{56ed}\
                        \u{6563}\u{6b65}\u{5e76}\u{4e14}\u{5403}\u{5348}\u{996d}\u{5427}\u{3002}";
        let found = shown(&segment(0.0, 12.0, &sentence.repeat(2), &[0.0..5.0, 6.0..11.0]));
        assert_eq!(found.len(), 2, "{found:?}");
        for cue in found {
            let lines: Vec<&str> = cue.2.split('|').collect();
            assert!(lines.len() == 2 && lines[1].ends_with('\u{3002}') && lines.concat() == sentence, "{lines:?}");
            assert_eq!(lines[0].chars().count(), 11, "even lines: {lines:?}");
        }
    }

    #[test]
    fn speech_that_goes_on_is_in_no_cue_too_short_to_read() {
        let words = ["yes", "I", "see", "the", "extraordinarily", "red", "umbrella.", "No,", "stop.", "Really?"];
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let text: Vec<&str> = (0..rng.below(60) + 8).map(|_| *rng.pick(&words)).collect();
            let text = text.join(" ");
            // Between 10 and 18 columns a second.
            let seconds = text.len() as f64 / f64::from(rng.uniform([10.0, 18.0]));
            for cue in of_segment(&segment(0.0, seconds, &text, &[0.0..seconds]), &DEFAULT) {
                assert!(cue.end_ms - cue.start_ms >= 1000, "seed {seed}: {cue:?} of {text}");
            }
        }
    }

    /// Columns of the characters that the property test uses, by the ranges of Unicode's East Asian Width.
    fn width(text: &str) -> usize {
        let of = |c: char| match u32::from(c) {
            0x300..=0x36f => 0,
            0x1100..=0x115f | 0x2e80..=0xd7a3 | 0xff00..=0xff60 | 0x1f300..=0x1faff => 2,
            _ => 1,
        };
        text.chars().map(of).sum()
    }

    const SCRIPTS: [&[&str]; 5] = [
        &["a", "the", "I.", "sentence.", "(which)", "goes,", "on", "e\u{301}te\u{301}", "\"why?\"", "-->", "<b>", "&"],
        &[
            "\u{4f60}\u{597d}\u{3002}",
            "\u{4e16}",
            "\u{754c}\u{ff0c}",
            "\u{300c}\u{306d}\u{3048}\u{300d}",
            "\u{30c6}\u{30b9}\u{30c8}",
        ],
        &[
            "\u{43f}\u{440}\u{438}\u{432}\u{435}\u{442},",
            "\u{43c}\u{438}\u{440}!",
            "\u{c548}\u{b155}",
            "\u{c138}\u{acc4}.",
        ],
        &["https://example.org/a/very/long/path/that/no/line/has/room/for?and=more", "\u{1f600}", "x"],
        &["  ", "\n\n", "one", "\u{2028}", "two.", "\t", "\u{3000}"],
    ];

    /// A text in one script or in all of them.
    fn random_text(rng: &mut Rng) -> String {
        let script = *rng.pick(&[Some(0), Some(1), Some(2), Some(3), Some(4), None]);
        let spaces = if script == Some(1) { "" } else { " " };
        let word = |rng: &mut Rng| {
            let script = script.unwrap_or(rng.below(SCRIPTS.len()));
            *rng.pick::<&str>(SCRIPTS[script])
        };
        let words: Vec<&str> = (0..rng.below(150)).map(|_| word(rng)).collect();
        words.join(spaces)
    }

    fn random_segment(rng: &mut Rng, start_s: f64) -> Segment {
        let end_s = start_s + f64::from(rng.uniform([0.5, 70.0]));
        let mut at = start_s;
        let mut loud = Vec::new();
        for _ in 0..rng.below(20) {
            let begin = at + f64::from(rng.uniform([0.2, 3.0]));
            at = begin + f64::from(rng.uniform([0.06, 9.0]));
            if at > end_s {
                break;
            }
            loud.push(begin..at);
        }
        segment(start_s, end_s, &random_text(rng), &loud)
    }

    #[test]
    fn any_text_is_within_the_limits_and_its_segment_and_complete() {
        let mut n_cues = 0;
        for seed in 0..1000 {
            let mut rng = Rng::new(seed);
            let limits = if rng.below(3) == 0 {
                DEFAULT
            } else {
                let max_s = f64::from(rng.uniform([1.0, 10.0]));
                Limits { max_columns: rng.below(60) + 8, max_lines: rng.below(4) + 1, max_s }
            };
            let first = random_segment(&mut rng, 1.48);
            let second = random_segment(&mut rng, first.end_s);
            let mut earliest = 0;
            for segment in [first, second] {
                let cues = of_segment(&segment, &limits);
                let what = || format!("seed {seed}, {limits:?}, {segment:?}: {cues:#?}");
                let (from, to) = ((segment.start_s * 1000.0).round() as u64, (segment.end_s * 1000.0).round() as u64);
                let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
                let all: String = cues.iter().map(|cue| letters(&cue.lines.concat())).collect();
                assert_eq!(all, letters(&segment.text), "{}", what());
                for cue in &cues {
                    assert!(cue.start_ms >= earliest.max(from) && cue.end_ms <= to, "{}", what());
                    assert!(cue.start_ms < cue.end_ms, "{}", what());
                    assert!((cue.end_ms - cue.start_ms) as f64 <= limits.max_s * 1000.0, "{}", what());
                    assert!((1..=limits.max_lines).contains(&cue.lines.len()), "{}", what());
                    for line in &cue.lines {
                        assert!(!line.is_empty() && line.trim() == line, "{}", what());
                        assert!(width(line) <= limits.max_columns, "{line}: {}", what());
                    }
                    assert_eq!(letters(&cue.text), letters(&cue.lines.concat()), "{}", what());
                    earliest = cue.end_ms;
                }
                n_cues += cues.len();
            }
        }
        assert!(n_cues > 7000, "{n_cues}");
    }

    #[test]
    fn long_segments_are_cut_into_large_cues_in_a_moment() {
        let text = "and so it goes on and on, without an end. ".repeat(500);
        let loud: Vec<_> = (0..750).map(|i| f64::from(i) * 2.0..f64::from(i) * 2.0 + 1.6).collect();
        let limits = Limits { max_columns: 500, max_lines: 10, max_s: 600.0 };
        assert!(!of_segment(&segment(0.0, 1500.0, &text, &loud), &limits).is_empty());
    }
}
