//! Memory of the CPU backend and typed windows into it: all pointer arithmetic of the CPU side. Read [`View`] first.
//!
//! A window is resolved to an address once, when a graph is compiled, and keeps the memory it looks into alive. Reading
//! is safe; whoever asks for a `&mut` says why nobody else looks at those elements meanwhile.

#![allow(unsafe_code, reason = "typed windows into untyped memory")]

use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Pod;
use engine::Error;
use engine::error::Result;
use engine::weights::{WeightId, WeightStore};

use super::region::Worker;

/// Alignment of owned memory and of every tensor in an arena: a cache line, and a vector of the widest instruction set.
pub(super) const ALIGNMENT: usize = 64;

/// A multiple of the size of a page on every system.
const PAGE: usize = 64 * 1024;

/// Bytes that a buffer of this backend stands for.
pub(super) struct Storage(Bytes);

enum Bytes {
    Owned(Owned),
    Mapped { store: WeightStore, id: WeightId },
}

impl Storage {
    /// Zeroed memory. `what` names it in the error.
    pub(super) fn zeroed(bytes: usize, what: &str) -> Result<Self> {
        let out_of_memory = || Error::OutOfMemory { what: what.to_owned(), wanted: bytes, free: None };
        Ok(Self(Bytes::Owned(Owned::zeroed(bytes.max(1)).ok_or_else(out_of_memory)?)))
    }

    /// Addresses whose bytes are zero and get memory when they are first touched. `what` names them in the error.
    pub(super) fn reserved(bytes: usize, what: &str) -> Result<Self> {
        let out_of_memory = || Error::OutOfMemory { what: what.to_owned(), wanted: bytes, free: None };
        Ok(Self(Bytes::Owned(Owned::reserved(bytes.max(1)).ok_or_else(out_of_memory)?)))
    }

    /// Gives the memory of whole pages inside a range back to the system. Their bytes are zero, or as before.
    ///
    /// # Safety
    ///
    /// No reference to these bytes is used meanwhile.
    pub(super) unsafe fn give_back(&self, range: Range<usize>) {
        let Bytes::Owned(memory) = &self.0 else { return };
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end.min(self.len()) / PAGE * PAGE);
        if let Some(len) = end.checked_sub(start).filter(|&len| len > 0) {
            // SAFETY: the range lies inside the memory, and nobody uses it meanwhile, as the caller guarantees.
            unsafe { memory.give_back(start, len) };
        }
    }

    /// Asks for large pages: for memory that will be used as a whole, since a page of it counts when it is first touched.
    pub(super) fn in_large_pages(self) -> Self {
        if let Bytes::Owned(memory) = &self.0 {
            memory.want_large_pages();
        }
        self
    }

    /// The mapped bytes of a weight, which stay mapped as long as this lives.
    pub(super) fn mapped(store: &WeightStore, id: WeightId) -> Self {
        Self(Bytes::Mapped { store: store.clone(), id })
    }

    /// The first byte, and how many may be used.
    fn raw(&self) -> (*mut u8, usize) {
        match &self.0 {
            Bytes::Owned(memory) => memory.raw(),
            Bytes::Mapped { store, id } => mapped(store, *id),
        }
    }

    /// Number of bytes that may be used.
    pub(super) fn len(&self) -> usize {
        self.raw().1
    }

    /// Whether the bytes may be written.
    pub(super) fn is_owned(&self) -> bool {
        match self.0 {
            Bytes::Owned(_) => true,
            Bytes::Mapped { .. } => false,
        }
    }

    fn start(&self) -> *mut u8 {
        self.raw().0
    }

    /// A range of the bytes. Panics if it does not fit.
    ///
    /// # Safety
    ///
    /// Nobody writes these bytes while the slice lives.
    pub(super) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len(), "bytes of a buffer");
        // SAFETY: the range lies inside the memory, as asserted.
        let start = unsafe { self.start().add(range.start) };
        // SAFETY: the bytes are initialised, and the caller guarantees that nobody writes them.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    /// A range of owned bytes. Panics if it does not fit or the bytes are mapped.
    ///
    /// # Safety
    ///
    /// No other reference to these bytes is used while the slice lives.
    #[allow(clippy::mut_from_ref, reason = "exclusive by the caller's guarantee")]
    pub(super) unsafe fn bytes_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len() && self.is_owned(), "bytes of an owned buffer");
        // SAFETY: the range lies inside the memory, as asserted.
        let start = unsafe { self.start().add(range.start) };
        // SAFETY: the bytes are initialised and owned, and the caller guarantees that the slice is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }
}

