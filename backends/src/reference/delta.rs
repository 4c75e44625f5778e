//! The gated delta rule, row by row.

use engine::Result;
use engine::op::{DeltaRule, HeadMap};
use engine::tensor::TensorId;

use super::linear::dot;
use super::operands::Operands;
use super::state;

/// What a value head is given in a row.
struct Row {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// Factor of every row of the matrix.
    w: Vec<f64>,
    change: Change,
}

/// What else the rule takes from the matrix and adds to it.
enum Change {
    /// `beta`.
    Replaced(f64),
    /// `r` and `p`.
    Moved(Vec<f64>, Vec<f64>),
}

impl Row {
    /// Changes `s [k_dim, v_dim]`.
    fn apply(&self, s: &mut [Vec<f64>]) {
        let decay =
            |s: &mut [Vec<f64>]| s.iter_mut().zip(&self.w).for_each(|(s, w)| s.iter_mut().for_each(|s| *s *= w));
        match &self.change {
            Change::Replaced(beta) => {
                decay(s);
                let held = product(&self.k, s);
                let d: Vec<f64> = self.v.iter().zip(held).map(|(v, held)| beta * (v - held)).collect();
                add_outer(s, &self.k, &d);
            }
            Change::Moved(r, p) => {
                let held = product(r, s);
                decay(s);
                add_outer(s, p, &held);
                add_outer(s, &self.k, &self.v);
            }
        }
    }
}

/// `x . s`.
fn product(x: &[f64], s: &[Vec<f64>]) -> Vec<f64> {
    (0..s[0].len()).map(|c| x.iter().zip(s).map(|(x, s)| x * s[c]).sum()).collect()
}

/// `s + x y^T`.
fn add_outer(s: &mut [Vec<f64>], x: &[f64], y: &[f64]) {
    s.iter_mut().zip(x).for_each(|(s, x)| s.iter_mut().zip(y).for_each(|(s, y)| *s += x * y));
}

/// `x / sqrt(sum x^2 + eps)`.
fn normalized(x: &[f64], eps: f32) -> Vec<f64> {
    let length = (dot(x, x) + f64::from(eps)).sqrt();
    x.iter().map(|x| x / length).collect()
}

/// `[q, k, v, .., state, reads, slots, kept, ranges]`, see [`DeltaRule`]. NaN for padding.
pub(super) fn gated_delta(cx: &Operands<'_>, args: &[TensorId], heads: HeadMap, rule: DeltaRule) -> Result<Vec<f64>> {
    let [n_tokens, n_key, k_dim] = cx.dims(args[0])?;
    let [_, n_value, v_dim] = cx.dims(args[2])?;
    let given = args[..3 + rule.n_args()].iter().map(|&arg| state::rounded(cx, arg)).collect::<Result<Vec<_>>>()?;
    let args = &args[given.len()..];
    let [_, _, _, width] = cx.dims(args[0])?;
    // Row `i` of the vectors of argument `arg`, which has `n` in a row of the call.
    let vector = |arg: usize, t: usize, n: usize, i: usize| {
        let len = given[arg].len() / (n_tokens * n);
        &given[arg][(t * n + i) * len..][..len]
    };
    let row = |t: usize, j: usize| {
        let h = match heads {
            HeadMap::Interleaved => j / (n_value / n_key),
            HeadMap::Tiled => j % n_key,
        };
        let (q, k, v) = (vector(0, t, n_key, h), vector(1, t, n_key, h), vector(2, t, n_value, j));
        // One factor for all rows, or one for each.
        let decay = |g: Vec<f64>| (0..k_dim).map(|i| g[i % g.len()].exp()).collect();
        match rule {
            DeltaRule::Gated { l2_eps } => {
                let a = vector(3, t, n_value, j);
                let (scale, bias) = (given[5][j], &given[6][j * a.len()..][..a.len()]);
                let g = a.iter().zip(bias).map(|(a, bias)| scale * state::softplus(a + bias)).collect();
                Row {
                    q: normalized(q, l2_eps).iter().map(|q| q / (k_dim as f64).sqrt()).collect(),
                    k: normalized(k, l2_eps),
                    v: v.to_vec(),
                    w: decay(g),
                    change: Change::Replaced(1.0 / (1.0 + (-vector(4, t, n_value, j)[0]).exp())),
                }
            }
            DeltaRule::Given => Row {
                q: q.to_vec(),
                k: k.to_vec(),
                v: v.to_vec(),
                w: decay(vector(3, t, n_value, j).to_vec()),
                change: Change::Moved(vector(4, t, n_key, h).to_vec(), vector(5, t, n_key, h).to_vec()),
            },
        }
    };
    let mut out = vec![f64::NAN; n_tokens * n_value * v_dim];
    state::pass(cx, args, n_tokens, |t, tiles| {
        for (j, tiles) in tiles.chunks_exact_mut(k_dim * v_dim).enumerate() {
            // Element `[i, c]` of the matrix.
            let place = |i: usize, c: usize| (c / width * k_dim + i) * width + c % width;
            let mut s: Vec<Vec<f64>> = (0..k_dim).map(|i| (0..v_dim).map(|c| tiles[place(i, c)]).collect()).collect();
            let row = row(t, j);
            row.apply(&mut s);
            out[(t * n_value + j) * v_dim..][..v_dim].copy_from_slice(&product(&row.q, &s));
            for (i, s) in s.iter().enumerate() {
                s.iter().enumerate().for_each(|(c, s)| tiles[place(i, c)] = *s);
            }
        }
    })?;
    Ok(out)
}
