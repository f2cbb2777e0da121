//! The one gate to every peer: permissions, channels and sends take a [`PermittedPeer`], which only this room makes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::settings::Settings;
use crate::auth::{Credentials, Subject};

/// An address that may be reached, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermittedPeer {
    ip: IpAddr,
    reach: Reach,
}

impl PermittedPeer {
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    pub fn reach(self) -> Reach {
        self.reach
    }
}

/// Where packets to a permitted address may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Through the relay socket.
    Network,
    /// One of this host's addresses: a live relayed address is reached in memory, nothing else.
    OwnRelays,
    /// One of this host's addresses that the operator allowed: live relayed addresses in memory, any other port but the
    /// listeners' through the relay socket.
    OwnHost,
}

/// The address is refused: 403 (Forbidden).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden;

/// Who asks for a peer.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub credentials: &'a Credentials,
    /// The client's own address.
    pub client: IpAddr,
}

/// Which addresses may be reached, in this order: those that never are, `deny`, `allow`, the own relayed addresses,
/// `allow_only`, the built-in list of special-purpose ranges and own addresses.
#[derive(Clone, Debug)]
pub struct PeerPolicy {
    /// Of whoever is in no group.
    everybody: Lists,
    groups: Vec<(Vec<Subject>, Lists)>,
    own: Vec<IpAddr>,
    relays: Vec<IpAddr>,
    listener_ports: Vec<u16>,
    service_ports: Vec<u16>,
}

/// What an operator allows and denies to some users.
#[derive(Clone, Debug)]
struct Lists {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    allow_only: bool,
}

impl PeerPolicy {
    pub fn new(settings: &Settings) -> Self {
        let peers = &settings.peers;
        let groups = peers.groups.iter().map(|group| {
            // What is denied to everybody is denied to groups, too.
            let deny = [&group.deny[..], &peers.deny].concat();
            (group.members.clone(), Lists { allow: group.allow.clone(), deny, allow_only: group.allow_only })
        });
        let (allow, deny) = (peers.allow.clone(), peers.deny.clone());
        Self {
            everybody: Lists { allow, deny, allow_only: peers.allow_only },
            groups: groups.collect(),
            own: peers.own_addresses.clone(),
            relays: settings
                .relay_addresses
                .iter()
                .flat_map(|relay| [Some(relay.bind), relay.advertised])
                .flatten()
                .collect(),
            listener_ports: peers.listener_ports.clone(),
            service_ports: peers.service_ports.clone(),
        }
    }

    /// Judges an address; a permission carries no port, so ports are judged per packet by [`Self::permits_port`].
    pub fn permit(&self, asker: Asker<'_>, ip: IpAddr) -> Result<PermittedPeer, Forbidden> {
        let lists = self.lists(asker);
        let is_relay = self.relays.contains(&ip);
        let is_own = self.is_own(ip);
        let embedded = nat64_embedded(ip);
        let is_denied = contains(&lists.deny, ip) || embedded.is_some_and(|ip| contains(&lists.deny, ip));
        // Packets through NAT64 are not seen by the hand-over in memory, so nothing of this host is reached that way.
        if is_never_a_peer(ip) || is_denied || embedded.is_some_and(|ip| self.is_own(ip)) {
            return Err(Forbidden);
        }
        let reach = if lists.allows(ip) {
            if is_own { Reach::OwnHost } else { Reach::Network }
        } else if is_relay {
            Reach::OwnRelays
        } else if lists.allow_only || is_own || is_special_purpose(ip) {
            return Err(Forbidden);
        } else {
            Reach::Network
        };
        Ok(PermittedPeer { ip, reach })
    }

    /// Where packets to an address that was permitted earlier may go by now: it may have become one of this host's. What
    /// is refused from now on otherwise ends with its permission.
    pub(super) fn reach_now<'a>(&'a self, asker: Asker<'_>) -> impl Fn(IpAddr, Reach) -> Reach + use<'a> {
        let lists = self.lists(asker);
        move |ip, earlier| match (self.is_own(ip), lists.allows(ip)) {
            (false, _) => earlier,
            (true, true) => Reach::OwnHost,
            (true, false) => Reach::OwnRelays,
        }
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        self.relays.contains(&ip) || self.own.contains(&ip) || ip.is_loopback()
    }

