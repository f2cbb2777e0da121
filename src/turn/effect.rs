//! What the server asks of its shell, and what becomes of each packet.

use std::ops::Range;
use std::time::Instant;

use super::authorization::Application;
use super::ids::{AllocationId, PeerConnectionId, RelayId, Route, WorkerId};
use super::session::SessionId;
use super::settings::DataRate;
use crate::address::{FiveTuple, PeerAddr, RelayedAddr};
use crate::stun::channel_data::ChannelNumber;

/// Room that every prefix fits into: a Data indication to an IPv6 peer has 20 bytes of header, 24 of XOR-PEER-ADDRESS
/// and 4 of DATA.
pub const PREFIX_LEN_MAX: usize = 48;

/// Application data on its way; `payload` is a range of the bytes that were handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// One datagram from a relay socket to a peer.
    ToPeer { relay: RelayId, peer: PeerAddr, payload: Range<usize>, dont_fragment: bool },
    /// One message to a client: `prefix`, the payload, and `padding` zero bytes.
    ToClient { route: Route, client: FiveTuple, prefix: Prefix, payload: Range<usize>, padding: u8 },
    /// To a client of another worker, which is to call [`super::Server::handle_neighbour`].
    ToWorker { worker: WorkerId, relay: RelayId, from: PeerAddr, payload: Range<usize> },
    /// A message of a client whose allocation is another worker's, which is to call [`super::Server::handle_client`]
    /// with it. A datagram is handed over; a stream moves there for good, with this message and all unread ones.
    Elsewhere { worker: WorkerId, client: FiveTuple, route: Route, message: Range<usize> },
}

/// The bytes in front of a payload: a ChannelData header or the beginning of a Data indication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    bytes: [u8; PREFIX_LEN_MAX],
    len: u8,
}

impl Prefix {
    /// Takes at most [`PREFIX_LEN_MAX`] bytes.
    pub(super) fn new(parts: &[&[u8]]) -> Self {
        let (mut bytes, mut len) = ([0; PREFIX_LEN_MAX], 0);
        for part in parts {
            bytes[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        Self { bytes, len: len as u8 }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Everything but application data: to be drained after each `handle_*` and carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A STUN message to `client.client` from `client.server`, which are not those of the request where it asked for
    /// others (RFC 5780 section 6.1); its bytes are [`super::Server::reply_bytes`] until the queue is empty.
    Reply { route: Route, client: FiveTuple, bytes: Range<usize> },
    /// Bind a relay socket, and hold the next-higher port where asked; then call `handle_relay_opened`. What failed is
    /// left closed, both sockets of a pair and a held one among them.
    OpenRelay { relay: RelayId, address: RelayedAddr, source: RelaySource, hold_next: bool },
    /// Close a relay socket, should it be open; then call `handle_port_closed` in any case.
    CloseRelay { relay: RelayId, address: RelayedAddr },
    /// Close a held socket that nobody redeemed, should it be open; then call `handle_port_closed` in any case.
    CloseHeld { address: RelayedAddr },
    /// Listen for TCP connections on a relayed address; then call `handle_relay_opened`.
    OpenTcpRelay { relay: RelayId, address: RelayedAddr },
    /// Listen no more, should it be so; then call `handle_port_closed` in any case.
    CloseTcpRelay { relay: RelayId, address: RelayedAddr },
    /// Begin a TCP connection from a relayed address to a peer, and call `handle_peer_connected` when it is known how
    /// that went; the connection is not read from before its `BindPeer`.
    ConnectPeer { relay: RelayId, connection: PeerConnectionId, from: RelayedAddr, to: PeerAddr },
    /// Pass the bytes of a client's stream to a peer's connection and the other way from now on, beginning with those
    /// that the client has sent behind its request. Comes behind the success response, which goes first.
    BindPeer { connection: PeerConnectionId, route: Route, client: FiveTuple },
    /// Close a peer's connection, should it be there, and the client's stream that is bound to it.
    ClosePeer { connection: PeerConnectionId },
    /// A channel is open, bound and permitted, until then: the earliest of what expires of allocation, permission and
    /// channel. Comes behind the success response, and again when the channel is refreshed. Where its data goes tells
    /// [`super::Server::channel_path`].
    ChannelOpened { relay: RelayId, channel: ChannelNumber, peer: PeerAddr, until: Instant },
    /// A bound channel is open until then or up to a second longer, as its permission or its allocation has been refreshed.
    /// Comes where it was asked for alone ([`super::Server::tell_of_paths`]).
    ChannelExtended { relay: RelayId, channel: ChannelNumber, peer: PeerAddr, until: Instant },
    /// A Send indication has been relayed to a peer that no channel is bound to; its data and the peer's is relayed as
    /// indications until then. Comes with each of them, and where it was asked for alone
    /// ([`super::Server::tell_of_paths`]).
    IndicationRelayed { relay: RelayId, peer: PeerAddr, until: Instant },
    /// What [`super::Server::indications_until`] says of an allocation's peers may have changed, or the allocation has ended.
    /// Comes in front of the response, and where it was asked for alone.
    PermissionsChanged { allocation: AllocationId },
    /// A channel is not bound any more.
    ChannelClosed { relay: RelayId, channel: ChannelNumber, peer: PeerAddr },
    /// An allocation has another 5-tuple from now on (RFC 8016). Its relays and channels are as they were.
    ClientMoved { allocation: AllocationId, from: FiveTuple, to: FiveTuple, route: Route },
    /// An allocation has begun, and its client is told so.
    AllocationStarted(SessionId),
    /// An allocation has ended.
    AllocationEnded(Box<Ended>),
    /// Have it decided whether a client may allocate, and call `handle_verdict`, in any case. Meanwhile its request waits.
    Authorize(Box<Application>),
    /// Somebody guesses this user's password: many wrong credentials within a minute. Told seldom, and nobody is locked.
    UserAttacked { username: Box<str> },
}

/// Where the data for a peer goes, for whoever carries it besides the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelPath {
    pub client: FiveTuple,
    pub route: Route,
    pub relayed: RelayedAddr,
    pub beyond: Beyond,
    /// What the allocation may carry in each direction, all of its channels and indications together.
    pub rate: DataRate,
}

/// What is at the address of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// Another host.
    Network,
    /// Another allocation of this server: its relayed address, and the address by which it knows this one.
    Relay { relayed: RelayedAddr, from: PeerAddr },
    /// Something else on this host, which the operator allows.
    Host,
    /// An address of this host where nothing may be reached.
    Nowhere,
}

/// Where the socket of a relayed address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelaySource {
    /// It is to be bound now.
    Fresh,
    /// It is held since an EVEN-PORT reserved it.
    Held,
}

