//! [`StopTexts`]: texts that end an answer, looked for in a text that grows.

/// Texts of which the first that appears ends an answer, and how far was looked for them.
#[derive(Debug)]
pub(crate) struct StopTexts {
    texts: Vec<String>,
    /// Bytes in which none begins that ends in them too.
    n_searched: usize,
}

impl StopTexts {
    /// None of `texts` is empty.
    pub(crate) fn new(texts: &[String]) -> Self {
        Self { texts: texts.to_vec(), n_searched: 0 }
    }

    /// Where the first of the texts begins in `text`, which only grew since it was asked for, and which one it is: of several
    /// at one place the first that was named.
    pub(crate) fn find(&mut self, text: &str) -> Option<(usize, &str)> {
        let longest = self.texts.iter().map(String::len).max()?;
        let start = text.floor_char_boundary(self.n_searched.saturating_sub(longest - 1));
        self.n_searched = text.len();
        let places = self.texts.iter().filter_map(|stop| Some((start + text[start..].find(&**stop)?, &**stop)));
        places.min_by_key(|&(at, _)| at)
    }

    /// Bytes at the beginning of `text`, which has none of the texts, that no longer text can make part of one.
    pub(crate) fn n_safe(&self, text: &str) -> usize {
        let held_back = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).rev();
            ends.into_iter().find(|&at| text.ends_with(&stop[..at])).unwrap_or(0)
        };
        text.len() - self.texts.iter().map(held_back).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown after every piece, and where it ends.
    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut texts = StopTexts::new(&stops);
        let (mut text, mut all) = (String::new(), Vec::new());
        for piece in pieces {
            text.push_str(piece);
            if let Some((at, stop)) = texts.find(&text) {
                all.push(text[..at].to_owned());
                return (all, Some(stop.to_owned()));
            }
            all.push(text[..texts.n_safe(&text)].to_owned());
        }
        (all, None)
    }

    #[test]
    fn nothing_of_a_stop_text_is_shown() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(shown(&["END"], &["aE", "N", "x", "E", "ND", "b"]), {
            (["a", "a", "aENx", "aENx", "aENx"].map(str::to_owned).into(), some("END"))
        });
        // The one that begins first wins, though the other one is whole earlier.
        assert_eq!(shown(&["cd", "bcdef"], &["abc", "d", "ef"]), (vec!["a".into(), "ab".into()], some("cd")));
        assert_eq!(shown(&["bcd", "bc"], &["ab", "cd"]), (vec!["a".into(), "a".into()], some("bcd")));
        assert_eq!(shown(&["aab"], &["a", "a", "a", "b"]), {
            (["", "", "a", "a"].map(str::to_owned).into(), some("aab"))
        });
        assert_eq!(
            shown(&["\u{e4}\u{f6}"], &["x\u{e4}", "\u{f6}"]),
            (vec!["x".into(), "x".into()], some("\u{e4}\u{f6}"))
        );
        assert_eq!(shown(&["\u{e4}\u{f6}"], &["x\u{e4}", "\u{e4}"]), { (vec!["x".into(), "x\u{e4}".into()], None) });
        assert_eq!(shown(&[], &["a", "b"]), (vec!["a".into(), "ab".into()], None));
    }
}