/// Memory of our own, straight from the system.
#[cfg(not(miri))]
struct Owned(memmap2::MmapRaw);

#[cfg(not(miri))]
impl Owned {
    /// `None` where the system has no more.
    fn zeroed(bytes: usize) -> Option<Self> {
        memmap2::MmapMut::map_anon(bytes).ok().map(|map| Self(map.into()))
    }

    /// As [`Self::zeroed`], for memory of which little may ever be used.
    fn reserved(bytes: usize) -> Option<Self> {
        let memory: memmap2::MmapRaw = memmap2::MmapOptions::new().len(bytes).no_reserve_swap().map_anon().ok()?.into();
        // Where large pages are the rule, a sequence would get megabytes for its first token. A hint.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::NoHugePage);
        Some(Self(memory))
    }

    /// Gives whole pages back to the system.
    ///
    /// # Safety
    ///
    /// The range lies inside the memory, and no reference to these bytes is used meanwhile.
    unsafe fn give_back(&self, start: usize, len: usize) {
        #[cfg(unix)]
        {
            #[cfg(target_os = "linux")]
            let advice = memmap2::UncheckedAdvice::DontNeed;
            #[cfg(not(target_os = "linux"))]
            let advice = memmap2::UncheckedAdvice::Free;
            // SAFETY: these pages are private and anonymous, so their bytes stay initialised; nobody uses them meanwhile, as
            // the caller guarantees. It is a hint.
            let _ = unsafe { self.0.unchecked_advise_range(advice, start, len) };
        }
        #[cfg(not(unix))]
        let _ = (start, len);
    }

    fn want_large_pages(&self) {
        #[cfg(target_os = "linux")]
        // A hint: without it nothing is wrong, only slower.
        let _ = self.0.advise(memmap2::Advice::HugePage);
    }

    fn raw(&self) -> (*mut u8, usize) {
        (self.0.as_mut_ptr(), self.0.len())
    }
}

/// The same from the allocator, since Miri knows no mappings: every access is then checked against this allocation.
#[cfg(miri)]
struct Owned {
    start: *mut u8,
    layout: std::alloc::Layout,
}

#[cfg(miri)]
// SAFETY: the memory belongs to this alone, and who accesses it is up to the holder of the pointer.
unsafe impl Send for Owned {}
#[cfg(miri)]
// SAFETY: as above.
unsafe impl Sync for Owned {}

#[cfg(miri)]
impl Owned {
    fn zeroed(bytes: usize) -> Option<Self> {
        let layout = std::alloc::Layout::from_size_align(bytes, ALIGNMENT).ok()?;
        // SAFETY: callers ask for one byte at least.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        (!start.is_null()).then_some(Self { start, layout })
    }

    fn reserved(bytes: usize) -> Option<Self> {
        Self::zeroed(bytes)
    }

    /// Zeroes them, as the system may.
    ///
    /// # Safety
    ///
    /// The range lies inside the memory, and no reference to these bytes is used meanwhile.
    unsafe fn give_back(&self, start: usize, len: usize) {
        // SAFETY: the caller's guarantee.
        let first = unsafe { self.start.add(start) };
        // SAFETY: as above.
        unsafe { first.write_bytes(0, len) };
    }

    fn want_large_pages(&self) {}

    fn raw(&self) -> (*mut u8, usize) {
        (self.start, self.layout.size())
    }
}

#[cfg(miri)]
impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made in `zeroed` with this layout.
        unsafe { std::alloc::dealloc(self.start, self.layout) };
    }
}

