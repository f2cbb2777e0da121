//! Receiving a batch.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

use super::super::control::{self, Control, Fixed, Name, Received};
use super::{HEADROOM, PAYLOAD_MAX, TAILROOM, may_come_from_icmp};

/// Errors of ICMP messages that one [`RecvBatch::recv`] consumes before it lets the caller read the error queue; each
/// one takes an ICMP message that arrived since the last.
const ERRORS_PER_RECV: usize = 8;

/// What is known about a received datagram besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvMeta {
    /// Its source, with the scope of a link-local IPv6 address, so that the answer finds its interface.
    pub from: SocketAddr,
    /// The destination address in its IP header, on a socket that asks for it (listeners do).
    pub to: Option<IpAddr>,
    /// Its length in bytes, or what was left of it if it is truncated.
    pub len: usize,
    /// TOS or traffic class: DSCP in the upper six bits, ECN in the lower two.
    pub tos: u8,
    /// Whether it was longer than the slot, so that its end is lost.
    pub truncated: bool,
    /// How many datagrams the socket had dropped for a full buffer when this one arrived, since it was opened (modulo
    /// 2^32); None as long as there was none.
    pub drops: Option<u32>,
    /// Where the kernel has merged datagrams (UDP_GRO): the length of each of them, but for the last, which may be shorter.
    pub each: Option<usize>,
}

impl RecvMeta {
    /// How many datagrams it is.
    pub fn datagrams(&self) -> usize {
        self.each.map_or(1, |each| self.len.div_ceil(each))
    }

    /// The datagrams in what was received.
    pub fn cut<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let empty = bytes.is_empty().then_some(bytes);
        empty.into_iter().chain(bytes.chunks(self.each.unwrap_or(usize::MAX)))
    }
}

/// Room for a batch of received datagrams, each in a slot of its own.
///
/// A slot is [`HEADROOM`] bytes, the datagram, and the rest. It keeps its bytes until it is [cleared](Self::clear).
pub struct RecvBatch {
    bytes: Fixed<u8>,
    names: Fixed<Name>,
    headers: Fixed<libc::mmsghdr>,
    /// Only reached through `headers`, like the next.
    _controls: Fixed<Control>,
    _iovecs: Fixed<libc::iovec>,
    slot_bytes: usize,
    payload_max: usize,
    filled: usize,
    error_pending: bool,
}

// SAFETY: the raw pointers inside lead to memory that the batch owns, and are only followed under a borrow of it.
unsafe impl Send for RecvBatch {}

impl RecvBatch {
    /// Makes room for `slots` datagrams of up to [`PAYLOAD_MAX`] bytes; memory is taken as it is first used.
    pub fn new(slots: usize) -> Self {
        Self::with_payload_max(slots, PAYLOAD_MAX)
    }

    fn with_payload_max(slots: usize, payload_max: usize) -> Self {
        // An odd number of cache lines, so that the beginnings of slots do not all compete for the same cache sets.
        let lines = (HEADROOM + payload_max + TAILROOM).div_ceil(64) | 1;
        let slot_bytes = lines * 64;
        let bytes = Fixed::new(vec![0_u8; slots * slot_bytes]);
        let names = Fixed::new((0..slots).map(|_| Name::empty()).collect());
        let controls = Fixed::new((0..slots).map(|_| Control::empty()).collect::<Vec<_>>());
        let iovec = |slot: usize| libc::iovec {
            iov_base: bytes.as_ptr().wrapping_add(slot * slot_bytes + HEADROOM).cast(),
            iov_len: payload_max,
        };
        let iovecs = Fixed::new((0..slots).map(iovec).collect());
        let header = |slot: usize| {
            // SAFETY: all zero is an empty message header.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = names.as_ptr().wrapping_add(slot).cast();
            header.msg_hdr.msg_iov = iovecs.as_ptr().wrapping_add(slot);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = controls.as_ptr().wrapping_add(slot).cast();
            header
        };
        let headers = Fixed::new((0..slots).map(header).collect());
        // Whatever has been filled is reset before it is offered to the kernel, which is all of them at first.
        let filled = slots;
        let mut batch = Self {
            bytes,
            names,
            headers,
            _controls: controls,
            _iovecs: iovecs,
            slot_bytes,
            payload_max,
            filled,
            error_pending: false,
        };
        batch.clear();
        batch
    }

    /// The number of slots.
    pub fn slots(&self) -> usize {
        self.headers.as_slice().len()
    }

