//! Requests: Binding, and allocations that come and go.

use std::net::{Ipv4Addr, SocketAddr};

use ferryd::stun::{AttributeType, Class, Message};

use super::{Bench, CPU, Metric, Row, Sample, context, less, more};
use crate::clients::{Clients, client_index, client_ip};
use crate::datagrams::BATCH;
use crate::dialog::{Ask, write_binding};
use crate::failure::{Failure, Result};
use crate::machine::now_ns;
use crate::server::Running;
use crate::watch::Phase;

const METRICS: &[Metric] = &[more("rate", "/s"), less("each", CPU)];

pub(super) const BINDING: Row = Row {
    name: "binding",
    what: "Binding requests from 512 addresses, one under way each",
    metrics: METRICS,
    echo: true,
    is_held: false,
    run: binding,
};

pub(super) const ALLOCATIONS: Row = Row {
    name: "allocations",
    what: "clients that allocate (challenge and all) and release at once, 128 at a time, each from a new address",
    metrics: METRICS,
    echo: false,
    is_held: false,
    run: allocations,
};

pub(super) const ALLOCATIONS_TLS: Row = Row {
    name: "allocations-tls",
    what: "the same over TLS with a full handshake (P-256) each, 32 at a time",
    metrics: &[more("rate", "/s"), less("each", CPU), context("TLS", "version")],
    echo: false,
    is_held: false,
    run: allocations_tls,
};

const BINDING_CLIENTS: usize = 512;
const ALLOCATING_CLIENTS: usize = 128;
const TLS_CLIENTS: usize = 32;
const ALLOCATE_AND_RELEASE: [Ask; 2] = [Ask::Allocate, Ask::Release];
/// A Binding request without an answer for this long is sent again.
const LOST_NS: u64 = 50_000_000;

/// One client: when it asked, and what it asked last.
#[derive(Clone, Copy, Default)]
struct Asking {
    sent_ns: u64,
    number: u32,
    waits: bool,
}

fn binding(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut clients = Clients::new(server.plain())?;
    let port = crate::datagrams::port(&clients.socket)?;
    let mut asking = vec![Asking::default(); BINDING_CLIENTS];
    let mut template = Vec::new();
    write_binding(&mut template, [0; 12]);
    let (mut done, mut lost, mut cursor) = (0_u64, 0_u64, 0);
    let _real_time = bench.real_time();
    let mut watch = bench.watch(server, 1.0);
    loop {
        let now = now_ns();
        if watch.tick(now, [done, lost])? == Phase::Over {
            break;
        }
        let mut sent = 0;
        for _ in 0..BINDING_CLIENTS {
            let client = cursor % BINDING_CLIENTS;
            cursor += 1;
            let state = &mut asking[client];
            let is_lost = state.waits && now > state.sent_ns + LOST_NS;
            if state.waits && !is_lost {
                continue;
            }
            lost += u64::from(is_lost);
            *state = Asking { sent_ns: now, number: state.number + 1, waits: true };
            let datagram = clients.outbox.push(client_ip(client), server.plain(), template.len());
            datagram.copy_from_slice(&template);
            datagram[8..12].copy_from_slice(&(client as u32).to_be_bytes());
            datagram[16..20].copy_from_slice(&state.number.to_be_bytes());
            sent += 1;
            if sent == BATCH / 2 {
                break;
            }
        }
        clients.outbox.flush(&clients.socket);
        for index in 0..clients.inbox.receive(&clients.socket) {
            let arrival = clients.inbox.get(index);
            let client = client_index(arrival.to);
            let Some(state) = asking.get_mut(client) else { continue };
            let number = arrival.bytes.get(16..20).map(|bytes| bytes == state.number.to_be_bytes());
            if !state.waits || number != Some(true) {
                continue;
            }
            if server.echo_for_peers().is_none() {
                check_binding(arrival.bytes, arrival.to, port)?;
            }
            state.waits = false;
            done += 1;
        }
    }
    let watched = watch.result()?;
    let mut sample = Sample::new(bench);
    put_rate(&mut sample, &watched);
    sample.doubt_saturation("binding", &watched);
    Ok(sample)
}

fn check_binding(bytes: &[u8], to: Ipv4Addr, port: u16) -> Result<()> {
    let message = Message::parse(bytes).ok().filter(|message| message.class() == Class::Success);
    let mapped = message.and_then(|message| {
        message.attribute(AttributeType::XOR_MAPPED_ADDRESS)?.as_xor_address(message.transaction_id())
    });
    if mapped == Some(SocketAddr::from((to, port))) {
        return Ok(());
    }
    Err(Failure::new(format!("a Binding response to {to}:{port} says {mapped:?}")))
}

fn allocations(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut clients = Clients::new(server.plain())?;
    let mut watch = bench.watch(server, 1.0);
    let passed = {
        let _real_time = bench.real_time();
        clients.come_and_go(&ALLOCATE_AND_RELEASE, ALLOCATING_CLIENTS, &mut watch)?
    };
    let watched = watch.result()?;
    let mut sample = Sample::new(bench);
    put_rate(&mut sample, &watched);
    sample.doubt_saturation("allocations", &watched);
    if passed.resent > 0 {
        sample.notes.push(format!("allocations: {} requests had to be sent again", passed.resent));
    }
    Ok(sample)
}

fn allocations_tls(bench: &Bench, server: &Running) -> Result<Sample> {
    let mut watch = bench.watch(server, 1.0);
    let version = {
        let _real_time = bench.real_time();
        crate::legs::come_and_go(server, &ALLOCATE_AND_RELEASE, TLS_CLIENTS, &mut watch)?
    };
    let watched = watch.result()?;
    let mut sample = Sample::new(bench);
    put_rate(&mut sample, &watched);
    if let Some(version) = version {
        sample.put("TLS", version);
    }
    sample.doubt_saturation("allocations over TLS", &watched);
    Ok(sample)
}

fn put_rate(sample: &mut Sample, watched: &crate::watch::Watched) {
    let done = watched.counts[0];
    sample.put("rate", watched.per_second(done));
    sample.put("each", watched.cpu_us_per(done));
}
