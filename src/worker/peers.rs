//! TCP connections with peers (RFC 6062): accepted and made, kept until a client's stream is bound to them, and then the
//! two are one.

use std::collections::{HashMap, VecDeque};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::packet_loop::Worker;
use super::routes::{ConnectionId, Socket, Way};
use crate::address::{FiveTuple, PeerAddr, RelayedAddr};
use crate::net::datagrams::Datagrams;
use crate::net::peer::{PeerStream, accept, open_tcp_relay};
use crate::net::poll::{Event, Interest};
use crate::net::stream::Rest;
use crate::turn::{DataRoom, Now, OpenError as Refusal, PeerConnectionId, RelayId, Route};

/// Connections accepted at one relayed address before other sockets have their turn.
const ACCEPT_BUDGET: usize = 16;
/// Pause after an `accept` that failed for want of descriptors or memory: 10 tries a second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes passed in each direction before other streams have their turn.
const DATA_BUDGET: u64 = 64 * 1024;
/// Pause of a connection that has used up what the limits let pass, of which one second's share may come at once.
const RATE_PAUSE: Duration = Duration::from_millis(100);

/// A connection with a peer.
#[derive(Debug)]
struct Peer {
    stream: PeerStream,
    relay: RelayId,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    /// What the peer sends stays in the kernel's buffer, whose window says when it is full.
    Unbound,
    /// Bound to a client's stream; one of the two directions may have ended.
    Bound {
        stream: ConnectionId,
        half_closed: bool,
    },
}

/// The listener of a TCP allocation.
#[derive(Debug)]
struct Relay {
    listener: TcpListener,
    /// It is in [`Peers::waiting`], where it has its turn.
    is_waiting: bool,
}

/// The listeners of TCP allocations, and all connections with peers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    relays: HashMap<RelayId, Relay>,
    peers: HashMap<PeerConnectionId, Peer>,
    /// Relays at which connections may wait, each once, and when to look again.
    waiting: VecDeque<(Instant, RelayId)>,
    /// Streams that were given nothing when others of the allocation or user had used it up: they come first.
    hungry: VecDeque<(Instant, ConnectionId)>,
    /// Streams that have used it up.
    fed: VecDeque<(Instant, ConnectionId)>,
}

impl Peers {
    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn close_relay(&mut self, relay: RelayId) {
        self.relays.remove(&relay);
    }

    /// Has connections accepted at a relay from then on, without an event.
    fn wait(&mut self, until: Instant, id: RelayId) {
        if let Some(relay) = self.relays.get_mut(&id)
            && !std::mem::replace(&mut relay.is_waiting, true)
        {
            self.waiting.push_back((until, id));
        }
    }

    /// When connections are to be accepted, or data to be passed, without being told.
    pub(super) fn next_turn(&self) -> Option<Instant> {
        let paused = [&self.hungry, &self.fed].into_iter().filter_map(|queue| queue.front());
        self.waiting.iter().map(|(at, _)| *at).chain(paused.map(|(at, _)| *at)).min()
    }

    /// Whether a connection that is bound goes on in one direction alone, or is gone.
    pub(super) fn is_half_closed(&self, connection: PeerConnectionId) -> bool {
        match self.peers.get(&connection).map(|peer| peer.state) {
            Some(State::Bound { half_closed, .. }) => half_closed,
            Some(State::Connecting | State::Unbound) => false,
            None => true,
        }
    }
}

impl<D: Datagrams> Worker<D> {
    pub(super) fn open_tcp_relay(&mut self, relay: RelayId, address: RelayedAddr) -> Result<(), Refusal> {
        let listener = open_tcp_relay(address.socket_addr()).map_err(|error| self.refusal(&error))?;
        let watched = self.datagrams.poll().add(&listener, Socket::TcpRelay(relay).token(), Interest::Readable, true);
        watched.map_err(|error| {
            warn!(%address, %error, "cannot watch a relay socket");
            Refusal::Exhausted
        })?;
        self.peers.relays.insert(relay, Relay { listener, is_waiting: false });
        Ok(())
    }

