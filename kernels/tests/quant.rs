//! Encoders and decoders against what ggml made of the same rows, bit for bit (`tests/fixtures/quant/README.md`).

use std::path::Path;

use kernels::activation::{BlockQ8, BlockQ8_K};
use kernels::cpu::{Kernels, Operand};
use kernels::quant::Format;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

/// Elements of a row in the fixtures.
const ROW: usize = 512;

fn fixture(name: &str) -> Vec<u8> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/quant").join(format!("{name}.safetensors"));
    std::fs::read(&path).unwrap_or_else(|e| {
        let how = "what ggml makes of known rows; README.md beside it says how it is made";
        panic!("{}: {e}: want {how}", path.display())
    })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Calls `f(class, tensor's bytes)` for each tensor `prefix.class` of a fixture file; returns how many there were.
fn each(file: &[u8], prefix: &str, mut f: impl FnMut(&str, &[u8])) -> usize {
    let file = SafeTensors::deserialize(file).unwrap();
    let mut names: Vec<&str> = file.names().into_iter().collect();
    names.sort_unstable();
    let classes: Vec<&str> = names.iter().filter_map(|n| n.strip_prefix(prefix)?.strip_prefix('.')).collect();
    for class in &classes {
        f(class, file.tensor(&format!("{prefix}.{class}")).unwrap().data());
    }
    classes.len()
}

#[test]
fn decoded_rows_have_the_reference_bits() {
    for format in Format::ALL.into_iter().filter(|f| *f != Format::F32) {
        let file = fixture(&format!("{format:?}"));
        let encoded = SafeTensors::deserialize(&file).unwrap();
        let n = each(&file, "decoded_sha256", |class, want| {
            let rows = encoded.tensor(&format!("encoded.{class}")).unwrap();
            let (want, rest) = want.as_chunks::<32>();
            assert!(rest.is_empty());
            for kernels in Kernels::available() {
                let rows = rows.data().chunks_exact(format.row_bytes(ROW));
                assert_eq!(rows.len(), want.len());
                for (i, (bytes, want)) in rows.zip(want).enumerate() {
                    // One byte into a buffer: rows need no alignment.
                    let shifted: Vec<u8> = std::iter::once(0).chain(bytes.iter().copied()).collect();
                    let mut got = [0.0; ROW];
                    kernels.decode_row(format, &shifted[1..], &mut got);
                    let bytes = got.map(f32::to_le_bytes);
                    assert_eq!(
                        Sha256::digest(bytes.as_flattened())[..],
                        want[..],
                        "{format:?} {class} {i} {kernels:?}"
                    );
                }
            }
        });
        assert!(n >= 6, "{format:?} has {n} decoded classes");
    }
}

#[test]
fn encoded_rows_have_the_reference_bytes() {
    let input = fixture("input");
    for format in Format::ALL.into_iter().filter(|f| *f != Format::F32) {
        let file = fixture(&format!("{format:?}"));
        let encoded = SafeTensors::deserialize(&file).unwrap();
        let mut n_compared = 0;
        each(&input, "x", |class, x| {
            let Ok(want) = encoded.tensor(&format!("encoded.{class}")) else { return };
            for (x, want) in floats(x).chunks_exact(ROW).zip(want.data().chunks_exact(format.row_bytes(ROW))) {
                for kernels in Kernels::available() {
                    let mut got = vec![0; want.len()];
                    kernels.encode_row(format, x, None, &mut got);
                    assert_eq!(got, want, "{format:?} {class} {kernels:?}");
                }
                n_compared += 1;
            }
        });
        assert!(n_compared >= 50, "{format:?}: {n_compared} rows");
    }
}

#[test]
fn rows_encoded_with_importance_have_the_reference_bytes() {
    let input = fixture("input");
    let weights = SafeTensors::deserialize(&input).unwrap();
    for format in Format::ALL.into_iter().filter(|f| f.uses_importance()) {
        let file = fixture(&format!("{format:?}"));
        let encoded = SafeTensors::deserialize(&file).unwrap();
        let mut n_compared = 0;
        each(&input, "x", |class, x| {
            let Ok(want) = encoded.tensor(&format!("encoded_weighted.{class}")) else { return };
            let importance = floats(weights.tensor(&format!("weight.{class}")).unwrap().data());
            for (x, want) in floats(x).chunks_exact(ROW).zip(want.data().chunks_exact(format.row_bytes(ROW))) {
                for kernels in Kernels::available() {
                    let mut got = vec![0; want.len()];
                    kernels.encode_row(format, x, Some(&importance), &mut got);
                    assert_eq!(got, want, "{format:?} {class} {kernels:?}");
                }
                n_compared += 1;
            }
        });
        assert!(n_compared >= 50, "{format:?}: {n_compared} rows");
    }
}

