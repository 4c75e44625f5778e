//! What rows say of a model: its name, size and number of elements, as llama-bench would.

use convert::FileType;
use engine::gguf::Gguf;
use models::Loaded;

use super::row::ModelFacts;

/// Names by feed-forward width, of models whose name shows their size. Source: llama.cpp, `src/models/lfm2.cpp`.
const LFM2_SIZES: [(usize, &str); 5] =
    [(2560, "230M"), (4608, "350M"), (6912, "700M"), (8192, "1.2B"), (10752, "2.6B")];
/// Names by number of layers. Source: llama.cpp, `src/models/lfm2moe.cpp`.
const LFM2_MOE_SIZES: [(usize, &str); 1] = [(24, "8B.A1B")];
/// The same. Source: llama.cpp, `src/models/qwen3next.cpp`, `src/models/qwen35moe.cpp`.
const QWEN3_NEXT_SIZES: [(usize, &str); 1] = [(48, "80B.A3B")];
const QWEN3_5_MOE_SIZES: [(usize, &str); 3] = [(40, "35B.A3B"), (48, "122B.A10B"), (60, "397B.A17B")];
/// Names by number of layers and width. Source: llama.cpp, `src/models/qwen3.cpp`.
const QWEN3_SIZES: [(usize, usize, &str); 6] =
    [(28, 1024, "0.6B"), (28, 2048, "1.7B"), (36, 2560, "4B"), (36, 4096, "8B"), (40, 5120, "14B"), (64, 5120, "32B")];

/// Name of a Qwen3.5 by number of layers and width. Source: llama.cpp, `src/models/qwen35.cpp`.
fn qwen3_5_size(n_layer: usize, n_embd: usize) -> Option<&'static str> {
    match (n_layer, n_embd) {
        (24, 1024) => Some("0.8B"),
        (24, _) => Some("2B"),
        (32, 2560) => Some("4B"),
        (32, _) => Some("9B"),
        (64, _) => Some("27B"),
        _ => None,
    }
}

/// Names by number of layers and width, of both generations. Source: llama.cpp, `src/models/mamba.cpp`,
/// `src/models/mamba2.cpp`, whose `SMALL`, `MEDIUM`, `LARGE` and `XL` are written so.
const MAMBA_SIZES: [(usize, usize, &str); 6] =
    [(24, 768, "0.1B"), (48, 1024, "0.4B"), (48, 1536, "0.8B"), (48, 2048, "1.5B"), (64, 2560, "3B"), (64, 4096, "7B")];

/// Name of a Granite hybrid by width and that of an expert. Source: llama.cpp, `src/models/granite-hybrid.cpp`.
fn granite_hybrid_size(n_embd: usize, n_ff: usize) -> Option<&'static str> {
    match n_embd {
        768 => Some("350M"),
        1536 => Some(if n_ff == 512 { "7B.A1B" } else { "1B" }),
        2048 | 2560 => Some("3B"),
        4096 => Some("32B.A9B"),
        _ => None,
    }
}

/// Name of a Llama by number of layers, rows of the embedding, and whether queries share keys. Source: llama.cpp,
/// `src/models/llama.cpp`.
fn llama_size(n_layer: usize, n_vocab: usize, shares_keys: bool) -> Option<&'static str> {
    match n_layer {
        16 | 22 => Some("1B"),
        26 | 28 => Some("3B"),
        30 => Some("256M"),
        32 if n_vocab == 49_152 => Some("3B"),
        32 if n_vocab < 40_000 => Some("7B"),
        32 | 36 => Some("8B"),
        40 => Some("13B"),
        48 => Some("34B"),
        60 => Some("30B"),
        80 => Some(if shares_keys { "70B" } else { "65B" }),
        _ => None,
    }
}

/// Describes the language model in `loaded`, which `-m` calls `filename`.
pub(super) fn facts(loaded: &Loaded, filename: &str) -> ModelFacts {
    let file = &loaded.files[0];
    let is_text = |name: &str| !name.starts_with("a.") && !name.starts_with("mm.");
    let tensors = || file.tensors().filter(|t| is_text(t.name));
    ModelFacts {
        filename: filename.into(),
        kind: format!("{} {} {}", architecture(file), size_label(file), format_name(file)),
        bytes: tensors().map(|t| t.bytes.len() as u64).sum(),
        n_params: tensors().map(|t| t.shape.elements() as u64).sum(),
    }
}

fn architecture(file: &Gguf) -> String {
    file.get_str("general.architecture").unwrap_or("?").to_owned()
}

fn size_label(file: &Gguf) -> &'static str {
    let arch = architecture(file);
    let number = |key: &str| file.get_u32(&format!("{arch}.{key}")).map_or(0, |n| n as usize);
    let by_layers = |sizes: &[(usize, &'static str)], n_layer: usize| {
        sizes.iter().find(|(layers, _)| *layers == n_layer).map(|(_, name)| *name)
    };
    // Blocks that predict the token after the next are no layers.
    let n_layer = number("block_count").saturating_sub(number("nextn_predict_layers"));
    let n_embd = number("embedding_length");
    let by_layers_and_width = |sizes: &[(usize, usize, &'static str)]| {
        sizes.iter().find(|(layers, embd, _)| (*layers, *embd) == (n_layer, n_embd)).map(|(_, _, name)| *name)
    };
    let found = match arch.as_str() {
        "lfm2" => LFM2_SIZES.iter().find(|(n_ff, _)| *n_ff == number("feed_forward_length")).map(|(_, name)| *name),
        "llama" => {
            let shares_keys = number("attention.head_count") != number("attention.head_count_kv");
            llama_size(n_layer, number("vocab_size"), shares_keys)
        }
        "qwen3" | "qwen3vl" => by_layers_and_width(&QWEN3_SIZES),
        // The widest is of the second generation alone.
        "mamba" => by_layers_and_width(&MAMBA_SIZES[..5]),
        "mamba2" => by_layers_and_width(&MAMBA_SIZES),
        "granitehybrid" => granite_hybrid_size(n_embd, number("feed_forward_length")),
        "lfm2moe" => by_layers(&LFM2_MOE_SIZES, n_layer),
        "qwen3next" => by_layers(&QWEN3_NEXT_SIZES, n_layer),
        "qwen35" => qwen3_5_size(n_layer, n_embd),
        "qwen35moe" => by_layers(&QWEN3_5_MOE_SIZES, n_layer),
        _ => None,
    };
    found.unwrap_or("?B")
}

/// Source: llama.cpp, `llama_model_ftype_name`.
fn format_name(file: &Gguf) -> String {
    let number = file.get_u32("general.file_type").ok();
    let Some(mix) = number.and_then(FileType::from_general_file_type) else { return "unknown".into() };
    match mix {
        FileType::F32 => "all F32".into(),
        FileType::Q2_K => "Q2_K - Medium".into(),
        mix if mix.name().starts_with("iq") => {
            let block = mix.dtype().block();
            format!("{mix} - {} bpw", (8 * block.bytes) as f64 / block.len as f64)
        }
        mix => mix.to_string().replace("K_S", "K - Small").replace("K_M", "K - Medium").replace("K_L", "K - Large"),
    }
}
