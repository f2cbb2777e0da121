//! Other servers that clients are sent to: the ALTERNATE-SERVER mechanism (RFC 8489 section 10).

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::address::{Family, FiveTuple, Transport};
use crate::stun::{AttributeType, Builder};

/// Where clients are sent, by the transport that they use and keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    pub udp: Alternates,
    pub tcp: Alternates,
    pub tls: Alternates,
    pub dtls: Alternates,
    /// A name in the certificate of the other server, where that certificate is not this server's: a DNS name of at
    /// most 255 ASCII characters.
    pub domain: Option<String>,
}

/// No new allocations are made: clients are sent elsewhere, or refused where nothing of their family is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    pub redirect: Redirect,
}

/// A server that is reached by either family, or by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alternates {
    pub v4: Option<SocketAddrV4>,
    pub v6: Option<SocketAddrV6>,
}

impl Alternates {
    fn get(&self, family: Family) -> Option<SocketAddr> {
        match family {
            Family::V4 => self.v4.map(SocketAddr::V4),
            Family::V6 => self.v6.map(SocketAddr::V6),
        }
    }
}

/// What one client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TryAlternate {
    server: SocketAddr,
    other_family: Option<SocketAddr>,
    domain: Option<String>,
}

impl Redirect {
    /// The same server for every transport.
    pub fn to(alternates: Alternates, domain: Option<String>) -> Self {
        Self { udp: alternates, tcp: alternates, tls: alternates, dtls: alternates, domain }
    }

    /// Where a client goes; `None` when there is no server of its family, without which no redirection can be told.
    pub(super) fn of(&self, client: &FiveTuple) -> Option<TryAlternate> {
        let alternates = match client.transport {
            Transport::Udp => &self.udp,
            Transport::Tcp => &self.tcp,
            Transport::Tls => &self.tls,
            Transport::Dtls => &self.dtls,
        };
        let family = client.client.family();
        let domain = match client.transport {
            Transport::Udp | Transport::Tcp => None,
            // Owed to clients that sign with MESSAGE-INTEGRITY-SHA256; older ones ignore it.
            Transport::Tls | Transport::Dtls => self.domain.clone(),
        };
        Some(TryAlternate { server: alternates.get(family)?, other_family: alternates.get(family.other()), domain })
    }
}

impl TryAlternate {
    /// Appends the attributes, the client's own family first.
    pub(super) fn write(&self, builder: &mut Builder<'_>) {
        for address in [Some(self.server), self.other_family].into_iter().flatten() {
            builder.address(AttributeType::ALTERNATE_SERVER, address);
        }
        if let Some(domain) = &self.domain {
            builder.attribute(AttributeType::ALTERNATE_DOMAIN, domain.as_bytes());
        }
    }
}
