//! The `turn:` and `turns:` URLs (RFC 7065) that lead to the listeners.

use std::net::IpAddr;

use crate::address::Family;
use crate::config::Settings;
use crate::worker::settings::{Accept, Listener, ListenerKind, TLS_PORT};

/// The URLs of all listeners: UDP first, then TCP, then TLS. DTLS is left out: no browser speaks it with a server.
///
/// `host` stands for every address when given. Without it wildcard listeners are reached at the first public address of
/// their family, and TLS at the first name of the first certificate, as an address would not match it.
pub(super) fn urls(settings: &Settings, host: Option<&str>, certificate_name: Option<&str>) -> Vec<String> {
    let mut found = Vec::new();
    for way in [Way::Udp, Way::Tcp, Way::Tls] {
        let leading = || settings.listeners.iter().filter(|listener| way.leads_to(listener.kind));
        // A port for both is offered as what it is there for, where that is known of any.
        let has_own_port = leading().any(|listener| is_for_tls(listener) == (way == Way::Tls));
        for listener in leading() {
            if has_own_port && is_for_tls(listener) != (way == Way::Tls) {
                continue;
            }
            let name = match way {
                Way::Tls => host.or(certificate_name),
                Way::Udp | Way::Tcp => host,
            };
            let Some(name) = name.map(str::to_owned).or_else(|| address_of(settings, listener)) else { continue };
            let url = way.url(&name, listener.address.port());
            if !found.contains(&url) {
                found.push(url);
            }
        }
    }
    found
}

/// Whether clients expect TLS there: nothing else is spoken, or the port is that of `turns:` (RFC 7065 section 3.2).
fn is_for_tls(listener: &Listener) -> bool {
    match listener.kind {
        ListenerKind::Stream(Accept::Tls) => true,
        ListenerKind::Stream(Accept::Both) => listener.address.port() == TLS_PORT,
        ListenerKind::Stream(Accept::Plain) | ListenerKind::Udp(_) => false,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Udp,
    Tcp,
    Tls,
}

impl Way {
    fn leads_to(self, kind: ListenerKind) -> bool {
        match (self, kind) {
            (Self::Udp, ListenerKind::Udp(Accept::Both | Accept::Plain))
            | (Self::Tcp, ListenerKind::Stream(Accept::Both | Accept::Plain))
            | (Self::Tls, ListenerKind::Stream(Accept::Both | Accept::Tls)) => true,
            (Self::Udp, ListenerKind::Stream(_))
            | (Self::Tcp | Self::Tls, ListenerKind::Udp(_))
            | (Self::Udp, ListenerKind::Udp(Accept::Tls))
            | (Self::Tcp, ListenerKind::Stream(Accept::Tls))
            | (Self::Tls, ListenerKind::Stream(Accept::Plain)) => false,
        }
    }

    fn url(self, host: &str, port: u16) -> String {
        match self {
            Self::Udp => format!("turn:{host}:{port}?transport=udp"),
            Self::Tcp => format!("turn:{host}:{port}?transport=tcp"),
            Self::Tls => format!("turns:{host}:{port}?transport=tcp"),
        }
    }
}

/// Where clients reach a listener, in the form of a URL.
fn address_of(settings: &Settings, listener: &Listener) -> Option<String> {
    let bound = listener.address.ip();
    let relays = &settings.turn.relay_addresses;
    let public = if bound.is_unspecified() {
        relays.iter().map(|relay| relay.public()).find(|public| Family::of(*public) == Family::of(bound))?
    } else {
        relays.iter().find(|relay| relay.bind == bound).map_or(bound, |relay| relay.public())
    };
    Some(match public {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, CertificateFiles, Environment, HostFacts, StateAccess};

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let host = HostFacts {
            own_addresses: ["10.0.0.5", "2001:db8::10"].map(|address| address.parse().unwrap()).to_vec(),
            default_v4: Some("10.0.0.5".parse().unwrap()),
            default_v6: Some("2001:db8::10".parse().unwrap()),
            has_ipv6: true,
            nonlocal_bind: false,
        };
        let environment: Environment =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        config::load(None, &environment, &host, StateAccess::ReadOnly).unwrap().settings
    }

    fn with_tls(mut settings: Settings) -> Settings {
        let address = "0.0.0.0:5349".parse().unwrap();
        settings.listeners.push(Listener { address, kind: ListenerKind::Stream(Accept::Both), proxies: Vec::new() });
        settings.tls.push(CertificateFiles { certificate: "c".into(), key: "k".into() });
        settings
    }

    #[test]
    fn wildcards_are_reached_at_the_public_addresses() {
        let settings = settings(&[("FERRYD_RELAY__ADVERTISED_ADDRESSES", "203.0.113.5")]);
        assert_eq!(
            urls(&settings, None, None),
            [
                "turn:203.0.113.5:3478?transport=udp",
                "turn:[2001:db8::10]:3478?transport=udp",
                "turn:203.0.113.5:3478?transport=tcp",
                "turn:[2001:db8::10]:3478?transport=tcp",
            ]
        );
    }

    #[test]
    fn a_name_stands_for_both_families_once() {
        assert_eq!(
            urls(&with_tls(settings(&[])), Some("turn.example.org"), None),
            [
                "turn:turn.example.org:3478?transport=udp",
                "turn:turn.example.org:3478?transport=tcp",
                "turns:turn.example.org:5349?transport=tcp",
            ]
        );
    }

    #[test]
    fn tls_is_reached_by_the_name_of_the_certificate() {
        let found = urls(&with_tls(settings(&[])), None, Some("a.example"));
        assert_eq!(found.last().unwrap(), "turns:a.example:5349?transport=tcp");
    }

    #[test]
    fn a_port_for_both_is_offered_as_both_where_it_is_alone() {
        let mut settings = with_tls(settings(&[("FERRYD_LISTENER", "[{ address = \"*:443\", transport = \"tcp\" }]")]));
        settings.listeners.retain(|listener| listener.address.port() == 443);
        settings.listeners.iter_mut().for_each(|listener| listener.kind = ListenerKind::Stream(Accept::Both));
        assert_eq!(
            urls(&settings, Some("turn.example.org"), None),
            ["turn:turn.example.org:443?transport=tcp", "turns:turn.example.org:443?transport=tcp"]
        );
    }

    #[test]
    fn exact_listeners_are_reached_where_they_are() {
        let listener = "[{ address = \"10.0.0.5:443\", transport = \"udp\" }]";
        let pairs = [("FERRYD_LISTENER", listener), ("FERRYD_RELAY__ADVERTISED_ADDRESSES", "203.0.113.5")];
        assert_eq!(urls(&settings(&pairs), None, None), ["turn:203.0.113.5:443?transport=udp"]);
    }
}