    /// The lists of the first group that has the asker, else everybody's.
    fn lists(&self, asker: Asker<'_>) -> &Lists {
        let has = |members: &[Subject]| members.iter().any(|member| member.covers(asker.credentials, asker.client));
        self.groups.iter().find(|(members, _)| has(members)).map_or(&self.everybody, |(_, lists)| lists)
    }

    /// Whether a port of an own address that the operator allowed may be reached through the network: never a listener
    /// of this server, so that no relay talks to the server that it belongs to.
    pub fn permits_port(&self, port: u16) -> bool {
        !self.listener_ports.contains(&port)
    }

    /// The same for a TCP connection: nothing that this server serves itself is reached through it.
    pub fn permits_tcp_port(&self, port: u16) -> bool {
        !self.service_ports.contains(&port)
    }
}

impl Lists {
    /// Whether `allow` names an address; behind NAT64 by the IPv4 address, or by a range inside of the NAT64 prefix.
    fn allows(&self, ip: IpAddr) -> bool {
        let Some(embedded) = nat64_embedded(ip) else { return contains(&self.allow, ip) };
        let names = |range: &IpNet| range.prefix_len() >= NAT64_PREFIX_LEN && range.contains(&ip);
        contains(&self.allow, embedded) || self.allow.iter().any(names)
    }
}

fn contains(ranges: &[IpNet], ip: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&ip))
}

/// Whether the IANA special-purpose address registries, or common sense, say that no peer of a call is there.
///
/// IPv4 addresses inside IPv6 ones are judged where the packet would end up: NAT64's well-known prefix by the address
/// in it; mapped, compatible, translated, 6to4 and Teredo forms are refused as such (RFC 8656 section 21.4).
pub fn is_special_purpose(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => SPECIAL_V4.iter().any(|range| range.contains(&ip)),
        IpAddr::V6(v6) => match nat64_embedded(ip) {
            Some(embedded) => is_special_purpose(embedded),
            None => !GLOBAL_UNICAST.contains(&v6) || SPECIAL_V6.iter().any(|range| range.contains(&v6)),
        },
    }
}

/// Whether an address is Teredo's or 6to4's (RFC 8656 section 21.4): refused as a client's and as a peer's.
pub fn is_tunnel(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => TUNNELS.iter().any(|range| range.contains(&ip)),
    }
}

/// Whether an address is refused whatever is allowed: no host has it, or RFC 8656 section 21.4 forbids it. IPv4
/// addresses in the mapped and compatible forms of IPv6 would pass by the ranges that name them.
fn is_never_a_peer(ip: IpAddr) -> bool {
    let is_ipv4_form = match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => matches!(ip.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _]) && !ip.is_loopback(),
    };
    ip.is_unspecified() || is_ipv4_form || is_tunnel(ip)
}

const NAT64_PREFIX_LEN: u8 = 96;

