//! `redirect`: the servers that clients are sent to.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use rustls_pki_types::DnsName;

use super::problem::Report;
use super::section::{Entry, Section};
use crate::turn::Redirect;
use crate::turn::redirect::Alternates;
use crate::worker::settings::{Listener, ListenerKind};

/// What tells this server from another one.
pub(super) struct Own<'a> {
    pub(super) addresses: &'a [IpAddr],
    pub(super) listeners: &'a [Listener],
}

/// Reads where clients are sent; `None` when nothing is named.
pub(super) fn read(mut section: Section, own: &Own<'_>, report: &mut Report) -> Option<Redirect> {
    let every = read_alternates(&mut section, report);
    let domain = read_domain(&mut section, report);
    let mut of = |transport, is_asked: fn(&ListenerKind) -> bool, report: &mut Report| {
        let mut section = section.section(transport, report);
        let mut named = read_alternates(&mut section, report);
        section.finish(report);
        named.v4 = named.v4.or_else(|| every.v4.clone());
        named.v6 = named.v6.or_else(|| every.v6.clone());
        named.settle(own, is_asked, report)
    };
    let udp = of("udp", |kind| kind.is_udp(), report);
    let tcp = of("tcp", |kind| !kind.is_udp(), report);
    let tls = of("tls", |kind| !kind.is_udp(), report);
    let dtls = of("dtls", |kind| kind.is_udp(), report);
    section.finish(report);
    let nowhere = Alternates::default();
    if [udp, tcp, tls, dtls] == [nowhere; 4] {
        if let Some(domain) = domain {
            let words = format!("names \"{}\", and no server is named", domain.value);
            let remedy = "write the server's address and port, or remove the key";
            report.problem(domain.at.problem(words, "a server in redirect.v4 or redirect.v6", remedy));
        }
        return None;
    }
    Some(Redirect { udp, tcp, tls, dtls, domain: domain.map(|entry| entry.value) })
}

/// The addresses of one table, not yet judged.
struct Named {
    v4: Option<Entry<SocketAddrV4>>,
    v6: Option<Entry<SocketAddrV6>>,
}

impl Named {
    /// Refuses this server itself: clients that it sends to itself give up (RFC 8489 section 10).
    fn settle(self, own: &Own<'_>, is_asked: fn(&ListenerKind) -> bool, report: &mut Report) -> Alternates {
        let v4 = self.v4.as_ref().map(|entry| Entry { value: SocketAddr::V4(entry.value), at: entry.at.clone() });
        let v6 = self.v6.as_ref().map(|entry| Entry { value: SocketAddr::V6(entry.value), at: entry.at.clone() });
        for Entry { value: address, at } in [v4, v6].into_iter().flatten() {
            let mut listeners = own.listeners.iter().filter(|listener| is_asked(&listener.kind));
            let problem = at.problem(
                format!("{address} is this server"),
                "another server",
                "name the other server, or remove the key",
            );
            if own.addresses.contains(&address.ip())
                && listeners.any(|listener| listener.address.port() == address.port())
                && !report.problems.contains(&problem)
            {
                report.problem(problem);
            }
        }
        Alternates { v4: self.v4.map(|entry| entry.value), v6: self.v6.map(|entry| entry.value) }
    }
}

fn read_alternates(section: &mut Section, report: &mut Report) -> Named {
    let v4 = section.text("v4", report).and_then(|entry| parse(entry, "\"203.0.113.7:3478\"", report));
    let v6 = section.text("v6", report).and_then(|entry| parse(entry, "\"[2001:db8::7]:3478\"", report));
    Named { v4, v6 }
}

