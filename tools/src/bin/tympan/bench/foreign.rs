//! Flags of llama-bench for what this program has not, or has in one way only.

use clap::Args;

use super::flags::Foreign;
use super::row::Recorded;
use crate::exit::{Failure, Outcome};

/// Flags of llama-bench that change nothing here, or are refused.
#[derive(Args, Clone, Debug)]
pub(super) struct ForeignArgs {
    /// Layers to keep on the GPU (-ngl); recorded in the rows
    #[arg(long, value_name = "N", value_delimiter = ',', allow_hyphen_values = true)]
    pub n_gpu_layers: Vec<i64>,
    /// Fused attention (-fa): it always is
    #[arg(long, value_name = "on|off|auto", value_delimiter = ',')]
    flash_attn: Vec<String>,
    #[arg(long, hide = true)]
    n_cpu_moe: Option<String>,
    #[arg(long, hide = true)]
    split_mode: Option<String>,
    #[arg(long, hide = true)]
    main_gpu: Option<String>,
    #[arg(long, hide = true)]
    no_kv_offload: Option<String>,
    #[arg(long, hide = true)]
    dev: Option<String>,
    #[arg(long, hide = true)]
    load_mode: Option<String>,
    #[arg(long, hide = true)]
    lazy_mode: Option<String>,
    #[arg(long, hide = true)]
    embeddings: Option<String>,
    #[arg(long, hide = true)]
    tensor_split: Option<String>,
    #[arg(long, hide = true)]
    override_tensor: Option<String>,
    #[arg(long, hide = true)]
    no_op_offload: Option<String>,
    #[arg(long, hide = true)]
    no_host: Option<String>,
    #[arg(long, hide = true)]
    repack: Option<String>,
    #[arg(short = 'C', long, hide = true)]
    cpu_mask: Option<String>,
    #[arg(long, hide = true)]
    cpu_strict: Option<String>,
    #[arg(long, hide = true)]
    poll: Option<String>,
    #[arg(long, hide = true)]
    numa: Option<String>,
    #[arg(long, hide = true, allow_hyphen_values = true)]
    prio: Option<String>,
    #[arg(long, hide = true)]
    hf_repo: Option<String>,
    #[arg(long, hide = true)]
    hf_file: Option<String>,
    #[arg(long, hide = true)]
    hf_token: Option<String>,
    #[arg(long, hide = true)]
    offline: bool,
    #[arg(long, hide = true)]
    fit_target: Option<String>,
    #[arg(long, hide = true)]
    fit_ctx: Option<String>,
    #[arg(long, hide = true)]
    rpc: Option<String>,
    #[arg(long, hide = true)]
    mmap: Option<String>,
    #[arg(long, hide = true)]
    direct_io: Option<String>,
}

impl ForeignArgs {
    /// Errors: a flag that asks for something that is not there.
    pub(super) fn check(&self) -> Outcome<()> {
        let foreign = |flag, given: &'_ Option<String>, neutral, why| {
            Foreign { flag, given: given.as_deref(), neutral, why }.check().map_err(Failure::usage)
        };
        let gpu = "there is no GPU backend in this version";
        foreign("-ncmoe", &self.n_cpu_moe, &["0"], gpu)?;
        foreign("-sm", &self.split_mode, &["layer", "none"], gpu)?;
        foreign("-mg", &self.main_gpu, &["0"], gpu)?;
        foreign("-nkvo", &self.no_kv_offload, &["0"], gpu)?;
        foreign("-ts", &self.tensor_split, &["0"], gpu)?;
        foreign("-nopo", &self.no_op_offload, &["0"], gpu)?;
        foreign("--no-host", &self.no_host, &["0"], gpu)?;
        foreign("-dev", &self.dev, &["auto", "none"], "--device chooses the device")?;
        foreign("-lm", &self.load_mode, &["auto", "mmap"], "files are always mapped")?;
        foreign("-mmp", &self.mmap, &["1"], "files are always mapped")?;
        foreign("-dio", &self.direct_io, &["0"], "files are always mapped")?;
        foreign("-lzm", &self.lazy_mode, &["auto", "on"], "weights are always prepared when first used")?;
        foreign("-embd", &self.embeddings, &["0"], "only logits are measured")?;
        foreign("-ot", &self.override_tensor, &[], "there is one place for tensors")?;
        foreign("--repack", &self.repack, &["1"], "each kernel has one layout of weights")?;
        foreign("-C", &self.cpu_mask, &["0x0"], "use taskset to choose cores")?;
        foreign("--cpu-strict", &self.cpu_strict, &["0"], "use taskset to choose cores")?;
        foreign("--poll", &self.poll, &["50"], "threads have one way to wait")?;
        foreign("--numa", &self.numa, &[], "use numactl")?;
        foreign("--prio", &self.prio, &["0"], "use nice")?;
        foreign("-fitt", &self.fit_target, &["off"], gpu)?;
        foreign("-fitc", &self.fit_ctx, &["4096"], gpu)?;
        let network = "nothing is fetched; -m takes files";
        foreign("-hf", &self.hf_repo, &[], network)?;
        foreign("-hff", &self.hf_file, &[], network)?;
        foreign("-hft", &self.hf_token, &[], network)?;
        foreign("-rpc", &self.rpc, &[], "there are no remote backends")?;
        if self.flash_attn.iter().any(|v| matches!(v.as_str(), "off" | "0")) {
            return Err(Failure::usage("-fa off: attention is always computed in one piece (accepted: on, auto)"));
        }
        match self.flash_attn.iter().find(|v| !matches!(v.as_str(), "on" | "1" | "auto" | "-1")) {
            Some(other) => Err(Failure::usage(format!("-fa {other}: want on or auto"))),
            None => Ok(()),
        }
    }

    /// `n_gpu_layers` of the rows.
    pub(super) fn gpu_layers(&self) -> Vec<i64> {
        if self.n_gpu_layers.is_empty() { vec![-1] } else { self.n_gpu_layers.clone() }
    }

    /// What rows record of flags that change nothing.
    pub(super) fn recorded(&self) -> Recorded {
        let given = |flag: &Option<String>, default: String| flag.clone().unwrap_or(default);
        let usual = Recorded::default();
        Recorded {
            split_mode: given(&self.split_mode, usual.split_mode),
            devices: given(&self.dev, usual.devices),
            load_mode: given(&self.load_mode, usual.load_mode),
            lazy_mode: given(&self.lazy_mode, usual.lazy_mode),
        }
    }

    /// `flash_attn` of the rows.
    pub(super) fn flash_attention(&self) -> Vec<i64> {
        if self.flash_attn.is_empty() {
            return vec![-1];
        }
        self.flash_attn.iter().map(|v| if matches!(v.as_str(), "on" | "1") { 1 } else { -1 }).collect()
    }
}
