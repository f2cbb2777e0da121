//! Each failure in words an operator can act on.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::url::Carrier;

/// The step that failed, what happened, and what to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) step: &'static str,
    pub(super) words: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.words)
    }
}

impl Failure {
    pub(super) fn new(step: &'static str, words: impl Into<String>) -> Self {
        Self { step, words: words.into() }
    }

    pub(super) fn name(host: &str, error: &io::Error) -> Self {
        Self::new("name", format!("{host} cannot be resolved ({error}); check the name and the DNS of this machine"))
    }

    pub(super) fn no_credentials() -> Self {
        let words = "no username and password are given; pass -u and -p, `ferryd credential` on the server mints both";
        Self::new("allocation", words)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "std's enum grows; the rare ones speak for themselves")]
    pub(super) fn connection(address: SocketAddr, error: &io::Error) -> Self {
        let words = match error.kind() {
            io::ErrorKind::ConnectionRefused => format!(
                "{address} refuses tcp; check that the server runs, listens on this port for tcp, and that no firewall \
                 rejects it"
            ),
            io::ErrorKind::TimedOut => format!(
                "nothing answers tcp on {address}; open the port in the firewall and security group, and check the \
                 address"
            ),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                format!("there is no route to {address}; check the address, and IPv6 on this machine if it is one")
            }
            _ => format!("{address}: {error}"),
        };
        Self::new("connection", words)
    }

    /// A request got no answer at all.
    pub(super) fn silence(step: &'static str, address: SocketAddr, carrier: Carrier) -> Self {
        let words = match carrier {
            Carrier::Udp => format!(
                "nothing answers udp on {address}; open the port for udp in the firewall and security group, and check \
                 the address"
            ),
            Carrier::Tcp => format!("{address} takes tcp but answers no STUN; another service may own the port"),
            Carrier::Dtls => format!("{address} takes DTLS but answers no STUN; another service may own the port"),
            Carrier::Tls => format!("{address} takes TLS but answers no STUN; another service may own the port"),
        };
        Self::new(step, words)
    }

    pub(super) fn udp_refused(step: &'static str, address: SocketAddr) -> Self {
        Self::new(step, format!("{address} is closed for udp; check that the server runs and listens on this port"))
    }

    pub(super) fn closed(step: &'static str, address: SocketAddr, why: &str) -> Self {
        let words = format!(
            "{address} closed the connection ({why}); the port may speak another protocol, such as TLS alone, or want the \
             PROXY protocol from here, or the server limits connections"
        );
        Self::new(step, words)
    }

    /// The server rejected a request of the step, and sends clients to the alternate server if it names one.
    pub(super) fn rejected(step: &'static str, code: u16, reason: &str, alternate: Option<SocketAddr>) -> Self {
        if let (300, Some(other)) = (code, alternate) {
            let words = format!("the server answers 300 {reason}: it sends clients to {other}; probe that one");
            return Self::new(step, words);
        }
        let meaning = match (code, step) {
            (300, _) => "the server sends clients to another one, and does not say which; look at its redirect",
            (400, _) => "the server finds the request malformed; another version of the protocol may be spoken there",
            (401, _) => {
                "the username or password is wrong, or the time-limited user has expired; compare the secrets, and the \
                 clocks of both machines"
            }
            (403, "permission" | "relay" | "channel") => {
                "the server's policy refuses its own relayed address as a peer; calls between two of its clients fail \
                 as well"
            }
            (403, _) => "the server forbids it to this user or this address",
            (420, _) => "the server does not know an attribute that every client sends; it may be a STUN server alone",
            (437, _) => "the server has an allocation for this address already; try again in ten minutes",
            (438, _) => {
                "the server does not accept the nonce it has just sent; nodes behind one name need one nonce key"
            }
            (440, _) => "the server relays no IPv4; give it an IPv4 relay address",
            (441, _) => "the server takes the user for another one than before; probe again",
            (442, _) => "the server does not relay UDP",
            (486, "second allocation") => "the user may have one allocation only, and the probe needs two",
            (486, _) => "the user has reached the quota of allocations; end some, or raise the limit",
            (500, _) => "the server has an error of its own; look into its log",
            (508, _) => "the server drains, or has no ports or sockets left; look at its status, port range and limits",
            (_, _) => "look into the log of the server",
        };
        Self::new(step, format!("the server answers {code} {reason}: {meaning}"))
    }
}
