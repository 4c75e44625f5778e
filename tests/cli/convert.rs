//! `tympan convert`: where files go, what is printed, what is refused.

use std::ffi::OsString;
use std::path::Path;

use engine::gguf::Gguf;

use crate::run::{Run, clip, fixtures, tympan};

fn convert(args: &[&str], checkpoint: &Path) -> Run {
    let mut all: Vec<OsString> = vec!["convert".into(), checkpoint.into()];
    all.extend(args.iter().map(Into::into));
    tympan(all)
}

fn files_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_pair_goes_into_a_directory_that_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    let run = convert(&["--type", "Q4_0", "-o", out.to_str().unwrap()], &fixtures().join("golden/qwen3_asr")).expect(0);
    let names = ["mmproj-qwen3_asr-Q8_0.gguf", "qwen3_asr-Q4_0.gguf"];
    assert_eq!(files_in(&out), names);
    let printed = format!("{}\n{}\n", out.join(names[1]).display(), out.join(names[0]).display());
    assert_eq!((run.out, run.err), (printed, String::new()));
}

#[test]
fn a_named_file_has_its_projector_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf");
    convert(&["-o", file.to_str().unwrap()], &fixtures().join("golden/qwen3_asr")).expect(0);
    assert_eq!(files_in(dir.path()), ["mmproj-x.gguf", "x.gguf"]);
    convert(&["--bundle", "--type", "f32", "-o", file.to_str().unwrap()], &fixtures().join("golden/qwen3_asr"))
        .expect(0);
    assert_eq!(Gguf::open(&file).unwrap().get_u32("general.file_type").unwrap(), 0);
}

#[test]
fn what_was_converted_transcribes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    convert(&["--type", "q8_0", "-o", out], &fixtures().join("models/tiny-qwen3-asr")).expect(0);
    let clip = clip("open_door.wav");
    let run = tympan(["transcribe", "-m", out, clip.to_str().unwrap()]).expect(0);
    assert_eq!(run.out, "please open the door\n");
}

#[test]
fn lfm2_audio_is_converted_and_transcribes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let checkpoint = fixtures().join("models/tiny-lfm2-audio");
    convert(&["--type", "q8_0", "-o", out], &checkpoint).expect(0);
    assert_eq!(files_in(dir.path()), ["mmproj-tiny-lfm2-audio-Q8_0.gguf", "tiny-lfm2-audio-Q8_0.gguf"]);
    let clip = clip("open_door.wav");
    // The pair, the checkpoint itself, and one file.
    let bundle = dir.path().join("bundle.gguf");
    convert(&["--bundle", "-o", bundle.to_str().unwrap()], &checkpoint).expect(0);
    let pair = dir.path().join("tiny-lfm2-audio-Q8_0.gguf");
    for model in [&pair, &checkpoint, &bundle] {
        let run = tympan(["transcribe", "-m", model.to_str().unwrap(), clip.to_str().unwrap()]).expect(0);
        assert_eq!(run.out, "please open the door\n", "{}", model.display());
    }
}

#[test]
fn text_models_of_lfm2_become_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    for name in ["lfm2", "lfm2_moe"] {
        convert(&["--type", "q4_0", "-o", out], &fixtures().join("golden").join(name)).expect(0);
    }
    assert_eq!(files_in(dir.path()), ["lfm2-Q4_0.gguf", "lfm2_moe-Q4_0.gguf"]);
    let run = convert(&["--audio-type", "f16"], &fixtures().join("golden/lfm2_moe")).expect(2);
    assert!(run.err.ends_with("has no audio tower\n"), "{}", run.err);
}

#[test]
fn an_audio_tower_below_8_bits_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let run = convert(&["--audio-type", "q4_0", "-o", out], &fixtures().join("golden/qwen3_asr")).expect(0);
    assert!(
        run.err.starts_with("warning: ") && run.err.contains("Q4_0") && run.err.lines().count() == 1,
        "{}",
        run.err
    );
    assert_eq!(files_in(dir.path()), ["mmproj-qwen3_asr-Q4_0.gguf", "qwen3_asr-BF16.gguf"]);
}

#[test]
fn later_flags_and_types_are_refused() {
    let checkpoint = fixtures().join("golden/qwen3_asr");
    for (args, want) in [
        (&["--imatrix", "x"][..], "--imatrix: not in this version"),
        (&["--tensor-type", "a=f16"], "--tensor-type: not in this version"),
        (&["--split-max-size", "1G"], "--split-max-size: not in this version"),
        (&["--dry-run", "--verify"], "cannot be used with"),
        (&["--type", "q8"], "a similar value exists: 'q8_0'"),
        (&["--bundel"], "a similar argument exists: '--bundle'"),
        (&["-t", "0"], "want 1 to 1024"),
    ] {
        let run = convert(args, &checkpoint).expect(2);
        assert!(run.err.contains(want) && run.out.is_empty(), "{}: want {want}", run.err);
    }
    tympan(["convert"]).expect(2);
    let run = convert(&["--audio-type", "f16"], &fixtures().join("golden/qwen3")).expect(2);
    assert!(run.err.contains("--audio-type f16: ") && run.err.ends_with("has no audio tower\n"), "{}", run.err);
    let help = tympan(["convert", "--help"]).expect(0).out;
    assert!(help.contains("[possible values: f32, f16, bf16, q8_0, q4_0, q4_1, "), "{help}");
}

#[test]
fn failures_have_their_codes_and_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let run = convert(&[], &dir.path().join("absent")).expect(4);
    assert!(run.err.ends_with("absent: no such file\n"), "{}", run.err);
    let run = convert(&[], &clip("yes.wav")).expect(4);
    assert!(run.err.ends_with("yes.wav: want a checkpoint directory, got a file\n"), "{}", run.err);
    let run = convert(&[], dir.path()).expect(4);
    assert!(run.err.ends_with("config.json: no such file\n"), "{}", run.err);
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let run = convert(&["-o", file.join("x").to_str().unwrap()], &fixtures().join("golden/qwen3_asr")).expect(1);
    assert!(run.err.starts_with("error: ") && run.err.lines().count() == 1, "{}", run.err);
    assert_eq!(files_in(dir.path()), ["file"]);
}
