//! `tympan bench` beside llama-bench: fields, rows, formats, refusals.

use std::path::Path;

use serde_json::Value;

use crate::run::{Run, clip, command, fixtures, tympan};

/// Fields of llama-bench's csv, sql and json, in their order. Source: its output, llama-cpp-python 0.3.36.
const FIELDS: &str = "build_commit,build_number,cpu_info,gpu_info,backends,model_filename,model_type,model_size,model_n_params,\
n_batch,n_ubatch,n_threads,cpu_mask,cpu_strict,poll,type_k,type_v,n_gpu_layers,n_cpu_moe,split_mode,main_gpu,no_kv_offload,\
flash_attn,devices,tensor_split,tensor_buft_overrides,load_mode,lazy_mode,embeddings,no_op_offload,no_host,repack,fit_target,\
fit_min_ctx,n_prompt,n_gen,n_depth,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts";

/// Our own fields, behind llama-bench's.
const OWN: &str =
    "n_parallel,graph_reuse,graph_builds,graph_hits,host_us_per_step,state_bytes_per_step,peak_rss,p50_ns,p95_ns";

fn model() -> String {
    fixtures().join("golden/lfm2").display().to_string()
}

fn bench(args: &[&str]) -> String {
    let model = model();
    tympan([&["bench", "-m", &model, "-r", "1", "--no-warmup"], args].concat()).expect(0).out
}

