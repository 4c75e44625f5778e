//! [`Parameters`]: which drafters a text is given, and their sizes.

/// A kind of drafter. Drafters of a text are asked in this order, whatever the order in which they were named.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// [`super::Simple`].
    NgramSimple,
    /// [`super::MapK`].
    NgramMapK,
    /// [`super::MapK4v`].
    NgramMapK4v,
    /// [`super::Modular`].
    NgramMod,
    /// [`super::NgramCache`].
    NgramCache,
    /// [`super::Automaton`].
    Suffix,
    /// [`super::model::ModelDrafter`].
    DraftModel,
}

impl Kind {
    /// All of them, in the order in which they are asked.
    pub const ALL: [Self; 7] = [
        Self::NgramSimple,
        Self::NgramMapK,
        Self::NgramMapK4v,
        Self::NgramMod,
        Self::NgramCache,
        Self::Suffix,
        Self::DraftModel,
    ];

    /// As llama.cpp spells it, where it has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NgramSimple => "ngram-simple",
            Self::NgramMapK => "ngram-map-k",
            Self::NgramMapK4v => "ngram-map-k4v",
            Self::NgramMod => "ngram-mod",
            Self::NgramCache => "ngram-cache",
            Self::Suffix => "suffix",
            Self::DraftModel => "draft-simple",
        }
    }
}

/// Sizes of a drafter that looks for the last tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NgramSizes {
    /// Tokens that are looked for: at least one.
    pub n: usize,
    /// Tokens that are proposed, at most; at least one.
    pub m: usize,
    /// How often they must have been found.
    pub min_hits: usize,
}

/// Sizes of a drafter whose guesses may be too short.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct Limits {
    /// Fewer tokens are no guess.
    pub min: usize,
    /// Most tokens; at least one.
    pub max: usize,
}

/// Which drafters, and their sizes. The default is none, with the sizes of llama.cpp.
#[derive(Clone, PartialEq, Debug)]
pub struct Parameters {
    /// The drafters.
    pub kinds: Vec<Kind>,
    /// Of `ngram-simple`, which has no use for `min_hits`.
    pub simple: NgramSizes,
    /// Of `ngram-map-k`, which has no use for `min_hits`.
    pub map_k: NgramSizes,
    /// Of `ngram-map-k4v`.
    pub map_k4v: NgramSizes,
    /// Tokens that `ngram-mod` looks for.
    pub mod_n: usize,
    /// Of `ngram-mod`.
    pub modular: Limits,
    /// Most tokens that `ngram-cache` proposes.
    pub cache_max: usize,
    /// Of `suffix`, which has no use for `min_hits`.
    pub suffix: NgramSizes,
    /// Of the draft model.
    pub model: Limits,
    /// The draft model guesses no token that it finds less likely.
    pub model_p_min: f32,
    /// Guesses of fewer tokens are not verified, whoever made them.
    pub min: usize,
    /// Whether lengths follow success and cost, and drafters that lose pause.
    pub adapts: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        let sizes = NgramSizes { n: 12, m: 48, min_hits: 1 };
        Self {
            kinds: Vec::new(),
            simple: sizes,
            map_k: sizes,
            map_k4v: sizes,
            mod_n: 24,
            modular: Limits { min: 48, max: 64 },
            cache_max: super::cache::LENGTH,
            suffix: NgramSizes { n: 4, ..sizes },
            model: Limits { min: 0, max: 3 },
            model_p_min: 0.0,
            min: 0,
            adapts: true,
        }
    }
}

impl Parameters {
    /// Most tokens that a guess of this kind has.
    pub fn most(&self, kind: Kind) -> usize {
        match kind {
            Kind::NgramSimple => self.simple.m,
            Kind::NgramMapK => self.map_k.m,
            Kind::NgramMapK4v => self.map_k4v.m,
            Kind::NgramMod => self.modular.max,
            Kind::NgramCache => self.cache_max,
            Kind::Suffix => self.suffix.m,
            Kind::DraftModel => self.model.max,
        }
    }

    /// Most tokens that a guess has.
    pub fn largest(&self) -> usize {
        self.kinds.iter().map(|&kind| self.most(kind)).max().unwrap_or(0)
    }
}
