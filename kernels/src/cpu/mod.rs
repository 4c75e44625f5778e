//! Kernels for CPUs: one handle, [`Kernels`], through which everything is called.
//!
//! `scalar` says what every kernel means; the files of the other instruction sets hold faster versions of some of
//! them, `compiled`, `rows`, `tiles` and `attention_tiles` what they share, and `formats` and `table` join them. Whoever holds a
//! [`Kernels`] may call any kernel: it exists only for an instruction set that this CPU has.

mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_tiles;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod compiled;
mod formats;
mod integers;
mod isa;
mod product;
#[cfg(target_arch = "x86_64")]
mod rows;
mod scalar;
mod scan;
mod table;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use self::attention::{Attention, KEY_BLOCK, KvRows, QUERY_GROUP};
pub use self::isa::{ISA_VARIABLE, Isa, UnknownIsa};
pub use self::product::{Operand, PANEL_ROWS, Product};
pub use self::scan::{ChannelDecay, HeadToken, SCAN_TOKENS, ScanToken};
pub use self::table::Kernels;
