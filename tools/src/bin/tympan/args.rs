//! Arguments that several subcommands share, and what they stand for.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use convert::FileType;
use engine::DType;
use engine::backend::Backend;
use engine::session::Reuse;
use kernels::cpu::Isa;
use models::languages::nearest;

use crate::exit::{Failure, Outcome};
use crate::model::Loading;
use crate::report::Verbosity;

/// Most threads that can be asked for; a typing error must not start a million.
const MAX_THREADS: usize = 1024;

/// Which model to use.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ModelArgs {
    /// GGUF file, directory with one model in it, checkpoint directory (safetensors), or synth:SHAPE:TYPE:SEED, random weights
    /// of a published shape; the seed may be left out [default: the built-in demonstration model]
    #[arg(short, long, value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// Projector file of the model [default: the mmproj-*.gguf beside it]
    #[arg(long, value_name = "PATH", requires = "model")]
    pub mmproj: Option<PathBuf>,
}

/// Where to compute.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DeviceArgs {
    /// Threads [default: all available cores]
    #[arg(short, long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<NonZeroUsize>,

    /// Device to compute on: auto, cpu, reference (the slow f64 interpreter, for checking)
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,

    /// Whether compiled graphs are used again: on or off; off builds one for every step, to measure what that costs
    /// [default: on, or what TYMPAN_GRAPH_REUSE says]
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    pub graph_reuse: Option<Switch>,

    /// Where weights are: mapped (the file itself), resident (copied to memory, which is read faster where the file's pages
    /// are small), or auto: mapped, unless the run will be long and memory is there
    #[arg(long, value_name = "auto|mapped|resident", default_value = "auto", hide_possible_values = true)]
    pub weights: WeightsArg,
}

/// `--weights`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum WeightsArg {
    /// Resident where that pays.
    #[default]
    Auto,
    /// In the file.
    Mapped,
    /// In memory.
    Resident,
}

/// On or off.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// Default of `--graph-reuse`: `on` or `off`.
const REUSE_VARIABLE: &str = "TYMPAN_GRAPH_REUSE";

/// `1` builds and compares graphs again whenever they are used again.
const VERIFY_VARIABLE: &str = "TYMPAN_GRAPH_VERIFY";

/// Format of the attention cache.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl KvType {
    /// As flags and rows call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

impl From<KvType> for DType {
    fn from(t: KvType) -> Self {
        match t {
            KvType::F16 => Self::F16,
            KvType::F32 => Self::F32,
        }
    }
}

/// A number of threads from the command line.
pub(crate) fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    let n: usize = text.parse().map_err(|_| format!("want 1 to {MAX_THREADS}"))?;
    NonZeroUsize::new(n).filter(|n| n.get() <= MAX_THREADS).ok_or_else(|| format!("want 1 to {MAX_THREADS}"))
}

/// A number of bytes, optionally in thousands, millions or thousand millions. Source: llama.cpp, `convert_hf_to_gguf.py`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let units = [('K', 1000), ('M', 1_000_000), ('G', 1_000_000_000)];
    let unit = units.into_iter().find(|(letter, _)| text.ends_with(*letter));
    let (digits, unit) = unit.map_or((text, 1), |(letter, unit)| (text.trim_end_matches(letter), unit));
    let size = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|&n| n > 0);
    size.ok_or_else(|| "want a number of bytes, or one followed by K, M or G".into())
}

/// The names of [`FileType`], the short ones (`q4_k`) among them.
pub(crate) fn file_types() -> PossibleValuesParser {
    FileType::ALL.map(|mix| PossibleValue::new(mix.name()).aliases(mix.short_name())).into()
}

/// An opened device.
pub(crate) struct Device {
    /// What computes.
    pub backend: Arc<dyn Backend>,
    /// Threads that it uses.
    pub threads: usize,
    /// Why it is this one.
    why: &'static str,
}

