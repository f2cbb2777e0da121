//! Listeners that come and go with a reload, under running calls.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use crate::admin::{call, json};
use crate::certificate::Certificate;
use crate::client::{Client, Data};
use crate::ferryd::Ferryd;
use crate::metrics::{metric, with_metrics};
use crate::operate::while_a_call_counts;
use crate::{place, wait_until};

fn listeners(ferryd: &Ferryd) -> String {
    json(ferryd, &["status"])["listeners"].to_string()
}

/// The kernel has nobody behind the port any more.
fn is_free(address: SocketAddr) -> bool {
    UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
}

#[test]
fn listeners_of_every_kind_come_and_go_and_no_call_loses_a_packet() {
    let mut ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        with_metrics(config);
    });
    let certificate = Certificate::of(&ferryd.config);
    let (kept, new) = (ferryd.address(), SocketAddr::from((ferryd.config.ip, place::free_port())));
    let calls = [
        call(Client::udp(kept)),
        call(Client::tcp(kept)),
        call(Client::tls(kept, &certificate)),
        #[cfg(feature = "dtls")]
        call(Client::dtls(kept, &certificate)),
    ];
    let (kept_text, new_text) = (kept.to_string(), new.to_string());
    let calls = while_a_call_counts(calls.into(), || {
        // Another of each kind, beside those that there are.
        let old = [(kept_text.as_str(), "udp"), (kept_text.as_str(), "tcp")];
        let both = [old[0], old[1], (new_text.as_str(), "udp"), (new_text.as_str(), "tcp")];
        let log = ferryd.reload(|config| _ = config.listen(&both));
        assert!(log.contains(&format!("listener udp+dtls {new} added, listener tcp+tls {new} added")), "{log}");
        Client::udp(new).allocate();
        Client::tcp(new).allocate();
        Client::tls(new, &certificate).allocate();
        #[cfg(feature = "dtls")]
        Client::dtls(new, &certificate).allocate();
        // What they answer changes, and their sockets stay.
        let changed = [old[0], old[1], (new_text.as_str(), "udp plain"), (new_text.as_str(), "tcp tls")];
        let log = ferryd.reload(|config| _ = config.listen(&changed));
        assert!(log.contains(&format!("listener udp {new} changed, listener tls {new} changed")), "{log}");
        Client::udp(new).allocate();
        Client::tls(new, &certificate).allocate();
        // The first two go: who has a call there keeps it.
        let log = ferryd.reload(|config| _ = config.listen(&changed[2..]));
        assert!(log.contains(&format!("listener udp+dtls {kept} removed, listener tcp+tls {kept} removed")), "{log}");
        assert!(listeners(&ferryd).contains(&format!("{kept}, removed: until its calls have ended")));
        assert!(std::net::TcpStream::connect(kept).is_err(), "nobody accepts any more");
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stranger.send_to(&crate::client::binding_request(), kept).unwrap();
        wait_until("the datagram to be counted", || {
            metric(&ferryd, "ferryd_queue_drops_total{reason=\"removed_listener\"}") > 0
        });
        assert!(stranger.recv(&mut [0; 100]).is_err(), "a closed port says nothing");
        Client::udp(new).allocate();
    });
    // The last call that came by datagrams ends, and with it the listener.
    for (mut client, _peer) in calls {
        assert_eq!(client.refresh(0), Ok(0));
    }
    wait_until("the listener to close", || !listeners(&ferryd).contains("removed"));
    wait_until("the port to be free", || is_free(kept));
    // It can come back.
    let all = [(kept_text.as_str(), "udp"), (kept_text.as_str(), "tcp"), (new_text.as_str(), "udp plain")];
    ferryd.reload(|config| _ = config.listen(&all));
    Client::udp(kept).allocate();
    Client::tcp(kept).allocate();
}

