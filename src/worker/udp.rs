//! Datagrams: from clients, from peers, and to both. Hot.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::connections::Message;
use super::neighbours::Packet;
use super::packet_loop::{RECV_BATCH, Worker, relay_socket};
use super::routes::{Socket, Way};
use crate::address::{ClientAddr, FiveTuple, PeerAddr, ServerAddr, Transport};
use crate::net::error_queue::{ERRORS_PER_READ, read_error_queue};
use crate::net::socket::set_dont_fragment;
use crate::net::stream::Class;
use crate::net::udp::{HEADROOM, RecvMeta};
use crate::turn::{Forward, IcmpError, Now, RelayId};

/// Packets taken from other workers in one turn.
const NEIGHBOUR_BATCH: usize = 256;

/// Application data, and where it is.
#[derive(Clone, Copy)]
pub(super) enum Body<'a> {
    /// In a slot of the receive batch; a prefix can be written in front of it.
    Slot(usize),
    /// Elsewhere.
    Bytes(&'a [u8]),
}

impl Worker {
    /// Reads one batch from a listener; epoll tells again while there is more.
    pub(super) fn read_listener(&mut self, now: Now, index: u16) {
        let Some(listener) = self.listeners.get(usize::from(index)) else { return };
        let address = listener.address;
        // What fails here is the host's want of memory; epoll tells again.
        let count = self.recv.recv(&listener.socket, RECV_BATCH).unwrap_or(0);
        for slot in 0..count {
            let meta = self.recv.meta(slot);
            if meta.truncated {
                self.statistics.truncated += 1;
                continue;
            }
            let client = FiveTuple {
                transport: Transport::Udp,
                client: ClientAddr::new(meta.from),
                server: ServerAddr::new(SocketAddr::new(meta.to.unwrap_or(address.ip()), address.port())),
            };
            let route = Way::Udp { listener: index, scope: scope_of(meta.from) }.route();
            let forward = self.server.handle_client(now, &client, route, self.recv.datagram(slot));
            if let Some(forward) = forward {
                self.forward(now, forward, Body::Slot(slot), meta.tos);
            }
            self.carry_out_effects(now);
        }
        self.flush();
    }

    /// Reads one batch from a relay socket, and remembers it when there may be more: epoll tells each arrival once.
    pub(super) fn read_relay(&mut self, now: Now, relay: RelayId) {
        let Some(socket) = relay_socket(&self.relays, relay) else { return };
        let count = self.recv.recv(&socket.socket, RECV_BATCH).unwrap_or(0);
        let error_pending = self.recv.error_pending();
        for slot in 0..count {
            let RecvMeta { from, truncated, tos, len, .. } = self.recv.meta(slot);
            if truncated {
                self.statistics.truncated += 1;
            } else if let Some(forward) = self.server.handle_peer(now, relay, PeerAddr::new(from), len) {
                self.forward(now, forward, Body::Slot(slot), tos);
            }
        }
        self.flush();
        if error_pending {
            self.read_relay_errors(now, relay);
        }
        if count == RECV_BATCH || error_pending {
            self.unread.push_back(relay);
        }
    }

    /// Reads the ICMP errors about what a relay socket has sent (RFC 8656 section 11.5).
    pub(super) fn read_relay_errors(&mut self, now: Now, relay: RelayId) {
        let Some(socket) = relay_socket(&self.relays, relay) else { return };
        let mut errors = Vec::new();
        let taken = read_error_queue(&socket.socket, |error| errors.push(error)).unwrap_or(0);
        for error in errors {
            let peer = PeerAddr::new(error.to);
            let error = IcmpError { peer, kind: error.kind, code: error.code, mtu: error.mtu };
            self.server.handle_peer_error(now, relay, error);
        }
        self.carry_out_effects(now);
        if taken == ERRORS_PER_READ {
            self.unread.push_back(relay);
        }
    }

