//! The op table. Read [`case::OpCase`] first: it says what is computed, [`cases`] lists the table, [`runner`] runs it on every
//! backend. With it what other tests share: random numbers, model files, comparison, counted memory.
//!
//! The suite begins in `suite/main.rs`; programs to start from are in `examples`.

pub mod alloc;
pub mod avi;
pub mod case;
pub mod cases;
pub mod clock;
pub mod compare;
pub mod draft;
pub mod faulty;
pub mod files;
pub mod mp4;
pub mod mutate;
pub mod private;
pub mod rng;
pub mod runner;
pub mod sessions;
pub mod ts;
