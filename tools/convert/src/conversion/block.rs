//! [`Block`]: the tensors of one layer, as they are collected.

use super::heads::Heads;
use super::plan::{Role, Row, Source};

/// The tensors of a layer.
pub(super) struct Block<'a> {
    /// Where they go.
    pub rows: &'a mut Vec<Row>,
    /// What their names begin with in the file.
    pub name: String,
    /// What their names begin with in the checkpoint.
    pub stored: String,
}

impl<'a> Block<'a> {
    /// Layer `i`, whose tensors begin with `{prefix}layers.{i}` in the checkpoint.
    pub(super) fn layer(rows: &'a mut Vec<Row>, prefix: &str, i: usize) -> Self {
        Self { rows, name: format!("blk.{i}"), stored: format!("{prefix}layers.{i}") }
    }

    /// The name of a weight in the file.
    pub(super) fn weight(&self, name: &str) -> String {
        format!("{}.{name}.weight", self.name)
    }

    /// A weight, under these names of a module.
    pub(super) fn row(&self, name: &str, stored: &str, role: Role, dims: &[usize]) -> Row {
        Row::new(self.weight(name), format!("{}.{stored}.weight", self.stored), role, dims)
    }

    /// Adds [`Block::row`].
    pub(super) fn add(&mut self, name: &str, stored: &str, role: Role, dims: &[usize]) {
        let row = self.row(name, stored, role, dims);
        self.rows.push(row);
    }

    /// What stays F32, under these whole names.
    pub(super) fn full(&self, name: &str, stored: &str, dims: &[usize]) -> Row {
        Row::new(format!("{}.{name}", self.name), format!("{}.{stored}", self.stored), Role::Full, dims)
    }

    /// Adds [`Block::full`].
    pub(super) fn add_full(&mut self, name: &str, stored: &str, dims: &[usize]) {
        let row = self.full(name, stored, dims);
        self.rows.push(row);
    }

    /// The four matrices of attention, of which `output` is the last in the checkpoint; `turned`: rows of queries and keys in
    /// the order of [`Row::with_rotated_pairs`].
    pub(super) fn attention(&mut self, heads: &Heads, n_embd: usize, output: &str, turned: bool) {
        let (n_q, n_kv) = heads.widths();
        for (part, n, turned) in [("q", n_q, turned), ("k", n_kv, turned), ("v", n_kv, false)] {
            let row = self.row(&format!("attn_{part}"), &format!("self_attn.{part}_proj"), Role::Matrix, &[n, n_embd]);
            self.rows.push(if turned { row.with_rotated_pairs(heads.head_dim) } else { row });
        }
        self.add("attn_output", &format!("self_attn.{output}"), Role::Matrix, &[n_embd, n_q]);
    }

    /// The three matrices of a gated feed-forward block, which stand under `part` of a layer; `suffix` ends their names.
    pub(super) fn swiglu(&mut self, suffix: &str, part: &str, n_embd: usize, n_ff: usize) {
        for (name, dims) in swiglu_dims(n_embd, n_ff) {
            self.add(&format!("ffn_{name}{suffix}"), &format!("{part}.{name}_proj"), Role::Matrix, &dims);
        }
    }

    /// The same of `n` experts, of which each has tensors of its own under `part`.
    pub(super) fn experts(&mut self, part: &str, n_embd: usize, n_ff: usize, n: usize) {
        for (name, dims) in swiglu_dims(n_embd, n_ff) {
            let source = Source::Experts {
                prefix: format!("{}.{part}.experts.", self.stored),
                suffix: format!(".{name}_proj.weight"),
                n,
                dims: dims.into(),
            };
            let dims = vec![n, dims[0], dims[1]];
            self.rows.push(Row { name: self.weight(&format!("ffn_{name}_exps")), dims, role: Role::Matrix, source });
        }
    }
}

/// Names and extents of the matrices of a gated feed-forward block.
fn swiglu_dims(n_embd: usize, n_ff: usize) -> [(&'static str, [usize; 2]); 3] {
    [("gate", [n_ff, n_embd]), ("up", [n_ff, n_embd]), ("down", [n_embd, n_ff])]
}