#[test]
fn f32_rows_are_copied() {
    let x = [0.0, -0.0, 1.5, f32::INFINITY, f32::MIN_POSITIVE];
    let mut bytes = [0; 20];
    Format::F32.encode_row(&x, &mut bytes);
    assert_eq!(bytes[8..12], 0x3FC0_0000u32.to_le_bytes());
    let mut back = [1.0; 5];
    Format::F32.decode_row(&bytes, &mut back);
    assert_eq!(bits(&back), bits(&x));
}

#[test]
fn q8_k_activations_have_the_reference_bytes() {
    let input = fixture("input");
    let file = fixture("Q8_K");
    let encoded = SafeTensors::deserialize(&file).unwrap();
    let block = size_of::<BlockQ8_K>();
    let n = each(&input, "x", |class, x| {
        let Ok(want) = encoded.tensor(&format!("encoded.{class}")) else { return };
        for kernels in Kernels::available() {
            for (x, want) in floats(x).chunks_exact(ROW).zip(want.data().chunks_exact(ROW / 256 * block)) {
                let mut got = vec![0.0; Operand::Q8K.len(1, ROW)];
                kernels.prepare(Operand::Q8K, x, ROW, 1, ROW, &mut got);
                let got: &[u8] = bytemuck::cast_slice(&got);
                assert_eq!(got, want, "{class} {kernels:?}");
            }
        }
    });
    assert!(n >= 10, "{n} classes");
}

#[test]
fn q8_activations_are_within_half_a_level() {
    let input = fixture("input");
    each(&input, "x", |class, x| {
        // Subnormal scales, and values that are not numbers.
        if matches!(class, "tiny" | "special") {
            return;
        }
        for kernels in Kernels::available() {
            for x in floats(x).chunks_exact(ROW) {
                let mut out = vec![0.0; Operand::Q8.len(1, ROW)];
                kernels.prepare(Operand::Q8, x, ROW, 1, ROW, &mut out);
                let blocks: &[BlockQ8] = bytemuck::cast_slice(&out);
                for (b, x) in blocks.iter().zip(x.as_chunks::<32>().0) {
                    assert_eq!(-b.neg_sum, b.q.iter().map(|q| i32::from(*q)).sum::<i32>());
                    let amax = x.iter().fold(0.0, |m: f64, x| m.max(f64::from(x.abs())));
                    for (q, x) in b.q.iter().zip(x) {
                        let error = (f64::from(*q) * f64::from(b.d) - f64::from(*x)).abs();
                        // Half a level, and the roundings of d and of the quotient: three of 2^-24 of 127 levels.
                        assert!(error <= amax / 127.0 * (0.5 + 1e-4), "{class}: {x} {error}");
                    }
                }
            }
        }
    });
}

#[test]
fn nan_activations_show_in_the_scale() {
    for kernels in Kernels::available() {
        let mut x = [1.0; 256];
        x[77] = f32::NAN;
        let mut out = vec![0.0; Operand::Q8.len(1, 256)];
        kernels.prepare(Operand::Q8, &x, 256, 1, 256, &mut out);
        let blocks: &[BlockQ8] = bytemuck::cast_slice(&out);
        assert!(blocks[2].d.is_nan() && blocks[1].d == 1.0 / 127.0, "{kernels:?}");
        let mut out = vec![0.0; Operand::Q8K.len(1, 256)];
        kernels.prepare(Operand::Q8K, &x, 256, 1, 256, &mut out);
        assert!(bytemuck::cast_slice::<_, BlockQ8_K>(&out)[0].d.is_nan(), "{kernels:?}");
    }
}

#[test]
fn random_blocks_decode_as_in_gguf_py() {
    let file = fixture("random_blocks");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    for format in [Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q5_K, Format::Q6_K] {
        let blocks = tensors.tensor(&format!("{format:?}.bytes")).unwrap();
        let want = floats(tensors.tensor(&format!("{format:?}.decoded")).unwrap().data());
        let mut got = vec![0.0; want.len()];
        format.decode_row(blocks.data(), &mut got);
        assert_eq!(bits(&got), bits(&want), "{format:?}");
    }
}
