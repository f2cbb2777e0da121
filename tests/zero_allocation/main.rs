//! What no packet does: ask the heap for anything, in the core or in a running worker, or write what workers share.

#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod heap;
#[path = "../../benches/support/mod.rs"]
mod support;
mod workers;

use std::hint::black_box;

use ferryd::address::{PeerAddr, Transport};
use ferryd::turn::Forward;
use support::{Lab, channel_data, route, send_indication};

use crate::heap::asked_during;

const CLIENTS: usize = 64;
const PACKETS: usize = 10_000;
/// Not a multiple of four, so that padding is met too.
const PAYLOAD_LENS: [usize; 2] = [160, 163];

#[test]
fn the_counter_counts() {
    assert_eq!(asked_during(|| drop(black_box(Box::new(7)))), 1);
}

#[test]
fn no_packet_of_a_channel_asks_the_heap_for_anything() {
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls, Transport::Dtls] {
        let mut lab = Lab::with_allocations(CLIENTS, transport);
        let message = channel_data(160);
        let asked = asked_during(|| {
            for client in lab.clients.iter().cycle().take(PACKETS) {
                let up = lab.server.handle_client(lab.now, &client.five_tuple, route(), &message);
                assert!(matches!(up, Some(Forward::ToPeer { peer, .. }) if peer == client.channel_peer));
                assert!(lab.server.poll_effect().is_none());
                for len in PAYLOAD_LENS {
                    let down = lab.server.handle_peer(lab.now, client.relay, client.channel_peer, len);
                    assert!(matches!(down, Some(Forward::ToClient { client: to, .. }) if to == client.five_tuple));
                }
            }
        });
        assert_eq!(asked, 0, "{transport:?}");
    }
}

#[test]
fn no_indication_asks_the_heap_for_anything() {
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let mut lab = Lab::with_allocations(CLIENTS, transport);
        let send = |index: usize| send_indication(lab.clients[index].other_peer.socket_addr(), 163);
        let sends: Vec<_> = (0..CLIENTS).map(send).collect();
        let asked = asked_during(|| {
            for (client, send) in lab.clients.iter().zip(&sends).cycle().take(PACKETS) {
                let up = lab.server.handle_client(lab.now, &client.five_tuple, route(), send);
                assert!(matches!(up, Some(Forward::ToPeer { peer, .. }) if peer == client.other_peer));
                assert!(lab.server.poll_effect().is_none());
                for len in PAYLOAD_LENS {
                    let down = lab.server.handle_peer(lab.now, client.relay, client.other_peer, len);
                    assert!(matches!(down, Some(Forward::ToClient { client: to, .. }) if to == client.five_tuple));
                }
            }
        });
        assert_eq!(asked, 0, "{transport:?}");
    }
}

#[test]
fn nothing_between_two_clients_asks_the_heap_for_anything() {
    let mut lab = Lab::with_allocations(2, Transport::Udp);
    let sends: Vec<_> = lab.clients.iter().map(|client| send_indication(client.relayed, 163)).collect();
    let [(one, _), (other, to_other)] = [(&lab.clients[0], &sends[0]), (&lab.clients[1], &sends[1])];
    let asked = asked_during(|| {
        for _ in 0..PACKETS {
            let across = lab.server.handle_client(lab.now, &one.five_tuple, route(), to_other);
            assert!(matches!(across, Some(Forward::ToClient { client, .. }) if client == other.five_tuple));
            assert!(lab.server.poll_effect().is_none());
        }
    });
    assert_eq!(asked, 0);
}

#[test]
fn nothing_that_is_dropped_asks_the_heap_for_anything() {
    let mut lab = Lab::with_allocations(CLIENTS, Transport::Udp);
    let stranger = PeerAddr::new("8.8.8.8:53".parse().expect("a literal address"));
    let send = send_indication(stranger.socket_addr(), 160);
    let asked = asked_during(|| {
        for client in lab.clients.iter().cycle().take(PACKETS) {
            for bytes in [&send[..], b"\x40\x02\x00\x00", b"\x40", b"\xff", b""] {
                assert!(lab.server.handle_client(lab.now, &client.five_tuple, route(), bytes).is_none());
            }
            assert!(lab.server.handle_peer(lab.now, client.relay, stranger, 160).is_none());
            assert!(lab.server.poll_effect().is_none());
        }
    });
    assert_eq!(asked, 0);
}
