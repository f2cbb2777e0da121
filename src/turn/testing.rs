//! Settings for unit tests.

use super::settings::{RelayAddress, Settings};

/// A server that relays on one IPv4 and one IPv6 address.
pub(super) fn settings() -> Settings {
    let relay = |ip: &str| RelayAddress { bind: ip.parse().unwrap(), advertised: None };
    Settings::relaying_on(vec![relay("192.0.2.1"), relay("2001:db8::1")])
}
