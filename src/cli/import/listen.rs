//! Listeners, certificate and relay addresses: where coturn is reached, and where it relays.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::draft::{Certificate, Draft, Listener, NatBehavior};
use super::lines::Line;
use super::report::{Report, Verdict};
use super::translate::Options;

/// coturn's `--listening-port`, and its `--tls-listening-port`.
const PORT: u64 = 3478;
const TLS_PORT: u64 = 5349;

/// Translates everything that says where.
pub(super) fn translate(options: &mut Options, directory: Option<&Path>, draft: &mut Draft, report: &mut Report) {
    let listening = addresses(options.all("listening-ip"), report);
    let relaying = addresses(options.all("relay-ip"), report);
    translate_certificate(options, directory, draft, report);
    translate_listeners(options, &listening, draft, report);
    // Without relay addresses coturn relays on those it listens on.
    let relaying = if relaying.is_empty() { &listening } else { &relaying };
    draft.relay_addresses = relaying.iter().copied().filter(|ip| !ip.is_unspecified()).collect();
    translate_external(options, draft, report);
    translate_nat_behavior(options, &listening, draft, report);
    translate_proxy(options, report);
}

fn addresses(lines: Vec<Line>, report: &mut Report) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for line in lines {
        match line.value.parse() {
            Ok(ip) if found.contains(&ip) => {}
            Ok(ip) => found.push(ip),
            Err(_) => report.add(Verdict::Decide, &line, "is no IP address; names are not looked up"),
        }
    }
    found
}

/// Addresses of files stand for themselves, or below the directory of the configuration.
fn absolute(path: &str, directory: Option<&Path>) -> String {
    let joined = directory.map_or_else(|| Path::new(path).to_owned(), |directory| directory.join(path));
    joined.display().to_string()
}

fn translate_certificate(options: &mut Options, directory: Option<&Path>, draft: &mut Draft, report: &mut Report) {
    let (cert, key) = (options.last("cert"), options.last("pkey"));
    let passphrase = options.last("pkey-pwd");
    let no_tls = options.truth("no-tls", report);
    let (Some(cert), Some(key)) = (&cert, &key) else {
        if let Some(alone) = cert.as_ref().or(key.as_ref()) {
            report.add(Verdict::Decide, alone, "cert and pkey belong together: without the other there is no TLS");
        }
        return;
    };
    let mut off = no_tls.then_some("coturn's no-tls was set.");
    if let Some(line) = &passphrase {
        off = Some("The key has a passphrase: `openssl pkey -in KEY -out NEW-KEY` takes it off.");
        let words = "keys are read without a passphrase; TLS is off until one without it is named in tls.key";
        report.add(Verdict::Decide, line, words);
    }
    let (certificate, key) = (absolute(&cert.value, directory), absolute(&key.value, directory));
    draft.certificate = Some(Certificate { certificate, key, off });
}

/// What clients may use to reach a port.
#[derive(Clone, Copy)]
struct Ways {
    udp: bool,
    tcp: bool,
    tls: bool,
    dtls: bool,
}

impl Ways {
    /// How a stream listener answers: `None` is not at all.
    fn accept(self, has_tls: bool) -> Option<Option<&'static str>> {
        match (self.tcp, self.tls) {
            // Without a certificate "both" is plain alone, and TLS begins with the certificate.
            (true, true) => Some(None),
            (true, false) => Some(Some("plain")),
            (false, true) if has_tls => Some(Some("tls")),
            (false, true | false) => None,
        }
    }

    /// How a UDP listener answers, on the port for plain TURN and on that for DTLS: `None` is not at all.
    ///
    /// coturn tells the two apart on both ports, and has datagrams on the second for DTLS alone.
    fn accept_datagrams(self, on_dtls_port: bool) -> Option<Option<&'static str>> {
        match (self.udp, self.dtls) {
            (true, true) => Some(None),
            (true, false) if !on_dtls_port => Some(Some("plain")),
            (false, true) if on_dtls_port => Some(Some("dtls")),
            (true | false, false) | (false, true) => None,
        }
    }
}

fn translate_listeners(options: &mut Options, listening: &[IpAddr], draft: &mut Draft, report: &mut Report) {
    let port = options.number("listening-port", 0..=65535, report).filter(|port| *port != 0).unwrap_or(PORT);
    let tls_port = options.number("tls-listening-port", 0..=65535, report).filter(|port| *port != 0);
    let tls_port = tls_port.unwrap_or(TLS_PORT);
    let ways = Ways {
        udp: !options.truth("no-udp", report),
        tcp: !options.truth("no-tcp", report),
        tls: !options.truth("no-tls", report),
        dtls: !options.truth("no-dtls", report),
    };
    let has_tls = draft.certificate.as_ref().is_some_and(|certificate| certificate.off.is_none());
    let mut hosts: Vec<String> = listening.iter().map(|ip| SocketAddr::new(*ip, 0).to_string()).collect();
    if hosts.is_empty() {
        hosts.push("*:0".to_owned());
    }
    for host in hosts.iter().map(|host| host.trim_end_matches('0')) {
        let at = |port: u64| format!("{host}{port}");
        add(draft, at(port), ways.accept_datagrams(false), ways.accept(has_tls));
        if has_tls && tls_port != port {
            add(draft, at(tls_port), ways.accept_datagrams(true), ways.accept(true));
        }
    }
    for line in options.all("aux-server") {
        match line.value.parse::<SocketAddr>() {
            Ok(address) => add(draft, address.to_string(), ways.accept_datagrams(false), ways.accept(has_tls)),
            Err(_) => report.add(Verdict::Decide, &line, "is no address with a port; names are not looked up"),
        }
    }
    if draft.listeners.is_empty() {
        let words = "nothing is left to listen on; ferryd's default listeners stand in";
        report.add_absent(Verdict::Decide, "no-udp, no-tcp", words);
    }
}

