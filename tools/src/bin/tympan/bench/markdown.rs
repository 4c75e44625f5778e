//! Tables in markdown, padded so that they are tables in a terminal too.

/// A table: heads with the width of their columns, and rows of cells. A column to the left is as wide as its longest
/// cell, if that is wider.
pub(super) fn table<const N: usize>(columns: &[(&str, i32); N], rows: &[[String; N]]) -> String {
    let mut columns = *columns;
    for (i, (_, width)) in columns.iter_mut().enumerate().filter(|(_, (_, width))| *width < 0) {
        let longest = rows.iter().map(|cells| cells[i].chars().count()).max().unwrap_or_default();
        *width = (*width).min(-i32::try_from(longest).unwrap_or(i32::MAX));
    }
    let mut text = head(columns.into_iter());
    for cells in rows {
        text += &line(cells.iter().zip(columns).map(|(cell, (_, width))| padded(cell, width)));
    }
    text
}

/// The first two lines of a table: names of columns, and where they are aligned to.
pub(super) fn head<'a>(columns: impl Iterator<Item = (&'a str, i32)> + Clone) -> String {
    let rule = |(_, width): (&str, i32)| {
        let n = width.unsigned_abs() as usize;
        if width < 0 { "-".repeat(n) } else { format!("{}:", "-".repeat(n - 1)) }
    };
    line(columns.clone().map(|(name, width)| padded(name, width))) + &line(columns.map(rule))
}

/// One line of a table.
pub(super) fn line(cells: impl Iterator<Item = String>) -> String {
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

/// Text in a column of `width` characters, to the right, or to the left where the width is negative.
pub(super) fn padded(text: &str, width: i32) -> String {
    let n = width.unsigned_abs() as usize;
    if width < 0 { format!("{text:<n$}") } else { format!("{text:>n$}") }
}
