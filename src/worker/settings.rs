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
