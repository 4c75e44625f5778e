//! `tympan convert`: where files go, what is printed, what is refused.

use std::ffi::OsString;
use std::path::Path;

use engine::gguf::{Gguf, GgufWriter, Value};
use engine::{DType, Shape};
use tests::rng::Rng;

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
    // Llama-quantize wants Q6_K for the head, whose rows are too short for that.
    let notice = "output.weight: rows of 64 cannot be Q6_K: Q8_0\n";
    assert_eq!((&*run.out, &*run.err), (&*printed, notice));
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
fn wrong_flags_are_refused() {
    let checkpoint = fixtures().join("golden/qwen3_asr");
    for (args, want) in [
        (
            &["--tensor-type", "attn_z=f16"][..],
            "--tensor-type attn_z: no tensor whose type can be chosen has such a name",
        ),
        (&["--tensor-type", "attn_norm=f16"], "no tensor whose type can be chosen"),
        (
            &["--tensor-type", "a=f17"],
            "--tensor-type a=f17: f17 is no type of tensors; did you mean f16? (want one of f32, ",
        ),
        (&["--override-kv", "general.name=int:3"], "--override-kv general.name: want str, as the file has it, got int"),
        (&["--override-kv", "general.alignment=int:64"], "cannot be changed"),
        (&["--split-max-size", "1T"], "want a number of bytes, or one followed by K, M or G"),
        (&["--split-max-size", "0"], "want a number of bytes"),
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

/// The files that the lines of a dry run are about: path, bytes, and of every tensor offset, bytes, type, shape, name.
fn listed(text: &str) -> Vec<(String, usize, Vec<[String; 5]>)> {
    let mut files = Vec::new();
    for line in text.lines() {
        if let Some((path, rest)) = line.split_once(": ") {
            let bytes = rest.split(", ").find_map(|part| part.strip_suffix(" bytes")).unwrap();
            files.push((path.to_owned(), bytes.parse().unwrap(), Vec::new()));
        } else {
            let fields: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let fields: [String; 5] = fields.try_into().unwrap();
            let (_, _, tensors): &mut (String, usize, Vec<[String; 5]>) = files.last_mut().unwrap();
            tensors.extend((fields[0] != "offset").then_some(fields));
        }
    }
    files
}

#[test]
fn a_dry_run_lists_what_is_then_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/x.gguf");
    for args in
        [&["--type", "q4_k_m"][..], &["--type", "f16", "--bundle"], &["--type", "q8_0", "--split-max-size", "20K"]]
    {
        let checkpoint = fixtures().join("golden/lfm2_audio");
        let args: Vec<&str> = args.iter().copied().chain(["-o", out.to_str().unwrap()]).collect();
        let dry: Vec<&str> = args.iter().copied().chain(["--dry-run"]).collect();
        let list = convert(&dry, &checkpoint).expect(0);
        assert!(!out.parent().unwrap().exists(), "a dry run writes nothing");
        std::fs::create_dir(out.parent().unwrap()).unwrap();
        let run = convert(&args, &checkpoint).expect(0);
        assert_eq!(run.err, list.err, "the same notices");
        let listed = listed(&list.out);
        assert_eq!(run.out.lines().collect::<Vec<_>>(), listed.iter().map(|(path, ..)| path).collect::<Vec<_>>());
        assert_eq!(listed.len() > 2, args.contains(&"20K"), "{}", list.out);
        // A split model is opened by its first part and has the tensors of all.
        let mut rest: Vec<(&Vec<u8>, &[String; 5])> = Vec::new();
        let files: Vec<Vec<u8>> = listed.iter().map(|(path, ..)| std::fs::read(path).unwrap()).collect();
        for ((path, n_bytes, tensors), bytes) in listed.iter().zip(&files) {
            assert_eq!(bytes.len(), *n_bytes, "{path}");
            rest.extend(tensors.iter().map(|tensor| (bytes, tensor)));
        }
        let opened: Vec<Gguf> = listed.iter().filter_map(|(path, ..)| Gguf::open(Path::new(path)).ok()).collect();
        assert_eq!(opened.iter().map(Gguf::n_tensors).sum::<usize>(), rest.len());
        for (got, (bytes, [offset, n, dtype, shape, name])) in opened.iter().flat_map(Gguf::tensors).zip(rest) {
            let (offset, n): (usize, usize) = (offset.parse().unwrap(), n.parse().unwrap());
            let dims: Vec<String> = got.shape.dims().iter().map(u32::to_string).collect();
            assert_eq!(
                (got.name, got.dtype.name(), format!("[{}]", dims.join(","))),
                (&**name, &**dtype, shape.clone())
            );
            assert!(got.bytes == &bytes[offset..offset + n], "{name}");
        }
        std::fs::remove_dir_all(out.parent().unwrap()).unwrap();
    }
}

#[test]
fn verify_finds_any_flipped_byte() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf");
    let checkpoint = fixtures().join("golden/qwen3_asr");
    let args = ["--type", "q4_0", "--verify", "-v", "-o", out.to_str().unwrap()];
    let run = convert(&args, &checkpoint).expect(0);
    let paths: Vec<&Path> = run.out.lines().map(Path::new).collect();
    let n_tensors: usize = paths.iter().map(|path| Gguf::open(path).unwrap().n_tensors()).sum();
    assert_eq!(run.err.lines().filter(|line| line.contains(" xxh64 ")).count(), n_tensors);
    let exact = "x.gguf: output_norm.weight F32 xxh64 ";
    let exact = run.err.lines().find(|line| line.starts_with(exact)).unwrap();
    assert!(exact.ends_with(" nmse 0.000e0 max 0.000e0"), "{exact}");
    assert!(
        run.err.contains(&format!("verified: {n_tensors} tensors, every byte; largest error: nmse ")),
        "{}",
        run.err
    );

    let mut rng = Rng::new(5);
    for path in paths {
        let good = std::fs::read(path).unwrap();
        let time = std::fs::metadata(path).unwrap().modified().unwrap();
        convert(&args, &checkpoint).expect(0);
        assert_eq!(std::fs::metadata(path).unwrap().modified().unwrap(), time, "what is there is not written again");
        let name = path.file_name().unwrap().to_str().unwrap();
        let anywhere: Vec<usize> = (0..10).map(|_| rng.below(good.len())).collect();
        for at in [0, good.len() - 1].into_iter().chain(anywhere) {
            let mut bad = good.clone();
            bad[at] ^= 1 << rng.below(8);
            std::fs::write(path, &bad).unwrap();
            let run = convert(&args, &checkpoint).expect(4);
            assert!(run.err.contains(&format!("{name}: ")) && run.out.is_empty(), "{at}: {}", run.err);
            assert!(std::fs::read(path).unwrap() == bad, "a file that is found damaged stays as it is");
        }
        for n in [good.len() - 1, 10] {
            std::fs::write(path, &good[..n]).unwrap();
            let run = convert(&args, &checkpoint).expect(4);
            assert!(run.err.contains(&format!("{name}: want {} bytes, got {n}", good.len())), "{}", run.err);
        }
        std::fs::write(path, &good).unwrap();
        // One in a tensor is named.
        let file = Gguf::open(path).unwrap();
        let tensor = file.tensors().last().unwrap();
        let mut bad = good.clone();
        let at = good.len() - tensor.bytes.len().next_multiple_of(32) + 5;
        bad[at] ^= 1;
        std::fs::write(path, &bad).unwrap();
        let run = convert(&args, &checkpoint).expect(4);
        let want = format!(
            "{name}: {}: byte 5 (byte {at} of the file): want {:#04x}, got {:#04x}",
            tensor.name, good[at], bad[at]
        );
        assert!(run.err.contains(&want), "{}: want {want}", run.err);
        drop(file);
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, &good).unwrap();
    }
}

