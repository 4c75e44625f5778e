//! The op table on every backend and instruction set.

use std::collections::BTreeSet;

use tests::cases::{FAMILIES, family};
use tests::runner::{Table, run_table};

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                run_table(family(stringify!($name)));
            }
        )*

        #[test]
        fn every_family_is_run() {
            let run = [$(stringify!($name)),*];
            assert!(FAMILIES.iter().map(|(name, _)| *name).eq(run));
        }
    };
}

families!(
    unary,
    binary,
    glu,
    norm,
    add_norm,
    linear_formats,
    linear_small_blocks,
    linear_floats,
    linear_layouts,
    linear_fused,
    precise,
    rope,
    cached_attention,
    attention,
    causal_conv1d,
    conv2d,
    depthwise,
    rel_pos,
    moe,
    rows,
    layout,
    mask_rows,
);

#[test]
fn every_op_has_a_case() {
    let source = include_str!("../../engine/src/op/mod.rs");
    let named = source.split("OpSpec::new(\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(name, _)| name);
    let ops: BTreeSet<&str> = named.collect();
    assert!(ops.contains("linear") && ops.contains("concat"));
    let cases: Vec<_> = FAMILIES.iter().flat_map(|(name, _)| family(name)).collect();
    assert_eq!(Table::new(&cases).ops().unwrap(), ops);
}
