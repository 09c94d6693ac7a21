//! Aligned memory for direct I/O, pooled and registered with the ring where that is possible.
//!
//! Owns: [`AlignedBuf`], [`BufferPool`], the registration of pools with the ring of their worker, and
//! [`Piece`], what can be sent without being copied. Promises: a buffer starts at a multiple of [`ALIGN`],
//! its whole length is initialised, and it goes back to its pool when it is dropped, on whatever thread.
//! Must not: grow: a pool has the size it was made with, and an empty pool pushes back.
//!
//! Registered memory is pinned once, so that a write of 256 KiB does not look up and pin 64 pages each
//! time. It counts against RLIMIT_MEMLOCK (8 MiB is usual for a user other than root); where that is too
//! little the pool works unregistered, and the process says so once. A buffer used on another worker than
//! its own is simply not registered there.
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_uring::buf::fixed::FixedBufRegistry;
use tokio_uring::buf::{IoBuf, IoBufMut};

/// Alignment of every buffer: the page, which no direct I/O asks more than.
pub const ALIGN: usize = 4096;

/// Numbers the rings of the process, so that a buffer knows whether it is registered where it is used.
static RING_NUMBERS: AtomicU64 = AtomicU64::new(1);
/// The warning about too little lockable memory was given.
static WARNED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The ring of this thread; 0 when none runs.
    static RING: Cell<u64> = const { Cell::new(0) };
    /// What is registered with it. The index in the list is the index the kernel knows.
    static REGISTERED: RefCell<Registered> = const { RefCell::new(Registered { pools: Vec::new(), registry: None }) };
}

struct Registered {
    pools: Vec<Arc<Pool>>,
    registry: Option<FixedBufRegistry<PinnedMemory>>,
}

/// A ring begins or has ended on this thread.
pub(super) fn ring_begins() {
    RING.set(RING_NUMBERS.fetch_add(1, Ordering::Relaxed));
    forget_registered();
}

pub(super) fn ring_ended() {
    RING.set(0);
    forget_registered();
}

fn forget_registered() {
    let old = REGISTERED.replace(Registered { pools: Vec::new(), registry: None });
    drop(old);
}

/// Zeroed, aligned memory of its own.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: `Memory` owns its allocation alone; it has no thread affinity.
unsafe impl Send for Memory {}
// SAFETY: shared references to `Memory` give out nothing but its address.
unsafe impl Sync for Memory {}

impl Memory {
    fn zeroed(bytes: usize) -> Memory {
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size is not zero, see `layout`.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Memory { start, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.max(ALIGN), ALIGN).expect("a buffer is smaller than the address space")
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with the same layout, and nothing refers to it any more: buffers
        // of a pool keep their pool, operations keep their buffer.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.bytes)) }
    }
}

/// The memory of a pool and which of its buffers are free.
#[derive(Debug)]
struct Pool {
    memory: Memory,
    buffer_bytes: usize,
    free: Mutex<Vec<u32>>,
    /// The ring it is registered with (0: none) and the index there.
    ring: AtomicU64,
    index: AtomicU64,
}

impl Pool {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool as tokio-uring's registry takes it: an address and a length. Never read or written through.
struct PinnedMemory(Arc<Pool>);

// SAFETY: the memory has a fixed address for as long as the pool lives, which `self` keeps alive; it is
// initialised in full. The registry is used for its addresses only: no buffer is ever checked out of it,
// so nothing is read or written through it.
unsafe impl IoBuf for PinnedMemory {
    fn stable_ptr(&self) -> *const u8 {
        self.0.memory.start.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.memory.bytes
    }

    fn bytes_total(&self) -> usize {
        self.0.memory.bytes
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for PinnedMemory {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.memory.start.as_ptr()
    }

    unsafe fn set_init(&mut self, _bytes: usize) {}
}

/// A number of buffers of one size. Clones share the buffers.
#[derive(Clone, Debug)]
pub struct BufferPool(Arc<Pool>);

impl BufferPool {
    /// `count` buffers of `bytes` each (rounded up to [`ALIGN`]); registered with the ring of this thread
    /// if `register` and the kernel allows it. Without that it works as well, only slower.
    pub fn new(count: usize, bytes: usize, register: bool) -> BufferPool {
        let buffer_bytes = bytes.max(1).next_multiple_of(ALIGN);
        let pool = Arc::new(Pool {
            memory: Memory::zeroed(count * buffer_bytes),
            buffer_bytes,
            // Taken from the end: the lowest first, and the last one given back first, which is warm.
            free: Mutex::new((0..count as u32).rev().collect()),
            ring: AtomicU64::new(0),
            index: AtomicU64::new(0),
        });
        if register && count > 0 {
            register_with_ring(&pool);
        }
        BufferPool(pool)
    }

    /// A buffer, if one is free. A used one holds what its last user left.
    pub fn take(&self) -> Option<AlignedBuf> {
        let index = self.0.free().pop()?;
        let offset = index as usize * self.0.buffer_bytes;
        // SAFETY: `index` is below the count of buffers, so the offset is inside the allocation.
        let start = unsafe { self.0.memory.start.add(offset) };
        Some(AlignedBuf { start, bytes: self.0.buffer_bytes, home: Home::Pool(self.0.clone(), index) })
    }

    /// Gives a buffer back; the same as dropping it.
    pub fn give(&self, buf: AlignedBuf) {
        drop(buf);
    }

    /// Buffers that can be taken now.
    pub fn free(&self) -> usize {
        self.0.free().len()
    }

    /// Size of each buffer.
    pub fn buffer_bytes(&self) -> usize {
        self.0.buffer_bytes
    }

