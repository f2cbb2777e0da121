//! What allocations may carry, by the programs: the same as by the sockets (`turn/meter.rs`).

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use super::control::Total;
use super::flow::{Flow, Hop};
use super::meters::Meter;
use super::test_bench::*;
use super::test_packets::Packet;
use crate::address::{PeerAddr, RelayedAddr};

const SECOND: u64 = 1_000_000_000;
const TO_PEERS: usize = 0;
const TO_CLIENT: usize = 1;
const PACKETS: usize = 0;
const BYTES: usize = 1;

/// The flow on a bench, with a meter.
fn metered(flow: Flow) -> Option<(Bench, Meter, Flow)> {
    let mut bench = Bench::with(&[])?;
    let meter = bench.programs.meters.open().unwrap();
    let flow = Flow { meter: Some(meter.id()), ..flow };
    bench.carry(0, &flow);
    Some((bench, meter, flow))
}

fn full_at(meter: &Meter, direction: usize, kind: usize) -> u64 {
    meter.full_at()[direction][kind].load(Ordering::Relaxed)
}

fn set(meter: &Meter, direction: usize, kind: usize, full_at: u64) {
    meter.full_at()[direction][kind].store(full_at, Ordering::Relaxed);
}

/// A packet of each direction, as it comes and as it leaves.
fn both_ways(flow: &Flow, data: &[u8]) -> [(usize, Packet, Packet); 2] {
    [
        (TO_PEERS, from_client(flow, data), at_peer(flow, data)),
        (TO_CLIENT, from_peer(flow, data), at_client(flow, data)),
    ]
}

fn run(bench: &mut Bench, is_xdp: bool, packet: &Packet) -> Fate {
    let frame = packet.frame();
    let fate = if is_xdp { bench.xdp(&frame) } else { bench.tc(&frame) };
    tidy(fate, is_xdp)
}

/// Runs a program, and says between which instants.
fn timed(bench: &mut Bench, is_xdp: bool, packet: &Packet) -> (Fate, RangeInclusive<u64>) {
    let before = monotonic_now();
    let fate = run(bench, is_xdp, packet);
    (fate, before..=monotonic_now())
}

/// When a bucket may be full again that was to be full at an instant, and of which this was taken in a time.
fn after(full_at: u64, cost: u64, time: &RangeInclusive<u64>) -> RangeInclusive<u64> {
    full_at.max(*time.start()) + cost..=full_at.max(*time.end()) + cost
}

#[test]
fn bytes_beyond_the_rate_are_dropped_by_either_program_and_counted() {
    for flow in flows() {
        let Some((mut bench, meter, flow)) = metered(flow) else { return };
        // 160 bytes are those of 160 seconds.
        meter.set_rate(0, 1);
        for (direction, came, leaves) in both_ways(&flow, &[7; 160]) {
            let is_xdp_first = direction == TO_CLIENT;
            let (fate, time) = timed(&mut bench, is_xdp_first, &came);
            assert_eq!(fate, Expected::Packet(leaves).fate(), "one fits into a full bucket");
            let taken = full_at(&meter, direction, BYTES);
            assert!(after(0, 160 * SECOND, &time).contains(&taken));
            for is_xdp in [false, true] {
                assert_eq!(run(&mut bench, is_xdp, &came), Fate::Dropped);
            }
            assert_eq!(full_at(&meter, direction, BYTES), taken, "what is dropped takes nothing");
            assert_eq!(full_at(&meter, direction, PACKETS), 0, "packets are not limited");
        }
        assert_eq!(bench.programs.total(Total::DataRate as u32), 4);
        let traffic = bench.programs.traffic(0);
        assert_eq!((traffic.packets_to_peer, traffic.bytes_to_peer), (1, 160), "what was carried");
        assert_eq!((traffic.packets_to_client, traffic.bytes_to_client), (1, 160));
    }
}

#[test]
fn packets_take_tokens_until_those_of_a_second_are_used_up() {
    for flow in flows() {
        let Some((mut bench, meter, flow)) = metered(flow) else { return };
        meter.set_rate(50, 0);
        for (direction, came, leaves) in both_ways(&flow, b"data") {
            // A bucket that is full is no fuller for having waited.
            for full_since in [0, monotonic_now() - SECOND] {
                set(&meter, direction, PACKETS, full_since);
                let (fate, time) = timed(&mut bench, false, &came);
                assert_eq!(fate, Expected::Packet(leaves.clone()).fate());
                assert!(after(full_since, SECOND / 50, &time).contains(&full_at(&meter, direction, PACKETS)));
            }
            // Half used.
            let half = monotonic_now() + SECOND / 2;
            set(&meter, direction, PACKETS, half);
            let (fate, time) = timed(&mut bench, true, &came);
            assert_eq!(fate, Expected::Packet(leaves).fate());
            assert!(after(half, SECOND / 50, &time).contains(&full_at(&meter, direction, PACKETS)));
            set(&meter, direction, PACKETS, monotonic_now() + 60 * SECOND);
            bench.expect(&came, &Expected::Dropped);
        }
    }
}

#[test]
fn a_rate_is_another_one_from_the_store_on_and_zero_is_none() {
    for flow in flows() {
        let Some((mut bench, meter, flow)) = metered(flow) else { return };
        for (direction, came, leaves) in both_ways(&flow, b"data") {
            let owed = monotonic_now() + 3600 * SECOND;
            for kind in [PACKETS, BYTES] {
                set(&meter, direction, kind, owed);
            }
            for (packets, bytes, expected) in [
                (0, 0, Expected::Packet(leaves.clone())),
                (1000, 0, Expected::Dropped),
                (0, 1000, Expected::Dropped),
                (u32::MAX, u32::MAX, Expected::Dropped),
                (0, 0, Expected::Packet(leaves)),
            ] {
                meter.set_rate(packets, bytes);
                bench.expect(&came, &expected);
            }
            assert_eq!([PACKETS, BYTES].map(|kind| full_at(&meter, direction, kind)), [owed; 2]);
        }
    }
}

