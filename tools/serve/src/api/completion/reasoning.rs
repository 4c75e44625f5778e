//! [`Reasoning`]: what a model thinks, between the marks that templates know, apart from what it says.

/// The mark before it, and the one behind.
const MARKS: [&str; 2] = ["<think>", "</think>"];

/// Whether a prompt ends behind the first mark, so that the answer begins within.
pub(super) fn ends_in_thought(prompt: &str) -> bool {
    prompt.trim_end().ends_with(MARKS[0])
}

/// Where a text that grows stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Nothing but white space came.
    Before,
    Thought,
    /// Behind the second mark, nothing but white space came.
    After,
    Said,
}

/// Takes a text apart as it grows.
#[derive(Clone, Debug)]
pub(super) struct Reasoning {
    place: Place,
    /// Not told yet: it may be the beginning of a mark.
    held: String,
}

/// What was thought, and what was said.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Parts {
    pub thought: String,
    pub said: String,
}

impl Reasoning {
    pub(super) fn new(starts_in_thought: bool) -> Self {
        let place = if starts_in_thought { Place::Thought } else { Place::Before };
        Self { place, held: String::new() }
    }

    /// Takes more of the text.
    pub(super) fn push(&mut self, text: &str) -> Parts {
        self.held.push_str(text);
        let mut parts = Parts::default();
        loop {
            let held = std::mem::take(&mut self.held);
            match self.place {
                Place::Before => {
                    let begin = held.trim_start();
                    if let Some(rest) = begin.strip_prefix(MARKS[0]) {
                        self.place = Place::Thought;
                        self.held = rest.to_owned();
                    } else if MARKS[0].starts_with(begin) {
                        self.held = held;
                        return parts;
                    } else {
                        self.place = Place::Said;
                        self.held = held;
                    }
                }
                Place::Thought => match held.find(MARKS[1]) {
                    Some(at) => {
                        parts.thought.push_str(&held[..at]);
                        self.place = Place::After;
                        self.held = held[at + MARKS[1].len()..].to_owned();
                    }
                    None => {
                        let n_held = (1..MARKS[1].len()).rev().find(|&n| held.ends_with(&MARKS[1][..n])).unwrap_or(0);
                        let (now, later) = held.split_at(held.len() - n_held);
                        parts.thought.push_str(now);
                        self.held = later.to_owned();
                        return parts;
                    }
                },
                Place::After => {
                    let rest = held.trim_start();
                    if rest.is_empty() {
                        return parts;
                    }
                    self.place = Place::Said;
                    self.held = rest.to_owned();
                }
                Place::Said => {
                    parts.said.push_str(&held);
                    return parts;
                }
            }
        }
    }

    /// What was held back.
    pub(super) fn finish(&mut self) -> Parts {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Thought => Parts { thought: held, said: String::new() },
            Place::Before | Place::After | Place::Said => Parts { thought: String::new(), said: held },
        }
    }
}

/// A whole text.
pub(super) fn parts_of(text: &str, starts_in_thought: bool) -> Parts {
    let mut reasoning = Reasoning::new(starts_in_thought);
    let mut parts = reasoning.push(text);
    let rest = reasoning.finish();
    parts.thought.push_str(&rest.thought);
    parts.said.push_str(&rest.said);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_told_apart_wherever_a_text_is_cut() {
        for (text, starts, thought, said) in [
            ("hello", false, "", "hello"),
            ("  hello <think>x</think>", false, "", "  hello <think>x</think>"),
            ("<think>\nyes\n</think>\n\nHello", false, "\nyes\n", "Hello"),
            ("\n<think></think>Hi </think>", false, "", "Hi </think>"),
            ("so </thin ng</think> Hi", true, "so </thin ng", "Hi"),
            ("never ends </thin", true, "never ends </thin", ""),
            ("<thin", false, "", "<thin"),
            ("", false, "", ""),
        ] {
            let want = Parts { thought: thought.into(), said: said.into() };
            assert_eq!(parts_of(text, starts), want, "{text:?}");
            for cut in 0..=text.len() {
                let mut reasoning = Reasoning::new(starts);
                let pieces = [reasoning.push(&text[..cut]), reasoning.push(&text[cut..]), reasoning.finish()];
                let joined = |f: fn(&Parts) -> &str| pieces.iter().map(f).collect::<String>();
                let got = Parts { thought: joined(|p| &p.thought), said: joined(|p| &p.said) };
                assert_eq!(got, want, "{text:?} cut at {cut}");
            }
        }
        assert!(ends_in_thought("<|assistant|><think>\n") && !ends_in_thought("<think></think>"));
    }
}
