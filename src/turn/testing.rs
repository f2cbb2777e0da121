//! Settings for unit tests.

use super::settings::{Limits, PeerSettings, RelayAddress, Settings};

/// A server that relays on one IPv4 and one IPv6 address.
pub(super) fn settings() -> Settings {
    let relay = |ip: &str| RelayAddress { bind: ip.parse().unwrap(), advertised: None };
    Settings {
        relay_addresses: vec![relay("192.0.2.1"), relay("2001:db8::1")],
        port_min: Settings::PORT_MIN,
        port_max: Settings::PORT_MAX,
        lifetime_default: Settings::LIFETIME_DEFAULT,
        lifetime_max: Settings::LIFETIME_MAX,
        peers: PeerSettings::default(),
        limits: Limits::default(),
        software: Some("ferryd".to_owned()),
        channels_above_4fff: false,
        nat_behavior: None,
        rfc3489: false,
        redirect: None,
    }
}
