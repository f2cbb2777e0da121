//! Datagrams by epoll, recvmmsg and sendmmsg.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use super::runs::{Merging, Run, RunWatch, ZEROS};
use super::{Arrival, Datagram, Datagrams, Destination, Role, SocketKey};
use crate::net::poll::{Events, Interest, Poll, Token};
use crate::net::udp::{Address, RecvBatch, SendBatch, SendReport, Sender};

/// Datagrams read from one socket before another one has its turn.
const RECV_BATCH: usize = 32;
/// Datagrams received before they are sent: the more, the fewer system calls towards clients.
const SLOTS: usize = 128;
/// Datagrams that wait for one flush.
const SEND_BATCH: usize = 256;
/// Datagrams of relay sockets between two looks at a listener that has more.
const RELAY_DATAGRAMS_MAX: usize = 32;
/// Sockets that may be ready at once without the heap being asked.
const READY_AT_FIRST: usize = 256;
/// Tokens with this bit are the sockets of this back end.
const OURS: u64 = 1 << 63;

/// The portable back end.
pub struct EpollDatagrams {
    poll: Poll,
    sockets: Vec<Option<Entry>>,
    free: Vec<u32>,
    recv: RecvBatch,
    send: SendBatch,
    sent: SendReport,
    /// Sockets with something to read, in the order in which they have their turn; epoll tells each arrival once.
    ready: VecDeque<SocketKey>,
    /// Listeners with something to read.
    ready_listeners: VecDeque<SocketKey>,
    /// Sockets that may hold more than was read: for the next turn.
    unread: VecDeque<SocketKey>,
    /// The socket that is being read, and the slots that are not told yet.
    current: Option<(SocketKey, Range<usize>)>,
    /// What is left of a slot of it.
    run: Option<Run>,
    run_watch: RunWatch,
    /// What sockets begin with.
    merging: Merging,
    relay_datagrams: usize,
    /// Sockets whose error queue has something.
    errors: VecDeque<SocketKey>,
    closed: VecDeque<Token>,
}

struct Entry {
    token: Token,
    role: Role,
    socket: UdpSocket,
    /// No train of its datagrams was refused yet.
    trains: bool,
    merging: Merging,
    /// It waits for its turn, once, however often epoll tells of it.
    is_ready: bool,
}

