//! Flags as llama-bench spells them: with one dash and several letters, lists, ranges, and those for features that this
//! program does not have.

use std::ffi::OsString;

/// Most entries of a list, so that a typing error in a range does not run for days.
const MAX_LIST: usize = 1000;
/// Largest number of tokens, threads or batches.
const MAX_NUMBER: usize = 1 << 24;

/// Flags of one dash and several letters, and the long flags that they stand for.
const SHORT: [(&str, &str); 29] = [
    ("-pg", "--pg"),
    ("-ub", "--ubatch-size"),
    ("-np", "--parallel"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-ngl", "--n-gpu-layers"),
    ("-oe", "--output-err"),
    ("-gr", "--graph-reuse"),
    ("-fa", "--flash-attn"),
    ("-ncmoe", "--n-cpu-moe"),
    ("-sm", "--split-mode"),
    ("-mg", "--main-gpu"),
    ("-nkvo", "--no-kv-offload"),
    ("-dev", "--dev"),
    ("-lm", "--load-mode"),
    ("-lzm", "--lazy-mode"),
    ("-embd", "--embeddings"),
    ("-ts", "--tensor-split"),
    ("-ot", "--override-tensor"),
    ("-nopo", "--no-op-offload"),
    ("-hf", "--hf-repo"),
    ("-hfr", "--hf-repo"),
    ("-hff", "--hf-file"),
    ("-hft", "--hf-token"),
    ("-fitt", "--fit-target"),
    ("-fitc", "--fit-ctx"),
    ("-rpc", "--rpc"),
    ("-mmp", "--mmap"),
    ("-dio", "--direct-io"),
];

/// Those of drafts, as llama.cpp's programs have them.
const SHORT_OF_DRAFTS: [(&str, &str); 3] =
    [("-md", "--spec-draft-model"), ("-lcs", "--lookup-cache-static"), ("-lcd", "--lookup-cache-dynamic")];

/// The command line with the short flags of llama.cpp's programs spelt out, where its subcommand has them.
pub(crate) fn spelt_out(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let known: Vec<_> = match args.get(1).and_then(|name| name.to_str()) {
        Some("bench") => SHORT.iter().chain(&SHORT_OF_DRAFTS).collect::<Vec<_>>(),
        Some("generate" | "serve") => SHORT_OF_DRAFTS.iter().collect(),
        _ => Vec::new(),
    };
    for arg in args.iter_mut().skip(2) {
        if let Some((_, long)) = known.iter().find(|(short, _)| arg == short) {
            *arg = (*long).into();
        }
    }
    args
}

/// The numbers of `1,4-8,16-64*2,10-30+10`: single ones and ranges, by default in steps of 1.
pub(super) fn numbers(text: &str) -> Result<Vec<usize>, String> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let range = part.split_once('-');
        let Some((first, rest)) = range else {
            all.push(number(part)?);
            continue;
        };
        let (last, step): (&str, Box<dyn Fn(usize) -> usize>) = if let Some((last, step)) = rest.split_once('+') {
            let step = number(step)?;
            (last, Box::new(move |n| n + step))
        } else if let Some((last, factor)) = rest.split_once('*') {
            let factor = number(factor)?;
            (last, Box::new(move |n| n * factor))
        } else {
            (rest, Box::new(|n| n + 1))
        };
        let (mut at, last) = (number(first)?, number(last)?);
        while at <= last {
            all.push(at);
            let next = step(at);
            if next <= at || all.len() > MAX_LIST {
                return Err(format!("{part:?} is a range of more than {MAX_LIST} numbers"));
            }
            at = next;
        }
    }
    if all.len() > MAX_LIST { Err(format!("more than {MAX_LIST} numbers")) } else { Ok(all) }
}

fn number(text: &str) -> Result<usize, String> {
    let n = text.parse::<usize>().ok().filter(|&n| n <= MAX_NUMBER);
    n.ok_or_else(|| {
        format!("want a number up to {MAX_NUMBER}, first-last, first-last+step or first-last*factor, got {text:?}")
    })
}

/// Prompt and generation of `-pg`: `512,128`.
pub(super) fn pair(text: &str) -> Result<[usize; 2], String> {
    match numbers(text)?[..] {
        [prompt, generated] => Ok([prompt, generated]),
        _ => Err(format!("want the tokens of a prompt and of its continuation, such as 512,128, got {text:?}")),
    }
}

/// A flag for something that llama-bench has and this program has not: refused unless its value changes nothing.
pub(super) struct Foreign<'a> {
    /// As users write it.
    pub flag: &'static str,
    /// What was given, if anything.
    pub given: Option<&'a str>,
    /// Values that ask for what happens anyway.
    pub neutral: &'static [&'static str],
    /// Why others cannot be had.
    pub why: &'static str,
}

impl Foreign<'_> {
    /// Errors: what was given asks for something that is not there.
    pub(super) fn check(&self) -> Result<(), String> {
        let Some(given) = self.given else { return Ok(()) };
        if self.neutral.contains(&given) {
            return Ok(());
        }
        let accepted =
            if self.neutral.is_empty() { String::new() } else { format!(" (accepted: {})", self.neutral.join(", ")) };
        Err(format!("{} {given}: {}{accepted}", self.flag, self.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_those_of_llama_bench() {
        assert_eq!(numbers("512"), Ok(vec![512]));
        assert_eq!(numbers("64,128"), Ok(vec![64, 128]));
        assert_eq!(numbers("4-8+2"), Ok(vec![4, 6, 8]));
        assert_eq!(numbers("4-16*2,1-3"), Ok(vec![4, 8, 16, 1, 2, 3]));
        assert_eq!(numbers("0"), Ok(vec![0]));
        assert_eq!(pair("512,128"), Ok([512, 128]));
        for bad in ["", "a", "-1", "1,", "4-8+0", "1-9*1", "1-100000", "99999999999", "1.5"] {
            assert!(numbers(bad).is_err(), "{bad}");
        }
        assert!(pair("512").is_err());
    }

    #[test]
    fn short_flags_are_spelt_out_where_they_are_flags() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let bench = spelt_out(words(&["tympan", "bench", "-pg", "1,2", "-m", "x", "-ctk", "f16"]));
        assert_eq!(bench, words(&["tympan", "bench", "--pg", "1,2", "-m", "x", "--cache-type-k", "f16"]));
        assert_eq!(spelt_out(words(&["tympan", "generate", "-pg"])), words(&["tympan", "generate", "-pg"]));
        let drafts = spelt_out(words(&["tympan", "generate", "-md", "x"]));
        assert_eq!(drafts, words(&["tympan", "generate", "--spec-draft-model", "x"]));
    }
}
