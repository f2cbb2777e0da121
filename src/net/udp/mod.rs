//! Batches of datagrams: many per system call, none of them on the heap of its own.
//!
//! A datagram is received into a slot of a [`RecvBatch`], between [`HEADROOM`] and [`TAILROOM`], so that what goes in
//! front of it is written in place; a [`SendBatch`] then refers to a part of that slot, or keeps a copy of other bytes.

mod layout;
mod recv;
mod report;
mod send;

pub(in crate::net) use layout::{Address, Laid, Layout};
pub use recv::{RecvBatch, RecvMeta};
pub use report::SendReport;
pub use send::{SendBatch, Sender};

/// Free bytes in front of a received datagram. The largest prefix is that of a Data indication to an IPv6 peer: STUN
/// header 20 + XOR-PEER-ADDRESS 24 + the header of DATA 4.
pub const HEADROOM: usize = 48;

/// Free bytes behind a received datagram: padding to a multiple of four.
pub const TAILROOM: usize = 4;

/// The longest datagram that a slot takes; UDP has none that is longer.
pub const PAYLOAD_MAX: usize = 65535;

/// Whether an error of a send may mean that the device, or the path, takes no trains of datagrams (udp(7), UDP_SEGMENT:
/// no checksums by the device, IPsec, an MTU below the datagrams).
pub(in crate::net) fn may_refuse_trains(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::EIO | libc::EMSGSIZE | libc::EOPNOTSUPP)
}

/// Whether an error of a socket call may be that of an ICMP message about an earlier datagram, which says nothing
/// about this call: the kernel reports such an error once, through whichever call comes next.
pub(in crate::net) fn may_come_from_icmp(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EMSGSIZE
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EACCES
    )
}
