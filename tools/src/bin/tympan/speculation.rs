//! Flags of speculative decoding, which several subcommands share, and the drafters that they stand for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use clap::{Args, ValueEnum};
use engine::backend::Backend;
use models::LoadOptions;
use models::draft::model::DraftModel;
use models::draft::{Drafters, Kind, Limits, NgramCounts, NgramSizes, Parameters, Shared};
use models::scheduler::Rollback;
use models::tokenizer::Tokenizer;

use crate::args::{KvType, ModelArgs, Switch};
use crate::exit::{Failure, Outcome};
use crate::model::{Loading, files_of};
use crate::output::Destination;
use crate::report::Verbosity;

/// Most tokens of a guess: with the token before it, a call still has room for others.
const MAX_DRAFT: u32 = 255;
/// Most tokens that are looked for.
const MAX_NGRAM: u32 = 1024;
/// Replays of a guess. Source: llama.cpp, pull request 19493.
const DEFAULT_TRIES: u32 = 2;
/// Fewer tokens than this find too much that has nothing to do with the text, where nothing is compared.
const FEW_MOD: usize = 16;

/// `--spec-type`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "kebab-case")]
pub(crate) enum SpecType {
    /// No drafts.
    None,
    /// The last place of the last tokens.
    NgramSimple,
    /// Their first place, with a length for each.
    NgramMapK,
    /// What followed them most often.
    #[value(name = "ngram-map-k4v")]
    NgramMapK4v,
    /// A table of hashes.
    NgramMod,
    /// Counts, in files too.
    NgramCache,
    /// The longest end of the text that stood in it before.
    Suffix,
    /// A second model.
    #[value(alias = "draft")]
    DraftSimple,
}

impl SpecType {
    fn kind(self) -> Option<Kind> {
        match self {
            Self::None => None,
            Self::NgramSimple => Some(Kind::NgramSimple),
            Self::NgramMapK => Some(Kind::NgramMapK),
            Self::NgramMapK4v => Some(Kind::NgramMapK4v),
            Self::NgramMod => Some(Kind::NgramMod),
            Self::NgramCache => Some(Kind::NgramCache),
            Self::Suffix => Some(Kind::Suffix),
            Self::DraftSimple => Some(Kind::DraftModel),
        }
    }
}