fn add(
    draft: &mut Draft,
    address: String,
    datagrams: Option<Option<&'static str>>,
    stream: Option<Option<&'static str>>,
) {
    let datagrams = datagrams.map(|accept| ("udp", accept));
    for (transport, accept) in datagrams.into_iter().chain(stream.map(|accept| ("tcp", accept))) {
        let is_there = |other: &Listener| other.address == address && other.transport == transport;
        if !draft.listeners.iter().any(is_there) {
            draft.listeners.push(Listener { address: address.clone(), transport, accept });
        }
    }
}

/// `external-ip=public` and `external-ip=public/private`.
fn translate_external(options: &mut Options, draft: &mut Draft, report: &mut Report) {
    let (mut pairs, mut lines): (Vec<(IpAddr, IpAddr)>, Vec<Line>) = Default::default();
    let mut alone: Option<(Line, IpAddr)> = None;
    for line in options.all("external-ip") {
        let (public, private) = line.value.split_once('/').map_or((line.value.as_str(), None), |(a, b)| (a, Some(b)));
        match (public.trim().parse(), private.map(|private| private.trim().parse())) {
            (Ok(public), Some(Ok(private))) => {
                pairs.push((public, private));
                lines.push(line);
            }
            (Ok(_), None) if alone.is_some() => {
                report.add(
                    Verdict::Dropped,
                    &line,
                    "stands there already without a private address; coturn takes the first",
                );
            }
            (Ok(public), None) => alone = Some((line, public)),
            (Err(_), _) | (_, Some(Err(_))) => {
                report.add(Verdict::Decide, &line, "is no IP address; names are not looked up: write the address");
            }
        }
    }
    if draft.relay_addresses.is_empty() {
        draft.relay_addresses = pairs.iter().map(|(_, private)| *private).collect();
    }
    for (line, (_, private)) in
        lines.iter().zip(&pairs).filter(|(_, (_, private))| !draft.relay_addresses.contains(private))
    {
        report.add(Verdict::Decide, line, format!("{private} is no relay-ip, and nothing is advertised for it"));
    }
    if let Some((line, public)) = &alone {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == public.is_ipv4();
        let relays: Vec<IpAddr> = draft.relay_addresses.iter().filter(of_family).copied().collect();
        match relays.as_slice() {
            // The one of the default route.
            [] => draft.advertised_addresses.push(*public),
            [relay, others @ ..] => {
                pairs.push((*public, *relay));
                if !others.is_empty() {
                    let words = format!("stands for {relay} alone: write the pairs into relay.advertised-addresses");
                    report.add(Verdict::Decide, line, words);
                    draft.relay_addresses.retain(|ip| !others.contains(ip));
                }
            }
        }
    }
    for v4 in [true, false] {
        let relays: Vec<IpAddr> = draft.relay_addresses.iter().filter(|ip| ip.is_ipv4() == v4).copied().collect();
        let public = |relay: &IpAddr| pairs.iter().find(|(_, private)| private == relay).map(|(public, _)| *public);
        if relays.iter().any(|relay| public(relay).is_some()) {
            // An address that nothing is mapped to stands for itself.
            draft.advertised_addresses.extend(relays.iter().map(|relay| public(relay).unwrap_or(*relay)));
        }
    }
}

fn translate_nat_behavior(options: &mut Options, listening: &[IpAddr], draft: &mut Draft, report: &mut Report) {
    let port = options.number("listening-port", 0..=65535, report).filter(|port| *port != 0).unwrap_or(PORT);
    let alternate = options.number("alt-listening-port", 0..=65535, report).filter(|port| *port != 0);
    let wanted = options.last("rfc5780").filter(|line| line.truth() == Some(true));
    let refused = options.truth("no-rfc5780", report);
    if let Some(line) = options.last("alt-tls-listening-port") {
        report.add(Verdict::Dropped, &line, "NAT Behavior Discovery is for UDP and TCP");
    }
    let of_family = |v4: bool| listening.iter().copied().filter(move |ip| ip.is_ipv4() == v4 && !ip.is_unspecified());
    let pairs: Vec<IpAddr> = [true, false]
        .into_iter()
        .filter(|v4| of_family(*v4).count() >= 2)
        .flat_map(|v4| of_family(v4).take(2))
        .collect();
    match wanted {
        Some(line) if pairs.is_empty() => {
            report.add(Verdict::Decide, &line, "needs two listening-ip of one family, and stays off");
        }
        Some(line) if !draft.advertised_addresses.is_empty() => {
            report.add(Verdict::Decide, &line, "its answers would name addresses behind NAT; it stays off");
        }
        Some(_) => {
            let alternate_port = alternate.unwrap_or(port + 1);
            draft.nat_behavior = Some(NatBehavior { addresses: pairs, alternate_port });
        }
        None if !refused && !pairs.is_empty() => report.add_absent(
            Verdict::Safer,
            "no-rfc5780",
            "is absent, and NAT Behavior Discovery is off all the same, as strangers may have other hosts answered by it; \
             extensions.nat-behavior.addresses switches it on",
        ),
        None => {}
    }
}

fn translate_proxy(options: &mut Options, report: &mut Report) {
    if let Some(line) = options.last("tcp-proxy-port") {
        report.add(
            Verdict::Decide,
            &line,
            "coturn believes whoever connects there; add a tcp listener on that port with proxy-protocol = [...], which names the \
             proxies",
        );
    }
}
