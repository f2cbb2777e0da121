//! Application data both ways. Hot: nothing here allocates.

use std::ops::Range;

use rand::RngExt;

use super::allocation::{Allocation, Flow, NoFlow};
use super::effect::{Effect, Forward, Prefix};
use super::ids::{AllocationId, RelayId};
use super::meter::Direction;
use super::outcome::{DropReason, Outcome};
use super::peer_policy::Reach;
use super::server::{Now, Server};
use crate::address::{Family, FiveTuple, PeerAddr, Transport};
use crate::stun::attribute::XorAddress;
use crate::stun::message::ATTRIBUTE_HEADER_LEN;
use crate::stun::{AttributeType, Builder, ChannelData, Class, Message, Method, TransactionId, header};

impl Server {
    /// A ChannelData message from a client (RFC 8656 section 12.6).
    pub(super) fn channel_data(&mut self, now: Now, client: &FiveTuple, bytes: &[u8]) -> Result<Forward, DropReason> {
        let data = ChannelData::parse(bytes).ok_or(DropReason::MalformedChannelData)?;
        let id = self.table.find(client).ok_or(DropReason::NoAllocation)?;
        self.client_speaks(id, client);
        let allocation = self.table.get_mut(id).ok_or(DropReason::NoAllocation)?;
        let flow = allocation.flow_of(data.channel, now.instant).map_err(lacks_for_client)?;
        self.send(now, id, flow, data.data(), false)
    }

    /// A Send indication from a client (RFC 8656 section 11.2).
    pub(super) fn send_indication(
        &mut self,
        now: Now,
        client: &FiveTuple,
        message: &Message<'_>,
    ) -> Result<Forward, DropReason> {
        let (mut peer, mut payload, mut dont_fragment) = (None, None, false);
        for attribute in message.attributes() {
            match attribute.kind {
                AttributeType::XOR_PEER_ADDRESS if peer.is_none() => {
                    let address = attribute.as_xor_address(message.transaction_id());
                    peer = Some(address.ok_or(DropReason::IncompleteSend)?);
                }
                AttributeType::DATA if payload.is_none() => {
                    let start = message.offset_of(&attribute);
                    payload = Some(start..start + attribute.value.len());
                }
                AttributeType::DONT_FRAGMENT => dont_fragment = true,
                kind if kind.is_comprehension_required() && !kind.is_known() => {
                    return Err(DropReason::UnknownAttribute);
                }
                _ => {}
            }
        }
        let (Some(peer), Some(payload)) = (peer, payload) else { return Err(DropReason::IncompleteSend) };
        let peer = PeerAddr::new(peer);
        let dont_fragment = dont_fragment && !is_translated(client, peer);
        let id = self.table.find(client).ok_or(DropReason::NoAllocation)?;
        self.client_speaks(id, client);
        let allocation = self.table.get_mut(id).ok_or(DropReason::NoAllocation)?;
        let flow = allocation.flow_to(peer, now.instant).map_err(lacks_for_client)?;
        let forward = self.send(now, id, flow, payload, dont_fragment)?;
        if self.tells_of_paths && flow.channel.is_none() {
            let relay = RelayId { allocation: id, family: peer.family() };
            self.effects.push_back(Effect::IndicationRelayed { relay, peer, until: flow.until });
        }
        Ok(forward)
    }

    /// A datagram at a relayed address, from the network or from another allocation (RFC 8656 section 11.3).
    pub(super) fn deliver(
        &mut self,
        now: Now,
        relay: RelayId,
        from: PeerAddr,
        payload: Range<usize>,
    ) -> Result<Forward, DropReason> {
        let allocation = self.table.get_mut(relay.allocation).ok_or(DropReason::NoRelay)?;
        let flow = allocation.flow_to(from, now.instant).map_err(lacks_for_peer)?;
        if allocation.is_away() {
            return Err(DropReason::ClientAway);
        }
        if !allocation.may_carry(now.instant, &self.settings.limits, Direction::ToClient, payload.len()) {
            return Err(DropReason::DataRate);
        }
        let (prefix, padding) = match flow.channel {
            // RFC 8656 section 12.5: the server "MUST use the ChannelData message if a channel has been bound".
            Some(channel) => {
                let len = u16::try_from(payload.len()).map_err(|_| DropReason::TooLong)?;
                let header = ChannelData::header(channel, len);
                let padding = if allocation.client.transport.is_stream() { padding(payload.len()) } else { 0 };
                (Prefix::new(&[&header]), padding)
            }
            None => {
                let id = TransactionId(self.rng.random());
                (data_indication(id, from, payload.len())?, padding(payload.len()))
            }
        };
        let len = prefix.as_bytes().len() + payload.len() + usize::from(padding);
        if len > allocation.client.transport.message_len_max() {
            return Err(DropReason::TooLong);
        }
        allocation.traffic.received(payload.len());
        self.counters.traffic[allocation.client.transport as usize].received(payload.len());
        Ok(Forward::ToClient { route: allocation.route, client: allocation.client, prefix, payload, padding })
    }

