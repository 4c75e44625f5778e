//! Selective scans in plain Rust: tokens of one head, whose state `[d_state, head_dim]` has its channels side by side, so
//! that nothing is summed over neighbours. Results of a channel are summed over the state in its order, whatever the vectors
//! are and however many tokens come at once.

use crate::math::{self, fma};

/// Channels of one token whose results and inputs stay in registers while the state passes by.
const CHANNELS: usize = 32;
/// The same where [`SCAN_TOKENS`] tokens come at once.
const CHANNELS_OF_EACH: usize = 16;
/// Tokens for which a state is read and written once: for more their results would not stay in the registers of AVX2.
pub const SCAN_TOKENS: usize = 4;

/// What one token brings to a head.
#[derive(Clone, Copy, Debug)]
pub struct ScanToken<'a> {
    /// From inputs to the state, `[d_state]`.
    pub b: &'a [f32],
    /// From the state to results, `[d_state]`.
    pub c: &'a [f32],
    /// Inputs times step sizes, `[head_dim]`.
    pub dx: &'a [f32],
}

/// A token of a head with one decay.
#[derive(Debug)]
pub struct HeadToken<'a> {
    /// Factor of the state.
    pub decay: f32,
    /// What it brings.
    pub token: ScanToken<'a>,
    /// What is added to, `[head_dim]`.
    pub y: &'a mut [f32],
}

/// Decays of every element of a head's state, `exp(step[p] a[n, p])`.
#[derive(Clone, Copy, Debug)]
pub struct ChannelDecay<'a> {
    /// Their logarithms per unit of step size, `[d_state, head_dim]`.
    pub a: &'a [f32],
    /// Step sizes, `[head_dim]`.
    pub step: &'a [f32],
}

impl ScanToken<'_> {
    /// Panics unless the token fits a state of so many elements and so many channels.
    pub(super) fn check(&self, n_state: usize, head_dim: usize) {
        assert_eq!(self.dx.len(), head_dim, "inputs of a head");
        assert_eq!([self.b.len() * head_dim, self.c.len() * head_dim], [n_state; 2], "the state of a head");
    }
}

/// For each token `s[n, p] = decay s[n, p] + b[n] dx[p]`, then `y[p] += sum_n c[n] s[n, p]`. All have as many channels.
#[inline(always)]
pub(super) fn scan_head<const FMA: bool>(state: &mut [f32], tokens: &mut [HeadToken<'_>]) {
    let (blocks, rest) = tokens.as_chunks_mut::<SCAN_TOKENS>();
    for tokens in blocks {
        scan_tokens::<FMA, SCAN_TOKENS, CHANNELS_OF_EACH>(state, tokens);
    }
    for token in rest {
        scan_tokens::<FMA, 1, CHANNELS>(state, std::array::from_mut(token));
    }
}

/// Takes `T` tokens through the state, `N` channels at a time.
#[inline(always)]
fn scan_tokens<const FMA: bool, const T: usize, const N: usize>(state: &mut [f32], tokens: &mut [HeadToken<'_>; T]) {
    let width = tokens[0].y.len();
    let whole = width - width % N;
    for at in (0..whole).step_by(N) {
        head_block::<FMA, T, N>(state, tokens, at);
    }
    for at in whole..width {
        head_block::<FMA, T, 1>(state, tokens, at);
    }
}

/// The channels from number `at` on.
#[inline(always)]
fn head_block<const FMA: bool, const T: usize, const N: usize>(
    state: &mut [f32],
    tokens: &mut [HeadToken<'_>; T],
    at: usize,
) {
    let width = tokens[0].y.len();
    let (mut dx, mut sums, mut decays) = ([[0.0; N]; T], [[0.0; N]; T], [0.0; T]);
    let (mut b, mut c): ([&[f32]; T], [&[f32]; T]) = ([&[]; T], [&[]; T]);
    for t in 0..T {
        let HeadToken { decay, token, y } = &tokens[t];
        (dx[t], sums[t], decays[t]) = (*block(token.dx, at), *block(y, at), *decay);
        // One length for all lets the compiler drop the checks in the loop.
        (b[t], c[t]) = (&token.b[..state.len() / width], &token.c[..state.len() / width]);
    }
    for (n, row) in state.chunks_exact_mut(width).enumerate() {
        let kept = block_mut::<N>(row, at);
        let mut row = *kept;
        for t in 0..T {
            for i in 0..N {
                row[i] = fma::<FMA>(decays[t], row[i], b[t][n] * dx[t][i]);
                sums[t][i] = fma::<FMA>(c[t][n], row[i], sums[t][i]);
            }
        }
        *kept = row;
    }
    for (token, sums) in tokens.iter_mut().zip(sums) {
        *block_mut(token.y, at) = sums;
    }
}

/// As [`scan_head`] for one token with a decay for every element of the state.
#[inline(always)]
pub(super) fn scan_channels<const FMA: bool>(
    state: &mut [f32],
    decay: &ChannelDecay<'_>,
    token: &ScanToken<'_>,
    y: &mut [f32],
) {
    let whole = y.len() - y.len() % CHANNELS;
    for at in (0..whole).step_by(CHANNELS) {
        channels_block::<FMA, CHANNELS>(state, decay, token, y, at);
    }
    for at in whole..y.len() {
        channels_block::<FMA, 1>(state, decay, token, y, at);
    }
}

#[inline(always)]
fn channels_block<const FMA: bool, const N: usize>(
    state: &mut [f32],
    decay: &ChannelDecay<'_>,
    token: &ScanToken<'_>,
    y: &mut [f32],
    at: usize,
) {
    let width = y.len();
    let (dx, step, y) = (block::<N>(token.dx, at), block::<N>(decay.step, at), block_mut::<N>(y, at));
    let mut sums = *y;
    let rows = state.chunks_exact_mut(width).zip(decay.a.chunks_exact(width));
    for (((row, a), &b), &c) in rows.zip(token.b).zip(token.c) {
        let (row, a) = (block_mut::<N>(row, at), block::<N>(a, at));
        for i in 0..N {
            let decay = math::exp::<FMA>(step[i] * a[i]);
            row[i] = fma::<FMA>(decay, row[i], b * dx[i]);
            sums[i] = fma::<FMA>(c, row[i], sums[i]);
        }
    }
    *y = sums;
}

#[inline(always)]
fn block<const N: usize>(x: &[f32], at: usize) -> &[f32; N] {
    x[at..].first_chunk().expect("whole blocks")
}

#[inline(always)]
fn block_mut<const N: usize>(x: &mut [f32], at: usize) -> &mut [f32; N] {
    x[at..].first_chunk_mut().expect("whole blocks")
}
