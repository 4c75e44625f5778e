//! Words of texts: how many, how many of them are wrong, and a mark by which equal texts are known.

/// Lower case, without what is neither letter nor digit at the ends of words.
fn words(text: &str) -> Vec<String> {
    let bare = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    text.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect()
}

/// Number of words.
pub(super) fn n_words(text: &str) -> usize {
    words(text).len()
}

/// Words put in, left out and replaced, per word of `said`. Case and punctuation do not count.
pub(super) fn error_rate(said: &str, heard: &str) -> f64 {
    let (said, heard) = (words(said), words(heard));
    // Distances from all of what was said to the beginnings of what was heard.
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, word) in said.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in heard.iter().enumerate() {
            let replaced = diagonal + usize::from(word != other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[heard.len()] as f64 / said.len().max(1) as f64
}

/// FNV-1a of 64 bits, in hexadecimal. Source: Fowler, Noll, Vo.
pub(super) fn hash(text: &str) -> String {
    let fold = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_by_word() {
        assert_eq!(error_rate("turn the light off", "Turn the light off."), 0.0);
        assert_eq!(error_rate("turn the light off", "turn light off"), 0.25);
        assert_eq!(error_rate("turn the light off", "turn the the light of"), 0.5);
        assert_eq!(error_rate("one", ""), 1.0);
        assert_eq!(error_rate("", "one two"), 2.0);
        assert_eq!(n_words(" - two, words "), 2);
    }

    #[test]
    fn hashes_are_the_published_ones() {
        assert_eq!(hash(""), "cbf29ce484222325");
        assert_eq!(hash("a"), "af63dc4c8601ec8c");
        assert_eq!(hash("foobar"), "85944171f73967e8");
    }
}
