//! What an operator decides about the relay.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::nat_behavior::NatBehavior;
use super::redirect::Redirect;
use crate::address::Family;
use crate::auth::Subject;

/// The relay as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where relay sockets are bound: an allocation has one of its family by chance, and another where that has no port
    /// left.
    pub relay_addresses: Vec<RelayAddress>,
    /// The lowest relay port, included.
    pub port_min: u16,
    /// The highest relay port, included.
    pub port_max: u16,
    /// The lifetime of an allocation that asks for less or for nothing (RFC 8656 section 3.2: 600 s).
    pub lifetime_default: Duration,
    /// The longest lifetime granted (RFC 8656 section 7.2: at most 3600 s).
    pub lifetime_max: Duration,
    pub peers: PeerSettings,
    pub limits: Limits,
    /// SOFTWARE, a name and a version: strangers are told the name alone. `None` leaves it out.
    pub software: Option<String>,
    /// Accepts channel numbers 0x5000-0x7FFF, which RFC 5766 allowed and RFC 8656 does not.
    pub channels_above_4fff: bool,
    /// NAT Behavior Discovery (RFC 5780).
    pub nat_behavior: Option<NatBehavior>,
    /// Answers Binding requests of RFC 3489 clients, which have no magic cookie.
    pub rfc3489: bool,
    /// Where clients that ask for a new allocation are sent instead; allocations that there are go on.
    pub redirect: Option<Redirect>,
    /// Gives tickets to clients that ask for them (RFC 8016).
    pub mobility: bool,
    /// Offers TCP allocations (RFC 6062).
    pub tcp_allocations: bool,
    /// Asks for a verdict on each Allocate, by [`super::Effect::Authorize`].
    pub authorize: bool,
}

impl Settings {
    /// RFC 8656 section 7.2: the Dynamic Port range.
    pub const PORT_MIN: u16 = 49152;
    /// RFC 8656 section 7.2: the Dynamic Port range.
    pub const PORT_MAX: u16 = 65535;
    pub const LIFETIME_DEFAULT: Duration = Duration::from_secs(600);
    pub const LIFETIME_MAX: Duration = Duration::from_secs(3600);

    /// Relays on these addresses, and has the default of every other setting.
    pub fn relaying_on(relay_addresses: Vec<RelayAddress>) -> Self {
        Self {
            relay_addresses,
            port_min: Self::PORT_MIN,
            port_max: Self::PORT_MAX,
            lifetime_default: Self::LIFETIME_DEFAULT,
            lifetime_max: Self::LIFETIME_MAX,
            peers: PeerSettings::default(),
            limits: Limits::default(),
            software: Some(format!("ferryd {}", env!("CARGO_PKG_VERSION"))),
            channels_above_4fff: false,
            nat_behavior: None,
            rfc3489: false,
            redirect: None,
            mobility: false,
            tcp_allocations: false,
            authorize: false,
        }
    }

    /// What is to be in [`PeerSettings::own_addresses`] while the interfaces have these addresses: sorted, each once.
    pub fn own_addresses(&self, interfaces: &[IpAddr]) -> Vec<IpAddr> {
        let relayed = self.relay_addresses.iter().flat_map(|relay| [relay.bind, relay.public()]);
        let mut own: Vec<IpAddr> = interfaces.iter().copied().chain(relayed).collect();
        own.sort_unstable();
        own.dedup();
        own
    }

    /// Whether an allocation of this family can be made at all.
    pub fn serves(&self, family: Family) -> bool {
        self.relay_addresses.iter().any(|relay| Family::of(relay.bind) == family)
    }
}

/// One address for relayed transport addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayAddress {
    /// The interface address that relay sockets are bound to.
    pub bind: IpAddr,
    /// The public address behind 1:1 NAT that clients are told instead.
    pub advertised: Option<IpAddr>,
}

impl RelayAddress {
    /// The address that clients are told.
    pub fn public(&self) -> IpAddr {
        self.advertised.unwrap_or(self.bind)
    }
}

