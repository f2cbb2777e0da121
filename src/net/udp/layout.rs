//! Headers of datagrams to send, in the kernel's layout.
//!
//! A header stands for one datagram, or for a train: datagrams of one length to one destination, the last of which may
//! be shorter, that cross the stack as one (UDP_SEGMENT, udp(7)).

use std::mem;
use std::net::{IpAddr, SocketAddr};

use crate::net::control::{Control, Fixed, Name};

/// Datagrams of a train; older kernels take no more (UDP_MAX_SEGMENTS).
const TRAIN_MAX: usize = 64;
/// Bytes of a train: what fits into one IP packet of either family, which the kernel takes it for at first.
const TRAIN_BYTES_MAX: usize = 65_000;
/// The longest datagram of a train: one that an Ethernet frame holds, with the headers of IPv6. The kernel refuses a train
/// whose datagrams need fragments.
const TRAIN_DATAGRAM_MAX: usize = 1500 - 40 - 8;

/// Room for the headers of a number of datagrams, with what they point to.
pub(in crate::net) struct Layout {
    names: Fixed<Name>,
    controls: Fixed<Control>,
    iovecs: Fixed<libc::iovec>,
    /// How many of the iovecs are used; each datagram has one.
    datagrams: usize,
    headers: Fixed<libc::mmsghdr>,
    /// The last header, while datagrams can be joined to it.
    last: Option<Last>,
}

/// What of a header decides whether another datagram can be joined to it.
struct Last {
    header: usize,
    destination: Address,
    /// The length of all its datagrams.
    each: usize,
    bytes: usize,
}

/// Where a datagram goes, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::net) struct Address {
    pub(in crate::net) to: SocketAddr,
    /// The local address to send from, for sockets bound to a wildcard.
    pub(in crate::net) source: Option<IpAddr>,
    /// TOS or traffic class.
    pub(in crate::net) tos: u8,
}

// SAFETY: the raw pointers inside lead to memory that the layout owns, or are rewritten by `write` before anybody follows
// them.
unsafe impl Send for Layout {}

/// Where a datagram was laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum Laid {
    /// In a header of its own.
    Header,
    /// In the header before.
    Joined,
    /// Nowhere: source and destination are of different families.
    OfTwoFamilies,
}

