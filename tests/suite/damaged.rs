//! Damaged model files: refused or built, never a panic and never memory without bound.

use std::path::Path;

use convert::FileType;
use engine::DType;
use engine::gguf::Gguf;
use models::LoadOptions;

/// Damaged copies of each model that are opened and built.
const N_MUTATIONS: u64 = 1000;
/// Bytes at the front in which most changes fall: keys and tensor table.
const HEADER: usize = 24_000;

/// Opens a file, loads model and tokenizer and builds the graphs of every stage.
fn open_and_build(path: &Path) -> models::Result<()> {
    use engine::key::{GraphKey, Stage};
    let loaded = models::load(vec![Gguf::open(path)?], LoadOptions::default())?;
    models::tokenizer::Tokenizer::from_gguf(&loaded.files[0])?;
    let sizes =
        engine::state::StateOptions { n_slots: 1, n_ctx: 64, kv_dtype: DType::F16, n_pending: 0, two_rows: false };
    let memory = loaded.model.states().layout(&sizes)?;
    let frames = loaded.model.encoder().map(|e| (Stage::Encode, u32::try_from(e.line_frames).unwrap()));
    for (stage, n_tokens) in frames.into_iter().chain([(Stage::Embeddings, 8), (Stage::Tokens, 1)]) {
        let key = GraphKey { stage, n_seqs: 1, n_tokens, n_kv: 64, n_outputs: 1, n_pending: 0 };
        let builder = engine::builder::GraphBuilder::new(&memory);
        loaded.model.build(&builder, &key);
        builder.finish()?;
    }
    Ok(())
}

#[test]
fn damaged_models_are_built_or_refused() {
    for name in ["qwen3_asr", "llama", "jamba", "granitemoehybrid_moe", "qwen3_5_moe", "lfm2_moe", "lfm2_audio"] {
        check(name);
    }
}

fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden").join(name);
    let conversion = convert::Conversion::open(&golden, |_| convert::Options {
        bundle: true,
        ..convert::Options::new(FileType::BF16)
    });
    let flag = std::sync::atomic::AtomicBool::new(false);
    conversion.unwrap().write(std::slice::from_ref(&path), &flag).unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut built = 0;
    for seed in 0..N_MUTATIONS {
        let bad = tests::mutate::mutate(&good, HEADER, &mut tests::rng::Rng::new(seed));
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bad).unwrap();
        let (result, usage) = tests::alloc::measure(|| open_and_build(&path));
        assert!(usage.peak_bytes < 200 << 20, "{name}, seed {seed}: {} bytes", usage.peak_bytes);
        if let Err(e) = &result {
            assert!(!e.to_string().contains('\n'), "{name}, seed {seed}: {e}");
        }
        built += u64::from(result.is_ok());
    }
    assert!(0 < built && built < N_MUTATIONS / 2, "{name}: {built} of {N_MUTATIONS} were built");
}
