//! `extensions.nat-behavior`: the addresses and ports of NAT Behavior Discovery, and the listeners that it adds.

use std::net::{IpAddr, SocketAddr};

use super::host::HostFacts;
use super::problem::{At, Report};
use super::relay;
use super::section::{Entry, Section};
use crate::address::Family;
use crate::turn::nat_behavior::{Endpoints, NatBehavior};
use crate::turn::settings::RelayAddress;
use crate::worker::settings::{Accept, Listener, ListenerKind};

/// The alternate port unless another one is named: the one behind that of STUN, as RFC 3489 servers have it.
const ALTERNATE_PORT: u16 = 3479;

/// What every check looks at.
struct Context<'a> {
    relays: &'a [RelayAddress],
    port_at: At,
    alternate_port: u16,
}

/// Reads the extension and adds the listeners that its endpoints miss. Without addresses it is off.
pub(super) fn read(
    mut section: Section,
    listeners: &mut Vec<Listener>,
    relays: &[RelayAddress],
    host: &HostFacts,
    report: &mut Report,
) -> Option<NatBehavior> {
    let port_at = section.at("alternate-port");
    let addresses = section.texts("addresses", report, |text, at, report| relay::parse_bind(text, at, host, report));
    let alternate_port = section.number("alternate-port", 1..=65535, report);
    let mtu = section.number("mtu", 576..=NatBehavior::MTU_MAX, report).map_or(NatBehavior::MTU, |entry| entry.value);
    section.finish(report);
    let port_at = alternate_port.as_ref().map_or(port_at, |entry| entry.at.clone());
    let alternate_port = alternate_port.map_or(ALTERNATE_PORT, |entry| entry.value);
    if addresses.is_empty() {
        return None;
    }
    relay::refuse_twice(&addresses, report);
    let proxied = listeners.iter().find(|listener| listener.is_udp() && !listener.proxies.is_empty());
    if let (Some(listener), Some(first)) = (proxied, addresses.first()) {
        report.problem(first.at.problem(
            format!("datagrams of clients come to {} through proxies", listener.address),
            "clients that reach this host themselves",
            "leave extensions.nat-behavior off: answers from elsewhere find no way back through a proxy",
        ));
    }
    let context = Context { relays, port_at, alternate_port };
    let [v4, v6] = [Family::V4, Family::V6].map(|family| {
        let of_family: Vec<_> = addresses.iter().filter(|entry| Family::of(entry.value) == family).collect();
        let endpoints = read_family(&of_family, listeners, &context, report)?;
        listen(&endpoints, listeners);
        Some(endpoints)
    });
    Some(NatBehavior { v4, v6, mtu })
}

/// The endpoints of one family; `None` as well when something is wrong with them.
fn read_family(
    addresses: &[&Entry<IpAddr>],
    listeners: &[Listener],
    context: &Context<'_>,
    report: &mut Report,
) -> Option<Endpoints> {
    let first = addresses.first()?;
    let name = relay::family_name(Family::of(first.value));
    let [primary, alternate] = addresses else {
        let words = format!("found {} of {name}", addresses.len());
        let expected = format!("two {name} addresses, or none");
        report.problem(first.at.problem(words, expected, "the first is the primary, the second the alternate address"));
        return None;
    };
    for entry in addresses {
        let told = context.relays.iter().find(|relay| relay.bind == entry.value).and_then(|relay| relay.advertised);
        if let Some(public) = told {
            report.problem(entry.at.problem(
                format!("{} is behind 1:1 NAT: clients are told {public}", entry.value),
                "addresses that clients reach as they are",
                "leave extensions.nat-behavior off on this host: its answers would name addresses out of reach",
            ));
        }
    }
    let plain_udp = |kind| matches!(kind, ListenerKind::Udp(Accept::Both | Accept::Plain));
    let udp = |listener: &&Listener| plain_udp(listener.kind) && listener.address.port() != 0;
    let primary_listener = listeners.iter().filter(udp).find(|listener| serves(listener, primary.value));
    let Some(primary_port) = primary_listener.map(|listener| listener.address.port()) else {
        let words = format!("no udp listener is on {}", primary.value);
        let remedy = "add one, or name the address of one first";
        report.problem(primary.at.problem(words, "an address that a udp listener is on", remedy));
        return None;
    };
    if primary_port == context.alternate_port {
        let words = format!("{primary_port} is the port of the listener on {}", primary.value);
        report.problem(context.port_at.problem(words, "two different ports", "name another alternate-port"));
    }
    Endpoints::new([primary.value, alternate.value], [primary_port, context.alternate_port])
}