#[test]
fn types_and_keys_are_those_that_were_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.gguf");
    let args =
        ["--type", "q4_0", "--tensor-type", "blk.1.*ffn_down=q8_0", "--tensor-type", "ffn_=F16", "--override-kv"];
    let keys = ["general.name=str:a: b=c", "--override-kv", "qwen3.context_length=int:77", "-o", out.to_str().unwrap()];
    convert(&[&args[..], &keys].concat(), &fixtures().join("golden/qwen3")).expect(0);
    let file = Gguf::open(&out).unwrap();
    let dtype = |name: &str| file.tensor(name).unwrap().dtype;
    assert_eq!(dtype("blk.1.ffn_down.weight"), DType::Q8_0);
    assert_eq!(dtype("blk.0.ffn_down.weight"), DType::F16);
    assert_eq!(dtype("blk.1.ffn_up.weight"), DType::F16);
    assert_eq!(dtype("blk.0.ffn_norm.weight"), DType::F32);
    assert_eq!(dtype("blk.0.attn_q.weight"), DType::Q4_0);
    assert_eq!(file.get_str("general.name").unwrap(), "a: b=c");
    assert_eq!(file.get_u32("qwen3.context_length").unwrap(), 77);
    // A tower whose types were chosen one by one is warned of as well.
    let run = convert(
        &["--tensor-type", r"^a\..*ffn_up=q4_1", "-o", out.to_str().unwrap()],
        &fixtures().join("golden/qwen3_asr"),
    );
    assert!(run.expect(0).err.starts_with("warning: an audio tower below 8 bits costs accuracy: Q4_1\n"));
}

