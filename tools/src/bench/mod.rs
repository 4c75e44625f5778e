//! `tympan bench`: speed of prompts and of continuations, with the flags, rows and formats of llama-bench.

mod asr;
mod flags;
mod measure;
mod model;
mod print;
mod profile;
mod reuse_table;
mod row;
mod statistics;
mod words;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use engine::backend::Backend;
use engine::session::Reuse;
use models::LoadOptions;

use self::flags::Foreign;
use self::measure::{Bench, Setup};
use self::print::{Column, Format, Printer};
use self::row::{ModelFacts, Row, Settings, Test};
use crate::args::{DeviceArgs, KvType, ModelArgs, Switch, parse_threads};
use crate::exit::{Exit, Failure, Outcome};
use crate::model::Model;
use crate::report::{Verbosity, peak_rss_bytes};

pub use self::flags::spelt_out;

/// Tokens of a prompt where `-p` says nothing.
const DEFAULT_PROMPT: usize = 512;
/// Tokens after it where `-n` says nothing.
const DEFAULT_GENERATED: usize = 128;
/// Most repetitions of a test.
const MAX_REPETITIONS: u64 = 10_000;
/// Longest pause between tests, in seconds.
const MAX_DELAY_S: u64 = 3600;

/// Measure the speed of a model: prompts and continuations, or clips from file to text.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Flags, rows and formats are those of llama-bench, in its short spelling too (-pg, -ub, -ctk, -oe, ...). Parameters take lists, \
separated by commas or repeated, and ranges: first-last, first-last+step, first-last*factor. All combinations are run.

  pp512          a prompt of 512 tokens          tg128         128 tokens one by one
  pp512+tg128    both in one timing              @ d4096       behind a context of 4096 tokens

Every tg step computes the logits of the whole vocabulary. With -gr on,off every test is run with and without the reuse of \
compiled graphs, and a table of the gain follows.

With --audio the speech model is measured instead, from file to text, stage by stage: the figures are those of the run with \
the median total. -n then decodes exactly N tokens, whatever they are.

Examples:
  tympan bench -m LFM2-1.2B-Q8_0.gguf
  tympan bench -m LFM2-Audio-1.5B-Q8_0.gguf --audio talk.wav -n 30 -t 2
  tympan bench -m A.gguf -m B.gguf -p 64,128 -n 0 -t 1,2 -o jsonl
  tympan bench -m MODEL.gguf -p 0 -n 32 -d 0,64,512
  tympan bench -m MODEL.gguf -p 0 -n 32 -gr on,off

Exit codes: 0 done, 1 an output cannot be written, 2 usage, 4 model, 5 memory.")]
pub struct BenchArgs {
    /// GGUF file, directory with one model in it, or checkpoint directory; repeatable [default: the built-in demonstration
    /// model]
    #[arg(short, long, value_name = "PATH", value_delimiter = ',')]
    model: Vec<PathBuf>,

    /// Tokens of the prompt; 0: no such test [default: 512]
    #[arg(short = 'p', long, value_name = "N")]
    n_prompt: Vec<String>,

    /// Tokens generated one by one; 0: no such test [default: 128, with --audio until a stop token comes]
    #[arg(short = 'n', long, value_name = "N")]
    n_gen: Vec<String>,

    /// Measure speech recognition of this clip, in place of prompts and continuations; repeatable
    #[arg(long, value_name = "CLIP", conflicts_with_all = ["n_prompt", "pg", "n_depth", "batch_size", "ubatch_size"])]
    audio: Vec<PathBuf>,

    /// What is said in the clips, for the word error rate: lines of a file name, a tab and a text
    #[arg(long, value_name = "TSV", requires = "audio")]
    reference: Option<PathBuf>,

    /// Projector file of the model [default: the mmproj-*.gguf beside it]
    #[arg(long, value_name = "PATH", requires = "audio")]
    mmproj: Option<PathBuf>,

