//! Random packets on random tables: the programs do what a model of the socket path does, and count the same.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::flow::{Flow, FlowRecord, Hop, Traffic};
use super::meters::{Meter, MeterId};
use super::test_bench::*;
use super::test_packets::Packet;
use crate::address::{PeerAddr, RelayedAddr};

/// Each with a table of its own.
const TABLES: u64 = 40;
const PACKETS: usize = 150;
/// A tick of the programs' clock that is long over.
const PAST: u64 = 1;
const CLIENTS: [&str; 4] = [CLIENT4, "198.51.100.7:40001", CLIENT6, "[2001:db8:7::2]:40000"];
const PEERS: [&str; 4] = [PEER4, "192.0.2.99:6001", PEER6, "[2001:db8:9::2]:6000"];
const OTHER_RELAYED4: &str = "203.0.113.4:50002";

/// A flow with what the daemon and earlier packets have written of it.
#[derive(Clone, Copy, Debug)]
struct Row {
    flow: Flow,
    deadline: u64,
    from_client: u64,
    from_peer: u64,
    /// 1500 bytes, 600 bytes, none, or one that is not written.
    to_peer: u32,
    to_client: u32,
}

/// An allocation's buckets before a packet comes.
#[derive(Clone, Copy, Debug)]
struct Budget {
    id: MeterId,
    /// Packets and bytes a second; so many that no packet of these tests costs more than a fifth of a second.
    rates: [u32; 2],
    /// Of each direction.
    fill: [[Fill; 2]; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Full,
    Half,
    Empty,
}

impl Fill {
    /// When it is full again.
    fn full_at(self, time: u64) -> u64 {
        match self {
            Self::Full => 0,
            Self::Half => time + SECOND / 2,
            Self::Empty => time + 3600 * SECOND,
        }
    }
}

const SECOND: u64 = 1_000_000_000;

/// What is taken of a bucket: whose, in which direction, of packets or of bytes, and how much time it takes to be full
/// again.
type Taken = (MeterId, usize, usize, u64);

/// Has the buckets on a packet's way judge it too.
fn meter(rows: &[Row], budgets: &[Budget], verdict: &mut Verdict) -> Vec<Taken> {
    let mut taken = Vec::new();
    let on_the_way = [verdict.to_peer, verdict.to_client];
    for (direction, row) in on_the_way.into_iter().enumerate() {
        let Some(id) = row.and_then(|row| rows[row].flow.meter) else { continue };
        let budget = budgets.iter().find(|budget| budget.id == id).unwrap();
        for (kind, tokens) in [1, verdict.len].into_iter().enumerate() {
            if budget.rates[kind] == 0 {
                continue;
            }
            if budget.fill[direction][kind] == Fill::Empty {
                // What the first of two allocations has sent is sent.
                let to_peer = if direction == 1 { verdict.to_peer } else { None };
                *verdict = Verdict { expected: Expected::Dropped, to_peer, to_client: None, len: verdict.len };
                return taken;
            }
            taken.push((id, direction, kind, tokens * SECOND / u64::from(budget.rates[kind])));
        }
    }
    taken
}

/// Asserts that nothing else was taken, by a program that ran in this time.
fn check(meters: &[Meter], budgets: &[Budget], taken: &[Taken], began: u64, time: &RangeInclusive<u64>, what: &str) {
    for (meter, budget) in meters.iter().zip(budgets) {
        for (direction, kind) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let full_at = meter.full_at()[direction][kind].load(Ordering::Relaxed);
            let fill = budget.fill[direction][kind];
            let cost = taken.iter().find(|it| (it.0, it.1, it.2) == (meter.id(), direction, kind)).map(|it| it.3);
            let before = fill.full_at(began);
            let is_right = match cost {
                Some(cost) => (before.max(*time.start()) + cost..=before.max(*time.end()) + cost).contains(&full_at),
                None => full_at == before,
            };
            assert!(is_right, "{what}: {budget:?} {direction} {kind}, {full_at} after {cost:?} since {began}");
        }
    }
}

/// What becomes of a packet, and which rows count it to the peer and to the client.
struct Verdict {
    expected: Expected,
    to_peer: Option<usize>,
    to_client: Option<usize>,
    len: u64,
}

impl Verdict {
    fn passed() -> Self {
        Self { expected: Expected::Passed, to_peer: None, to_client: None, len: 0 }
    }
}