impl EpollDatagrams {
    /// Fails when epoll cannot be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            sockets: Vec::new(),
            free: Vec::new(),
            recv: RecvBatch::new(SLOTS),
            send: SendBatch::new(SEND_BATCH),
            sent: SendReport::default(),
            ready: VecDeque::with_capacity(READY_AT_FIRST),
            ready_listeners: VecDeque::with_capacity(READY_AT_FIRST),
            unread: VecDeque::with_capacity(READY_AT_FIRST),
            current: None,
            run: None,
            run_watch: RunWatch::default(),
            merging: Merging::default(),
            relay_datagrams: 0,
            errors: VecDeque::new(),
            closed: VecDeque::new(),
        })
    }

    fn entry(&self, key: SocketKey) -> Option<&Entry> {
        self.sockets.get(key.0 as usize)?.as_ref()
    }

    fn mark_ready(&mut self, key: SocketKey) {
        let Some(Some(entry)) = self.sockets.get_mut(key.0 as usize) else { return };
        if std::mem::replace(&mut entry.is_ready, true) {
            return;
        }
        match entry.role {
            Role::Listener => self.ready_listeners.push_back(key),
            Role::Relay => self.ready.push_back(key),
        }
    }

    /// The next datagram of the socket that is being read.
    fn next_of_current(&mut self) -> Option<Arrival> {
        if let Some(run) = &mut self.run
            && let Some(datagram) = run.next()
        {
            let key = run.key;
            self.relay_datagrams += usize::from(self.entry(key).is_some_and(|entry| entry.role == Role::Relay));
            return Some(Arrival::Datagram(datagram));
        }
        let (key, slots) = self.current.as_mut()?;
        let (key, Some(slot)) = (*key, slots.next()) else {
            self.current = None;
            return None;
        };
        let entry = self.sockets.get_mut(key.0 as usize).and_then(Option::as_mut)?;
        let meta = self.recv.meta(slot);
        let datagram = Datagram {
            token: entry.token,
            slot,
            at: 0,
            len: meta.len,
            from: meta.from,
            to: meta.to,
            tos: meta.tos,
            truncated: meta.truncated,
            in_run: false,
        };
        self.run = Run::new(key, &datagram, meta.each);
        if self.run.is_some() {
            return self.next_of_current();
        }
        self.run_watch.see(&mut entry.merging, key, &entry.socket, &datagram);
        if entry.role == Role::Relay {
            self.relay_datagrams += 1;
        }
        Some(Arrival::Datagram(datagram))
    }

    /// Chooses whose turn it is: a listener that has more is not kept waiting by many relay sockets.
    fn next_socket(&mut self) -> Option<SocketKey> {
        if self.relay_datagrams >= RELAY_DATAGRAMS_MAX
            && let Some(key) = self.ready_listeners.pop_front()
        {
            self.relay_datagrams = 0;
            return Some(key);
        }
        self.ready.pop_front().or_else(|| self.ready_listeners.pop_front())
    }

    /// Reads one batch of a socket.
    fn read(&mut self, key: SocketKey) {
        if self.recv.free() < RECV_BATCH {
            self.flush();
            self.recv.clear();
        }
        let Some(entry) = self.sockets.get_mut(key.0 as usize).and_then(Option::as_mut) else { return };
        entry.is_ready = false;
        // What fails here is the host's want of memory; the next arrival tells again.
        let received = self.recv.recv(&entry.socket, RECV_BATCH).unwrap_or(0..0);
        if self.recv.error_pending() {
            self.errors.push_back(key);
        }
        if received.len() == RECV_BATCH || self.recv.error_pending() {
            match entry.role {
                // Its next turn is in this one, between the relay sockets.
                Role::Listener if !self.ready.is_empty() => self.mark_ready(key),
                Role::Listener | Role::Relay => self.unread.push_back(key),
            }
        }
        self.current = Some((key, received));
    }
}

impl Datagrams for EpollDatagrams {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn add(&mut self, token: Token, role: Role, socket: UdpSocket) -> io::Result<SocketKey> {
        let index = self.free.pop().unwrap_or(self.sockets.len() as u32);
        if let Err(error) = self.poll.add(&socket, Token(OURS | u64::from(index)), Interest::Readable, true) {
            if (index as usize) < self.sockets.len() {
                self.free.push(index);
            }
            return Err(error);
        }
        if index as usize == self.sockets.len() {
            self.sockets.push(None);
        }
        let entry = Entry { token, role, socket, trains: true, merging: self.merging, is_ready: false };
        self.sockets[index as usize] = Some(entry);
        Ok(SocketKey(index))
    }

    fn remove(&mut self, key: SocketKey) {
        if self.send.holds(Token(key.0.into())) {
            self.flush();
        }
        if let Some(entry) = self.sockets.get_mut(key.0 as usize).and_then(Option::take) {
            self.free.push(key.0);
            self.closed.push_back(entry.token);
        }
        if self.current.as_ref().is_some_and(|(current, _)| *current == key) {
            (self.current, self.run) = (None, None);
        }
        // Where its key still waits for a turn, the next socket that gets it is read once for nothing.
    }

    fn socket(&self, key: SocketKey) -> Option<&UdpSocket> {
        Some(&self.entry(key)?.socket)
    }

    fn merge_nothing(&mut self) {
        self.merging = Merging::NEVER;
        self.sockets.iter_mut().flatten().for_each(|entry| entry.merging = Merging::NEVER);
    }

    fn poll(&self) -> &Poll {
        &self.poll
    }

