//! The program as users run it: what it prints, where, and what it exits with.

mod contract;
mod exact_text;
mod run;
