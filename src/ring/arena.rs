//! Memory for many byte strings of some kilobytes that live for a moment: the bodies on their way.
//!
//! Owns: [`Arena`] and [`Block`], a growing byte string in it. Promises: resident memory follows what is
//! held, not what has passed: the lowest free memory is used first, so that what is held stays together;
//! what lies idle for one to two calls of [`Arena::trim`] goes back to the kernel, all but a floor, which is
//! resident from the start; a block that finds no room lives on the ordinary heap. Must not: be shared
//! between threads.
//!
//! A general allocator does neither: it gives memory back a second after it was freed, whether it is used
//! again or not, so that a steady stream of bodies has the kernel clear the same pages over and over, and
//! after a burst it keeps what nobody asks it for.
use std::cell::RefCell;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The arena is cut into slabs, each for blocks of one size while it holds any.
const SLAB_BYTES: usize = 256 * 1024;
/// Sizes of blocks: at most a quarter of a block is unused where the size was known beforehand.
const SIZES: [usize; 17] = [
    1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384, 20480, 24576, 32768, 40960,
    49152,
];
const WORDS: usize = SLAB_BYTES / SIZES[0] / 64;
/// A slab that holds nothing.
const NO_SIZE: u8 = u8::MAX;

/// A set of small numbers whose least is found quickly.
#[derive(Debug)]
struct Set(Box<[u64]>);

impl Set {
    fn empty(count: usize) -> Set {
        Set(vec![0; count.div_ceil(64)].into())
    }
    fn insert(&mut self, n: usize) {
        self.0[n / 64] |= 1 << (n % 64);
    }
    fn remove(&mut self, n: usize) {
        self.0[n / 64] &= !(1 << (n % 64));
    }
    fn least(&self) -> Option<usize> {
        let word = self.0.iter().position(|w| *w != 0)?;
        Some(word * 64 + self.0[word].trailing_zeros() as usize)
    }
}

#[derive(Clone, Copy, Debug)]
struct Slab {
    /// Index of the size of its blocks.
    size: u8,
    /// Whether its memory may be resident.
    touched: bool,
    /// Whether anything was in it since the last trim.
    used: bool,
    held: u16,
    free: [u64; WORDS],
}

const UNUSED: Slab = Slab { size: NO_SIZE, touched: false, used: false, held: 0, free: [0; WORDS] };

/// Which blocks are held: numbers only, no memory.
#[derive(Debug)]
struct Map {
    slabs: Box<[Slab]>,
    /// Per size: slabs with a free block.
    open: [Set; SIZES.len()],
    /// Slabs that hold nothing.
    vacant: Set,
}

impl Map {
    fn new(slabs: usize) -> Map {
        let mut vacant = Set::empty(slabs);
        (0..slabs).for_each(|n| vacant.insert(n));
        Map { slabs: vec![UNUSED; slabs].into(), open: std::array::from_fn(|_| Set::empty(slabs)), vacant }
    }

    /// Takes the lowest free block of this size; gives its offset.
    fn take(&mut self, size: usize) -> Option<usize> {
        let number = match self.open[size].least() {
            Some(number) => number,
            None => self.dedicate(size)?,
        };
        let slab = &mut self.slabs[number];
        let word = slab.free.iter().position(|w| *w != 0).expect("an open slab has a free block");
        let bit = slab.free[word].trailing_zeros() as usize;
        slab.free[word] &= slab.free[word] - 1;
        slab.held += 1;
        if slab.free == [0; WORDS] {
            self.open[size].remove(number);
        }
        Some(number * SLAB_BYTES + (word * 64 + bit) * SIZES[size])
    }

    /// Makes the lowest vacant slab one of this size.
    fn dedicate(&mut self, size: usize) -> Option<usize> {
        let number = self.vacant.least()?;
        self.vacant.remove(number);
        self.open[size].insert(number);
        let mut free = [0; WORDS];
        (0..SLAB_BYTES / SIZES[size]).for_each(|block| free[block / 64] |= 1 << (block % 64));
        self.slabs[number] = Slab { size: size as u8, touched: true, used: true, held: 0, free };
        Some(number)
    }

    fn give(&mut self, offset: usize) {
        let number = offset / SLAB_BYTES;
        let slab = &mut self.slabs[number];
        let size = usize::from(slab.size);
        let block = offset % SLAB_BYTES / SIZES[size];
        debug_assert_eq!(slab.free[block / 64] >> (block % 64) & 1, 0, "a block is given back once");
        slab.free[block / 64] |= 1 << (block % 64);
        slab.held -= 1;
        if slab.held == 0 {
            slab.size = NO_SIZE;
            self.open[size].remove(number);
            self.vacant.insert(number);
        } else {
            self.open[size].insert(number);
        }
    }

