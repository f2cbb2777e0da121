//! Ways out of this host, followed as routes, interfaces and neighbours change.
//!
//! bpf_fib_lookup refuses where IP forwarding is off, which is on every ordinary server. So the daemon looks the routes
//! up and keeps the answers in a map.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::flow::{NextHop, Way};
use super::netlink::{Changes, Link, Netlink};
use super::programs::Programs;

/// Destinations looked up again in one go: at 10 us each, a hundredth of a processor in [`INTERVAL`].
const STEP: usize = 512;
/// After a change, until all are done.
const STEP_AFTER_CHANGE: usize = 4096;
/// How often destinations are looked up again: what the kernel learns of a path's MTU is told to nobody.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);
/// Neighbours that XDP sends to are confirmed this often: the kernel itself sees none of that traffic.
const CONFIRMATION: Duration = Duration::from_secs(10);

/// What the length of an IPv4 packet can say, which is one less than loopback's MTU.
const PACKET_MAX: u32 = 65_535;

/// Which of a flow's two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    ToPeer,
    ToClient,
}

/// Where a packet goes, from which of this host's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Destination {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
}

/// The ways that flows use.
pub(super) struct Ways {
    netlink: Netlink,
    changes: Changes,
    /// Interfaces that XDP sends by, which needs hardware addresses.
    with_xdp: BTreeSet<u32>,
    /// The programs are on the loopback interface too.
    with_loopback: bool,
    links: HashMap<u32, Link>,
    by_way: HashMap<Way, Used>,
    free: Vec<u32>,
    /// Not used any more, until a grace period is over.
    retired: Vec<u32>,
    known: HashMap<Destination, Known>,
    /// In the order in which they are looked up again.
    turn: VecDeque<Destination>,
    /// Destinations that are still to be looked up after a change.
    to_follow: usize,
    confirmed_at: Option<Instant>,
}

#[derive(Debug)]
struct Used {
    index: u32,
    destinations: usize,
}

#[derive(Debug)]
struct Known {
    found: Found,
    index: u32,
    users: HashSet<(u32, Direction)>,
}

/// What the kernel says of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    way: Option<Way>,
    /// The interface and the neighbour that XDP sends to.
    neighbour: Option<(u32, IpAddr)>,
}

impl Ways {
    pub(super) fn new(ways_max: u32) -> io::Result<Self> {
        let mut ways = Self {
            netlink: Netlink::open()?,
            changes: Changes::subscribe()?,
            with_xdp: BTreeSet::new(),
            with_loopback: false,
            links: HashMap::new(),
            by_way: HashMap::new(),
            // The first one is none.
            free: (1..ways_max).rev().collect(),
            retired: Vec::new(),
            known: HashMap::new(),
            turn: VecDeque::new(),
            to_follow: 0,
            confirmed_at: None,
        };
        ways.read_links()?;
        Ok(ways)
    }

    /// Has XDP send by these interfaces, by others not.
    pub(super) fn use_xdp(&mut self, with_xdp: BTreeSet<u32>) {
        if self.with_xdp != with_xdp {
            self.with_xdp = with_xdp;
            self.to_follow = self.turn.len();
        }
    }

    pub(super) fn use_loopback(&mut self, with_loopback: bool) {
        self.with_loopback = with_loopback;
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    pub(super) fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        self.netlink.addresses()
    }

    /// Asks which interfaces there are; changes are noticed in between, a moment later.
    pub(super) fn read_links(&mut self) -> io::Result<()> {
        self.links = self.netlink.links()?.into_iter().map(|link| (link.ifindex, link)).collect();
        Ok(())
    }

    /// The index of the way that a flow's packets take from now on; 0 is none.
    pub(super) fn acquire(&mut self, programs: &mut Programs, destination: Destination, user: (u32, Direction)) -> u32 {
        if !self.known.contains_key(&destination) {
            let (found, index) = self.look_up(programs, destination);
            self.known.insert(destination, Known { found, index, users: HashSet::new() });
            self.turn.push_back(destination);
        }
        let Some(known) = self.known.get_mut(&destination) else { return 0 };
        known.users.insert(user);
        known.index
    }

    /// A flow is gone. A destination without flows is forgotten when its turn comes.
    pub(super) fn release(&mut self, destination: Destination, user: (u32, Direction)) {
        if let Some(known) = self.known.get_mut(&destination) {
            known.users.remove(&user);
        }
    }

