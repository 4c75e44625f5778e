//! Cues as files of subtitles: SubRip and WebVTT.

use crate::cues::Cue;

/// SubRip. It knows no comments and no escapes: only an arrow in a text could be taken for one between times.
pub fn srt(cues: &[Cue]) -> String {
    let cue = |(i, cue): (usize, &Cue)| {
        let body = cue.lines.join("\n").replace("-->", "->");
        format!("{}\n{} --> {}\n{body}\n\n", i + 1, clock(cue.start_ms, ','), clock(cue.end_ms, ','))
    };
    cues.iter().enumerate().map(cue).collect()
}

/// WebVTT, with a note that times are estimated. Source: W3C "WebVTT", section 4.2.
pub fn vtt(cues: &[Cue]) -> String {
    let cue = |cue: &Cue| {
        let body = cue.lines.join("\n").replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        format!("{} --> {}\n{body}\n\n", clock(cue.start_ms, '.'), clock(cue.end_ms, '.'))
    };
    let cues: String = cues.iter().map(cue).collect();
    format!("WEBVTT\n\nNOTE Times are estimated from the length of the text and the pauses of the sound.\n\n{cues}")
}

/// `01:02:03,004`.
pub fn clock(ms: u64, separator: char) -> String {
    let (h, m, s, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    format!("{h:02}:{m:02}:{s:02}{separator}{ms:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cues() -> Vec<Cue> {
        let cue = |start_ms, end_ms, lines: &[&str]| Cue {
            start_ms,
            end_ms,
            lines: lines.iter().map(|&line| line.into()).collect(),
            text: lines.join(" "),
        };
        vec![cue(0, 1235, &["a <b> & c", "--> d"]), cue(3_600_000, 3_725_500, &["e"])]
    }

    #[test]
    fn what_would_be_read_as_something_else_is_written_otherwise() {
        let want = "1\n00:00:00,000 --> 00:00:01,235\na <b> & c\n-> d\n\n2\n01:00:00,000 --> 01:02:05,500\ne\n\n";
        assert_eq!(srt(&cues()), want);
        let vtt = vtt(&cues());
        let (head, body) = vtt.split_once("\n\n00:").unwrap();
        assert!(
            head.starts_with("WEBVTT\n\nNOTE ") && head.contains("estimated") && head.lines().count() == 3,
            "{head}"
        );
        let want = "00:00.000 --> 00:00:01.235\na &lt;b&gt; &amp; c\n--&gt; d\n\n01:00:00.000 --> 01:02:05.500\ne\n\n";
        assert_eq!(body, want);
    }
}
