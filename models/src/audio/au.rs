//! AU files, of Sun and NeXT, with plain samples. Source: the manual page audio(5) of SunOS.

use std::io::{Read, Result, Seek};

use super::fields::Fields;
use super::pcm::{Encoding, Layout, Order};
use super::wav::is_placeholder;

/// The samples of a file of `len` bytes; none if it is no AU file, or its samples are not plain.
pub(super) fn layout(src: &mut (impl Read + Seek), len: u64) -> Result<Option<Layout>> {
    let mut fields = Fields::new(src, len);
    if fields.get(0)? != Some(*b".snd") {
        return Ok(None);
    }
    let mut word = |i: u64| -> Result<Option<u32>> { Ok(fields.get(4 * i)?.map(u32::from_be_bytes)) };
    let (Some(start), Some(size), Some(code), Some(rate_hz), Some(n_channels)) =
        (word(1)?, word(2)?, word(3)?, word(4)?, word(5)?)
    else {
        return Ok(None);
    };
    let encoding = match code {
        1 => Encoding::MuLaw,
        2..=5 => Encoding::Signed(code as usize - 1),
        6 => Encoding::Float(4),
        7 => Encoding::Float(8),
        27 => Encoding::ALaw,
        _ => return Ok(None),
    };
    let (start, size) = (u64::from(start), u64::from(size));
    let n_bytes = (!is_placeholder(size, len.saturating_sub(start))).then_some(size);
    let n_channels = n_channels as usize;
    let order = Order::Big;
    Ok(Some(Layout { container: "au", encoding, order, rate_hz, n_channels, start, n_bytes, confirmed: false }))
}
