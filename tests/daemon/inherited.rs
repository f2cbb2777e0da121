//! Sockets that a service manager has opened (`LISTEN_FDS`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use socket2::{Domain, Socket, Type};

use crate::client::Client;
use crate::ferryd::{PASSWORD, Process};
use crate::place;

/// Where descriptors wait for their place behind standard error.
const ASIDE: RawFd = 500;

/// Starts ferryd as systemd would, with sockets from descriptor 3 on.
fn activated(file: &Path, sockets: &[OwnedFd], names: &str) -> Process {
    // `$$` is the id that exec keeps.
    let script = "LISTEN_PID=$$ exec \"$0\" --config \"$1\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_ferryd"), file.to_str().unwrap()]).env_clear();
    command.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names);
    let descriptors: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let place = move || {
        for (index, descriptor) in descriptors.iter().enumerate() {
            let index = index as RawFd;
            // SAFETY: fcntl and dup2 take no pointers and may be called between fork and exec; the descriptors are open.
            let aside = unsafe { libc::fcntl(*descriptor, libc::F_DUPFD, ASIDE + index) };
            if aside < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        for index in 0..descriptors.len() as RawFd {
            // SAFETY: as above; what was at these numbers belongs to the process that is about to be replaced.
            if unsafe { libc::dup2(ASIDE + index, 3 + index) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls and allocates nothing.
    unsafe { command.pre_exec(place) };
    Process::spawn(&mut command)
}

struct Place {
    directory: tempfile::TempDir,
    address: SocketAddr,
}

impl Place {
    fn new() -> Self {
        let address = (place::own_address(), place::free_port()).into();
        Self { directory: tempfile::tempdir().unwrap(), address }
    }

    fn file(&self, workers: usize) -> std::path::PathBuf {
        let (file, address) = (self.directory.path().join("ferryd.toml"), self.address);
        let text = format!(
            "workers = {workers}\nrelay.addresses = [\"{}\"]\n\
             listener = [{{ address = \"{address}\", transport = \"udp\" }}, {{ address = \"{address}\", transport = \"tcp\" }}]\n\
             auth.user = [{{ name = \"alice\", password = \"{PASSWORD}\" }}]\n",
            address.ip()
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    fn udp(&self, reuse_port: bool) -> OwnedFd {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(reuse_port).unwrap();
        socket.bind(&self.address.into()).unwrap();
        socket.into()
    }

    fn tcp(&self) -> OwnedFd {
        TcpListener::bind(self.address).unwrap().into()
    }
}

#[test]
fn sockets_that_were_passed_on_are_served() {
    // One for each worker, as with ReusePort=yes, and one for two, which the daemon completes.
    for count in [2, 1] {
        let place = Place::new();
        let udp: Vec<OwnedFd> = (0..count).map(|_| place.udp(count > 1)).collect();
        let names = vec!["ferryd-udp"; udp.len()].join(":") + ":ferryd-tcp";
        let sockets: Vec<OwnedFd> = udp.into_iter().chain([place.tcp()]).collect();
        let mut ferryd = activated(&place.file(2), &sockets, &names);
        assert!(ferryd.serves(), "{}", ferryd.stderr.text());
        for _ in 0..8 {
            Client::udp(place.address).allocate();
        }
        Client::tcp(place.address).allocate();
        // What systemd holds open is there after the daemon, and nobody else's.
        ferryd.stop().expect_success();
        assert!(UdpSocket::bind(place.address).is_err());
        drop(sockets);
        UdpSocket::bind(place.address).unwrap();
    }
}

#[test]
fn a_socket_that_is_no_listener_is_named() {
    let place = Place::new();
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = other.local_addr().unwrap();
    let ended = activated(&place.file(1), &[place.udp(false), other.into()], "ferryd-udp:ferryd-web").end();
    let words = format!("no listener has the address and transport of \"ferryd-web\" (tcp {address})");
    ended.expect_failure(1, &["sockets of the service manager: ", &words]);
}

#[test]
fn sockets_that_cannot_be_served_are_refused_with_the_remedy() {
    let place = Place::new();
    let refused = |sockets: Vec<OwnedFd>, names: &str, words: &str| {
        activated(&place.file(1), &sockets, names).end().expect_failure(1, &[words]);
    };
    refused(vec![place.udp(true), place.udp(true)], "a:b", "set workers = 2");
    refused(vec![std::fs::File::open("/dev/null").unwrap().into()], "null", "\"null\" is neither a UDP socket");
    let unlistening = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    unlistening.bind(&place.address.into()).unwrap();
    refused(vec![unlistening.into()], "tcp", "\"tcp\" is neither");
    refused(vec![place.udp(false)], "a:b", "LISTEN_FDS cannot be used");
    if let Ok(both) = Socket::new(Domain::IPV6, Type::DGRAM, None) {
        both.set_only_v6(false).unwrap();
        let port = place.address.port();
        if both.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into()).is_ok() {
            refused(vec![both.into()], "dual", "BindIPv6Only=ipv6-only");
        }
    }
}
