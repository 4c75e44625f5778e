//! `tympan`: parses, calls, maps errors to exit codes; nothing else.

fn main() {}
