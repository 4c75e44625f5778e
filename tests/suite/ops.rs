//! The op table on every backend and instruction set.

use std::collections::BTreeSet;

use tests::cases::{FAMILIES, family};
use tests::runner::{Table, run_table};

macro_rules! run {
    ($($name:ident: $list:path;)*) => {
        $(
            #[test]
            fn $name() {
                run_table(family(stringify!($name)));
            }
        )*
    };
}

tests::families!(run);

#[test]
fn every_op_has_a_case() {
    let source = include_str!("../../engine/src/op/mod.rs");
    let named = source.split("OpSpec::new(\"").skip(1).filter_map(|rest| rest.split_once('"'));
    let names: Vec<&str> = named.map(|(name, _)| name).collect();
    let ops: BTreeSet<&str> = names.iter().copied().collect();
    assert!(ops.contains("linear") && ops.contains("concat"));
    assert_eq!(ops.len(), names.len(), "ops with the same name");
    let cases: Vec<_> = FAMILIES.iter().flat_map(|(name, _)| family(name)).collect();
    let covered = Table::new(&cases).ops().unwrap();
    let missing: Vec<&&str> = ops.difference(&covered).collect();
    assert!(missing.is_empty(), "no case in tests/src/cases for {missing:?}");
    assert_eq!(covered, ops);
}
