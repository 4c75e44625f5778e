//! `tympan quantize`: whole files against llama-quantize's, and what is refused.

use std::path::{Path, PathBuf};

use engine::DType;
use engine::gguf::Gguf;

use crate::run::{Run, command, fixtures};

/// Folder of the source, its importance matrix and the expected hashes; see its `README.md`.
fn quant() -> PathBuf {
    fixtures().join("quant")
}

/// Runs in the folder of the fixtures: the path of an importance matrix goes into the file.
fn quantize(args: &[&str], input: &Path, output: &Path) -> Run {
    let mut command = command(["quantize"]);
    command.current_dir(quant()).arg(input).arg(output).args(args);
    command.output().expect("the program starts").into()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01B3))
}

#[test]
fn files_are_those_of_llama_quantize() {
    let dir = tempfile::tempdir().unwrap();
    let (first, out) = (dir.path().join("first.gguf"), dir.path().join("out.gguf"));
    let expected = std::fs::read_to_string(quant().join("llama_quantize.txt")).unwrap();
    for line in expected.lines() {
        let [to, how, bytes, hash] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let model = Path::new("model.gguf");
        match how {
            "plain" => quantize(&[to], model, &out).expect(0),
            "imatrix" => quantize(&[to, "--imatrix", "imatrix.gguf"], model, &out).expect(0),
            quantized => {
                quantize(&[quantized], model, &first).expect(0);
                quantize(&[to, "--allow-requantize"], &first, &out).expect(0)
            }
        };
        let got = std::fs::read(&out).unwrap();
        assert_eq!((got.len().to_string(), format!("{:016x}", fnv1a(&got))), (bytes.into(), hash.into()), "{line}");
    }
    assert_eq!(expected.lines().count(), 39);
}

/// Size and hash are those of what llama-quantize (llama-cpp-python 0.3.36) writes when it is given these flags.
#[test]
fn types_and_keys_of_the_user_are_those_of_llama_quantize() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let types = ["attn_v=q5_k", r"blk\.[0-3]\..*ffn_down=q8_0", "ffn_=q4_0"];
    let keys = ["general.name=str:hello", "foo.bar=int:12", "foo.x=float:1.5", "foo.b=bool:true"];
    let mut args = vec!["q4_k_m", "--imatrix", "imatrix.gguf"];
    args.extend(types.iter().flat_map(|text| ["--tensor-type", text]));
    args.extend(keys.iter().flat_map(|text| ["--override-kv", text]));
    quantize(&args, Path::new("model.gguf"), &out).expect(0);
    let got = std::fs::read(&out).unwrap();
    assert_eq!((got.len(), fnv1a(&got)), (59968, 0xcba1a68f936db947));
}

#[test]
fn threads_do_not_change_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let [one, three] = ["1", "3"].map(|threads| {
        let out = dir.path().join(threads);
        quantize(&["q4_k_m", "-t", threads], Path::new("model.gguf"), &out).expect(0);
        std::fs::read(out).unwrap()
    });
    assert!(one == three);
}

#[test]
fn dry_runs_and_checks_are_those_of_convert() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let args = ["q3_k_m", "--imatrix", "imatrix.gguf", "--tensor-type", "attn_q=q5_k"];
    let with = |flag| [&args[..], &[flag]].concat();
    let list = quantize(&with("--dry-run"), Path::new("model.gguf"), &out).expect(0).out;
    assert!(!out.exists());
    quantize(&with("--verify"), Path::new("model.gguf"), &out).expect(0);
    let bytes = std::fs::read(&out).unwrap();
    assert!(list.contains(&format!(" tensors, {} bytes, ", bytes.len())), "{list}");
    let file = Gguf::open(&out).unwrap();
    let tensor = file.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!(tensor.dtype, DType::Q5_K);
    let line = list.lines().find(|line| line.ends_with(" blk.0.attn_q.weight")).unwrap();
    let at: usize = line.split_whitespace().next().unwrap().parse().unwrap();
    assert!(&bytes[at..at + tensor.bytes.len()] == tensor.bytes);
    let mut bad = bytes.clone();
    bad[at + 7] ^= 0x10;
    std::fs::write(dir.path().join("bad.gguf"), &bad).unwrap();
    std::fs::rename(dir.path().join("bad.gguf"), &out).unwrap();
    let run = quantize(&with("--verify"), Path::new("model.gguf"), &out).expect(4);
    assert!(
        run.err.contains(&format!("out.gguf: blk.0.attn_q.weight: byte 7 (byte {} of the file)", at + 7)),
        "{}",
        run.err
    );
    let run = quantize(&["q8_0", "--tensor-type", "nothing=f16"], Path::new("model.gguf"), &out).expect(2);
    assert!(run.err.contains("--tensor-type nothing: no tensor whose type can be chosen"), "{}", run.err);
}

#[test]
fn rows_that_do_not_fit_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let run = quantize(&["Q4_K_S"], Path::new("model.gguf"), &out).expect(0);
    let lines = "blk.9.ffn_down.weight: rows of 288 cannot be Q4_K: Q5_0\nblk.9.ssm_dt.weight: rows of 48 cannot be Q4_K: F16\n";
    assert_eq!((run.out, run.err), (format!("{}\n", out.display()), lines.into()));
    assert_eq!(Gguf::open(&out).unwrap().get_u32("general.file_type").unwrap(), 14);
}

#[test]
fn quantized_sources_need_a_flag() {
    let dir = tempfile::tempdir().unwrap();
    let (first, out) = (dir.path().join("first.gguf"), dir.path().join("out.gguf"));
    quantize(&["q8_0"], Path::new("model.gguf"), &first).expect(0);
    let run = quantize(&["q4_0"], &first, &out).expect(2);
    assert!(run.err.contains("is Q8_0 already; --allow-requantize"), "{}", run.err);
    assert!(!out.exists());
    // Nothing changes its type.
    quantize(&["q8_0"], &first, &out).expect(0);
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&out).unwrap());
}

#[test]
fn failures_have_their_codes_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.gguf");
    let model = quant().join("model.gguf");
    quantize(&["q9_9"], &model, &out).expect(2);
    quantize(&["q4_0"], Path::new("no-such.gguf"), &out).expect(4);
    quantize(&["q4_0"], Path::new("README.md"), &out).expect(4);
    quantize(&["q4_0", "--imatrix", "no-such.gguf"], &model, &out).expect(4);
    let run = quantize(&["q4_0", "--imatrix", "model.gguf"], &model, &out).expect(4);
    assert!(run.err.contains("model.gguf: not an importance matrix"), "{}", run.err);
    quantize(&["q4_0"], &model, &dir.path().join("no-such/out.gguf")).expect(1);

    let mut bytes = std::fs::read(&model).unwrap();
    let tensor = Gguf::open(&model).unwrap().tensor("blk.0.attn_k.weight").unwrap().bytes.to_vec();
    let at = bytes.windows(tensor.len()).position(|window| window == tensor).unwrap();
    bytes[at..at + 2].copy_from_slice(&0x7FC0u16.to_le_bytes());
    let damaged = dir.path().join("damaged.gguf");
    std::fs::write(&damaged, bytes).unwrap();
    let run = quantize(&["q4_0"], &damaged, &out).expect(4);
    assert!(run.err.contains("values that are not finite"), "{}", run.err);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the damaged model is left");
}
