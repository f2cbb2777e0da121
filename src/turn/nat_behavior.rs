//! Where NAT Behavior Discovery answers from: two addresses and two ports of a family (RFC 5780 section 6).

use std::net::{IpAddr, SocketAddr};

use crate::address::{Family, ServerAddr};
use crate::stun::nat_behavior::Change;

/// NAT Behavior Discovery as offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatBehavior {
    /// The endpoints of IPv4; without them IPv4 has no alternate address.
    pub v4: Option<Endpoints>,
    /// The endpoints of IPv6; without them IPv6 has no alternate address.
    pub v6: Option<Endpoints>,
    /// The MTU of the interface in bytes: PADDING of answers is as long at most.
    pub mtu: u16,
}

impl NatBehavior {
    /// The MTU of Ethernet.
    pub const MTU: u16 = 1500;
    /// The largest MTU that can be set: jumbo frames. RFC 5780 section 7.6: "PADDING MUST NOT be longer than the length
    /// that brings the total IP datagram size to 64K."
    pub const MTU_MAX: u16 = 9216;

    /// Ca:Cp, the endpoint with the other address and the other port; `None` where the one that was asked is none of the
    /// four.
    pub fn other(&self, asked: ServerAddr) -> Option<ServerAddr> {
        self.source(asked, Change { ip: true, port: true })
    }

    /// The endpoint that an answer leaves from (RFC 5780 section 6.1, table 1).
    pub fn source(&self, asked: ServerAddr, change: Change) -> Option<ServerAddr> {
        let endpoints = match asked.family() {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        };
        endpoints?.source(asked, change)
    }
}

/// Two addresses of one family and two ports: every combination is a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    addresses: [IpAddr; 2],
    ports: [u16; 2],
}

impl Endpoints {
    /// The primary address and port come first. `None` unless there are two addresses of one family, and two ports.
    pub fn new(addresses: [IpAddr; 2], ports: [u16; 2]) -> Option<Self> {
        let two_addresses = addresses[0] != addresses[1] && Family::of(addresses[0]) == Family::of(addresses[1]);
        let real = !addresses.iter().any(IpAddr::is_unspecified) && !ports.contains(&0);
        (two_addresses && ports[0] != ports[1] && real).then_some(Self { addresses, ports })
    }

    /// All four, the primary one first.
    pub fn all(&self) -> [SocketAddr; 4] {
        let ([a1, a2], [p1, p2]) = (self.addresses, self.ports);
        [(a1, p1), (a2, p1), (a1, p2), (a2, p2)].map(SocketAddr::from)
    }

    fn source(&self, asked: ServerAddr, change: Change) -> Option<ServerAddr> {
        let address = self.addresses.iter().position(|address| *address == asked.ip())?;
        let port = self.ports.iter().position(|port| *port == asked.port())?;
        let (address, port) = (address ^ usize::from(change.ip), port ^ usize::from(change.port));
        Some(ServerAddr::new(SocketAddr::new(self.addresses[address], self.ports[port])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn endpoints_are_two_addresses_of_a_family_and_two_ports() {
        let (a1, a2, v6) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"));
        assert!(Endpoints::new([a1, a2], [3478, 3479]).is_some());
        for (addresses, ports) in [
            ([a1, a1], [3478, 3479]),
            ([a1, v6], [3478, 3479]),
            ([a1, ip("0.0.0.0")], [3478, 3479]),
            ([a1, a2], [3478, 3478]),
            ([a1, a2], [3478, 0]),
        ] {
            assert_eq!(Endpoints::new(addresses, ports), None, "{addresses:?} {ports:?}");
        }
    }

    #[test]
    fn all_four_are_there_once_and_the_primary_one_is_first() {
        let all = Endpoints::new([ip("192.0.2.1"), ip("192.0.2.2")], [3478, 3479]).unwrap().all();
        let texts = all.map(|address| address.to_string());
        assert_eq!(texts, ["192.0.2.1:3478", "192.0.2.2:3478", "192.0.2.1:3479", "192.0.2.2:3479"]);
    }
}