/// The socket path's behaviour, and when the kernel is to leave a packet to it.
fn model(rows: &[Row], packet: &Packet) -> Verdict {
    judge(rows, packet).unwrap_or_else(Verdict::passed)
}

/// `None` is for the sockets.
fn judge(rows: &[Row], packet: &Packet) -> Option<Verdict> {
    if packet.is_unusual() {
        return None;
    }
    // The latest of two that share a key has it.
    let row = |is_it: &dyn Fn(&Flow) -> bool| rows.iter().rposition(|row| is_it(&row.flow));
    let channel = packet.payload.get(..4).map(|header| u16::from_be_bytes([header[0], header[1]]));
    let named = named_by(&packet.payload);
    let of_client = row(&|flow| {
        let ends = (flow.client.socket_addr(), flow.server.socket_addr());
        let is_reached = match flow.channel {
            Some(_) => channel == flow.channel,
            None => named.is_some_and(|(peer, _)| peer == flow.peer.socket_addr()),
        };
        ends == (packet.from, packet.to) && is_reached
    });
    let (data, to_peer, to_client) = if let Some(from) = of_client {
        let here = &rows[from];
        let data = named.map_or_else(|| &packet.payload[4..], |(_, data)| data);
        let says = usize::from(u16::from_be_bytes([packet.payload[2], packet.payload[3]]));
        if here.deadline == 0 || named.is_none() && says != data.len() {
            return None;
        }
        let other = match here.flow.hop {
            None => None,
            Some(hop) => Some(row(&|flow| {
                flow.hop.is_some()
                    && flow.relayed.socket_addr() == hop.relayed.socket_addr()
                    && flow.peer.socket_addr() == hop.from.socket_addr()
            })?),
        };
        let there = other.map_or(here.from_peer, |other| rows[other].from_client);
        (there != 0 && here.from_client == FOREVER).then_some((data, Some(from), other))?
    } else {
        let of_peer = |flow: &Flow| {
            let ends = (flow.peer.socket_addr(), flow.relayed.socket_addr());
            flow.hop.is_none() && ends == (packet.from, packet.to)
        };
        let from = row(&of_peer)?;
        let here = &rows[from];
        (here.from_client != 0 && here.from_peer == FOREVER).then_some((&packet.payload[..], None, Some(from)))?
    };
    let (sent, way) = match (to_client, to_peer) {
        (Some(index), _) => {
            let Row { flow, deadline, to_client, .. } = &rows[index];
            (*deadline != 0).then(|| (at_client(flow, data), *to_client))?
        }
        (None, Some(index)) => (at_peer(&rows[index].flow, data), rows[index].to_peer),
        (None, None) => return None,
    };
    let mtu = [None, Some(1500), Some(600)].get(way as usize).copied().flatten()?;
    if packet.no_checksum && (packet.from.is_ipv6() || sent.from.is_ipv6()) {
        return None;
    }
    if sent.payload.len() + 8 + if sent.from.is_ipv6() { 40 } else { 20 } > mtu {
        return None;
    }
    if packet.ttl <= 1 {
        return Some(Verdict { expected: Expected::Dropped, ..Verdict::passed() });
    }
    let len = data.len() as u64;
    let Packet { ttl, tos, no_checksum, .. } = *packet;
    let sent = Packet { ttl: ttl - 1, tos, no_checksum, ..sent };
    Some(Verdict { expected: Expected::Packet(sent), to_peer, to_client, len })
}

fn random_budget(rng: &mut StdRng, id: MeterId) -> Budget {
    let fill = |rng: &mut StdRng| *[Fill::Full, Fill::Full, Fill::Half, Fill::Half, Fill::Empty].choose(rng).unwrap();
    let rates = [*[0, 5, 1000, u32::MAX].choose(rng).unwrap(), *[0, 8000, 1_000_000, u32::MAX].choose(rng).unwrap()];
    Budget { id, rates, fill: [[fill(rng), fill(rng)], [fill(rng), fill(rng)]] }
}

