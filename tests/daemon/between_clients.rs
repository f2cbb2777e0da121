//! Two clients of one server call each other through their relayed addresses, which never leave the process.

use crate::certificate::Certificate;
use crate::client::{Client, Data};
use crate::ferryd::{Config, Ferryd};

const ADVERTISED: &str = "203.0.113.5";

/// As on a cloud host: the public address is nowhere to be bound, and no peer is allowed.
fn behind_nat(config: &mut Config) {
    Certificate::configured(config);
    config.unset("peers.allow").set("relay.advertised-addresses", format!("[\"{ADVERTISED}\"]"));
}

#[test]
fn clients_of_all_transports_and_workers_reach_each_other_at_the_advertised_address() {
    let ferryd = Ferryd::start(behind_nat);
    let certificate = Certificate::of(&ferryd.config);
    let mut clients = Vec::new();
    // Streams are given to the two workers in turn, datagrams by a hash: all 4 on one worker is 1 in 8.
    for _ in 0..2 {
        for client in [
            Client::udp(ferryd.address()),
            Client::udp(ferryd.address()),
            Client::tcp(ferryd.address()),
            Client::tcp(ferryd.address()),
            Client::tls(ferryd.address(), &certificate),
        ] {
            clients.push(client);
        }
    }
    let relayed: Vec<_> = clients.iter_mut().map(Client::allocate).collect();
    for client in &mut clients {
        client.permit(relayed[0]).unwrap();
    }
    for from in 0..clients.len() {
        assert_eq!(relayed[from].ip().to_string(), ADVERTISED);
        for to in 0..clients.len() {
            let packet = [from as u8, to as u8];
            clients[from].send_by_indication(relayed[to], &packet);
            assert_eq!(clients[to].receive(), Data::Indication(relayed[from], packet.to_vec()), "{from} to {to}");
        }
    }
    call_by_channels(&mut clients, &relayed);
}

/// Every client binds a channel to the next and sends through it, up to the longest payload.
fn call_by_channels(clients: &mut [Client], relayed: &[std::net::SocketAddr]) {
    let count = clients.len();
    for (index, client) in clients.iter_mut().enumerate() {
        client.bind_channel(0x4000, relayed[(index + 1) % count]).unwrap();
        client.bind_channel(0x4001, relayed[(index + count - 1) % count]).unwrap();
    }
    for from in 0..count {
        for length in [0, 1, 160, 1200, 65_503] {
            let packet = vec![from as u8; length];
            clients[from].send_by_channel(0x4000, &packet);
            assert_eq!(clients[(from + 1) % count].receive(), Data::Channel(0x4001, packet), "{from}, {length} bytes");
        }
    }
}

#[test]
fn without_an_advertised_address_the_bound_one_leads_there_too() {
    // One worker, so that what is sent first is judged first.
    let ferryd = Ferryd::start(|config| _ = config.unset("peers.allow").set("workers", 1));
    let (mut one, mut other) = (Client::tcp(ferryd.address()), Client::tcp(ferryd.address()));
    let (first, second) = (one.allocate(), other.allocate());
    assert_eq!(first.ip(), ferryd.config.ip);
    one.permit(second).unwrap();
    // The other does not permit it yet.
    one.send_by_indication(second, b"early");
    one.bind();
    other.permit(first).unwrap();
    one.send_by_indication(second, b"late");
    assert_eq!(other.receive(), Data::Indication(first, b"late".to_vec()));
}

#[test]
fn a_relayed_address_that_is_gone_is_reached_by_nobody() {
    let ferryd = Ferryd::start(behind_nat);
    let (mut one, mut other) = (Client::udp(ferryd.address()), Client::udp(ferryd.address()));
    let (first, second) = (one.allocate(), other.allocate());
    one.permit(second).unwrap();
    other.permit(first).unwrap();
    assert_eq!(other.refresh(0), Ok(0));
    assert_eq!(one.bind_channel(0x4000, second), Err(403));
    one.send_by_indication(second, b"to nobody");
    other.bind();
    assert_eq!(other.wire.receive(std::time::Duration::from_millis(50)), None);
}