/// A weight's bytes. Cold: nobody looks for them but who compiles.
#[cold]
fn mapped(store: &WeightStore, id: WeightId) -> (*mut u8, usize) {
    let bytes = store.bytes(id);
    (bytes.as_ptr().cast_mut(), bytes.len())
}

/// What begins at a byte and ends outside of its buffer.
#[cold]
pub(super) fn outside(byte: usize, len: usize) -> Error {
    let what = format!("a tensor at byte {byte} does not fit its buffer of {len} bytes");
    Error::Refused { backend: super::NAME.into(), what }
}

/// Most extents outside a row.
pub(super) const OUTER: usize = 3;

/// Where the elements of a window lie in their storage, in elements of the window's type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// First byte in the storage.
    pub(super) byte: usize,
    /// Elements of a row.
    pub(super) row_len: usize,
    /// Distance of neighbours in a row.
    pub(super) inner: usize,
    /// Extent and stride of every dimension outside a row, outermost first; unused ones lead and are `(1, 0)`.
    pub(super) outer: [(usize, usize); OUTER],
}

impl Window {
    /// Elements from the first to the last one, both included; `None` without any and on overflow.
    fn span(&self) -> Option<usize> {
        let reach = |(extent, stride): (usize, usize)| extent.checked_sub(1)?.checked_mul(stride);
        let start = reach((self.row_len, self.inner))?;
        let last = self.outer.iter().try_fold(start, |sum, &outer| sum.checked_add(reach(outer)?))?;
        last.checked_add(1)
    }

    /// The same rows with dimensions joined that lie densely inside each other.
    fn joined(mut self) -> Self {
        let mut joined = [(1, 0); OUTER];
        // Filled from the back: extents outermost last.
        let mut n = 0usize;
        for &(extent, stride) in self.outer.iter().rev().filter(|(extent, _)| *extent != 1) {
            let inside = n.checked_sub(1).map(|i| &mut joined[OUTER - 1 - i]);
            match inside {
                Some((size, step)) if stride == *size * *step => *size *= extent,
                Some(_) | None => {
                    joined[OUTER - 1 - n] = (extent, stride);
                    n += 1;
                }
            }
        }
        self.outer = joined;
        self
    }
}

/// A typed window that can be read: rows, numbered through all outer dimensions.
pub(super) struct View<T> {
    storage: Arc<Storage>,
    base: *const T,
    n_rows: usize,
    row_len: usize,
    inner: usize,
    outer: [(usize, usize); OUTER],
    elements: PhantomData<T>,
}

// SAFETY: `base` points into `storage`, which is `Send` and `Sync`; elements are plain old bytes.
unsafe impl<T: Pod + Send + Sync> Send for View<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Send + Sync> Sync for View<T> {}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        Self { storage: Arc::clone(&self.storage), ..*self }
    }
}

impl<T: Pod> View<T> {
    /// Resolves a window. Errors: `Refused` if it does not fit the storage or is not aligned.
    pub(super) fn new(storage: &Arc<Storage>, window: Window) -> Result<Self> {
        let base = Self::base(storage, window.byte, window.span())?;
        let joined = window.joined();
        Ok(Self {
            storage: Arc::clone(storage),
            base,
            n_rows: joined.outer.iter().map(|(extent, _)| extent).product(),
            row_len: joined.row_len,
            inner: if joined.row_len == 1 { 1 } else { joined.inner },
            outer: joined.outer,
            elements: PhantomData,
        })
    }

    /// What most windows are: rows that begin `stride` elements after each other. Errors: as for [`Self::new`].
    pub(super) fn uniform(
        storage: &Arc<Storage>,
        byte: usize,
        n_rows: usize,
        row_len: usize,
        stride: usize,
    ) -> Result<Self> {
        let before_last = n_rows.checked_sub(1).and_then(|n| n.checked_mul(stride));
        let base = Self::base(storage, byte, before_last.and_then(|n| n.checked_add(row_len)))?;
        let outer = [(1, 0), (1, 0), (n_rows, stride)];
        Ok(Self { storage: Arc::clone(storage), base, n_rows, row_len, inner: 1, outer, elements: PhantomData })
    }

