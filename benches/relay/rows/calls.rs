//! Calls: many flows, each at a low rate, at times of its own.

use super::{Bench, CPU, Metric, Row, Sample, context, less};
use crate::failure::Result;
use crate::histogram::Histogram;
use crate::pace::Drive;
use crate::server::Running;
use crate::traffic::{Load, Outcome, Traffic};
use crate::wire::{Shape, Way};

pub(super) const PAYLOAD_LEN: usize = 160;
/// Packets a second of an Opus stream of 20 ms.
pub(super) const PER_SECOND: f64 = 50.0;

const METRICS: &[Metric] = &[
    less("per packet", CPU),
    less("p50", "us"),
    less("p99", "us"),
    less("loss", "%"),
    context("core busy", "%"),
    context("core in softirq", "%"),
    context("delivered", "packets/s"),
];

pub(super) const THOUSAND: Row = Row {
    name: "calls-1000",
    what: "1000 calls x 50 packets/s each way, 160 bytes",
    metrics: METRICS,
    echo: true,
    is_held: false,
    run: |bench, server| calls(bench, server, 1000),
};

pub(super) const TWO_HUNDRED: Row = Row {
    name: "calls-200",
    what: "200 calls x 50 packets/s each way, 160 bytes",
    metrics: METRICS,
    echo: true,
    is_held: false,
    run: |bench, server| calls(bench, server, 200),
};

fn calls(bench: &Bench, server: &Running, count: usize) -> Result<Sample> {
    let mut traffic = Traffic::set_up(server, count, Shape::ChannelData, false)?;
    let load = Load { ways: &[Way::Up, Way::Down], drive: Drive::Rate(PER_SECOND), payload_len: PAYLOAD_LEN };
    let outcome = {
        let _real_time = bench.real_time();
        traffic.run(&load, bench.watch(server, 1.0), None)?
    };
    let mut sample = Sample::new(bench);
    let delivered: u64 = outcome.watched.counts.iter().sum();
    sample.put("per packet", outcome.watched.cpu_us_per(delivered));
    put_latency(&mut sample, &outcome, ["p50", "p99"], 1.0);
    sample.put("loss", loss(&outcome) * 100.0);
    sample.put("core busy", outcome.watched.usage.core_busy * 100.0);
    sample.put("core in softirq", outcome.watched.usage.core_softirq * 100.0);
    sample.put("delivered", outcome.watched.per_second(delivered));
    sample.doubt_pace("calls", &outcome);
    Ok(sample)
}

/// Puts the median and the 99th percentile of both ways; `unit` is in microseconds.
pub(super) fn put_latency(sample: &mut Sample, outcome: &Outcome, [p50, p99]: [&'static str; 2], unit: f64) {
    let mut both = Histogram::default();
    outcome.tallies.iter().for_each(|tally| both.add(&tally.latency));
    for (name, share) in [(p50, 0.5), (p99, 0.99)] {
        if let Some(value) = both.quantile_us(share) {
            sample.put(name, value / unit);
        }
    }
}

/// Share of all packets that never arrived.
pub(super) fn loss(outcome: &Outcome) -> f64 {
    let [up, down] = &outcome.tallies;
    1.0 - (up.arrived + down.arrived) as f64 / (up.sent + down.sent).max(1) as f64
}
