//! Which instruction set this CPU has, and the environment variable that lowers it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Environment variable with the name of the highest instruction set to use.
pub const ISA_VARIABLE: &str = "TYMPAN_ISA";

/// A set of CPU instructions that kernels are written for, from low to high.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Isa {
    /// Plain Rust, any CPU.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI, besides AVX2's.
    Avx512,
}

/// `TYMPAN_ISA` names no instruction set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownIsa(pub String);

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ISA_VARIABLE}: want scalar, avx2 or avx512, got {:?}", self.0)
    }
}

impl std::error::Error for UnknownIsa {}

impl Isa {
    /// Every instruction set, from low to high.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The name that the environment variable takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The highest instruction set of this CPU that is not above `TYMPAN_ISA`; empty, the variable counts as unset.
    ///
    /// Errors: the variable is set to something else than a name of [`Isa`].
    pub fn detect() -> Result<Self, UnknownIsa> {
        let cap = match std::env::var_os(ISA_VARIABLE).filter(|value| !value.is_empty()) {
            None => Self::Avx512,
            Some(value) => value.to_string_lossy().parse()?,
        };
        Ok(Self::ALL.into_iter().rfind(|isa| *isa <= cap && isa.is_supported()).unwrap_or(Self::Scalar))
    }

    /// Whether this CPU has the instructions.
    pub fn is_supported(self) -> bool {
        static HIGHEST: OnceLock<Isa> = OnceLock::new();
        self <= *HIGHEST.get_or_init(highest)
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    /// The instruction set of this name, as the environment variable takes it.
    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn highest() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni");
    match (avx2, avx512) {
        (false, _) => Isa::Scalar,
        (true, false) => Isa::Avx2,
        (true, true) => Isa::Avx512,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn highest() -> Isa {
    Isa::Scalar
}
