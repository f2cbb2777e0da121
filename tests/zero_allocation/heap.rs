//! A heap that counts what it is asked for, and that can be told to put things where nobody may write.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
    /// Where the thread is counted beside.
    static COUNT: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
    static IN_ARENA: Cell<bool> = const { Cell::new(false) };
}

/// The system's heap, watched.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: everything is passed on to the system's allocator as it came, or to the arena, which gives each byte once. The
// thread's cells are constant-initialised and have no destructor, so that counting asks nothing of the heap.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.with(|asked| asked.set(asked.get() + 1));
        if let Some(count) = COUNT.with(Cell::get) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if IN_ARENA.with(Cell::get) {
            return arena().give(layout);
        }
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if !Arena::has(memory) {
            // SAFETY: the caller keeps the contract, and the arena has not given it.
            unsafe { System.dealloc(memory, layout) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let new = Layout::from_size_align(new_size, layout.align()).expect("the caller keeps the contract");
        // SAFETY: the old and the new are as long as what is copied, and apart.
        unsafe {
            let moved = self.alloc(new);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(memory, moved, layout.size().min(new_size));
                self.dealloc(memory, layout);
            }
            moved
        }
    }
}

/// How often this thread asks the heap for memory meanwhile.
pub(crate) fn asked_during(work: impl FnOnce()) -> u64 {
    let before = ASKED.with(Cell::get);
    work();
    ASKED.with(Cell::get) - before
}

/// Has `count` count what this thread asks for from now on, for another thread to see.
pub(crate) fn count_this_thread(count: &'static AtomicU64) {
    COUNT.with(|watched| watched.set(Some(count)));
}

/// Puts what `work` makes into the arena, where it stays for good.
pub(crate) fn in_arena<T>(work: impl FnOnce() -> T) -> T {
    arena();
    IN_ARENA.with(|inside| inside.set(true));
    let made = work();
    IN_ARENA.with(|inside| inside.set(false));
    made
}

/// Whether something lies in the arena.
pub(crate) fn is_in_arena<T>(thing: &T) -> bool {
    Arena::has(ptr::from_ref(thing).cast())
}

/// Ends the process by a signal if anybody writes into the arena meanwhile.
pub(crate) fn with_arena_read_only(work: impl FnOnce()) {
    arena().protect(libc::PROT_READ);
    work();
    arena().protect(libc::PROT_READ | libc::PROT_WRITE);
}

const ARENA_BYTES: usize = 64 << 20;

/// Pages of their own, of which each byte is given once.
struct Arena {
    base: usize,
    used: AtomicUsize,
}

static ARENA: OnceLock<Arena> = OnceLock::new();

fn arena() -> &'static Arena {
    ARENA.get_or_init(|| {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), ARENA_BYTES, access, kind, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        Arena { base: base as usize, used: AtomicUsize::new(0) }
    })
}

impl Arena {
    /// Null when it is full.
    fn give(&self, layout: Layout) -> *mut u8 {
        let used = self.used.fetch_add(layout.size() + layout.align(), Ordering::Relaxed);
        let start = (self.base + used).next_multiple_of(layout.align());
        if start + layout.size() <= self.base + ARENA_BYTES { start as *mut u8 } else { ptr::null_mut() }
    }

    fn has(memory: *const u8) -> bool {
        ARENA.get().is_some_and(|arena| (arena.base..arena.base + ARENA_BYTES).contains(&(memory as usize)))
    }

    fn protect(&self, access: libc::c_int) {
        // SAFETY: the mapping is ours.
        assert_eq!(unsafe { libc::mprotect(self.base as *mut libc::c_void, ARENA_BYTES, access) }, 0);
    }
}