    /// Receives up to `max` datagrams into the free slots in one system call, without waiting, and returns the slots, in
    /// the order of arrival; an empty range means that nothing is there, or that no slot is free.
    ///
    /// Errors that ICMP messages cause are no errors of the socket: they are consumed, reading goes on, and
    /// [`error_pending`](Self::error_pending) says so. All others are returned.
    pub fn recv(&mut self, socket: &UdpSocket, max: usize) -> io::Result<Range<usize>> {
        self.error_pending = false;
        let first = self.filled;
        let max = max.min(self.slots() - first);
        if max == 0 {
            return Ok(first..first);
        }
        for _ in 0..ERRORS_PER_RECV {
            // SAFETY: `max` headers from `first` on point to names, buffers and control messages that `self` owns, each
            // with its length, and `&mut self` keeps everyone else away from them during the call.
            let received = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_ptr().add(first),
                    max as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            };
            if let Ok(received) = usize::try_from(received) {
                self.filled = first + received;
                return Ok(first..self.filled);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(first..first),
                Some(libc::EINTR) => {}
                Some(errno) if may_come_from_icmp(errno) => self.error_pending = true,
                Some(_) | None => return Err(error),
            }
        }
        Ok(first..first)
    }

    /// The number of slots that [`recv`](Self::recv) can still fill before they are [cleared](Self::clear).
    pub fn free(&self) -> usize {
        self.slots() - self.filled
    }

    /// Frees all slots; what they hold is lost.
    pub fn clear(&mut self) {
        // The kernel gets back the lengths that it overwrote.
        for message in &mut self.headers.as_mut_slice()[..self.filled] {
            message.msg_hdr.msg_namelen = Name::BYTES;
            message.msg_hdr.msg_controllen = Control::BYTES as _;
            message.msg_hdr.msg_flags = 0;
        }
        self.filled = 0;
    }

    /// Whether the last [`recv`](Self::recv) met the error of an ICMP message: the error queue of the socket has
    /// something. If it returned zero besides, call it again after that: datagrams may wait behind a flood of errors.
    pub fn error_pending(&self) -> bool {
        self.error_pending
    }

    /// What is known about the datagram in slot `index`.
    ///
    /// # Panics
    /// If nothing was received into the slot since the last [`clear`](Self::clear).
    pub fn meta(&self, index: usize) -> RecvMeta {
        let message = &self.headers.as_slice()[..self.filled][index];
        let header = &message.msg_hdr;
        let mut received = Received::default();
        // SAFETY: the kernel filled this header and its control messages when it received into the slot.
        unsafe { control::for_each(header, |level, kind, payload| received.take(level, kind, payload)) };
        let nowhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let len = (message.msg_len as usize).min(self.payload_max);
        RecvMeta {
            from: self.names.as_slice()[index].parse(header.msg_namelen).unwrap_or(nowhere),
            to: received.to,
            len,
            tos: received.tos,
            truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            drops: received.drops,
            each: received.each.filter(|each| (1..len).contains(each)),
        }
    }

    /// The datagram in slot `index`.
    ///
    /// # Panics
    /// If nothing was received into the slot since the last [`clear`](Self::clear).
    pub fn datagram(&self, index: usize) -> &[u8] {
        let len = (self.headers.as_slice()[..self.filled][index].msg_len as usize).min(self.payload_max);
        let start = index * self.slot_bytes + HEADROOM;
        &self.bytes.as_slice()[start..start + len]
    }

    /// The whole slot `index`: its datagram begins at [`HEADROOM`], and at least [`TAILROOM`] bytes follow the longest.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot_mut(&mut self, index: usize) -> &mut [u8] {
        let start = index * self.slot_bytes;
        &mut self.bytes.as_mut_slice()[start..start + self.slot_bytes]
    }

    /// `len` bytes of slot `index` from `start` on, counted from its beginning; None if they are not all in it.
    pub(in crate::net) fn part(&self, index: usize, start: usize, len: usize) -> Option<&[u8]> {
        let end = start.checked_add(len).filter(|&end| end <= self.slot_bytes)?;
        let slot = index.checked_mul(self.slot_bytes)?;
        self.bytes.as_slice().get(slot..)?.get(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::socket::{UdpOptions, open_relay, open_udp_listeners};
    use crate::net::test_support::{closed_port, receive_anew, wait_for_datagram, wait_for_error};

    fn listener(address: &str) -> UdpSocket {
        open_udp_listeners(address.parse().unwrap(), 1, &UdpOptions::default()).unwrap().remove(0)
    }

    fn small(receive_buffer_bytes: usize) -> UdpOptions {
        UdpOptions { receive_buffer_bytes, ..UdpOptions::RELAY }
    }

    #[test]
    fn nothing_to_receive_is_zero() {
        let socket = listener("127.0.0.1:0");
        let mut batch = RecvBatch::new(4);
        assert_eq!(receive_anew(&mut batch, &socket, 4), 0);
        assert_eq!(receive_anew(&mut batch, &socket, 0), 0);
        assert!(!batch.error_pending());
    }

    #[test]
    fn the_source_and_the_address_that_was_asked_are_told() {
        for (any, asked) in [("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "::1"), ("127.0.0.2:0", "127.0.0.2")] {
            let socket = listener(any);
            let to: IpAddr = asked.parse().unwrap();
            let client = UdpSocket::bind((if to.is_ipv4() { "127.0.0.1" } else { "::1" }, 0)).unwrap();
            client.send_to(b"hello", (to, socket.local_addr().unwrap().port())).unwrap();
            wait_for_datagram(&socket);
            let mut batch = RecvBatch::new(4);
            assert_eq!(receive_anew(&mut batch, &socket, 4), 1);
            let from = client.local_addr().unwrap();
            // A socket that has one address alone need not be told.
            let told = any.starts_with(['0', '[']).then_some(to);
            let expected = RecvMeta { from, to: told, len: 5, tos: 0, truncated: false, drops: None, each: None };
            assert_eq!(batch.meta(0), expected);
            assert_eq!(batch.datagram(0), b"hello");
        }
    }

    #[test]
    fn tos_is_told_with_both_dscp_and_ecn() {
        let mut batch = RecvBatch::new(4);
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let relay = open_relay(address.parse().unwrap(), &UdpOptions::RELAY).unwrap();
            let peer = UdpSocket::bind(address).unwrap();
            let peer_options = socket2::SockRef::from(&peer);
            // EF and ECT(1).
            if relay.local_addr().unwrap().is_ipv4() {
                peer_options.set_tos_v4(0xb9).unwrap();
            } else {
                peer_options.set_tclass_v6(0xb9).unwrap();
            }
            peer.send_to(b"", relay.local_addr().unwrap()).unwrap();
            wait_for_datagram(&relay);
            assert_eq!(receive_anew(&mut batch, &relay, 4), 1);
            let meta = batch.meta(0);
            assert_eq!((meta.tos, meta.to, meta.len), (0xb9, None, 0));
        }
    }

    #[test]
    fn a_batch_is_used_again_without_a_trace_of_the_last_one() {
        let mut batch = RecvBatch::new(2);
        let v6 = listener("[::]:0");
        let v4 = listener("0.0.0.0:0");
        let from_v6 = UdpSocket::bind("[::1]:0").unwrap();
        let from_v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
        // Its control messages need more room than those of IPv4 left.
        socket2::SockRef::from(&from_v6).set_tclass_v6(0xb9).unwrap();
        for _ in 0..3 {
            for (socket, client, payload) in [(&v4, &from_v4, &b"four"[..]), (&v6, &from_v6, &b"sixsix"[..])] {
                let asked = client.local_addr().unwrap().ip();
                client.send_to(payload, (asked, socket.local_addr().unwrap().port())).unwrap();
                wait_for_datagram(socket);
                assert_eq!(receive_anew(&mut batch, socket, 2), 1);
                assert_eq!(batch.meta(0).from, client.local_addr().unwrap());
                assert_eq!(batch.meta(0).to, Some(asked));
                assert_eq!(batch.meta(0).tos, if asked.is_ipv6() { 0xb9 } else { 0 });
                assert_eq!(batch.datagram(0), payload);
            }
        }
    }

    #[test]
    fn the_longest_datagram_fits() {
        let socket = listener("[::1]:0");
        let client = UdpSocket::bind("[::1]:0").unwrap();
        let payload: Vec<u8> = (0..65527_u32).map(|i| i as u8).collect();
        client.send_to(&payload, socket.local_addr().unwrap()).unwrap();
        wait_for_datagram(&socket);
        let mut batch = RecvBatch::new(2);
        assert_eq!(receive_anew(&mut batch, &socket, 2), 1);
        assert!(!batch.meta(0).truncated);
        assert_eq!(batch.datagram(0), payload);
    }

    #[test]
    fn a_datagram_longer_than_its_slot_is_marked() {
        let socket = listener("127.0.0.1:0");
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for length in [100, 101] {
            client.send_to(&vec![1; length], socket.local_addr().unwrap()).unwrap();
        }
        let mut batch = RecvBatch::with_payload_max(4, 100);
        for truncated in [false, true] {
            wait_for_datagram(&socket);
            assert_eq!(receive_anew(&mut batch, &socket, 1), 1);
            assert_eq!((batch.meta(0).truncated, batch.meta(0).len), (truncated, 100));
            assert_eq!(batch.datagram(0), [1; 100]);
        }
    }

    #[test]
    fn a_slot_has_room_in_front_of_and_behind_its_datagram() {
        let socket = listener("127.0.0.1:0");
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut batch = RecvBatch::new(2);
        for payload in [b"one", b"two"] {
            client.send_to(payload, socket.local_addr().unwrap()).unwrap();
        }
        for received in 0..2 {
            wait_for_datagram(&socket);
            assert_eq!(receive_anew(&mut batch, &socket, 1), 1, "{received}");
            let slot = batch.slot_mut(0);
            assert!(slot.len() >= HEADROOM + PAYLOAD_MAX + TAILROOM);
            slot[HEADROOM - 2..HEADROOM].copy_from_slice(b">>");
            let expected: &[u8] = if received == 0 { b">>one" } else { b">>two" };
            assert_eq!(batch.part(0, HEADROOM - 2, 5), Some(expected));
        }
        let last = batch.slot_bytes;
        batch.slot_mut(1)[last - 1] = 1;
        assert_eq!(batch.part(1, last - 1, 1), Some(&[1][..]));
        for (slot, start, len) in [(1, last, 1), (2, 0, 1), (0, 1, usize::MAX), (usize::MAX, 0, 0), (0, last + 1, 0)] {
            assert_eq!(batch.part(slot, start, len), None, "{slot} {start} {len}");
        }
    }

    #[test]
    fn dropped_datagrams_are_counted() {
        let relay = open_udp_listeners("127.0.0.1:0".parse().unwrap(), 1, &small(4096)).unwrap().remove(0);
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = relay.local_addr().unwrap();
        let sent = 100;
        for _ in 0..sent {
            peer.send_to(&[0; 500], to).unwrap();
        }
        let mut batch = RecvBatch::new(sent);
        let (mut received, mut drops) = (0, None);
        // The counter comes with a datagram that was queued after a drop.
        for _ in 0..3 {
            wait_for_datagram(&relay);
            let count = receive_anew(&mut batch, &relay, sent);
            received += count;
            drops = (0..count).find_map(|i| batch.meta(i).drops).or(drops);
            peer.send_to(b"after the drops", to).unwrap();
        }
        let drops = drops.unwrap();
        assert!(received < sent);
        assert!(drops > 0 && drops as usize <= sent, "{drops}");
    }

    #[test]
    fn an_icmp_error_does_not_end_reading() {
        let mut batch = RecvBatch::new(4);
        for ip in ["127.0.0.1", "::1"] {
            let relay = open_relay(SocketAddr::new(ip.parse().unwrap(), 0), &UdpOptions::RELAY).unwrap();
            let peer = UdpSocket::bind((ip, 0)).unwrap();
            let (_closed, to) = closed_port(ip);
            relay.send_to(b"anyone?", to).unwrap();
            wait_for_error(&relay);
            assert_eq!(receive_anew(&mut batch, &relay, 4), 0);
            assert!(batch.error_pending());
            assert_eq!(receive_anew(&mut batch, &relay, 4), 0);
            assert!(!batch.error_pending());

            relay.send_to(b"anyone?", to).unwrap();
            wait_for_error(&relay);
            peer.send_to(b"still here", relay.local_addr().unwrap()).unwrap();
            wait_for_datagram(&relay);
            assert_eq!(receive_anew(&mut batch, &relay, 4), 1);
            assert!(batch.error_pending());
            assert_eq!(batch.datagram(0), b"still here");
        }
    }

    #[test]
    fn a_batch_can_move_to_another_thread() {
        let socket = listener("127.0.0.1:0");
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut batch = RecvBatch::new(2);
        client.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        wait_for_datagram(&socket);
        let moved = std::thread::spawn(move || {
            assert_eq!(receive_anew(&mut batch, &socket, 2), 1);
            batch
        });
        assert_eq!(moved.join().unwrap().datagram(0), b"x");
    }
}
