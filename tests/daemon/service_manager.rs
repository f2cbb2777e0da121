//! What systemd hears, and what it does.

use std::os::unix::net::UnixDatagram;

use crate::PATIENCE;
use crate::ferryd::Ferryd;

/// The next message to the service manager, as its lines.
fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).expect("the service manager is told something");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn systemd_is_told_of_the_start_of_every_ping_and_of_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ferryd = Ferryd::start_with(
        |_| {},
        |command| _ = command.arg("serve").env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000"),
    );
    let ready = heard(&socket);
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    assert!(ready.contains("STATUS=relaying, 2 workers"), "{ready}");
    for _ in 0..3 {
        assert_eq!(heard(&socket).trim(), "WATCHDOG=1");
    }
    ferryd.stop().expect_success();
    let mut last = heard(&socket);
    while last.trim() == "WATCHDOG=1" {
        last = heard(&socket);
    }
    assert!(last.lines().any(|line| line == "STOPPING=1"), "{last}");
}

#[test]
fn without_a_watchdog_nothing_is_pinged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ferryd = Ferryd::start_with(|_| {}, |command| _ = command.env("NOTIFY_SOCKET", &path));
    assert!(heard(&socket).contains("READY=1"));
    ferryd.stop().expect_success();
    assert!(heard(&socket).contains("STOPPING=1"));
}
