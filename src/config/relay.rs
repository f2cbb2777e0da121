//! `relay`, `peers`, `limits` and `compatibility`: the relay's settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::host::HostFacts;
use super::problem::{At, Report};
use super::section::{Entry, Section};
use super::values::{self, RangeError};
use crate::address::Family;
use crate::auth::Subject;
use crate::turn::Settings;
use crate::turn::settings::{DataRate, Limits, PeerGroup, PeerSettings, RelayAddress};
use crate::worker::settings::AcceptLimits;

/// Reads everything that `turn::Server` is told.
pub(super) fn read(root: &mut Section, host: &HostFacts, report: &mut Report) -> (Settings, AcceptLimits) {
    let mut relay = root.section("relay", report);
    let relay_addresses = read_addresses(&mut relay, host, report);
    let (port_min, port_max) = read_ports(&mut relay, report);
    let (lifetime_default, lifetime_max) = read_lifetimes(&mut relay, report);
    relay.finish(report);
    let peers = read_peers(root.section("peers", report), report);
    let (limits, accept) = read_limits(root.section("limits", report), report);
    let mut compatibility = root.section("compatibility", report);
    let channels_above_4fff = compatibility.truth("channels-above-4fff", report).is_some_and(|entry| entry.value);
    let rfc3489 = compatibility.truth("rfc3489", report).is_some_and(|entry| entry.value);
    compatibility.finish(report);
    let mut settings = Settings {
        port_min,
        port_max,
        lifetime_default,
        lifetime_max,
        peers,
        limits,
        channels_above_4fff,
        rfc3489,
        ..Settings::relaying_on(relay_addresses)
    };
    settings.peers.own_addresses = settings.own_addresses(&host.own_addresses);
    (settings, accept)
}

fn read_addresses(relay: &mut Section, host: &HostFacts, report: &mut Report) -> Vec<RelayAddress> {
    let advertised_at = relay.at("advertised-addresses");
    let mut bind = relay.texts("addresses", report, |text, at, report| parse_bind(text, at, host, report));
    refuse_twice(&bind, report);
    if bind.is_empty() {
        let at = relay.at("addresses");
        bind = default_addresses(host).into_iter().map(|value| Entry { value, at: at.clone() }).collect();
    }
    let advertised = relay.texts("advertised-addresses", report, parse_advertised);
    let mut addresses: Vec<RelayAddress> =
        bind.iter().map(|entry| RelayAddress { bind: entry.value, advertised: None }).collect();
    for family in [Family::V4, Family::V6] {
        let told = advertised.iter().filter(|entry| Family::of(entry.value) == family);
        let bound = addresses.iter_mut().filter(|relay| Family::of(relay.bind) == family);
        let (told, bound): (Vec<_>, Vec<_>) = (told.collect(), bound.collect());
        if told.is_empty() {
            continue;
        }
        if told.len() != bound.len() {
            let words = format!("found {} of {} for {}", told.len(), family_name(family), bound.len());
            let expected =
                format!("as many {} addresses as there are relay addresses of that family", family_name(family));
            let remedy = "list both in the same order, or none of that family";
            report.problem(told[0].at_list(&advertised_at).problem(words, expected, remedy));
            continue;
        }
        for (relay, told) in bound.into_iter().zip(told) {
            relay.advertised = (relay.bind != told.value).then_some(told.value);
        }
    }
    addresses
}

impl Entry<IpAddr> {
    /// The list that this is an element of.
    fn at_list(&self, list: &At) -> At {
        At::new(self.at.source.clone(), list.key.clone())
    }
}

pub(super) fn refuse_twice(entries: &[Entry<IpAddr>], report: &mut Report) {
    for (index, entry) in entries.iter().enumerate() {
        if entries[..index].iter().any(|earlier| earlier.value == entry.value) {
            report.problem(entry.at.problem(
                format!("{} stands there already", entry.value),
                "each address once",
                "remove one of the two",
            ));
        }
    }
}

pub(super) fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The default route's address of each family; loopback on a host without routes.
fn default_addresses(host: &HostFacts) -> Vec<IpAddr> {
    let routed = [host.default_v4, host.default_v6];
    let addresses: Vec<IpAddr> = routed.into_iter().flatten().collect();
    if !addresses.is_empty() {
        return addresses;
    }
    // Where IPv6 is disabled by sysctl its sockets can be bound, and no interface has an address.
    let v6 = Some(IpAddr::V6(Ipv6Addr::LOCALHOST)).filter(|v6| host.own_addresses.contains(v6));
    [Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), v6].into_iter().flatten().collect()
}