    fn wait(&mut self, events: &mut Events, patience: Option<Duration>, rest: Option<Duration>) -> io::Result<()> {
        self.flush();
        self.recv.clear();
        (self.current, self.run) = (None, None);
        self.run_watch.turn();
        if let Some(rest) = rest {
            std::thread::sleep(rest);
        }
        let at_once = rest.is_some() || self.has_more();
        self.poll.wait(events, if at_once { Some(Duration::ZERO) } else { patience })?;
        while let Some(key) = self.unread.pop_front() {
            self.mark_ready(key);
        }
        for index in 0..events.len() {
            let Some(event) = events.get(index).filter(|event| event.token.0 & OURS != 0) else { continue };
            let key = SocketKey(event.token.0 as u32);
            if event.error {
                self.errors.push_back(key);
            }
            self.mark_ready(key);
        }
        events.retain(|event| event.token.0 & OURS == 0);
        Ok(())
    }

    fn next(&mut self) -> Option<Arrival> {
        loop {
            if let Some(arrival) = self.next_of_current() {
                return Some(arrival);
            }
            if let Some(token) = self.closed.pop_front() {
                return Some(Arrival::Closed(token));
            }
            while let Some(key) = self.errors.pop_front() {
                if let Some(entry) = self.entry(key) {
                    return Some(Arrival::Errors(entry.token));
                }
            }
            let key = self.next_socket()?;
            self.read(key);
        }
    }

    fn has_more(&self) -> bool {
        !self.unread.is_empty() || !self.closed.is_empty() || !self.errors.is_empty()
    }

    fn datagram(&self, slot: usize) -> &[u8] {
        self.recv.datagram(slot)
    }

    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        self.recv.slot_mut(slot)
    }

    fn send_slot(&mut self, destination: Destination, slot: usize, start: usize, len: usize) {
        if self.send.is_full() {
            self.flush();
        }
        let Destination { socket, to, source, tos } = destination;
        self.send.push_slot(Token(socket.0.into()), to, source, tos, slot, start, len);
    }

    fn send_framed(&mut self, destination: Destination, prefix: &[u8], slot: usize, range: Range<usize>, padding: u8) {
        if self.send.is_full() {
            self.flush();
        }
        let Destination { socket, to, source, tos } = destination;
        let Some(bytes) = self.recv.part(slot, range.start, range.len()) else { return };
        let parts = [prefix, bytes, &ZEROS[..usize::from(padding)]];
        self.send.push_parts(Token(socket.0.into()), Address { to, source, tos }, &parts);
    }

    fn send_copy(&mut self, destination: Destination, bytes: &[u8]) {
        if self.send.is_full() {
            self.flush();
        }
        let Destination { socket, to, source, tos } = destination;
        self.send.push_copy(Token(socket.0.into()), to, source, tos, bytes);
    }

    fn flush(&mut self) {
        if self.send.is_empty() {
            return;
        }
        let sockets = &self.sockets;
        self.sent += self.send.flush(&self.recv, |Token(index)| {
            let entry = sockets.get(index as usize)?.as_ref()?;
            Some(Sender { socket: entry.socket.as_fd(), trains: entry.trains })
        });
        for Token(index) in self.send.refused_trains() {
            if let Some(Some(entry)) = self.sockets.get_mut(index as usize) {
                entry.trains = false;
            }
        }
    }

    fn sent(&self) -> SendReport {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::net::socket::{UdpOptions, open_relay};

    /// With what comes in each turn epoll tells of a socket anew, which is to have one turn all the same.
    #[test]
    fn a_flood_that_goes_on_has_one_batch_in_each_turn() {
        for role in [Role::Relay, Role::Listener] {
            let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
            let flooded = open_relay(loopback, &UdpOptions::LISTENER).unwrap();
            let (address, peer) = (flooded.local_addr().unwrap(), UdpSocket::bind(loopback).unwrap());
            let mut datagrams = EpollDatagrams::new().unwrap();
            datagrams.add(Token(7), role, flooded).unwrap();
            let mut events = Events::with_capacity(8);
            (0..6 * RECV_BATCH).for_each(|_| _ = peer.send_to(b"flood", address).unwrap());
            for turn in 0..4 {
                peer.send_to(b"flood", address).unwrap();
                datagrams.wait(&mut events, Some(Duration::from_secs(10)), None).unwrap();
                let told = std::iter::from_fn(|| datagrams.next()).count();
                assert_eq!(told, RECV_BATCH, "{role:?}, turn {turn}");
            }
        }
    }
}
