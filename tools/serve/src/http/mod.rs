//! HTTP: which endpoint answers what ([`router`]), who may ask (`guard`), what bodies may be (`body`, `form`), what is logged
//! (`log`), and connections (`listen`).

pub(crate) mod body;
pub(crate) mod events;
pub(crate) mod form;
mod guard;
mod linger;
pub(crate) mod listen;
pub(crate) mod log;
pub(crate) mod router;