fn rows(args: &[&str]) -> Vec<Value> {
    bench(&[args, &["-o", "jsonl"]].concat()).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Prompt, generated and context tokens of every row.
fn tests(args: &[&str]) -> Vec<[u64; 3]> {
    let numbers = |row: &Value| ["n_prompt", "n_gen", "n_depth"].map(|key| row[key].as_u64().unwrap());
    rows(args).iter().map(numbers).collect()
}

#[test]
fn rows_have_the_fields_and_types_of_llama_bench_and_ours_behind_them() {
    let row = rows(&["-p", "8", "-n", "0", "-t", "1"]).remove(0);
    let object = row.as_object().unwrap();
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(keys.join(","), format!("{FIELDS},samples_ns,samples_ts,{OWN}"));
    for (key, value) in object {
        let fits = match key.as_str() {
            "cpu_strict" | "no_kv_offload" | "embeddings" | "no_host" | "repack" => value.is_boolean(),
            "avg_ts" | "stddev_ts" | "host_us_per_step" | "state_bytes_per_step" => value.is_f64(),
            "samples_ns" | "samples_ts" => value.is_array(),
            "build_number" | "model_size" | "model_n_params" | "n_batch" | "n_ubatch" | "n_threads" | "poll"
            | "n_gpu_layers" | "n_cpu_moe" | "main_gpu" | "flash_attn" | "no_op_offload" | "fit_target"
            | "fit_min_ctx" | "n_prompt" | "n_gen" | "n_depth" | "n_parallel" | "avg_ns" | "stddev_ns"
            | "graph_builds" | "graph_hits" | "peak_rss" | "p50_ns" | "p95_ns" => value.is_i64() || value.is_u64(),
            _ => value.is_string(),
        };
        assert!(fits, "{key}: {value}");
    }
    // Scripts that compare builds cut their names to the shortest one, and llama.cpp without a repository is `unknown`.
    assert_eq!(row["build_commit"].as_str().unwrap().len(), "unknown".len());
    // The fixture in bf16: 551232 parameters, of which norms and kernels are f32.
    assert_eq!(row["model_n_params"], 551_232);
    assert_eq!(row["samples_ns"].as_array().unwrap().len(), 1);
}

#[test]
fn rows_come_in_the_order_of_llama_bench() {
    assert_eq!(tests(&["-p", "4,8", "-n", "0", "-t", "1"]), [[4, 0, 0], [8, 0, 0]]);
    let both = ["-t", "1", "-p", "4", "-n", "2", "-pg", "6,3", "-d", "0,5"];
    assert_eq!(tests(&both), [[4, 0, 0], [0, 2, 0], [6, 3, 0], [4, 0, 5], [0, 2, 5], [6, 3, 5]]);
    assert_eq!(
        tests(&["-t", "1", "-p", "2-8*2", "-n", "1-5+2"]),
        [[2, 0, 0], [4, 0, 0], [8, 0, 0], [0, 1, 0], [0, 3, 0], [0, 5, 0]]
    );
    let settings = |row: &Value| ["n_batch", "n_ubatch", "n_threads"].map(|key| row[key].as_u64().unwrap());
    let lists: Vec<_> =
        rows(&["-p", "8", "-n", "0", "-b", "4,8", "-ub", "2,4", "-t", "1,2"]).iter().map(settings).collect();
    assert_eq!(lists, [[4, 2, 1], [4, 2, 2], [4, 4, 1], [4, 4, 2], [8, 2, 1], [8, 2, 2], [8, 4, 1], [8, 4, 2]]);
    let types: Vec<_> = rows(&["-p", "4", "-n", "0", "-ctk", "f16,f32"]).iter().map(|r| r["type_k"].clone()).collect();
    assert_eq!(types, ["f16", "f32"]);
}

#[test]
fn flags_that_change_nothing_are_recorded() {
    let args =
        ["-t", "1", "-p", "4", "-n", "0", "-ngl", "0,99", "-sm", "none", "-dev", "none", "-lm", "mmap", "-lzm", "on"];
    let rows = rows(&args);
    assert_eq!(rows.iter().map(|r| r["n_gpu_layers"].as_i64().unwrap()).collect::<Vec<_>>(), [0, 99]);
    let recorded = ["split_mode", "devices", "load_mode", "lazy_mode"].map(|key| rows[0][key].clone());
    assert_eq!(recorded, ["none", "none", "mmap", "on"]);
    // As llama-bench does where everything runs on the CPU.
    let md = bench(&args);
    assert!(
        !md.contains("ngl")
            && md.contains("| threads |     sm | dev          |         lm | lazy_mode  |            test |"),
        "{md}"
    );
}

#[test]
fn flags_with_one_value_take_the_last_one() {
    // Of a list llama-bench reads the first number.
    for last in ["3", "3,4"] {
        let rows = rows(&["-p", "4", "-n", "0", "-t", "1", "-r", "2", "-r", last]);
        assert_eq!((rows.len(), rows[0]["samples_ns"].as_array().unwrap().len()), (1, 3));
    }
}

#[test]
fn a_second_format_goes_to_standard_error() {
    let model = model();
    let with = |format: &str| {
        tympan(["bench", "-m", &model, "-r", "1", "-p", "4", "-n", "0", "-o", "jsonl", "-oe", format]).expect(0)
    };
    let (csv, none) = (with("csv"), with("none"));
    assert!(csv.err.contains(FIELDS) && csv.err.lines().count() == 2, "{}", csv.err);
    assert!(none.err.is_empty() && none.json_lines().len() == 1, "{}", none.err);
}

#[test]
fn every_format_holds_the_same_rows() {
    let args = ["-t", "1", "-p", "4", "-n", "2"];
    let with = |format: &str| bench(&[&args[..], &["-o", format]].concat());
    let csv = with("csv");
    assert_eq!(csv.lines().next(), Some(FIELDS));
    assert_eq!(csv.lines().count(), 3);
    assert!(csv.lines().skip(1).all(|line| line.split("\",\"").count() == FIELDS.split(',').count()));
    let json: Value = serde_json::from_str(&with("json")).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    let sql = with("sql");
    assert!(sql.starts_with("CREATE TABLE IF NOT EXISTS llama_bench (\n  build_commit TEXT,\n  build_number INTEGER,"));
    assert_eq!(sql.matches("INSERT INTO llama_bench (").count(), 2);
    let md = with("md");
    let head = "| model                          |       size |     params | backend    | threads |            test |                  t/s |";
    assert_eq!(md.lines().next(), Some(head));
    assert!(md.contains("|             pp4 |") && md.contains("|             tg2 |"), "{md}");
}

/// Every sequence has the test's prompt, continuation and context; speeds are those of all of them.
#[test]
fn several_sequences_are_measured_together() {
    let sizes = ["-t", "1", "-p", "5", "-n", "4", "-pg", "5,2", "-d", "0,3", "-np", "1,3", "-b", "8", "-ub", "4"];
    let number = |row: &Value, key: &str| row[key].as_u64().unwrap();
    let measured = rows(&sizes);
    let tests = measured.iter().map(|row| ["n_prompt", "n_gen", "n_depth", "n_parallel"].map(|key| number(row, key)));
    let each = [[5, 0], [0, 4], [5, 2]];
    let want = [[0, 1], [0, 3], [3, 1], [3, 3]].map(|[d, np]| each.map(|[p, n]| [p, n, d, np])).concat();
    assert_eq!(tests.collect::<Vec<_>>(), want);
    for (row, [p, n, _, np]) in measured.iter().zip(want) {
        let tokens = row["avg_ts"].as_f64().unwrap() * row["avg_ns"].as_f64().unwrap() / 1e9;
        assert!((tokens - (np * (p + n)) as f64).abs() < 1e-3, "{row}");
        // Prompts lie behind each other in batches of 8, which are fed in pieces of 4; tokens of all sequences are one call.
        assert_eq!(number(row, "graph_builds") + number(row, "graph_hits"), (np * p).div_ceil(4) + n, "{row}");
    }
    let few = ["-t", "1", "-p", "0", "-n", "2", "-np", "3"];
    let with = |format: &str| bench(&[&few[..], &["-o", format]].concat());
    assert!(with("md").contains("| threads |  np |            test |"), "{}", with("md"));
    let csv = with("csv");
    assert!(csv.starts_with(&format!("{FIELDS},n_parallel\n")) && csv.ends_with(",\"3\"\n"), "{csv}");
    let reuse = bench(&[&few[..], &["-gr", "on,off"]].concat());
    assert!(reuse.contains("tg2, 3 sequences"), "{reuse}");
    let model = model();
    for (args, want) in [
        (&["-np", "0"][..], "-np: want at least 1"),
        (&["-np", "257"], "-np: want at most 256"),
        (&["-np", "5", "-ub", "4"], "do not fit a call of 4"),
        (&["-np", "2", "--audio", "x.wav"], "--parallel"),
        (&["-np", "4", "--spec-rows", "200"], "at most 512 rows together"),
    ] {
        let run = tympan([&["bench", "-m", &model], args].concat()).expect(2);
        assert!(run.err.contains(want), "{args:?}: {}", run.err);
    }
}

#[test]
fn reuse_on_and_off_give_a_table_of_the_gain() {
    let args = ["-t", "1", "-p", "0", "-n", "4", "-gr", "on,off"];
    let rows = rows(&args);
    let field = |key: &str| rows.iter().map(|r| r[key].clone()).collect::<Vec<_>>();
    assert_eq!(field("graph_reuse"), ["on", "off"]);
    assert_eq!(field("graph_builds"), [1, 4]);
    assert_eq!(field("graph_hits"), [3, 0]);
    let md = bench(&args);
    assert!(md.contains("t/s without | t/s with reuse |     gain |"), "{md}");
}

#[test]
fn clips_are_measured_stage_by_stage() {
    let clips = ["open_door.wav", "digits_short.wav"].map(|name| clip(name).display().to_string());
    let transcripts = clip("transcripts.tsv").display().to_string();
    let args =
        ["bench", "--audio", &clips[0], "--audio", &clips[1], "--reference", &transcripts, "-r", "3", "-o", "jsonl"];
    let rows = tympan(args).expect(0).json_lines();
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let number = |key: &str| row[key].as_f64().unwrap();
        let stages = ["decode_audio", "resample", "mel", "encode", "prefill", "decode"];
        let sum: f64 = stages.iter().map(|s| number(&format!("{s}_ms"))).sum();
        // What lies between the stages is bookkeeping; on a tiny model under load it counts for more.
        assert!(sum <= number("total_ms") && sum >= 0.9 * number("total_ms"), "{row}");
        let percent: f64 = stages.iter().map(|s| number(&format!("{s}_percent"))).sum();
        assert!((percent - 100.0 * sum / number("total_ms")).abs() < 1e-6);
        assert_eq!(number("wer"), 0.0, "{row}");
        assert!(number("rtf") > 0.0 && number("wall_ms") >= number("total_ms") && number("peak_rss") > 1e6);
        assert_eq!(row["samples_ms"].as_array().unwrap().len(), 3);
    }
    assert_eq!((rows[0]["words"].as_u64(), rows[1]["words"].as_u64()), (Some(4), Some(3)));
    let exact = ["bench", "--audio", &clips[0], "-n", "19", "-r", "1", "--warmup", "0", "-o", "jsonl"];
    assert_eq!(tympan(exact).expect(0).json_lines()[0]["generated_tokens"], 19);
}