    /// Rows without gaps. Errors: as for [`Self::new`].
    pub(super) fn dense(storage: &Arc<Storage>, byte: usize, n_rows: usize, row_len: usize) -> Result<Self> {
        Self::uniform(storage, byte, n_rows, row_len, row_len)
    }

    /// The address of a byte from which on `n` elements fit the storage.
    fn base(storage: &Storage, byte: usize, n: Option<usize>) -> Result<*const T> {
        let (start, len) = storage.raw();
        let end = n.filter(|&n| n > 0).and_then(|n| n.checked_mul(size_of::<T>())).and_then(|n| n.checked_add(byte));
        if end.is_none_or(|end| end > len) {
            return Err(outside(byte, len));
        }
        // SAFETY: the byte lies inside the storage.
        let base = unsafe { start.add(byte) }.cast_const().cast::<T>();
        if base.is_aligned() { Ok(base) } else { Err(outside(byte, len)) }
    }

    /// Number of rows.
    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Elements of a row.
    pub(super) fn row_len(&self) -> usize {
        self.row_len
    }

    /// Whether all rows are equally far apart.
    pub(super) fn is_uniform(&self) -> bool {
        self.outer[OUTER - 2].0 == 1
    }

    /// Whether the rows lie in one piece.
    pub(super) fn is_contiguous(&self) -> bool {
        self.inner == 1 && (self.n_rows == 1 || self.is_uniform() && self.outer[OUTER - 1].1 == self.row_len)
    }

    /// Distance of neighbours in a row.
    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    /// Elements before the first one of row `r`. Panics past the last row.
    fn offset(&self, r: usize) -> usize {
        assert!(r < self.n_rows, "row {r} of {}", self.n_rows);
        if self.is_uniform() {
            return r * self.outer[OUTER - 1].1;
        }
        let mut rest = r;
        let mut offset = 0;
        for &(extent, stride) in self.outer.iter().rev() {
            offset += rest % extent * stride;
            rest /= extent;
        }
        offset
    }

    /// `n` elements from `at` on.
    fn elements(&self, at: usize, n: usize) -> &[T] {
        // SAFETY: callers pass offsets of rows, which `new` checked to lie inside the storage.
        let start = unsafe { self.base.add(at) };
        // SAFETY: the elements lie inside the storage; whoever holds a `&mut` to some of them has guaranteed that nobody
        // reads them meanwhile.
        unsafe { std::slice::from_raw_parts(start, n) }
    }

    /// Row `r`, whose elements lie side by side.
    pub(super) fn row(&self, r: usize) -> &[T] {
        assert!(self.inner == 1, "a strided row");
        self.elements(self.offset(r), self.row_len)
    }

    /// Elements `range` of row `r`, which lie side by side. Only they are borrowed: others may write the rest of the row.
    pub(super) fn part(&self, r: usize, range: Range<usize>) -> &[T] {
        assert!(self.inner == 1 && range.start <= range.end && range.end <= self.row_len, "elements of a row");
        self.elements(self.offset(r) + range.start, range.len())
    }

    /// Row `r` from its first element to its last one, with [`Self::inner`] between neighbours.
    pub(super) fn strided_row(&self, r: usize) -> &[T] {
        self.elements(self.offset(r), (self.row_len - 1) * self.inner + 1)
    }

    /// Rows in one piece. Panics unless the window is contiguous.
    pub(super) fn rows(&self, rows: Range<usize>) -> &[T] {
        assert!(self.is_contiguous() && rows.start <= rows.end && rows.end <= self.n_rows, "contiguous rows");
        self.elements(rows.start * self.row_len, rows.len() * self.row_len)
    }

