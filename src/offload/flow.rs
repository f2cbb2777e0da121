//! Flows, and the layout in which the programs know them (`ebpf/maps.h`).

use std::net::{IpAddr, SocketAddr};

use super::meters::MeterId;
use crate::address::{ClientAddr, Family, PeerAddr, RelayedAddr, ServerAddr};

/// A peer of a client that is reached by UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub client: ClientAddr,
    pub server: ServerAddr,
    /// `None` is indications.
    pub channel: Option<u16>,
    pub relayed: RelayedAddr,
    pub peer: PeerAddr,
    /// Where it goes on, when the peer is a relayed address of this server.
    pub hop: Option<Hop>,
    /// What its packets take tokens from; `None` where nothing is limited.
    pub meter: Option<MeterId>,
}

/// The way from one allocation of this server to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The other allocation's relayed address.
    pub relayed: RelayedAddr,
    /// The address by which it knows this one.
    pub from: PeerAddr,
}

/// Application data that the kernel has carried, payload bytes alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets_to_peer: u64,
    pub bytes_to_peer: u64,
    pub packets_to_client: u64,
    pub bytes_to_client: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, more: Self) {
        self.packets_to_peer += more.packets_to_peer;
        self.bytes_to_peer += more.bytes_to_peer;
        self.packets_to_client += more.packets_to_client;
        self.bytes_to_client += more.bytes_to_client;
    }
}

/// `struct key`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Key {
    local: [u8; 16],
    remote: [u8; 16],
    local_port: [u8; 2],
    remote_port: [u8; 2],
    channel: u16,
    is_v6: u16,
}

/// What a key has for a channel.
const FROM_NETWORK: u16 = 0;
const FROM_RELAY: u16 = 1;
const INDICATIONS: u16 = 2;

/// Of `is_v6`, where a key has the address of the client and that of the peer.
const NAMES_PEER: u16 = 4;

impl Key {
    /// `None` when the two are not of one family.
    fn new(local: SocketAddr, remote: SocketAddr, channel: u16) -> Option<Self> {
        let family = Family::of(local.ip());
        (family == Family::of(remote.ip())).then(|| Self {
            local: octets(local.ip()),
            remote: octets(remote.ip()),
            local_port: local.port().to_be_bytes(),
            remote_port: remote.port().to_be_bytes(),
            channel,
            is_v6: u16::from(family == Family::V6),
        })
    }

    /// The key of a client without a channel, by the peer that its indications name.
    fn naming(client: &Self, peer: &Self) -> Self {
        Self {
            local: peer.remote,
            remote: client.remote,
            local_port: peer.remote_port,
            remote_port: client.remote_port,
            channel: u16::from_ne_bytes(client.local_port),
            is_v6: NAMES_PEER | peer.is_v6 << 1 | client.is_v6,
        }
    }
}

/// An IPv4 address is in the first four.
fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&ip.octets());
            octets
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// `struct flow`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FlowRecord {
    client: Key,
    peer: Key,
    hop: Key,
    hops: u32,
    meter: u32,
}

impl FlowRecord {
    /// `None` for a flow that cannot be: addresses of different families where they are of one.
    pub(super) fn new(flow: &Flow) -> Option<Self> {
        let (relayed, peer) = (flow.relayed.socket_addr(), flow.peer.socket_addr());
        let client =
            Key::new(flow.server.socket_addr(), flow.client.socket_addr(), flow.channel.unwrap_or(INDICATIONS))?;
        let meter = flow.meter.map_or(0, MeterId::number);
        let Some(hop) = flow.hop else {
            let peer = Key::new(relayed, peer, FROM_NETWORK)?;
            return Some(Self { client, peer, meter, ..Self::default() });
        };
        let peer = Key::new(relayed, peer, FROM_RELAY)?;
        let hop = Key::new(hop.relayed.socket_addr(), hop.from.socket_addr(), FROM_RELAY)?;
        Some(Self { client, peer, hop, hops: 1, meter })
    }

    /// The keys of both ends' entries.
    pub(super) fn keys(&self) -> [Key; 2] {
        let client =
            if self.client.channel == INDICATIONS { Key::naming(&self.client, &self.peer) } else { self.client };
        [client, self.peer]
    }
}

/// `struct way`: an interface and the addresses of an Ethernet frame that leaves by it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub(super) ifindex: u32,
    pub(super) mtu: u32,
    pub(super) to: [u8; 6],
    pub(super) from: [u8; 6],
    /// XDP sends by it as by another interface, even what came in by it; else 0.
    pub(super) redirects: u32,
    pub(super) next_hop: NextHop,
}

/// `struct next_hop`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct NextHop {
    pub(super) family: u32,
    pub(super) address: [u8; 16],
}

impl NextHop {
    pub(super) fn new(ip: IpAddr) -> Self {
        let mut address = [0; 16];
        let family = match ip {
            IpAddr::V4(ip) => {
                address[..4].copy_from_slice(&ip.octets());
                libc::AF_INET
            }
            IpAddr::V6(ip) => {
                address = ip.octets();
                libc::AF_INET6
            }
        };
        Self { family: family as u32, address }
    }
}

/// `struct counters`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters([u64; 4]);

impl Counters {
    /// The sum of what every CPU has counted.
    pub(super) fn sum(of_cpus: &[Self]) -> Traffic {
        let sum = |field: usize| of_cpus.iter().map(|Self(fields)| fields[field]).sum();
        Traffic { packets_to_peer: sum(0), bytes_to_peer: sum(1), packets_to_client: sum(2), bytes_to_client: sum(3) }
    }
}

// SAFETY: these are plain integers in C's layout, without padding, and every pattern of bits is a value.
unsafe impl aya::Pod for Key {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowRecord {}
// SAFETY: as above.
unsafe impl aya::Pod for Way {}
// SAFETY: as above.
unsafe impl aya::Pod for Counters {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_those_of_the_programs() {
        assert_eq!((size_of::<Key>(), size_of::<FlowRecord>()), (40, 128));
        assert_eq!((size_of::<Way>(), size_of::<Counters>()), (44, 32));
    }

    #[test]
    fn a_flow_between_families_that_do_not_match_is_none() {
        let v4 = "192.0.2.1:1".parse().unwrap();
        let v6 = "[2001:db8::1]:1".parse().unwrap();
        let flow = Flow {
            client: ClientAddr::new(v4),
            server: ServerAddr::new(v4),
            channel: Some(0x4000),
            relayed: RelayedAddr::new(v6),
            peer: PeerAddr::new(v6),
            hop: None,
            meter: None,
        };
        assert!(FlowRecord::new(&flow).is_some());
        assert_eq!(FlowRecord::new(&Flow { peer: PeerAddr::new(v4), ..flow }), None);
        assert_eq!(FlowRecord::new(&Flow { client: ClientAddr::new(v6), ..flow }), None);
        let hop = Hop { relayed: RelayedAddr::new(v6), from: PeerAddr::new(v4) };
        assert_eq!(FlowRecord::new(&Flow { hop: Some(hop), ..flow }), None);
    }
}
