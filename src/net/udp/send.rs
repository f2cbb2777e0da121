//! Sending a batch.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::super::poll::Token;
use super::layout::{Laid, Layout};
use super::{Address, PAYLOAD_MAX, RecvBatch, SendReport, may_come_from_icmp, may_refuse_trains};

/// The most datagrams of one system call.
const RUN_MAX: usize = 64;

/// What copies of one batch may take: 16 of the longest datagrams, or a thousand of 1 KiB.
const COPIES_MAX_BYTES: usize = 16 << 16;

/// Datagrams to be sent, in the order in which they were pushed; each names its socket by a token of the caller.
///
/// Descriptors come in only at [`flush`](Self::flush), so a closed socket's number cannot be mistaken for that of the
/// next. Still: flush before closing a socket whose datagrams should leave, before a token is given to another socket,
/// before socket options are changed, and before the slots that are referred to are received into again.
pub struct SendBatch {
    entries: Vec<Entry>,
    capacity: usize,
    copies: Vec<u8>,
    report: SendReport,
    layout: Layout,
    refused_trains: Vec<Token>,
}

/// A socket to send on.
#[derive(Clone, Copy)]
pub struct Sender<'s> {
    pub socket: BorrowedFd<'s>,
    /// Datagrams of one length to one destination may cross the stack together.
    pub trains: bool,
}

struct Entry {
    token: Token,
    address: Address,
    body: Body,
}

/// Where the bytes of a datagram are.
#[derive(Clone, Copy)]
enum Body {
    Slot { slot: usize, start: usize, len: usize },
    Copy { start: usize, len: usize },
}