/// Drafts: tokens that are guessed and verified in one step. They change the speed of a text, never the text.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SpeculationArgs {
    /// Guess the next tokens, and verify them in one step: a list of ngram-simple, ngram-map-k, ngram-map-k4v, ngram-mod,
    /// ngram-cache, suffix (what followed the last tokens before, in the text itself), draft-simple (a second model), none. They are
    /// asked in this order [default: none]
    #[arg(long, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    pub spec_type: Vec<SpecType>,

    /// As --spec-type ngram-mod [default: off]
    #[arg(long)]
    pub spec_default: bool,

    /// Most tokens of a guess, whatever its type: 1 to 255 [default: that of the type]
    #[arg(long, visible_aliases = ["draft", "draft-n"], value_name = "N", value_parser = draft_length())]
    pub draft_max: Option<u32>,

    /// Fewer tokens are not verified [default: 0; ngram-mod 48]
    #[arg(long, visible_alias = "draft-n-min", value_name = "N", value_parser = draft_min())]
    pub draft_min: Option<u32>,

    /// Tokens that n-gram drafters look for [default: 12; ngram-mod 24, suffix 4]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_size_n: Option<u32>,

    /// Most tokens that they propose [default: 48; ngram-mod 64]
    #[arg(long, value_name = "M", value_parser = draft_length())]
    pub spec_ngram_size_m: Option<u32>,

    /// How often tokens must have been found [default: 1]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_min_hits: Option<u32>,

    /// Tokens that ngram-simple looks for [default: 12]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_simple_size_n: Option<u32>,

    /// Most tokens that ngram-simple proposes [default: 48]
    #[arg(long, value_name = "M", value_parser = draft_length())]
    pub spec_ngram_simple_size_m: Option<u32>,

    /// Accepted as llama.cpp does, and without effect: ngram-simple takes what it finds [default: 1]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_simple_min_hits: Option<u32>,

    /// Tokens that ngram-map-k looks for [default: 12]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_map_k_size_n: Option<u32>,

    /// Most tokens that ngram-map-k proposes [default: 48]
    #[arg(long, value_name = "M", value_parser = draft_length())]
    pub spec_ngram_map_k_size_m: Option<u32>,

    /// Accepted as llama.cpp does, and without effect: ngram-map-k takes what it finds [default: 1]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_map_k_min_hits: Option<u32>,

    /// Tokens that ngram-map-k4v looks for [default: 12]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_map_k4v_size_n: Option<u32>,

    /// Most tokens that ngram-map-k4v proposes [default: 48]
    #[arg(long, value_name = "M", value_parser = draft_length())]
    pub spec_ngram_map_k4v_size_m: Option<u32>,

    /// How often ngram-map-k4v must have found tokens before it proposes [default: 1]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_map_k4v_min_hits: Option<u32>,

    /// Tokens that ngram-mod looks for [default: 24]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_ngram_mod_n_match: Option<u32>,

    /// Fewest tokens that ngram-mod proposes [default: 48]
    #[arg(long, value_name = "N", value_parser = draft_min())]
    pub spec_ngram_mod_n_min: Option<u32>,

    /// Most tokens that ngram-mod proposes [default: 64]
    #[arg(long, value_name = "N", value_parser = draft_length())]
    pub spec_ngram_mod_n_max: Option<u32>,

    /// Fewest tokens that suffix must find [default: 4]
    #[arg(long, value_name = "N", value_parser = ngram_length())]
    pub spec_suffix_size_n: Option<u32>,

    /// Most tokens that suffix proposes [default: 48]
    #[arg(long, value_name = "M", value_parser = draft_length())]
    pub spec_suffix_size_m: Option<u32>,

    /// Counts of a collection of texts for ngram-cache, a file of llama.cpp's lookup-create (-lcs) [default: none]
    #[arg(long, value_name = "FILE")]
    pub lookup_cache_static: Option<PathBuf>,

    /// Counts of earlier texts for ngram-cache: read where the file is there, and written with those of this run at its end
    /// (-lcd) [default: none]
    #[arg(long, value_name = "FILE")]
    pub lookup_cache_dynamic: Option<PathBuf>,

    /// Draft model of the same vocabulary, as -m; it makes --spec-type draft-simple (-md) [default: none]
    #[arg(long, visible_aliases = ["draft-model", "model-draft"], value_name = "PATH")]
    pub spec_draft_model: Option<PathBuf>,

    /// Most tokens that the draft model proposes [default: 3]
    #[arg(long, value_name = "N", value_parser = draft_length())]
    pub spec_draft_n_max: Option<u32>,

    /// Fewer tokens of the draft model are not verified [default: 0]
    #[arg(long, value_name = "N", value_parser = draft_min())]
    pub spec_draft_n_min: Option<u32>,

    /// The draft model proposes no token that it finds less likely, among its ten most likely ones [default: 0]
    #[arg(long, value_name = "P", value_parser = probability)]
    pub spec_draft_p_min: Option<f32>,

    /// Whether guesses are as long as they were right and as verifying them pays, and drafters that lose pause: on, or off, where
    /// every guess is verified whole [default: on]
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    pub spec_adapt: Option<Switch>,

    /// How recurrent states are taken back where guesses were wrong: ring, their inputs are kept until it is sure that they stay; row,
    /// there are two of each, and what was right is computed again from the one before; checkpoint, they are copied before and copied
    /// back, and what was right is computed again [default: ring]
    #[arg(long, value_name = "ring|row|checkpoint", hide_possible_values = true)]
    pub spec_rollback: Option<RollbackArg>,

    /// With --spec-rollback row and checkpoint how often what was right is computed again, should it turn out otherwise [default: 2]
    #[arg(long, value_name = "N", value_parser = draft_min())]
    pub spec_ckpt_num_tries: Option<u32>,
}

/// `--spec-rollback`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RollbackArg {
    /// Inputs of recurrent states are kept until it is sure that they stay.
    Ring,
    /// Two rows of every state.
    Row,
    /// Copies of all states.
    Checkpoint,
}

fn draft_length() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_DRAFT))
}

