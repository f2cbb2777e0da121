//! DTLS: from datagrams to messages and back, over the sockets of the UDP listeners.

use std::net::SocketAddr;

use tracing::debug;

use super::associations::{Association, Phase, Place, Refused};
use super::deadlines::{Found, Signs};
use super::handle::Command;
use super::neighbours::What;
use super::packet_loop::Worker;
use super::routes::{ConnectionId, Path, Way};
use super::udp::Body;
use crate::address::{FiveTuple, Transport};
use crate::net::datagrams::Datagrams;
use crate::net::dtls::{ClientHello, Failure, Handshake, Opening, Received, records};
use crate::turn::{Forward, Now};

/// Handshakes that go on in one turn of the loop. Each is a signature or a key agreement, up to 2 ms with the slowest
/// ciphers, for which running calls wait.
const HANDSHAKES_PER_TURN: usize = 1;

/// Where a datagram of DTLS came from and to.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// Its transport is DTLS.
    pub(super) client: FiveTuple,
    pub(super) listener: u16,
    pub(super) path: Path,
    pub(super) tos: u8,
    /// The worker that has passed it on, if it did not come by a socket of this one.
    pub(super) home: Option<usize>,
}

/// An association on its way to another worker, with the message that has shown whose it is.
#[derive(Debug)]
pub struct Moved {
    association: Box<Association>,
    message: Vec<u8>,
    /// The worker that the kernel gives its datagrams to.
    home: usize,
}

impl<D: Datagrams> Worker<D> {
    /// A datagram of DTLS.
    pub(super) fn handle_dtls(&mut self, now: Now, mut at: At, bytes: &[u8]) {
        at.client.transport = Transport::Dtls;
        let (bytes, sent) = (records(bytes), bytes.len());
        self.associations.statistics.unrecognised += u64::from(!bytes.is_empty() && bytes.len() < sent);
        let place = self.associations.places.get(&at.client).copied();
        if let Some(worker) = place.and_then(|place| place.elsewhere) {
            let (client, At { listener, path, tos, .. }) = (at.client, at);
            let home = self.neighbours.own();
            let passed = self.neighbours.pass(worker, What::Dtls { client, listener, path, tos, home }, bytes);
            self.statistics.ring_full += u64::from(!passed);
            return;
        }
        let [current, next] = place.map_or([None; 2], |place| [place.current, place.next]);
        if let Path::Proxied { .. } = at.path {
            self.reroute_associations([current, next], at.path);
        }
        let is_closed = self.listeners.get(at.listener).is_none_or(|listener| listener.terms.calls_alone);
        match Opening::of(bytes) {
            Opening::Garbage | Opening::BadHello => self.associations.statistics.unrecognised += 1,
            // Nothing begins at a listener that was removed.
            Opening::Hello(_) if is_closed => self.statistics.removed_listener += 1,
            Opening::Hello(hello) => self.handle_hello(now, &at, &hello, bytes),
            Opening::Clear | Opening::Encrypted if current.is_none() => {
                self.associations.statistics.stray += 1;
                if let Some(home) = at.home {
                    // It has ended together with a worker that has failed.
                    let worker = self.neighbours.own();
                    self.neighbours.tell(home, Command::ForgetAssociation { client: at.client, worker });
                }
            }
            Opening::Clear => self.feed(now, next.or(current), at.tos, bytes),
            // Which of the two it is for is known by whose key it is under; the other one takes no notice.
            Opening::Encrypted => {
                self.feed(now, next, at.tos, bytes);
                self.feed(now, current, at.tos, bytes);
            }
        }
    }

    /// The newest way to a client is the one that is taken.
    fn reroute_associations(&mut self, ids: [Option<ConnectionId>; 2], path: Path) {
        for id in ids.into_iter().flatten() {
            if let Some((association, _)) = self.associations.get_mut(id) {
                association.path = path;
            }
        }
    }

