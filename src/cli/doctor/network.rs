//! Addresses, relay ports, firewalls and names.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Finding;
use super::host::read_number;
use super::sockets::bound;
use crate::config::Loaded;
use crate::net::socket::{UdpOptions, open_relay};
use crate::turn::Settings;
use crate::turn::peer_policy::is_special_purpose;
use crate::turn::settings::RelayAddress;

/// What clients are told, against what this host has.
pub(super) fn addresses(relays: &[RelayAddress], own: &[IpAddr]) -> Vec<Finding> {
    const CHECK: &str = "address";
    let one = |relay: &RelayAddress| match relay.advertised {
        Some(public) if is_special_purpose(public) => {
            let found = format!("clients are told {public}, which the Internet does not reach");
            Finding::warning(
                CHECK,
                found,
                "the public address into relay.advertised-addresses, unless all clients are near",
            )
        }
        Some(public) if own.contains(&public) => {
            let found = format!("clients are told {public}, and {} relays, though this host has both", relay.bind);
            Finding::warning(CHECK, found, format!("relay.addresses = [\"{public}\"], and nothing advertised"))
        }
        Some(public) => Finding::good(CHECK, format!("{} relays, and clients are told {public}", relay.bind)),
        None if is_special_purpose(relay.bind) => {
            let found = format!("clients are told {}, which the Internet does not reach", relay.bind);
            Finding::warning(CHECK, found, "behind 1:1 NAT, the public address into relay.advertised-addresses")
        }
        None => Finding::good(CHECK, format!("{} relays", relay.bind)),
    };
    relays.iter().map(one).collect()
}

/// Ports that are tried, spread over the range.
const TRIED: u32 = 16;

pub(super) fn relay_ports(turn: &Settings) -> Vec<Finding> {
    const CHECK: &str = "relay ports";
    let (min, max) = (turn.port_min, turn.port_max);
    let mut findings = Vec::new();
    for relay in &turn.relay_addresses {
        let span = u32::from(max - min);
        let ports = (0..TRIED).map(|index| min + (span * index / TRIED) as u16).collect::<BTreeSet<u16>>();
        let opened = |port: &u16| open_relay(SocketAddr::new(relay.bind, *port), &UdpOptions::default()).map(drop);
        let failures: Vec<_> = ports.iter().filter_map(|port| opened(port).err()).collect();
        findings.push(match failures.first() {
            Some(error) if failures.len() == ports.len() => Finding::bad(CHECK, error.to_string(), error.remedy()),
            Some(_) | None => Finding::good(CHECK, format!("{}:{min}-{max} can be opened", relay.bind)),
        });
    }
    let tables = ["udp", "udp6"].map(|table| fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default());
    let in_range =
        tables.iter().flat_map(|table| bound(table, true)).filter(|(at, _)| (min..=max).contains(&at.port()));
    findings.push(Finding::good(
        CHECK,
        format!("{} UDP sockets are in the range now, ferryd's own among them", in_range.count()),
    ));
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    findings.extend(outgoing(min, max, &read("ip_local_port_range"), &read("ip_local_reserved_ports")));
    findings
}

/// Whether the kernel gives ports of the range to outgoing connections.
fn outgoing(min: u16, max: u16, range: &str, reserved: &str) -> Option<Finding> {
    let mut ends = range.split_whitespace().filter_map(|word| word.parse::<u16>().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    let is_reserved = reserved.trim().split(',').any(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        from.parse().is_ok_and(|from: u16| from <= min) && to.parse().is_ok_and(|to: u16| max <= to)
    });
    (first <= max && min <= last && !is_reserved).then(|| {
        Finding::warning(
            "relay ports",
            format!("outgoing connections of this host take ports from {first} to {last}, relay ports among them"),
            format!("`sysctl -w net.ipv4.ip_local_reserved_ports={min}-{max}`"),
        )
    })
}