/// Which peers may be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSettings {
    /// Ranges that are reachable although the built-in list denies them.
    pub allow: Vec<IpNet>,
    /// Ranges that are refused; they win over `allow`.
    pub deny: Vec<IpNet>,
    /// Refuses every peer that `allow` does not name.
    pub allow_only: bool,
    /// Users with lists of their own; the first group that has a user counts.
    pub groups: Vec<PeerGroup>,
    /// The addresses of this host's interfaces and the advertised ones: only live relayed addresses are reachable
    /// there.
    pub own_addresses: Vec<IpAddr>,
    /// The ports of this server's UDP listeners, which no relay reaches even where `allow` names an own address.
    pub listener_ports: Vec<u16>,
    /// The ports of TCP that this server serves itself, which no TCP allocation reaches even where `allow` names an own
    /// address.
    pub service_ports: Vec<u16>,
}

/// The peers of some users, in place of everybody's; what [`PeerSettings::deny`] refuses stays refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerGroup {
    /// Who is in it.
    pub members: Vec<Subject>,
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    pub allow_only: bool,
}

/// Bounds on what clients can make the server hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Allocations of one user. 0 is no limit. The default is for names that are one person's; another limit is for those
    /// that many may share, too: static users, and time-limited ones without a name.
    pub allocations_per_user: u32,
    /// Allocations of all clients together. 0 is no limit but ports and descriptors, which bound most hosts first.
    pub allocations_total: u32,
    /// Allocations from one source prefix (IPv4 /32, IPv6 /64): offices and carriers share one. 0 is no limit.
    pub allocations_per_prefix: u32,
    /// Permissions of one allocation; refreshes are never counted.
    pub permissions_per_allocation: u16,
    /// Channels of one allocation; refreshes are never counted.
    pub channels_per_allocation: u16,
    /// Connections between one TCP allocation and its peers; each takes two descriptors.
    pub peer_connections_per_allocation: u16,
    /// Application data of one allocation, in each direction.
    pub allocation_rate: DataRate,
    /// Application data of all allocations of one named user together, in each direction.
    pub user_rate: DataRate,
    /// Binding requests a second that one source (IPv4 /32, IPv6 /64) is answered over UDP. 0 is no limit.
    ///
    /// 10,000 clients behind one NAT that keep their mapping alive every 10 s are 1000 a second, and all of them at the
    /// beginning of a meeting some 10,000. A forged source gets at most 20,000 x 60 bytes = 1.2 MB/s, of which the
    /// forger has sent 80 %.
    pub bindings_per_second: u32,
    /// Requests without a valid nonce that one source is answered a second over UDP, those that are followed by an
    /// authenticated Allocate not counted. 0 is no limit.
    ///
    /// So it bounds who never authenticates: probes, the misconfigured, and forged sources, which get at most 1000 x 136
    /// bytes = 136 kB/s by 401, twice of what the forger has sent.
    pub challenges_per_second: u32,
    /// The same for all sources together. 0 is no limit.
    ///
    /// A flood from forged sources, a new one for each request, costs the server an answer for 50,000 a second (about a
    /// tenth of a core) and 6.8 MB/s at most.
    pub challenges_total_per_second: u32,
    /// Wrong credentials of one source and username that are answered a second. Right ones always are. 0 is no limit.
    pub failures_per_second: u32,
}

/// How much data may pass in a second; that of one second may come at once. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataRate {
    /// Payload alone.
    pub bytes_per_second: u32,
    pub packets_per_second: u32,
}

impl DataRate {
    /// No limit.
    pub const UNLIMITED: Self = Self { bytes_per_second: 0, packets_per_second: 0 };

    /// Whether there is a limit.
    pub fn is_limited(self) -> bool {
        self != Self::UNLIMITED
    }
}

impl Limits {
    /// Whether data is limited at all.
    pub fn meter_data(&self) -> bool {
        self.allocation_rate.is_limited() || self.user_rate.is_limited()
    }

    pub const DEFAULT: Self = Self {
        allocations_per_user: 100,
        // More than six relay addresses have ports for.
        allocations_total: 100_000,
        allocations_per_prefix: 4000,
        permissions_per_allocation: 1024,
        channels_per_allocation: 1024,
        peer_connections_per_allocation: 64,
        allocation_rate: DataRate::UNLIMITED,
        user_rate: DataRate::UNLIMITED,
        bindings_per_second: 20_000,
        challenges_per_second: 1000,
        challenges_total_per_second: 50_000,
        failures_per_second: 10,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
