//! Churn: clients of every transport come, bind, send, and leave or are never heard of again, for as long as
//! `FERRY_SOAK_SECONDS` says. `tests/soak` runs it.

use std::fs;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::certificate::Certificate;
use crate::client::{Client, binding_request};
use crate::ferryd::Ferryd;
use crate::metrics::{metric, with_metrics};
#[cfg(feature = "dtls")]
use crate::wire::Wire;
use crate::{Ending, wait_until};

const CHANNEL: u16 = 0x4000;
/// Clients that churn at a time.
const THREADS: usize = 4;
/// What an abandoned allocation lives for.
const LIFETIME: &str = "2s";
/// What resident memory may grow by, once there has been churn for a third of the time: what is remembered for a while is
/// bounded (releases, sessions of TLS), and what the allocator keeps varies. A leak of 100 bytes for each of a hundred
/// thousand clients is more.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

fn resident(ferryd: &Ferryd) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{}/statm", ferryd.id())).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// One client's life; how many operations it was.
fn live(ferryd: &Ferryd, certificate: &Certificate, peer: &UdpSocket, number: u64) -> u64 {
    let address = ferryd.address();
    let mut client = match number % 16 {
        0 => Client::tls(address, certificate),
        1 | 2 => Client::tcp(address),
        #[cfg(feature = "dtls")]
        3 => Client::dtls(address, certificate),
        4 => {
            // A handshake that goes nowhere.
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
            return 1;
        }
        5 => {
            let stranger = UdpSocket::bind((ferryd.config.ip, 0)).unwrap();
            for bytes in [&binding_request()[..], b"garbage", &[0; 20]] {
                stranger.send_to(bytes, address).unwrap();
            }
            return 3;
        }
        _ => Client::udp(address),
    };
    client.allocate();
    client.bind_channel(CHANNEL, peer.local_addr().unwrap()).unwrap();
    for _ in 0..8 {
        client.send_by_channel(CHANNEL, b"media");
    }
    #[cfg(feature = "dtls")]
    if let Wire::Dtls(association) = client.wire {
        // One that is never heard of again stays for a minute.
        association.close();
        return 12;
    }
    // Streams end with their connection, and the others by their time.
    if !number.is_multiple_of(3) {
        return 11;
    }
    client.refresh(0).unwrap();
    12
}

#[test]
#[ignore = "it takes the time that tests/soak gives it"]
fn memory_is_flat_under_churn_and_everything_comes_back() {
    let seconds = std::env::var("FERRY_SOAK_SECONDS").map_or(15, |seconds| seconds.parse().unwrap());
    let length = Duration::from_secs(seconds);
    let ferryd = Ferryd::start(|config| {
        with_metrics(config);
        Certificate::configured(config);
        config.text("relay.lifetime-default", LIFETIME);
    });
    // The log would grow in this process.
    ferryd.verb(&["log-level", "warn"]).expect_success();
    let certificate = Certificate::of(&ferryd.config);
    let peer = UdpSocket::bind((ferryd.config.ip, 0)).unwrap();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", ferryd.id())).unwrap().count();
    // What is made once is there.
    (0..32).for_each(|number| _ = live(&ferryd, &certificate, &peer, number));
    let idle = || {
        ["ferryd_allocations", "ferryd_connections", "ferryd_dtls_associations"]
            .map(|series| metric(&ferryd, series))
            .iter()
            .all(|count| *count == 0)
            && metric(&ferryd, r#"ferryd_relay_ports_used{family="ipv4"}"#) == 0
    };
    wait_until("the first clients to be gone", idle);
    let begin = descriptors();
    let (operations, ends) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
    let (warm, grown) = std::thread::scope(|scope| {
        let _ending = Ending(Arc::clone(&ends));
        for thread in 0..THREADS as u64 {
            let (operations, ends, ferryd, certificate, peer) = (&operations, &ends, &ferryd, &certificate, &peer);
            scope.spawn(move || {
                let mut number = thread * 4;
                while !ends.load(Ordering::Relaxed) {
                    operations.fetch_add(live(ferryd, certificate, peer, number), Ordering::Relaxed);
                    number += 1;
                }
            });
        }
        let began = Instant::now();
        // The most there is at a time, in the first third and afterwards.
        let most = |until: Duration| {
            let mut most = 0;
            while began.elapsed() < until {
                most = most.max(resident(&ferryd));
                std::thread::sleep(Duration::from_millis(100));
            }
            most
        };
        (most(length / 3), most(length))
    });
    let operations = operations.load(Ordering::Relaxed);
    println!("{} operations/s for {seconds} s; resident {warm} bytes, then {grown}", operations / seconds.max(1));
    wait_until("everything to come back", idle);
    wait_until("the descriptors to close", || descriptors() <= begin);
    assert!(grown <= warm + GROWTH_BYTES_MAX, "{warm} bytes were resident after a third of the time, then {grown}");
    assert!(operations > 100 * seconds, "{operations} in {seconds} s is no churn");
    Client::udp(ferryd.address()).allocate();
}