    /// Data of a client to a peer: the permission decides where it leads.
    fn send(
        &mut self,
        now: Now,
        id: AllocationId,
        flow: Flow,
        payload: Range<usize>,
        dont_fragment: bool,
    ) -> Result<Forward, DropReason> {
        let Flow { peer, reach, .. } = flow;
        let relay = RelayId { allocation: id, family: peer.family() };
        if peer.port() == 0 {
            return Err(DropReason::ForbiddenPort);
        }
        if payload.len() > Transport::Udp.message_len_max() {
            return Err(DropReason::TooLong);
        }
        let limits = &self.settings.limits;
        if limits.meter_data()
            && let Some(allocation) = self.table.get_mut(id)
            && !allocation.may_carry(now.instant, limits, Direction::ToPeers, payload.len())
        {
            return Err(DropReason::DataRate);
        }
        let forward = match reach {
            Reach::Network => Ok(Forward::ToPeer { relay, peer, payload: payload.clone(), dont_fragment }),
            Reach::OwnRelays | Reach::OwnHost => {
                self.send_to_own(now, relay, peer, payload.clone(), reach, dont_fragment)
            }
        };
        // What another allocation does not let in has been sent all the same, on whatever worker that one is.
        if !matches!(forward, Err(DropReason::ForbiddenPort))
            && let Some(allocation) = self.table.get_mut(id)
        {
            allocation.traffic.sent(payload.len());
            self.counters.traffic[allocation.client.transport as usize].sent(payload.len());
        }
        forward
    }

    /// Data to one of this host's addresses: to the live relay there in memory, else only where the operator allows it.
    fn send_to_own(
        &mut self,
        now: Now,
        relay: RelayId,
        peer: PeerAddr,
        payload: Range<usize>,
        reach: Reach,
        dont_fragment: bool,
    ) -> Result<Forward, DropReason> {
        let Some(live) = self.shared.ports.live(peer) else {
            let permitted = reach == Reach::OwnHost && self.peers.permits_port(peer.port());
            return if permitted {
                Ok(Forward::ToPeer { relay, peer, payload, dont_fragment })
            } else {
                Err(DropReason::ForbiddenPort)
            };
        };
        let own = self.relayed_address(relay).ok_or(DropReason::NoRelay)?;
        // The peer knows this client by the address that it would have seen on the way that was named.
        let from = self.seen_from_relay(own, live.advertised);
        if live.worker == self.worker {
            self.deliver(now, live.relay, from, payload)
        } else {
            Ok(Forward::ToWorker { worker: live.worker, relay: live.relay, from, payload })
        }
    }

    /// An ICMP error about a datagram that went from a relayed address to a peer (RFC 8656 section 11.5).
    pub fn handle_peer_error(&mut self, now: Now, relay: RelayId, error: IcmpError) {
        if let Err(reason) = self.peer_error(now, relay, error) {
            self.count(Outcome::Dropped(reason));
        }
    }

    fn peer_error(&mut self, now: Now, relay: RelayId, error: IcmpError) -> Result<(), DropReason> {
        if !error.is_relevant() {
            return Err(DropReason::IrrelevantIcmp);
        }
        let allocation: &Allocation = self.table.get(relay.allocation).ok_or(DropReason::NoRelay)?;
        if allocation.opening.is_some() || !allocation.relays_at(relay.family, now.instant) {
            return Err(DropReason::NoRelay);
        }
        allocation.permission(error.peer.ip(), now.instant).ok_or(DropReason::NoPermission)?;
        if allocation.is_away() {
            return Err(DropReason::ClientAway);
        }
        let (route, client) = (allocation.route, allocation.client);
        let id = TransactionId(self.rng.random());
        let start = self.replies.len();
        Builder::new(&mut self.replies, Method::Data, Class::Indication, id)
            .xor_address(AttributeType::XOR_PEER_ADDRESS, error.peer.socket_addr())
            .attribute(AttributeType::ICMP, &error.attribute());
        self.effects.push_back(Effect::Reply { route, client, bytes: start..self.replies.len() });
        self.count(Outcome::ToClient);
        Ok(())
    }
}