/// Why a relay socket could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Something else on this host has the port: another one is tried.
    AddressInUse,
    /// Descriptors, memory or the address itself are missing: 508.
    Exhausted,
}

/// The record of an allocation that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub id: SessionId,
    pub allocation: AllocationId,
    pub username: std::sync::Arc<str>,
    pub client: FiveTuple,
    pub relayed: Vec<std::net::SocketAddr>,
    /// Peers that were permitted, the first 16 of them.
    pub peers: Vec<std::net::IpAddr>,
    /// Permissions that were installed for others.
    pub peers_more: u64,
    pub traffic: Traffic,
    /// What of it others than the server have carried: nothing, until the shell says so.
    pub offloaded: Traffic,
    /// When it began, in seconds since the Unix epoch.
    pub started: u64,
    pub reason: EndReason,
}

/// Why an allocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Its time ran out.
    Expired,
    /// The client refreshed it with a lifetime of zero.
    Released,
    /// The client's connection is gone.
    ClientClosed,
    /// The operator ended it.
    Evicted,
    /// Its worker has failed.
    WorkerFailed,
    /// The operator has revoked its credentials.
    Revoked,
    /// The daemon stopped.
    Stopped,
}

impl EndReason {
    /// The name in session records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Released => "released",
            Self::ClientClosed => "client_closed",
            Self::Evicted => "evicted",
            Self::WorkerFailed => "worker_failed",
            Self::Revoked => "revoked",
            Self::Stopped => "stopped",
        }
    }
}

/// Application data of one allocation, payload bytes alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets_to_peers: u64,
    pub bytes_to_peers: u64,
    pub packets_to_client: u64,
    pub bytes_to_client: u64,
}

impl Traffic {
    /// Which data path it took, for those who ask about all of an allocation's data.
    pub fn datapath(&self) -> &'static str {
        if *self == Self::default() { "sockets" } else { "kernel" }
    }

    /// One packet to a peer.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.packets_to_peers += 1;
        self.bytes_to_peers += bytes as u64;
    }

    /// One packet to the client.
    pub(super) fn received(&mut self, bytes: usize) {
        self.packets_to_client += 1;
        self.bytes_to_client += bytes as u64;
    }
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, more: Self) {
        self.packets_to_peers += more.packets_to_peers;
        self.bytes_to_peers += more.bytes_to_peers;
        self.packets_to_client += more.packets_to_client;
        self.bytes_to_client += more.bytes_to_client;
    }
}