impl Device {
    /// What it is and why, for those who want to know.
    pub(crate) fn describe(&self) -> String {
        let name = self.backend.name();
        let isa = Isa::detect().ok().filter(|_| name == backends::cpu::NAME);
        let isa = isa.map_or(String::new(), |isa| format!("{isa}, "));
        let (n, n_cores) = (self.threads, available_threads());
        format!("device: {name} ({isa}threads: {n}, cores: {n_cores}), {}", self.why)
    }
}

impl DeviceArgs {
    /// Opens the device.
    ///
    /// Errors: a device that does not exist or that this version does not have.
    pub(crate) fn open(&self) -> Outcome<Device> {
        let (name, why) = self.name()?;
        let threads = self.threads.map_or_else(available_threads, NonZeroUsize::get);
        let options = backends::Options { threads: NonZeroUsize::new(threads) };
        let backend = backends::open(name, &options).map_err(Failure::refused)?;
        Ok(Device { backend, threads, why })
    }

    /// The device's own name, and why it is this one.
    ///
    /// Errors: as those of [`DeviceArgs::open`].
    pub(crate) fn name(&self) -> Outcome<(&str, &'static str)> {
        let mut why = "as --device says";
        let name = match self.device.as_str() {
            "auto" => {
                why = "as auto takes it: this version computes on no GPU, and reference is slow";
                "cpu"
            }
            cuda if cuda == "cuda" || cuda.starts_with("cuda:") => {
                return Err(Failure::not_in_this_version(format!("--device {cuda}")));
            }
            name => name,
        };
        let known: Vec<&str> = backends::list().iter().map(|b| b.name).collect();
        if !known.contains(&name) {
            let names = [&["auto"], &known[..]].concat();
            let near = nearest(&name.to_lowercase(), &names).map_or(String::new(), |n| format!("; did you mean {n}?"));
            let message = format!("--device {name}: no such device{near} (accepted: {})", names.join(", "));
            return Err(Failure::usage(message));
        }
        Ok((name, why))
    }
}

/// Says where more threads are asked for than this process may use cores: they only take each other's time.
pub(crate) fn note_threads(threads: Option<NonZeroUsize>, say: Verbosity) {
    let n_cores = available_threads();
    if let Some(n) = threads.filter(|n| n.get() > n_cores) {
        let cores = if n_cores == 1 { "is one core".to_owned() } else { format!("are {n_cores} cores") };
        say.note(format_args!("-t {n}: there {cores} for this process; more threads than cores are slower"));
    }
}

impl DeviceArgs {
    /// How a model is brought into memory, on so many threads, for a run that will be long or not.
    pub(crate) fn loading(&self, threads: Option<NonZeroUsize>, is_long: bool) -> Loading {
        Loading { threads, weights: self.weights, is_long }
    }

    /// Whether compiled graphs are used again, by the flag or the environment.
    ///
    /// Errors: a variable with another value than it may have.
    pub(crate) fn reuse(&self) -> Outcome<Reuse> {
        let default = environment(REUSE_VARIABLE, &[("on", Switch::On), ("off", Switch::Off)])?;
        let verify = environment(VERIFY_VARIABLE, &[("1", true), ("0", false)])?;
        Ok(match self.graph_reuse.or(default).unwrap_or(Switch::On) {
            Switch::Off => Reuse::Off,
            Switch::On if verify == Some(true) => Reuse::Verified,
            Switch::On => Reuse::On,
        })
    }
}

/// What a variable of the environment stands for; nothing where it is not set or empty.
fn environment<T: Copy>(name: &str, values: &[(&str, T)]) -> Outcome<Option<T>> {
    let Some(set) = std::env::var_os(name).filter(|v| !v.is_empty()) else { return Ok(None) };
    match values.iter().find(|(text, _)| set == *text) {
        Some((_, value)) => Ok(Some(*value)),
        None => {
            let accepted: Vec<&str> = values.iter().map(|(text, _)| *text).collect();
            let message = format!("{name}={}: want {}", set.to_string_lossy(), accepted.join(" or "));
            Err(Failure::usage(message))
        }
    }
}

/// Cores that this process may use.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
