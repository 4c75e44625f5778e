//! What a recording does not give: [`Loss`], seconds that cannot be decoded, and [`TrackChoice`], tracks left out.

/// Losses closer to each other than this, in seconds, and of the same kind are one.
const JOIN_S: f64 = 1e-3;

/// Seconds of a file that could not be decoded. Inside a recording they are silence, so that times stay right.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Where they begin, in seconds of the file's own clock.
    pub start_s: f64,
    /// Where they end.
    pub end_s: f64,
    /// What happened: `the file ends early`.
    pub what: String,
}

impl Loss {
    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.end_s - self.start_s
    }
}

/// Which of several audio tracks was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackChoice {
    /// Number of the track among the audio tracks of the file, from 1.
    pub index: usize,
    /// Short name of its codec.
    pub codec: &'static str,
    /// Codecs of the tracks that come first but cannot be decoded.
    pub left_out: Vec<String>,
}

/// Adds a loss; one that goes on where the last one ended makes that longer.
pub(super) fn add(losses: &mut Vec<Loss>, start_s: f64, end_s: f64, what: &str) {
    match losses.last_mut() {
        Some(last) if last.what == what && (start_s - last.end_s).abs() < JOIN_S => last.end_s = end_s,
        _ => losses.push(Loss { start_s, end_s, what: what.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_losses_of_a_kind_are_one() {
        let mut losses = Vec::new();
        add(&mut losses, 1.0, 1.5, "a");
        add(&mut losses, 1.5, 2.0, "a");
        add(&mut losses, 2.0, 2.5, "b");
        add(&mut losses, 4.0, 4.5, "b");
        let spans: Vec<_> = losses.iter().map(|l| (l.start_s, l.end_s, l.what.as_str())).collect();
        assert_eq!(spans, [(1.0, 2.0, "a"), (2.0, 2.5, "b"), (4.0, 4.5, "b")]);
        assert_eq!(losses[0].seconds(), 1.0);
    }
}
