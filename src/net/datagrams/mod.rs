//! The datagram sockets of one worker behind one face: who has something, its bytes, and what goes out.
//!
//! Two back ends: [epoll](EpollDatagrams), which works everywhere, and [io_uring](RingDatagrams). Both receive into slots
//! with [`HEADROOM`](super::udp::HEADROOM), so that a prefix is written in front of a datagram in place, and both send
//! what was pushed when they are flushed or waited on, in order per socket.

mod epoll;
mod ring;
mod runs;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::time::Duration;

use super::poll::{Events, Poll, Token};
use super::udp::SendReport;

pub use epoll::EpollDatagrams;
pub use ring::RingDatagrams;

/// A socket of the back end: an index that is used again after the socket has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey(u32);

/// What a socket is for. Listeners have their turn between the others, however many those are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Listener,
    Relay,
}

/// What [`Datagrams::next`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A datagram, in a slot that keeps it until the next wait.
    Datagram(Datagram),
    /// The error queue of a socket has something.
    Errors(Token),
    /// A socket that was removed is closed: its port can be bound again.
    Closed(Token),
}

/// A datagram that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// What the caller calls the socket.
    pub token: Token,
    pub slot: usize,
    /// Where it begins, counted from [`HEADROOM`](super::udp::HEADROOM).
    pub at: usize,
    pub len: usize,
    /// Its source, with the scope of a link-local IPv6 address.
    pub from: SocketAddr,
    /// The destination address in its IP header, on sockets that ask for it.
    pub to: Option<IpAddr>,
    /// TOS or traffic class.
    pub tos: u8,
    /// Its end is lost.
    pub truncated: bool,
    /// It shares its slot with others, which nothing is to be written over.
    pub in_run: bool,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub socket: SocketKey,
    pub to: SocketAddr,
    /// The local address to send from, for sockets bound to a wildcard.
    pub source: Option<IpAddr>,
    /// TOS or traffic class.
    pub tos: u8,
}

/// The datagram sockets of one worker.
pub trait Datagrams: Sized {
    /// Begins; to be called once, on the thread that is to wait.
    fn start(&mut self) -> io::Result<()>;

    /// Serves a socket from now on. Fails for want of memory or descriptors.
    fn add(&mut self, token: Token, role: Role, socket: UdpSocket) -> io::Result<SocketKey>;

    /// Sends what is pushed for the socket and closes it; [`Arrival::Closed`] tells of it.
    fn remove(&mut self, key: SocketKey);

    /// The socket behind a key.
    fn socket(&self, key: SocketKey) -> Option<&UdpSocket>;

    /// Has no socket merge what arrives: other programs are to see it as it came.
    fn merge_nothing(&mut self);

    /// Watches other descriptors, whose events [`Self::wait`] delivers.
    fn poll(&self) -> &Poll;

    /// Flushes, frees all slots, and waits until something happens or `patience` is over; with `rest`, sleeps that long
    /// first and then does not wait. Events of other descriptors are put into `events`.
    fn wait(&mut self, events: &mut Events, patience: Option<Duration>, rest: Option<Duration>) -> io::Result<()>;

    /// What has happened to the sockets; `None` ends the turn, and what is not asked for until then may be lost.
    fn next(&mut self) -> Option<Arrival>;

    /// Whether there is more to tell without waiting.
    fn has_more(&self) -> bool;

    /// The datagrams in a slot, and what is behind them.
    fn datagram(&self, slot: usize) -> &[u8];

    /// The whole slot: its first datagram begins at [`HEADROOM`](super::udp::HEADROOM).
    fn slot_mut(&mut self, slot: usize) -> &mut [u8];

    /// Queues `len` bytes of a slot, counted from the slot's beginning, headroom included.
    fn send_slot(&mut self, destination: Destination, slot: usize, start: usize, len: usize);

    /// Queues a copy of a range of a slot, counted likewise, with a prefix in front of it and so many zeros behind: for
    /// datagrams in a run.
    fn send_framed(&mut self, destination: Destination, prefix: &[u8], slot: usize, range: Range<usize>, padding: u8);

    /// Queues a copy of `bytes`.
    fn send_copy(&mut self, destination: Destination, bytes: &[u8]);

    /// Gives everything that is queued to the kernel.
    fn flush(&mut self);

    /// What became of everything that was sent, since the start.
    fn sent(&self) -> SendReport;
}

#[cfg(test)]
mod tests;
