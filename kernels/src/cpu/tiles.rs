//! Tiles of products, some rows of weights with some rows of activations: how rows are taken, and where results go.

/// Evaluates `$tile` until all `$m` rows of activations were in one: with `$rows`, an array of those from number `$first` on
/// that `$row` gives. It has the first of the lengths for which enough are left, or 1.
///
/// The array is not made with `from_fn`, which is no part of the function with the macro when features are chosen: a call for
/// every row shows in the time of small tiles.
macro_rules! in_tiles {
    ($m:expr, $row:expr, [$($len:literal),*], |$first:ident, $rows:ident| $tile:expr) => {{
        let (m, row, mut $first) = ($m, $row, 0);
        while $first < m {
            $(
                if m - $first >= $len {
                    let mut rows = [row($first); $len];
                    for (r, of_tile) in rows.iter_mut().enumerate().skip(1) {
                        *of_tile = row($first + r);
                    }
                    let $rows = rows;
                    $tile;
                    $first += $len;
                    continue;
                }
            )*
            let $rows = [row($first)];
            $tile;
            $first += 1;
        }
    }};
}

pub(super) use in_tiles;

/// Puts a tile's results, `[R][M]`, into `out`, whose rows are `n_rows` apart.
pub(super) fn write<const R: usize, const M: usize>(results: [[f32; M]; R], out: &mut [f32], n_rows: usize) {
    for (r, results) in results.into_iter().enumerate() {
        for (i, y) in results.into_iter().enumerate() {
            out[i * n_rows + r] = y;
        }
    }
}

/// Where a microkernel's results go: rows of `out` that are `stride` apart, `n` elements of each.
pub(super) struct Results<'a> {
    pub out: &'a mut [f32],
    pub stride: usize,
    pub n: usize,
    /// Whether what is there is added to.
    pub add: bool,
}