/// The peer and the data of a Send indication in one of the layouts that the kernel takes.
fn named_by(payload: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let number = |at: usize| Some(usize::from(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?)));
    let mask = payload.get(4..20)?;
    let is_send = number(0)? == 0x0016 && number(2)? + 20 == payload.len() && mask[..4] == [0x21, 0x12, 0xa4, 0x42];
    let ip: Vec<u8> = match (number(20)?, number(22)?, number(24)?) {
        (0x12, 8, 1) => payload.get(28..32)?,
        (0x12, 20, 2) => payload.get(28..44)?,
        _ => return None,
    }
    .iter()
    .zip(mask)
    .map(|(byte, mask)| byte ^ mask)
    .collect();
    let port = number(26)? as u16 ^ 0x2112;
    let start = 28 + ip.len();
    let ip = match <[u8; 4]>::try_from(&ip[..]) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(&ip[..]).unwrap()),
    };
    let (kind, len) = (number(start)?, number(start + 2)?);
    let data = payload.get(start + 4..start + 4 + len)?;
    let (padding, end) = payload[start + 4 + len..].split_at_checked(len.next_multiple_of(4) - len)?;
    let is_end = end.is_empty() || end.len() == 8 && end[..4] == FINGERPRINT[..4];
    (is_send && kind == 0x13 && is_end && padding.iter().all(|byte| *byte == 0))
        .then_some((SocketAddr::new(ip, port), data))
}

fn random_flow(rng: &mut StdRng) -> Flow {
    let client = *CLIENTS.choose(rng).unwrap();
    let server = if at(client).is_ipv4() { SERVER4 } else { SERVER6 };
    let channel = rng.random_ratio(2, 3).then(|| CHANNEL + rng.random_range(0..3));
    if rng.random_ratio(1, 3) {
        let (relayed, peer) = if rng.random() { (RELAYED4, OTHER_RELAYED4) } else { (OTHER_RELAYED4, RELAYED4) };
        let hop = Hop { relayed: RelayedAddr::new(at(peer)), from: PeerAddr::new(at(relayed)) };
        return Flow { channel, hop: Some(hop), ..flow(client, server, relayed, peer) };
    }
    let peer = *PEERS.choose(rng).unwrap();
    Flow { channel, ..flow(client, server, if at(peer).is_ipv4() { RELAYED4 } else { RELAYED6 }, peer) }
}

fn random_row(rng: &mut StdRng, meters: &[Meter]) -> Row {
    let seen = |rng: &mut StdRng| *[0, PAST, FOREVER, FOREVER, FOREVER, FOREVER, FOREVER].choose(rng).unwrap();
    let way = |rng: &mut StdRng| *[0, 1, 1, 1, 1, 2, 9].choose(rng).unwrap();
    Row {
        flow: Flow { meter: if rng.random() { meters.choose(rng).map(Meter::id) } else { None }, ..random_flow(rng) },
        deadline: if rng.random_ratio(1, 8) { 0 } else { FOREVER },
        from_client: seen(rng),
        from_peer: seen(rng),
        to_peer: way(rng),
        to_client: way(rng),
    }
}

fn random_packet(rng: &mut StdRng, rows: &[Row]) -> Packet {
    let around = *[0, 5, 160, 540, 572, 600, 1440, 1472, 1500].choose(rng).unwrap();
    let data: Vec<u8> = (0..around + rng.random_range(0..8)).map(|_| rng.random()).collect();
    let flow = rows.choose(rng).unwrap().flow;
    let mut packet = match rng.random_range(0..3) {
        0 => from_peer(&flow, &data),
        1 => from_client(&flow, &data),
        _ => from_firefox(&flow, &data).unwrap_or_else(|| from_client(&flow, &data)),
    };
    packet.tos = rng.random();
    packet.ttl = *[0, 1, 2, 64, 64, 64, 64, 255].choose(rng).unwrap();
    packet.dont_fragment = rng.random();
    packet.no_checksum = rng.random_ratio(1, 8);
    if rng.random_ratio(1, 3) {
        spoil(rng, &mut packet);
    }
    packet
}

/// Makes one thing of a packet otherwise.
fn spoil(rng: &mut StdRng, packet: &mut Packet) {
    let is_v4 = packet.from.is_ipv4();
    let other_port = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() ^ 1);
    match rng.random_range(0..15) {
        0 => packet.from = other_port(packet.from),
        1 => packet.to = other_port(packet.to),
        2 => std::mem::swap(&mut packet.from, &mut packet.to),
        3 => packet.is_tcp = true,
        4 => packet.options = true,
        5 => packet.vlan = true,
        6 => packet.multicast = true,
        7 => packet.trailer = rng.random_range(1..9),
        8 => packet.udp_len_error = *[-1, 1].choose(rng).unwrap(),
        9 => packet.ip_len_error = *[-1, 1].choose(rng).unwrap(),
        10 => packet.more_fragments = is_v4,
        11 => packet.fragment_offset = if is_v4 { rng.random_range(1..100) } else { 0 },
        12 => packet.bad_header_checksum = is_v4,
        13 => {
            let len = rng.random_range(0..=packet.payload.len());
            packet.payload.truncate(len);
        }
        _ => {
            // Around the data, or anywhere.
            let len = packet.payload.len();
            let at = *[rng.random_range(0..52), len.saturating_sub(rng.random_range(0..13)), rng.random_range(0..=len)]
                .choose(rng)
                .unwrap();
            if let Some(byte) = packet.payload.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
    }
}

