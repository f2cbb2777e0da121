//! The loop: wait, read, decide, carry out, write.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::clock::Clock;
use super::connections::Connections;
use super::handle::{Command, Report, WakeOnce};
use super::held::HeldSockets;
use super::neighbours::Neighbours;
use super::pace::Pace;
use super::routes::{ConnectionId, Socket};
use super::settings::Settings;
use super::statistics::Statistics;
use crate::address::RelayedAddr;
use crate::net::poll::{Event, Events, Interest, Poll, sleep_precisely};
use crate::net::udp::{RecvBatch, SendBatch};
use crate::turn::{Now, RelayId, Server};

/// Datagrams read from one socket before the others have their turn: a flooded socket starves nobody.
pub(super) const RECV_BATCH: usize = 32;
/// Datagrams of several sockets that are received before they are sent: the more, the fewer system calls towards
/// clients.
const SLOTS: usize = 128;
/// Datagrams that wait for one flush.
const SEND_BATCH: usize = 256;
/// Events fetched by one wait.
const EVENTS: usize = 256;

/// What a worker is made of.
#[derive(Debug)]
pub struct Parts {
    pub settings: Settings,
    pub server: Server,
    /// This worker's socket of every UDP listener's group.
    pub listeners: Vec<UdpSocket>,
    pub commands: Receiver<Command>,
    pub wake: Arc<WakeOnce>,
    pub neighbours: Neighbours,
    pub held: HeldSockets,
}

/// A packet loop with its sockets and its server.
pub struct Worker {
    pub(super) clock: Clock,
    pub(super) server: Server,
    pub(super) poll: Poll,
    pub(super) listeners: Vec<Listener>,
    /// By [`RelayId::index`].
    pub(super) relays: Vec<Option<RelaySocket>>,
    pub(super) streams: Connections,
    pub(super) recv: RecvBatch,
    pub(super) send: SendBatch,
    pub(super) neighbours: Neighbours,
    pub(super) held: HeldSockets,
    pub(super) statistics: Statistics,
    /// Relay sockets, told of once, that may hold more than was read.
    pub(super) unread: VecDeque<RelayId>,
    /// Streams that may hold more than was read, and whether they are hanging up.
    pub(super) unfinished: VecDeque<(ConnectionId, bool)>,
    /// The rings may hold more, and nobody wakes this worker for it.
    pub(super) more_from_neighbours: bool,
    /// Packets read in this turn.
    pub(super) packets: usize,
    rest_max: Duration,
    commands: Receiver<Command>,
    wake: Arc<WakeOnce>,
}

/// A UDP listener's socket.
pub(super) struct Listener {
    pub(super) socket: UdpSocket,
    pub(super) address: SocketAddr,
}

/// A relay socket.
pub(super) struct RelaySocket {
    pub(super) id: RelayId,
    pub(super) address: RelayedAddr,
    pub(super) socket: UdpSocket,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Again,
    Stop,
}

