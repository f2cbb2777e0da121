//! Being told when this host's addresses change (rtnetlink(7)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// Messages of netlink are shorter than this, and what is cut off is not looked at.
const MESSAGE_BYTES: usize = 4096;
/// Messages read at a time; more are told of again.
const MESSAGES_MAX: usize = 256;

/// A netlink socket that is readable when an address came or went.
#[derive(Debug)]
pub struct AddressWatch(AsyncFd<OwnedFd>);

impl AddressWatch {
    /// Watches from now on, on the runtime that it is called on. Needs no privilege, but AF_NETLINK, which a unit can
    /// forbid.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket takes no pointers.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is fresh and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all zero is an address of no groups.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;
        let len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the address outlives the call, and the length is that of the address.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is owned by what is registered, stays the same, and is open as long as that lives.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Waits until addresses may have changed since the last time. Nothing is lost when the wait is given up.
    pub async fn change(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            if self.has_changed()? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Reads what there is to be told; true when addresses may have changed since the last time.
    ///
    /// What the messages say is of no interest: the addresses are asked for anew, and messages may be lost (ENOBUFS).
    fn has_changed(&self) -> io::Result<bool> {
        let mut message = [0_u8; MESSAGE_BYTES];
        let mut changed = false;
        for _ in 0..MESSAGES_MAX {
            // SAFETY: the kernel writes at most as many bytes as `message` has.
            let read = unsafe { libc::recv(self.0.as_raw_fd(), message.as_mut_ptr().cast(), message.len(), 0) };
            if read >= 0 {
                changed = true;
                continue;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => break,
                Some(libc::ENOBUFS) => changed = true,
                Some(libc::EINTR) => {}
                Some(_) | None => return Err(error),
            }
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_told_while_nothing_changes() {
        let watch = AddressWatch::open().unwrap();
        // Another test's namespace is not this one's; a host whose addresses change just now is told of them.
        let _ = watch.has_changed().unwrap();
        assert!(!watch.has_changed().unwrap());
    }
}