    /// Untimed runs of every clip
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u64).range(0..=MAX_REPETITIONS))]
    warmup: u64,

    /// A prompt and tokens after it in one timing (-pg)
    #[arg(long, value_name = "PP,TG")]
    pg: Vec<String>,

    /// Tokens that the context holds before (-d)
    #[arg(short = 'd', long, value_name = "N", default_value = "0")]
    n_depth: Vec<String>,

    /// Most tokens of a batch
    #[arg(short = 'b', long, value_name = "N", default_value = "2048")]
    batch_size: Vec<String>,

    /// Most tokens of one call (-ub)
    #[arg(long, value_name = "N", default_value = "512")]
    ubatch_size: Vec<String>,

    /// Format of cached keys: f16 or f32 (-ctk)
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "f16")]
    cache_type_k: Vec<String>,

    /// Format of cached values: that of the keys (-ctv)
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    cache_type_v: Vec<String>,

    /// Threads [default: all available cores]
    #[arg(short, long, value_name = "N")]
    threads: Vec<String>,

    /// Whether compiled graphs are used again: on, off or both (-gr) [default: on, or what TYMPAN_GRAPH_REUSE says]
    #[arg(long, value_name = "on|off", value_delimiter = ',', hide_possible_values = true)]
    graph_reuse: Vec<Switch>,

    /// Times that every test is run
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=MAX_REPETITIONS))]
    repetitions: u64,

    /// Format on standard output: md, csv, json, jsonl or sql
    #[arg(short, long, value_name = "FORMAT", default_value = "md", hide_possible_values = true)]
    output: Format,

    /// A second format, on standard error (-oe)
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    output_err: Option<Format>,

    /// Write graph_reuse, graph_builds, graph_hits, host_us_per_step, peak_rss, p50_ns and p95_ns to md, csv and sql too; json
    /// and jsonl always have them
    #[arg(long)]
    extra: bool,

    /// Say where the time goes: run every test as often again with a clock at every op; md, json and jsonl
    #[arg(long)]
    profile: bool,

    /// Time the first run too
    #[arg(long)]
    no_warmup: bool,

    /// Seconds between tests
    #[arg(long, value_name = "S", default_value = "0", value_parser = clap::value_parser!(u64).range(0..=MAX_DELAY_S))]
    delay: u64,

    /// Say which test is running
    #[arg(long)]
    progress: bool,

    /// Device to compute on: auto, cpu, reference
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,

    /// List the devices and exit
    #[arg(long)]
    list_devices: bool,

    /// Say nothing but errors on standard error
    #[arg(short, long)]
    quiet: bool,

    /// Say more on standard error
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,

    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Flags of llama-bench that change nothing here, or are refused.
#[derive(Args, Clone, Debug)]
struct ForeignArgs {
    /// Layers to keep on the GPU (-ngl); recorded in the rows
    #[arg(long, value_name = "N", value_delimiter = ',', allow_hyphen_values = true)]
    n_gpu_layers: Vec<i64>,
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
    fn check(&self) -> Outcome<()> {
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
    fn gpu_layers(&self) -> Vec<i64> {
        if self.n_gpu_layers.is_empty() { vec![-1] } else { self.n_gpu_layers.clone() }
    }

    /// `flash_attn` of the rows.
    fn flash_attention(&self) -> Vec<i64> {
        if self.flash_attn.is_empty() {
            return vec![-1];
        }
        self.flash_attn.iter().map(|v| if matches!(v.as_str(), "on" | "1") { 1 } else { -1 }).collect()
    }
}

/// The lists of all parameters.
struct Lists {
    gpu_layers: Vec<i64>,
    n_batch: Vec<usize>,
    n_ubatch: Vec<usize>,
    cache_types: Vec<[KvType; 2]>,
    flash_attn: Vec<i64>,
    threads: Vec<NonZeroUsize>,
    n_depth: Vec<usize>,
    n_prompt: Vec<usize>,
    n_gen: Vec<usize>,
    pg: Vec<[usize; 2]>,
    reuse: Vec<Reuse>,
}

/// One combination of parameters, without the model.
#[derive(Clone, Copy)]
struct Combination {
    n_gpu_layers: i64,
    n_batch: usize,
    n_ubatch: usize,
    cache_types: [KvType; 2],
    flash_attn: i64,
    threads: NonZeroUsize,
    test: Test,
    reuse: Reuse,
}

impl Lists {
    fn read(args: &BenchArgs) -> Outcome<Self> {
        let numbers = |flag: &str, texts: &[String]| {
            let lists = texts.iter().map(|text| flags::numbers(text));
            let all = lists.collect::<Result<Vec<_>, _>>().map_err(|e| Failure::usage(format!("{flag}: {e}")))?;
            Ok::<_, Failure>(all.concat())
        };
        let positive = |flag: &str, texts: &[String]| {
            let all = numbers(flag, texts)?;
            if all.contains(&0) { Err(Failure::usage(format!("{flag}: want at least 1, got 0"))) } else { Ok(all) }
        };
        let threads = if args.threads.is_empty() {
            vec![std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)]
        } else {
            let parse = |n: &usize| parse_threads(&n.to_string()).map_err(|e| Failure::usage(format!("-t {n}: {e}")));
            numbers("-t", &args.threads)?.iter().map(parse).collect::<Outcome<_>>()?
        };
        let pairs = args.pg.iter().map(|text| flags::pair(text));
        let default_reuse = DeviceArgs::default().reuse()?;
        let reuse = |switch: &Switch| match switch {
            Switch::On if default_reuse == Reuse::Verified => Reuse::Verified,
            Switch::On => Reuse::On,
            Switch::Off => Reuse::Off,
        };
        Ok(Self {
            gpu_layers: args.foreign.gpu_layers(),
            n_batch: positive("-b", &args.batch_size)?,
            n_ubatch: positive("-ub", &args.ubatch_size)?,
            cache_types: cache_types(&args.cache_type_k, &args.cache_type_v)?,
            flash_attn: args.foreign.flash_attention(),
            threads,
            n_depth: numbers("-d", &args.n_depth)?,
            n_prompt: or_default(numbers("-p", &args.n_prompt)?, DEFAULT_PROMPT),
            n_gen: or_default(numbers("-n", &args.n_gen)?, DEFAULT_GENERATED),
            pg: pairs.collect::<Result<_, _>>().map_err(|e| Failure::usage(format!("-pg: {e}")))?,
            reuse: if args.graph_reuse.is_empty() {
                vec![default_reuse]
            } else {
                args.graph_reuse.iter().map(reuse).collect()
            },
        })
    }

