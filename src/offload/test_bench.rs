//! Both programs on the bench (BPF_PROG_TEST_RUN), and packets of flows as they come and as they have to leave.

use std::mem::ManuallyDrop;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use aya::TestRun as _;
use aya::programs::TestRunOptions;

use super::flow::{Flow, FlowRecord, NextHop, Way};
use super::programs::{Programs, TC, XDP};
use super::test_packets::{Packet, canonical};
use super::ways::Direction;
use crate::address::{ClientAddr, PeerAddr, RelayedAddr, ServerAddr};

pub(super) const TC_NEXT: u32 = u32::MAX;
const TC_DROP: u32 = 2;
const TC_REDIRECT: u32 = 7;
const XDP_DROP: u32 = 1;
pub(super) const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// To the sockets, as it came.
    Passed,
    Dropped,
    Sent(Vec<u8>),
}

/// Both programs over the same maps.
pub(super) struct Bench {
    pub(super) programs: ManuallyDrop<Programs>,
}

/// Programs of benches that are gone: the kernel takes a third of a second to verify them.
static IDLE: Mutex<Vec<Programs>> = Mutex::new(Vec::new());

impl Drop for Bench {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more.
        let mut programs = unsafe { ManuallyDrop::take(&mut self.programs) };
        programs.clear();
        IDLE.lock().unwrap().push(programs);
    }
}

pub(super) const CHANNEL: u16 = 0x4001;
pub(super) const FOREVER: u64 = u64::MAX;
/// The interface that test runs come in by is loopback.
pub(super) const WAY: Way = Way {
    ifindex: 1,
    mtu: 1500,
    to: [2, 0, 0, 0, 0, 9],
    from: [2, 0, 0, 0, 0, 8],
    redirects: 0,
    next_hop: NextHop { family: libc::AF_INET as u32, address: [192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] },
};

impl Bench {
    pub(super) fn new() -> Option<Self> {
        let idle = IDLE.lock().unwrap().pop();
        let mut programs = match idle.map_or_else(|| Programs::load(&[TC, XDP]), Ok) {
            Ok(programs) => programs,
            Err(error) => {
                // Without the privilege nothing can be proved here; CI has it.
                assert!(!is_root(), "root, and yet: {error}");
                eprintln!("NOT TESTED, the kernel path needs CAP_BPF and CAP_NET_ADMIN: {error}");
                return None;
            }
        };
        programs.set_way(1, &WAY).unwrap();
        programs.set_way(2, &Way { mtu: 600, ..WAY }).unwrap();
        programs.set_way(3, &Way { ifindex: 7, ..WAY }).unwrap();
        Some(Self { programs: ManuallyDrop::new(programs) })
    }

    pub(super) fn with(flows: &[Flow]) -> Option<Self> {
        let mut bench = Self::new()?;
        for (index, flow) in flows.iter().enumerate() {
            bench.carry(index as u32, flow);
        }
        Some(bench)
    }

    pub(super) fn carry(&mut self, index: u32, flow: &Flow) {
        self.programs.insert(index, &FlowRecord::new(flow).unwrap()).unwrap();
        self.programs.states.set_deadline(index, FOREVER);
        self.programs.states.set_seen(index, FOREVER, FOREVER);
        self.set_ways(index, 1, 1);
    }

    pub(super) fn set_ways(&self, index: u32, to_peer: u32, to_client: u32) {
        self.programs.states.set_way(index, Direction::ToPeer, to_peer);
        self.programs.states.set_way(index, Direction::ToClient, to_client);
    }

    pub(super) fn tc(&mut self, frame: &[u8]) -> Fate {
        let mut out = vec![0; 4096];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = self.programs.tc().unwrap().test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        fate(result.return_value, [TC_NEXT, TC_DROP, TC_REDIRECT, TC_REDIRECT], frame, out)
    }

    pub(super) fn xdp(&mut self, frame: &[u8]) -> Fate {
        let mut out = vec![0; 4096];
        // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let mut context = [0_u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&1_u32.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = self.programs.xdp().unwrap().test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        fate(result.return_value, [XDP_PASS, XDP_DROP, XDP_TX, XDP_REDIRECT], frame, out)
    }

    /// Asserts that both programs make the same of a packet.
    pub(super) fn expect(&mut self, packet: &Packet, expected: &Expected) {
        let frame = packet.frame();
        assert_eq!(tidy(self.tc(&frame), false), expected.fate(), "tc, {packet:?}");
        assert_eq!(tidy(self.xdp(&frame), true), expected.fate(), "XDP, {packet:?}");
    }
}