#[allow(clippy::unnecessary_cast, reason = "musl counts in other types")]
impl Layout {
    pub(in crate::net) fn new(headers: usize) -> Self {
        // SAFETY: all zero is an empty message header.
        let header = || unsafe { mem::zeroed::<libc::mmsghdr>() };
        let iovec = || libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            names: Fixed::new((0..headers).map(|_| Name::empty()).collect()),
            controls: Fixed::new((0..headers).map(|_| Control::empty()).collect()),
            iovecs: Fixed::new((0..headers).map(|_| iovec()).collect()),
            datagrams: 0,
            headers: Fixed::new((0..headers).map(|_| header()).collect()),
            last: None,
        }
    }

    /// How many datagrams there is room for.
    pub(in crate::net) fn len(&self) -> usize {
        self.headers.as_slice().len()
    }

    /// Whether there is room for no more datagrams until [`Self::clear`].
    pub(in crate::net) fn is_full(&self) -> bool {
        self.datagrams == self.len()
    }

    /// Forgets all headers: the kernel has used them.
    pub(in crate::net) fn clear(&mut self) {
        self.datagrams = 0;
        self.last = None;
    }

    /// Lets nothing be joined to the last header: the kernel may be using it.
    pub(in crate::net) fn seal(&mut self) {
        self.last = None;
    }

    /// How many datagrams the header at `index` stands for.
    pub(in crate::net) fn datagrams_of(&self, index: usize) -> usize {
        self.headers.as_slice()[index].msg_hdr.msg_iovlen as usize
    }

    /// The header at `index`, and those behind it.
    pub(in crate::net) fn header(&self, index: usize) -> *mut libc::mmsghdr {
        self.headers.as_slice()[index..].as_ptr().cast_mut()
    }

    /// The bytes of one of the datagrams that the header at `index` stands for.
    ///
    /// # Safety
    /// They are still where they were.
    pub(in crate::net) unsafe fn bytes(&self, index: usize, datagram: usize) -> &[u8] {
        assert!(datagram < self.datagrams_of(index), "a train has no more datagrams");
        let first = self.headers.as_slice()[index].msg_hdr.msg_iov;
        // SAFETY: `write` and `join` took pointers and lengths from slices, which the caller vouches for; the iovecs of a
        // header follow each other.
        unsafe {
            let iovec = &*first.add(datagram);
            std::slice::from_raw_parts(iovec.iov_base.cast(), iovec.iov_len)
        }
    }

    /// Lays a datagram out: in the header at `index`, or, where that is allowed and possible, in the one before. `bytes`
    /// must stay where they are until the header has been used. There must be room ([`Self::is_full`]).
    pub(in crate::net) fn lay_out(&mut self, index: usize, destination: Address, bytes: &[u8], joins: bool) -> Laid {
        if joins && self.join(&destination, bytes) {
            Laid::Joined
        } else if self.write(index, destination, bytes) {
            Laid::Header
        } else {
            Laid::OfTwoFamilies
        }
    }

    fn write(&mut self, index: usize, destination: Address, bytes: &[u8]) -> bool {
        let Address { to, source, tos } = destination;
        self.last = None;
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
        let iovec = self.push_iovec(bytes);
        let header = &mut self.headers.as_mut_slice()[index].msg_hdr;
        header.msg_name = self.names.as_ptr().wrapping_add(index).cast();
        header.msg_namelen = name_bytes;
        header.msg_iov = iovec;
        header.msg_iovlen = 1;
        header.msg_control = match control_bytes {
            0 => std::ptr::null_mut(),
            _ => self.controls.as_ptr().wrapping_add(index).cast(),
        };
        header.msg_controllen = control_bytes as _;
        if (1..=TRAIN_DATAGRAM_MAX).contains(&bytes.len()) {
            self.last = Some(Last { header: index, destination, each: bytes.len(), bytes: bytes.len() });
        }
        true
    }

    /// Joins a datagram to the header that was written last, if it goes to the same place and fits.
    fn join(&mut self, destination: &Address, bytes: &[u8]) -> bool {
        let Some(last) = &mut self.last else { return false };
        let header = &mut self.headers.as_mut_slice()[last.header].msg_hdr;
        let index = last.header;
        let fits = (1..=last.each).contains(&bytes.len())
            && last.bytes + bytes.len() <= TRAIN_BYTES_MAX
            && (header.msg_iovlen as usize) < TRAIN_MAX;
        if !fits || last.destination != *destination {
            return false;
        }
        if header.msg_iovlen == 1 {
            let control = &mut self.controls.as_mut_slice()[index];
            header.msg_controllen = control.push_segment(header.msg_controllen as usize, last.each as u16) as _;
            header.msg_control = self.controls.as_ptr().wrapping_add(index).cast();
        }
        header.msg_iovlen += 1;
        last.bytes += bytes.len();
        if bytes.len() < last.each {
            self.last = None;
        }
        self.push_iovec(bytes);
        true
    }

    /// Makes the header of a train stand for one of its datagrams alone; each of them once, in order.
    pub(in crate::net) fn split_off(&mut self, index: usize) {
        let header = &mut self.headers.as_mut_slice()[index].msg_hdr;
        if header.msg_iovlen > 1 {
            header.msg_iovlen = 1;
            header.msg_controllen = Control::without_segment(header.msg_controllen as usize) as _;
        } else {
            header.msg_iov = header.msg_iov.wrapping_add(1);
        }
    }

    fn push_iovec(&mut self, bytes: &[u8]) -> *mut libc::iovec {
        let index = self.datagrams;
        self.iovecs.as_mut_slice()[index] =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.datagrams += 1;
        self.iovecs.as_ptr().wrapping_add(index)
    }
}