fn draft_min() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=i64::from(MAX_DRAFT))
}

fn ngram_length() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_NGRAM))
}

pub(crate) fn probability(text: &str) -> Result<f32, String> {
    text.parse::<f32>().ok().filter(|p| (0.0..=1.0).contains(p)).ok_or_else(|| "want 0 to 1".into())
}

/// The first number that is given, else what it is by default.
fn first<const N: usize>(given: [Option<u32>; N], default: usize) -> usize {
    given.into_iter().flatten().next().map_or(default, |n| n as usize)
}

impl SpeculationArgs {
    /// Which drafters are asked for; none where there are to be no drafts.
    ///
    /// Errors: flags that do not go together.
    pub(crate) fn parameters(&self) -> Outcome<Option<Parameters>> {
        let mut kinds: Vec<Kind> = self.spec_type.iter().filter_map(|t| t.kind()).collect();
        if self.spec_type.contains(&SpecType::None) && !kinds.is_empty() {
            return Err(Failure::usage("--spec-type: none goes with no other type"));
        }
        if self.spec_default {
            kinds.push(Kind::NgramMod);
        }
        match (&self.spec_draft_model, kinds.contains(&Kind::DraftModel)) {
            (Some(_), false) if !self.spec_type.contains(&SpecType::None) => kinds.push(Kind::DraftModel),
            (None, true) => return Err(Failure::usage("--spec-type draft-simple wants --spec-draft-model")),
            _ => {}
        }
        let has_files = self.lookup_cache_static.is_some() || self.lookup_cache_dynamic.is_some();
        if has_files && !kinds.contains(&Kind::NgramCache) {
            return Err(Failure::usage(
                "--lookup-cache-static and --lookup-cache-dynamic go with --spec-type ngram-cache",
            ));
        }
        if kinds.is_empty() {
            return Ok(None);
        }
        let parameters = self.sizes(kinds);
        let limits = [("ngram-mod", parameters.modular), ("draft-simple", parameters.model)];
        for (name, Limits { min, max }) in limits {
            if min > max && parameters.kinds.iter().any(|kind| kind.name() == name) {
                return Err(Failure::usage(format!("{name}: want at most {max} tokens of at least {min}")));
            }
        }
        let largest = parameters.largest();
        if parameters.min > largest {
            let min = parameters.min;
            return Err(Failure::usage(format!("--draft-min {min}: guesses have at most {largest} tokens")));
        }
        Ok(Some(parameters))
    }

    fn sizes(&self, kinds: Vec<Kind>) -> Parameters {
        let default = Parameters::default();
        let (n, m, hits) = (self.spec_ngram_size_n, self.spec_ngram_size_m, self.spec_ngram_min_hits);
        let max = self.draft_max;
        let sizes = |own: [Option<u32>; 3], default: NgramSizes| NgramSizes {
            n: first([own[0], n], default.n),
            m: first([own[1], m, max], default.m),
            min_hits: first([own[2], hits], default.min_hits),
        };
        let mod_max = first([self.spec_ngram_mod_n_max, m, max], default.modular.max);
        // Whoever asks for short guesses gets some.
        let mod_min = first([self.spec_ngram_mod_n_min, self.draft_min], default.modular.min.min(mod_max));
        Parameters {
            simple: sizes(
                [self.spec_ngram_simple_size_n, self.spec_ngram_simple_size_m, self.spec_ngram_simple_min_hits],
                default.simple,
            ),
            map_k: sizes(
                [self.spec_ngram_map_k_size_n, self.spec_ngram_map_k_size_m, self.spec_ngram_map_k_min_hits],
                default.map_k,
            ),
            map_k4v: sizes(
                [self.spec_ngram_map_k4v_size_n, self.spec_ngram_map_k4v_size_m, self.spec_ngram_map_k4v_min_hits],
                default.map_k4v,
            ),
            mod_n: first([self.spec_ngram_mod_n_match, n], default.mod_n),
            modular: Limits { min: mod_min, max: mod_max },
            cache_max: first([max], default.cache_max),
            suffix: sizes([self.spec_suffix_size_n, self.spec_suffix_size_m, None], default.suffix),
            model: Limits {
                min: first([self.spec_draft_n_min, self.draft_min], default.model.min),
                max: first([self.spec_draft_n_max, max], default.model.max),
            },
            model_p_min: self.spec_draft_p_min.unwrap_or(default.model_p_min),
            min: first([self.draft_min], default.min),
            adapts: self.adapts(),
            kinds,
        }
    }