/// Adds what is not listened on yet: UDP, and TCP as it is spoken on the primary endpoint.
///
/// RFC 5780 section 6: "On startup, the server SHOULD allocate a pair of ports for each of the UDP, TCP, and TCP/TLS
/// transport protocols, such that it can send and receive datagrams using the same ports on each IP address".
fn listen(endpoints: &Endpoints, listeners: &mut Vec<Listener>) {
    let [primary, ..] = endpoints.all();
    let listens =
        |listener: &Listener, at: SocketAddr| listener.address.port() == at.port() && serves(listener, at.ip());
    let models: Vec<_> = listeners.iter().filter(|listener| listens(listener, primary)).cloned().collect();
    for address in endpoints.all() {
        for model in &models {
            let same_wire = |listener: &Listener| listener.is_udp() == model.is_udp();
            if !listeners.iter().any(|listener| same_wire(listener) && listens(listener, address)) {
                listeners.push(Listener { address, ..model.clone() });
            }
        }
    }
}

/// Whether a listener is on this address, alone or among all of its family.
fn serves(listener: &Listener, address: IpAddr) -> bool {
    let own = listener.address.ip();
    own == address || own.is_unspecified() && Family::of(own) == Family::of(address)
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::super::{Environment, Settings, StateAccess, load};

    /// The settings of a file, or its problems without its name.
    fn read(text: &str) -> Result<Settings, Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, text).unwrap();
        let loaded = load(Some(&path), &Environment::new(), &host(), StateAccess::ReadOnly);
        let name = format!("{}: ", path.display());
        loaded
            .map(|loaded| loaded.settings)
            .map_err(|problems| problems.0.iter().map(|problem| problem.to_string().replace(&name, "")).collect())
    }

    fn listeners(settings: &Settings) -> Vec<String> {
        settings.listeners.iter().map(|listener| format!("{} {:?}", listener.address, listener.kind)).collect()
    }

    #[test]
    fn clients_of_proxies_are_told_nothing_about_their_nat() {
        let text = "listener = [ { address = \"*:3478\", transport = \"udp\" },\n\
                    { address = \"*:443\", transport = \"udp\", proxy-protocol = [\"10.0.0.9\"] } ]\n\
                    [extensions.nat-behavior]\naddresses = [\"192.0.2.10\", \"10.0.0.5\"]";
        let problems = read(text).unwrap_err();
        assert!(problems[0].contains("datagrams of clients come to 0.0.0.0:443 through proxies"), "{problems:?}");
        let over_streams = text.replace("443\", transport = \"udp\"", "443\", transport = \"tcp\"");
        assert!(read(&over_streams).is_ok(), "{:?}", read(&over_streams));
    }

    #[test]
    fn the_extension_is_off_without_addresses() {
        let settings = read("[extensions.nat-behavior]\nalternate-port = 3480").unwrap();
        assert_eq!(settings.turn.nat_behavior, None);
        assert!(!listeners(&settings).iter().any(|listener| listener.contains("3480")));
    }

    #[test]
    fn wildcard_listeners_serve_both_addresses_and_the_alternate_port_is_added() {
        let settings = read("[extensions.nat-behavior]\naddresses = [\"192.0.2.10\", \"10.0.0.5\"]").unwrap();
        let added = &listeners(&settings)[4..];
        let expected = ["192.0.2.10:3479 Udp(Plain)", "192.0.2.10:3479 Stream(Plain)", "10.0.0.5:3479 Udp(Plain)"];
        assert_eq!(added[..3], expected);
        assert_eq!(added[3..], ["10.0.0.5:3479 Stream(Plain)"]);
        let offer = settings.turn.nat_behavior.unwrap();
        let all = offer.v4.unwrap().all().map(|address| address.to_string());
        assert_eq!(all, ["192.0.2.10:3478", "10.0.0.5:3478", "192.0.2.10:3479", "10.0.0.5:3479"]);
        assert_eq!((offer.v6, offer.mtu), (None, 1500));
        assert!(settings.turn.peers.listener_ports.contains(&3479), "no relay reaches them");
    }

    #[test]
    fn an_exact_listener_gets_its_three_alternates() {
        let listener = "listener = [{ address = \"192.0.2.10:443\", transport = \"udp\" }]\n";
        let extension = "[extensions.nat-behavior]\naddresses = [\"192.0.2.10\", \"10.0.0.5\"]\nalternate-port = 444";
        let settings = read(&format!("{listener}{extension}")).unwrap();
        let expected = [
            "192.0.2.10:443 Udp(Plain)",
            "10.0.0.5:443 Udp(Plain)",
            "192.0.2.10:444 Udp(Plain)",
            "10.0.0.5:444 Udp(Plain)",
        ];
        assert_eq!(listeners(&settings), expected);
    }

    #[test]
    fn what_is_listened_on_already_is_not_added() {
        let listener = |port| format!("{{ address = \"*:{port}\", transport = \"udp\" }}");
        let extension = "[extensions.nat-behavior]\naddresses = [\"192.0.2.10\", \"10.0.0.5\"]";
        let settings = read(&format!("listener = [{}, {}]\n{extension}", listener(3478), listener(3479))).unwrap();
        assert_eq!(listeners(&settings).len(), 4, "two ports of two families");
        assert!(settings.turn.nat_behavior.is_some());
    }

    #[test]
    fn addresses_are_two_of_a_family_own_distinct_and_listened_on() {
        let words = |text: &str| read(&format!("[extensions.nat-behavior]\n{text}")).unwrap_err();
        assert_eq!(
            words("addresses = [\"192.0.2.10\", \"2001:db8::10\", \"::1\"]"),
            ["extensions.nat-behavior.addresses #1: found 1 of IPv4, expected two IPv4 addresses, or none; \
              the first is the primary, the second the alternate address"]
        );
        let twice = words("addresses = [\"192.0.2.10\", \"192.0.2.10\"]");
        assert!(twice[0].contains("192.0.2.10 stands there already, expected each address once"), "{twice:?}");
        let foreign = words("addresses = [\"192.0.2.10\", \"203.0.113.9\"]");
        assert!(foreign[0].contains("found 203.0.113.9, which is no address of this host"), "{foreign:?}");
        let same = words("addresses = [\"192.0.2.10\", \"10.0.0.5\"]\nalternate-port = 3478");
        assert_eq!(
            same,
            ["extensions.nat-behavior.alternate-port: 3478 is the port of the listener on 192.0.2.10, expected two \
              different ports; name another alternate-port"]
        );
        let listener = "listener = [{ address = \"10.0.0.5:3478\", transport = \"udp\" }]";
        let unserved =
            read(&format!("{listener}\n[extensions.nat-behavior]\naddresses = [\"192.0.2.10\", \"10.0.0.5\"]"))
                .unwrap_err();
        assert!(unserved[0].contains("no udp listener is on 192.0.2.10"), "{unserved:?}");
    }

    #[test]
    fn addresses_behind_one_to_one_nat_are_refused() {
        let relay = "[relay]\naddresses = [\"10.0.0.5\"]\nadvertised-addresses = [\"203.0.113.5\"]\n";
        let extension = "[extensions.nat-behavior]\naddresses = [\"192.0.2.10\", \"10.0.0.5\"]";
        let words = read(&format!("{relay}{extension}")).unwrap_err();
        assert_eq!(words.len(), 1);
        assert!(words[0].contains("#2: 10.0.0.5 is behind 1:1 NAT: clients are told 203.0.113.5"), "{words:?}");
    }
}