pub(super) fn parse_bind(text: &str, at: &At, host: &HostFacts, report: &mut Report) -> Option<IpAddr> {
    let address = parse_address(text, at, report)?;
    if !host.can_bind(address) {
        report.problem(at.problem(
            format!("found {address}, which is no address of this host"),
            "an address of an interface",
            "`ip -brief address` lists them; a public address behind 1:1 NAT goes into relay.advertised-addresses",
        ));
    }
    Some(address)
}

fn parse_advertised(text: &str, at: &At, report: &mut Report) -> Option<IpAddr> {
    parse_address(text, at, report)
}

/// An address that a relayed transport address can have.
fn parse_address(text: &str, at: &At, report: &mut Report) -> Option<IpAddr> {
    let link_local = |address: IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() || address.is_multicast() || link_local(address) => {
            let remedy = "name one address; clients are told it";
            report.problem(at.problem(
                format!("found \"{text}\""),
                "a unicast address of global or private use",
                remedy,
            ));
            None
        }
        Ok(address) => Some(address),
        Err(_) => {
            let remedy = "write \"192.0.2.1\" or \"2001:db8::1\", without port and brackets";
            report.problem(at.problem(format!("found \"{text}\""), "an IP address", remedy));
            None
        }
    }
}

fn read_ports(relay: &mut Section, report: &mut Report) -> (u16, u16) {
    let at = relay.at("port-min");
    let min = relay.number("port-min", 1024..=65535, report);
    let max = relay.number("port-max", 1024..=65535, report);
    let at = min.as_ref().or(max.as_ref()).map_or(at, |entry| entry.at.clone());
    let (min, max) =
        (min.map_or(Settings::PORT_MIN, |entry| entry.value), max.map_or(Settings::PORT_MAX, |entry| entry.value));
    if min > max {
        let words = format!("the range {min} to {max} is empty");
        report.problem(at.problem(words, "port-min no higher than port-max", "swap them, or set both"));
    }
    (min, max)
}

fn read_lifetimes(relay: &mut Section, report: &mut Report) -> (Duration, Duration) {
    let range = Duration::from_secs(1)..=Duration::from_secs(3600);
    let default = relay.duration("lifetime-default", range.clone(), report);
    let max = relay.duration("lifetime-max", range, report);
    let at = default.as_ref().or(max.as_ref()).map_or_else(|| relay.at("lifetime-default"), |entry| entry.at.clone());
    let default = default.map_or(Settings::LIFETIME_DEFAULT, |entry| entry.value);
    let max = max.map_or(Settings::LIFETIME_MAX, |entry| entry.value);
    if default > max {
        let (default, max) = (values::duration_words(default), values::duration_words(max));
        let words = format!("the default {default} is over the longest {max}");
        report.problem(at.problem(words, "lifetime-default no longer than lifetime-max", "set both"));
    }
    (default, max)
}

fn read_peers(mut peers: Section, report: &mut Report) -> PeerSettings {
    let (allow, deny, allow_only) = read_lists(&mut peers, report);
    let groups = peers.sections("group", report).unwrap_or_default();
    let groups = groups.into_iter().map(|group| read_group(group, report)).collect();
    peers.finish(report);
    PeerSettings { allow, deny, allow_only, groups, ..PeerSettings::default() }
}

/// `allow`, `deny` and `allow-only` of everybody or of a group.
fn read_lists(peers: &mut Section, report: &mut Report) -> (Vec<IpNet>, Vec<IpNet>, bool) {
    let ranges = |key, peers: &mut Section, report: &mut Report| -> Vec<IpNet> {
        peers.texts(key, report, parse_range).into_iter().map(|entry| entry.value).collect()
    };
    let allow = ranges("allow", peers, report);
    let deny = ranges("deny", peers, report);
    let allow_only = peers.truth("allow-only", report);
    if let Some(entry) = allow_only.as_ref().filter(|entry| entry.value && allow.is_empty()) {
        let remedy = "name the ranges in allow, or remove allow-only";
        report.problem(entry.at.problem("refuses every peer, as allow is empty", "ranges in allow", remedy));
    }
    (allow, deny, allow_only.is_some_and(|entry| entry.value))
}