    /// How wrong guesses are taken back.
    pub(crate) fn rollback(&self) -> Rollback {
        let n_tries = self.spec_ckpt_num_tries.unwrap_or(DEFAULT_TRIES);
        match self.spec_rollback {
            None | Some(RollbackArg::Ring) => Rollback::Ring,
            Some(RollbackArg::Row) => Rollback::Row { n_tries },
            Some(RollbackArg::Checkpoint) => Rollback::Checkpoint { n_tries },
        }
    }

    /// Whether lengths of guesses follow success and cost.
    pub(crate) fn adapts(&self) -> bool {
        self.spec_adapt != Some(Switch::Off)
    }

    /// Files that are read: none of them may be an output.
    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        let model = self.spec_draft_model.iter().flat_map(|path| files_of(path));
        model.chain(self.lookup_cache_static.clone()).collect()
    }

    /// The drafters for `n_sequences` sequences of a model with the vocabulary `target`; none where there are to be no drafts.
    ///
    /// Errors: flags that do not go together; files that cannot be read; a draft model that does not go with the other.
    pub(crate) fn open(
        &self,
        target: &Tokenizer,
        backend: &Arc<dyn Backend>,
        kv_type: KvType,
        n_sequences: usize,
        (loading, say): (Loading, Verbosity),
    ) -> Outcome<Option<Drafters>> {
        let Some(parameters) = self.parameters()? else { return Ok(None) };
        if let Some(n) = self.spec_ckpt_num_tries.filter(|_| self.rollback() == Rollback::Ring) {
            say.detail(format_args!("--spec-ckpt-num-tries {n}: not used, since nothing is tried again"));
        }
        if parameters.kinds.contains(&Kind::NgramMod) && parameters.mod_n < FEW_MOD {
            let n = parameters.mod_n;
            say.note(format_args!(
                "--spec-ngram-mod-n-match {n}: fewer than {FEW_MOD} tokens find much that does not fit"
            ));
        }
        let mut shared = Shared::default();
        if let Some(path) = &self.lookup_cache_static {
            shared.texts = Arc::new(read_counts(path)?);
        }
        if let Some(path) = &self.lookup_cache_dynamic {
            Destination::check(path)?;
            if path.exists() {
                shared.earlier = Arc::new(Mutex::new(read_counts(path)?));
            }
        }
        if parameters.kinds.contains(&Kind::DraftModel) {
            let args = ModelArgs { model: self.spec_draft_model.clone(), mmproj: None };
            let model = args.load(LoadOptions { text_only: true, ..LoadOptions::default() }, loading, say)?;
            let backends = std::slice::from_ref(backend);
            let opened = DraftModel::open(&model.loaded, target, backends, kv_type.into(), n_sequences);
            let opened = opened.with_context(|| format!("--spec-draft-model {}", model.name));
            shared.model = Some(Arc::new(opened.map_err(Failure::model)?));
        }
        Drafters::new(parameters, shared).map(Some).map_err(Failure::refused)
    }

    /// Writes what `ngram-cache` learnt, and says where the draft model gave up.
    ///
    /// Errors: the file cannot be written.
    pub(crate) fn close(&self, drafters: &Drafters, say: Verbosity) -> Outcome<()> {
        if let Some(error) = drafters.shared().model.as_ref().and_then(|model| model.take_error()) {
            say.note(format_args!("the draft model gave up: {error}"));
        }
        let Some(path) = &self.lookup_cache_dynamic else { return Ok(()) };
        let bytes = drafters.shared().earlier.lock().map_or_else(|e| e.into_inner().to_bytes(), |c| c.to_bytes());
        Destination::check(path)?.write(&bytes).map_err(Failure::output)
    }
}

fn read_counts(path: &Path) -> Outcome<NgramCounts> {
    let counts = File::open(path).and_then(|mut file| NgramCounts::read(&mut file));
    counts.with_context(|| path.display().to_string()).map_err(Failure::input)
}
