//! `listener` and `tls`: where clients reach the server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;

use ipnet::IpNet;

use super::certificate::{self, CertificateFacts};
use super::host::HostFacts;
use super::problem::{At, Problem, Report};
use super::relay;
use super::section::{Entry, Section};
use super::settings::CertificateFiles;
use crate::net::dtls;
use crate::worker::settings::{Accept, Listener, ListenerKind, PORT, TLS_PORT};

/// What the file calls a listener, before wildcards are spread over the families.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    host: Host,
    port: u16,
    kind: ListenerKind,
    proxies: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// `*`: every address of every family the host has.
    Any,
    Address(IpAddr),
}

/// The listeners there are when none is configured.
///
/// TCP answers plain STUN on 5349 too: libnice (GStreamer, Janus) knows no TLS, and speaks plain TURN over TCP where its
/// URL is a `turns:` one.
const DEFAULT: [Spec; 4] = [
    Spec { host: Host::Any, port: PORT, kind: ListenerKind::Udp(Accept::Both), proxies: Vec::new() },
    Spec { host: Host::Any, port: PORT, kind: ListenerKind::Stream(Accept::Both), proxies: Vec::new() },
    Spec { host: Host::Any, port: TLS_PORT, kind: ListenerKind::Stream(Accept::Both), proxies: Vec::new() },
    Spec { host: Host::Any, port: TLS_PORT, kind: ListenerKind::Udp(Accept::Tls), proxies: Vec::new() },
];

/// Reads `listener`. Without TLS what is left of it is plain.
pub(super) fn read(root: &mut Section, tls: bool, host: &HostFacts, report: &mut Report) -> Vec<Listener> {
    let at = root.at("listener");
    let before = report.problems.len();
    let specs = match root.sections("listener", report) {
        Some(sections) => sections.into_iter().filter_map(|section| read_one(section, host, report)).collect(),
        None => DEFAULT.map(|value| Entry { value, at: at.clone() }).to_vec(),
    };
    if specs.is_empty() && report.problems.len() == before {
        let remedy = format!("remove the key: the default listens on {PORT} and {TLS_PORT}");
        report.problem(at.problem("found no listener", "at least one listener", remedy));
    }
    let are_default = specs.iter().map(|spec| &spec.value).eq(&DEFAULT);
    let mut listeners: Vec<Listener> = Vec::new();
    for Entry { value: spec, at } in specs {
        if are_default && !tls && spec.port == TLS_PORT {
            continue;
        }
        let Some(kind) = without_tls(spec.kind, tls) else {
            // A build without DTLS leaves the default listener of it out.
            if !are_default {
                report.problem(why_not(spec.kind, tls, &at));
            }
            continue;
        };
        for listener in spread(Spec { kind, ..spec }, host) {
            if listeners.iter().any(|other| other.is_same_socket(&listener)) {
                let words = format!("{} is listened on already", listener.address);
                report.problem(at.problem(words, "each address, port and transport once", "remove one of the two"));
            } else {
                listeners.push(listener);
            }
        }
    }
    listeners
}

/// What a listener speaks when there may be no certificate; `None` is nothing.
fn without_tls(kind: ListenerKind, tls: bool) -> Option<ListenerKind> {
    match kind {
        ListenerKind::Stream(Accept::Both) if !tls => Some(ListenerKind::Stream(Accept::Plain)),
        ListenerKind::Stream(Accept::Tls) if !tls => None,
        ListenerKind::Udp(Accept::Both) if !(tls && dtls::IS_BUILT_IN) => Some(ListenerKind::Udp(Accept::Plain)),
        ListenerKind::Udp(Accept::Tls) if !(tls && dtls::IS_BUILT_IN) => None,
        ListenerKind::Udp(Accept::Both | Accept::Tls | Accept::Plain)
        | ListenerKind::Stream(Accept::Both | Accept::Tls | Accept::Plain) => Some(kind),
    }
}

/// Why a listener for TLS or DTLS alone has nothing to say.
fn why_not(kind: ListenerKind, tls: bool, at: &At) -> Problem {
    let name = match kind {
        ListenerKind::Udp(_) => "DTLS",
        ListenerKind::Stream(_) => "TLS",
    };
    if tls {
        let words = format!("answers {name} alone, which this ferryd was built without");
        return at.problem(words, "a ferryd with DTLS", "build it with the feature dtls, or remove the listener");
    }
    let remedy = "set tls.certificate and tls.key, or remove the listener";
    at.problem(format!("answers {name} alone, and there is no certificate"), "a certificate", remedy)
}

fn spread(spec: Spec, host: &HostFacts) -> Vec<Listener> {
    let addresses = match spec.host {
        Host::Address(address) => vec![address],
        Host::Any if host.has_ipv6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        Host::Any => vec![Ipv4Addr::UNSPECIFIED.into()],
    };
    let listener = |address| Listener {
        address: SocketAddr::new(address, spec.port),
        kind: spec.kind,
        proxies: spec.proxies.clone(),
    };
    addresses.into_iter().map(listener).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Udp,
    Tcp,
}

