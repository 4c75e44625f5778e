//! Drafts: flags, files, and that they change nothing that is printed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use crate::run::{Run, command, fixtures, tympan};
use crate::signals::{send, signals};

fn generate(args: &[&str]) -> Run {
    generate_with("golden/llama", args)
}

fn generate_with(model: &str, args: &[&str]) -> Run {
    let model = fixtures().join(model);
    let model = model.to_str().unwrap();
    let prompt = "1,21,22,23,24,21,22,23,24,21,22,23,24,21,22,23,24,21,22,23,24";
    tympan(
        [
            &["generate", "-m", model, "--prompt-ids", prompt, "--token-ids", "--ignore-eos", "-n", "48", "-t", "2"],
            args,
        ]
        .concat(),
    )
}

#[test]
fn drafts_change_no_text() {
    let dir = tempfile::tempdir().unwrap();
    let [counts, draft_model] = [dir.path().join("counts"), fixtures().join("golden/llama")];
    let (counts, draft_model) = (counts.to_str().unwrap(), draft_model.to_str().unwrap());
    for sampling in [&["--temp", "0"][..], &["--temp", "0.8", "--top-k", "3", "--seed", "5"]] {
        let want = generate(sampling).expect(0).out;
        for flags in [
            &["--spec-type", "ngram-simple", "--spec-ngram-size-n", "2", "--draft-max", "4"][..],
            &["--spec-type", "ngram-map-k,ngram-map-k4v", "--spec-ngram-size-n", "2", "--spec-ngram-size-m", "2"],
            &["--spec-default", "--spec-ngram-mod-n-match", "1", "--draft-n", "4", "--draft-n-min", "1"],
            &["--spec-type", "ngram-cache", "-lcd", counts],
            &["--spec-type", "suffix", "--spec-suffix-size-n", "1", "--spec-adapt", "on"],
            &["-md", draft_model, "--spec-draft-n-max", "5", "--spec-draft-p-min", "0.01"],
        ] {
            let off = if flags.contains(&"--spec-adapt") { &[][..] } else { &["--spec-adapt", "off"] };
            let got = generate(&[sampling, flags, off].concat()).expect(0);
            assert_eq!(got.out, want, "{flags:?}");
            let said = got.err.lines().find(|line| line.contains("drafts: ")).expect("what came of them");
            assert!(!off.is_empty() && !said.contains(" 0 verified") || off.is_empty(), "{flags:?}: {said}");
        }
        let plain = generate(&[sampling, &["--spec-type", "none"]].concat()).expect(0);
        assert!(plain.out == want && !plain.err.contains("drafts: "), "{}", plain.err);
    }
    // What the runs taught is kept, and can be what a collection of texts is.
    assert!(std::fs::metadata(counts).unwrap().len() > 1000);
    let both = ["--spec-type", "ngram-cache", "--lookup-cache-static", counts];
    generate(&both).expect(0);
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    for (flags, want) in [
        (&["--spec-type", "ngram"][..], "ngram"),
        (&["--spec-type", "none,suffix"], "none goes with no other type"),
        (&["--spec-type", "draft-simple"], "wants --spec-draft-model"),
        (&["--spec-type", "suffix", "-lcs", "x"], "go with --spec-type ngram-cache"),
        (&["--spec-type", "suffix", "--draft-max", "0"], "1..=255"),
        (&["--spec-type", "suffix", "--draft-max", "3", "--draft-min", "4"], "at most 3 tokens"),
        (&["--spec-default", "--spec-ngram-mod-n-max", "10", "--spec-ngram-mod-n-min", "11"], "ngram-mod: want"),
        (&["--spec-type", "ngram-simple", "--spec-ngram-size-n", "0"], "1..=1024"),
    ] {
        let run = generate(flags).expect(2);
        assert!(run.err.contains(want), "{flags:?}: {}", run.err);
    }
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("counts");
    std::fs::write(&damaged, [1; 21]).unwrap();
    let damaged = damaged.to_str().unwrap();
    for flag in ["-lcs", "-lcd"] {
        let run = generate(&["--spec-type", "ngram-cache", flag, damaged]).expect(3);
        assert!(run.err.contains("counts") && run.err.contains("4 bytes"), "{}", run.err);
    }
    generate(&["--spec-type", "ngram-cache", "-lcs", "/nowhere"]).expect(3);
    let other = fixtures().join("golden/qwen3");
    let run = generate(&["-md", other.to_str().unwrap()]).expect(4);
    assert!(run.err.contains("draft model"), "{}", run.err);
}

