//! Cues as rows: comma-separated and tab-separated values, and lyrics. A row has the whole text of a cue; times are milliseconds,
//! as other speech recognizers write them.

use crate::cues::Cue;

/// `start,end,text` with a header; texts are quoted. Source: RFC 4180; columns and units as those of whisper.cpp.
pub fn csv(cues: &[Cue]) -> String {
    let row = |cue: &Cue| format!("{},{},\"{}\"\r\n", cue.start_ms, cue.end_ms, cue.text.replace('"', "\"\""));
    format!("start,end,text\r\n{}", cues.iter().map(row).collect::<String>())
}

/// `start`, `end` and `text` with a header, as OpenAI's Whisper writes them: nothing is quoted, and no text has a tab.
pub fn tsv(cues: &[Cue]) -> String {
    let row = |cue: &Cue| format!("{}\t{}\t{}\n", cue.start_ms, cue.end_ms, cue.text);
    format!("start\tend\ttext\n{}", cues.iter().map(row).collect::<String>())
}

/// Lyrics: `[mm:ss.xx]` and the text, as whisper.cpp writes them. Minutes go on beyond 99; hundredths are not rounded up.
pub fn lrc(cues: &[Cue]) -> String {
    let line = |cue: &Cue| {
        let (minutes, seconds, hundredths) = (cue.start_ms / 60_000, cue.start_ms / 1000 % 60, cue.start_ms / 10 % 100);
        // A bracket right after the time may be taken for another one.
        let space = if cue.text.starts_with('[') { " " } else { "" };
        format!("[{minutes:02}:{seconds:02}.{hundredths:02}]{space}{}\n", cue.text)
    };
    format!("[by:tympan]\n{}", cues.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cues() -> Vec<Cue> {
        let cue = |start_ms, end_ms, text: &str| Cue { start_ms, end_ms, lines: vec![text.into()], text: text.into() };
        vec![cue(0, 1999, "so, \"yes\""), cue(59_999, 61_000, "[ah]"), cue(6_000_010, 6_001_000, "\u{4f60}\u{597d}")]
    }

    /// The rows of a table, read by the grammar of RFC 4180: every record ends with a line break, a quoted field is all of it.
    fn records(table: &str) -> Vec<Vec<String>> {
        let mut records = vec![vec![String::new()]];
        let mut is_quoted = false;
        let mut rest = table.chars().peekable();
        let mut was_quoted = false;
        while let Some(c) = rest.next() {
            let fields = records.last_mut().unwrap();
            let field = fields.last_mut().unwrap();
            match c {
                '"' if is_quoted && rest.peek() == Some(&'"') => field.extend(rest.next()),
                '"' if is_quoted => (is_quoted, was_quoted) = (false, true),
                c if is_quoted => field.push(c),
                '"' => {
                    assert!(field.is_empty() && !was_quoted, "a quote within {field}");
                    is_quoted = true;
                }
                ',' => (*fields, was_quoted) = ([fields.clone(), vec![String::new()]].concat(), false),
                '\r' => {
                    assert_eq!(rest.next(), Some('\n'));
                    records.push(vec![String::new()]);
                    was_quoted = false;
                }
                c => {
                    assert!(c != '\n' && !was_quoted, "{c:?} after {field}");
                    field.push(c);
                }
            }
        }
        assert!(!is_quoted && records.pop() == Some(vec![String::new()]), "{table}");
        records
    }

    #[test]
    fn comma_separated_values_are_read_by_the_grammar_of_their_rfc() {
        let want = [
            ["start", "end", "text"],
            ["0", "1999", "so, \"yes\""],
            ["59999", "61000", "[ah]"],
            ["6000010", "6001000", "\u{4f60}\u{597d}"],
        ];
        assert_eq!(records(&csv(&cues())), want);
        assert_eq!(csv(&[]), "start,end,text\r\n");
    }

    #[test]
    fn tab_separated_values_are_those_of_whisper() {
        let want = "start\tend\ttext\n0\t1999\tso, \"yes\"\n59999\t61000\t[ah]\n6000010\t6001000\t\u{4f60}\u{597d}\n";
        assert_eq!(tsv(&cues()), want);
    }

    #[test]
    fn lyrics_have_minutes_seconds_and_hundredths() {
        let want = "[by:tympan]\n[00:00.00]so, \"yes\"\n[00:59.99] [ah]\n[100:00.01]\u{4f60}\u{597d}\n";
        assert_eq!(lrc(&cues()), want);
    }
}
