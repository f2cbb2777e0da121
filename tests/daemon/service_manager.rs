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