/// The IPv4 address in 64:ff9b::/96 (RFC 6052 section 2.1).
fn nat64_embedded(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(ip) = ip else { return None };
    let [0x0064, 0xff9b, 0, 0, 0, 0, high, low] = ip.segments() else { return None };
    Some(IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))))
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(segments: [u16; 3], prefix: u8) -> Ipv6Net {
    let [a, b, c] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// The IANA IPv4 Special-Purpose Address Registry, multicast, and a metadata service outside of it.
const SPECIAL_V4: [Ipv4Net; 22] = [
    v4(0, 0, 0, 0, 8),          // this network
    v4(10, 0, 0, 0, 8),         // private
    v4(100, 64, 0, 0, 10),      // shared address space (carrier-grade NAT)
    v4(127, 0, 0, 0, 8),        // loopback
    v4(168, 63, 129, 16, 32),   // Azure's metadata and DNS service
    v4(169, 254, 0, 0, 16),     // link-local, the cloud metadata address among them
    v4(172, 16, 0, 0, 12),      // private
    v4(192, 0, 0, 0, 24),       // protocol assignments
    v4(192, 0, 2, 0, 24),       // documentation
    v4(192, 31, 196, 0, 24),    // AS112
    v4(192, 52, 193, 0, 24),    // AMT
    v4(192, 88, 99, 0, 24),     // 6to4 relay anycast
    v4(192, 168, 0, 0, 16),     // private
    v4(192, 175, 48, 0, 24),    // AS112
    v4(198, 18, 0, 0, 15),      // benchmarking
    v4(198, 51, 100, 0, 24),    // documentation
    v4(203, 0, 113, 0, 24),     // documentation
    v4(224, 0, 0, 0, 4),        // multicast
    v4(240, 0, 0, 0, 4),        // class E
    v4(255, 255, 255, 255, 32), // limited broadcast
    v4(233, 252, 0, 0, 24),     // documentation, multicast
    v4(192, 0, 0, 170, 31),     // NAT64 discovery
];

/// What IPv6 has assigned to hosts; everything outside is loopback, local, multicast, a tunnel or not assigned.
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0], 3);

const TUNNELS: [Ipv6Net; 2] = [
    v6([0x2001, 0, 0], 32), // Teredo
    v6([0x2002, 0, 0], 16), // 6to4
];

