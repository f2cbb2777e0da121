//! More than a server can do.

use super::calls::{PAYLOAD_LEN, PER_SECOND, loss, put_latency};
use super::{Bench, Metric, Row, Sample, context, less, more};
use crate::failure::Result;
use crate::flood::{Flood, Kind};
use crate::limit::Limit;
use crate::pace::Drive;
use crate::server::Running;
use crate::traffic::{Load, Traffic};
use crate::wire::{Shape, Way};

const METRICS: &[Metric] = &[
    more("delivered", "packets/s"),
    less("loss", "%"),
    less("p50", "ms"),
    less("p99", "ms"),
    more("to peer, of all", "%"),
    context("offered", "packets/s"),
];

const CALLS: usize = 3000;
pub(super) const FLOOD_PER_SECOND: f64 = 264_000.0;

pub(super) const OFFERED: Row = Row {
    name: "overload",
    what: "3000 calls, 264,000 packets/s in all (--overload), 160 bytes",
    metrics: METRICS,
    echo: true,
    is_held: false,
    run: |bench, server| overload(bench, server, CALLS, bench.overload / (2 * CALLS) as f64),
};

pub(super) const QUOTA: Row = Row {
    name: "overload-quota",
    what: "1000 calls x 50 packets/s each way on 40 % of a core (--quota, by a control group, periods of 5 ms)",
    metrics: METRICS,
    echo: true,
    is_held: true,
    run: |bench, server| {
        let limit = Limit::hold(server.process(), bench.quota)?;
        let sample = overload(bench, server, 1000, PER_SECOND);
        limit.release(server.process())?;
        sample
    },
};

pub(super) const FLOOD: Row = Row {
    name: "flood",
    what: "200 calls x 50 packets/s each way beside 264,000 unauthenticated Allocates/s",
    metrics: &[
        less("loss", "%"),
        less("loss to peer", "%"),
        less("loss to client", "%"),
        less("p99", "ms"),
        context("flood", "requests/s"),
    ],
    echo: false,
    is_held: false,
    run: flood,
};

fn overload(bench: &Bench, server: &Running, count: usize, per_second: f64) -> Result<Sample> {
    let mut traffic = Traffic::set_up(server, count, Shape::ChannelData, false)?;
    let load = Load { ways: &[Way::Up, Way::Down], drive: Drive::Rate(per_second), payload_len: PAYLOAD_LEN };
    let outcome = {
        let _real_time = bench.real_time();
        traffic.run(&load, bench.watch(server, 1.0), None)?
    };
    let mut sample = Sample::new(bench);
    let [up, down] = outcome.watched.counts;
    let sent: u64 = outcome.tallies.iter().map(|tally| tally.sent).sum();
    sample.put("delivered", outcome.watched.per_second(up + down));
    sample.put("loss", loss(&outcome) * 100.0);
    put_latency(&mut sample, &outcome, ["p50", "p99"], 1e3);
    sample.put("to peer, of all", up as f64 / (up + down).max(1) as f64 * 100.0);
    sample.put("offered", outcome.watched.per_second(sent));
    sample.doubt_pace("overload", &outcome);
    Ok(sample)
}

fn flood(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut traffic = Traffic::set_up(server, 200, Shape::ChannelData, false)?;
    let mut flood = Flood::new(server, &[Kind::Allocates], FLOOD_PER_SECOND, traffic.relayed())?;
    let load = Load { ways: &[Way::Up, Way::Down], drive: Drive::Rate(PER_SECOND), payload_len: PAYLOAD_LEN };
    let outcome = {
        let _real_time = bench.real_time();
        traffic.run(&load, bench.watch(server, 1.0), Some(&mut flood))?
    };
    let mut sample = Sample::new(bench);
    sample.put("loss", loss(&outcome) * 100.0);
    sample.put("loss to peer", outcome.tallies[Way::Up as usize].loss() * 100.0);
    sample.put("loss to client", outcome.tallies[Way::Down as usize].loss() * 100.0);
    put_latency(&mut sample, &outcome, ["p50", "p99"], 1e3);
    sample.put("flood", flood.per_second());
    sample.doubt_pace("flood", &outcome);
    Ok(sample)
}