/// How long the rules of nftables may take to be printed.
const NFT_PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn firewall(turn: &Settings) -> Vec<Finding> {
    const CHECK: &str = "firewall";
    let mut findings = vec![match rules() {
        Some(rules) => judge_rules(&rules, turn.port_min, turn.port_max),
        None => {
            let remedy = format!(
                "as root, look that UDP {}-{} is let in; cloud security groups too",
                turn.port_min, turn.port_max
            );
            Finding::warning(CHECK, "the rules of this host cannot be read by this user, or there is no nft", remedy)
        }
    }];
    if let Some(max) = read_number("/proc/sys/net/netfilter/nf_conntrack_max") {
        let ports = u64::from(turn.port_max - turn.port_min) + 1;
        if max < 4 * ports {
            let found = format!("connection tracking holds {max} flows, and {ports} relay ports have several each");
            let remedy = format!("`sysctl -w net.netfilter.nf_conntrack_max={}`, or notrack for the ports", 8 * ports);
            findings.push(Finding::warning(CHECK, found, remedy));
        }
    }
    findings
}

/// The rules of nftables, iptables-nft's among them.
fn rules() -> Option<String> {
    let mut command = Command::new("nft");
    command.args(["list", "ruleset"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let mut output = child.stdout.take()?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut output, &mut text).ok().map(|_| text)
    });
    let deadline = Instant::now() + NFT_PATIENCE;
    let status = loop {
        match child.try_wait().ok()? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                // It is ours, and its end closes the pipe.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    reader.join().ok()?.filter(|_| status.success())
}

/// A hint, not a proof: an input chain that drops by default and names none of the relay ports.
fn judge_rules(rules: &str, min: u16, max: u16) -> Finding {
    const CHECK: &str = "firewall";
    let mut drops_by_default = false;
    let mut names_ports = false;
    let mut in_input = false;
    for line in rules.lines().map(str::trim) {
        if line.starts_with("chain ") {
            in_input = false;
        }
        if line.contains("hook input") {
            in_input = true;
            drops_by_default |= line.contains("policy drop");
        }
        drops_by_default |= in_input && (line == "drop" || line.starts_with("reject"));
        names_ports |= line.contains("accept") && line.contains(&format!("{min}-{max}"));
    }
    if drops_by_default && !names_ports {
        let found = format!("what is not accepted is dropped, and no rule names the relay ports {min}-{max}");
        return Finding::warning(
            CHECK,
            found,
            format!("`nft add rule inet filter input udp dport {min}-{max} accept`, by your names"),
        );
    }
    let found = if drops_by_default {
        "the relay ports are named by a rule"
    } else {
        "nothing is dropped by default on this host"
    };
    Finding::good(CHECK, format!("{found}; a cloud's security group is not seen from here"))
}

/// How long the look-up of a name may take.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(5);

/// The names that clients are given, as this host's resolver sees them.
pub(super) fn names(loaded: &Loaded) -> Vec<Finding> {
    let settings = &loaded.settings;
    let public: Vec<IpAddr> = settings.turn.relay_addresses.iter().map(RelayAddress::public).collect();
    let in_certificates = loaded.certificates.iter().flat_map(|facts| &facts.content.names);
    let own: BTreeSet<&str> = in_certificates.map(String::as_str).filter(|name| is_host_name(name)).collect();
    let elsewhere = settings.turn.redirect.as_ref().and_then(|redirect| redirect.domain.as_deref());
    let mut asked: Vec<(String, bool)> = own.into_iter().map(|name| (name.to_owned(), true)).collect();
    asked.extend(elsewhere.filter(|name| is_host_name(name)).map(|name| (name.to_owned(), false)));
    let answers: Vec<_> = asked.iter().map(|(name, _)| look_up(name.clone())).collect();
    let deadline = Instant::now() + LOOKUP_PATIENCE;
    let answer =
        |answers: mpsc::Receiver<_>| answers.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    asked
        .iter()
        .zip(answers)
        .map(|((name, is_own), answers)| judge_name(name, *is_own, answer(answers), &public))
        .collect()
}

fn is_host_name(name: &str) -> bool {
    !name.starts_with('*') && name.parse::<IpAddr>().is_err()
}

/// Asks on a thread of its own: the resolver knows no deadline.
fn look_up(name: String) -> mpsc::Receiver<Vec<IpAddr>> {
    let (to, from) = mpsc::channel();
    std::thread::spawn(move || {
        let found = (name.as_str(), 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect());
        // Nobody waits for an answer that comes too late.
        let _ = to.send(found.unwrap_or_default());
    });
    from
}

