//! The op table: [`case::OpCase`] says what is computed, [`cases`] lists the table, [`runner`] runs it on every backend.
//! With it what other tests share: random numbers, model files, comparison, counted memory.

pub mod alloc;
pub mod case;
pub mod cases;
pub mod clock;
pub mod compare;
pub mod draft;
pub mod faulty;
pub mod files;
pub mod mutate;
pub mod private;
pub mod rng;
pub mod runner;
pub mod sessions;
