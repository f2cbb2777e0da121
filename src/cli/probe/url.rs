//! The URLs of RFC 7064 and RFC 7065.

use crate::worker::settings::{PORT, TLS_PORT};

/// What carries the messages to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    Udp,
    Tcp,
    Tls,
    /// RFC 7350.
    Dtls,
}

/// A server to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) carrier: Carrier,
    /// Whether it is a TURN server, rather than a STUN server.
    pub(super) relays: bool,
}

impl Url {
    /// Parses a URL, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let forms = "expected turn:HOST[:PORT][?transport=udp|tcp], turns: in the same forms, or stun:HOST[:PORT]";
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(format!("\"{text}\" has no scheme, {forms}"));
        };
        let (relays, secure) = match scheme {
            "turn" => (true, false),
            "turns" => (true, true),
            "stun" => (false, false),
            "stuns" => (false, true),
            _ => return Err(format!("\"{scheme}:\" is no scheme of STUN or TURN, {forms}")),
        };
        if let Some(rest) = rest.strip_prefix("//") {
            return Err(format!("there is no // in such URLs: write {scheme}:{rest}"));
        }
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let carrier = match (query, secure) {
            ("" | "transport=tcp", true) => Carrier::Tls,
            ("transport=udp", true) => Carrier::Dtls,
            ("" | "transport=udp", false) => Carrier::Udp,
            ("transport=tcp", false) => Carrier::Tcp,
            _ => return Err(format!("\"?{query}\" is unknown, expected ?transport=udp or ?transport=tcp")),
        };
        let default_port = if secure { TLS_PORT } else { PORT };
        let (host, port) = split_port(address, default_port).ok_or_else(|| {
            format!("\"{address}\" is no host and port, expected example.org, 192.0.2.1:3478 or [2001:db8::1]:3478")
        })?;
        Ok(Self { host: host.to_owned(), port, carrier, relays })
    }
}

fn split_port(address: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => match address.find(':') {
            Some(colon) => address.split_at(colon),
            None => (address, ""),
        },
    };
    let port = match port {
        "" => default,
        port => port.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?,
    };
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, u16, Carrier, bool) {
        let url = Url::parse(text).unwrap();
        (url.host, url.port, url.carrier, url.relays)
    }

    #[test]
    fn the_forms_of_the_rfcs_parse() {
        assert_eq!(parsed("turn:a.example"), ("a.example".into(), 3478, Carrier::Udp, true));
        assert_eq!(parsed("turn:192.0.2.1:80?transport=tcp"), ("192.0.2.1".into(), 80, Carrier::Tcp, true));
        assert_eq!(parsed("turns:[2001:db8::1]"), ("2001:db8::1".into(), 5349, Carrier::Tls, true));
        assert_eq!(parsed("turns:a:443?transport=tcp"), ("a".into(), 443, Carrier::Tls, true));
        assert_eq!(parsed("turns:a?transport=udp"), ("a".into(), 5349, Carrier::Dtls, true));
        assert_eq!(parsed("stun:[::1]:1"), ("::1".into(), 1, Carrier::Udp, false));
    }

    #[test]
    fn mistakes_are_told_apart() {
        let words = |text| Url::parse(text).unwrap_err();
        assert!(words("a.example").contains("has no scheme"));
        assert!(words("https:a").contains("no scheme of STUN or TURN"));
        assert_eq!(words("turn://a:1"), "there is no // in such URLs: write turn:a:1");
        assert!(words("turn:a?transport=sctp").contains("expected ?transport=udp"));
        for bad in ["turn:", "turn::1", "turn:a:0", "turn:a:x", "turn:2001:db8::1", "turn:[::1", "turn:[::1]1"] {
            assert!(words(bad).contains("is no host and port"), "{bad}");
        }
    }
}