/// A profile accounts for the time of its steps, and for every node of the graph.
fn check_profile(profile: &Value) {
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key}: {value}"));
    let sum = |list: &Value| list.as_array().unwrap().iter().map(|op| number(op, "total_ns")).sum::<u64>();
    let (ops_ns, run_ns, step_ns) = (number(profile, "ops_ns"), number(profile, "run_ns"), number(profile, "step_ns"));
    assert_eq!(sum(&profile["ops"]), ops_ns);
    assert!(ops_ns <= run_ns && run_ns <= step_ns, "{profile}");
    for op in profile["ops"].as_array().unwrap() {
        assert_eq!(sum(&op["by_operands"]), number(op, "total_ns"));
        let counts = op["by_operands"].as_array().unwrap().iter().map(|o| number(o, "count"));
        assert_eq!(counts.sum::<u64>(), number(op, "count"));
    }
}

#[test]
fn profiles_account_for_the_time_of_a_step() {
    let measured = || rows(&["-t", "1", "-p", "256", "-n", "128", "--profile"]);
    let first = measured();
    for (row, steps) in first.iter().zip([1, 128]) {
        let profile = &row["profile"];
        check_profile(profile);
        assert_eq!(profile["steps"], steps);
        let ops = profile["ops"].as_array().unwrap();
        let attention = ops.iter().find(|op| op["op"] == "cached_attention").unwrap();
        // The fixture has one layer with attention.
        assert_eq!(attention["count"], steps);
    }
    // What lies between ops and steps is bookkeeping of a percent, but there too a loaded machine may take its core away: it
    // does not always.
    let share = |row: &Value| row["profile"]["ops_ns"].as_f64().unwrap() / row["profile"]["step_ns"].as_f64().unwrap();
    let is_complete = |rows: &[Value]| rows.iter().map(share).fold(0.0, f64::max) > 0.9;
    assert!(is_complete(&first) || (0..9).any(|_| is_complete(&measured())), "{first:?}");
    let speech = clip("long_9s.wav").display().to_string();
    let args = ["bench", "--audio", &speech, "-n", "20", "-r", "2", "--warmup", "0", "--profile", "-o", "jsonl"];
    let row = tympan(args).expect(0).json_lines().remove(0);
    let stages = row["profile"].as_array().unwrap();
    assert_eq!(
        stages.iter().map(|s| s["stage"].as_str().unwrap()).collect::<Vec<_>>(),
        ["encode", "prefill", "decode"]
    );
    // The first token comes out of the prompt.
    assert_eq!(stages.iter().map(|s| s["steps"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 2, 38]);
    stages.iter().for_each(check_profile);
    let md = bench(&["-t", "1", "-p", "0", "-n", "2", "--profile"]);
    assert!(md.contains("tg2: 2 steps of") && md.contains("| all ops "), "{md}");
}

/// Rows as if they had taken `factor` times as long.
fn stretched(rows: &[Value], factor: f64) -> String {
    let stretch = |row: &Value| {
        let mut row = row.clone();
        let list = |row: &Value, key: &str, factor: f64| {
            row[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() * factor).collect::<Vec<_>>()
        };
        for (times, rates) in [("samples_ns", "samples_ts"), ("avg_ns", "avg_ts")] {
            if row[times].is_array() {
                (row[times], row[rates]) = (list(&row, times, factor).into(), list(&row, rates, 1.0 / factor).into());
            } else {
                row[times] = (row[times].as_f64().unwrap() * factor).into();
                row[rates] = (row[rates].as_f64().unwrap() / factor).into();
            }
        }
        format!("{row}\n")
    };
    rows.iter().map(stretch).collect()
}

#[test]
fn a_faster_baseline_fails_and_names_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let model = model();
    let args = ["bench", "-m", &model, "--no-warmup", "-t", "1", "-r", "3"];
    let rows = tympan([&args[..], &["-p", "8", "-n", "4", "-o", "jsonl"]].concat()).expect(0).json_lines();
    let against = |file: &str, tests: &[&str], code| {
        let file = path(file);
        tympan([&args[..], tests, &["--baseline", &file, "--max-regress", "5"]].concat()).expect(code)
    };
    // Whatever else the machine does: nothing makes a run a hundred times slower, or faster.
    std::fs::write(path("fast.jsonl"), stretched(&rows, 0.01)).unwrap();
    let run = against("fast.jsonl", &["-p", "8", "-n", "4"], 1);
    let named: Vec<&str> = run.err.lines().filter(|line| line.starts_with("slower: ")).collect();
    assert!(named.len() == 2 && named[0].contains("pp8") && named[1].contains("tg4"), "{}", run.err);
    assert_eq!(run.err.matches("measuring it again").count(), 4);
    assert!(run.out.contains("|         baseline |              now |      time |"), "{}", run.out);
    std::fs::write(path("slow.json"), format!("[{}]", stretched(&rows, 100.0).trim().replace('\n', ","))).unwrap();
    let run = against("slow.json", &["-p", "8", "-n", "4", "-o", "jsonl"], 0);
    assert!(run.json_lines().len() == 2 && run.err.contains("pp8"), "{}", run.err);
    // A row that only one of the two has is said; a file without any common row is an error.
    let lonely = against("slow.json", &["-p", "16", "-n", "4"], 0).err;
    assert!(lonely.contains("pp16: not in ") && lonely.contains("pp8: only in "), "{lonely}");
    std::fs::write(path("other.jsonl"), stretched(&rows[..1], 1.0)).unwrap();
    assert!(against("other.jsonl", &["-p", "0", "-n", "4"], 3).err.contains("other.jsonl: none of its rows"));
}

