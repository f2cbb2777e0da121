//! The loop: wait, read, decide, carry out, write.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::associations::Associations;
use super::authorizer::Authorizer;
use super::berth::Berth;
use super::clock::Clock;
use super::connections::Connections;
use super::deadlines::Deadlines;
use super::handle::{Command, Report, WakeOnce};
use super::held::HeldSockets;
use super::kernel_path::KernelPath;
use super::listeners::{Listeners, Served, Stand};
use super::neighbours::Neighbours;
use super::pace::Pace;
use super::peers::Peers;
use super::proxies::Proxies;
use super::records::Records;
use super::requests::Requests;
use super::routes::Socket;
use super::statistics::Statistics;
use super::streams::READ_TIME;
use crate::address::RelayedAddr;
use crate::net::datagrams::{Arrival, Datagrams, SocketKey};
use crate::net::poll::{Event, Events, sleep_precisely};
use crate::net::stream::{Connection, QueueLimits};
use crate::turn::{Counters, Now, Policy, RelayId, Server, WorkerId};

/// Events fetched by one wait.
const EVENTS: usize = 256;
/// What a packet costs at most, with its share of a turn, while nobody else has the processor.
const PACKET_WORK_MAX: Duration = Duration::from_micros(20);

/// What a worker is made anew of after a failure.
pub(super) struct Fresh<D> {
    pub(super) server: Server,
    pub(super) datagrams: D,
    pub(super) listeners: Vec<Option<Served>>,
    pub(super) requests: Requests,
}

/// What passes from a worker that has failed to the one that takes over.
#[derive(Debug)]
pub struct Legacy {
    pub policy: Policy,
    pub commands: Receiver<Command>,
    pub wake: Arc<WakeOnce>,
    pub neighbours: Neighbours,
    /// By the index of the listener.
    pub listeners: Vec<Option<Stand>>,
    /// What the workers before have counted.
    pub past: Past,
}

/// Counts of workers that have failed, so that none goes back.
#[derive(Debug, Default)]
pub struct Past {
    pub(super) counters: Counters,
    pub(super) statistics: Statistics,
}

/// A packet loop with its sockets and its server.
pub struct Worker<D> {
    pub(super) id: WorkerId,
    pub(super) clock: Clock,
    pub(super) server: Server,
    pub(super) datagrams: D,
    pub(super) listeners: Listeners,
    /// `None` while they are being served.
    pub(super) requests: Option<Requests>,
    /// By [`RelayId::index`].
    pub(super) relays: Vec<Option<RelaySocket>>,
    /// Relay sockets that are being closed.
    pub(super) closing: HashMap<RelayId, RelayedAddr>,
    pub(super) streams: Connections,
    pub(super) peers: Peers,
    pub(super) deadlines: Deadlines,
    pub(super) associations: Associations,
    pub(super) proxies: Proxies,
    pub(super) neighbours: Neighbours,
    pub(super) held: HeldSockets,
    pub(super) kernel_path: KernelPath,
    pub(super) records: Records,
    pub(super) authorizer: Option<Authorizer>,
    pub(super) statistics: Statistics,
    /// A message that is put together from its parts.
    pub(super) message: Vec<u8>,
    /// The rings may hold more, and nobody wakes this worker for it.
    pub(super) more_from_neighbours: bool,
    /// Packets of media and from peers, read in this turn.
    pub(super) packets: usize,
    rest_max: Duration,
    commands: Receiver<Command>,
    wake: Arc<WakeOnce>,
    /// What the server judges by.
    policy: Policy,
    past: Past,
}

/// A relay socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelaySocket {
    pub(super) id: RelayId,
    pub(super) key: SocketKey,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Again,
    Stop,
}

impl<D: Datagrams> Worker<D> {
    pub(super) fn new(berth: &Berth, fresh: Fresh<D>, legacy: Legacy) -> Self {
        let mut server = fresh.server;
        if berth.offload.is_some() {
            server.tell_of_paths();
        }
        Self {
            id: berth.id,
            clock: Clock,
            server,
            datagrams: fresh.datagrams,
            listeners: Listeners::new(legacy.listeners, fresh.listeners),
            requests: Some(fresh.requests),
            relays: Vec::new(),
            closing: HashMap::new(),
            streams: Connections::default(),
            peers: Peers::default(),
            deadlines: Deadlines::default(),
            neighbours: legacy.neighbours,
            held: berth.held.clone(),
            kernel_path: KernelPath::new(berth.offload.clone(), &legacy.wake),
            associations: Associations::new(berth.dtls.clone()),
            proxies: Proxies::new(berth.proxies.clone()),
            records: berth.records.clone(),
            authorizer: berth.authorizer.clone(),
            statistics: Statistics::default(),
            message: Vec::new(),
            more_from_neighbours: false,
            packets: 0,
            rest_max: berth.settings.wake_up_delay_max,
            commands: legacy.commands,
            wake: legacy.wake,
            policy: legacy.policy,
            past: legacy.past,
        }
    }