    /// The next slab from `from` on that was touched and has held nothing since the last call.
    fn idle(&mut self, from: usize) -> Option<usize> {
        for number in from..self.slabs.len() {
            let slab = &mut self.slabs[number];
            let used = std::mem::replace(&mut slab.used, slab.held > 0);
            if slab.touched && slab.held == 0 && !used {
                slab.touched = false;
                return Some(number);
            }
        }
        None
    }
}

#[derive(Debug)]
struct Shared {
    start: NonNull<u8>,
    bytes: usize,
    floor_slabs: usize,
    map: RefCell<Map>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: mapped in `Arena::new` with this length; every block keeps its arena, so none is left.
            // Should it fail the address space is lost, and nothing else.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Arena(Rc<Shared>);

impl Arena {
    /// An arena of at most `bytes`, of which `floor_bytes` stay resident. Where the kernel does not give
    /// the address space all blocks live on the heap.
    pub fn new(bytes: usize, floor_bytes: usize) -> Arena {
        let slabs = bytes / SLAB_BYTES;
        let bytes = slabs * SLAB_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped = (slabs > 0)
            .then(|| unsafe {
                mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags).ok()
            })
            .flatten()
            .and_then(|start| NonNull::new(start.cast::<u8>()));
        let Some(start) = mapped else {
            let map = RefCell::new(Map::new(0));
            return Arena(Rc::new(Shared { start: NonNull::dangling(), bytes: 0, floor_slabs: 0, map }));
        };
        let floor_slabs = floor_bytes.div_ceil(SLAB_BYTES).min(slabs);
        if floor_slabs > 0 {
            // SAFETY: a part of the mapping just made. A kernel that does not know the advice touches the
            // pages when they are used.
            let _ = unsafe {
                madvise(start.as_ptr().cast(), floor_slabs * SLAB_BYTES, Advice::LinuxPopulateWrite)
            };
        }
        Arena(Rc::new(Shared { start, bytes, floor_slabs, map: RefCell::new(Map::new(slabs)) }))
    }

    /// An empty block with room for `capacity` bytes at least.
    pub fn block(&self, capacity: usize) -> Block {
        let size = SIZES.partition_point(|size| *size < capacity);
        let taken = if size < SIZES.len() { self.0.map.borrow_mut().take(size) } else { None };
        match taken {
            Some(offset) => {
                // SAFETY: the map gives offsets inside the mapping.
                let start = unsafe { self.0.start.add(offset) };
                Block(Store::Arena { start, bytes: 0, capacity: SIZES[size], arena: self.clone() })
            }
            None => Block(Store::Heap(Vec::with_capacity(capacity))),
        }
    }

    /// Gives back to the kernel, beyond the floor, what has not been used since the last call.
    pub fn trim(&self) {
        let mut map = self.0.map.borrow_mut();
        let mut next = self.0.floor_slabs;
        while let Some(number) = map.idle(next) {
            // SAFETY: the slab lies inside the mapping and holds no block, so nothing refers to it; its
            // bytes are not read before they are written again.
            let _ = unsafe {
                let start = self.0.start.add(number * SLAB_BYTES);
                madvise(start.as_ptr().cast(), SLAB_BYTES, Advice::LinuxDontNeed)
            };
            next = number + 1;
        }
    }
}