/// Recurrent states fold what came before: their inputs are kept until it is sure that they stay.
#[test]
fn drafts_change_no_text_of_recurrent_models() {
    for model in ["golden/lfm2", "golden/mamba", "golden/jamba", "golden/granitemoehybrid", "golden/qwen3_next"] {
        let want = generate_with(model, &["--temp", "0.5", "--top-k", "2"]).expect(0).out;
        let drafts = ["--spec-type", "suffix", "--spec-suffix-size-n", "1", "--draft-max", "6", "--spec-adapt", "off"];
        let flags = [&["--temp", "0.5", "--top-k", "2", "--spec-rollback", "ring"][..], &drafts].concat();
        let got = generate_with(model, &flags).expect(0);
        assert_eq!(got.out, want, "{model}");
        assert!(got.err.contains("drafts: ") && !got.err.contains(" 0 verified"), "{model}: {}", got.err);
        for rollback in ["row", "checkpoint"] {
            let again = ["--spec-rollback", rollback, "--spec-ckpt-num-tries", "1"];
            let flags = [&["--temp", "0.5", "--top-k", "2"], &again[..], &drafts].concat();
            let got = generate_with(model, &flags).expect(0);
            assert!(got.out == want && got.err.contains("ms to save states"), "{model}, {rollback}: {}", got.err);
        }
    }
    let tries = ["--spec-type", "suffix", "--spec-ckpt-num-tries", "2", "-v"];
    assert!(generate(&tries).expect(0).err.contains("--spec-ckpt-num-tries 2: not used"));
}

/// The server takes the flags too, from the environment as well, and what texts taught is written when it ends.
#[test]
fn a_server_drafts_and_keeps_what_it_learnt() {
    let dir = tempfile::tempdir().unwrap();
    let counts = dir.path().join("counts");
    let model = fixtures().join("golden/llama");
    let args =
        ["serve", "--port", "0", "-t", "1", "-c", "256", "-m", model.to_str().unwrap(), "--spec-type", "ngram-cache"];
    for (signal, code) in signals() {
        let mut server = command(args);
        // The type is one that the command line does not leave standing.
        server
            .env("TYMPAN_LOOKUP_CACHE_DYNAMIC", &counts)
            .env("TYMPAN_SPEC_TYPE", "none")
            .env("TYMPAN_SPEC_ADAPT", "off");
        let mut server = server.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
        let at = lines.find_map(|line| Some(line.split_once("http://")?.1.to_owned())).expect("where it listens");
        let body = r#"{"prompt": [21, 22, 23, 21, 22, 23, 21, 22, 23], "n_predict": 40, "ignore_eos": true, "temperature": 0}"#;
        let mut stream = TcpStream::connect(&at).unwrap();
        let head = format!("POST /completion HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\"draft_n\":"), "{answer}");
        send(signal, &server);
        let rest: Vec<String> = lines.collect();
        assert_eq!(server.wait().unwrap().code(), Some(code), "{rest:?}");
        assert!(rest.iter().any(|line| line.contains("\"draft_tokens\":")), "{rest:?}");
        assert!(std::fs::metadata(&counts).unwrap().len() > 1000);
    }
}

