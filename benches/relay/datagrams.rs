//! Many datagrams in one system call, each from and to any address of a block (`place.rs`).
//!
//! The generator's own, not the server's: a ruler that changes with what it measures is none. One wildcard socket stands
//! for any number of clients: IP_PKTINFO chooses the source of each datagram, and tells the destination of those that
//! arrive.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use crate::failure::{Doing, Result};

/// Datagrams of one system call.
pub(crate) const BATCH: usize = 64;
/// The longest datagram.
const DATAGRAM_MAX: usize = 2048;
const CONTROL_MAX: usize = 128;
/// Holds a stall of 50 ms at 250,000 packets/s of 768 bytes charged; twice as much is reserved.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// A wildcard socket on a port of its own.
pub(crate) fn open(receive_buffer: Option<libc::c_int>) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).doing("open a socket of the generator")?;
    socket.set_nonblocking(true).doing("make a socket non-blocking")?;
    set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    let bytes = receive_buffer.unwrap_or(RECEIVE_BUFFER);
    if set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)?;
    }
    Ok(socket)
}

pub(crate) fn port(socket: &UdpSocket) -> Result<u16> {
    Ok(socket.local_addr().doing("read a socket's port")?.port())
}

fn set(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes from `value`, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()).doing("set a socket option") }
}

/// Memory of one datagram, at an address that does not change.
struct Slot {
    name: libc::sockaddr_in,
    iovec: libc::iovec,
    control: Control,
    bytes: [u8; DATAGRAM_MAX],
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_MAX]);

/// Slots and the headers that point into them.
struct Slots {
    slots: Box<[Slot]>,
    headers: Box<[libc::mmsghdr]>,
}

impl Slots {
    fn new() -> Self {
        let slot = |_| {
            // SAFETY: all zero is an empty address, an empty vector and zero bytes.
            unsafe { mem::zeroed::<Slot>() }
        };
        // SAFETY: all zero is an empty message header.
        let header = |_| unsafe { mem::zeroed::<libc::mmsghdr>() };
        let mut this = Self { slots: (0..BATCH).map(slot).collect(), headers: (0..BATCH).map(header).collect() };
        for (slot, header) in this.slots.iter_mut().zip(&mut this.headers) {
            slot.iovec = libc::iovec { iov_base: slot.bytes.as_mut_ptr().cast(), iov_len: DATAGRAM_MAX };
            header.msg_hdr.msg_name = (&raw mut slot.name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_hdr.msg_iov = &raw mut slot.iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = slot.control.0.as_mut_ptr().cast();
        }
        this
    }
}

/// Datagrams to be sent through one socket.
pub(crate) struct Outbox {
    memory: Slots,
    len: usize,
    pub(crate) calls: u64,
    /// Refused by the kernel, for want of memory.
    pub(crate) failed: u64,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        let mut memory = Slots::new();
        for (slot, header) in memory.slots.iter_mut().zip(&mut memory.headers) {
            slot.name.sin_family = libc::AF_INET as libc::sa_family_t;
            // SAFETY: the length of a control message of this type is a matter of arithmetic.
            let space = unsafe { libc::CMSG_SPACE(size_of::<libc::in_pktinfo>() as u32) };
            header.msg_hdr.msg_controllen = space as usize;
            // SAFETY: msg_control has room for `space` bytes, so that the first control message is in it.
            unsafe {
                let control = libc::CMSG_FIRSTHDR(&header.msg_hdr);
                (*control).cmsg_level = libc::IPPROTO_IP;
                (*control).cmsg_type = libc::IP_PKTINFO;
                (*control).cmsg_len = libc::CMSG_LEN(size_of::<libc::in_pktinfo>() as u32) as usize;
            }
        }
        Self { memory, len: 0, calls: 0, failed: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// Adds a datagram of `len` bytes for the caller to fill; [`Self::is_full`] is for the caller to look at.
    pub(crate) fn push(&mut self, from: Ipv4Addr, to: SocketAddrV4, len: usize) -> &mut [u8] {
        let slot = &mut self.memory.slots[self.len];
        slot.name.sin_port = to.port().to_be();
        slot.name.sin_addr.s_addr = u32::from(*to.ip()).to_be();
        slot.iovec.iov_len = len;
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        // SAFETY: `new` laid out a control message with room for this value.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(&self.memory.headers[self.len].msg_hdr);
            ptr::write_unaligned(libc::CMSG_DATA(control).cast(), info);
        }
        self.len += 1;
        &mut slot.bytes[..len]
    }

    /// Sends what was added; what the kernel refuses is counted.
    pub(crate) fn flush(&mut self, socket: &UdpSocket) {
        let mut done = 0;
        while done < self.len {
            self.calls += 1;
            let headers = &mut self.memory.headers[done..self.len];
            // SAFETY: the headers point to names, control messages and bytes that `self` owns.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, libc::MSG_DONTWAIT)
            };
            match usize::try_from(sent) {
                Ok(sent) => done += sent,
                Err(_) => {
                    self.failed += 1;
                    done += 1;
                }
            }
        }
        self.len = 0;
    }
}

/// Datagrams that were received through one socket.
pub(crate) struct Inbox {
    memory: Slots,
}

/// One of them.
#[derive(Clone, Copy)]
pub(crate) struct Arrival<'a> {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: Ipv4Addr,
    /// When the kernel had it.
    pub(crate) at_ns: u64,
    pub(crate) bytes: &'a [u8],
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { memory: Slots::new() }
    }

    /// Takes what is there, without waiting.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> usize {
        for header in &mut self.memory.headers {
            header.msg_hdr.msg_controllen = CONTROL_MAX;
        }
        let headers = &mut self.memory.headers;
        // SAFETY: the headers point to names, control messages and bytes that `self` owns, each with its length.
        let received = unsafe {
            let (first, count) = (headers.as_mut_ptr(), headers.len() as u32);
            libc::recvmmsg(socket.as_raw_fd(), first, count, libc::MSG_DONTWAIT, ptr::null_mut())
        };
        usize::try_from(received).unwrap_or(0)
    }

    /// The datagram at `index`, which is below what [`Self::receive`] returned.
    pub(crate) fn get(&self, index: usize) -> Arrival<'_> {
        let (slot, header) = (&self.memory.slots[index], &self.memory.headers[index]);
        let ip = Ipv4Addr::from(u32::from_be(slot.name.sin_addr.s_addr));
        let from = SocketAddrV4::new(ip, u16::from_be(slot.name.sin_port));
        let (mut to, mut at_ns) = (Ipv4Addr::UNSPECIFIED, 0);
        // SAFETY: the kernel filled this header and its control messages, each of the type that it names.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(&header.msg_hdr);
            while !control.is_null() {
                let data = libc::CMSG_DATA(control);
                match ((*control).cmsg_level, (*control).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info: libc::in_pktinfo = ptr::read_unaligned(data.cast());
                        to = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                    }
                    (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                        let time: libc::timespec = ptr::read_unaligned(data.cast());
                        at_ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
                    }
                    _ => {}
                }
                control = libc::CMSG_NXTHDR(&header.msg_hdr, control);
            }
        }
        Arrival { from, to, at_ns, bytes: &slot.bytes[..(header.msg_len as usize).min(DATAGRAM_MAX)] }
    }
}
