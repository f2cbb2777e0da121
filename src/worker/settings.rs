//! What an operator decides about listeners.

use std::net::SocketAddr;

/// A socket that clients reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it is bound; an unspecified address is a wildcard of its own family only.
    pub address: SocketAddr,
    pub kind: ListenerKind,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    Udp,
    Stream(Accept),
}

/// What a stream listener answers; the rest is closed without a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Plain STUN and TLS, told apart by the first bytes.
    Both,
    /// TLS alone: what looks like TLS on 443 must answer nothing else.
    Tls,
    /// Plain STUN alone.
    Plain,
}

/// Bounds on connections that have yet to prove anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptLimits {
    /// Connections from one source prefix (IPv4 /32, IPv6 /64). 0 is no limit.
    pub connections_per_source: u32,
    /// Connections of all clients together. 0 is no limit but descriptors.
    pub connections_total: u32,
    /// TLS handshakes under way at once, over all listeners.
    pub handshakes: u32,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self { connections_per_source: 4000, connections_total: 0, handshakes: 256 }
    }
}
