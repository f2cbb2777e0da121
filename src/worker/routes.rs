//! What epoll tokens and the server's [`Route`]s stand for.

use crate::net::poll::Token;
use crate::turn::{PeerConnectionId, RelayId, Route};

/// A socket of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    Waker,
    /// What a UDP listener gets of media, by index of the listener.
    Listener(u16),
    /// Requests of clients, by index of the socket.
    Requests(u16),
    Relay(RelayId),
    Connection(ConnectionId),
    /// The listener of a TCP allocation.
    TcpRelay(RelayId),
    /// A connection with a peer.
    Peer(PeerConnectionId),
}

/// A stream or an association of the worker: a slot, and a generation that tells its successive users apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionId {
    pub(super) slot: u32,
    /// 28 bits.
    pub(super) generation: u32,
}

pub(super) const CONNECTION_GENERATION_MASK: u32 = (1 << 28) - 1;

/// The highest bit belongs to the datagram back end.
const TAG_SHIFT: u32 = 60;
const TAG_WAKER: u64 = 0;
const TAG_LISTENER: u64 = 1;
const REQUESTS: u64 = 1 << 32;
const TAG_RELAY: u64 = 2;
const TAG_CONNECTION: u64 = 3;
const TAG_TCP_RELAY: u64 = 4;
const TAG_PEER: u64 = 5;

impl Socket {
    pub(super) fn token(self) -> Token {
        Token(match self {
            Self::Waker => TAG_WAKER << TAG_SHIFT,
            Self::Listener(index) => TAG_LISTENER << TAG_SHIFT | u64::from(index),
            Self::Requests(index) => TAG_LISTENER << TAG_SHIFT | REQUESTS | u64::from(index),
            Self::Relay(relay) => TAG_RELAY << TAG_SHIFT | relay.pack(),
            Self::Connection(connection) => TAG_CONNECTION << TAG_SHIFT | connection.pack(),
            Self::TcpRelay(relay) => TAG_TCP_RELAY << TAG_SHIFT | relay.pack(),
            Self::Peer(PeerConnectionId(peer)) => TAG_PEER << TAG_SHIFT | u64::from(peer),
        })
    }

    pub(super) fn of(Token(token): Token) -> Self {
        match token >> TAG_SHIFT & 0b111 {
            TAG_WAKER => Self::Waker,
            TAG_LISTENER if token & REQUESTS != 0 => Self::Requests(token as u16),
            TAG_LISTENER => Self::Listener(token as u16),
            TAG_RELAY => Self::Relay(RelayId::unpack(token)),
            TAG_TCP_RELAY => Self::TcpRelay(RelayId::unpack(token)),
            TAG_PEER => Self::Peer(PeerConnectionId(token as u32)),
            _ => Self::Connection(ConnectionId::unpack(token)),
        }
    }
}

impl ConnectionId {
    fn pack(self) -> u64 {
        u64::from(self.generation & CONNECTION_GENERATION_MASK) << 32 | u64::from(self.slot)
    }

    fn unpack(packed: u64) -> Self {
        Self { slot: packed as u32, generation: (packed >> 32) as u32 & CONNECTION_GENERATION_MASK }
    }
}

/// The way back to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through a UDP listener.
    Udp {
        listener: u16,
        path: Path,
    },
    Stream(ConnectionId),
    /// An association of DTLS.
    Dtls(ConnectionId),
}

/// How datagrams go between a UDP listener and a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// To the client's address; `scope` is the interface of a link-local one, which that does not tell.
    Direct { scope: u32 },
    /// Through the proxy that has announced the client: the number of its [host](super::proxies::Host), and the port.
    Proxied { host: u16, port: u16 },
}

const STREAM: u64 = 1 << 63;
const DTLS: u64 = 1 << 62;
const PROXIED: u64 = 1 << 61;

impl Way {
    pub(super) fn route(self) -> Route {
        Route(match self {
            Self::Udp { listener, path: Path::Direct { scope } } => u64::from(listener) << 32 | u64::from(scope),
            Self::Udp { listener, path: Path::Proxied { host, port } } => {
                PROXIED | u64::from(listener) << 32 | u64::from(host) << 16 | u64::from(port)
            }
            Self::Stream(connection) => STREAM | connection.pack(),
            Self::Dtls(association) => DTLS | association.pack(),
        })
    }

    pub(super) fn of(Route(route): Route) -> Self {
        if route & STREAM != 0 {
            Self::Stream(ConnectionId::unpack(route))
        } else if route & DTLS != 0 {
            Self::Dtls(ConnectionId::unpack(route))
        } else {
            let path = if route & PROXIED != 0 {
                Path::Proxied { host: (route >> 16) as u16, port: route as u16 }
            } else {
                Path::Direct { scope: route as u32 }
            };
            Self::Udp { listener: (route >> 32) as u16, path }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_routes_are_reversible() {
        let connection = ConnectionId { slot: u32::MAX, generation: CONNECTION_GENERATION_MASK };
        for socket in [
            Socket::Waker,
            Socket::Listener(u16::MAX),
            Socket::Requests(u16::MAX),
            Socket::Relay(RelayId::unpack((1 << RelayId::BITS) - 1)),
            Socket::Connection(connection),
            Socket::TcpRelay(RelayId::unpack((1 << RelayId::BITS) - 1)),
            Socket::Peer(PeerConnectionId(u32::MAX)),
        ] {
            assert_eq!(Socket::of(socket.token()), socket);
        }
        let udp = |path| Way::Udp { listener: u16::MAX, path };
        let (direct, proxied) = (Path::Direct { scope: u32::MAX }, Path::Proxied { host: 1, port: u16::MAX });
        for way in [udp(direct), udp(proxied), Way::Stream(connection), Way::Dtls(connection)] {
            assert_eq!(Way::of(way.route()), way);
        }
    }
}
