//! Clients over TCP and TLS, their peers over UDP.

use super::{Bench, CPU, Metric, Row, Sample, context, less, more};
use crate::failure::Result;
use crate::leg_traffic::LegTraffic;
use crate::legs::Carrier;
use crate::server::Running;
use crate::wire::Way;

const METRICS: &[Metric] = &[
    less("to peer", CPU),
    less("to client", CPU),
    more("to peer, rate", "packets/s"),
    more("to client, rate", "packets/s"),
];
const METRICS_TLS: &[Metric] = &[METRICS[0], METRICS[1], METRICS[2], METRICS[3], context("TLS", "version")];
const CONNECTIONS: usize = 20;

pub(super) const TCP: Row = Row {
    name: "tcp",
    what: "20 clients over TCP, 1200 bytes, each way alone",
    metrics: METRICS,
    echo: false,
    is_held: false,
    run: |bench, server| streams(bench, server, Carrier::Tcp),
};

pub(super) const TLS: Row = Row {
    name: "tls",
    what: "20 clients over TLS, 1200 bytes, one record for each packet from the client, each way alone",
    metrics: METRICS_TLS,
    echo: false,
    is_held: false,
    run: |bench, server| streams(bench, server, Carrier::Tls),
};

fn streams(bench: &Bench, server: &Running, carrier: Carrier) -> Result<Sample> {
    let mut traffic = LegTraffic::set_up(server, carrier, CONNECTIONS)?;
    let mut sample = Sample::new(bench);
    for (way, cost, rate) in [(Way::Up, "to peer", "to peer, rate"), (Way::Down, "to client", "to client, rate")] {
        let _real_time = bench.real_time();
        let watched = traffic.run(way, bench.watch(server, 0.5))?;
        let count = watched.counts[way as usize];
        sample.put(cost, watched.cpu_us_per(count));
        sample.put(rate, watched.per_second(count));
        sample.doubt_saturation(cost, &watched);
    }
    if let Some(version) = traffic.tls_version() {
        sample.put("TLS", version);
    }
    Ok(sample)
}
