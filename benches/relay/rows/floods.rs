//! Floods beside calls, on a server that has less than half of its core: more of each than it can answer.

use std::time::Duration;

use super::calls::{PAYLOAD_LEN, PER_SECOND, loss, put_latency};
use super::overload::FLOOD_PER_SECOND;
use super::{Bench, Metric, Row, Sample, context, less};
use crate::failure::Result;
use crate::flood::{Flood, Kind};
use crate::limit::Limit;
use crate::machine;
use crate::pace::Drive;
use crate::server::Running;
use crate::traffic::{Load, Traffic};
use crate::wire::{Shape, Way};

const METRICS: &[Metric] = &[
    less("loss", "%"),
    less("loss to peer", "%"),
    less("loss to client", "%"),
    less("p50", "ms"),
    less("p99", "ms"),
    context("flood", "/s"),
    context("unread", "%"),
];

const CALLS: usize = 100;
/// The kernel path is told of a channel behind the answer to the client.
const SETTLING: Duration = Duration::from_millis(300);

macro_rules! row {
    ($constant:ident, $name:literal, $what:literal, $($kind:ident),+) => {
        pub(super) const $constant: Row = Row {
            name: $name,
            what: concat!("100 calls x 50 packets/s each way on 40 % of a core (--quota), beside ", $what),
            metrics: METRICS,
            echo: false,
            is_held: true,
            run: |bench, server| beside(bench, server, &[$(Kind::$kind),+]),
        };
    };
}

row!(BINDINGS, "flood-bindings", "264,000 Binding requests/s", Bindings);
row!(ALLOCATES, "flood-allocates", "264,000 Allocates/s without credentials", Allocates);
row!(GUESSES, "flood-guesses", "264,000 Allocates/s with a valid nonce and a wrong password", Guesses);
row!(GARBAGE, "flood-garbage", "264,000 datagrams/s of random bytes", Garbage);
row!(HANDSHAKES, "flood-handshakes", "1000 TLS handshakes/s that stop in the middle", Handshakes);
row!(CHANNELS, "flood-channels", "264,000 ChannelData messages/s of strangers", Channels);
row!(CLIENTS, "flood-clients", "264,000 ChannelData messages/s of 16 other clients, on no channel of theirs", Clients);
row!(SENDS, "flood-sends", "264,000 Send indications/s of 16 other clients to a peer without permission", Sends);
row!(PEERS, "flood-peers", "264,000 datagrams/s to the relayed addresses from peers without permission", Peers);
row!(
    ALL,
    "flood-all",
    "all of these together, 264,000/s",
    Bindings,
    Allocates,
    Guesses,
    Garbage,
    Handshakes,
    Channels,
    Peers
);

fn beside(bench: &Bench, server: &Running, kinds: &[Kind]) -> Result<Sample> {
    let mut traffic = Traffic::set_up(server, CALLS, Shape::ChannelData, false)?;
    let mut flood = Flood::new(server, kinds, FLOOD_PER_SECOND, traffic.relayed())?;
    let load = Load { ways: &[Way::Up, Way::Down], drive: Drive::Rate(PER_SECOND), payload_len: PAYLOAD_LEN };
    std::thread::sleep(SETTLING);
    let before = machine::datagrams_without_room(server.process())?;
    let limit = Limit::hold(server.process(), bench.quota)?;
    let outcome = {
        let _real_time = bench.real_time();
        traffic.run(&load, bench.watch(server, 1.0), Some(&mut flood))?
    };
    let unread = machine::datagrams_without_room(server.process())? - before;
    limit.release(server.process())?;
    let mut sample = Sample::new(bench);
    sample.put("loss", loss(&outcome) * 100.0);
    sample.put("loss to peer", outcome.tallies[Way::Up as usize].loss() * 100.0);
    sample.put("loss to client", outcome.tallies[Way::Down as usize].loss() * 100.0);
    put_latency(&mut sample, &outcome, ["p50", "p99"], 1e3);
    sample.put("flood", flood.per_second());
    sample.put("unread", unread as f64 / flood.datagrams().max(1) as f64 * 100.0);
    sample.doubt_pace("flood", &outcome);
    Ok(sample)
}
