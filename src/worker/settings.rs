//! What an operator decides about listeners.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

pub use crate::net::accept::Accept;
pub use crate::net::admission::AcceptLimits;

/// How a worker goes about its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub backend: Backend,
    /// A packet may wait this long for others, so that one wake-up serves them all; zero is never.
    pub wake_up_delay_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { backend: Backend::Auto, wake_up_delay_max: Duration::from_micros(500) }
    }
}

/// What datagrams are received and sent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where the kernel has all of it and allows it, else epoll.
    Auto,
    Epoll,
    IoUring,
}

impl Backend {
    /// The names in the configuration.
    pub const NAMES: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("epoll", Self::Epoll), ("io-uring", Self::IoUring)];

    /// The name in the configuration, and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Epoll => "epoll",
            Self::IoUring => "io-uring",
        }
    }
}

/// The ports of `stun:` and `turn:` URLs, and of `stuns:` and `turns:` ones (RFC 7064 section 3.2, RFC 7065 section 3.2).
pub const PORT: u16 = 3478;
pub const TLS_PORT: u16 = 5349;

/// A socket that clients reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it is bound; an unspecified address is a wildcard of its own family only.
    pub address: SocketAddr,
    pub kind: ListenerKind,
    /// Who begins a stream with a preamble of the PROXY protocol, and is believed.
    pub proxies: Vec<IpNet>,
}

impl Listener {
    /// In words: what clients speak there, and where.
    pub fn name(&self) -> String {
        format!("{} {}", self.kind.name(), self.address)
    }

    /// Whether clients send it datagrams.
    pub fn is_udp(&self) -> bool {
        self.kind.is_udp()
    }

    /// Whether both are one socket, whatever they speak there.
    pub fn is_same_socket(&self, other: &Self) -> bool {
        self.address == other.address && self.is_udp() == other.is_udp()
    }
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    Udp(Accept),
    Stream(Accept),
}

impl ListenerKind {
    /// Whether clients send datagrams.
    pub fn is_udp(self) -> bool {
        match self {
            Self::Udp(_) => true,
            Self::Stream(_) => false,
        }
    }

    /// With or without TLS or DTLS.
    pub fn accept(self) -> Accept {
        let (Self::Udp(accept) | Self::Stream(accept)) = self;
        accept
    }

    /// In a word: what clients speak there.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp(Accept::Both) => "udp+dtls",
            Self::Udp(Accept::Tls) => "dtls",
            Self::Udp(Accept::Plain) => "udp",
            Self::Stream(Accept::Both) => "tcp+tls",
            Self::Stream(Accept::Tls) => "tls",
            Self::Stream(Accept::Plain) => "tcp",
        }
    }
}
