//! A server that always has something to do.

use super::{Bench, CPU, Row, Sample, context, less, more};
use crate::failure::Result;
use crate::pace::Drive;
use crate::server::Running;
use crate::traffic::{Load, Outcome, Traffic};
use crate::wire::{Shape, Way};

const PAYLOAD_LEN: usize = 160;
const FLOWS: usize = 100;
/// 800 packets under way in all: less than any listener's buffer holds.
const WINDOW: Drive = Drive::Window(8);

/// 256 packets under way in all, which any listener's buffer holds.
const BURST: Drive = Drive::Bursts(16);
const BURST_FLOWS: usize = 16;
const BURST_PAYLOAD_LEN: usize = 1000;

pub(super) const SATURATED: Row = Row {
    name: "saturated",
    what: "100 flows, 160 bytes, each way alone",
    metrics: &[
        less("to peer", CPU),
        less("to client", CPU),
        more("to peer, rate", "packets/s"),
        more("to client, rate", "packets/s"),
        context("core busy", "%"),
    ],
    echo: true,
    is_held: false,
    run: saturated,
};

pub(super) const BOTH_WAYS: Row = Row {
    name: "both-ways",
    what: "100 flows, 160 bytes, both ways as fast as the generator can",
    metrics: &[
        more("delivered", "packets/s"),
        more("to peer, of all", "%"),
        less("per packet", CPU),
        context("offered", "packets/s"),
    ],
    echo: true,
    is_held: false,
    run: both_ways,
};

pub(super) const BURSTS: Row = Row {
    name: "bursts",
    what: "16 flows, 16 packets of 1000 bytes of each after each other, each way alone",
    metrics: &[
        less("to peer", CPU),
        less("to client", CPU),
        more("to peer, rate", "packets/s"),
        more("to client, rate", "packets/s"),
    ],
    echo: true,
    is_held: false,
    run: bursts,
};

pub(super) const RELAY_TO_RELAY: Row = Row {
    name: "relay-to-relay",
    what: "100 clients of one server in pairs, each the other's peer, 160 bytes",
    metrics: &[less("per packet", CPU), more("rate", "packets/s")],
    echo: false,
    is_held: false,
    run: relay_to_relay,
};

pub(super) const INDICATIONS: Row = Row {
    name: "indications",
    what: "100 flows, 160 bytes, Send and Data indications instead of ChannelData",
    metrics: &[
        less("Send, to peer", CPU),
        less("Data, to client", CPU),
        context("Send : ChannelData", "x"),
        context("Data : ChannelData", "x"),
    ],
    echo: false,
    is_held: false,
    run: indications,
};

fn saturated(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut traffic = Traffic::set_up(server, FLOWS, Shape::ChannelData, false)?;
    let mut sample = Sample::new(bench);
    let up = one_way(bench, server, &mut traffic, Way::Up, 0.5)?;
    sample.put("to peer", cpu(&up, Way::Up));
    sample.put("to peer, rate", rate(&up, Way::Up));
    sample.doubt_saturation("to peer", &up.watched);
    let down = one_way(bench, server, &mut traffic, Way::Down, 0.5)?;
    sample.put("to client", cpu(&down, Way::Down));
    sample.put("to client, rate", rate(&down, Way::Down));
    sample.doubt_saturation("to client", &down.watched);
    sample.put("core busy", (up.watched.usage.core_busy + down.watched.usage.core_busy) * 50.0);
    Ok(sample)
}

fn bursts(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut traffic = Traffic::set_up(server, BURST_FLOWS, Shape::ChannelData, false)?;
    let mut sample = Sample::new(bench);
    for (way, each, in_time) in [(Way::Up, "to peer", "to peer, rate"), (Way::Down, "to client", "to client, rate")] {
        let load = Load { ways: &[way], drive: BURST, payload_len: BURST_PAYLOAD_LEN };
        let outcome = run(bench, server, &mut traffic, &load, 0.5)?;
        sample.put(each, cpu(&outcome, way));
        sample.put(in_time, rate(&outcome, way));
        sample.doubt_saturation(each, &outcome.watched);
    }
    Ok(sample)
}

fn both_ways(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut traffic = Traffic::set_up(server, FLOWS, Shape::ChannelData, false)?;
    let load = Load { ways: &[Way::Up, Way::Down], drive: Drive::FlatOut, payload_len: PAYLOAD_LEN };
    let outcome = run(bench, server, &mut traffic, &load, 1.0)?;
    let [up, down] = outcome.watched.counts;
    let offered: u64 = outcome.tallies.iter().map(|tally| tally.sent).sum();
    let mut sample = Sample::new(bench);
    sample.put("delivered", outcome.watched.per_second(up + down));
    sample.put("to peer, of all", up as f64 / (up + down).max(1) as f64 * 100.0);
    sample.put("per packet", outcome.watched.cpu_us_per(up + down));
    sample.put("offered", outcome.watched.per_second(offered));
    sample.doubt_saturation("both ways", &outcome.watched);
    Ok(sample)
}

fn relay_to_relay(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut traffic = Traffic::set_up(server, FLOWS, Shape::ChannelData, true)?;
    let outcome = one_way(bench, server, &mut traffic, Way::Up, 1.0)?;
    let mut sample = Sample::new(bench);
    sample.put("per packet", cpu(&outcome, Way::Up));
    sample.put("rate", rate(&outcome, Way::Up));
    sample.doubt_saturation("relay to relay", &outcome.watched);
    Ok(sample)
}

fn indications(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut sample = Sample::new(bench);
    let mut costs = [[0.0; 2]; 2];
    for (shape, costs) in [Shape::ChannelData, Shape::Indication].into_iter().zip(&mut costs) {
        // A new socket makes new allocations on the same server.
        let mut traffic = Traffic::set_up(server, FLOWS, shape, false)?;
        for (way, cost) in [Way::Up, Way::Down].into_iter().zip(costs) {
            let outcome = one_way(bench, server, &mut traffic, way, 0.4)?;
            sample.doubt_saturation("indications", &outcome.watched);
            *cost = cpu(&outcome, way);
        }
    }
    let [channel_data, indication] = costs;
    sample.put("Send, to peer", indication[0]);
    sample.put("Data, to client", indication[1]);
    sample.put("Send : ChannelData", indication[0] / channel_data[0]);
    sample.put("Data : ChannelData", indication[1] / channel_data[1]);
    Ok(sample)
}

fn one_way(bench: &Bench, server: &Running, traffic: &mut Traffic, way: Way, share: f64) -> Result<Outcome> {
    let load = Load { ways: &[way], drive: WINDOW, payload_len: PAYLOAD_LEN };
    run(bench, server, traffic, &load, share)
}

fn run(bench: &Bench, server: &Running, traffic: &mut Traffic, load: &Load<'_>, share: f64) -> Result<Outcome> {
    let _real_time = bench.real_time();
    traffic.run(load, bench.watch(server, share), None)
}

fn cpu(outcome: &Outcome, way: Way) -> f64 {
    outcome.watched.cpu_us_per(outcome.watched.counts[way as usize])
}

fn rate(outcome: &Outcome, way: Way) -> f64 {
    outcome.watched.per_second(outcome.watched.counts[way as usize])
}