impl SendBatch {
    /// Makes room for `capacity` datagrams (at least one) between flushes.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            entries: Vec::with_capacity(capacity),
            capacity,
            copies: Vec::with_capacity(COPIES_MAX_BYTES),
            report: SendReport::default(),
            layout: Layout::new(capacity.min(RUN_MAX)),
            refused_trains: Vec::new(),
        }
    }

    /// Queues `len` bytes of a [`RecvBatch`] slot from `start` on, counted from the slot's beginning, headroom
    /// included. They are read when the batch is flushed.
    ///
    /// `source` is the local address to send from, for sockets bound to a wildcard; `tos` is TOS or traffic class.
    /// Returns false if the batch is full: the datagram is dropped, and the next report counts it.
    #[expect(clippy::too_many_arguments, reason = "a struct of the same seven values would be built and taken apart")]
    pub fn push_slot(
        &mut self,
        token: Token,
        to: SocketAddr,
        source: Option<IpAddr>,
        tos: u8,
        slot: usize,
        start: usize,
        len: usize,
    ) -> bool {
        self.push(Entry { token, address: Address { to, source, tos }, body: Body::Slot { slot, start, len } })
    }

    /// Queues a copy of `bytes`; otherwise like [`push_slot`](Self::push_slot).
    pub fn push_copy(&mut self, token: Token, to: SocketAddr, source: Option<IpAddr>, tos: u8, bytes: &[u8]) -> bool {
        self.push_parts(token, Address { to, source, tos }, &[bytes])
    }

    /// Queues a copy of one datagram that lies in several places, in their order.
    pub(in crate::net) fn push_parts(&mut self, token: Token, address: Address, parts: &[&[u8]]) -> bool {
        let start = self.copies.len();
        let len = parts.iter().map(|part| part.len()).sum();
        if len > COPIES_MAX_BYTES - start {
            self.report.overflowed += 1;
            return false;
        }
        let pushed = self.push(Entry { token, address, body: Body::Copy { start, len } });
        if pushed {
            parts.iter().for_each(|part| self.copies.extend_from_slice(part));
        }
        pushed
    }

    fn push(&mut self, entry: Entry) -> bool {
        if self.entries.len() >= self.capacity {
            self.report.overflowed += 1;
            return false;
        }
        self.entries.push(entry);
        true
    }

    /// Whether the next datagram might not find room: time to flush.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity || self.copies.len() > COPIES_MAX_BYTES - PAYLOAD_MAX
    }

    /// The number of datagrams queued.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a datagram of a socket is queued.
    pub fn holds(&self, token: Token) -> bool {
        self.entries.iter().any(|entry| entry.token == token)
    }

    /// Sends everything that is queued, in order, in one system call for each run of datagrams of the same socket, and
    /// says what became of it, including what overflowed since the last flush.
    ///
    /// `sender` finds the socket of a token, None if it is closed. `slots` is the batch that
    /// [`push_slot`](Self::push_slot) referred to. Nothing waits: what cannot be sent now is dropped and counted.
    pub fn flush<'s>(&mut self, slots: &RecvBatch, mut sender: impl FnMut(Token) -> Option<Sender<'s>>) -> SendReport {
        let entries = mem::take(&mut self.entries);
        for of_one_socket in entries.chunk_by(|a, b| a.token == b.token) {
            let token = of_one_socket[0].token;
            let Some(sender) = sender(token) else {
                self.report.closed += of_one_socket.len();
                continue;
            };
            for run in of_one_socket.chunks(self.layout.len()) {
                let prepared = self.prepare(run, slots, sender.trains);
                if !self.send(sender.socket, prepared) {
                    self.refused_trains.push(token);
                }
            }
        }
        self.entries = entries;
        self.entries.clear();
        self.copies.clear();
        mem::take(&mut self.report)
    }

    /// Sockets whose device has refused a train since the last call; each datagram of it was sent alone.
    pub fn refused_trains(&mut self) -> impl Iterator<Item = Token> {
        self.refused_trains.drain(..)
    }

    /// Lays out the headers of a run and returns how many there are; a datagram that cannot be sent gets none.
    fn prepare(&mut self, run: &[Entry], slots: &RecvBatch, trains: bool) -> usize {
        self.layout.clear();
        let mut prepared = 0;
        for entry in run {
            let bytes = match entry.body {
                Body::Slot { slot, start, len } => slots.part(slot, start, len),
                Body::Copy { start, len } => self.copies.get(start..start + len),
            };
            let Some(bytes) = bytes else {
                self.report.count_error(libc::EINVAL);
                continue;
            };
            match self.layout.lay_out(prepared, entry.address, bytes, trains) {
                Laid::Header => prepared += 1,
                Laid::Joined => {}
                Laid::OfTwoFamilies => self.report.count_error(libc::EINVAL),
            }
        }
        prepared
    }

    /// Sends the first `prepared` headers; false if a train was refused.
    ///
    /// sendmmsg stops at the first error and hides it if anything was sent before. So it is called again from there:
    /// an error that an earlier ICMP message left is gone by then, any other comes back and is that datagram's own.
    fn send(&mut self, socket: BorrowedFd<'_>, prepared: usize) -> bool {
        let (mut done, mut takes_trains) = (0, true);
        let mut retried = None;
        while done < prepared {
            let errno = match self.call(socket, done, prepared - done) {
                Ok(sent) => {
                    self.report.sent += (done..done + sent).map(|index| self.layout.datagrams_of(index)).sum::<usize>();
                    done += sent;
                    continue;
                }
                Err(errno) => errno,
            };
            if may_come_from_icmp(errno) && retried != Some(done) {
                retried = Some(done);
                continue;
            }
            match self.layout.datagrams_of(done) {
                1 => self.report.count_error(errno),
                datagrams if may_refuse_trains(errno) => {
                    takes_trains = false;
                    self.send_one_by_one(socket, done, datagrams);
                }
                datagrams => (0..datagrams).for_each(|_| self.report.count_error(errno)),
            }
            done += 1;
        }
        takes_trains
    }

    /// Sends the datagrams of a train that was refused.
    fn send_one_by_one(&mut self, socket: BorrowedFd<'_>, index: usize, datagrams: usize) {
        for _ in 0..datagrams {
            self.layout.split_off(index);
            let mut result = self.call(socket, index, 1);
            if result.is_err_and(may_come_from_icmp) {
                result = self.call(socket, index, 1);
            }
            match result {
                Ok(sent) => self.report.sent += sent,
                Err(errno) => self.report.count_error(errno),
            }
        }
    }

    /// One system call for `count` headers from `index` on: how many were sent, or the errno of the first.
    fn call(&mut self, socket: BorrowedFd<'_>, index: usize, count: usize) -> Result<usize, i32> {
        loop {
            self.report.calls += 1;
            // SAFETY: the headers from `index` on point to names, control messages and iovecs that `self` owns, laid out
            // by `prepare` for bytes in `self.copies` and in slots that the caller of `flush` borrows; none of them is
            // touched before this returns.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.layout.header(index),
                    count as libc::c_uint,
                    (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                )
            };
            if let Ok(sent) = usize::try_from(sent) {
                return Ok(sent);
            }
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            if errno != libc::EINTR {
                return Err(errno);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::super::HEADROOM;
    use super::*;
    use crate::net::error_queue::read_error_queue;
    use crate::net::socket::{UdpOptions, open_relay, open_udp_listeners};
    use crate::net::test_support::{closed_port, receive_anew, wait_for_datagram, wait_for_error};

    const SENDER: Token = Token(1);

    fn relay(ip: &str) -> UdpSocket {
        open_relay(SocketAddr::new(ip.parse().unwrap(), 0), &UdpOptions::LISTENER).unwrap()
    }

    fn one_by_one(socket: &UdpSocket) -> Sender<'_> {
        Sender { socket: socket.as_fd(), trains: false }
    }

    /// Receives `count` datagrams of up to 2 KiB, however they are spread over calls.
    fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut batch = RecvBatch::new(64);
        let mut datagrams = Vec::new();
        while datagrams.len() < count {
            wait_for_datagram(socket);
            let received = receive_anew(&mut batch, socket, 64);
            datagrams.extend((0..received).map(|i| batch.datagram(i).to_vec()));
        }
        datagrams
    }

    #[test]
    fn a_batch_crosses_in_a_handful_of_system_calls_and_in_order() {
        for ip in ["127.0.0.1", "::1"] {
            let (client, server, peer) = (relay(ip), relay(ip), relay(ip));
            let to_server = server.local_addr().unwrap();
            let to_peer = peer.local_addr().unwrap();
            let mut slots = RecvBatch::new(64);
            let mut batch = SendBatch::new(64);
            for number in 0..64_u8 {
                assert!(batch.push_copy(SENDER, to_server, None, 0, &[number; 160]));
            }
            assert!(batch.is_full());
            let report = batch.flush(&slots, |_| Some(one_by_one(&client)));
            assert_eq!(report, SendReport { sent: 64, calls: 1, ..SendReport::default() });
            assert!(batch.is_empty());

            let (mut received, mut calls) = (0, 0);
            let mut forwarded = SendReport::default();
            while received < 64 {
                wait_for_datagram(&server);
                let count = receive_anew(&mut slots, &server, 64);
                calls += 1;
                for index in 0..count {
                    let len = slots.meta(index).len;
                    slots.slot_mut(index)[HEADROOM - 4..HEADROOM].copy_from_slice(b"head");
                    assert!(batch.push_slot(SENDER, to_peer, None, 0, index, HEADROOM - 4, len + 4));
                }
                forwarded += batch.flush(&slots, |_| Some(one_by_one(&server)));
                received += count;
            }
            assert_eq!((forwarded.sent, forwarded.dropped()), (64, 0));
            assert!(calls <= 4 && forwarded.calls <= 4, "{calls} {forwarded:?}");
            for (number, datagram) in receive(&peer, 64).into_iter().enumerate() {
                assert_eq!(datagram, [&b"head"[..], &[number as u8; 160]].concat());
            }
        }
    }

    #[test]
    fn runs_of_several_sockets_keep_to_their_own() {
        let senders = [relay("127.0.0.1"), relay("127.0.0.1")];
        let target = relay("127.0.0.1");
        let mut batch = SendBatch::new(300);
        for number in 0..260_u32 {
            let token = Token(u64::from(number >= 130));
            assert!(batch.push_copy(token, target.local_addr().unwrap(), None, 0, &number.to_be_bytes()));
        }
        let report = batch.flush(&RecvBatch::new(1), |token| senders.get(token.0 as usize).map(one_by_one));
        // 64 + 64 + 2 for each.
        assert_eq!(report, SendReport { sent: 260, calls: 6, ..SendReport::default() });
        let mut slots = RecvBatch::new(64);
        let mut number = 0_u32;
        while number < 260 {
            wait_for_datagram(&target);
            for index in 0..receive_anew(&mut slots, &target, 64) {
                assert_eq!(slots.datagram(index), number.to_be_bytes());
                let sender = &senders[usize::from(number >= 130)];
                assert_eq!(slots.meta(index).from, sender.local_addr().unwrap());
                number += 1;
            }
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked_with_its_tos() {
        for (any, asked) in [("0.0.0.0:0", "127.0.0.3"), ("[::]:0", "::1")] {
            let server = open_udp_listeners(any.parse().unwrap(), 1, &UdpOptions::default()).unwrap().remove(0);
            let asked: IpAddr = asked.parse().unwrap();
            let client = relay(if asked.is_ipv4() { "127.0.0.1" } else { "::1" });
            let mut batch = SendBatch::new(4);
            for (source, tos) in [(Some(asked), 0), (Some(asked), 0xb9), (None, 0x02)] {
                batch.push_copy(SENDER, client.local_addr().unwrap(), source, tos, b"answer");
            }
            let report = batch.flush(&RecvBatch::new(1), |_| Some(one_by_one(&server)));
            assert_eq!(report.sent, 3, "{report:?}");
            let mut slots = RecvBatch::new(1);
            for (source, tos) in [(Some(asked), 0), (Some(asked), 0xb9), (None, 0x02)] {
                wait_for_datagram(&client);
                assert_eq!(receive_anew(&mut slots, &client, 1), 1);
                let from = source.unwrap_or(client.local_addr().unwrap().ip());
                assert_eq!((slots.meta(0).from.ip(), slots.meta(0).tos), (from, tos));
            }
        }
    }

    #[test]
    fn a_datagram_that_fails_is_counted_and_the_rest_still_goes() {
        let (sender, target) = (relay("127.0.0.1"), relay("127.0.0.1"));
        let to = target.local_addr().unwrap();
        let mut batch = SendBatch::new(64);
        batch.push_copy(SENDER, to, None, 0, &[0; 65535]);
        batch.push_copy(SENDER, to, None, 0, b"first");
        batch.push_copy(SENDER, "255.255.255.255:9".parse().unwrap(), None, 0, b"broadcast");
        batch.push_copy(SENDER, "127.0.0.1:0".parse().unwrap(), None, 0, b"port 0");
        batch.push_copy(SENDER, to, None, 0, b"second");
        batch.push_copy(SENDER, to, Some("::1".parse().unwrap()), 0, b"two families");
        batch.push_slot(SENDER, to, None, 0, 1, 0, 1);
        batch.push_copy(Token(2), to, None, 0, b"closed");
        batch.push_copy(SENDER, to, None, 0, b"third");
        let report = batch.flush(&RecvBatch::new(1), |token| (token == SENDER).then(|| one_by_one(&sender)));
        let expected = SendReport {
            sent: 3,
            too_large: 1,
            denied: 1,
            closed: 1,
            other: 3,
            other_errno: libc::EINVAL,
            calls: report.calls,
            ..SendReport::default()
        };
        assert_eq!(report, expected);
        assert_eq!(receive(&target, 3), [&b"first"[..], b"second", b"third"]);
    }

    #[test]
    fn the_icmp_error_of_an_earlier_datagram_costs_no_other() {
        for ip in ["127.0.0.1", "::1"] {
            let (sender, target) = (relay(ip), relay(ip));
            let (_closed, nobody) = closed_port(ip);
            sender.send_to(b"anyone?", nobody).unwrap();
            wait_for_error(&sender);
            let mut batch = SendBatch::new(4);
            batch.push_copy(SENDER, target.local_addr().unwrap(), None, 0, b"first");
            batch.push_copy(SENDER, nobody, None, 0, b"anyone now?");
            batch.push_copy(SENDER, target.local_addr().unwrap(), None, 0, b"second");
            let report = batch.flush(&RecvBatch::new(1), |_| Some(one_by_one(&sender)));
            assert_eq!((report.sent, report.dropped()), (3, 0), "{report:?}");
            assert!(report.calls > 1);
            assert_eq!(receive(&target, 2), [&b"first"[..], b"second"]);
            assert_eq!(read_error_queue(&sender, |error| assert_eq!(error.to, nobody)).unwrap(), 2);
        }
    }

    #[test]
    fn a_full_batch_drops_and_counts() {
        let (sender, target) = (relay("127.0.0.1"), relay("127.0.0.1"));
        let to = target.local_addr().unwrap();
        let mut batch = SendBatch::new(2);
        assert!(batch.push_copy(SENDER, to, None, 0, b"first") && !batch.is_full());
        assert!(batch.push_slot(SENDER, to, None, 0, 0, 0, 1) && batch.is_full());
        assert!(!batch.push_copy(SENDER, to, None, 0, b"third") && batch.len() == 2);
        let slots = RecvBatch::new(1);
        let report = batch.flush(&slots, |_| Some(one_by_one(&sender)));
        assert_eq!((report.sent, report.overflowed), (2, 1));
        let report = batch.flush(&slots, |_| Some(one_by_one(&sender)));
        assert_eq!(report, SendReport::default());

        let mut batch = SendBatch::new(1000);
        let pushed =
            (0..1000).filter(|_| !batch.is_full() && batch.push_copy(SENDER, to, None, 0, &[0; 60000])).count();
        assert_eq!(pushed, 17);
        assert!(!batch.push_copy(SENDER, to, None, 0, &[0; 60000]));
        assert_eq!(batch.flush(&slots, |_| None), SendReport { closed: 17, overflowed: 1, ..SendReport::default() });
        assert!(!batch.is_full() && batch.push_copy(SENDER, to, None, 0, &[0; 60000]));
    }
}
