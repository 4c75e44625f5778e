//! What this backend keeps behind an `engine::backend::Buffer`: [`CpuBuffer`]. Weights are borrowed from the mapped
//! file; a layout that only some ops want is made when the first of them is compiled, and kept with the buffer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::Error;
use engine::backend::{Buffer, WeightData};
use engine::error::Result;
use kernels::cpu::Kernels;
use kernels::quant::Format;

use super::NAME;
use super::mem::{Storage, View, ViewMut};
use super::pool::Pool;

/// Extents of a convolution's weight, `[c_out, c_in, kh, kw]`.
pub(super) type ConvDims = [usize; 4];

/// Memory with the pool whose turns guard it, and layouts derived from it.
pub(super) struct CpuBuffer {
    pub(super) storage: Arc<Storage>,
    pool: Arc<Pool>,
    kind: Kind,
    /// How often it is lent, or [`WRITING`].
    users: AtomicUsize,
}

/// What a buffer holds.
pub(super) enum Kind {
    Arena,
    State,
    /// A weight, with its convolution kernels in the order of pixels, for every view of it that a graph convolves with. All
    /// graphs share them.
    Weight {
        conv: Mutex<Vec<(ConvDims, Arc<Storage>)>>,
    },
}

/// Something writes the buffer.
const WRITING: usize = usize::MAX;

/// The right to write a buffer, given back when it is dropped.
pub(super) struct Writing<'a>(&'a AtomicUsize);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

impl CpuBuffer {
    /// Wraps memory for the engine.
    pub(super) fn wrap(bytes: usize, storage: Storage, kind: Kind, pool: &Arc<Pool>) -> Buffer {
        let (storage, pool) = (Arc::new(storage), Arc::clone(pool));
        let inner = Self { storage, pool, kind, users: AtomicUsize::new(0) };
        Buffer::new(bytes, Arc::new(inner))
    }

    /// The inside of an arena, shared. Only arenas are lent: runs write states without looking for loans.
    ///
    /// Errors: `Device` for another buffer, and if another backend made it.
    pub(super) fn arena(buffer: &Buffer, pool: &Arc<Pool>) -> Result<Arc<Self>> {
        let inside = Self::shared(buffer, pool)?;
        match inside.kind {
            Kind::Arena => Ok(inside),
            Kind::State | Kind::Weight { .. } => Err(refused("activations in a buffer of another kind")),
        }
    }

    /// A weight in the mapping.
    pub(super) fn borrow(w: &WeightData<'_>, pool: &Arc<Pool>) -> Buffer {
        Self::wrap(w.bytes().len(), Storage::mapped(w.store, w.id), Kind::Weight { conv: Mutex::default() }, pool)
    }

    /// The inside of a buffer. Errors: `Refused` if another backend made it.
    pub(super) fn of<'a>(buffer: &'a Buffer, pool: &Arc<Pool>) -> Result<&'a Self> {
        buffer.storage_ref::<Self>().filter(|b| Arc::ptr_eq(&b.pool, pool)).ok_or_else(foreign)
    }

    /// The same, shared.
    pub(super) fn shared(buffer: &Buffer, pool: &Arc<Pool>) -> Result<Arc<Self>> {
        buffer.storage::<Self>().filter(|b| Arc::ptr_eq(&b.pool, pool)).ok_or_else(foreign)
    }

    /// The right to write. Errors: `Refused` for memory of a mapped file, while the buffer is lent, and while something
    /// else writes it.
    pub(super) fn writing(&self) -> Result<Writing<'_>> {
        if !self.storage.is_owned() {
            return Err(refused("weights cannot be written"));
        }
        match self.users.compare_exchange(0, WRITING, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Writing(&self.users)),
            Err(WRITING) => Err(refused("something else writes the buffer")),
            Err(_) => Err(refused("the results of the last run are still lent")),
        }
    }

    /// Counts a loan. Errors: `Refused` while something writes.
    pub(super) fn lend(&self) -> Result<()> {
        let lent = |n: usize| n.checked_add(1).filter(|&n| n != WRITING);
        let counted = self.users.fetch_update(Ordering::Acquire, Ordering::Relaxed, lent);
        counted.map(|_| ()).map_err(|_| refused("something writes the buffer"))
    }

    /// Counts a loan that has ended.
    pub(super) fn take_back(&self) {
        self.users.fetch_sub(1, Ordering::Release);
    }

    /// A convolution's weight as `[c_out, kh, kw, c_in]` in f32: the order of pixels with channels innermost.
    pub(super) fn conv_weight(&self, format: Format, dims: ConvDims, kernels: Kernels) -> Result<Arc<Storage>> {
        let Kind::Weight { conv } = &self.kind else {
            return Err(refused("a convolution with a buffer that is no weight"));
        };
        let mut made = conv.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, storage)) = made.iter().find(|(d, _)| *d == dims) {
            return Ok(Arc::clone(storage));
        }
        let storage = pack_conv(&self.storage, format, dims, kernels)?;
        made.push((dims, Arc::clone(&storage)));
        Ok(storage)
    }

    /// Bytes of layouts that were derived from it.
    pub(super) fn derived_bytes(&self) -> usize {
        let Kind::Weight { conv } = &self.kind else { return 0 };
        conv.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, storage)| storage.len()).sum()
    }
}

#[cold]
fn foreign() -> Error {
    refused("a buffer of another backend")
}

#[cold]
fn refused(what: &str) -> Error {
    Error::Refused { backend: NAME.into(), what: what.into() }
}

/// Rows `[c_in, kh, kw]` of any float format as rows `[kh, kw, c_in]` of f32.
#[allow(unsafe_code, reason = "fills memory that nobody else knows yet")]
pub(super) fn pack_conv(from: &Arc<Storage>, format: Format, dims: ConvDims, kernels: Kernels) -> Result<Arc<Storage>> {
    let [c_out, c_in, kh, kw] = dims;
    let (taps, k) = (kh * kw, c_in * kh * kw);
    let rows = View::<u8>::dense(from, 0, c_out, format.row_bytes(k))?;
    let packed = Arc::new(Storage::zeroed(c_out * k * size_of::<f32>(), "a convolution's weight")?.in_large_pages());
    let out = ViewMut::<f32>::dense(&packed, 0, c_out, k)?;
    let mut row = vec![0.0; k];
    for o in 0..c_out {
        kernels.decode_row(format, rows.row(o), &mut row);
        // SAFETY: `packed` is known to nobody else.
        let out = unsafe { out.row_mut(o) };
        for (c, plane) in row.chunks_exact(taps).enumerate() {
            for (pixel, x) in out.chunks_exact_mut(c_in).zip(plane) {
                pixel[c] = *x;
            }
        }
    }
    Ok(packed)
}
