//! Datagrams: from clients, from peers, and to both. Hot.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::ops::Range;

use super::announced::Arrived;
use super::connections::Message;
use super::dtls::At;
use super::listeners::{Listener, Terms};
use super::neighbours::{Packet, What};
use super::packet_loop::Worker;
use super::requests::Taken;
use super::routes::{Path, Way};
use super::settings::Accept;
use crate::address::{ClientAddr, FiveTuple, PeerAddr, ServerAddr, Transport};
use crate::net::datagrams::{Datagram, Datagrams, Destination, SocketKey};
use crate::net::dtls::is_dtls;
use crate::net::error_queue::read_error_queue;
use crate::net::socket::set_dont_fragment;
use crate::net::stream::Class;
use crate::net::udp::{HEADROOM, RecvBatch, RecvMeta};
use crate::turn::{Forward, IcmpError, Now, RelayId, WorkerId};

/// Packets taken from other workers in one turn.
const NEIGHBOUR_BATCH: usize = 256;

/// Application data, and where it is.
#[derive(Clone, Copy)]
pub(super) enum Body<'a> {
    /// In a slot of the back end.
    Slot(&'a Datagram),
    /// Elsewhere.
    Bytes(&'a [u8]),
}

impl<D: Datagrams> Worker<D> {
    /// A datagram from a client.
    pub(super) fn handle_client_datagram(&mut self, now: Now, index: u16, datagram: &Datagram) {
        if datagram.in_run {
            self.merge_requests(index);
        }
        let Some(listener) = self.listeners.get(index) else { return };
        if datagram.truncated {
            self.statistics.truncated += 1;
            return;
        }
        if listener.is_behind_proxies() {
            let mut bytes = self.proxies.take_datagram();
            bytes.extend_from_slice(&self.datagrams.datagram(datagram.slot)[datagram.at..][..datagram.len]);
            let Datagram { from, to, tos, .. } = *datagram;
            self.handle_proxy(now, &Arrived { listener: index, from, to, tos }, &bytes);
            self.proxies.restore(bytes);
            return;
        }
        let client = listener.five_tuple(datagram.from, datagram.to);
        let Terms { accept, calls_alone, .. } = listener.terms;
        let path = Path::Direct { scope: scope_of(datagram.from) };
        let route = Way::Udp { listener: index, path }.route();
        let bytes = &self.datagrams.datagram(datagram.slot)[datagram.at..][..datagram.len];
        match told_apart(accept, bytes) {
            Spoken::Plain if self.is_closed_to(calls_alone, &client) => {
                self.statistics.removed_listener += 1;
                return;
            }
            Spoken::Plain => {}
            Spoken::Unwanted => {
                self.associations.statistics.plain += 1;
                return;
            }
            Spoken::Dtls => {
                let mut bytes = std::mem::take(&mut self.associations.datagram);
                bytes.clear();
                bytes.extend_from_slice(&self.datagrams.datagram(datagram.slot)[datagram.at..][..datagram.len]);
                let tos = datagram.tos;
                self.handle_dtls(now, At { client, listener: index, path, tos, home: None }, &bytes);
                self.associations.datagram = bytes;
                return;
            }
        }
        if let Some(forward) = self.server.handle_client(now, &client, route, bytes) {
            self.forward(now, forward, Body::Slot(datagram), datagram.tos);
        }
        self.carry_out_effects(now);
    }

    /// Serves requests of live calls, and then some of strangers; returns how many.
    pub(super) fn serve_requests(&mut self, now: Now) -> usize {
        let Some(mut requests) = self.requests.take() else { return 0 };
        let mut served = 0;
        for strangers in [false, true] {
            let began = (strangers && requests.shedding.is_sparing()).then(|| self.clock.now().instant);
            for index in 0..requests.len() {
                if requests.are_strangers(index) != strangers {
                    continue;
                }
                for _ in 0..requests.rounds(index) {
                    let Some(taken) = requests.take(index, now.instant, self.packets) else { break };
                    self.handle_requests(now, &requests.batch, &taken);
                    served += taken.datagrams;
                }
            }
            if let Some(began) = began {
                requests.shedding.served(began, self.clock.now().instant);
            }
        }
        self.requests = Some(requests);
        served
    }

    fn handle_requests(&mut self, now: Now, batch: &RecvBatch, taken: &Taken) {
        self.statistics.requests_shed += u64::from(taken.dropped);
        let mut strangers = 0;
        for slot in 0..taken.slots {
            let meta = batch.meta(slot);
            if meta.truncated {
                self.statistics.truncated += 1;
                continue;
            }
            for bytes in meta.cut(batch.datagram(slot)) {
                self.handle_request(now, taken, &meta, bytes, &mut strangers);
            }
        }
    }

    /// `strangers` is how many of those that were taken come from clients without allocation.
    fn handle_request(&mut self, now: Now, taken: &Taken, meta: &RecvMeta, bytes: &[u8], strangers: &mut usize) {
        let Some(listener) = self.listeners.get(taken.listener) else { return };
        if listener.is_behind_proxies() {
            let arrived = Arrived { listener: taken.listener, from: meta.from, to: meta.to, tos: meta.tos };
            self.handle_proxy(now, &arrived, bytes);
            return;
        }
        let client = listener.five_tuple(meta.from, meta.to);
        if taken.strangers_max < taken.datagrams && self.is_stranger(&client) {
            *strangers += 1;
            if *strangers > taken.strangers_max {
                self.statistics.requests_shed += 1;
                return;
            }
        }
        let path = Path::Direct { scope: scope_of(meta.from) };
        self.handle_detached(now, At { client, listener: taken.listener, path, tos: meta.tos, home: None }, bytes);
    }

    /// A datagram of a client of this worker that is in no slot of the back end: one that may be a request, or one without
    /// the header that has announced it.
    pub(super) fn handle_detached(&mut self, now: Now, at: At, bytes: &[u8]) {
        let Some(listener) = self.listeners.get(at.listener) else { return };
        let calls_alone = listener.terms.calls_alone;
        match told_apart(listener.terms.accept, bytes) {
            Spoken::Plain if self.is_closed_to(calls_alone, &at.client) => {
                self.statistics.removed_listener += 1;
            }
            Spoken::Plain => {
                let route = Way::Udp { listener: at.listener, path: at.path }.route();
                self.reroute(&at.client, route);
                if let Some(forward) = self.server.handle_client(now, &at.client, route, bytes) {
                    self.forward(now, forward, Body::Bytes(bytes), at.tos);
                }
                self.carry_out_effects(now);
            }
            Spoken::Unwanted => self.associations.statistics.plain += 1,
            Spoken::Dtls => self.handle_dtls(now, at, bytes),
        }
    }

    /// A datagram from a peer.
    pub(super) fn handle_peer_datagram(&mut self, now: Now, relay: RelayId, datagram: &Datagram) {
        if datagram.truncated {
            self.statistics.truncated += 1;
            return;
        }
        let from = PeerAddr::new(datagram.from);
        if let Some(forward) = self.server.handle_peer(now, relay, from, datagram.len) {
            self.forward(now, forward, Body::Slot(datagram), datagram.tos);
        }
    }

    /// Reads the ICMP errors about what a relay socket has sent (RFC 8656 section 11.5).
    pub(super) fn read_relay_errors(&mut self, now: Now, relay: RelayId) {
        let Some(socket) = self.relay_socket(relay).and_then(|key| self.datagrams.socket(key)) else { return };
        let mut errors = Vec::new();
        // A queue that holds more raises the next arrival.
        let _ = read_error_queue(socket, |error| errors.push(error));
        for error in errors {
            let peer = PeerAddr::new(error.to);
            let error = IcmpError { peer, kind: error.kind, code: error.code, mtu: error.mtu };
            self.server.handle_peer_error(now, relay, error);
        }
        self.carry_out_effects(now);
    }

    /// Takes what other workers have for relayed addresses and clients of this one.
    pub(super) fn handle_neighbours(&mut self, now: Now) {
        self.more_from_neighbours = true;
        for _ in 0..NEIGHBOUR_BATCH {
            let Some((ring, Packet { what, bytes })) = self.neighbours.next() else {
                self.more_from_neighbours = false;
                break;
            };
            match what {
                What::Data { relay, from } => {
                    if let Some(forward) = self.server.handle_neighbour(now, relay, from, bytes.len()) {
                        self.forward(now, forward, Body::Bytes(&bytes), 0);
                    }
                }
                What::Client { client, route, tos } => {
                    self.reroute(&client, route);
                    if let Some(forward) = self.server.handle_client(now, &client, route, &bytes) {
                        self.forward(now, forward, Body::Bytes(&bytes), tos);
                    }
                    self.carry_out_effects(now);
                }
                What::Dtls { client, listener, path, tos, home } => {
                    self.handle_dtls(now, At { client, listener, path, tos, home: Some(home) }, &bytes);
                }
                What::Announced { client, listener, path, tos } => {
                    self.handle_detached(now, At { client, listener, path, tos, home: None }, &bytes);
                }
            }
            self.neighbours.give_back(ring, bytes);
        }
    }

    /// Sends application data on. `tos` is what it arrived with: RFC 8656 section 14, "Set the outgoing value to the
    /// incoming value".
    pub(super) fn forward(&mut self, now: Now, forward: Forward, body: Body<'_>, tos: u8) {
        match forward {
            Forward::ToPeer { relay, peer, payload, dont_fragment } => {
                let Some(socket) = self.relay_socket(relay) else { return };
                if dont_fragment {
                    self.set_dont_fragment(socket, true);
                }
                let destination = Destination { socket, to: peer.socket_addr(), source: None, tos };
                match body {
                    Body::Slot(datagram) => {
                        let start = HEADROOM + datagram.at + payload.start;
                        self.datagrams.send_slot(destination, datagram.slot, start, payload.len());
                    }
                    Body::Bytes(bytes) => self.datagrams.send_copy(destination, &bytes[payload]),
                }
                if dont_fragment {
                    self.set_dont_fragment(socket, false);
                }
            }
            Forward::ToClient { route, client, prefix, payload, padding } => {
                let prefix = prefix.as_bytes();
                match (Way::of(route), body) {
                    (Way::Udp { listener, path }, Body::Slot(Datagram { slot, at, in_run: true, .. })) => {
                        let Some(destination) = self.client(listener, path, &client, tos) else { return };
                        let range = HEADROOM + at + payload.start..HEADROOM + at + payload.end;
                        self.datagrams.send_framed(destination, prefix, *slot, range, padding);
                    }
                    (Way::Udp { listener, path }, Body::Slot(Datagram { slot, .. })) => {
                        let Some(destination) = self.client(listener, path, &client, tos) else { return };
                        let start = HEADROOM + payload.start - prefix.len();
                        let end = HEADROOM + payload.end;
                        let bytes = self.datagrams.slot_mut(*slot);
                        bytes[start..start + prefix.len()].copy_from_slice(prefix);
                        bytes[end..end + usize::from(padding)].fill(0);
                        self.datagrams.send_slot(destination, *slot, start, end + usize::from(padding) - start);
                    }
                    (Way::Udp { listener, path }, Body::Bytes(bytes)) => {
                        let Some(destination) = self.client(listener, path, &client, tos) else { return };
                        self.message.clear();
                        self.message.extend_from_slice(prefix);
                        self.message.extend_from_slice(&bytes[payload]);
                        self.message.resize(self.message.len() + usize::from(padding), 0);
                        self.datagrams.send_copy(destination, &self.message);
                    }
                    (Way::Dtls(association), body) => {
                        let bytes = match body {
                            Body::Slot(datagram) => &self.datagrams.datagram(datagram.slot)[datagram.at..],
                            Body::Bytes(bytes) => bytes,
                        };
                        let message = &mut self.associations.outgoing;
                        message.clear();
                        message.extend_from_slice(prefix);
                        message.extend_from_slice(&bytes[payload]);
                        message.resize(message.len() + usize::from(padding), 0);
                        self.send_dtls(association, tos);
                    }
                    (Way::Stream(connection), body) => {
                        let bytes = match body {
                            Body::Slot(datagram) => &self.datagrams.datagram(datagram.slot)[datagram.at..],
                            Body::Bytes(bytes) => bytes,
                        };
                        let message = Message { class: Class::Data, prefix, payload: &bytes[payload], padding };
                        self.streams.queue(now, connection, &message);
                    }
                }
            }
            Forward::ToWorker { worker, relay, from, payload } => {
                self.pass(worker, What::Data { relay, from }, body, payload);
            }
            Forward::Elsewhere { worker, client, route, message } => {
                self.pass(worker, What::Client { client, route, tos }, body, message);
            }
        }
    }

    fn pass(&mut self, worker: WorkerId, what: What, body: Body<'_>, range: Range<usize>) {
        let bytes = match body {
            Body::Slot(datagram) => &self.datagrams.datagram(datagram.slot)[datagram.at..],
            Body::Bytes(bytes) => bytes,
        };
        let passed = self.neighbours.pass(usize::from(worker.0), what, &bytes[range]);
        self.statistics.ring_full += u64::from(!passed);
    }

    /// The way to a UDP client; a listener that has one address alone need not be told which to send from.
    pub(super) fn client(&mut self, listener: u16, path: Path, client: &FiveTuple, tos: u8) -> Option<Destination> {
        let listener = self.listeners.get(listener)?;
        let socket = listener.key;
        let (to, source) = match path {
            Path::Direct { scope } => {
                let source = listener.address.ip().is_unspecified().then(|| client.server.ip());
                (client_socket(client, scope), source)
            }
            Path::Proxied { host, port } => {
                let host = self.proxies.host(host)?;
                (host.socket_addr(port), host.asked)
            }
        };
        Some(Destination { socket, to, source, tos })
    }

    /// The listener that sends from `server`: the one that was asked, or this worker's socket of another one's group
    /// when an answer leaves from an alternate address (RFC 5780 section 6.1).
    pub(super) fn listener_at(&self, asked: u16, server: ServerAddr) -> Option<u16> {
        let sends_from = |listener: &Listener| {
            let (own, server) = (listener.address, server.socket_addr());
            let any = own.ip().is_unspecified() && own.is_ipv4() == server.is_ipv4();
            own.port() == server.port() && (any || own.ip() == server.ip())
        };
        if self.listeners.get(asked).is_some_and(sends_from) {
            return Some(asked);
        }
        self.listeners.position(sends_from)
    }

    /// Changes DF for what is sent from now on.
    fn set_dont_fragment(&mut self, socket: SocketKey, dont_fragment: bool) {
        self.datagrams.flush();
        if let Some(socket) = self.datagrams.socket(socket) {
            // Without it the datagram goes out fragmentable, which is what RFC 8656 section 14 falls back to.
            let _ = set_dont_fragment(socket, dont_fragment);
        }
    }
}

impl Listener {
    fn is_behind_proxies(&self) -> bool {
        !self.terms.proxies.is_empty()
    }

    /// The 5-tuple of a datagram; `to` is the address that was asked, where the listener has many.
    pub(super) fn five_tuple(&self, from: SocketAddr, to: Option<IpAddr>) -> FiveTuple {
        let asked = SocketAddr::new(to.unwrap_or(self.address.ip()), self.address.port());
        FiveTuple { transport: Transport::Udp, client: ClientAddr::new(from), server: ServerAddr::new(asked) }
    }
}

/// What a datagram is, as far as its listener answers it.
enum Spoken {
    Plain,
    Dtls,
    /// Not DTLS, where nothing else is answered.
    Unwanted,
}

fn told_apart(accept: Accept, bytes: &[u8]) -> Spoken {
    match (accept, is_dtls(bytes)) {
        (Accept::Plain, _) | (Accept::Both, false) => Spoken::Plain,
        (Accept::Both | Accept::Tls, true) => Spoken::Dtls,
        (Accept::Tls, false) => Spoken::Unwanted,
    }
}

/// The interface of a link-local address, else 0.
pub(super) fn scope_of(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

/// Where a client is reached, its interface included.
fn client_socket(client: &FiveTuple, scope: u32) -> SocketAddr {
    match client.client.ip() {
        IpAddr::V6(ip) if scope != 0 => SocketAddrV6::new(ip, client.client.port(), 0, scope).into(),
        IpAddr::V4(_) | IpAddr::V6(_) => client.client.socket_addr(),
    }
}