    /// Whether the memory is registered with a ring.
    pub fn is_registered(&self) -> bool {
        self.0.ring.load(Ordering::Relaxed) != 0
    }
}

/// Registers `pool` beside the pools registered before. The kernel keeps one list per ring, so the list is
/// made anew; indices of earlier pools stay what they are.
fn register_with_ring(pool: &Arc<Pool>) {
    let ring = RING.get();
    if ring == 0 {
        return;
    }
    REGISTERED.with_borrow_mut(|registered| {
        if let Some(old) = registered.registry.take() {
            // It was registered, so it can be taken back; should that fail, so will the next call.
            let _ = old.unregister();
        }
        let index = registered.pools.len();
        registered.pools.push(pool.clone());
        let mut result = register_list(registered);
        if let Err(e) = &result {
            warn_once(pool.memory.bytes, e);
            registered.pools.pop();
            if !registered.pools.is_empty() {
                result = register_list(registered);
            }
            if result.is_err() {
                for earlier in registered.pools.drain(..) {
                    earlier.ring.store(0, Ordering::Relaxed);
                }
            }
            return;
        }
        pool.index.store(index as u64, Ordering::Relaxed);
        pool.ring.store(ring, Ordering::Relaxed);
    });
}

fn register_list(registered: &mut Registered) -> io::Result<()> {
    let registry = FixedBufRegistry::new(registered.pools.iter().cloned().map(PinnedMemory));
    registry.register()?;
    registered.registry = Some(registry);
    Ok(())
}

fn warn_once(bytes: usize, error: &io::Error) {
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "{bytes} bytes of buffers cannot be registered with the kernel ({error}): running with \
             unregistered buffers, which costs some CPU; raise RLIMIT_MEMLOCK (LimitMEMLOCK= in systemd) \
             to avoid it"
        );
    }
}

/// An aligned buffer. Its full length is always initialised.
#[derive(Debug)]
pub struct AlignedBuf {
    start: NonNull<u8>,
    bytes: usize,
    home: Home,
}

#[derive(Debug)]
enum Home {
    Pool(Arc<Pool>, u32),
    /// Held for its `Drop` alone.
    Own(#[allow(dead_code)] Memory),
}

// SAFETY: the buffer is the only one that refers to its part of the memory (a pool hands an index out once
// until it comes back), and the memory has no thread affinity.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references allow reading only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A zeroed buffer outside of any pool, its length rounded up to [`ALIGN`].
    pub fn zeroed(bytes: usize) -> AlignedBuf {
        let memory = Memory::zeroed(bytes.max(1).next_multiple_of(ALIGN));
        AlignedBuf { start: memory.start, bytes: memory.bytes, home: Home::Own(memory) }
    }

    /// The index under which the ring of this thread knows the memory, if it does.
    pub(super) fn registered_index(&self) -> Option<u16> {
        let Home::Pool(pool, _) = &self.home else { return None };
        let ring = pool.ring.load(Ordering::Relaxed);
        (ring != 0 && ring == RING.get()).then(|| pool.index.load(Ordering::Relaxed) as u16)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Home::Pool(pool, index) = &self.home {
            pool.free().push(*index);
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `bytes` describe initialised memory that only this buffer refers to.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

/// Bytes that can be sent without being copied.
#[derive(Clone, Debug)]
pub enum Piece {
    Owned(Vec<u8>),
    Shared(Arc<[u8]>, Range<usize>),
    Buffer(Arc<AlignedBuf>, Range<usize>),
    Static(&'static [u8]),
}

impl Piece {
    /// The bytes. Panics where the range of a shared piece reaches beyond its buffer.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Piece::Owned(bytes) => bytes,
            Piece::Shared(bytes, range) => &bytes[range.clone()],
            Piece::Buffer(buf, range) => &buf[range.clone()],
            Piece::Static(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Piece {
    fn from(bytes: Vec<u8>) -> Piece {
        Piece::Owned(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_run;
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_come_back() {
        let pool = BufferPool::new(3, 5000, false);
        assert_eq!((pool.free(), pool.buffer_bytes(), pool.is_registered()), (3, 8192, false));
        let mut taken: Vec<AlignedBuf> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken.len(), 3);
        for (n, buf) in taken.iter_mut().enumerate() {
            assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
            assert!(buf.iter().all(|b| *b == 0));
            buf.fill(n as u8 + 1);
        }
        for (n, buf) in taken.iter().enumerate() {
            assert!(buf.iter().all(|b| *b == n as u8 + 1), "buffers do not overlap");
        }
        let last = taken.pop().expect("three were taken");
        std::thread::spawn(move || drop(last)).join().expect("dropping elsewhere is fine");
        assert_eq!(pool.free(), 1);
        pool.give(taken.pop().expect("two are left"));
        assert_eq!(pool.free(), 2);
        drop(pool);
        assert_eq!(taken[0][8191], 1, "a buffer keeps its pool's memory");
    }

    #[test]
    fn a_buffer_is_registered_on_its_own_ring_only() {
        let pool = test_run(async {
            let first = BufferPool::new(2, 4096, true);
            let second = BufferPool::new(2, 8192, true);
            if !first.is_registered() {
                return first; // too little lockable memory here
            }
            assert_eq!(first.take().expect("free").registered_index(), Some(0));
            assert_eq!(second.take().expect("free").registered_index(), Some(1));
            let buf = first.take().expect("free");
            let buf = std::thread::spawn(move || {
                test_run(async { assert_eq!(buf.registered_index(), None) });
            });
            buf.join().expect("the other ring ends well");
            first
        });
        test_run(async move { assert_eq!(pool.take().expect("free").registered_index(), None) });
    }
}