/// Returns the time that the buckets are written for.
fn write(bench: &Bench, rows: &[Row], meters: &[Meter], budgets: &[Budget]) -> u64 {
    for (index, row) in rows.iter().enumerate() {
        let index = index as u32;
        bench.programs.states.set_deadline(index, row.deadline);
        bench.programs.states.set_seen(index, row.from_client, row.from_peer);
        bench.set_ways(index, row.to_peer, row.to_client);
    }
    let time = monotonic_now();
    for (meter, Budget { rates, fill, .. }) in meters.iter().zip(budgets) {
        meter.set_rate(rates[0], rates[1]);
        for (full_at, fill) in meter.full_at().iter().flatten().zip(fill.iter().flatten()) {
            full_at.store(fill.full_at(time), Ordering::Relaxed);
        }
    }
    time
}

#[test]
fn whatever_comes_the_programs_do_what_the_model_does() {
    let (mut outcomes, mut indications) = ([0; 3], [0; 2]);
    let Some(mut bench) = Bench::with(&[]) else { return };
    for seed in 0..TABLES {
        let mut rng = StdRng::seed_from_u64(seed);
        let meters = [(); 3].map(|()| bench.programs.meters.open().unwrap());
        let rows: Vec<_> = (0..rng.random_range(1..8)).map(|_| random_row(&mut rng, &meters)).collect();
        for (index, row) in rows.iter().enumerate() {
            bench.programs.insert(index as u32, &FlowRecord::new(&row.flow).unwrap()).unwrap();
        }
        let mut counts = vec![Traffic::default(); rows.len()];
        for _ in 0..PACKETS {
            let packet = random_packet(&mut rng, &rows);
            let budgets = meters.each_ref().map(|meter| random_budget(&mut rng, meter.id()));
            let mut verdict = model(&rows, &packet);
            let taken = meter(&rows, &budgets, &mut verdict);
            let Verdict { expected, to_peer, to_client, len } = verdict;
            outcomes[expected.kind()] += 1;
            let frame = packet.frame();
            for is_xdp in [false, true] {
                let began = write(&bench, &rows, &meters, &budgets);
                let fate = if is_xdp { bench.xdp(&frame) } else { bench.tc(&frame) };
                let what = if is_xdp { "XDP" } else { "tc" };
                let what = format!("{what}, seed {seed}: {packet:?}\non {rows:#?}");
                assert_eq!(tidy(fate, is_xdp), expected.fate(), "{what}\n{budgets:#?}");
                check(&meters, &budgets, &taken, began, &(began..=monotonic_now()), &what);
                let is_indication = |row: Option<usize>| row.is_some_and(|row| rows[row].flow.channel.is_none());
                indications[0] += u32::from(is_indication(to_peer));
                indications[1] += u32::from(is_indication(to_client));
                if let Some(row) = to_peer {
                    counts[row] += Traffic { packets_to_peer: 1, bytes_to_peer: len, ..Traffic::default() };
                }
                if let Some(row) = to_client {
                    counts[row] += Traffic { packets_to_client: 1, bytes_to_client: len, ..Traffic::default() };
                }
            }
        }
        for (index, expected) in counts.into_iter().enumerate() {
            assert_eq!(bench.programs.traffic(index as u32), expected, "seed {seed}, flow {index}");
        }
        for (index, row) in rows.iter().enumerate() {
            bench.programs.remove(index as u32, &FlowRecord::new(&row.flow).unwrap());
        }
    }
    // All of them have been seen, often, and by both carriers.
    assert!(outcomes.iter().all(|count| *count > 100), "passed, dropped, sent: {outcomes:?}");
    assert!(indications.iter().all(|count| *count > 100), "to peers, to clients: {indications:?}");
}