    /// A ClientHello: without a good cookie it is answered and forgotten (RFC 6347 section 4.2.1).
    fn handle_hello(&mut self, now: Now, at: &At, hello: &ClientHello<'_>, bytes: &[u8]) {
        let Some(cookies) = self.associations.door.as_ref().map(|door| &door.config.cookies) else { return };
        let path: (SocketAddr, SocketAddr) = (at.client.client.socket_addr(), at.client.server.socket_addr());
        if !cookies.verify(hello, path, now.unix_seconds) {
            let answer = cookies.hello_verify_request(hello, path, now.unix_seconds);
            self.associations.statistics.hello_verify_requests += 1;
            if let Some(destination) = self.client(at.listener, at.path, &at.client, 0) {
                self.datagrams.send_copy(destination, &answer);
            }
            return;
        }
        let place = self.associations.places.get(&at.client).copied();
        let known = place.map_or([None; 2], |place| [place.next, place.current]);
        let random = hello.random();
        for id in known.into_iter().flatten() {
            // A retransmission belongs to its own handshake, or is answered by it no more.
            if self.associations.get_mut(id).is_some_and(|(association, _)| association.random == random) {
                return self.associations.queue(id, bytes);
            }
        }
        if let Some(id) = self.begin_handshake(now, at, hello) {
            self.associations.queue(id, bytes);
        }
    }

    fn begin_handshake(&mut self, now: Now, at: &At, hello: &ClientHello<'_>) -> Option<ConnectionId> {
        let (guard, source) = match self.associations.admit(&at.client) {
            Ok(admitted) => admitted,
            Err(refused) => {
                let statistics = &mut self.associations.statistics;
                *match refused {
                    Refused::SourceLimit => &mut statistics.refused_source_limit,
                    Refused::TotalLimit => &mut statistics.refused_total_limit,
                    Refused::Handshakes => &mut statistics.refused_handshakes,
                } += 1;
                return None;
            }
        };
        let door = self.associations.door.as_ref()?;
        let session = door.config.accept(hello, &mut self.associations.buffers);
        let Some(session) = session else {
            self.associations.statistics.failed_protocol += 1;
            return None;
        };
        let deadline = now.instant + door.admission.limits().handshake_deadline;
        let id = self.associations.insert(
            now.instant,
            Box::new(Association {
                session,
                client: at.client,
                listener: at.listener,
                path: at.path,
                random: hello.random(),
                phase: Phase::Handshake { inbox: Vec::new(), deadline, source },
                signs: Signs::new(now.instant),
                _guard: guard,
            }),
        );
        self.place_handshake(at, id);
        Some(id)
    }

    /// RFC 6347 section 4.2.8: a server "MUST NOT destroy the existing association until the client has demonstrated
    /// reachability". Here it has to finish its handshake, as a cookie may have been overheard.
    fn place_handshake(&mut self, at: &At, id: ConnectionId) {
        let new = Place { current: None, next: None, elsewhere: None, home: at.home };
        let mut place = *self.associations.places.entry(at.client).or_insert(new);
        let is_established =
            |(association, _): (&mut Association, _)| matches!(association.phase, Phase::Established { .. });
        let keeps = place.current.is_some_and(|id| self.associations.get_mut(id).is_some_and(is_established));
        let given_up = if keeps { place.next.replace(id) } else { place.current.replace(id) };
        if let Some(given_up) = given_up {
            self.associations.remove(given_up);
        }
        self.associations.places.insert(at.client, place);
    }

    fn feed(&mut self, now: Now, id: Option<ConnectionId>, tos: u8, bytes: &[u8]) {
        let Some((id, (association, _))) = id.and_then(|id| Some((id, self.associations.get_mut(id)?))) else { return };
        match association.phase {
            Phase::Handshake { .. } => self.associations.queue(id, bytes),
            Phase::Established { .. } => self.receive(now, id, tos, Some(bytes)),
        }
    }

    /// Handles every message of a datagram, or of what was read before.
    fn receive(&mut self, now: Now, id: ConnectionId, tos: u8, mut datagram: Option<&[u8]>) {
        while let Some((association, buffers)) = self.associations.get_mut(id) {
            let received = association.session.receive(datagram.take(), buffers);
            if let Received::Message(_) = received {
                association.signs.heard(now.instant);
            }
            self.send_records(id, 0);
            match received {
                Received::Message(len) => {
                    let message = self.associations.buffers.take_message();
                    self.handle_dtls_message(now, id, tos, &message[..len]);
                    self.associations.buffers.restore(message);
                }
                Received::Nothing => return,
                Received::End => return self.end_association(now, id),
            }
        }
    }

