//! Snapshots: the memory of one sequence as bytes. [`Writer`] makes them, [`read`] takes them apart, [`model_identity`]
//! says of which model they are.
//!
//! ```text
//! "tympanST"  version u32  n_sections u32  model u64  n_past u64  n_pending u64  crc u32 of all before
//! then for every state of the model, in its order, that of pending rows last and only where there are some:  bytes u64  crc u32 of length and content  content
//! ```
//!
//! Integers are little endian. A section holds what [`StateSpec::held_bytes`] counts, so a snapshot fits every memory of
//! the same model with room for its tokens.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::state::{Role, StateSpec};
use crate::weights::WeightStore;

const MAGIC: [u8; 8] = *b"tympanST";

/// Changes with the layout of the bytes, and with that of any state.
const VERSION: u32 = 2;

/// Bytes of every weight that count for a model's identity: enough to tell two trainings of one architecture apart, few
/// enough that asking does not read the file.
const SAMPLE_BYTES: usize = 64;

/// Collects sections.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// The header for a sequence of `n_past` tokens, of which the states do not fold the last `n_pending`.
    pub(crate) fn new(model: u64, n_past: usize, n_pending: usize, n_sections: usize) -> Self {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(u32::try_from(n_sections).expect("models have far fewer states").to_le_bytes());
        out.extend(model.to_le_bytes());
        out.extend((n_past as u64).to_le_bytes());
        out.extend((n_pending as u64).to_le_bytes());
        let crc = crc32c(&[&out]);
        out.extend(crc.to_le_bytes());
        Self(out)
    }

    /// Appends the content of the next state.
    pub(crate) fn section(&mut self, content: &[u8]) {
        let len = (content.len() as u64).to_le_bytes();
        self.0.extend(len);
        self.0.extend(crc32c(&[&len, content]).to_le_bytes());
        self.0.extend_from_slice(content);
    }

    /// The snapshot.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// A snapshot whose header is sound.
pub(crate) struct Snapshot<'a> {
    /// Tokens that the sequence has seen.
    pub n_past: usize,
    /// Those of them that are pending.
    pub n_pending: usize,
    n_sections: usize,
    rest: Reader<'a>,
}

/// Reads and checks the header.
///
/// Errors: `Snapshot` for other bytes, another version, damage, or another model.
pub(crate) fn read(bytes: &[u8], model: u64) -> Result<Snapshot<'_>> {
    let mut rest = Reader(bytes);
    if rest.array("the header")? != MAGIC {
        return Err(bad("these bytes are no snapshot"));
    }
    let version = u32::from_le_bytes(rest.array("the header")?);
    if version != VERSION {
        return Err(bad(format!("want version {VERSION}, got {version}")));
    }
    let n_sections = u32::from_le_bytes(rest.array("the header")?);
    let found = u64::from_le_bytes(rest.array("the header")?);
    let n_past = u64::from_le_bytes(rest.array("the header")?);
    let n_pending = u64::from_le_bytes(rest.array("the header")?);
    let header = &bytes[..bytes.len() - rest.0.len()];
    if u32::from_le_bytes(rest.array("the header")?) != crc32c(&[header]) {
        return Err(bad("the header is damaged"));
    }
    if found != model {
        return Err(bad("it is of another model, or of other types of its states"));
    }
    let n_past = usize::try_from(n_past).map_err(|_| bad(format!("{n_past} tokens")))?;
    let n_pending = usize::try_from(n_pending).ok().filter(|&n| n < n_past.max(1));
    let n_pending = n_pending.ok_or_else(|| bad(format!("more pending rows than its {n_past} tokens have")))?;
    Ok(Snapshot { n_past, n_pending, n_sections: n_sections as usize, rest })
}