impl Worker {
    /// Fails when epoll, or a listener's address, cannot be had.
    pub fn new(parts: Parts) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(parts.wake.waker(), Socket::Waker.token(), Interest::Readable, false)?;
        let mut listeners = Vec::new();
        for (index, socket) in parts.listeners.into_iter().enumerate() {
            poll.add(&socket, Socket::Listener(index as u16).token(), Interest::Readable, false)?;
            listeners.push(Listener { address: socket.local_addr()?, socket });
        }
        Ok(Self {
            clock: Clock,
            server: parts.server,
            poll,
            listeners,
            relays: Vec::new(),
            streams: Connections::default(),
            recv: RecvBatch::new(SLOTS),
            send: SendBatch::new(SEND_BATCH),
            neighbours: parts.neighbours,
            held: parts.held,
            statistics: Statistics::default(),
            unread: VecDeque::new(),
            unfinished: VecDeque::new(),
            more_from_neighbours: false,
            packets: 0,
            rest_max: parts.settings.wake_up_delay_max,
            commands: parts.commands,
            wake: parts.wake,
        })
    }

    /// Runs until told to stop.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut pace = Pace::new(self.rest_max, self.clock.now().instant);
        let mut rest = None;
        sleep_precisely();
        loop {
            if let Some(rest) = rest {
                std::thread::sleep(rest);
            }
            self.poll.wait(&mut events, if rest.is_some() { Some(Duration::ZERO) } else { self.patience() })?;
            let now = self.clock.now();
            self.packets = 0;
            for index in 0..events.len() {
                if let Some(event) = events.get(index) {
                    self.handle_event(now, event);
                }
            }
            self.read_on(now);
            self.handle_neighbours(now);
            if self.server.poll_timeout().is_some_and(|timeout| timeout <= now.instant) {
                self.server.handle_timeout(now);
                self.carry_out_effects(now);
            }
            let turn = self.handle_commands(now);
            self.flush();
            self.recv.clear();
            self.flush_streams(now);
            self.neighbours.wake();
            rest = pace.rest(self.packets, now.instant, self.clock.now().instant);
            if turn == Turn::Stop {
                return Ok(());
            }
        }
    }

    /// How long to wait: not at all when something is known to be unread, else until the server's next timeout.
    fn patience(&self) -> Option<Duration> {
        if !self.unread.is_empty() || !self.unfinished.is_empty() || self.more_from_neighbours {
            return Some(Duration::ZERO);
        }
        let timeout = self.server.poll_timeout()?;
        Some(timeout.saturating_duration_since(self.clock.now().instant))
    }

    fn handle_event(&mut self, now: Now, event: Event) {
        match Socket::of(event.token) {
            Socket::Waker => self.wake.reset(),
            Socket::Listener(index) => self.read_listener(now, index),
            Socket::Relay(relay) => {
                if event.error {
                    self.read_relay_errors(now, relay);
                }
                self.read_relay(now, relay);
            }
            Socket::Connection(connection) => self.serve_stream(now, connection, event),
        }
    }

    /// Goes on where a budget ended, one batch each.
    fn read_on(&mut self, now: Now) {
        for _ in 0..self.unread.len() {
            if let Some(relay) = self.unread.pop_front() {
                self.read_relay(now, relay);
            }
        }
        for _ in 0..self.unfinished.len() {
            if let Some((connection, hang_up)) = self.unfinished.pop_front() {
                self.read_stream(now, connection, hang_up);
            }
        }
    }

    fn handle_commands(&mut self, now: Now) -> Turn {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Serve(established) => self.add_stream(now, *established),
                Command::Replace(policy) => self.server.replace_policy(policy),
                Command::Report(to) => {
                    // Whoever asked may have given up.
                    let _ = to.try_send(self.report());
                }
                Command::Stop => {
                    self.server.handle_stop();
                    self.carry_out_effects(now);
                    return Turn::Stop;
                }
            }
        }
        Turn::Again
    }

    fn report(&self) -> Report {
        Report {
            allocations: self.server.allocations(),
            connections: self.streams.len(),
            counters: self.server.counters().clone(),
            statistics: Statistics { stream_dropped: self.streams.dropped, ..self.statistics },
        }
    }

    /// Gives everything that waits to the kernel.
    pub(super) fn flush(&mut self) {
        if self.send.is_empty() {
            return;
        }
        let (listeners, relays) = (&self.listeners, &self.relays);
        let report = self.send.flush(&self.recv, |token| match Socket::of(token) {
            Socket::Listener(index) => listeners.get(usize::from(index)).map(|listener| listener.socket.as_fd()),
            Socket::Relay(relay) => relay_socket(relays, relay).map(|relay| relay.socket.as_fd()),
            Socket::Waker | Socket::Connection(_) => None,
        });
        self.statistics.sent += report;
    }
}

/// The socket of a relay, if it is still that relay's.
pub(super) fn relay_socket(relays: &[Option<RelaySocket>], relay: RelayId) -> Option<&RelaySocket> {
    relays.get(relay.index())?.as_ref().filter(|socket| socket.id == relay)
}
