//! SIGHUP: what changes under running calls, what does not, and what a wrong configuration leaves as it was.

use std::net::UdpSocket;

use crate::certificate::Certificate;
use crate::client::{Client, User};
use crate::ferryd::{Ferryd, PASSWORD};

fn one_user(name: &str) -> String {
    format!("[{{ name = \"{name}\", password = \"{PASSWORD}\" }}]")
}

#[test]
fn a_user_who_is_taken_out_keeps_the_call_and_starts_no_other() {
    let mut ferryd = Ferryd::start(|_| {});
    let mut alice = Client::udp(ferryd.address());
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    alice.allocate();
    alice.permit(peer.local_addr().unwrap()).unwrap();
    let log = ferryd.reload(|config| _ = config.set("auth.user", one_user("bob")));
    assert!(log.contains("changed=\"credentials\""), "{log}");
    alice.send_by_indication(peer.local_addr().unwrap(), b"still here");
    let mut bytes = [0; 16];
    assert_eq!(peer.recv(&mut bytes).unwrap(), 10);
    assert_eq!(alice.refresh(600), Ok(600));
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(401));
    Client::udp(ferryd.address()).with(User::new("bob", PASSWORD)).allocate();
}

#[test]
fn peers_and_lifetimes_change_for_what_comes_after() {
    let mut ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    client.allocate();
    client.permit("127.0.0.1:9".parse().unwrap()).unwrap();
    let log = ferryd.reload(|config| {
        config.set("peers.deny", "[\"127.0.0.1\"]").set("relay.lifetime-default", "\"5m\"");
    });
    assert!(log.contains("relay and peer policy"), "{log}");
    assert_eq!(client.permit("127.0.0.1:9".parse().unwrap()), Err(403));
    assert_eq!(client.refresh(1), Ok(300));
}

#[test]
fn a_certificate_that_was_renewed_is_served() {
    let mut ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let old = Certificate::of(&ferryd.config);
    let mut before = Client::tls(ferryd.address(), &old);
    before.allocate();
    ferryd.reload(|config| _ = Certificate::configured(config));
    let new = Certificate::of(&ferryd.config);
    Client::tls(ferryd.address(), &new).allocate();
    assert_eq!(before.refresh(600), Ok(600), "the connection under the old certificate goes on");
}

#[test]
fn a_wrong_configuration_changes_nothing_and_is_told_whole() {
    let mut ferryd = Ferryd::start(|_| {});
    let log = ferryd.reload(|config| {
        config.set("auth.user", one_user("bob")).text("relay.port-max", "many").set("relm", 1);
    });
    for words in ["relay.port-max", "relm: unknown key", "did you mean realm", "nothing of it has been applied"] {
        assert!(log.contains(words), "{words:?} is missing in:\n{log}");
    }
    Client::udp(ferryd.address()).allocate();
}

#[test]
fn what_needs_a_restart_is_named_and_kept() {
    let mut ferryd = Ferryd::start(|_| {});
    let address = ferryd.address();
    let log = ferryd.reload(|config| _ = config.listen(&[("127.0.0.1:9", "udp")]).set("workers", 1));
    assert!(log.contains("listener, workers") && log.contains("take effect at the next start"), "{log}");
    Client::udp(address).allocate();
}