/// Words of `accept` that both transports have.
const BOTH: (&str, Accept) = ("both", Accept::Both);
const PLAIN: (&str, Accept) = ("plain", Accept::Plain);

fn read_one(mut section: Section, host: &HostFacts, report: &mut Report) -> Option<Entry<Spec>> {
    let at = section.at("address");
    let before = report.problems.len();
    let address = section.text("address", report);
    let wire = section.word("transport", &[("udp", Wire::Udp), ("tcp", Wire::Tcp)], report);
    let accept = match wire.as_ref().map(|wire| wire.value) {
        Some(Wire::Udp) => section.word("accept", &[BOTH, ("dtls", Accept::Tls), PLAIN], report),
        Some(Wire::Tcp) => section.word("accept", &[BOTH, ("tls", Accept::Tls), PLAIN], report),
        None => section.word("accept", &[BOTH, ("tls", Accept::Tls), ("dtls", Accept::Tls), PLAIN], report),
    };
    let transport_at = section.at("transport");
    let proxies = section.texts("proxy-protocol", report, relay::parse_range);
    section.finish(report);
    let complete = report.problems.len() == before;
    if address.is_none() && complete {
        report.problem(at.problem("is missing", "an address and port", "write address = \"*:3478\""));
    }
    if wire.is_none() && complete {
        let remedy = "write transport = \"udp\"";
        report.problem(transport_at.problem("is missing", "\"udp\" or \"tcp\"", remedy));
    }
    for range in proxies.iter().filter(|range| range.value.prefix_len() == 0) {
        report.warn(&range.at, "whoever reaches the listener may say that it is any client; name the proxies alone");
    }
    let (host_part, port) = parse_address(&address?, host, report)?;
    let accept = accept.map_or(Accept::Both, |accept| accept.value);
    let kind = match wire?.value {
        Wire::Udp => ListenerKind::Udp(accept),
        Wire::Tcp => ListenerKind::Stream(accept),
    };
    let proxies = proxies.into_iter().map(|range| range.value).collect();
    Some(Entry { value: Spec { host: host_part, port, kind, proxies }, at })
}

fn parse_address(entry: &Entry<String>, host: &HostFacts, report: &mut Report) -> Option<(Host, u16)> {
    let text = entry.value.as_str();
    if let Some(port) = text.strip_prefix("*:").and_then(|port| port.parse::<NonZero<u16>>().ok()) {
        return Some((Host::Any, port.get()));
    }
    // Port 0 would be any free one, which no client is told and which the peer policy cannot keep relays away from.
    if let Some(address) = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0) {
        if !host.can_bind(address.ip()) {
            report.problem(entry.at.problem(
                format!("found {}, which is no address of this host", address.ip()),
                "an address of an interface, or *",
                "`ip -brief address` lists them; behind 1:1 NAT listen on * and set relay.advertised-addresses",
            ));
        }
        return Some((Host::Address(address.ip()), address.port()));
    }
    let remedy = match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => format!("add the port: \"{address}:3478\""),
        Ok(IpAddr::V6(address)) => format!("add brackets and the port: \"[{address}]:3478\""),
        Err(_) if text == "*" => "add the port: \"*:3478\"".to_owned(),
        Err(_) => "write \"*:3478\", \"192.0.2.1:3478\" or \"[2001:db8::1]:3478\"; names are not looked up".to_owned(),
    };
    report.problem(entry.at.problem(format!("found \"{text}\""), "an address and a port from 1 to 65535", remedy));
    None
}

/// Reads `tls` and looks into the certificates.
pub(super) fn read_tls(mut tls: Section, report: &mut Report) -> Vec<(CertificateFiles, Option<CertificateFacts>)> {
    let mut read = Vec::new();
    read.extend(read_certificate(&mut tls, report));
    for mut section in tls.sections("certificates", report).unwrap_or_default() {
        let at = section.at("certificate");
        let before = report.problems.len();
        match read_certificate(&mut section, report) {
            Some(certificate) => read.push(certificate),
            None if report.problems.len() == before => {
                let remedy = "name both files, or remove the table";
                report.problem(at.problem("is missing", "certificate and key", remedy));
            }
            None => {}
        }
        section.finish(report);
    }
    tls.finish(report);
    read
}

fn read_certificate(
    section: &mut Section,
    report: &mut Report,
) -> Option<(CertificateFiles, Option<CertificateFacts>)> {
    let missing = |at: At, other: &str, report: &mut Report| {
        let words = format!("is missing, and {other} is set");
        report.problem(at.problem(words, "both certificate and key", "name both files"));
    };
    match (section.path("certificate", report), section.path("key", report)) {
        (Some(certificate), Some(key)) => {
            let files = CertificateFiles { certificate: certificate.value, key: key.value };
            let facts = certificate::examine(&files, &certificate.at, &key.at, report);
            Some((files, facts))
        }
        (Some(_), None) => {
            missing(section.at("key"), "certificate", report);
            None
        }
        (None, Some(_)) => {
            missing(section.at("certificate"), "key", report);
            None
        }
        (None, None) => None,
    }
}