/// Drafts are measured beside the same text without them; those of an oracle give as many tokens a step as was asked for.
#[test]
fn drafts_are_measured() {
    let model = fixtures().join("golden/granitemoehybrid");
    let bench =
        |args: &[&str]| tympan([&["bench", "-m", model.to_str().unwrap(), "-t", "2", "-r", "1"], args].concat());
    let drafts = ["--spec-oracle", "4,4", "--spec-oracle", "2,1", "--spec-type", "suffix", "--spec-adapt", "off"];
    let rows = bench(&[&drafts[..], &["-n", "61", "-d", "5", "--spec-rows", "1,5", "-o", "jsonl"]].concat()).expect(0);
    let rows = rows.json_lines();
    let steps: Vec<_> = rows.iter().filter(|row| row["test"] == "rows").collect();
    assert_eq!(steps.iter().map(|row| row["n_rows"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 5]);
    let [of_one, at_most] = ["steps_of_one_row", "factor_at_most"].map(|name| steps[1][name].as_f64().unwrap());
    assert!((of_one * at_most - 5.0).abs() < 1e-9 && steps[0]["factor_at_most"] == 1.0);
    let texts: Vec<_> = rows.iter().filter(|row| row["test"] == "drafts").collect();
    let names: Vec<_> = texts.iter().map(|row| row["drafts_of"].as_str().unwrap()).collect();
    assert_eq!(names, ["oracle 4,4", "oracle 2,1", "suffix"]);
    assert!(texts.iter().all(|row| row["same_text"] == true && row["n_gen"] == 61 && row["n_depth"] == 5), "{texts:?}");
    // 60 tokens behind the first one.
    let [right, wrong] = [0, 1].map(|i| ["steps", "verified", "accepted"].map(|name| texts[i][name].as_u64().unwrap()));
    assert_eq!((right[0], texts[0]["emitted_per_step"].as_f64()), (15, Some(4.0)));
    assert!(right[2] == 45 && right[1] > 45, "{right:?}");
    // The last token leaves no room for drafts behind it.
    assert_eq!((wrong[0], wrong[2]), (60, 0));
    let copied =
        bench(&[&drafts[..], &["-n", "31", "--spec-rollback", "checkpoint", "-o", "jsonl"]].concat()).expect(0);
    for row in copied.json_lines().into_iter().take(2) {
        let ms = |what: &str| row[format!("{what}_ms_per_draft")].as_f64().unwrap();
        assert!(row["rollback"] == "checkpoint" && row["same_text"] == true, "{row}");
        assert!(ms("save") > 0.0 && ms("restore") > 0.0 && ms("replay") > 0.0, "{row}");
    }
    let rows =
        bench(&[&drafts[..], &["-n", "31", "--spec-rollback", "row", "-np", "2", "-o", "jsonl"]].concat()).expect(0);
    for row in rows.json_lines().into_iter().take(2) {
        assert!(row["rollback"] == "row" && row["same_text"] == true, "{row}");
        assert!(row["replay_ms_per_draft"].as_f64().unwrap() > 0.0, "{row}");
    }
    // Three texts at once: each has steps of its own, and speeds are those of all of them.
    let three = bench(
        &[&drafts[..2], &["-n", "61", "-np", "3", "--spec-rows", "5", "--spec-adapt", "off", "-o", "jsonl"]].concat(),
    );
    let three = three.expect(0).json_lines();
    assert!(three.iter().all(|row| row["n_parallel"] == 3), "{three:?}");
    assert!(three[0]["n_rows"] == 5 && three[1]["same_text"] == true, "{three:?}");
    assert_eq!(["steps", "accepted", "emitted"].map(|name| three[1][name].as_u64().unwrap()), [45, 135, 183]);
    assert_eq!(three[1]["emitted_per_step"].as_f64(), Some(4.0));
    let table = bench(&[&drafts[..], &["-n", "9"]].concat()).expect(0).out;
    assert!(table.contains("| oracle 4,4") && table.contains("| same"), "{table}");
    for (args, want) in [
        (&["--spec-oracle", "4,6"][..], "MEAN from 1 to K + 1"),
        (&["--spec-oracle", "0,1"], "K from 1 to 255"),
        (&["--spec-rows", "0"], "want 1 to 256"),
        (&["--spec-rows", "2", "-o", "csv"], "accepted: md, json, jsonl"),
        (&["--spec-rows", "2", "-p", "8"], "-p does not go with drafts"),
        (&["--temp", "1"], "--temp goes with"),
    ] {
        let run = bench(args).expect(2);
        assert!(run.err.contains(want), "{args:?}: {}", run.err);
    }
}