fn read_group(mut group: Section, report: &mut Report) -> PeerGroup {
    let at = group.at("members");
    let before = report.problems.len();
    let members: Vec<Subject> =
        group.texts("members", report, parse_member).into_iter().map(|entry| entry.value).collect();
    if members.is_empty() && report.problems.len() == before {
        let remedy = "name users, or remove the group";
        report.problem(at.problem("the group has no members", "users as \"alice\" or \"tenant-a-*\"", remedy));
    }
    let (allow, deny, allow_only) = read_lists(&mut group, report);
    group.finish(report);
    PeerGroup { members, allow, deny, allow_only }
}

fn parse_member(text: &str, at: &At, report: &mut Report) -> Option<Subject> {
    let subject = text.parse::<Subject>();
    if let Err(error) = subject {
        let remedy = "write \"alice\", \"tenant-a-*\", \"secret:0f3a9c11\" or \"198.51.100.0/24\"";
        report.problem(at.problem(format!("found \"{text}\""), error.to_string(), remedy));
    }
    subject.ok()
}

pub(super) fn parse_range(text: &str, at: &At, report: &mut Report) -> Option<IpNet> {
    let remedy = match values::parse_range(text) {
        Ok(range) => return Some(range),
        Err(RangeError::HostBits(range)) => {
            let address = text.split('/').next().unwrap_or(text);
            format!("write \"{range}\" for the range or \"{address}\" for the one address")
        }
        Err(RangeError::NotARange) => "write \"10.0.0.0/8\", \"2001:db8::/32\" or one address".to_owned(),
    };
    report.problem(at.problem(format!("found \"{text}\""), "a range of addresses (CIDR)", remedy));
    None
}

fn read_limits(mut limits: Section, report: &mut Report) -> (Limits, AcceptLimits) {
    let turn = Limits::default();
    let accept = AcceptLimits::default();
    let mut count = |key, default: u32, report: &mut Report| {
        limits.number(key, 0..=u32::MAX, report).map_or(default, |entry| entry.value)
    };
    let allocations_per_user = count("allocations-per-user", turn.allocations_per_user, report);
    let allocations_total = count("allocations-total", turn.allocations_total, report);
    let allocations_per_prefix = count("allocations-per-prefix", turn.allocations_per_prefix, report);
    let allocation_rate = DataRate {
        bytes_per_second: count("allocation-bytes-per-second", turn.allocation_rate.bytes_per_second, report),
        packets_per_second: count("allocation-packets-per-second", turn.allocation_rate.packets_per_second, report),
    };
    let user_rate = DataRate {
        bytes_per_second: count("user-bytes-per-second", turn.user_rate.bytes_per_second, report),
        packets_per_second: count("user-packets-per-second", turn.user_rate.packets_per_second, report),
    };
    let bindings_per_second = count("bindings-per-second", turn.bindings_per_second, report);
    let challenges_per_second = count("challenges-per-second", turn.challenges_per_second, report);
    let challenges_total_per_second = count("challenges-total-per-second", turn.challenges_total_per_second, report);
    let failures_per_second = count("failures-per-second", turn.failures_per_second, report);
    let connections_per_source_max = count("connections-per-source", accept.connections_per_source_max, report);
    let connections_max = count("connections-total", accept.connections_max, report);
    let mut bound = |key, default: u16, report: &mut Report| {
        limits.number(key, 1..=u16::MAX, report).map_or(default, |entry| entry.value)
    };
    let permissions_per_allocation = bound("permissions-per-allocation", turn.permissions_per_allocation, report);
    let channels_per_allocation = bound("channels-per-allocation", turn.channels_per_allocation, report);
    let peer_connections_per_allocation =
        bound("peer-connections-per-allocation", turn.peer_connections_per_allocation, report);
    let handshakes = limits.number("handshakes", 1..=1_000_000_u32, report);
    let handshakes_max = handshakes.map_or(accept.handshakes_max, |entry| entry.value as usize);
    limits.finish(report);
    let turn = Limits {
        allocations_per_user,
        allocations_total,
        allocations_per_prefix,
        permissions_per_allocation,
        channels_per_allocation,
        allocation_rate,
        user_rate,
        bindings_per_second,
        challenges_per_second,
        challenges_total_per_second,
        failures_per_second,
        peer_connections_per_allocation,
    };
    (turn, AcceptLimits { connections_per_source_max, connections_max, handshakes_max, ..accept })
}