    fn handle_dtls_message(&mut self, now: Now, id: ConnectionId, tos: u8, message: &[u8]) {
        let Some((association, _)) = self.associations.get_mut(id) else { return };
        let (client, listener) = (association.client, association.listener);
        let calls_alone = self.listeners.get(listener).is_some_and(|listener| listener.terms.calls_alone);
        if self.is_closed_to(calls_alone, &client) {
            self.statistics.removed_listener += 1;
            return;
        }
        match self.server.handle_client(now, &client, Way::Dtls(id).route(), message) {
            Some(Forward::Elsewhere { worker, .. }) => {
                self.hand_association_over(id, usize::from(worker.0), message);
            }
            Some(forward) => self.forward(now, forward, Body::Bytes(message), tos),
            None => {}
        }
        self.carry_out_effects(now);
        if self.associations.is_idle(id) && self.server.has_allocation(&client) {
            self.associations.settle(id);
        }
        self.packets += 1;
    }

    /// Sends one message as one record; what is too long for one is dropped whole and counted.
    pub(super) fn send_dtls(&mut self, id: ConnectionId, tos: u8) {
        let message = std::mem::take(&mut self.associations.outgoing);
        let sent = match self.associations.get_mut(id) {
            Some((association, buffers)) if matches!(association.phase, Phase::Established { .. }) => {
                association.session.send(&message, buffers)
            }
            Some(_) | None => false,
        };
        self.associations.outgoing = message;
        self.associations.statistics.unsent += u64::from(!sent);
        self.send_records(id, tos);
    }

    /// Sends what an association has to send.
    fn send_records(&mut self, id: ConnectionId, tos: u8) {
        let Some((association, _)) = self.associations.get_mut(id) else { return };
        let (listener, path, client) = (association.listener, association.path, association.client);
        if let Some(destination) = self.client(listener, path, &client, tos) {
            for record in self.associations.buffers.outgoing() {
                self.datagrams.send_copy(destination, record);
            }
        }
        self.associations.buffers.clear();
    }

    /// Goes on with handshakes, a few each turn, and with those whose flights may be lost.
    pub(super) fn advance_handshakes(&mut self, now: Now) {
        for _ in 0..HANDSHAKES_PER_TURN {
            let Some((id, datagrams)) = self.associations.pop_to_advance() else { break };
            for datagram in &datagrams {
                let Some((association, _)) = self.associations.get_mut(id) else { break };
                match association.phase {
                    Phase::Handshake { .. } => self.advance(now, id, Some(datagram)),
                    Phase::Established { .. } => self.receive(now, id, 0, Some(datagram)),
                }
            }
        }
        while let Some((id, is_over)) = self.associations.pop_look(now.instant) {
            if is_over {
                self.associations.statistics.failed_deadline += 1;
                self.end_association(now, id);
            } else {
                self.advance(now, id, None);
            }
        }
    }

    fn advance(&mut self, now: Now, id: ConnectionId, datagram: Option<&[u8]>) {
        let Some((association, buffers)) = self.associations.get_mut(id) else { return };
        let handshake = association.session.handshake(datagram, buffers);
        self.send_records(id, 0);
        match handshake {
            Handshake::Pending => {}
            Handshake::Done => {
                self.associations.statistics.established += 1;
                self.associations.establish(now.instant, id);
                self.replace_association(now, id);
                self.end_crowded_out(now);
                self.receive(now, id, 0, None);
            }
            Handshake::Failed(failure) => {
                let statistics = &mut self.associations.statistics;
                *match failure {
                    Failure::Alert => &mut statistics.failed_alert,
                    Failure::Protocol => &mut statistics.failed_protocol,
                } += 1;
                debug!(?failure, "DTLS handshake failed");
                self.end_association(now, id);
            }
        }
    }

