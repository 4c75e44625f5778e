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

/// Extents of some matrices, `[n, rows, columns]`.
pub(super) type Matrices = [usize; 3];

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
    /// A weight, with its matrices transposed, for every view of it that a graph wants so. All graphs share them.
    Weight {
        transposed: Mutex<Vec<(Matrices, Arc<Storage>)>>,
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
        Self::wrap(w.bytes().len(), Storage::mapped(w.store, w.id), Kind::Weight { transposed: Mutex::default() }, pool)
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

    /// The weight `[n, rows, columns]` as `[n, columns, rows]` in f32.
    pub(super) fn transposed(&self, format: Format, dims: Matrices, kernels: Kernels) -> Result<Arc<Storage>> {
        let Kind::Weight { transposed } = &self.kind else {
            return Err(refused("another layout of a buffer that is no weight"));
        };
        let mut made = transposed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, storage)) = made.iter().find(|(d, _)| *d == dims) {
            return Ok(Arc::clone(storage));
        }
        let storage = transpose(&self.storage, format, dims, kernels)?;
        made.push((dims, Arc::clone(&storage)));
        Ok(storage)
    }

    /// Bytes of layouts that were derived from it.
    pub(super) fn derived_bytes(&self) -> usize {
        let Kind::Weight { transposed } = &self.kind else { return 0 };
        transposed.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, storage)| storage.len()).sum()
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

/// Matrices of any float format, `[n, rows, columns]`, as `[n, columns, rows]` of f32.
#[allow(unsafe_code, reason = "fills memory that nobody else knows yet")]
pub(super) fn transpose(from: &Arc<Storage>, format: Format, dims: Matrices, kernels: Kernels) -> Result<Arc<Storage>> {
    let [n, rows, columns] = dims;
    let k = rows * columns;
    let matrices = View::<u8>::dense(from, 0, n, format.row_bytes(k))?;
    let made = Arc::new(Storage::zeroed(n * k * size_of::<f32>(), "a transposed weight")?.in_large_pages());
    let out = ViewMut::<f32>::dense(&made, 0, n, k)?;
    let mut matrix = vec![0.0; k];
    for i in 0..n {
        kernels.decode_row(format, matrices.row(i), &mut matrix);
        // SAFETY: `made` is known to nobody else.
        let out = unsafe { out.row_mut(i) };
        for (r, row) in matrix.chunks_exact(columns).enumerate() {
            for (column, x) in out.chunks_exact_mut(rows).zip(row) {
                column[r] = *x;
            }
        }
    }
    Ok(made)
}