    /// Every combination, in the order in which llama-bench runs them; with and without reuse follow each other.
    fn combinations(&self) -> Vec<Combination> {
        let mut all = Vec::new();
        for &n_gpu_layers in &self.gpu_layers {
            for &n_batch in &self.n_batch {
                for &n_ubatch in &self.n_ubatch {
                    for &cache_types in &self.cache_types {
                        for &flash_attn in &self.flash_attn {
                            for &threads in &self.threads {
                                for (test, reuse) in self.tests() {
                                    all.push(Combination {
                                        n_gpu_layers,
                                        n_batch,
                                        n_ubatch,
                                        cache_types,
                                        flash_attn,
                                        threads,
                                        test,
                                        reuse,
                                    });
                                }
                            }
                        }
                    }
                }
            }
        }
        all
    }

    fn tests(&self) -> Vec<(Test, Reuse)> {
        let mut tests = Vec::new();
        for &n_depth in &self.n_depth {
            tests.extend(self.n_prompt.iter().map(|&n_prompt| Test { n_prompt, n_gen: 0, n_depth }));
            tests.extend(self.n_gen.iter().map(|&n_gen| Test { n_prompt: 0, n_gen, n_depth }));
            tests.extend(self.pg.iter().map(|&[n_prompt, n_gen]| Test { n_prompt, n_gen, n_depth }));
        }
        tests.retain(|t| t.n_tokens() > 0);
        tests.into_iter().flat_map(|test| self.reuse.iter().map(move |&reuse| (test, reuse))).collect()
    }

    /// Columns of the markdown table: those that are always there, and those that differ from the default or from row to
    /// row.
    fn columns(&self, extra: bool) -> Vec<Column> {
        let mut columns = vec![Column::Model, Column::Size, Column::Params, Column::Backend];
        let mut add = |shown: bool, column| columns.extend(shown.then_some(column));
        add(self.gpu_layers != [-1], Column::GpuLayers);
        add(true, Column::Threads);
        add(self.n_batch != [2048], Column::Batch);
        add(self.n_ubatch != [512], Column::Ubatch);
        let is_default = self.cache_types == [[KvType::F16; 2]];
        add(!is_default, Column::TypeK);
        add(!is_default, Column::TypeV);
        add(self.flash_attn != [-1], Column::FlashAttn);
        add(extra || self.reuse.len() > 1 || self.reuse == [Reuse::Off], Column::GraphReuse);
        add(true, Column::Test);
        add(true, Column::Rate);
        for column in [Column::Builds, Column::Hits, Column::Host, Column::P50, Column::P95, Column::PeakRss] {
            add(extra, column);
        }
        columns
    }
}

fn or_default(list: Vec<usize>, default: usize) -> Vec<usize> {
    if list.is_empty() { vec![default] } else { list }
}

