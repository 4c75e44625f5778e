//! HTTP: which endpoint answers what ([`router`]), who may ask (`guard`), what bodies may be (`body`, `form`), what an
//! endpoint is given and gives back (`exchange`, `events`), what is logged (`log`), and connections (`listen`, `linger`).

pub(crate) mod body;
pub(crate) mod events;
pub(crate) mod exchange;
pub(crate) mod form;
mod guard;
mod linger;
pub(crate) mod listen;
pub(crate) mod log;
pub(crate) mod router;
