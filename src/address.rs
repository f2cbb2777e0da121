//! Transport addresses by role, so that arguments cannot be swapped.
//!
//! The names are RFC 8656's: a *client* asks, a *peer* is reached through a *relayed transport address*, and the
//! 5-tuple of RFC 8656 section 2.2 identifies an allocation.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The transport between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
    /// DTLS over UDP (RFC 7350).
    Dtls,
}

impl Transport {
    /// Every transport in the order of the variants: `transport as usize` is its place in a table of counters.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Tcp, Self::Tls, Self::Dtls];

    /// Whether messages arrive on a byte stream, so that framing and ChannelData padding apply (RFC 8656 section 12.5).
    pub fn is_stream(self) -> bool {
        match self {
            Self::Udp | Self::Dtls => false,
            Self::Tcp | Self::Tls => true,
        }
    }

    /// Whether a client has proved its address before its first message, and its end is told: a connection, or an
    /// association of DTLS.
    pub fn is_connected(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls | Self::Dtls => true,
        }
    }

    /// The longest message that one datagram or record carries; a stream sets no bound.
    ///
    /// UDP: 65,535 without the headers of IPv4 and UDP. DTLS: one record (RFC 6347 section 4.1.1).
    pub fn message_len_max(self) -> usize {
        match self {
            Self::Udp => 65_507,
            Self::Dtls => 16_384,
            Self::Tcp | Self::Tls => usize::MAX,
        }
    }

    /// The name used in logs, metrics and session records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Dtls => "dtls",
        }
    }
}

/// An IP address family, as REQUESTED-ADDRESS-FAMILY names it (RFC 8656 section 18.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// What a UDP datagram has before its payload: an IP header without options, and a UDP header.
    pub fn udp_headers_len(self) -> usize {
        const UDP_HEADER_LEN: usize = 8;
        UDP_HEADER_LEN
            + match self {
                Self::V4 => 20,
                Self::V6 => 40,
            }
    }

    /// The other family.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Takes the role on, with the IPv6 flow label and scope cleared: neither is part of the identity.
            pub fn new(address: SocketAddr) -> Self {
                Self(SocketAddr::new(address.ip(), address.port()))
            }

            /// The address and port.
            pub fn socket_addr(self) -> SocketAddr {
                self.0
            }

            /// The address alone.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port alone.
            pub fn port(self) -> u16 {
                self.0.port()
            }

            /// The address family.
            pub fn family(self) -> Family {
                Family::of(self.0.ip())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

role! {
    /// A client's transport address as the server sees it: the server-reflexive transport address.
    ClientAddr
}
role! {
    /// The server's transport address that a client sent to; answers leave from it (RFC 8489 section 6.3.1.2).
    ServerAddr
}
role! {
    /// A peer's transport address.
    PeerAddr
}
role! {
    /// A relayed transport address as this host binds it; what clients are told may be an advertised address instead.
    RelayedAddr
}

/// What identifies an allocation: client address, server address and transport (RFC 8656 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FiveTuple {
    pub transport: Transport,
    pub client: ClientAddr,
    pub server: ServerAddr,
}