    /// Runs until told to stop.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut pace = Pace::new(self.rest_max, self.clock.now().instant);
        let mut rest = None;
        let mut ended = self.clock.now().instant;
        sleep_precisely();
        self.datagrams.start()?;
        if self.kernel_path.is_there() {
            // It knows packets as they come from the wire alone.
            self.datagrams.merge_nothing();
        }
        loop {
            let patience = self.patience(ended);
            let wait_max = rest.or(patience.filter(Duration::is_zero));
            self.datagrams.wait(&mut events, patience, rest)?;
            let now = self.clock.now();
            let delay = wait_max.map(|wait_max| now.instant.saturating_duration_since(ended + wait_max));
            self.packets = 0;
            self.handle_arrivals(now);
            for index in 0..events.len() {
                if let Some(event) = events.get(index) {
                    self.handle_event(now, event);
                }
            }
            let requests = self.serve_requests(now);
            // A port that a request has let go of is free before the answer says so.
            self.handle_arrivals(now);
            self.read_on(now, READ_TIME);
            self.accept_on(now);
            self.pass_on(now);
            self.handle_neighbours(now);
            self.handle_ended_flows();
            if self.server.poll_timeout().is_some_and(|timeout| timeout <= now.instant) {
                self.server.handle_timeout(now);
                self.carry_out_effects(now);
            }
            self.advance_handshakes(now);
            self.end_silent_streams(now);
            self.end_silent_associations(now);
            let turn = self.handle_commands(now);
            self.flush_streams(now);
            self.datagrams.flush();
            self.neighbours.wake();
            ended = self.clock.now().instant;
            let packets = self.packets + requests;
            self.tell_stall(now.instant, ended, delay.unwrap_or_default(), packets);
            if packets > 0 {
                self.statistics.turns.record(ended.saturating_duration_since(now.instant));
            }
            rest = pace.rest(packets, now.instant, ended);
            if self.packets == 0 && self.next_requests(ended).is_some() || self.streams.has_unread() {
                rest = None;
            }
            if turn == Turn::Stop {
                return Ok(());
            }
        }
    }

    /// How long to wait: not at all when something is known to be unread, else until something expires.
    fn patience(&self, now: Instant) -> Option<Duration> {
        let has_more = self.datagrams.has_more() || self.more_from_neighbours;
        if has_more || self.streams.has_unread() || self.associations.is_busy() {
            return Some(Duration::ZERO);
        }
        let streams = [self.deadlines.next(), self.peers.next_turn()];
        let datagrams = [self.server.poll_timeout(), self.associations.next(), self.next_requests(now)];
        let timeouts = streams.into_iter().chain(datagrams);
        let timeout = timeouts.flatten().min()?;
        Some(timeout.saturating_duration_since(now))
    }

    /// When requests are to be read that wait; `None` while none are known of.
    fn next_requests(&self, now: Instant) -> Option<Instant> {
        self.requests.as_ref()?.next(now)
    }

    /// Tells how much longer than it should have a turn has taken that began `delay` too late: media was kept waiting, if
    /// there is any.
    fn tell_stall(&mut self, began: Instant, ended: Instant, delay: Duration, packets: usize) {
        let work = PACKET_WORK_MAX * packets as u32;
        let longer = delay.max(ended.saturating_duration_since(began + work));
        let longer = if self.packets > 0 { longer } else { Duration::ZERO };
        if let Some(requests) = &mut self.requests {
            requests.shedding.turn(ended, longer);
        }
    }

    fn handle_arrivals(&mut self, now: Now) {
        while let Some(arrival) = self.datagrams.next() {
            self.handle_arrival(now, arrival);
        }
    }

    fn handle_arrival(&mut self, now: Now, arrival: Arrival) {
        match arrival {
            Arrival::Datagram(datagram) => {
                self.packets += 1;
                match Socket::of(datagram.token) {
                    Socket::Listener(index) => self.handle_client_datagram(now, index, &datagram),
                    Socket::Relay(relay) => self.handle_peer_datagram(now, relay, &datagram),
                    Socket::Waker
                    | Socket::Requests(_)
                    | Socket::Connection(_)
                    | Socket::TcpRelay(_)
                    | Socket::Peer(_) => {}
                }
            }
            Arrival::Errors(token) => {
                if let Socket::Relay(relay) = Socket::of(token) {
                    self.read_relay_errors(now, relay);
                }
            }
            Arrival::Closed(token) => {
                if let Socket::Relay(relay) = Socket::of(token)
                    && let Some(address) = self.closing.remove(&relay)
                {
                    self.server.handle_port_closed(address);
                }
            }
        }
    }

    fn handle_event(&mut self, now: Now, event: Event) {
        match Socket::of(event.token) {
            Socket::Waker => self.wake.reset(),
            Socket::Connection(connection) => self.serve_stream(connection, event),
            Socket::TcpRelay(relay) => self.accept_peers(now, relay),
            Socket::Peer(peer) => self.serve_peer(now, peer, event),
            Socket::Requests(index) => {
                if let Some(requests) = &mut self.requests {
                    requests.mark(index);
                }
            }
            Socket::Listener(_) | Socket::Relay(_) => {}
        }
    }

    fn handle_commands(&mut self, now: Now) -> Turn {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Serve(established) => {
                    self.add_stream(now, Connection::new(*established, QueueLimits::default()));
                }
                Command::Adopt(connection) => self.add_stream(now, *connection),
                Command::AdoptAssociation(moved) => self.adopt_association(now, *moved),
                Command::ForgetAssociation { client, worker } => self.forget_association(&client, worker),
                Command::Decided { applicant, verdict, until } => {
                    self.server.handle_verdict(now, &applicant, verdict, until);
                    self.carry_out_effects(now);
                }
                Command::Listen(listening) => self.listen(listening),
                Command::Replace(policy) => {
                    self.policy = policy.clone();
                    self.server.replace_policy(policy);
                    self.policy_changed();
                }
                Command::Report(to) => {
                    // Whoever asked may have given up.
                    let _ = to.try_send(self.report());
                }
                Command::Ask(question) => self.answer(now, question),
                Command::Stop => {
                    self.server.handle_stop();
                    self.carry_out_effects(now);
                    self.close_associations(now);
                    self.await_ended_flows();
                    return Turn::Stop;
                }
            }
        }
        Turn::Again
    }

    fn report(&self) -> Report {
        let Past { counters, mut statistics } = self.counted();
        // Their sockets outlive workers, and so do the kernel's counts.
        statistics.listener_drops += self.listeners.drops();
        let (allocations, connections) = (self.server.allocations(), self.streams.len());
        let live = *self.server.live();
        let (peer_connections, associations) = (self.peers.len(), self.associations.len());
        Report { allocations, live, connections, peer_connections, associations, counters, statistics }
    }

    /// What this worker and those before it have counted.
    fn counted(&self) -> Past {
        let (mut counters, mut statistics) = (self.past.counters.clone(), self.past.statistics);
        counters += self.server.counters();
        let (sent, stream_dropped) = (self.datagrams.sent(), self.streams.dropped);
        statistics += Statistics { sent, stream_dropped, dtls: self.associations.statistics, ..self.statistics };
        Past { counters, statistics }
    }

    /// Ends every allocation, after a failure.
    pub(super) fn abandon(&mut self) {
        let now = self.clock.now();
        // What the failure has interrupted goes first.
        self.carry_out_effects(now);
        self.server.handle_failure();
        self.carry_out_effects(now);
        self.await_ended_flows();
    }

    /// Takes the worker apart into what goes on and what is to be dropped.
    pub(super) fn take_apart(self) -> (Legacy, impl Sized) {
        let past = self.counted();
        let Self {
            policy, commands, wake, neighbours, listeners, server, datagrams, streams, peers, associations, ..
        } = self;
        let listeners = listeners.stands;
        (
            Legacy { policy, commands, wake, neighbours, listeners, past },
            (server, datagrams, streams, peers, associations),
        )
    }

    /// The socket of a relay, if it is still that relay's.
    pub(super) fn relay_socket(&self, relay: RelayId) -> Option<SocketKey> {
        let socket = self.relays.get(relay.index())?.as_ref()?;
        (socket.id == relay).then_some(socket.key)
    }
}
