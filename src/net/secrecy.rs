//! Keeps this process's memory to itself, and what is freed of it empty.

use std::alloc::{GlobalAlloc, Layout, System};
use std::arch::asm;
use std::io;
use std::ptr;

/// Has no memory of this process written to a file when it crashes, nor read by other processes of its user.
///
/// A limit of 0 is not enough: the kernel does not ask it where core dumps go to a program, as on most systems. So the
/// process is made undumpable as well, which also keeps debuggers without CAP_SYS_PTRACE away.
pub fn forbid_dumps() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: PR_SET_DUMPABLE takes a number and touches no memory of ours.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The system's heap, but what is freed is zeroed first.
///
/// A secret is copied wherever a text is parsed, converted or grows, by libraries as well, and nobody sees to all of those
/// copies. So all freed memory is zeroed: a packet frees nothing, and an allocation or a request a few hundred bytes.
#[derive(Debug)]
pub struct ForgetfulHeap;

// SAFETY: everything is passed on to the system's allocator as it came. What is zeroed before is the caller's block, which
// nobody may use any more. `realloc` is the trait's own: a new block, a copy, and the old one freed here.
unsafe impl GlobalAlloc for ForgetfulHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the block has this size, and nobody else has it.
        unsafe {
            forget(memory, layout.size());
            System.dealloc(memory, layout);
        }
    }
}

/// Zeroes a block that is about to be freed.
///
/// # Safety
///
/// `memory` is valid for writes of `len` bytes.
unsafe fn forget(memory: *mut u8, len: usize) {
    // SAFETY: as the caller promises. The empty assembly may read all memory as far as the compiler knows, so that the
    // zeros are written although the block is freed next.
    unsafe {
        ptr::write_bytes(memory, 0, len);
        asm!("/* {0} */", in(reg) memory, options(nostack, preserves_flags));
    }
}

/// Has OpenSSL zero what it frees: of what it decodes of a private key it leaves copies otherwise. False where OpenSSL has
/// allocated already, so that it is too late.
#[cfg(feature = "dtls")]
pub fn forget_in_openssl() -> bool {
    // SAFETY: the functions keep the contracts of malloc, realloc and free, from whose heap they give and take.
    unsafe { CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free) == 1 }
}

#[cfg(feature = "dtls")]
type Malloc = unsafe extern "C" fn(usize, *const libc::c_char, libc::c_int) -> *mut libc::c_void;
#[cfg(feature = "dtls")]
type Realloc = unsafe extern "C" fn(*mut libc::c_void, usize, *const libc::c_char, libc::c_int) -> *mut libc::c_void;
#[cfg(feature = "dtls")]
type Free = unsafe extern "C" fn(*mut libc::c_void, *const libc::c_char, libc::c_int);

#[cfg(feature = "dtls")]
unsafe extern "C" {
    /// openssl/crypto.h.
    fn CRYPTO_set_mem_functions(malloc: Malloc, realloc: Realloc, free: Free) -> libc::c_int;
}

#[cfg(feature = "dtls")]
unsafe extern "C" fn openssl_malloc(len: usize, _: *const libc::c_char, _: libc::c_int) -> *mut libc::c_void {
    // SAFETY: takes a number. OpenSSL, like this, gives nothing for nothing.
    if len == 0 { ptr::null_mut() } else { unsafe { libc::malloc(len) } }
}

#[cfg(feature = "dtls")]
unsafe extern "C" fn openssl_realloc(
    memory: *mut libc::c_void,
    len: usize,
    file: *const libc::c_char,
    line: libc::c_int,
) -> *mut libc::c_void {
    // SAFETY: the block came from malloc and is OpenSSL's; the new one is apart from it, and both hold what is copied.
    unsafe {
        let new = openssl_malloc(len, file, line);
        if memory.is_null() || (new.is_null() && len > 0) {
            return new;
        }
        if !new.is_null() {
            ptr::copy_nonoverlapping(memory.cast::<u8>(), new.cast(), len.min(libc::malloc_usable_size(memory)));
        }
        openssl_free(memory, file, line);
        new
    }
}

#[cfg(feature = "dtls")]
unsafe extern "C" fn openssl_free(memory: *mut libc::c_void, _: *const libc::c_char, _: libc::c_int) {
    if !memory.is_null() {
        // SAFETY: the block came from malloc, which tells its size, and OpenSSL has no use for it any more.
        unsafe {
            forget(memory.cast(), libc::malloc_usable_size(memory));
            libc::free(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_is_zeroed_and_what_grows_leaves_nothing_behind() {
        let heap = ForgetfulHeap;
        let layout = Layout::from_size_align(4096, 8).unwrap();
        // SAFETY: each block is used with its own layout. What is read of the freed one is not relied upon to be unused: the
        // heap's own notes are in its first bytes.
        unsafe {
            let memory = heap.alloc(layout);
            ptr::write_bytes(memory, 0xA5, layout.size());
            forget(memory, layout.size());
            assert!((0..layout.size()).all(|at| memory.add(at).read_volatile() == 0));
            ptr::write_bytes(memory, 0xA5, layout.size());
            let grown = heap.realloc(memory, layout, 8192);
            assert!((0..layout.size()).all(|at| grown.add(at).read() == 0xA5));
            heap.dealloc(grown, Layout::from_size_align(8192, 8).unwrap());
        }
    }

    #[cfg(feature = "dtls")]
    #[test]
    fn blocks_of_openssl_grow_and_shrink_with_their_bytes() {
        let (file, line) = (ptr::null(), 0);
        // SAFETY: blocks of malloc, each used within its size and freed once.
        unsafe {
            assert!(openssl_malloc(0, file, line).is_null());
            let memory = openssl_realloc(ptr::null_mut(), 100, file, line);
            ptr::write_bytes(memory.cast::<u8>(), 7, 100);
            let grown = openssl_realloc(memory, 10_000, file, line);
            assert!((0..100).all(|at| grown.cast::<u8>().add(at).read() == 7));
            let shrunk = openssl_realloc(grown, 10, file, line);
            assert!((0..10).all(|at| shrunk.cast::<u8>().add(at).read() == 7));
            assert!(openssl_realloc(shrunk, 0, file, line).is_null());
            openssl_free(ptr::null_mut(), file, line);
        }
    }

    #[test]
    fn a_process_that_forbids_dumps_is_not_dumpable() {
        // SAFETY: both take numbers and touch no memory.
        let dumpable = || unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
        let before = dumpable();
        forbid_dumps().unwrap();
        assert_eq!(dumpable(), 0);
        // SAFETY: as above. The other tests of this process are let read their own files of /proc.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, before, 0, 0, 0) };
    }
}
