//! Why a socket could not be opened, in words that an operator can act on.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::address::Family;

/// What a socket was to be opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    UdpListener,
    Relay,
    TcpListener,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UdpListener => "UDP listener",
            Self::Relay => "relay socket",
            Self::TcpListener => "TCP listener",
        })
    }
}

/// Why a socket could not be opened, as far as someone can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Something else holds the port, on this address or on a wildcard that covers it.
    InUse,
    /// The process may not bind it.
    Denied,
    /// No interface has the address.
    NotOwnAddress,
    /// The process or the system has no file descriptors left.
    NoDescriptors,
    /// The kernel does not speak this address family.
    NoFamily,
    /// The kernel refused this socket option.
    Option(&'static str),
    Other,
}

/// A socket that could not be opened: what for, where and why.
#[derive(Debug)]
pub struct OpenError {
    pub purpose: Purpose,
    pub address: SocketAddr,
    pub reason: Reason,
    source: io::Error,
}

impl OpenError {
    pub(in crate::net) fn new(purpose: Purpose, address: SocketAddr, source: io::Error) -> Self {
        let reason = match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Reason::InUse,
            Some(libc::EACCES | libc::EPERM) => Reason::Denied,
            Some(libc::EADDRNOTAVAIL) => Reason::NotOwnAddress,
            Some(libc::EMFILE | libc::ENFILE) => Reason::NoDescriptors,
            Some(libc::EAFNOSUPPORT) => Reason::NoFamily,
            Some(_) | None => Reason::Other,
        };
        Self { purpose, address, reason, source }
    }

    pub(in crate::net) fn option(purpose: Purpose, address: SocketAddr, name: &'static str, source: io::Error) -> Self {
        Self { purpose, address, reason: Reason::Option(name), source }
    }
}

impl OpenError {
    /// What would do instead, and how to get there: `expected ...; ...`, to stand behind the error.
    pub fn remedy(&self) -> String {
        let port = self.address.port();
        let which = match self.purpose {
            Purpose::UdpListener | Purpose::Relay => "u",
            Purpose::TcpListener => "t",
        };
        match self.reason {
            Reason::InUse => format!(
                "expected a free port; stop what has it (`ss -{which}lnp 'sport = :{port}'` shows it), or listen on \
                 another port"
            ),
            Reason::Denied if port < 1024 => "expected the right to bind ports below 1024; install the drop-in \
                 low-ports.conf of the unit, or listen on a higher port"
                .to_owned(),
            Reason::Denied => "expected the right to open it; look for what confines ferryd (seccomp, AppArmor, \
                 SELinux)"
                .to_owned(),
            Reason::NotOwnAddress => "expected an address of an interface; `ip -brief address` lists them".to_owned(),
            Reason::NoDescriptors => "expected a free file descriptor; raise LimitNOFILE of the unit".to_owned(),
            Reason::NoFamily => {
                "expected an address of a family of this host; name another address, or turn the family on".to_owned()
            }
            Reason::Option(_) => "expected a kernel that knows it; run ferryd on a current Linux".to_owned(),
            Reason::Other => "expected a socket; look into the log of the kernel".to_owned(),
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open {} on {}: ", self.purpose, self.address)?;
        match (self.reason, self.purpose) {
            (Reason::InUse, Purpose::UdpListener | Purpose::TcpListener) => {
                f.write_str("the port is in use (by another ferryd?)")
            }
            (Reason::InUse, Purpose::Relay) => f.write_str("the port is in use"),
            (Reason::Denied, _) if self.address.port() < 1024 => {
                f.write_str("permission denied: ports below 1024 need CAP_NET_BIND_SERVICE")
            }
            (Reason::Denied, _) => f.write_str("permission denied"),
            (Reason::NotOwnAddress, _) => f.write_str("the address is not one of this host's"),
            (Reason::NoDescriptors, _) => f.write_str("no file descriptors are left (raise LimitNOFILE)"),
            (Reason::NoFamily, _) => match Family::of(self.address.ip()) {
                Family::V4 => f.write_str("this host has no IPv4"),
                Family::V6 => f.write_str("this host has no IPv6"),
            },
            (Reason::Option(name), _) => write!(f, "the kernel refused {name}: {}", self.source),
            (Reason::Other, _) => fmt::Display::fmt(&self.source, f),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::socket::{UdpOptions, open_relay};

    #[test]
    fn errors_say_what_an_operator_can_do() {
        let foreign = open_relay("203.0.113.4:50012".parse().unwrap(), &UdpOptions::RELAY).unwrap_err();
        assert_eq!(foreign.reason, Reason::NotOwnAddress);
        let expected = "cannot open relay socket on 203.0.113.4:50012: the address is not one of this host's";
        assert_eq!(foreign.to_string(), expected);
        let text = |errno, port| {
            let address = SocketAddr::new("::".parse().unwrap(), port);
            let error = OpenError::new(Purpose::TcpListener, address, io::Error::from_raw_os_error(errno));
            error.to_string().strip_prefix(&format!("cannot open TCP listener on {address}: ")).unwrap().to_owned()
        };
        let low = "permission denied: ports below 1024 need CAP_NET_BIND_SERVICE";
        assert_eq!(text(libc::EACCES, 443), low);
        assert_eq!(text(libc::EACCES, 3478), "permission denied");
        assert_eq!(text(libc::EMFILE, 3478), "no file descriptors are left (raise LimitNOFILE)");
        assert_eq!(text(libc::EAFNOSUPPORT, 3478), "this host has no IPv6");
        assert!(text(libc::EINVAL, 3478).starts_with("Invalid argument"));
    }

    #[test]
    fn every_reason_has_a_remedy() {
        let remedy = |purpose, errno, port| {
            OpenError::new(purpose, SocketAddr::new("::".parse().unwrap(), port), io::Error::from_raw_os_error(errno))
                .remedy()
        };
        let in_use = remedy(Purpose::UdpListener, libc::EADDRINUSE, 3478);
        assert!(
            in_use.starts_with("expected a free port; ") && in_use.contains("ss -ulnp 'sport = :3478'"),
            "{in_use}"
        );
        assert!(remedy(Purpose::TcpListener, libc::EADDRINUSE, 80).contains("ss -tlnp 'sport = :80'"));
        assert!(remedy(Purpose::TcpListener, libc::EACCES, 443).contains("low-ports.conf"));
        for errno in [libc::EACCES, libc::EADDRNOTAVAIL, libc::EMFILE, libc::EAFNOSUPPORT, libc::EINVAL] {
            let words = remedy(Purpose::UdpListener, errno, 3478);
            assert!(words.starts_with("expected ") && words.contains("; "), "{words}");
        }
    }
}