#[test]
fn the_longest_datagram_fits_into_any_rate_and_the_fastest_rate_counts_too() {
    for flow in flows() {
        let Some((mut bench, meter, flow)) = metered(flow) else { return };
        for (direction, came, leaves) in both_ways(&flow, &[1; 1400]) {
            meter.set_rate(1, 1);
            assert_eq!(run(&mut bench, true, &came), Expected::Packet(leaves.clone()).fate());
            meter.set_rate(u32::MAX, u32::MAX);
            set(&meter, direction, PACKETS, 0);
            set(&meter, direction, BYTES, monotonic_now() + SECOND / 2);
            let owed = full_at(&meter, direction, BYTES);
            let (fate, time) = timed(&mut bench, false, &came);
            assert_eq!(fate, Expected::Packet(leaves).fate());
            let cost = 1400 * SECOND / u64::from(u32::MAX);
            assert!(after(owed, cost, &time).contains(&full_at(&meter, direction, BYTES)));
        }
    }
}

#[test]
fn what_is_left_to_the_sockets_pays_there_alone() {
    for flow in flows() {
        let Some((mut bench, meter, flow)) = metered(flow) else { return };
        meter.set_rate(1, 1);
        let sent = from_client(&flow, b"data");
        let padded = Packet { payload: [&sent.payload[..], &[0; 3]].concat(), ..sent.clone() };
        bench.expect(&padded, &Expected::Passed);
        bench.expect(&Packet { ttl: 1, ..sent.clone() }, &Expected::Dropped);
        for (_, came, _) in both_ways(&flow, &[0; 1500]) {
            bench.expect(&came, &Expected::Passed);
        }
        bench.set_ways(0, 0, 0);
        for (_, came, _) in both_ways(&flow, b"data") {
            bench.expect(&came, &Expected::Passed);
        }
        assert!(meter.full_at().iter().flatten().all(|full_at| full_at.load(Ordering::Relaxed) == 0));
    }
}

/// Between two clients of the server each pays for its own direction.
#[test]
fn a_packet_between_two_allocations_takes_from_both() {
    let Some(mut bench) = Bench::with(&[]) else { return };
    let [one, other] = [(); 2].map(|()| bench.programs.meters.open().unwrap());
    let second = "203.0.113.4:50002";
    let towards = |relayed, from| Hop { relayed: RelayedAddr::new(at(relayed)), from: PeerAddr::new(at(from)) };
    let there = Flow {
        hop: Some(towards(second, RELAYED4)),
        meter: Some(one.id()),
        ..flow(CLIENT4, SERVER4, RELAYED4, second)
    };
    let back = Flow {
        hop: Some(towards(RELAYED4, second)),
        meter: Some(other.id()),
        ..flow(CLIENT6, SERVER6, second, RELAYED4)
    };
    bench.carry(0, &there);
    bench.carry(1, &back);
    for meter in [&one, &other] {
        meter.set_rate(1, 0);
    }
    let came = from_client(&there, b"data");
    assert_eq!(run(&mut bench, false, &came), Expected::Packet(at_client(&back, b"data")).fate());
    let used = |meter: &Meter, direction| full_at(meter, direction, PACKETS) != 0;
    assert!(used(&one, TO_PEERS) && used(&other, TO_CLIENT));
    assert!(!used(&one, TO_CLIENT) && !used(&other, TO_PEERS));
    // The other one's bucket is used up: what is sent is sent, and not delivered.
    set(&one, TO_PEERS, PACKETS, 0);
    set(&other, TO_CLIENT, PACKETS, monotonic_now() + 60 * SECOND);
    assert_eq!(run(&mut bench, true, &came), Fate::Dropped);
    assert!(used(&one, TO_PEERS));
    let (sender, receiver) = (bench.programs.traffic(0), bench.programs.traffic(1));
    assert_eq!((sender.packets_to_peer, sender.bytes_to_peer, receiver.packets_to_client), (2, 8, 1));
    // Its own is used up: nobody counts it.
    set(&one, TO_PEERS, PACKETS, monotonic_now() + 60 * SECOND);
    assert_eq!(run(&mut bench, true, &came), Fate::Dropped);
    assert_eq!(bench.programs.traffic(0).packets_to_peer, 2);
    assert_eq!(bench.programs.total(Total::DataRate as u32), 2);
}

#[test]
fn a_place_is_full_and_unlimited_for_whoever_has_it_next() {
    let Some((mut bench, meter, flow)) = metered(flows()[0]) else { return };
    meter.set_rate(1, 1);
    meter.full_at().iter().flatten().for_each(|full_at| full_at.store(u64::MAX / 2, Ordering::Relaxed));
    bench.expect(&from_client(&flow, b"data"), &Expected::Dropped);
    let id = meter.id();
    drop(meter);
    let meter = bench.programs.meters.open().unwrap();
    assert_eq!(meter.id(), id);
    bench.expect(&from_client(&flow, b"data"), &Expected::Packet(at_peer(&flow, b"data")));
    meter.set_rate(1, 1);
    assert_eq!(run(&mut bench, false, &from_client(&flow, b"data")), Expected::Packet(at_peer(&flow, b"data")).fate());
}
