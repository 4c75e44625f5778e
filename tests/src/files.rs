//! Model files for tests: weights in a temporary GGUF file that is gone once it is mapped.

use engine::DType;
use engine::Shape;
use engine::gguf::{Gguf, GgufWriter};
use engine::weights::{Weight, WeightStore};
use half::f16;

use crate::rng::Rng;

/// A weight with its bytes.
pub struct WeightBytes {
    /// The tensor's name.
    pub name: String,
    /// Its format.
    pub dtype: DType,
    /// Its extents, outermost first.
    pub shape: Shape,
    /// Its elements as the file stores them.
    pub bytes: Vec<u8>,
}

/// Elements of the tensor between two weights: one line of the alignment.
const GUARD: usize = 8;

/// A store of these weights, with NaN before, between and behind them, so that reading past the end of one shows.
pub fn store(weights: &[WeightBytes]) -> WeightStore {
    if cfg!(miri) {
        // Miri maps no files.
        let mut file = GgufWriter::in_memory("weights.gguf");
        write(&mut file, weights);
        return WeightStore::new([file.finish_in_memory().expect("every tensor has its bytes")]).expect("names differ");
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("weights.gguf");
    let mut file = GgufWriter::create(&path).expect("the folder is ours");
    write(&mut file, weights);
    file.finish().expect("every tensor has its bytes");
    WeightStore::new([Gguf::open(&path).expect("our own file")]).expect("names differ")
}

fn write(file: &mut GgufWriter, weights: &[WeightBytes]) {
    let guard = |i: usize| format!("guard.{i}");
    let guards = Shape::from([GUARD]);
    file.tensor(&guard(0), DType::F32, guards).expect("a valid tensor");
    for (i, w) in weights.iter().enumerate() {
        file.tensor(&w.name, w.dtype, w.shape).expect("a valid tensor");
        file.tensor(&guard(i + 1), DType::F32, guards).expect("a valid tensor");
    }
    let nan = [0xff; GUARD * 4];
    let mut write = |name: &str, bytes: &[u8]| {
        file.begin(name).expect("tensors come in order");
        file.write(bytes).expect("the disk has room");
    };
    write(&guard(0), &nan);
    for (i, w) in weights.iter().enumerate() {
        write(&w.name, &w.bytes);
        write(&guard(i + 1), &nan);
    }
}

/// The weight `name` of this shape.
pub fn weight(store: &WeightStore, name: &str, shape: Shape) -> Weight {
    let dims: Vec<usize> = shape.dims().iter().map(|&d| d as usize).collect();
    let found = match dims[..] {
        [a] => store.get(name, [a]),
        [a, b] => store.get(name, [a, b]),
        [a, b, c] => store.get(name, [a, b, c]),
        [a, b, c, d] => store.get(name, [a, b, c, d]),
        _ => panic!("{shape} has no extents"),
    };
    found.expect("the weight was written")
}

/// `n` elements of a weight: uniform in the range for float formats, random blocks with scales of a usual size for
/// quantized ones. `n` is whole blocks.
pub fn random_weight(rng: &mut Rng, dtype: DType, n: usize, range: [f32; 2]) -> Vec<u8> {
    let mut bytes = vec![0; dtype.row_bytes(n)];
    let format = dtype.format().expect("weights are not integers");
    if format.block_len() == 1 || format.scales().is_empty() {
        let x: Vec<f32> = (0..n).map(|_| rng.uniform(range)).collect();
        format.encode_row(&x, &mut bytes);
        return bytes;
    }
    for block in bytes.chunks_exact_mut(dtype.block().bytes) {
        block.fill_with(|| rng.next_u64() as u8);
        for &at in format.scales() {
            // Of either sign, but never so small that another block decides a row alone.
            let size = rng.uniform([0.005, 0.02]);
            let scale = f16::from_f32(if rng.below(2) == 0 { size } else { -size });
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}