    /// Takes what other workers' clients sent to relayed addresses of this one.
    pub(super) fn handle_neighbours(&mut self, now: Now) {
        self.more_from_neighbours = true;
        for _ in 0..NEIGHBOUR_BATCH {
            let Some(Packet { relay, from, bytes }) = self.neighbours.next() else {
                self.more_from_neighbours = false;
                break;
            };
            if let Some(forward) = self.server.handle_neighbour(now, relay, from, bytes.len()) {
                self.forward(now, forward, Body::Bytes(&bytes), 0);
            }
        }
    }

    /// Sends application data on. `tos` is what it arrived with: RFC 8656 section 14, "Set the outgoing value to the
    /// incoming value".
    pub(super) fn forward(&mut self, now: Now, forward: Forward, body: Body<'_>, tos: u8) {
        if self.send.is_full() {
            self.flush();
        }
        match forward {
            Forward::ToPeer { relay, peer, payload, dont_fragment } => {
                if dont_fragment {
                    self.flush();
                    self.set_dont_fragment(relay, true);
                }
                let (token, to) = (Socket::Relay(relay).token(), peer.socket_addr());
                match body {
                    Body::Slot(slot) => {
                        let (start, len) = (HEADROOM + payload.start, payload.len());
                        self.send.push_slot(token, to, None, tos, slot, start, len);
                    }
                    Body::Bytes(bytes) => _ = self.send.push_copy(token, to, None, tos, &bytes[payload]),
                }
                if dont_fragment {
                    self.flush();
                    self.set_dont_fragment(relay, false);
                }
            }
            Forward::ToClient { route, client, prefix, payload, padding } => {
                let prefix = prefix.as_bytes();
                match (Way::of(route), body) {
                    (Way::Udp { listener, scope }, Body::Slot(slot)) => {
                        let start = HEADROOM + payload.start - prefix.len();
                        let end = HEADROOM + payload.end;
                        let bytes = self.recv.slot_mut(slot);
                        bytes[start..start + prefix.len()].copy_from_slice(prefix);
                        bytes[end..end + usize::from(padding)].fill(0);
                        let len = end + usize::from(padding) - start;
                        let token = Socket::Listener(listener).token();
                        let source = Some(client.server.ip());
                        self.send.push_slot(token, client_socket(&client, scope), source, tos, slot, start, len);
                    }
                    (Way::Udp { listener, scope }, Body::Bytes(bytes)) => {
                        let message = [prefix, &bytes[payload], &[0; 3][..usize::from(padding)]].concat();
                        let (token, to) = (Socket::Listener(listener).token(), client_socket(&client, scope));
                        self.send.push_copy(token, to, Some(client.server.ip()), tos, &message);
                    }
                    (Way::Stream(connection), body) => {
                        let bytes = match body {
                            Body::Slot(slot) => self.recv.datagram(slot),
                            Body::Bytes(bytes) => bytes,
                        };
                        let message = Message { class: Class::Data, prefix, payload: &bytes[payload], padding };
                        self.streams.queue(now, connection, &message);
                    }
                }
            }
            Forward::ToWorker { worker, relay, from, payload } => {
                let bytes = match body {
                    Body::Slot(slot) => self.recv.datagram(slot)[payload].to_vec(),
                    Body::Bytes(bytes) => bytes[payload].to_vec(),
                };
                let passed = self.neighbours.pass(usize::from(worker.0), Packet { relay, from, bytes });
                self.statistics.ring_full += u64::from(!passed);
            }
        }
    }

    fn set_dont_fragment(&self, relay: RelayId, dont_fragment: bool) {
        if let Some(socket) = relay_socket(&self.relays, relay) {
            // Without it the datagram goes out fragmentable, which is what RFC 8656 section 14 falls back to.
            let _ = set_dont_fragment(&socket.socket, dont_fragment);
        }
    }
}

/// The interface of a link-local address, else 0.
fn scope_of(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

/// Where a client is reached, its interface included.
pub(super) fn client_socket(client: &FiveTuple, scope: u32) -> SocketAddr {
    match client.client.ip() {
        IpAddr::V6(ip) if scope != 0 => SocketAddrV6::new(ip, client.client.port(), 0, scope).into(),
        IpAddr::V4(_) | IpAddr::V6(_) => client.client.socket_addr(),
    }
}
