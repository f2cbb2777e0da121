//! What an operator decides about listeners.

use std::net::SocketAddr;

pub use crate::net::accept::Accept;
pub use crate::net::admission::AcceptLimits;

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