/// Text rows `factors` times as slow as those of this program, and a clip's, as files of the program that prints them.
fn rows_of_another_program(dir: &Path, [pp, tg]: [f64; 2], clip: &str) {
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let rows = rows(&["-p", "8", "-n", "4", "-t", "1"]);
    write("pp.jsonl", stretched(&rows[..1], pp));
    write("tg.jsonl", stretched(&rows[1..], tg));
    let speech = ["bench", "--audio", clip, "-n", "4", "-r", "1", "--warmup", "0", "-o", "jsonl", "-t", "1"];
    let mut row = tympan(speech).expect(0).json_lines().remove(0);
    row["samples_ms"] = serde_json::json!([row["samples_ms"][0].as_f64().unwrap() * 100.0]);
    write("asr.jsonl", row.to_string());
}

#[test]
fn another_program_is_run_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let program = format!("{}/../tests/cli/other_bench.sh", env!("CARGO_MANIFEST_DIR"));
    let model = model();
    let speech = clip("open_door.wav").display().to_string();
    let beside = |args: &[&str]| {
        let against = ["bench", "-t", "1", "-r", "1", "--baseline-program", &program, "--max-regress", "5"];
        let run = command([&against, args].concat()).env("OTHER_ROWS", dir.path()).output().unwrap();
        let calls = std::fs::read_to_string(dir.path().join("calls")).unwrap_or_default();
        let _ = std::fs::remove_file(dir.path().join("calls"));
        (Run::from(run), calls)
    };
    let text = ["-m", &model, "--no-warmup", "-p", "8", "-n", "4"];
    // Whatever else the machine does: nothing makes a run a hundred times slower, or faster.
    rows_of_another_program(dir.path(), [0.01, 100.0], &speech);
    let (run, calls) = beside(&text);
    let run = run.expect(1);
    let slower: Vec<&str> = run.err.lines().filter(|line| line.starts_with("slower: ")).collect();
    assert!(slower.len() == 1 && slower[0].contains("pp8") && slower[0].contains("in 8 rounds"), "{}", run.err);
    assert!(run.out.contains("|         baseline |              now |      time |"), "{}", run.out);
    // Eight rounds are the fewest that allow a verdict; both tests are sure at once.
    let calls: Vec<&str> = calls.lines().collect();
    let flags = format!("bench -o jsonl -m {model} -t 1 -ctk f16 -ctv f16 -r 1 --no-warmup");
    assert_eq!(calls[..8], vec![format!("{flags} -p 8 -n 0 -d 0 -b 2048 -ub 512"); 8]);
    assert_eq!(calls[8..], vec![format!("{flags} -p 0 -n 4 -d 0 -b 2048 -ub 512"); 8]);
    let (run, calls) = beside(&["--audio", &speech, "-n", "4", "--warmup", "0", "-o", "jsonl"]);
    let run = run.expect(0);
    assert!(run.json_lines().len() == 1 && run.err.contains("open_door.wav, 4 tokens"), "{}", run.err);
    assert!(calls.lines().all(|call| call.ends_with(&format!("--audio {speech} --warmup 0 -n 4"))), "{calls}");
    // Rows of something else, and no rows.
    let pp = std::fs::read_to_string(dir.path().join("pp.jsonl")).unwrap();
    for (text_of_tg, cause) in [
        (pp.as_str(), "measures something else: n_prompt is 0 here and 8 there"),
        ("", "want one row of json, got 0 bytes"),
        ("[]", "want one row of json, got something else"),
        ("{}", "a row in which model_filename is missing"),
    ] {
        std::fs::write(dir.path().join("tg.jsonl"), text_of_tg).unwrap();
        let (run, _) = beside(&["-m", &model, "--no-warmup", "-p", "0", "-n", "4"]);
        let run = run.expect(3);
        assert!(run.err.contains("other_bench.sh") && run.err.contains(cause), "{}", run.err);
    }
    std::fs::remove_file(dir.path().join("tg.jsonl")).unwrap();
    let (run, _) = beside(&["-m", &model, "--no-warmup", "-p", "0", "-n", "4"]);
    let run = run.expect(3);
    assert!(run.err.contains("exit status: 1") && run.err.contains("tg.jsonl"), "{}", run.err);
}

