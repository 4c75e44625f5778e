//! [`Glob`]: patterns of file names, for `--include` and `--exclude`.

use std::path::Path;
use std::str::FromStr;

/// A pattern: `*` stands for any characters of a name, `?` for one, `**` for any folders too. Letters count as they are.
///
/// With a `/` it is compared with the path below the folder that was named, without one with the file's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Glob(Vec<char>);

impl FromStr for Glob {
    type Err = String;

    /// Errors: an empty pattern; brackets and braces, which other programs give a meaning.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains(['[', ']', '{', '}']) {
            return Err("want a pattern of *, ** and ? (? can stand for a bracket)".into());
        }
        Ok(Self(text.chars().collect()))
    }
}

impl Glob {
    /// Whether it fits a file, given below the folder that was named.
    pub(super) fn fits(&self, file: &Path) -> bool {
        let is_path = self.0.contains(&'/');
        let name = if is_path { file.as_os_str() } else { file.file_name().unwrap_or_default() };
        let name: Vec<char> = name.to_string_lossy().chars().collect();
        fits(&self.0, &name)
    }
}

/// Tracks all places of the pattern that the characters so far can have led to, so that the time is bounded by the product
/// of both lengths.
fn fits(pattern: &[char], name: &[char]) -> bool {
    let mut places = vec![false; pattern.len() + 1];
    places[0] = true;
    skip_stars(pattern, &mut places, true);
    for &c in name {
        let mut next = vec![false; places.len()];
        for (i, &p) in pattern.iter().enumerate().filter(|&(i, _)| places[i]) {
            let is_deep = p == '*' && (pattern.get(i + 1) == Some(&'*') || i > 0 && pattern[i - 1] == '*');
            match p {
                '*' if is_deep || c != '/' => next[i] = true,
                '?' if c != '/' => next[i + 1] = true,
                _ if p == c => next[i + 1] = true,
                _ => {}
            }
        }
        places = next;
        skip_stars(pattern, &mut places, c == '/');
    }
    places[pattern.len()]
}

/// A star may stand for nothing, and `**/` for no folder where a name begins.
fn skip_stars(pattern: &[char], places: &mut [bool], begins_name: bool) {
    for i in (0..pattern.len()).filter(|&i| pattern[i] == '*') {
        places[i + 1] |= places[i];
        let is_folders = pattern[i..].starts_with(&['*', '*', '/']) && (i == 0 || pattern[i - 1] == '/');
        if is_folders && begins_name {
            places[i + 3] |= places[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn stars_stand_for_parts_of_names() {
        for (pattern, file, want) in [
            ("*.wav", "a.wav", true),
            ("*.wav", "sub/a.wav", true),
            ("*.wav", "a.WAV", false),
            ("*.wav", "a.wav.txt", false),
            ("a?c*", "abc", true),
            ("a?c*", "ac", false),
            ("sub/*.wav", "sub/a.wav", true),
            ("sub/*.wav", "sub/b/a.wav", false),
            ("sub/**", "sub/b/a.wav", true),
            ("**/a.wav", "a.wav", true),
            ("**/a.wav", "sub/b/a.wav", true),
            ("**/a.wav", "sub/ba.wav", false),
            ("*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            let glob: Glob = pattern.parse().unwrap();
            assert_eq!(glob.fits(file.as_ref()), want, "{pattern} {file}");
        }
        for refused in ["", "[ab].wav", "*.{wav,mp3}"] {
            assert!(refused.parse::<Glob>().is_err(), "{refused}");
        }
    }
}