#[test]
fn split_models_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, split) = (dir.path().join("whole"), dir.path().join("split"));
    let checkpoint = fixtures().join("models/tiny-qwen3-asr");
    convert(&["--type", "q8_0", "-o", whole.to_str().unwrap()], &checkpoint).expect(0);
    let run =
        convert(&["--type", "q8_0", "--split-max-size", "400K", "-o", split.to_str().unwrap()], &checkpoint).expect(0);
    let parts: Vec<&str> = run.out.lines().filter(|path| !path.contains("mmproj-")).collect();
    assert!(parts.len() > 4 && run.out.lines().count() == parts.len() + 1, "{}", run.out);
    assert!(parts[1].ends_with(&format!("tiny-qwen3-asr-Q8_0-00002-of-{:05}.gguf", parts.len())), "{}", parts[1]);
    let (whole, split) = (whole.join("tiny-qwen3-asr-Q8_0.gguf"), Path::new(parts[0]));
    let (one, many) = (Gguf::open(&whole).unwrap(), Gguf::open(split).unwrap());
    let tensors = |file: &Gguf| -> Vec<(String, DType, Vec<u8>)> {
        file.tensors().map(|t| (t.name.to_owned(), t.dtype, t.bytes.to_vec())).collect()
    };
    assert!(tensors(&one) == tensors(&many));
    let keys = |file: &Gguf| -> Vec<(String, Value)> {
        let all = file.metadata().filter(|(key, _)| !key.starts_with("split."));
        all.map(|(key, value)| (key.to_owned(), value)).collect()
    };
    assert_eq!(keys(&one), keys(&many));
    assert_eq!(many.value("split.no"), Some(Value::U16(0)));
    assert_eq!(many.value("split.count"), Some(Value::U16(parts.len() as u16)));
    assert_eq!(many.value("split.tensors.count"), Some(Value::I32(one.n_tensors() as i32)));
    let clip = clip("open_door.wav");
    let run = tympan(["transcribe", "-m", parts[0], clip.to_str().unwrap()]).expect(0);
    assert_eq!(run.out, "please open the door\n");
    let checkpoint = &fixtures().join("models/tiny-qwen3-asr");
    let fits = dir.path().join("fits");
    convert(&["--split-max-size", "1G", "-o", fits.to_str().unwrap()], checkpoint).expect(0);
    assert_eq!(files_in(&fits), ["mmproj-tiny-qwen3-asr-BF16.gguf", "tiny-qwen3-asr-BF16.gguf"]);
}