    /// `n` times `width` rows that lie side by side, the first at `first`, the others `step` row numbers apart: the elements
    /// from the first row's first to the last row's last one, and how far those at `first` and `first + step` are apart.
    /// Panics if the distance is not the same everywhere.
    pub(super) fn every(&self, first: usize, n: usize, step: usize, width: usize) -> (&[T], usize) {
        assert!(self.inner == 1 && n > 0 && width > 0, "rows");
        let start = self.offset(first);
        let len = width * self.row_len;
        assert!(self.offset(first + width - 1) + self.row_len == start + len, "rows side by side");
        if n == 1 {
            return (self.elements(start, len), len);
        }
        let stride = self.offset(first + step) - start;
        let last = self.offset(first + (n - 1) * step);
        assert!(last - start == (n - 1) * stride && stride >= len, "rows at one distance");
        (self.elements(start, last - start + len), stride)
    }
}

/// A typed window that can be written.
#[derive(Clone)]
pub(super) struct ViewMut<T: Pod>(View<T>);

impl<T: Pod> Deref for ViewMut<T> {
    type Target = View<T>;

    fn deref(&self) -> &View<T> {
        &self.0
    }
}

impl<T: Pod> ViewMut<T> {
    /// Rows without gaps. Errors: as for [`Self::of`].
    pub(super) fn dense(storage: &Arc<Storage>, byte: usize, n_rows: usize, row_len: usize) -> Result<Self> {
        Self::of(View::dense(storage, byte, n_rows, row_len)?)
    }

    /// A window to write through. Errors: `Refused` if it looks into a mapped file or has strided rows.
    pub(super) fn of(view: View<T>) -> Result<Self> {
        if !view.storage.is_owned() || view.inner != 1 {
            let what = "a result in memory that cannot be written".into();
            return Err(Error::Refused { backend: super::NAME.into(), what });
        }
        Ok(Self(view))
    }

    /// Elements `range` of row `r`.
    ///
    /// # Safety
    ///
    /// No other reference to these elements is used while the slice lives.
    #[allow(clippy::mut_from_ref, reason = "exclusive by the caller's guarantee")]
    pub(super) unsafe fn part_mut(&self, r: usize, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.row_len, "elements of a row");
        let at = self.offset(r) + range.start;
        // SAFETY: the offset lies inside the storage, as `View::new` checked.
        let start = unsafe { self.base.cast_mut().add(at) };
        // SAFETY: the elements are initialised and owned, and the caller guarantees that the slice is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }

    /// Row `r`.
    ///
    /// # Safety
    ///
    /// No other reference to the row is used while the slice lives.
    #[allow(clippy::mut_from_ref, reason = "exclusive by the caller's guarantee")]
    pub(super) unsafe fn row_mut(&self, r: usize) -> &mut [T] {
        // SAFETY: the caller's guarantee.
        unsafe { self.part_mut(r, 0..self.row_len) }
    }

    /// Rows in one piece. Panics unless the window is contiguous.
    ///
    /// # Safety
    ///
    /// No other reference to the rows is used while the slice lives.
    #[allow(clippy::mut_from_ref, reason = "exclusive by the caller's guarantee")]
    pub(super) unsafe fn rows_mut(&self, rows: Range<usize>) -> &mut [T] {
        assert!(self.is_contiguous() && rows.start <= rows.end && rows.end <= self.n_rows, "contiguous rows");
        // SAFETY: the offset lies inside the storage, as `View::new` checked.
        let start = unsafe { self.base.cast_mut().add(rows.start * self.row_len) };
        // SAFETY: the elements are initialised and owned, and the caller guarantees that the slice is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(start, rows.len() * self.row_len) }
    }
}

/// Memory of its own for every thread that runs a step.
#[derive(Clone)]
pub(super) struct WorkerScratch(ViewMut<f32>);

impl WorkerScratch {
    /// Bytes for `n_workers` threads with `len` f32s each.
    pub(super) fn bytes(n_workers: usize, len: usize) -> usize {
        n_workers * Self::stride(len) * size_of::<f32>()
    }

    /// The window behind `byte`, of the size that [`Self::bytes`] gives.
    pub(super) fn new(storage: &Arc<Storage>, byte: usize, n_workers: usize, len: usize) -> Result<Self> {
        Ok(Self(ViewMut::of(View::uniform(storage, byte, n_workers, len, Self::stride(len))?)?))
    }

