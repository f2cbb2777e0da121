//! What the configuration needs to know about the host.

use std::net::IpAddr;

use crate::address::Family;
use crate::net::interfaces;

/// The host's addresses and routes when the configuration is read.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// The addresses of all interfaces, loopback included.
    pub own_addresses: Vec<IpAddr>,
    /// The source address that the IPv4 default route gives.
    pub default_v4: Option<IpAddr>,
    /// The source address that the IPv6 default route gives.
    pub default_v6: Option<IpAddr>,
    /// Whether an IPv6 socket can be bound.
    pub has_ipv6: bool,
    /// Whether addresses may be bound that are not there yet (`net.ipv4.ip_nonlocal_bind`), as VRRP pairs do.
    pub nonlocal_bind: bool,
}

impl HostFacts {
    /// Asks this host. Sends nothing.
    pub fn of_this_host() -> std::io::Result<Self> {
        Ok(Self {
            own_addresses: interfaces::own_addresses()?,
            default_v4: usable_source(Family::V4),
            default_v6: usable_source(Family::V6),
            has_ipv6: interfaces::has_ipv6(),
            nonlocal_bind: interfaces::allows_nonlocal_bind(),
        })
    }

    /// Whether a socket can be bound to the address.
    pub(super) fn can_bind(&self, address: IpAddr) -> bool {
        // All of 127.0.0.0/8 is local, whatever the interface lists.
        let loopback_v4 = matches!(address, IpAddr::V4(v4) if v4.is_loopback());
        loopback_v4 || address.is_unspecified() || self.nonlocal_bind || self.own_addresses.contains(&address)
    }
}

/// The default route's source address, unless nobody but this link could reach it.
fn usable_source(family: Family) -> Option<IpAddr> {
    interfaces::default_source(family).filter(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    })
}
