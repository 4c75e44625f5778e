//! The lists of all parameters, their combinations in the order of llama-bench, and the columns that they ask for.

use std::num::NonZeroUsize;

use clap::ValueEnum;
use engine::session::Reuse;

use super::measure::Test;
use super::print::Column;
use super::row::Recorded;
use super::{BenchArgs, flags};
use crate::args::{DeviceArgs, KvType, Switch, parse_threads};
use crate::exit::{Failure, Outcome};

/// Tokens of a prompt where `-p` says nothing.
const DEFAULT_PROMPT: usize = 512;
/// Tokens after it where `-n` says nothing.
const DEFAULT_GENERATED: usize = 128;
/// Most sequences at once, as `serve` has them.
const MAX_PARALLEL: usize = 256;

/// The lists of all parameters.
pub(super) struct Lists {
    pub gpu_layers: Vec<i64>,
    pub n_batch: Vec<usize>,
    pub n_ubatch: Vec<usize>,
    pub cache_types: Vec<[KvType; 2]>,
    pub flash_attn: Vec<i64>,
    pub threads: Vec<NonZeroUsize>,
    pub n_depth: Vec<usize>,
    pub n_parallel: Vec<usize>,
    pub n_prompt: Vec<usize>,
    pub n_gen: Vec<usize>,
    pub pg: Vec<[usize; 2]>,
    pub reuse: Vec<Reuse>,
}

/// One combination of parameters, without the model.
#[derive(Clone, Copy)]
pub(super) struct Combination {
    pub n_gpu_layers: i64,
    pub n_batch: usize,
    pub n_ubatch: usize,
    pub cache_types: [KvType; 2],
    pub flash_attn: i64,
    pub threads: NonZeroUsize,
    pub test: Test,
    pub reuse: Reuse,
}

impl Lists {
    pub(super) fn read(args: &BenchArgs) -> Outcome<Self> {
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
        let n_parallel = positive("-np", &args.parallel)?;
        if let Some(n) = n_parallel.iter().find(|&&n| n > MAX_PARALLEL) {
            return Err(Failure::usage(format!("-np: want at most {MAX_PARALLEL}, got {n}")));
        }
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
            n_parallel,
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
    pub(super) fn combinations(&self) -> Vec<Combination> {
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
        for (n_depth, n_parallel) in pairs(&self.n_depth, &self.n_parallel) {
            let mut add = |n_prompt, n_gen| tests.push(Test { n_prompt, n_gen, n_depth, n_parallel });
            self.n_prompt.iter().for_each(|&n_prompt| add(n_prompt, 0));
            self.n_gen.iter().for_each(|&n_gen| add(0, n_gen));
            self.pg.iter().for_each(|&[n_prompt, n_gen]| add(n_prompt, n_gen));
        }
        tests.retain(|t| t.n_tokens() > 0);
        tests.into_iter().flat_map(|test| self.reuse.iter().map(move |&reuse| (test, reuse))).collect()
    }

    /// Columns of the markdown table: those that are always there, and those that differ from the default or from row to
    /// row.
    pub(super) fn columns(&self, extra: bool, recorded: &Recorded) -> Vec<Column> {
        let mut columns = vec![Column::Model, Column::Size, Column::Params, Column::Backend, Column::Threads];
        let mut add = |shown: bool, column| columns.extend(shown.then_some(column));
        add(self.n_batch != [2048], Column::Batch);
        add(self.n_ubatch != [512], Column::Ubatch);
        add(self.cache_types != [[KvType::F16; 2]], Column::TypeK);
        add(self.cache_types.iter().any(|&[_, v]| v != KvType::F16), Column::TypeV);
        add(self.n_parallel != [1], Column::Parallel);
        let usual = Recorded::default();
        add(recorded.split_mode != usual.split_mode, Column::SplitMode);
        add(self.flash_attn != [-1], Column::FlashAttn);
        add(recorded.devices != usual.devices, Column::Devices);
        add(recorded.load_mode != usual.load_mode, Column::LoadMode);
        add(recorded.lazy_mode != usual.lazy_mode, Column::LazyMode);
        add(extra || self.reuse.len() > 1 || self.reuse == [Reuse::Off], Column::GraphReuse);
        add(true, Column::Test);
        add(true, Column::Rate);
        for column in
            [Column::Builds, Column::Hits, Column::Host, Column::State, Column::P50, Column::P95, Column::PeakRss]
        {
            add(extra, column);
        }
        columns
    }
}

/// All pairs of two lists, in the order of the first one.
pub(super) fn pairs<'a>(first: &'a [usize], second: &'a [usize]) -> impl Iterator<Item = (usize, usize)> + 'a {
    first.iter().flat_map(|&a| second.iter().map(move |&b| (a, b)))
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
