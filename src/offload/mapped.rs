//! Maps in memory that the programs read and write: any thread does too, by atomics.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};

use aya::maps::Map;

/// The values of an array, which are atomics alone, and for which all bytes of zero are a value.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    first: NonNull<T>,
    len: NonZeroUsize,
}

/// Values that both sides may change at any time.
///
/// # Safety
///
/// Implementors have C's layout, consist of atomics alone, and are as long as the map's values.
pub(super) unsafe trait Shared {}

// SAFETY: the memory is shared with the kernel and holds atomics alone; it is unmapped when the last user is gone.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    pub(super) fn new(map: Map, len: u32) -> io::Result<Self> {
        let Map::Array(map) = map else { return Err(io::ErrorKind::InvalidInput.into()) };
        let len = NonZeroUsize::new(len as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let bytes = len.get() * size_of::<T>();
        // The mapping outlives the descriptor.
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of the map's whole memory; the kernel checks descriptor and length.
        let address = unsafe {
            libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.fd().as_fd().as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { first, len })
    }

    /// How many values there are.
    pub(super) fn len(&self) -> u32 {
        self.len.get() as u32
    }

    pub(super) fn of(&self, index: u32) -> &T {
        assert!((index as usize) < self.len.get(), "value {index} of {}", self.len);
        // SAFETY: within the mapping, which lives as long as `self`, and all-zero bytes are a T.
        unsafe { self.first.add(index as usize).as_ref() }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.len.get() * size_of::<T>()) };
    }
}
