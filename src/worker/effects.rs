//! Carries out what the server asks for.

use std::net::UdpSocket;

use tracing::{debug, warn};

use super::connections::Message;
use super::packet_loop::{RelaySocket, Worker};
use super::routes::{Path, Socket, Way};
use crate::address::RelayedAddr;
use crate::net::datagrams::{Datagrams, Role};
use crate::net::drops::receive_drops;
use crate::net::socket::{OpenError, Reason, UdpOptions, open_relay};
use crate::net::stream::Class;
use crate::turn::authorization::Verdict;
use crate::turn::effect::RelaySource;
use crate::turn::{Effect, Now, OpenError as Refusal, RelayId};

impl<D: Datagrams> Worker<D> {
    /// Drains the server's effects, in order, until it has no more.
    pub(super) fn carry_out_effects(&mut self, now: Now) {
        while let Some(effect) = self.server.poll_effect() {
            match effect {
                Effect::Reply { route, client, bytes } => match Way::of(route) {
                    Way::Udp { listener, path } => {
                        let listener = match path {
                            Path::Direct { .. } => self.listener_at(listener, client.server),
                            // Its server's address is the proxy's.
                            Path::Proxied { .. } => Some(listener),
                        };
                        let destination = listener.and_then(|listener| self.client(listener, path, &client, 0));
                        if let Some(destination) = destination {
                            self.datagrams.send_copy(destination, self.server.reply_bytes(bytes));
                        }
                    }
                    Way::Dtls(association) => {
                        self.associations.outgoing.clear();
                        self.associations.outgoing.extend_from_slice(self.server.reply_bytes(bytes));
                        self.send_dtls(association, 0);
                    }
                    Way::Stream(connection) => {
                        let bytes = self.server.reply_bytes(bytes);
                        let message = Message { class: Class::Control, prefix: bytes, payload: &[], padding: 0 };
                        self.streams.queue(now, connection, &message);
                    }
                },
                Effect::OpenRelay { relay, address, source, hold_next } => {
                    let result = self.open_relay(relay, address, source, hold_next);
                    self.server.handle_relay_opened(now, relay, result);
                }
                Effect::CloseRelay { relay, address } => self.relay_ended(relay, address),
                Effect::CloseHeld { address } => {
                    drop(self.held.take(address));
                    self.server.handle_port_closed(address);
                }
                Effect::OpenTcpRelay { relay, address } => {
                    let result = self.open_tcp_relay(relay, address);
                    self.server.handle_relay_opened(now, relay, result);
                }
                Effect::CloseTcpRelay { relay, address } => {
                    self.peers.close_relay(relay);
                    self.server.handle_port_closed(address);
                }
                Effect::ConnectPeer { relay, connection, from, to } => {
                    self.connect_peer(now, relay, connection, from, to);
                }
                Effect::BindPeer { connection, route, client } => self.bind_peer(connection, route, &client),
                Effect::ClosePeer { connection } => self.close_peer(connection),
                Effect::ChannelOpened { relay, channel, peer, until }
                | Effect::ChannelExtended { relay, channel, peer, until } => {
                    self.channel_open(relay, channel, peer, until);
                }
                Effect::ChannelClosed { relay, channel, .. } => self.channel_closed(relay, channel),
                Effect::IndicationRelayed { relay, peer, until } => self.indication_relayed(now, relay, peer, until),
                Effect::PermissionsChanged { allocation } => self.permissions_changed(allocation),
                Effect::ClientMoved { allocation, from, to, .. } => {
                    self.client_moved(allocation);
                    debug!(from = %from.client, to = %to.client, transport = to.transport.name(), "client moved");
                }
                Effect::AllocationStarted(id) => {
                    if self.records.wants_starts()
                        && let Some(detail) = self.server.session(now, id)
                    {
                        self.records.started(detail.session);
                    }
                }
                Effect::Authorize(application) => {
                    let applicant = application.applicant.clone();
                    let asked = self.authorizer.as_ref().map(|authorizer| authorizer.ask(now, self.id, *application));
                    // Nobody is there to ask, or nobody can be asked now.
                    if let Some(verdict) = asked.unwrap_or(Some(Verdict::Unknown)) {
                        self.server.handle_verdict(now, &applicant, verdict, now.instant);
                    }
                }
                Effect::AllocationEnded(ended) => self.allocation_ended(ended),
                Effect::UserAttacked { username } => {
                    warn!(
                        ?username,
                        "many wrong passwords for this user; nobody is locked, ferryd answers fewer of them"
                    );
                }
            }
        }
    }

    fn open_relay(
        &mut self,
        relay: RelayId,
        address: RelayedAddr,
        source: RelaySource,
        hold_next: bool,
    ) -> Result<(), Refusal> {
        let held = match source {
            RelaySource::Fresh => None,
            RelaySource::Held => self.held.take(address),
        };
        let socket = match held {
            Some(socket) => socket,
            None => self.bind(address)?,
        };
        self.kernel_path.enlarge(&socket);
        let next = match hold_next {
            true => Some(self.bind_next(address)?),
            false => None,
        };
        let key = self.datagrams.add(Socket::Relay(relay).token(), Role::Relay, socket).map_err(|error| {
            warn!(%address, %error, "cannot watch a relay socket");
            Refusal::Exhausted
        })?;
        if let Some((next, socket)) = next {
            self.held.hold(self.id, next, socket);
        }
        let index = relay.index();
        if index >= self.relays.len() {
            self.relays.resize(index + 1, None);
        }
        self.relays[index] = Some(RelaySocket { id: relay, key });
        Ok(())
    }

    /// The socket of the next-higher port, for a reservation.
    fn bind_next(&mut self, address: RelayedAddr) -> Result<(RelayedAddr, UdpSocket), Refusal> {
        let mut next = address.socket_addr();
        next.set_port(address.port() + 1);
        let next = RelayedAddr::new(next);
        Ok((next, self.bind(next)?))
    }

    fn bind(&mut self, address: RelayedAddr) -> Result<UdpSocket, Refusal> {
        open_relay(address.socket_addr(), &UdpOptions::RELAY).map_err(|error| self.refusal(&error))
    }

    /// Counts a relay socket that could not be opened, and says what the server makes of it.
    pub(super) fn refusal(&mut self, error: &OpenError) -> Refusal {
        self.statistics.relay_open_failed += 1;
        debug!(%error, "relay socket not opened");
        match error.reason {
            Reason::InUse => Refusal::AddressInUse,
            Reason::Denied
            | Reason::NotOwnAddress
            | Reason::NoDescriptors
            | Reason::NoFamily
            | Reason::Option(_)
            | Reason::Other => Refusal::Exhausted,
        }
    }

    pub(super) fn close_relay(&mut self, relay: RelayId, address: RelayedAddr) {
        let Some(key) = self.relay_socket(relay) else {
            self.server.handle_port_closed(address);
            return;
        };
        self.relays[relay.index()] = None;
        let drops = self.datagrams.socket(key).map(receive_drops);
        self.statistics.relay_drops += drops.and_then(Result::ok).map_or(0, u64::from);
        self.closing.insert(relay, address);
        self.datagrams.remove(key);
    }
}