/// The programs' precise clock.
pub(super) fn monotonic_now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call and has the layout that it fills.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn is_root() -> bool {
    // SAFETY: always succeeds and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

fn fate(value: u32, [pass, drop, send, redirect]: [u32; 4], before: &[u8], after: Vec<u8>) -> Fate {
    if value == pass {
        assert_eq!(before, after, "what is passed on is untouched");
        Fate::Passed
    } else if value == drop {
        Fate::Dropped
    } else {
        assert!(value == send || value == redirect, "verdict {value}");
        Fate::Sent(after)
    }
}

/// Checks the Ethernet header of what is sent, and takes away what may differ from one packet to the next.
pub(super) fn tidy(fate: Fate, is_xdp: bool) -> Fate {
    let Fate::Sent(mut frame) = fate else { return fate };
    if is_xdp {
        assert_eq!((&frame[..6], &frame[6..12]), (&WAY.to[..], &WAY.from[..]));
    } else {
        // The kernel makes it, from what it resolves.
        let proto = if frame[14] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        frame[12..14].copy_from_slice(&proto);
    }
    Fate::Sent(canonical(&frame))
}

/// What is expected to come out.
pub(super) enum Expected {
    Passed,
    Dropped,
    Packet(Packet),
}

impl Expected {
    /// Which of the three it is.
    pub(super) fn kind(&self) -> usize {
        match self {
            Self::Passed => 0,
            Self::Dropped => 1,
            Self::Packet(_) => 2,
        }
    }

    pub(super) fn fate(&self) -> Fate {
        match self {
            Self::Passed => Fate::Passed,
            Self::Dropped => Fate::Dropped,
            Self::Packet(packet) => Fate::Sent(canonical(&packet.frame())),
        }
    }
}

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) fn flow(client: &str, server: &str, relayed: &str, peer: &str) -> Flow {
    Flow {
        client: ClientAddr::new(at(client)),
        server: ServerAddr::new(at(server)),
        channel: Some(CHANNEL),
        relayed: RelayedAddr::new(at(relayed)),
        peer: PeerAddr::new(at(peer)),
        hop: None,
        meter: None,
    }
}

pub(super) const CLIENT4: &str = "198.51.100.7:40000";
pub(super) const SERVER4: &str = "203.0.113.4:3478";
pub(super) const RELAYED4: &str = "203.0.113.4:50000";
pub(super) const PEER4: &str = "192.0.2.99:6000";
pub(super) const CLIENT6: &str = "[2001:db8:7::1]:40000";
pub(super) const SERVER6: &str = "[2001:db8:4::1]:3478";
pub(super) const RELAYED6: &str = "[2001:db8:4::1]:50000";
pub(super) const PEER6: &str = "[2001:db8:9::1]:6000";

/// Every pair of families, by a channel and by indications.
pub(super) fn flows() -> [Flow; 8] {
    let channels = [
        flow(CLIENT4, SERVER4, RELAYED4, PEER4),
        flow(CLIENT6, SERVER6, RELAYED6, PEER6),
        flow(CLIENT4, SERVER4, RELAYED6, PEER6),
        flow(CLIENT6, SERVER6, RELAYED4, PEER4),
    ];
    std::array::from_fn(|index| match index {
        0..4 => channels[index],
        _ => Flow { channel: None, ..channels[index - 4] },
    })
}

pub(super) fn channel_data(channel: u16, data: &[u8]) -> Vec<u8> {
    [&channel.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
pub(super) const FINGERPRINT: [u8; 8] = [0x80, 0x28, 0, 4, 0xde, 0xad, 0xbe, 0xef];

/// An indication as browsers write it, and as this server does, with what may follow.
fn indication(kind: u16, id: [u8; 12], peer: SocketAddr, data: &[u8], end: &[u8]) -> Vec<u8> {
    let ip = match peer.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mask = [&COOKIE[..], &id].concat();
    let ip: Vec<u8> = ip.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let port = (peer.port() ^ 0x2112).to_be_bytes();
    let mut attributes = vec![0, 0x12, 0, ip.len() as u8 + 4, 0, if peer.is_ipv4() { 1 } else { 2 }];
    attributes.extend(port.iter().chain(&ip));
    attributes.extend([0, 0x13].into_iter().chain((data.len() as u16).to_be_bytes()));
    attributes.extend(data);
    attributes.resize(attributes.len().next_multiple_of(4), 0);
    attributes.extend(end);
    [&kind.to_be_bytes()[..], &(attributes.len() as u16).to_be_bytes(), &COOKIE, &id, &attributes].concat()
}

/// How many bytes are in front of the data of an indication.
pub(super) fn front(peer: SocketAddr) -> usize {
    if peer.is_ipv4() { 36 } else { 48 }
}

/// Data of the flow's client: ChannelData, or a Send indication of Chromium.
pub(super) fn from_client(flow: &Flow, data: &[u8]) -> Packet {
    let payload = match flow.channel {
        Some(channel) => channel_data(channel, data),
        None => indication(0x0016, *b"Chromium's..", flow.peer.socket_addr(), data, &[]),
    };
    Packet::new(flow.client.socket_addr(), flow.server.socket_addr(), &payload)
}

/// A Send indication of Firefox, where there is no channel.
pub(super) fn from_firefox(flow: &Flow, data: &[u8]) -> Option<Packet> {
    let payload = indication(0x0016, *b"and Firefox'", flow.peer.socket_addr(), data, &FINGERPRINT);
    let packet = Packet::new(flow.client.socket_addr(), flow.server.socket_addr(), &payload);
    flow.channel.is_none().then_some(packet)
}

/// The same, as it has to reach the peer.
pub(super) fn at_peer(flow: &Flow, data: &[u8]) -> Packet {
    let packet = Packet::new(flow.relayed.socket_addr(), flow.peer.socket_addr(), data);
    Packet { ttl: packet.ttl - 1, ..packet }
}

pub(super) fn from_peer(flow: &Flow, data: &[u8]) -> Packet {
    Packet::new(flow.peer.socket_addr(), flow.relayed.socket_addr(), data)
}

/// The same, as it has to reach the client. Transaction IDs are not compared.
pub(super) fn at_client(flow: &Flow, data: &[u8]) -> Packet {
    let payload = match flow.channel {
        Some(channel) => channel_data(channel, data),
        None => indication(0x0017, [0; 12], flow.peer.socket_addr(), data, &[]),
    };
    let packet = Packet::new(flow.server.socket_addr(), flow.client.socket_addr(), &payload);
    Packet { ttl: packet.ttl - 1, ..packet }
}