    /// Accepts what waits at a relayed address. RFC 6062 section 5.3: "The server MUST accept the connection", and
    /// without a permission it "MUST close the connection with the peer immediately after it has been accepted". Where
    /// connections wait for their turn already, they have it then.
    pub(super) fn accept_peers(&mut self, now: Now, relay: RelayId) {
        for _ in 0..ACCEPT_BUDGET {
            let Some(Relay { listener, is_waiting: false }) = self.peers.relays.get(&relay) else { return };
            let (stream, from) = match accept(listener) {
                Ok(Some(accepted)) => accepted,
                Ok(None) => return,
                Err(error) => {
                    debug!(%error, "a connection of a peer is not accepted");
                    self.statistics.peer_accept_failed += 1;
                    return self.peers.wait(now.instant + ACCEPT_PAUSE, relay);
                }
            };
            let Some(connection) = self.server.handle_peer_accepted(now, relay, PeerAddr::new(from)) else {
                self.carry_out_effects(now);
                continue;
            };
            // What was there before under this peer is closed first.
            self.carry_out_effects(now);
            let kept =
                PeerStream::accepted(stream).and_then(|stream| self.keep(connection, relay, stream, State::Unbound));
            if let Err(error) = kept {
                debug!(%error, "a connection of a peer is not kept");
                self.statistics.peer_accept_failed += 1;
                self.server.handle_peer_closed(relay, connection);
                self.carry_out_effects(now);
            }
        }
        self.peers.wait(now.instant, relay);
    }

    /// Goes on with relays at which connections may wait.
    pub(super) fn accept_on(&mut self, now: Now) {
        for _ in 0..self.peers.waiting.len() {
            match self.peers.waiting.pop_front() {
                Some((at, id)) if at <= now.instant => {
                    if let Some(relay) = self.peers.relays.get_mut(&id) {
                        relay.is_waiting = false;
                    }
                    self.accept_peers(now, id);
                }
                Some(later) => self.peers.waiting.push_back(later),
                None => {}
            }
        }
    }

    pub(super) fn connect_peer(
        &mut self,
        now: Now,
        relay: RelayId,
        connection: PeerConnectionId,
        from: RelayedAddr,
        to: PeerAddr,
    ) {
        let begun = PeerStream::connect(from.socket_addr(), to.socket_addr());
        let kept = begun.and_then(|stream| self.keep(connection, relay, stream, State::Connecting));
        if let Err(error) = kept {
            debug!(%from, %to, %error, "a peer is not connected to");
            self.server.handle_peer_connected(now, relay, connection, false);
        }
    }

    fn keep(
        &mut self,
        connection: PeerConnectionId,
        relay: RelayId,
        stream: PeerStream,
        state: State,
    ) -> std::io::Result<()> {
        self.datagrams.poll().add(&stream, Socket::Peer(connection).token(), Interest::Both, true)?;
        self.peers.peers.insert(connection, Peer { stream, relay, state });
        Ok(())
    }

    /// Makes a client's stream and a peer's connection one; the stream's bytes are passed on when its turn ends.
    pub(super) fn bind_peer(&mut self, connection: PeerConnectionId, route: Route, client: &FiveTuple) {
        let Way::Stream(id) = Way::of(route) else { return };
        let (stream, peer) = (self.streams.get_mut(id), self.peers.peers.get_mut(&connection));
        let (Some((stream, _)), Some(peer)) = (stream, peer) else {
            debug!(client = %client.client, "a connection has ended while it was bound");
            return self.forget_peer(connection);
        };
        stream.peer = Some(connection);
        stream.connection.begin_data();
        peer.state = State::Bound { stream: id, half_closed: false };
    }

    /// Closes a peer's connection and the stream that is bound to it, as the server wants.
    pub(super) fn close_peer(&mut self, connection: PeerConnectionId) {
        let Some(peer) = self.peers.peers.remove(&connection) else { return };
        if let State::Bound { stream, .. } = peer.state
            && let Some(mut stream) = self.streams.remove(stream)
        {
            stream.connection.close();
        }
    }

    /// Closes a peer's connection that has ended, or whose stream has, and tells the server.
    pub(super) fn forget_peer(&mut self, connection: PeerConnectionId) {
        if let Some(peer) = self.peers.peers.remove(&connection) {
            self.server.handle_peer_closed(peer.relay, connection);
        }
    }

