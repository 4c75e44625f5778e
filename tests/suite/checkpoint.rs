//! Checkpoints of the fixtures as model files.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use engine::gguf::Gguf;
use tools::convert::{Conversion, FileType, Options};

/// The checkpoint in `dir`, converted by our converter to a bundle of this type. The file is gone once it is mapped.
pub fn converted(dir: &Path, file_type: FileType) -> Gguf {
    let options = |_| Options { bundle: true, ..Options::new(file_type) };
    let conversion = Conversion::open(dir, options).expect("the fixture converts");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("bundle.gguf");
    conversion.write(std::slice::from_ref(&path), &AtomicBool::new(false)).expect("the fixture is written");
    Gguf::open(&path).expect("what was written loads")
}