/// The IANA IPv6 Special-Purpose Address Registry inside of global unicast.
const SPECIAL_V6: [Ipv6Net; 5] = [
    v6([0x2001, 0, 0], 23),           // protocol assignments: Teredo, benchmarking, ORCHID
    v6([0x2001, 0x0db8, 0], 32),      // documentation
    v6([0x2002, 0, 0], 16),           // 6to4
    v6([0x2620, 0x004f, 0x8000], 48), // AS112
    v6([0x3fff, 0, 0], 20),           // documentation
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::auth::credentials::UserKind;
    use crate::auth::long_term::PasswordAlgorithm;
    use crate::turn::settings::{PeerGroup, PeerSettings, RelayAddress};
    use crate::turn::testing;

    fn policy(peers: PeerSettings) -> PeerPolicy {
        let mut settings = testing::settings();
        settings.relay_addresses =
            vec![RelayAddress { bind: "10.0.0.5".parse().unwrap(), advertised: Some("8.8.4.4".parse().unwrap()) }];
        settings.peers = peers;
        PeerPolicy::new(&settings)
    }

    fn reach(policy: &PeerPolicy, ip: &str) -> Option<Reach> {
        reach_of(policy, "1700000000:carol", ip)
    }

    fn reach_of(policy: &PeerPolicy, username: &str, ip: &str) -> Option<Reach> {
        let algorithm = PasswordAlgorithm::Md5;
        let credentials = Credentials {
            username: Arc::from(username),
            kind: UserKind::Named,
            algorithm,
            key: algorithm.key(b"u", "r", b"p"),
            secret: None,
        };
        let asker = Asker { credentials: &credentials, client: "198.51.100.1".parse().unwrap() };
        policy.permit(asker, ip.parse().unwrap()).ok().map(PermittedPeer::reach)
    }

    #[test]
    fn special_purpose_addresses_are_refused_by_default() {
        let policy = policy(PeerSettings::default());
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "168.63.129.16",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "::8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::ffff:0:7f00:1",
            "4000::1",
        ] {
            assert_eq!(reach(&policy, ip), None, "{ip}");
        }
    }

    #[test]
    fn public_addresses_are_reached_through_the_network() {
        let policy = policy(PeerSettings::default());
        for ip in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:4860:4860::8888", "64:ff9b::8.8.8.8", "2a00::1"] {
            assert_eq!(reach(&policy, ip), Some(Reach::Network), "{ip}");
        }
    }

    #[test]
    fn own_relayed_and_advertised_addresses_reach_live_relays_alone() {
        let own_addresses = vec!["8.8.8.8".parse().unwrap(), "10.0.0.5".parse().unwrap()];
        let policy = policy(PeerSettings { own_addresses, ..PeerSettings::default() });
        assert_eq!(reach(&policy, "10.0.0.5"), Some(Reach::OwnRelays));
        assert_eq!(reach(&policy, "8.8.4.4"), Some(Reach::OwnRelays));
        assert_eq!(reach(&policy, "8.8.8.8"), None, "an own address that relays nothing");
    }

    #[test]
    fn allow_opens_what_the_built_in_list_denies_and_deny_wins() {
        let peers = PeerSettings {
            allow: vec!["10.0.0.0/8".parse().unwrap(), "127.0.0.0/8".parse().unwrap()],
            deny: vec!["10.9.0.0/16".parse().unwrap(), "9.9.9.9/32".parse().unwrap()],
            ..PeerSettings::default()
        };
        let policy = policy(peers);
        assert_eq!(reach(&policy, "10.1.2.3"), Some(Reach::Network));
        assert_eq!(reach(&policy, "10.9.2.3"), None);
        assert_eq!(reach(&policy, "9.9.9.9"), None);
        assert_eq!(reach(&policy, "127.0.0.1"), Some(Reach::OwnHost));
        assert_eq!(reach(&policy, "10.0.0.5"), Some(Reach::OwnHost));
    }

    #[test]
    fn allow_only_refuses_what_allow_does_not_name_but_own_relays() {
        let allow = vec!["9.9.9.0/24".parse().unwrap()];
        let policy = policy(PeerSettings { allow, allow_only: true, ..PeerSettings::default() });
        assert_eq!(reach(&policy, "9.9.9.9"), Some(Reach::Network));
        assert_eq!(reach(&policy, "8.8.8.8"), None);
        assert_eq!(reach(&policy, "10.0.0.5"), Some(Reach::OwnRelays));
    }

    #[test]
    fn the_first_group_of_a_user_judges_in_place_of_everybodys_lists() {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let group = |members: &[&str], allow: &[&str], deny: &[&str], allow_only| PeerGroup {
            members: members.iter().map(|member| member.parse().unwrap()).collect(),
            allow: ranges(allow),
            deny: ranges(deny),
            allow_only,
        };
        let policy = policy(PeerSettings {
            allow: ranges(&["10.1.0.0/16"]),
            deny: ranges(&["9.9.9.9/32"]),
            groups: vec![
                group(&["guest-*"], &["10.7.0.1/32", "9.9.9.9/32"], &[], true),
                group(&["staff", "guest-7"], &["10.0.0.0/8"], &["10.13.0.0/16", "8.8.0.0/16"], false),
            ],
            ..PeerSettings::default()
        });
        let of = |username: &str, ip: &str| reach_of(&policy, username, ip);
        for guest in ["1700000000:guest-7", "guest-8"] {
            assert_eq!(of(guest, "10.7.0.1"), Some(Reach::Network), "{guest}");
            for refused in ["10.1.2.3", "8.8.8.8", "9.9.9.9", "127.0.0.1", "2001:4860:4860::8888"] {
                assert_eq!(of(guest, refused), None, "{guest} {refused}");
            }
            assert_eq!(of(guest, "8.8.4.4"), Some(Reach::OwnRelays), "another client of this server");
        }
        assert_eq!(of("1700000000:staff", "10.1.2.3"), Some(Reach::Network));
        assert_eq!(of("1700000000:staff", "1.1.1.1"), Some(Reach::Network));
        for refused in ["10.13.0.1", "8.8.8.8", "9.9.9.9", "192.168.1.1", "64:ff9b::10.13.0.1"] {
            assert_eq!(of("1700000000:staff", refused), None, "{refused}");
        }
        assert_eq!(of("1700000000:carol", "10.1.2.3"), Some(Reach::Network));
        assert_eq!(of("1700000000:carol", "10.7.0.1"), None);
        assert_eq!(of("1700000000:carol", "9.9.9.9"), None);
    }
}
