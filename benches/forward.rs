//! The core's cost of one forwarded packet, at 1, 1000 and 100,000 allocations: no sockets, no system calls.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "shared with a bench and a test that need more")]
mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferryd::address::Transport;
use support::{Lab, channel_data, route, send_indication};

const PAYLOAD_LEN: usize = 160;
/// Clients are met in an order that caches cannot foresee; odd, so that every one has its turn.
const STRIDE: usize = 7919;

fn forward(criterion: &mut Criterion) {
    for count in [1, 1_000, 100_000] {
        let mut lab = Lab::with_allocations(count, Transport::Udp);
        let sends: Vec<_> =
            lab.clients.iter().map(|client| send_indication(client.other_peer.socket_addr(), PAYLOAD_LEN)).collect();
        let channel_data = channel_data(PAYLOAD_LEN);
        let mut group = criterion.benchmark_group(format!("forward/{count}"));
        group.throughput(Throughput::Elements(1));
        let mut next = 0;
        let mut turn = || {
            next = (next + STRIDE) % count;
            next
        };
        group.bench_function("ChannelData to peer", |bencher| {
            bencher.iter(|| {
                let client = &lab.clients[turn()];
                let forward = lab.server.handle_client(lab.now, &client.five_tuple, route(), black_box(&channel_data));
                assert!(black_box(forward).is_some());
            });
        });
        group.bench_function("ChannelData to client", |bencher| {
            bencher.iter(|| {
                let client = &lab.clients[turn()];
                let forward =
                    lab.server.handle_peer(lab.now, client.relay, client.channel_peer, black_box(PAYLOAD_LEN));
                assert!(black_box(forward).is_some());
            });
        });
        group.bench_function("Send indication to peer", |bencher| {
            bencher.iter(|| {
                let index = turn();
                let client = &lab.clients[index];
                let forward = lab.server.handle_client(lab.now, &client.five_tuple, route(), black_box(&sends[index]));
                assert!(black_box(forward).is_some());
            });
        });
        group.bench_function("Data indication to client", |bencher| {
            bencher.iter(|| {
                let client = &lab.clients[turn()];
                let forward = lab.server.handle_peer(lab.now, client.relay, client.other_peer, black_box(PAYLOAD_LEN));
                assert!(black_box(forward).is_some());
            });
        });
        group.finish();
    }
}

criterion_group!(benches, forward);
criterion_main!(benches);
