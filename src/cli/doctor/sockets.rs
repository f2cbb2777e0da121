//! Ports of listeners that something holds already, and what.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Finding;
use crate::config::Settings;
use crate::net::socket::{OpenError, Reason};
use crate::net::socket::{UdpOptions, open_tcp_listener, open_udp_listeners};
use crate::worker::settings::Listener;

const CHECK: &str = "listener";

/// Tries to listen, for a moment, where ferryd would.
pub(super) fn listeners(listeners: &[Listener]) -> Vec<Finding> {
    listeners.iter().map(|listener| examine(&listener.name(), listener.is_udp(), listener.address)).collect()
}

/// The same for the pages that operators ask for: the metrics and, for other hosts, the admin API.
pub(super) fn pages(settings: &Settings) -> Vec<Finding> {
    let metrics = settings.metrics.map(|address| ("metrics.address", address));
    let admin = settings.admin.remote.as_ref().map(|remote| ("admin.address", remote.address));
    [metrics, admin]
        .into_iter()
        .flatten()
        .map(|(key, address)| examine(&format!("{key} {address}"), false, address))
        .collect()
}

fn examine(name: &str, is_udp: bool, address: SocketAddr) -> Finding {
    let opened = if is_udp {
        open_udp_listeners(address, 1, &UdpOptions::LISTENER).map(drop)
    } else {
        open_tcp_listener(address, 1).map(drop)
    };
    match opened {
        Ok(()) => Finding::good(CHECK, format!("{name} is free")),
        Err(error) if error.reason == Reason::InUse => held(name, holder(is_udp, address)),
        Err(error) => refused(name, &error),
    }
}

fn held(name: &str, holder: Option<Holder>) -> Finding {
    match holder {
        Some(Holder { command, id }) if command == "ferryd" => {
            Finding::good(CHECK, format!("{name} is served by ferryd, process {id}"))
        }
        Some(Holder { command, id }) => {
            let remedy = match command.as_str() {
                "turnserver" => "`systemctl disable --now coturn`".to_owned(),
                _ => format!("stop it (`systemctl status {id}` names its unit), or listen elsewhere"),
            };
            Finding::bad(CHECK, format!("{name} is held by {command}, process {id}"), remedy)
        }
        None => {
            let remedy = "`ss -lntup` as root names it; stop it, or listen elsewhere";
            Finding::bad(CHECK, format!("{name} is held by a process that this user cannot see"), remedy)
        }
    }
}

fn refused(name: &str, error: &OpenError) -> Finding {
    if error.reason == Reason::Denied {
        let remedy = "the drop-in low-ports.conf of the unit, ferryd.socket, or run ferryd doctor as root";
        return Finding::warning(CHECK, format!("{name} may not be opened by this user: {error}"), remedy);
    }
    Finding::bad(CHECK, format!("{name} cannot be opened: {error}"), error.remedy())
}

/// Who has a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    command: String,
    id: u32,
}

/// The process that is bound to the address, or to a wildcard that covers it.
fn holder(is_udp: bool, address: SocketAddr) -> Option<Holder> {
    let tables = if is_udp { ["udp", "udp6"] } else { ["tcp", "tcp6"] };
    let tables = tables.map(|table| fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default());
    let inode = tables.iter().flat_map(|table| bound(table, is_udp)).find(|(at, _)| covers(*at, address))?.1;
    let link = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let descriptors = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        if descriptors.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.as_os_str() == link.as_str())
        {
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
            return Some(Holder { command, id });
        }
    }
    None
}

fn covers(bound: SocketAddr, address: SocketAddr) -> bool {
    bound.port() == address.port()
        && (bound.ip() == address.ip() || bound.ip().is_unspecified() || address.ip().is_unspecified())
}

/// State 0A of TCP is LISTEN; a UDP socket that is bound and unconnected has 07.
const LISTEN: &str = "0A";

/// Addresses and inodes of a table of /proc/net: all of UDP, those that listen of TCP.
pub(super) fn bound(table: &str, is_udp: bool) -> Vec<(SocketAddr, u64)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let address = parse_address(words.nth(1)?)?;
        let state = words.nth(1)?;
        let inode = words.nth(5)?.parse().ok()?;
        (is_udp || state == LISTEN).then_some((address, inode))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:0D96`: the address as words in the byte order of the host, the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |index: usize| {
        let word = u32::from_str_radix(address.get(index * 8..index * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for index in 0..4 {
                bytes[index * 4..index * 4 + 4].copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::super::Verdict;
    use super::*;

    #[test]
    fn tables_of_the_kernel_are_read() {
        let udp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                   7: 0100007F:0D96 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\nrubbish\n";
        assert_eq!(bound(udp, true), [("127.0.0.1:3478".parse().unwrap(), 4711)]);
        let tcp6 = "  sl\n 0: 00000000000000000000000001000000:01BB 0:0 0A 0:0 0:0 0 0 0 42 1\n\
                    1: 00000000000000000000000001000000:01BC 0:0 01 0:0 0:0 0 0 0 43 1\n";
        assert_eq!(bound(tcp6, false), [("[::1]:443".parse().unwrap(), 42)]);
    }

    #[test]
    fn the_holder_of_a_port_is_found() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        for (is_udp, address) in [(true, udp.local_addr().unwrap()), (false, tcp.local_addr().unwrap())] {
            let own = holder(is_udp, address).unwrap();
            assert_eq!(own.id, std::process::id());
        }
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(covers(at("0.0.0.0:80"), at("127.0.0.1:80")) && covers(at("127.0.0.1:80"), at("0.0.0.0:80")));
        assert!(!covers(at("127.0.0.1:80"), at("127.0.0.2:80")) && !covers(at("0.0.0.0:80"), at("127.0.0.1:81")));
    }

    #[test]
    fn ferryd_itself_is_no_obstacle() {
        let by = |command: &str| held("udp x", Some(Holder { command: command.to_owned(), id: 7 }));
        assert_eq!(by("ferryd").verdict, Verdict::Good);
        assert_eq!(by("turnserver").remedy.unwrap(), "`systemctl disable --now coturn`");
        assert_eq!(by("named").verdict, Verdict::Bad);
        assert_eq!(held("udp x", None).verdict, Verdict::Bad);
    }
}