/// Pairs of formats of keys and values. Without `-ctv` values are like keys.
fn cache_types(k: &[String], v: &[String]) -> Outcome<Vec<[KvType; 2]>> {
    let parse = |flag: &str, text: &String| {
        KvType::from_str(text, true).map_err(|_| {
            Failure::usage(format!("{flag} {text}: no such format of the attention cache (accepted: f16, f32)"))
        })
    };
    let k: Vec<KvType> = k.iter().map(|t| parse("-ctk", t)).collect::<Outcome<_>>()?;
    let v: Vec<KvType> = v.iter().map(|t| parse("-ctv", t)).collect::<Outcome<_>>()?;
    if v.is_empty() {
        return Ok(k.into_iter().map(|t| [t, t]).collect());
    }
    let pairs: Vec<[KvType; 2]> = k.iter().flat_map(|&k| v.iter().map(move |&v| [k, v])).collect();
    match pairs.iter().find(|[k, v]| k != v) {
        Some(_) => Err(Failure::usage("-ctk and -ctv: keys and values have one format; leave -ctv out")),
        None => Ok(pairs),
    }
}

/// Runs the subcommand.
///
/// Errors: usage, a model that cannot be loaded, too little memory, an output that cannot be written.
pub fn run(args: &BenchArgs) -> Outcome<Exit> {
    if args.list_devices {
        for backend in backends::list() {
            println!("{}", backend.name);
        }
        return Ok(Exit::Done);
    }
    let say = Verbosity::new(args.quiet, args.verbose);
    args.foreign.check()?;
    let formats = [Some(args.output), args.output_err];
    if args.profile
        && let Some(flat) = formats.into_iter().flatten().find(|f| matches!(f, Format::Csv | Format::Sql))
    {
        let name = flat.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned());
        return Err(Failure::usage(format!("--profile: {name} has no place for it (accepted: md, json, jsonl)")));
    }
    let lists = Lists::read(args)?;
    if !args.audio.is_empty() {
        return run_audio(args, &lists, say);
    }
    let combinations = lists.combinations();
    if combinations.is_empty() {
        return Err(Failure::usage("nothing to measure: -p, -n and -pg are all 0"));
    }
    if !args.foreign.n_gpu_layers.is_empty() {
        say.note("-ngl: there is no GPU backend in this version; the value is recorded, everything runs on the CPU");
    }
    let columns = lists.columns(args.extra);
    let mut out = Printer::new(args.output, columns.clone(), args.extra, Box::new(std::io::stdout()));
    let mut err = args.output_err.map(|f| Printer::new(f, columns, args.extra, Box::new(std::io::stderr())));
    let models: Vec<Option<PathBuf>> =
        if args.model.is_empty() { vec![None] } else { args.model.iter().cloned().map(Some).collect() };
    let mut rows = Vec::new();
    let n_tests = models.len() * combinations.len();
    let mut devices = Devices { device: &args.device, open: Vec::new() };
    for path in &models {
        let model = ModelArgs { model: path.clone(), mmproj: None };
        let model = model.load(LoadOptions { text_only: true, ..LoadOptions::default() }, say)?;
        let filename = path.as_ref().map_or_else(|| model.name.clone(), |p| p.display().to_string());
        let facts = model::facts(&model.loaded, &filename);
        for c in &combinations {
            if args.progress {
                eprintln!("tympan bench: {}/{n_tests}: {} of {filename}", rows.len() + 1, c.test.name());
            }
            if !rows.is_empty() && args.delay > 0 {
                std::thread::sleep(Duration::from_secs(args.delay));
            }
            let backend = devices.get(c.threads)?;
            let row = measure_one(args, &model, &facts, c, &backend)?;
            out.row(&row).map_err(Failure::output)?;
            if let Some(err) = &mut err {
                err.row(&row).map_err(Failure::output)?;
            }
            rows.push(row);
        }
    }
    for printer in std::iter::once(&mut out).chain(&mut err) {
        if printer.format() == Format::Md {
            let gain = if lists.reuse.len() > 1 { reuse_table::table(&rows) } else { String::new() };
            let profiles = rows.iter().filter_map(Row::profile_table);
            printer.write(&std::iter::once(gain).chain(profiles).collect::<String>()).map_err(Failure::output)?;
        }
        printer.end().map_err(Failure::output)?;
    }
    Ok(Exit::Done)
}