/// `quantize` with a matrix is compared with llama-quantize elsewhere.
#[test]
fn an_importance_matrix_does_what_it_does_for_quantize() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let checkpoint = fixtures().join("golden/qwen3");
    let (first, matrix) = (path("f32.gguf"), path("imatrix.gguf"));
    convert(&["--type", "f32", "-o", &first], &checkpoint).expect(0);
    let source = Gguf::open(Path::new(&first)).unwrap();
    let mut rng = Rng::new(11);
    let mut out = GgufWriter::create(Path::new(&matrix)).unwrap();
    out.key("imatrix.datasets", vec!["text"]).unwrap();
    out.key("imatrix.chunk_count", 3u32).unwrap();
    out.key("imatrix.chunk_size", 512u32).unwrap();
    // One weight is missing.
    let is_known = |name: &str| name.starts_with("blk.") && name.ends_with("weight") && !name.contains("attn_k.");
    let known: Vec<(String, usize)> = source
        .tensors()
        .filter(|t| is_known(t.name) && t.shape.rank() == 2)
        .map(|t| (t.name.to_owned(), t.shape.last()))
        .collect();
    for (name, n) in &known {
        out.tensor(&format!("{name}.in_sum2"), DType::F32, Shape::new(&[1, *n]).unwrap()).unwrap();
        out.tensor(&format!("{name}.counts"), DType::F32, Shape::new(&[1, 1]).unwrap()).unwrap();
    }
    for (name, n) in &known {
        out.begin(&format!("{name}.in_sum2")).unwrap();
        rng.floats(*n, [0.1, 900.0]).iter().for_each(|x| out.write(&x.to_le_bytes()).unwrap());
        out.begin(&format!("{name}.counts")).unwrap();
        out.write(&100f32.to_le_bytes()).unwrap();
    }
    out.finish().unwrap();
    for file_type in ["q3_k_m", "q4_k_m", "q4_0", "iq4_nl"] {
        let (one, two, plain) = (path("one.gguf"), path("two.gguf"), path("plain.gguf"));
        let run = convert(&["--type", file_type, "--imatrix", &matrix, "--verify", "-o", &one], &checkpoint).expect(0);
        assert!(run.err.contains("blk.0.attn_k.weight: not in the importance matrix\n"), "{}", run.err);
        tympan(["quantize", &first, &two, file_type, "--imatrix", &matrix]).expect(0);
        convert(&["--type", file_type, "-o", &plain], &checkpoint).expect(0);
        let [one, two, plain] = [one, two, plain].map(|path| Gguf::open(Path::new(&path)).unwrap());
        let mut n_changed = 0;
        for tensor in two.tensors() {
            let got = one.tensor(tensor.name).unwrap();
            assert!((got.dtype, got.bytes) == (tensor.dtype, tensor.bytes), "{file_type} {}", tensor.name);
            n_changed += usize::from(plain.tensor(tensor.name).unwrap().bytes != tensor.bytes);
        }
        assert!(n_changed > known.len() / 2, "{file_type}: {n_changed}");
        assert_eq!(one.value("quantize.imatrix.entries_count"), two.value("quantize.imatrix.entries_count"));
        for file in ["one.gguf", "two.gguf", "plain.gguf"] {
            std::fs::remove_file(path(file)).unwrap();
        }
    }
    let run = convert(&["--imatrix", &matrix, "-o", &path("x.gguf")], &checkpoint).expect(2);
    assert!(run.err.contains("--imatrix: no tensor has a type that uses it"), "{}", run.err);
    convert(&["--type", "q4_0", "--imatrix", &first, "-o", &path("x.gguf")], &checkpoint).expect(4);
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