    /// An event of a peer's connection.
    pub(super) fn serve_peer(&mut self, now: Now, connection: PeerConnectionId, event: Event) {
        let Some(peer) = self.peers.peers.get_mut(&connection) else { return };
        let relay = peer.relay;
        match peer.state {
            State::Connecting => match peer.stream.established() {
                None => {}
                Some(Ok(())) => {
                    peer.state = State::Unbound;
                    self.server.handle_peer_connected(now, relay, connection, true);
                    self.carry_out_effects(now);
                }
                Some(Err(error)) => {
                    debug!(%error, "a peer is not connected to");
                    self.peers.peers.remove(&connection);
                    self.server.handle_peer_connected(now, relay, connection, false);
                    self.carry_out_effects(now);
                }
            },
            // A peer that has sent all it has to say may have closed its half; a reset is the end.
            State::Unbound if event.error => {
                self.forget_peer(connection);
                self.carry_out_effects(now);
            }
            State::Unbound => {}
            State::Bound { stream, .. } => self.read_later(stream),
        }
    }

    /// Goes on with streams that have waited for what the limits let pass, the hungry ones first.
    pub(super) fn pass_on(&mut self, now: Now) {
        let Peers { hungry, fed, .. } = &mut self.peers;
        let mut due = Vec::new();
        for queue in [hungry, fed] {
            let is_due = queue.iter().take_while(|(at, _)| *at <= now.instant).count();
            due.extend(queue.drain(..is_due).map(|(_, id)| id));
        }
        for id in due {
            if let Some((stream, _)) = self.streams.get_mut(id) {
                stream.waits = [false; 2];
                self.pass_data(now, id);
            }
        }
    }

    /// Passes data both ways over a stream and the connection that it is bound to, as far as they take it and the limits
    /// let it pass. One that is still to be passed on has its turn then.
    pub(super) fn pass_data(&mut self, now: Now, id: ConnectionId) {
        let Some((stream, buffers)) = self.streams.get_mut(id) else { return };
        if stream.is_unread {
            return;
        }
        let Some(peer) = stream.peer.and_then(|connection| self.peers.peers.get_mut(&connection)) else {
            return self.close_stream(now, id);
        };
        let DataRoom { to_peer, to_client } = self.server.connection_room(now, peer.relay);
        // A direction that waits lets others have their turn before.
        let may_pass = |waits: bool, room: u64| if waits { 0 } else { room.min(DATA_BUDGET) };
        let budgets = [may_pass(stream.waits[0], to_peer), may_pass(stream.waits[1], to_client)];
        let up = stream.connection.pass_to(&mut peer.stream, buffers, budgets[0]);
        let down = stream.connection.pass_from(now.instant, &mut peer.stream, buffers, budgets[1]);
        if up.bytes + down.bytes > 0 {
            stream.signs.heard(now.instant);
        }
        self.server.handle_connection_data(now, peer.relay, up.bytes, down.bytes);
        match (up.rest, down.rest) {
            (Err(error), _) | (_, Err(error)) => {
                debug!(%error, "data connection ended");
                self.close_stream(now, id);
            }
            (Ok(Rest::Ended), Ok(Rest::Ended)) => self.close_stream(now, id),
            (Ok(up), Ok(down)) => {
                let half_closed = up == Rest::Ended || down == Rest::Ended;
                peer.state = State::Bound { stream: id, half_closed };
                let has_more = [up == Rest::Budget, down == Rest::Budget];
                let waited = stream.waits;
                let begins = |way: usize, max: u64| has_more[way] && !waited[way] && budgets[way] <= max;
                for way in [0, 1] {
                    stream.waits[way] |= begins(way, DATA_BUDGET - 1);
                }
                // One that waits in one direction is in its queue already.
                if stream.waits != waited && waited == [false; 2] {
                    let is_hungry = begins(0, 0) || begins(1, 0);
                    let queue = if is_hungry { &mut self.peers.hungry } else { &mut self.peers.fed };
                    queue.push_back((now.instant + RATE_PAUSE, id));
                }
                if [0, 1].into_iter().any(|way| has_more[way] && !stream.waits[way]) {
                    self.read_later(id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::worker::test_support::worker;

    #[test]
    fn a_relay_that_is_flooded_with_connections_has_one_turn_in_each() {
        let (mut worker, relay) = (worker(), RelayId::unpack(0));
        let now = worker.clock.now();
        worker.open_tcp_relay(relay, RelayedAddr::new(([127, 0, 0, 1], 0).into())).unwrap();
        let address = worker.peers.relays[&relay].listener.local_addr().unwrap();
        let _peers: Vec<_> = (0..4 * ACCEPT_BUDGET).map(|_| TcpStream::connect(address).unwrap()).collect();
        worker.accept_peers(now, relay);
        worker.accept_on(now);
        worker.accept_peers(now, relay);
        assert_eq!(worker.peers.waiting.len(), 1);
    }
}
