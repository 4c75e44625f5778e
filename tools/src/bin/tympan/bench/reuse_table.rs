//! The gain of using compiled graphs again, test by test.

use super::markdown;
use super::row::{Row, Settings};
use super::statistics::mean;

/// Heads and widths.
const COLUMNS: [(&str, i32); 6] =
    [("model", -30), ("threads", 7), ("test", 15), ("t/s without", 12), ("t/s with reuse", 14), ("gain", 8)];

/// A markdown table of the tests that were run with and without reuse.
pub(super) fn table(rows: &[Row]) -> String {
    let rate = |row: &Row| mean(&row.rates());
    let cells = |with: &Row| {
        let without = rows.iter().find(|r| !r.settings.graph_reuse && same(&r.settings, &with.settings))?;
        Some([
            with.settings.model.kind.clone(),
            with.settings.n_threads.to_string(),
            with.settings.test.full_name(),
            format!("{:.2}", rate(without)),
            format!("{:.2}", rate(with)),
            format!("{:+.1} %", (rate(with) / rate(without) - 1.0) * 100.0),
        ])
    };
    let lines: Vec<_> = rows.iter().filter(|r| r.settings.graph_reuse).filter_map(cells).collect();
    format!("\n{}", markdown::table(&COLUMNS, &lines))
}

/// Whether two rows differ in nothing but reuse.
fn same(a: &Settings, b: &Settings) -> bool {
    let key = |s: &Settings| {
        (
            s.model.filename.clone(),
            s.n_batch,
            s.n_ubatch,
            s.n_threads,
            s.cache_types,
            s.n_gpu_layers,
            s.flash_attn,
            s.test,
        )
    };
    key(a) == key(b)
}