fn judge_name(name: &str, is_own: bool, found: Option<Vec<IpAddr>>, public: &[IpAddr]) -> Finding {
    const CHECK: &str = "name";
    let Some(found) = found else {
        return Finding::warning(
            CHECK,
            format!("{name} is not answered within 5 seconds"),
            "`resolvectl query`, /etc/resolv.conf",
        );
    };
    let list = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if found.is_empty() {
        return Finding::warning(
            CHECK,
            format!("{name} has no address"),
            "A and AAAA records with the public addresses of this server",
        );
    }
    if is_own && !found.iter().any(|ip| public.contains(ip)) {
        let told = public.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let found = format!("{name} is {list}, and relayed addresses are {told}");
        return Finding::warning(
            CHECK,
            found,
            "right behind a load balancer; else correct the records, or advertised-addresses",
        );
    }
    Finding::good(CHECK, format!("{name} is {list}"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn relay(bind: &str, advertised: Option<&str>) -> RelayAddress {
        RelayAddress { bind: bind.parse().unwrap(), advertised: advertised.map(|address| address.parse().unwrap()) }
    }

    #[test]
    fn private_addresses_that_clients_are_told_are_noticed() {
        let own: Vec<IpAddr> = ["10.0.0.5", "198.51.99.7"].iter().map(|ip| ip.parse().unwrap()).collect();
        let verdict = |bind, advertised| addresses(&[relay(bind, advertised)], &own)[0].verdict;
        assert_eq!(verdict("198.51.99.7", None), Verdict::Good);
        assert_eq!(verdict("10.0.0.5", None), Verdict::Warning);
        assert_eq!(verdict("10.0.0.5", Some("8.8.4.4")), Verdict::Good);
        assert_eq!(verdict("10.0.0.5", Some("192.168.1.1")), Verdict::Warning);
        assert_eq!(verdict("10.0.0.5", Some("198.51.99.7")), Verdict::Warning);
    }

    #[test]
    fn ports_for_outgoing_connections_are_kept_apart() {
        let finding = outgoing(49152, 65535, "32768\t60999\n", "\n").unwrap();
        assert!(finding.remedy.unwrap().ends_with("ip_local_reserved_ports=49152-65535`"));
        assert_eq!(outgoing(49152, 65535, "32768\t60999\n", "8080,49152-65535\n"), None);
        assert_eq!(outgoing(49152, 65535, "16384\t49151\n", ""), None);
        assert!(outgoing(49152, 65535, "32768\t60999\n", "50000-51000").is_some());
        assert_eq!(outgoing(49152, 65535, "", ""), None);
    }

    #[test]
    fn a_chain_that_drops_and_does_not_know_the_ports_is_noticed() {
        let rules = |rule: &str, policy: &str| {
            format!(
                "table inet filter {{\n\tchain input {{\n\t\ttype filter hook input priority filter; policy {policy};\n\t\t{rule}\n\t}}\n}}\n"
            )
        };
        let verdict = |text: &str| judge_rules(text, 49152, 65535).verdict;
        assert_eq!(verdict(&rules("tcp dport 22 accept", "drop")), Verdict::Warning);
        assert_eq!(verdict(&rules("udp dport 49152-65535 accept", "drop")), Verdict::Good);
        assert_eq!(verdict(&rules("drop", "accept")), Verdict::Warning);
        assert_eq!(verdict(&rules("tcp dport 22 accept", "accept")), Verdict::Good);
        assert_eq!(verdict(""), Verdict::Good);
    }

    #[test]
    fn names_lead_to_this_server() {
        let public: Vec<IpAddr> = vec!["203.0.113.5".parse().unwrap()];
        let verdict = |is_own, found: Option<&[&str]>| {
            let found = found.map(|found| found.iter().map(|ip| ip.parse().unwrap()).collect());
            judge_name("turn.example.org", is_own, found, &public).verdict
        };
        assert_eq!(verdict(true, Some(&["203.0.113.5"])), Verdict::Good);
        assert_eq!(verdict(true, Some(&["203.0.113.6"])), Verdict::Warning);
        assert_eq!(verdict(false, Some(&["203.0.113.6"])), Verdict::Good);
        assert_eq!(verdict(true, Some(&[])), Verdict::Warning);
        assert_eq!(verdict(true, None), Verdict::Warning);
        assert!(is_host_name("turn.example.org") && !is_host_name("*.example.org") && !is_host_name("10.0.0.1"));
    }
}