#[test]
fn programs_that_cannot_be_started_are_refused_before_anything_is_measured() {
    let model = model();
    for program in ["/nowhere/tympan", "/bin/false", &model] {
        let run = tympan(["bench", "-m", &model, "--baseline-program", program]).expect(3);
        assert!(run.err.contains(program) && run.out.is_empty(), "{}", run.err);
    }
    let program = env!("CARGO_BIN_EXE_tympan");
    let run = tympan(["bench", "-m", &model, "--baseline", program]).expect(3);
    assert!(run.err.contains("is a program, not rows of a benchmark; --baseline-program"), "{}", run.err);
    let both = ["bench", "-m", &model, "--baseline", "a.jsonl", "--baseline-program", program];
    assert!(tympan(both).expect(2).err.contains("--baseline-program"));
}

#[test]
fn damaged_baselines_are_refused_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let cases = [
        ("empty.json", "", "no rows"),
        ("cut.jsonl", "{\"model_filename\": \"x\"", "want json or jsonl"),
        ("table.md", "| model |", "want json or jsonl"),
        ("other.json", "[{\"a\": 1}]", "row 1: model_filename is missing"),
        ("number.json", "7", "row 1: want an object"),
    ];
    for (name, text, cause) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let run = tympan(["bench", "-m", &model, "--baseline", &path.display().to_string()]).expect(3);
        assert!(run.err.contains(name) && run.err.contains(cause) && run.out.is_empty(), "{name}: {}", run.err);
    }
    let missing = tympan(["bench", "-m", &model, "--baseline", "/nowhere/a.json"]).expect(3);
    assert!(missing.err.contains("/nowhere/a.json"), "{}", missing.err);
}

