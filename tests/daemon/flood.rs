//! A flood of requests beside running calls: what waits where, told by a daemon that stands still while it arrives.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferryd::stun::{AttributeType, Builder, Class, Message, Method, TransactionId};

use crate::client::{Challenge, Client, udp_transport};
use crate::ferryd::Ferryd;
use crate::metrics::{metric, with_metrics};
use crate::{Ending, PATIENCE, wait_until};

const CHANNEL: u16 = 0x4000;
/// More than any receive buffer takes: 5041 small datagrams fit into 2 MiB, as the kernel counts.
const FLOOD: usize = 20_000;
/// Of each client; the default receive buffer of the peer has room for all of them.
const PACKETS: usize = 20;

/// Stops all threads of the daemon, or has them go on.
fn signal(ferryd: &Ferryd, name: &str, state: char) {
    let process = ferryd.id();
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
    wait_until("the signal has been heard", || {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        let is_stopped = stat.rsplit(") ").next().unwrap().starts_with('T');
        is_stopped == (state == 'T')
    });
}

/// A request of a live call, once and not again.
fn write_signed(client: &Client, method: Method, id: u8, write: impl Fn(&mut Builder<'_>)) -> Vec<u8> {
    let Challenge { realm, nonce } = client.challenge.clone().unwrap();
    let key = Client::key_of(&client.user.name, &realm, &client.user.password);
    let mut bytes = Vec::new();
    let mut builder = Builder::new(&mut bytes, method, Class::Request, TransactionId([id; 12]));
    write(&mut builder);
    builder.attribute(AttributeType::USERNAME, client.user.name.as_bytes());
    builder.attribute(AttributeType::REALM, realm.as_bytes());
    builder.attribute(AttributeType::NONCE, &nonce).integrity(&key);
    bytes
}

#[test]
fn a_flood_of_requests_costs_no_packet_and_no_refresh_of_a_call() {
    let ferryd = Ferryd::start(|_| {});
    let peer = UdpSocket::bind((ferryd.config.ip, 0)).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let at = peer.local_addr().unwrap();
    // Several, so that both workers have some.
    let mut clients: Vec<Client> = (0..6).map(|_| Client::udp(ferryd.address())).collect();
    for client in &mut clients {
        client.allocate();
        client.bind_channel(CHANNEL, at).unwrap();
    }
    signal(&ferryd, "-STOP", 'T');
    let strangers: Vec<UdpSocket> = (0..16)
        .map(|_| {
            let socket = UdpSocket::bind((ferryd.config.ip, 0)).unwrap();
            socket.connect(ferryd.address()).unwrap();
            socket
        })
        .collect();
    let mut request = Vec::new();
    udp_transport(&mut Builder::new(&mut request, Method::Allocate, Class::Request, TransactionId([7; 12])));
    for number in 0..FLOOD {
        strangers[number % strangers.len()].send(&request).unwrap();
    }
    for client in &mut clients {
        for number in 0..PACKETS {
            client.send_by_channel(CHANNEL, &(number as u32).to_be_bytes());
        }
        for (id, method) in [(1, Method::Refresh), (2, Method::CreatePermission), (3, Method::ChannelBind)] {
            let request = write_signed(client, method, id, |builder| {
                if method == Method::ChannelBind {
                    builder.u32(AttributeType::CHANNEL_NUMBER, u32::from(CHANNEL) << 16);
                }
                if method != Method::Refresh {
                    builder.xor_address(AttributeType::XOR_PEER_ADDRESS, at);
                }
            });
            client.wire.send(&request);
        }
    }
    signal(&ferryd, "-CONT", 'S');
    for _ in 0..clients.len() * PACKETS {
        assert_eq!(peer.recv(&mut [0; 64]).unwrap(), 4);
    }
    for client in &mut clients {
        let mut answered: Vec<u8> = (0..3)
            .map(|_| {
                let answer = client.wire.receive(PATIENCE).expect("an answer through the flood");
                let answer = Message::parse(&answer).unwrap();
                assert_eq!(answer.class(), Class::Success);
                answer.transaction_id().0[0]
            })
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, [1, 2, 3]);
    }
    let answers: usize = strangers
        .iter()
        .map(|stranger| {
            stranger.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            std::iter::from_fn(|| stranger.recv(&mut [0; 512]).ok()).count()
        })
        .sum();
    assert!(answers > 0 && answers < FLOOD / 2, "{answers} of the flood waited and were answered");
    Client::udp(ferryd.address()).allocate();
}

#[test]
fn a_flood_dressed_as_requests_of_calls_keeps_no_call_from_asking() {
    let ferryd = Ferryd::start(with_metrics);
    let peer = UdpSocket::bind((ferryd.config.ip, 0)).unwrap().local_addr().unwrap();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::udp(ferryd.address())).collect();
    clients.iter_mut().for_each(|client| _ = client.allocate());
    let strangers: Vec<UdpSocket> = (0..16)
        .map(|_| UdpSocket::bind((ferryd.config.ip, 0)).unwrap())
        .inspect(|it| it.connect(ferryd.address()).unwrap())
        .collect();
    let mut request = Vec::new();
    Builder::new(&mut request, Method::Refresh, Class::Request, TransactionId([7; 12]));
    let shed = || metric(&ferryd, r#"ferryd_queue_drops_total{reason="requests_shed"}"#);
    let ends = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _ending = Ending(Arc::clone(&ends));
        for strangers in strangers.chunks(8) {
            let (request, ends) = (&request, &ends);
            scope.spawn(move || {
                for stranger in strangers.iter().cycle() {
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    // What does not go out is no flood.
                    let _ = stranger.send(request);
                }
            });
        }
        let mut before = shed();
        for client in &mut clients {
            wait_until("the flood to be one", || shed() > before);
            before = shed();
            assert_eq!(client.refresh(600), Ok(600));
            assert_eq!(client.permit(peer), Ok(()));
            assert_eq!(client.bind_channel(CHANNEL, peer), Ok(()));
        }
    });
}