    /// A handshake beside an established association is done: the client has lost the other one, with its allocation.
    fn replace_association(&mut self, now: Now, id: ConnectionId) {
        let Some((association, _)) = self.associations.get_mut(id) else { return };
        let client = association.client;
        let Some(place) = self.associations.places.get_mut(&client).filter(|place| place.next == Some(id)) else {
            return;
        };
        place.next = None;
        let Some(replaced) = place.current.replace(id) else { return };
        self.associations.statistics.replaced += 1;
        self.associations.remove(replaced);
        self.server.handle_client_closed(&client);
        self.carry_out_effects(now);
    }

    /// Ends an association or a handshake, and the allocation that it owns.
    fn end_association(&mut self, now: Now, id: ConnectionId) {
        let Some((association, buffers)) = self.associations.get_mut(id) else { return };
        association.session.close(buffers);
        self.send_records(id, 0);
        let Some(association) = self.associations.remove(id) else { return };
        let client = association.client;
        if let Some(place) = self.associations.places.get_mut(&client) {
            for known in [&mut place.current, &mut place.next] {
                known.take_if(|known| *known == id);
            }
            if place.current.is_none() && place.next.is_none() {
                self.forget_place(&client);
            }
        }
        match association.phase {
            Phase::Handshake { .. } => {}
            Phase::Established { .. } => {
                self.server.handle_client_closed(&client);
                self.carry_out_effects(now);
            }
        }
    }

    fn forget_place(&mut self, client: &FiveTuple) {
        if let Some(home) = self.associations.places.remove(client).and_then(|place| place.home) {
            let worker = self.neighbours.own();
            self.neighbours.tell(home, Command::ForgetAssociation { client: *client, worker });
        }
    }

    /// Ends what owns nothing and says nothing.
    pub(super) fn end_silent_associations(&mut self, now: Now) {
        while let Some(id) = self.associations.deadlines.pop_due(now.instant) {
            let found = match self.associations.get_mut(id) {
                None => Found::Gone,
                Some((association, _)) => {
                    association.signs.look(now.instant, self.server.has_allocation(&association.client))
                }
            };
            if found == Found::Silent {
                self.associations.statistics.silent += 1;
                self.end_association(now, id);
            }
            self.associations.deadlines.settle(now.instant, id, found);
        }
    }

    /// Ends the oldest that own nothing, where there are too many.
    fn end_crowded_out(&mut self, now: Now) {
        while let Some(oldest) = self.associations.crowded_out() {
            let client = self.associations.get_mut(oldest).map(|(association, _)| association.client);
            if client.is_some_and(|client| self.server.has_allocation(&client)) {
                // Of an Allocate that waited for a verdict.
                self.associations.settle(oldest);
            } else {
                self.associations.statistics.crowded_out += 1;
                self.end_association(now, oldest);
            }
        }
    }

    /// Says to all clients that their associations end.
    pub(super) fn close_associations(&mut self, now: Now) {
        for id in self.associations.ids() {
            self.end_association(now, id);
        }
    }

    /// Gives an association to the worker of its client's allocation, and passes on to that one what comes for it.
    fn hand_association_over(&mut self, id: ConnectionId, worker: usize, message: &[u8]) {
        let Some(association) = self.associations.remove(id) else { return };
        let client = association.client;
        if let Some(place) = self.associations.places.get_mut(&client) {
            place.current = None;
            place.elsewhere = Some(worker);
            if let Some(next) = place.next.take() {
                self.associations.remove(next);
            }
        }
        let moved = Moved { association, message: message.to_vec(), home: self.neighbours.own() };
        self.neighbours.tell(worker, Command::AdoptAssociation(Box::new(moved)));
    }

    /// Goes on with an association of another worker.
    pub(super) fn adopt_association(&mut self, now: Now, moved: Moved) {
        let Moved { association, message, home } = moved;
        let client = association.client;
        let id = self.associations.insert(now.instant, association);
        let place = Place { current: Some(id), next: None, elsewhere: None, home: Some(home) };
        self.associations.places.insert(client, place);
        self.associations.deadlines.add(now.instant, id);
        self.handle_dtls_message(now, id, 0, &message);
        self.receive(now, id, 0, None);
    }

    /// The worker that had an association of this one's socket has it no more.
    pub(super) fn forget_association(&mut self, client: &FiveTuple, worker: usize) {
        if self.associations.places.get(client).is_some_and(|place| place.elsewhere == Some(worker)) {
            self.forget_place(client);
        }
    }
}