#[test]
fn pictures_have_a_bar_for_every_row_and_its_partner() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (svg, old) = (path("a.svg"), path("old.jsonl"));
    let old_rows = bench(&["-t", "1", "-p", "4", "-n", "0", "-o", "jsonl"]);
    std::fs::write(&old, old_rows).unwrap();
    bench(&["-t", "1", "-p", "4", "-n", "2", "--plot", &svg, "--baseline", &old]);
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && picture.ends_with("</svg>\n"));
    // The ground, two boxes of the legend, two bars of pp4 and one of tg2.
    assert_eq!(picture.matches("<rect ").count(), 6);
    assert!(picture.contains(">pp4</text>") && picture.contains(">tg2</text>") && picture.contains("old.jsonl"));
    let model = model();
    assert!(tympan(["bench", "-m", &model, "--plot", "a.png"]).expect(2).err.contains("--plot a.png"));
}

#[test]
fn what_is_not_there_is_refused() {
    let model = model();
    let cases: [(&[&str], &str); 14] = [
        (&["--max-regress", "5"], "--baseline"),
        (&["--baseline", "x", "--max-regress=-1"], "--max-regress"),
        (&["-sm", "layer,none"], "-sm layer,none"),
        (&["--profile", "-o", "csv"], "--profile: csv"),
        (&["-fa", "off"], "-fa off"),
        (&["-ctk", "q8_0"], "-ctk q8_0"),
        (&["-ctk", "f16", "-ctv", "f32"], "-ctk and -ctv"),
        (&["-p", "0", "-n", "0"], "nothing to measure"),
        (&["-p", "8-"], "-p"),
        (&["-b", "0"], "-b"),
        (&["-sm", "row"], "-sm row"),
        (&["-hf", "a/b"], "-hf a/b"),
        (&["-pg", "5"], "-pg"),
        (&["--audio", "x.wav", "-p", "4"], "--audio"),
    ];
    for (args, named) in cases {
        let run = tympan([&["bench", "-m", &model], args].concat()).expect(2);
        assert!(run.err.contains(named), "{args:?}: {}", run.err);
    }
}