    /// Looks some destinations up again, all of them after a change; true when interfaces may have changed.
    pub(super) fn follow(&mut self, programs: &mut Programs, now: Instant) -> bool {
        let changed = self.changes.take();
        if changed {
            // The old ones serve until the kernel answers again.
            let _ = self.read_links();
            self.to_follow = self.turn.len();
        }
        if self.confirmed_at.is_none_or(|at| now.saturating_duration_since(at) >= CONFIRMATION) {
            self.confirmed_at = Some(now);
            self.confirm();
        }
        let step = if self.to_follow > 0 { STEP_AFTER_CHANGE } else { STEP };
        for _ in 0..step.min(self.turn.len()) {
            self.follow_next(programs);
        }
        self.to_follow = self.to_follow.saturating_sub(step);
        changed
    }

    fn follow_next(&mut self, programs: &mut Programs) {
        let Some(destination) = self.turn.pop_front() else { return };
        let Some(known) = self.known.get(&destination) else { return };
        let old = known.found.way;
        if known.users.is_empty() {
            self.known.remove(&destination);
            return self.let_go(old);
        }
        self.turn.push_back(destination);
        let (found, index) = self.look_up(programs, destination);
        if let Some(known) = self.known.get_mut(&destination) {
            if known.index != index {
                for (flow, direction) in &known.users {
                    programs.states.set_way(*flow, *direction, index);
                }
            }
            (known.found, known.index) = (found, index);
        }
        self.let_go(old);
    }

    /// Whether there are ways for [`Self::settle`].
    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// A grace period is over: no packet is on a way that was let go before.
    pub(super) fn settle(&mut self) {
        self.free.append(&mut self.retired);
    }

    /// Finds a way and holds it.
    fn look_up(&mut self, programs: &mut Programs, destination: Destination) -> (Found, u32) {
        let found = self.resolve(destination).unwrap_or_default();
        match found.way.and_then(|way| self.hold(programs, way)) {
            Some(index) => (found, index),
            // None is left, or none was found: the sockets serve.
            None => (Found { way: None, ..found }, 0),
        }
    }

    /// What the kernel would do with a packet of its own.
    fn resolve(&mut self, destination: Destination) -> Option<Found> {
        let Destination { from, to } = destination;
        let route = self.netlink.route(from, to).ok()??;
        let is_way = |link: &Link| link.is_up && (link.is_ethernet || link.is_loopback && self.with_loopback);
        let link = self.links.get(&route.ifindex).filter(|link| is_way(link))?;
        let mtu = link.mtu.min(route.mtu.unwrap_or(u32::MAX)).min(PACKET_MAX);
        let next_hop = route.gateway.unwrap_or(to);
        let mut way = Way { ifindex: route.ifindex, mtu, next_hop: NextHop::new(next_hop), ..Way::default() };
        if !self.with_xdp.contains(&link.ifindex) {
            return Some(Found { way: Some(way), neighbour: None });
        }
        // A veth puts what XDP_TX sends into a ring that the other end looks at only if it has a program itself.
        way.redirects = u32::from(link.kind.as_deref() == Some("veth"));
        let own = link.address.unwrap_or_default();
        match self.netlink.neighbour(route.ifindex, next_hop) {
            Ok(Some(address)) => (way.to, way.from) = (address, own),
            // The sockets serve until it is resolved.
            Ok(None) | Err(_) => _ = self.netlink.use_neighbour(route.ifindex, next_hop),
        }
        Some(Found { way: Some(way), neighbour: Some((route.ifindex, next_hop)) })
    }

    /// Has the kernel confirm the neighbours that XDP sends to.
    fn confirm(&mut self) {
        let neighbours: HashSet<_> = self.known.values().filter_map(|known| known.found.neighbour).collect();
        for (ifindex, next_hop) in neighbours {
            let _ = self.netlink.use_neighbour(ifindex, next_hop);
        }
    }

    fn hold(&mut self, programs: &mut Programs, way: Way) -> Option<u32> {
        if let Some(used) = self.by_way.get_mut(&way) {
            used.destinations += 1;
            return Some(used.index);
        }
        let index = self.free.pop()?;
        if programs.set_way(index, &way).is_err() {
            self.free.push(index);
            return None;
        }
        self.by_way.insert(way, Used { index, destinations: 1 });
        Some(index)
    }

    fn let_go(&mut self, way: Option<Way>) {
        let Some(way) = way else { return };
        let Some(used) = self.by_way.get_mut(&way) else { return };
        used.destinations -= 1;
        if used.destinations == 0 {
            self.retired.push(used.index);
            self.by_way.remove(&way);
        }
    }
}
