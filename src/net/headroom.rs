//! File descriptors kept back for operators: clients do not get the last ones.
//!
//! The kernel gives out the lowest number that is free, so a descriptor with a high number says that all below are taken.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Descriptors kept back: connections to the admin socket and the metrics page, files of a reload, the sockets of workers
/// that are made anew.
const RESERVED_MAX: u64 = 64;
/// At most this part of all.
const RESERVED_PART: u64 = 8;

static LIMIT: AtomicI32 = AtomicI32::new(RawFd::MAX);

/// Keeps some of so many descriptors back from now on; returns how many are for clients and the daemon itself.
pub fn keep_back(descriptors: u64) -> u64 {
    let left = descriptors - RESERVED_MAX.min(descriptors / RESERVED_PART);
    LIMIT.store(RawFd::try_from(left).unwrap_or(RawFd::MAX), Ordering::Relaxed);
    left
}

/// Fails, as the kernel does at the limit, when what was opened for a client has a descriptor that is kept back.
pub(in crate::net) fn spare(opened: &impl AsRawFd) -> io::Result<()> {
    if opened.as_raw_fd() < LIMIT.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EMFILE))
}