fn parse<T: std::str::FromStr + Copy + Into<SocketAddr>>(
    entry: Entry<String>,
    example: &str,
    report: &mut Report,
) -> Option<Entry<T>> {
    let told = entry.value.parse::<T>().ok().filter(|address| {
        let address: SocketAddr = (*address).into();
        address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
    });
    match told {
        Some(value) => {
            let address: SocketAddr = value.into();
            if address.ip().is_loopback() {
                report.warn(&entry.at, format_args!("{address} is a loopback address, which clients do not follow"));
            }
            Some(Entry { value, at: entry.at })
        }
        None => {
            let remedy = format!("write {example}; clients are told it, and follow no name");
            report.problem(entry.at.problem(
                format!("found \"{}\"", entry.value),
                format!("the address and port of a server, such as {example}"),
                remedy,
            ));
            None
        }
    }
}

/// RFC 8489 section 14.16: "a valid DNS name (including A-labels) of 255 or fewer ASCII characters".
fn read_domain(section: &mut Section, report: &mut Report) -> Option<Entry<String>> {
    let domain = section.text("domain", report)?;
    if DnsName::try_from(domain.value.as_str()).is_ok() {
        return Some(domain);
    }
    report.problem(domain.at.problem(
        format!("found \"{}\"", domain.value),
        "a DNS name of at most 255 ASCII characters",
        "write a name in the other server's certificate, such as \"turn2.example.org\"",
    ));
    None
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load_text, problems};

    #[test]
    fn a_transport_takes_what_it_does_not_name_from_the_table_above() {
        let text = "[redirect]\nv4 = \"203.0.113.7:3478\"\nv6 = \"[2001:db8::7]:3478\"\ndomain = \"b.example.org\"\n\
                    [redirect.tls]\nv4 = \"203.0.113.7:5349\"\n";
        let redirect = load_text(text).unwrap().settings.turn.redirect.unwrap();
        assert_eq!(redirect.udp, redirect.tcp);
        assert_eq!(redirect.udp.v4, Some("203.0.113.7:3478".parse().unwrap()));
        assert_eq!(redirect.tls.v4, Some("203.0.113.7:5349".parse().unwrap()));
        assert_eq!(redirect.tls.v6, Some("[2001:db8::7]:3478".parse().unwrap()));
        assert_eq!(redirect.domain.as_deref(), Some("b.example.org"));
        assert_eq!(load_text("").unwrap().settings.turn.redirect, None);
    }

    #[test]
    fn what_clients_cannot_follow_is_told() {
        let one = |text: &str, words: &str| {
            let found = problems(&format!("[redirect]\n{text}")).join("\n");
            assert!(found.contains(words), "{found}");
        };
        one(
            "v4 = \"turn.example.org:3478\"",
            "redirect.v4: found \"turn.example.org:3478\", expected the address and port",
        );
        one("v4 = \"203.0.113.7\"", "write \"203.0.113.7:3478\"");
        one("v4 = \"203.0.113.7:0\"", "expected the address and port of a server");
        one("v4 = \"0.0.0.0:3478\"", "expected the address and port of a server");
        one("v4 = \"[2001:db8::7]:3478\"", "such as \"203.0.113.7:3478\"");
        one("v6 = \"203.0.113.7:3478\"", "such as \"[2001:db8::7]:3478\"");
        one("domain = \"b.example.org\"", "names \"b.example.org\", and no server is named");
        one("v4 = \"203.0.113.7:3478\"\ndomain = \"b example\"", "expected a DNS name of at most 255 ASCII characters");
        one("v4 = \"203.0.113.7:3478\"\nsctp = 1", "redirect.sctp: unknown key");
        let loopback = load_text("[redirect]\nv4 = \"127.0.0.1:3479\"").unwrap().warnings;
        assert!(loopback[0].contains("which clients do not follow"), "{loopback:?}");
    }

    #[test]
    fn this_server_is_no_other_server() {
        let found = problems("[redirect]\nv4 = \"10.0.0.5:3478\"");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("redirect.v4: 10.0.0.5:3478 is this server"), "{found:?}");
        assert!(load_text("[redirect]\nv4 = \"10.0.0.5:3479\"").is_ok(), "another server on this host");
    }
}
