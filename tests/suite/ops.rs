//! The op table on every backend and instruction set.

use tests::cases::{FAMILIES, family};
use tests::runner::run_table;

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                run_table(&family(stringify!($name)));
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
