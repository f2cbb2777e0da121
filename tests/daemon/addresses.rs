//! Addresses that the host gets and loses while the daemon runs, in a network namespace of the test's own.

use std::process::Command;

use crate::client::Client;
use crate::ferryd::Ferryd;
use crate::wait_until;

/// Runs a test of this file again in a namespace with nothing but loopback; true inside of it.
fn in_a_namespace(test: &str) -> bool {
    const MARK: &str = "FERRY_TEST_APART";
    if std::env::var_os(MARK).is_some() {
        ip(&["link", "set", "lo", "up"]);
        return true;
    }
    if !Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "no network namespace can be had");
        eprintln!("NOT TESTED: no network namespace can be had");
        return false;
    }
    let status = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(MARK, "1")
        .status();
    assert!(status.unwrap().success());
    false
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success());
}

#[test]
fn an_address_that_the_host_gets_later_is_closed_to_peers() {
    if !in_a_namespace("addresses::an_address_that_the_host_gets_later_is_closed_to_peers") {
        return;
    }
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    client.allocate();
    let peer = "8.8.8.8:5000".parse().unwrap();
    assert_eq!(client.permit(peer), Ok(()));
    client.bind_channel(0x4001, peer).unwrap();
    ip(&["address", "add", "8.8.8.8/32", "dev", "lo"]);
    let service = std::net::UdpSocket::bind(peer).unwrap();
    service.set_nonblocking(true).unwrap();
    wait_until("the new address is closed", || client.permit(peer) == Err(403));
    assert_eq!(client.bind_channel(0x4000, "8.8.8.8:5001".parse().unwrap()), Err(403));
    // What is there already leads to nothing either; an answer to a later request says that it has been looked at.
    while service.recv(&mut [0; 16]).is_ok() {}
    client.send_by_channel(0x4001, b"in");
    client.send_by_indication(peer, b"in");
    client.bind();
    assert!(service.recv(&mut [0; 16]).is_err());
    ip(&["address", "del", "8.8.8.8/32", "dev", "lo"]);
    wait_until("it is open again", || client.permit(peer) == Ok(()));
}
