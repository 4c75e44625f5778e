//! Quantized files: one pass from a checkpoint against two, whose second is llama-quantize's to the byte.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use convert::quantize::Quantization;
use convert::quantize::overrides::Overrides;
use convert::{Conversion, FileType, Options};
use engine::gguf::Gguf;
use models::LoadOptions;

/// The text model of a checkpoint, in a file of its own.
fn text(checkpoint: &Path, file_type: FileType) -> Vec<Gguf> {
    let out = tempfile::tempdir().unwrap();
    let conversion = Conversion::open(checkpoint, |_| Options::new(file_type)).unwrap();
    let paths: Vec<_> = conversion.file_names().iter().map(|name| out.path().join(name)).collect();
    conversion.write(&paths, &AtomicBool::new(false)).unwrap();
    paths.iter().map(|path| Gguf::open(path).unwrap()).collect()
}

#[test]
fn one_pass_writes_what_two_write() {
    for checkpoint in ["models/tiny-qwen3-asr", "golden/qwen3", "golden/lfm2_moe"] {
        let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(checkpoint);
        let first = text(&checkpoint, FileType::F32).swap_remove(0);
        for file_type in FileType::ALL.into_iter().filter(|t| t.is_quantized()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("two.gguf");
            let plan = Quantization::plan(first.clone(), file_type, None, &Overrides::default(), false).unwrap();
            plan.write(&path, &AtomicBool::new(false)).unwrap();
            let two = Gguf::open(&path).unwrap();
            let files = text(&checkpoint, file_type);
            assert_eq!(files[0].n_tensors(), two.n_tensors());
            for tensor in files[0].tensors() {
                let other = two.tensor(tensor.name).unwrap();
                assert_eq!(tensor.dtype, other.dtype, "{} {file_type}", tensor.name);
                assert!(tensor.bytes == other.bytes, "{} {file_type}", tensor.name);
            }
            assert_eq!(files[0].get_u32("general.file_type").unwrap(), file_type.general_file_type());
            models::load(files, LoadOptions::default()).unwrap();
        }
    }
}