/// Rows of speech recognition.
fn run_audio(args: &BenchArgs, lists: &Lists, say: Verbosity) -> Outcome<Exit> {
    let started = Instant::now();
    let n_tokens = if args.n_gen.is_empty() { None } else { lists.n_gen.first().copied() };
    if lists.n_gen.len() > 1 || n_tokens == Some(0) {
        return Err(Failure::usage("-n: with --audio want one number of tokens, at least 1"));
    }
    if args.output == Format::Sql || args.output_err == Some(Format::Sql) {
        return Err(Failure::usage(
            "-o sql: llama-bench's table has no columns for --audio (accepted: md, csv, json, jsonl)",
        ));
    }
    let reference = args.reference.as_deref().map(asr::reference).transpose()?.unwrap_or_default();
    let models: Vec<Option<PathBuf>> =
        if args.model.is_empty() { vec![None] } else { args.model.iter().cloned().map(Some).collect() };
    let mut devices = Devices { device: &args.device, open: Vec::new() };
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    for path in &models {
        let load = Instant::now();
        let model = ModelArgs { model: path.clone(), mmproj: args.mmproj.clone() };
        let model = model.load(LoadOptions::default(), say)?;
        let load_ms = load.elapsed().as_secs_f64() * 1000.0;
        let filename = path.as_ref().map_or_else(|| model.name.clone(), |p| p.display().to_string());
        let facts = model::facts(&model.loaded, &filename);
        for cache_types in &lists.cache_types {
            for &threads in &lists.threads {
                for &reuse in &lists.reuse {
                    let plan = asr::Plan {
                        clips: &args.audio,
                        reference: reference.clone(),
                        n_tokens,
                        warmup: if args.no_warmup { 0 } else { count(args.warmup) },
                        repetitions: count(args.repetitions),
                        profile: args.profile,
                        kv_dtype: cache_types[0].into(),
                        reuse,
                        started,
                    };
                    let backend = devices.get(threads)?;
                    rows.extend(asr::measure(&plan, &model, &facts, &backend, threads.get(), load_ms, say)?);
                }
            }
        }
    }
    let mut out = Printer::new(args.output, Vec::new(), args.extra, Box::new(std::io::stdout()));
    out.write(&asr::text(&rows, args.output)).map_err(Failure::output)?;
    if let Some(format) = args.output_err {
        let mut err = Printer::new(format, Vec::new(), args.extra, Box::new(std::io::stderr()));
        err.write(&asr::text(&rows, format)).map_err(Failure::output)?;
    }
    Ok(Exit::Done)
}

/// Devices that were opened, by number of threads.
struct Devices<'a> {
    device: &'a str,
    open: Vec<(NonZeroUsize, Arc<dyn Backend>)>,
}

impl Devices<'_> {
    fn get(&mut self, threads: NonZeroUsize) -> Outcome<Arc<dyn Backend>> {
        if let Some((_, backend)) = self.open.iter().find(|(n, _)| *n == threads) {
            return Ok(Arc::clone(backend));
        }
        let args = DeviceArgs { threads: Some(threads), device: self.device.to_owned(), ..DeviceArgs::default() };
        let backend = args.open()?.backend;
        self.open.push((threads, Arc::clone(&backend)));
        Ok(backend)
    }
}

fn measure_one(
    args: &BenchArgs,
    model: &Model,
    facts: &ModelFacts,
    c: &Combination,
    backend: &Arc<dyn Backend>,
) -> Outcome<Row> {
    let setup = Setup { n_batch: c.n_batch, n_ubatch: c.n_ubatch, kv_dtype: c.cache_types[0].into(), reuse: c.reuse };
    let test_time = statistics::utc_now();
    let repetitions = usize::try_from(args.repetitions).unwrap_or(usize::MAX);
    let measured = (|| {
        let mut bench = Bench::open(&model.loaded, backend, setup, c.test)?;
        if !args.no_warmup {
            bench.warm_up()?;
        }
        let measured = bench.measure(repetitions)?;
        let profile = if args.profile { Some(bench.profile(repetitions)?) } else { None };
        Ok::<_, engine::Error>((measured, profile))
    })();
    let (measured, profile) =
        measured.with_context(|| format!("{} of {}", c.test.name(), facts.filename)).map_err(Failure::model)?;
    let name = |t: KvType| match t {
        KvType::F16 => "f16",
        KvType::F32 => "f32",
    };
    Ok(Row {
        settings: Settings {
            model: facts.clone(),
            backends: backend.name().to_uppercase(),
            n_batch: c.n_batch,
            n_ubatch: c.n_ubatch,
            n_threads: c.threads.get(),
            cache_types: c.cache_types.map(name),
            n_gpu_layers: c.n_gpu_layers,
            flash_attn: c.flash_attn,
            graph_reuse: c.reuse != Reuse::Off,
            test: c.test,
        },
        test_time,
        samples_ns: measured.samples_ns,
        steps_ns: measured.steps_ns,
        graphs: measured.graphs,
        host_us_per_step: measured.host_us_per_step,
        peak_rss: peak_rss_bytes(),
        profile,
    })
}
