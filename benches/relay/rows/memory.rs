//! What an idle allocation holds of the server's memory.

use super::{Bench, Metric, Row, Sample, context, less};
use crate::clients::Clients;
use crate::dialog::{Ask, Dialog};
use crate::failure::Result;
use crate::legs::{Carrier, Legs};
use crate::machine::{nap, resident_kib};
use crate::server::Running;

const METRICS: &[Metric] = &[less("each", "KiB"), context("allocations", "")];

pub(super) const UDP: Row = Row {
    name: "memory-udp",
    what: "anonymous resident memory of the server for each idle allocation over UDP",
    metrics: METRICS,
    echo: false,
    is_held: false,
    run: udp,
};

pub(super) const TLS: Row = Row {
    name: "memory-tls",
    what: "the same for each client over TLS",
    metrics: METRICS,
    echo: false,
    is_held: false,
    run: tls,
};

/// Allocations before the first reading, so that what the server takes once is not counted.
const BEFORE: usize = 256;
const SETTLE_US: u64 = 300_000;

fn udp(bench: &Bench, server: &Running) -> Result<Sample> {
    let count = if bench.quick { 2_000 } else { 6_000 };
    // Two sockets: the second makes other 5-tuples of the same addresses.
    let allocate = |clients: &mut Clients, count: usize| {
        let mut dialogs: Vec<_> = (0..count).map(|index| Dialog::new(index as u64, &[Ask::Allocate])).collect();
        clients.talk(&mut dialogs)
    };
    let (mut first, mut second) = (Clients::new(server.plain())?, Clients::new(server.plain())?);
    allocate(&mut first, BEFORE)?;
    let before = settled_kib(server)?;
    allocate(&mut second, count)?;
    Ok(sample(bench, before, settled_kib(server)?, count))
}

fn tls(bench: &Bench, server: &Running) -> Result<Sample> {
    let count = if bench.quick { 500 } else { 2_000 };
    let asks = |_: usize| vec![Ask::Allocate];
    let _first = Legs::set_up(server, Carrier::Tls, BEFORE, asks)?;
    let before = settled_kib(server)?;
    let _second = Legs::set_up(server, Carrier::Tls, count, asks)?;
    Ok(sample(bench, before, settled_kib(server)?, count))
}

fn settled_kib(server: &Running) -> Result<u64> {
    nap(SETTLE_US);
    resident_kib(server.process())
}

fn sample(bench: &Bench, before: u64, after: u64, count: usize) -> Sample {
    let mut sample = Sample::new(bench);
    sample.put("each", after.saturating_sub(before) as f64 / count as f64);
    sample.put("allocations", count as f64);
    sample
}