    /// Threads do not share cache lines.
    fn stride(len: usize) -> usize {
        len.next_multiple_of(ALIGNMENT / size_of::<f32>()).max(ALIGNMENT / size_of::<f32>())
    }

    /// This thread's part. What it holds does not matter.
    pub(super) fn of<'a>(&'a self, worker: &'a mut Worker) -> &'a mut [f32] {
        // SAFETY: a worker's number is held by one thread at a time, and the worker is borrowed as long as the slice.
        unsafe { self.0.row_mut(worker.index()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(n: usize) -> Arc<Storage> {
        let storage = Arc::new(Storage::zeroed(n * 4, "test").unwrap());
        let all = ViewMut::<f32>::dense(&storage, 0, 1, n).unwrap();
        // SAFETY: nobody else knows the storage.
        for (i, x) in unsafe { all.row_mut(0) }.iter_mut().enumerate() {
            *x = i as f32;
        }
        storage
    }

    #[test]
    fn rows_follow_strides() {
        let storage = filled(120);
        // [2, 3, 4, 5] seen as [3, 2, 4] rows of 5.
        let window = Window { byte: 0, row_len: 5, inner: 1, outer: [(3, 20), (2, 60), (4, 5)] };
        let view = View::<f32>::new(&storage, window).unwrap();
        assert_eq!(view.n_rows(), 24);
        assert!(!view.is_uniform());
        // Row [2, 1, 3].
        assert_eq!(view.row(2 * 8 + 4 + 3), &[115.0, 116.0, 117.0, 118.0, 119.0]);
        // Rows [0, 0, 1], [1, 0, 1] and [2, 0, 1].
        let (rows, stride) = view.every(1, 3, 8, 1);
        assert_eq!((rows[0], rows[rows.len() - 1], rows.len(), stride), (5.0, 49.0, 45, 20));
        // Each with the row behind it.
        let (rows, stride) = view.every(1, 3, 8, 2);
        assert_eq!((rows[0], rows[rows.len() - 1], rows.len(), stride), (5.0, 54.0, 50, 20));
    }

    #[test]
    fn dense_dimensions_are_joined() {
        let storage = filled(120);
        let window = Window { byte: 40, row_len: 4, inner: 1, outer: [(2, 48), (3, 16), (2, 8)] };
        let view = View::<f32>::new(&storage, window).unwrap();
        assert!(view.is_uniform() && !view.is_contiguous());
        assert_eq!(view.row(11), &[98.0, 99.0, 100.0, 101.0]);
    }

    #[test]
    fn strided_rows_give_every_nth_element() {
        let storage = filled(12);
        let window = Window { byte: 4, row_len: 3, inner: 4, outer: [(1, 0), (1, 0), (3, 1)] };
        let view = View::<f32>::new(&storage, window).unwrap();
        let row: Vec<f32> = view.strided_row(2).iter().step_by(view.inner()).copied().collect();
        assert_eq!(row, [3.0, 7.0, 11.0]);
    }

    #[test]
    fn windows_past_the_end_are_refused() {
        let storage = filled(16);
        assert!(View::<f32>::dense(&storage, 0, 4, 4).is_ok());
        assert!(View::<f32>::dense(&storage, 4, 4, 4).is_err());
        assert!(View::<f32>::dense(&storage, 2, 1, 4).is_err());
        assert!(View::<f32>::dense(&storage, 0, usize::MAX, 4).is_err());
        assert!(View::<f32>::dense(&storage, 0, 0, 4).is_err());
        let huge = Window { byte: 0, row_len: 2, inner: usize::MAX, outer: [(1, 0); OUTER] };
        assert!(View::<f32>::new(&storage, huge).is_err());
    }

    #[test]
    fn memory_is_aligned_and_zeroed() {
        let storage = Arc::new(Storage::zeroed(1000, "test").unwrap());
        assert_eq!(storage.start().align_offset(ALIGNMENT), 0);
        // SAFETY: nobody writes.
        assert!(unsafe { storage.bytes(0..1000) }.iter().all(|b| *b == 0));
        assert!(Storage::zeroed(usize::MAX, "test").is_err());
    }
}