/// Has the allocator give back to the kernel what this thread has freed. It would do so by itself after the
/// next ten thousand allocations, which on a server that has become quiet may never come.
pub fn collect_heap() {
    // SAFETY: the call has no preconditions; where mimalloc is not the allocator it finds nothing.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// A byte string that grows, in an arena or on the heap.
#[derive(Debug)]
pub struct Block(Store);

#[derive(Debug)]
enum Store {
    Arena {
        start: NonNull<u8>,
        /// Written so far.
        bytes: usize,
        capacity: usize,
        arena: Arena,
    },
    Heap(Vec<u8>),
}

impl Block {
    /// Bytes it may hold before it moves.
    pub fn capacity(&self) -> usize {
        match &self.0 {
            Store::Arena { capacity, .. } => *capacity,
            Store::Heap(bytes) => bytes.capacity(),
        }
    }

    /// Appends.
    pub fn extend_from_slice(&mut self, more: &[u8]) {
        match &mut self.0 {
            Store::Heap(own) => own.extend_from_slice(more),
            Store::Arena { start, bytes, capacity, .. } if more.len() <= *capacity - *bytes => {
                // SAFETY: the room behind `bytes` belongs to this block alone and takes `more`, which is
                // borrowed from elsewhere.
                unsafe {
                    std::ptr::copy_nonoverlapping(more.as_ptr(), start.add(*bytes).as_ptr(), more.len());
                }
                *bytes += more.len();
            }
            Store::Arena { bytes, capacity, arena, .. } => {
                let mut larger = arena.block((*bytes + more.len()).max(2 * *capacity));
                larger.extend_from_slice(self);
                larger.extend_from_slice(more);
                *self = larger;
            }
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Store::Arena { start, arena, .. } = &self.0 {
            let offset = start.as_ptr() as usize - arena.0.start.as_ptr() as usize;
            arena.0.map.borrow_mut().give(offset);
        }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: the first `bytes` of the block have been written, and belong to it alone.
            Store::Arena { start, bytes, .. } => unsafe {
                std::slice::from_raw_parts(start.as_ptr(), *bytes)
            },
            Store::Heap(bytes) => bytes,
        }
    }
}

impl Default for Block {
    fn default() -> Block {
        Block(Store::Heap(Vec::new()))
    }
}

impl From<Vec<u8>> for Block {
    fn from(bytes: Vec<u8>) -> Block {
        Block(Store::Heap(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;

    /// Pages of the arena that are resident.
    fn resident(arena: &Arena) -> usize {
        let page = rustix::param::page_size();
        let mut pages = vec![0u8; arena.0.bytes / page];
        // SAFETY: the mapping has this length, and the vector a byte for each of its pages.
        let result =
            unsafe { libc::mincore(arena.0.start.as_ptr().cast(), arena.0.bytes, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|p| **p & 1 != 0).count() * page
    }

    #[test]
    fn blocks_keep_their_bytes_whatever_comes_and_goes() {
        let arena = Arena::new(4 * SLAB_BYTES, 0);
        let mut rng = Rng::new(7);
        let mut held: Vec<(Block, Vec<u8>)> = Vec::new();
        for step in 0..20_000u64 {
            match rng.below(5) {
                0 | 1 => {
                    let bytes = vec![step as u8; rng.below(9000) as usize];
                    let mut block = arena.block(rng.below(6000) as usize);
                    block.extend_from_slice(&bytes);
                    held.push((block, bytes));
                }
                2 if !held.is_empty() => {
                    let at = rng.below(held.len() as u64) as usize;
                    held[at].0.extend_from_slice(b"more");
                    held[at].1.extend_from_slice(b"more");
                }
                3 | 4 if !held.is_empty() => {
                    let at = rng.below(held.len() as u64) as usize;
                    let (block, bytes) = held.swap_remove(at);
                    assert_eq!(*block, bytes[..]);
                }
                _ => {}
            }
            if step % 64 == 0 {
                arena.trim();
            }
        }
        for (block, bytes) in held.drain(..) {
            assert_eq!(*block, bytes[..]);
        }
        assert!(arena.0.map.borrow().slabs.iter().all(|s| s.held == 0));
    }

    #[test]
    fn a_full_arena_falls_back_on_the_heap() {
        for bytes in [0, SLAB_BYTES] {
            let arena = Arena::new(bytes, bytes);
            let mut blocks: Vec<Block> = (0..300).map(|_| arena.block(1000)).collect();
            let mut large = arena.block(SIZES[SIZES.len() - 1] + 1);
            large.extend_from_slice(b"x");
            blocks[299].extend_from_slice(&[7; 5000]);
            assert_eq!((blocks[299].len(), large.len()), (5000, 1));
            let pooled = blocks.iter().filter(|b| matches!(b.0, Store::Arena { .. })).count();
            assert_eq!(pooled, bytes / SIZES[0]);
        }
    }

    /// What has passed leaves no trace; what is held beyond the floor goes back two looks after its end.
    #[test]
    fn resident_memory_follows_what_is_held() {
        let floor = 2 * SLAB_BYTES;
        let arena = Arena::new(64 * SLAB_BYTES, floor);
        let fill = |bytes: usize| {
            let mut block = arena.block(bytes);
            block.extend_from_slice(&vec![1; bytes]);
            block
        };
        for _ in 0..100_000 {
            drop(fill(4000));
        }
        assert_eq!(resident(&arena), floor, "a stream uses the floor again and again");
        let burst: Vec<Block> = (0..2000).map(|_| fill(4000)).collect();
        let full = resident(&arena);
        assert!(full > 2000 * 4000);
        arena.trim();
        assert_eq!(resident(&arena), full, "what is held stays");
        drop(burst);
        arena.trim();
        assert_eq!(resident(&arena), full, "a pause is no end");
        arena.trim();
        assert_eq!(resident(&arena), floor);
    }
}
