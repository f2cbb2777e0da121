//! A daemon whose descriptors clients use up.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;

use crate::client::Client;
use crate::ferryd::Ferryd;
use crate::metrics::{get, value};
use crate::{place, tcp_allocations as tcp, wait_until};

/// More than the daemon has at start, with two workers.
const DESCRIPTORS: libc::rlim_t = 160;

/// A ferryd with so few descriptors that serves the page of metrics there.
fn start(metrics: SocketAddr) -> Ferryd {
    let limit = || {
        let limits = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: DESCRIPTORS };
        // SAFETY: setrlimit reads a value that outlives the call, and may be called between fork and exec.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    Ferryd::start_with(
        |config| _ = config.text("metrics.address", metrics).set("extensions.tcp-allocations", true),
        |command| {
            // SAFETY: the closure makes one system call and allocates nothing.
            unsafe { command.pre_exec(limit) };
        },
    )
}

#[test]
fn clients_do_not_get_the_last_descriptors() {
    let metrics = SocketAddr::from(([127, 0, 0, 1], place::free_port()));
    let ferryd = start(metrics);
    let mut live = Client::udp(ferryd.address());
    let peer = UdpSocket::bind((ferryd.config.ip, 0)).unwrap();
    live.allocate();
    live.permit(peer.local_addr().unwrap()).unwrap();
    let mut control = Client::tcp(ferryd.address());
    let relayed = tcp::allocate(&mut control);
    let listener = TcpListener::bind((ferryd.config.ip, 0)).unwrap();
    control.permit(listener.local_addr().unwrap()).unwrap();
    let mut clients = Vec::new();
    loop {
        let mut client = Client::udp(ferryd.address());
        match client.try_allocate() {
            Ok(_) => clients.push(client),
            Err(code) => break assert_eq!(code, 508),
        }
        assert!(clients.len() < DESCRIPTORS as usize);
    }
    assert!(clients.len() > 10, "{}", clients.len());
    // Nor do connections with peers get them, whoever begins those, nor streams.
    assert_eq!(tcp::connect(&mut control, listener.local_addr().unwrap()), Err(447));
    assert!(tcp::rest(&tcp::patient(TcpStream::connect(relayed).unwrap())).is_empty());
    let _streams: Vec<_> = (0..DESCRIPTORS).map(|_| TcpStream::connect(ferryd.address()).unwrap()).collect();
    wait_until("a connection to be refused", || value(&get(metrics, "/metrics"), "ferryd_accept_failures_total") > 0.0);
    assert_eq!(live.refresh(600), Ok(600));
    live.send_by_indication(peer.local_addr().unwrap(), b"on");
    peer.recv(&mut [0; 16]).unwrap();
    let before = clients.len();
    assert_eq!(clients[0].refresh(0), Ok(0));
    clients.remove(0);
    clients.push(Client::udp(ferryd.address()));
    assert_eq!(clients.len(), before);
    assert!(clients[before - 1].try_allocate().is_ok(), "what one gives back another gets");
}

#[test]
fn who_holds_connections_to_the_metrics_page_takes_few_descriptors() {
    let metrics = SocketAddr::from(([127, 0, 0, 1], place::free_port()));
    let ferryd = start(metrics);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", ferryd.id())).unwrap().count();
    // With some that the start has left open for a moment.
    let before = descriptors();
    let idle: Vec<_> = (0..DESCRIPTORS).map(|_| TcpStream::connect(metrics).unwrap()).collect();
    wait_until("connections to be taken", || descriptors() >= before + 16);
    Client::udp(ferryd.address()).allocate();
    ferryd.verb(&["status"]).expect_success();
    assert!(descriptors() < before + 40, "{} after {before}", descriptors());
    drop(idle);
    assert!(get(metrics, "/ready").ends_with("ready\n"));
}