#[test]
fn a_removed_listener_that_comes_back_before_its_last_call_has_ended_serves_everybody_again() {
    let mut ferryd = Ferryd::start(|_| {});
    let (kept, other) = (ferryd.address(), SocketAddr::from((ferryd.config.ip, place::free_port())));
    let (mut client, peer) = call(Client::udp(kept));
    let (kept_text, other_text) = (kept.to_string(), other.to_string());
    ferryd.reload(|config| _ = config.listen(&[(&other_text, "udp")]));
    assert_eq!(client.refresh(600), Ok(600));
    let log = ferryd.reload(|config| _ = config.listen(&[(&kept_text, "udp")]));
    assert!(log.contains(&format!("listener udp {kept} added")), "{log}");
    Client::udp(kept).allocate();
    client.send_by_channel(0x4000, b"still");
    assert_eq!(peer.recv(&mut [0; 16]).unwrap(), 5);
    let relayed = json(&ferryd, &["sessions"])["sessions"].as_array().unwrap().len();
    assert_eq!(relayed, 2);
}

#[test]
fn a_port_that_cannot_be_had_refuses_the_whole_reload() {
    let mut ferryd = Ferryd::start(|_| {});
    let (own, free) = (ferryd.address().to_string(), SocketAddr::from((ferryd.config.ip, place::free_port())));
    let taken = UdpSocket::bind((ferryd.config.ip, 0)).unwrap();
    let stream = TcpListener::bind((ferryd.config.ip, 0)).unwrap();
    let (free_text, user) = (free.to_string(), "[{ name = \"bob\", password = \"mVJ0s3yTzQkU8cXeW1bNhR4p\" }]");
    for (taken, kind) in [(taken.local_addr().unwrap(), "udp"), (stream.local_addr().unwrap(), "tcp")] {
        let log = ferryd.reload(|config| {
            let taken = taken.to_string();
            config.listen(&[(&own, "udp"), (&own, "tcp"), (&free_text, "udp"), (&free_text, "tcp"), (&taken, kind)]);
            config.set("auth.user", user);
        });
        for words in [&taken.to_string(), "port is in use", "nothing of it has been applied"] {
            assert!(log.contains(words), "{words:?} is missing in:\n{log}");
        }
        // Neither the users nor the listeners that could have been had.
        Client::udp(ferryd.address()).allocate();
        wait_until("what was opened to be closed", || is_free(free));
        assert!(!listeners(&ferryd).contains(&free.to_string()));
    }
}

#[test]
fn a_listener_that_overlaps_another_one_waits_for_a_restart() {
    let mut ferryd = Ferryd::start(|_| {});
    let any = format!("0.0.0.0:{}", ferryd.config.port);
    let log = ferryd
        .reload(|config| _ = config.listen(&[(&any, "udp"), (&any, "tcp")]).set("limits.channels-per-allocation", 7));
    assert!(log.contains("listener (one on * and one on an address have the same port)"), "{log}");
    assert!(log.contains("changed=\"limits\""), "the rest is applied: {log}");
    Client::udp(ferryd.address()).allocate();
    let ferryd = ferryd.restart();
    assert!(listeners(&ferryd).contains(&any));
    Client::udp(ferryd.address()).allocate();
}

#[test]
fn relays_do_not_reach_listeners_that_came_later() {
    let mut ferryd = Ferryd::start(|_| {});
    let (own, new) = (ferryd.address().to_string(), SocketAddr::from((ferryd.config.ip, place::free_port())));
    let (mut client, peer) = call(Client::udp(ferryd.address()));
    let new_text = new.to_string();
    ferryd.reload(|config| _ = config.listen(&[(&own, "udp"), (&new_text, "udp")]));
    assert_eq!(client.bind_channel(0x4001, new), Err(403));
    peer.send_to(b"open", json(&ferryd, &["sessions"])["sessions"][0]["relayed"][0].as_str().unwrap()).unwrap();
    assert_eq!(client.receive(), Data::Channel(0x4000, b"open".to_vec()));
}