/// An ICMP or ICMPv6 error message that quotes a datagram of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// The destination of the quoted datagram.
    pub peer: PeerAddr,
    pub kind: u8,
    pub code: u8,
    /// The next hop's MTU in bytes, for the kinds that report one.
    pub mtu: u32,
}

impl IcmpError {
    /// RFC 8656 section 11.5: "the type is either 3 or 11 for an ICMPv4 packet or either 1, 2, or 3 for an ICMPv6".
    fn is_relevant(self) -> bool {
        match self.peer.socket_addr() {
            std::net::SocketAddr::V4(_) => matches!(self.kind, 3 | 11),
            std::net::SocketAddr::V6(_) => matches!(self.kind, 1..=3),
        }
    }

    /// The value of the ICMP attribute (RFC 8656 section 18.13): Error Data is the MTU for "packet too big" and
    /// "fragmentation needed" and zero for the rest. Type and Code are ICMP's octets, in the last two of the first
    /// word.
    fn attribute(self) -> [u8; 8] {
        let reports_mtu = match self.peer.socket_addr() {
            std::net::SocketAddr::V4(_) => (self.kind, self.code) == (3, 4),
            std::net::SocketAddr::V6(_) => self.kind == 2,
        };
        let [a, b, c, d] = if reports_mtu { self.mtu } else { 0 }.to_be_bytes();
        [0, 0, self.kind, self.code, a, b, c, d]
    }
}

/// The bytes of a Data indication in front of its payload (RFC 8656 section 11.3).
fn data_indication(id: TransactionId, from: PeerAddr, payload_len: usize) -> Result<Prefix, DropReason> {
    let address = XorAddress::new(from.socket_addr(), id);
    let address = address.as_bytes();
    let len = 2 * ATTRIBUTE_HEADER_LEN + address.len() + payload_len.next_multiple_of(4);
    let len = u16::try_from(len).map_err(|_| DropReason::TooLong)?;
    let attribute = |kind: AttributeType, len: usize| {
        let ([a, b], [c, d]) = (kind.0.to_be_bytes(), (len as u16).to_be_bytes());
        [a, b, c, d]
    };
    Ok(Prefix::new(&[
        &header::join_type(Method::Data, Class::Indication).to_be_bytes(),
        &len.to_be_bytes(),
        &header::MAGIC_COOKIE.to_be_bytes(),
        &id.0,
        &attribute(AttributeType::XOR_PEER_ADDRESS, address.len()),
        address,
        &attribute(AttributeType::DATA, payload_len),
    ]))
}

/// Whether packets are translated (RFC 8656 section 13): "the DONT-FRAGMENT attribute MUST be ignored by the server", which
/// "is only applicable for UDP-to-UDP relay". From IPv4 to IPv4 is section 14.
fn is_translated(client: &FiveTuple, peer: PeerAddr) -> bool {
    let families = (client.client.family(), peer.family());
    !client.transport.is_stream() && families != (Family::V4, Family::V4)
}

/// Why a client's data is dropped.
fn lacks_for_client(lack: NoFlow) -> DropReason {
    match lack {
        NoFlow::Relay => DropReason::NoAllocation,
        NoFlow::Channel => DropReason::NoChannel,
        NoFlow::Permission => DropReason::NoPermission,
        NoFlow::Tcp => DropReason::TcpAllocation,
    }
}

/// Why a peer's datagram is dropped.
fn lacks_for_peer(lack: NoFlow) -> DropReason {
    match lack {
        NoFlow::Relay => DropReason::NoRelay,
        NoFlow::Channel | NoFlow::Permission => DropReason::NoPermission,
        NoFlow::Tcp => DropReason::TcpAllocation,
    }
}

fn padding(len: usize) -> u8 {
    (len.next_multiple_of(4) - len) as u8
}