impl<'a> Snapshot<'a> {
    /// The contents, which must have exactly these lengths.
    ///
    /// Errors: `Snapshot` for another number of sections, another length, bytes behind the end, or damage.
    pub(crate) fn sections(self, lengths: impl ExactSizeIterator<Item = usize>) -> Result<Vec<&'a [u8]>> {
        if self.n_sections != lengths.len() {
            return Err(bad(format!("want {} sections, got {}", lengths.len(), self.n_sections)));
        }
        let mut rest = self.rest;
        let mut sections = Vec::with_capacity(lengths.len());
        for (i, want) in lengths.enumerate() {
            let len: [u8; 8] = rest.array("a section")?;
            let crc = u32::from_le_bytes(rest.array("a section")?);
            if u64::from_le_bytes(len) != want as u64 {
                return Err(bad(format!("section {i}: want {want} bytes, got {}", u64::from_le_bytes(len))));
            }
            let content = rest.take(want, "a section")?;
            if crc != crc32c(&[&len, content]) {
                return Err(bad(format!("section {i} is damaged")));
            }
            sections.push(content);
        }
        if rest.0.is_empty() { Ok(sections) } else { Err(bad(format!("{} bytes behind its end", rest.0.len()))) }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or_else(|| bad(format!("it ends inside {what}")))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N, what)?.try_into().expect("as many bytes as were taken"))
    }
}

fn bad(what: impl Into<String>) -> Error {
    Error::Snapshot { what: what.into() }
}

/// A number that differs between models: architecture, states but for their number of positions, and name, type, shape
/// and first bytes of every weight. The order of the weights does not matter.
pub(crate) fn model_identity(arch: &str, specs: &[StateSpec], weights: &WeightStore) -> u64 {
    let mut hash = Fnv::new();
    hash.bytes(arch.as_bytes());
    // States are stored as the machine computes with them.
    hash.bytes(&[u8::from(cfg!(target_endian = "big"))]);
    for spec in specs {
        let positions = match spec.role {
            Role::Key | Role::Value => 1,
            Role::Conv | Role::Ssm => 0,
            // How many rows there are is the session's business.
            Role::Pending => continue,
        };
        hash.bytes(format!("{} {:?} {}", spec.layer, spec.role, spec.dtype).as_bytes());
        hash.dims(&spec.shape.dims()[positions..]);
    }
    let weight = |name: &str, dtype: DType, dims: &[u32], bytes: &[u8]| {
        let mut hash = Fnv::new();
        hash.bytes(format!("{name} {dtype}").as_bytes());
        hash.dims(dims);
        hash.bytes(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
        hash.0
    };
    let of = weights.iter().map(|(id, w)| weight(&w.name, w.dtype, w.shape.dims(), weights.bytes(id)));
    of.fold(hash.0, u64::wrapping_add)
}

/// FNV-1a, 64 bits. Source: draft-eastlake-fnv, section 2.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// With the length, so that neighbours cannot be mistaken for each other.
    fn bytes(&mut self, bytes: &[u8]) {
        for b in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn dims(&mut self, dims: &[u32]) {
        dims.iter().for_each(|d| self.bytes(&d.to_le_bytes()));
    }
}

/// CRC-32C (Castagnoli) of the concatenated parts, reflected, polynomial 0x1EDC6F41. Source: RFC 3720, section 12.1.
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ CRC_TABLE[usize::from(crc as u8 ^ byte)];
    !parts.iter().fold(!0, |crc, part| part.iter().fold(crc, step))
}

const CRC_TABLE: [u32; 256] = {
    /// The polynomial with its bits reversed.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut i = 0;
    while i < table.len() {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_checksums_come_out() {
        // RFC 3720, appendix B.4.
        let counting: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        assert_eq!(crc32c(&[&counting]), 0x46dd_794e);
        assert_eq!(crc32c(&[&counting[..7], &counting[7..]]), 0x46dd_794e);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found() {
        let mut writer = Writer::new(7, 3, 0, 2);
        writer.section(b"keys and values");
        writer.section(b"");
        let bytes = writer.finish();
        let open = |bytes: &[u8]| {
            let snapshot = read(bytes, 7)?;
            let n_past = snapshot.n_past;
            snapshot.sections([15, 0].into_iter()).map(|s| (n_past, s.concat()))
        };
        assert_eq!(open(&bytes).unwrap(), (3, b"keys and values".to_vec()));
        for n in 0..bytes.len() {
            assert!(matches!(open(&bytes[..n]), Err(Error::Snapshot { .. })), "{n} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(open(&flipped), Err(Error::Snapshot { .. })), "bit {bit}");
        }
        assert!(open(&[&bytes[..], &[0]].concat()).is_err());
        assert!(read(&bytes, 8).is_err());
    }
}
