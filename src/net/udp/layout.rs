//! Headers of datagrams to send, in the kernel's layout.

use std::mem;
use std::net::{IpAddr, SocketAddr};

use crate::net::control::{Control, Fixed, Name};

/// Room for the headers of a number of datagrams, with what they point to.
pub(in crate::net) struct Layout {
    names: Fixed<Name>,
    controls: Fixed<Control>,
    iovecs: Fixed<libc::iovec>,
    headers: Fixed<libc::mmsghdr>,
}

// SAFETY: the raw pointers inside lead to memory that the layout owns, or are rewritten by `write` before anybody follows
// them.
unsafe impl Send for Layout {}

impl Layout {
    pub(in crate::net) fn new(headers: usize) -> Self {
        // SAFETY: all zero is an empty message header.
        let header = || unsafe { mem::zeroed::<libc::mmsghdr>() };
        let iovec = || libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            names: Fixed::new((0..headers).map(|_| Name::empty()).collect()),
            controls: Fixed::new((0..headers).map(|_| Control::empty()).collect()),
            iovecs: Fixed::new((0..headers).map(|_| iovec()).collect()),
            headers: Fixed::new((0..headers).map(|_| header()).collect()),
        }
    }

    /// How many headers there is room for.
    pub(in crate::net) fn len(&self) -> usize {
        self.headers.as_slice().len()
    }

    /// The header at `index`, and those behind it.
    pub(in crate::net) fn header(&self, index: usize) -> *mut libc::mmsghdr {
        self.headers.as_slice()[index..].as_ptr().cast_mut()
    }

    /// The bytes that the header at `index` was laid out for.
    ///
    /// # Safety
    /// They are still where they were.
    pub(in crate::net) unsafe fn bytes(&self, index: usize) -> &[u8] {
        let iovec = &self.iovecs.as_slice()[index];
        // SAFETY: `write` took pointer and length from one slice, and the caller vouches for its being there.
        unsafe { std::slice::from_raw_parts(iovec.iov_base.cast(), iovec.iov_len) }
    }

    /// Lays the header at `index` out for `bytes`, which must stay where they are until it has been used; false when
    /// source and destination are of different families.
    pub(in crate::net) fn write(
        &mut self,
        index: usize,
        to: SocketAddr,
        source: Option<IpAddr>,
        tos: u8,
        bytes: &[u8],
    ) -> bool {
        if source.is_some_and(|source| source.is_ipv4() != to.is_ipv4()) {
            return false;
        }
        let (name, name_bytes) = Name::write(to);
        self.names.as_mut_slice()[index] = name;
        let scope = match (to, source) {
            (SocketAddr::V6(to), Some(IpAddr::V6(source))) if source.is_unicast_link_local() => to.scope_id(),
            (SocketAddr::V4(_) | SocketAddr::V6(_), _) => 0,
        };
        let control_bytes = self.controls.as_mut_slice()[index].write(source, scope, tos, to.is_ipv6());
        self.iovecs.as_mut_slice()[index] =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let header = &mut self.headers.as_mut_slice()[index].msg_hdr;
        header.msg_name = self.names.as_ptr().wrapping_add(index).cast();
        header.msg_namelen = name_bytes;
        header.msg_iov = self.iovecs.as_ptr().wrapping_add(index);
        header.msg_iovlen = 1;
        header.msg_control = match control_bytes {
            0 => std::ptr::null_mut(),
            _ => self.controls.as_ptr().wrapping_add(index).cast(),
        };
        header.msg_controllen = control_bytes as _;
        true
    }
}
