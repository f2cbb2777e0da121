//! Relay ports: which are in use, and which live relayed address belongs to which worker.
//!
//! One word per port, shared by all workers without a lock. It is the port pool (a port is claimed by one
//! compare-and-swap) and the directory of live relayed addresses, by which clients of one server reach each other in
//! memory.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::RngExt;
use rand::rngs::StdRng;

use super::ids::{RelayId, RelayTransport, WorkerId};
use super::settings::{RelayAddress, Settings};
use crate::address::{Family, PeerAddr, RelayedAddr};

/// The port is not in use.
const FREE: u64 = 0;
/// The port is being opened, reserved or closed; the worker is in the other bits.
const CLAIMED: u64 = 1 << 62;
/// The port is a live relayed address; worker and relay are in the other bits.
const LIVE: u64 = 1 << 63;
/// A live relayed address of a TCP allocation.
const TCP: u64 = 1 << 61;
const WORKER_SHIFT: u32 = RelayId::BITS;

/// What an Allocate asks of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parity {
    Any,
    /// EVEN-PORT with R = 0.
    Even,
    /// EVEN-PORT with R = 1: the next-higher port is claimed as well.
    EvenPair,
}

/// All relay ports of all relay addresses.
#[derive(Debug)]
pub struct Ports {
    port_min: u16,
    relays: Vec<RelayPorts>,
}

#[derive(Debug)]
struct RelayPorts {
    address: RelayAddress,
    words: Box<[AtomicU64]>,
}

/// A live relayed address that a peer address names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) worker: WorkerId,
    pub(super) relay: RelayId,
    /// As it is bound.
    pub(super) address: RelayedAddr,
    /// It was named by its advertised address.
    pub(super) advertised: bool,
}

impl Ports {
    pub fn new(settings: &Settings) -> Self {
        let count = usize::from(settings.port_max.saturating_sub(settings.port_min)) + 1;
        let ports = |address: &RelayAddress| RelayPorts {
            address: *address,
            words: (0..count).map(|_| AtomicU64::new(FREE)).collect(),
        };
        Self { port_min: settings.port_min, relays: settings.relay_addresses.iter().map(ports).collect() }
    }

    /// Claims a port that nobody can foresee; `None` when the family has none left (RFC 8656 section 7.2).
    pub(super) fn claim(
        &self,
        family: Family,
        parity: Parity,
        worker: WorkerId,
        rng: &mut StdRng,
    ) -> Option<RelayedAddr> {
        let first = if self.relays.is_empty() { 0 } else { rng.random_range(0..self.relays.len()) };
        let (before, from) = self.relays.split_at(first);
        from.iter().chain(before).filter(|relay| Family::of(relay.address.bind) == family).find_map(|relay| {
            let index = relay.claim(self.port_min, parity, claimed_by(worker), rng)?;
            Some(RelayedAddr::new(SocketAddr::new(relay.address.bind, self.port_min + index as u16)))
        })
    }

    /// Makes a claimed port reachable for other clients.
    pub(super) fn publish(&self, address: RelayedAddr, transport: RelayTransport, worker: WorkerId, relay: RelayId) {
        let tcp = match transport {
            RelayTransport::Udp => 0,
            RelayTransport::Tcp => TCP,
        };
        if let Some(word) = self.word(address) {
            word.store(LIVE | tcp | u64::from(worker.0) << WORKER_SHIFT | relay.pack(), Ordering::Release);
        }
    }

    /// Takes a port out of reach; it stays claimed until its socket is closed.
    pub(super) fn withdraw(&self, address: RelayedAddr, worker: WorkerId) {
        self.hand_over(address, worker);
    }

    /// Makes a claimed port that worker's.
    pub(super) fn hand_over(&self, address: RelayedAddr, worker: WorkerId) {
        if let Some(word) = self.word(address) {
            word.store(claimed_by(worker), Ordering::Release);
        }
    }

    /// Frees a claimed port.
    pub(super) fn release(&self, address: RelayedAddr) {
        if let Some(word) = self.word(address) {
            word.store(FREE, Ordering::Release);
        }
    }

    /// Frees every port that a worker has claimed or published. Looks at every port.
    pub(super) fn release_all(&self, worker: WorkerId) {
        for word in self.relays.iter().flat_map(|relay| relay.words.iter()) {
            // A word that changes in between has another owner.
            let is_its = |word: &u64| *word != FREE && worker_of(*word) == worker;
            let _ = word.try_update(Ordering::AcqRel, Ordering::Acquire, |word| is_its(&word).then_some(FREE));
        }
    }

    /// The live relay of datagrams behind an own address, named as it is bound or as it is advertised.
    pub(super) fn live(&self, peer: PeerAddr) -> Option<Live> {
        self.find(peer, RelayTransport::Udp)
    }

    /// The live relay of a TCP allocation behind an own address, named as it is bound or as it is advertised; where it
    /// is bound.
    pub(super) fn live_tcp(&self, peer: PeerAddr) -> Option<PeerAddr> {
        Some(PeerAddr::new(self.find(peer, RelayTransport::Tcp)?.address.socket_addr()))
    }

    fn find(&self, peer: PeerAddr, transport: RelayTransport) -> Option<Live> {
        self.relays.iter().find_map(|relay| {
            let advertised = relay.address.advertised == Some(peer.ip());
            if relay.address.bind != peer.ip() && !advertised {
                return None;
            }
            let index = usize::from(peer.port().checked_sub(self.port_min)?);
            let word = relay.words.get(index)?.load(Ordering::Acquire);
            let is_meant = word & LIVE != 0 && (word & TCP != 0) == (transport == RelayTransport::Tcp);
            let address = RelayedAddr::new(SocketAddr::new(relay.address.bind, peer.port()));
            is_meant.then(|| Live { worker: worker_of(word), relay: RelayId::unpack(word), address, advertised })
        })
    }

    /// What clients are told of a relayed address.
    pub fn public(&self, address: RelayedAddr) -> SocketAddr {
        let relay = self.relays.iter().find(|relay| relay.address.bind == address.ip());
        let ip = relay.map_or(address.ip(), |relay| relay.address.public());
        SocketAddr::new(ip, address.port())
    }

    /// How many ports of a family are in use, and how many there are. Looks at every port: for metrics, not for
    /// packets.
    pub fn usage(&self, family: Family) -> (usize, usize) {
        let relays = || self.relays.iter().filter(|relay| Family::of(relay.address.bind) == family);
        let words = || relays().flat_map(|relay| relay.words.iter());
        (words().filter(|word| word.load(Ordering::Relaxed) != FREE).count(), words().count())
    }

    fn word(&self, address: RelayedAddr) -> Option<&AtomicU64> {
        let relay = self.relays.iter().find(|relay| IpAddr::eq(&relay.address.bind, &address.ip()))?;
        relay.words.get(usize::from(address.port().checked_sub(self.port_min)?))
    }
}

fn claimed_by(worker: WorkerId) -> u64 {
    CLAIMED | u64::from(worker.0) << WORKER_SHIFT
}

fn worker_of(word: u64) -> WorkerId {
    WorkerId((word >> WORKER_SHIFT) as u8)
}

impl RelayPorts {
    /// Tries every port once, from a random one on; what is claimed holds `claimed`.
    fn claim(&self, port_min: u16, parity: Parity, claimed: u64, rng: &mut StdRng) -> Option<usize> {
        let first = rng.random_range(0..self.words.len());
        let order = (first..self.words.len()).chain(0..first);
        let even = |index: &usize| (usize::from(port_min) + index).is_multiple_of(2);
        match parity {
            Parity::Any => order.into_iter().find(|&index| self.claim_one(index, claimed)),
            Parity::Even => order.into_iter().filter(even).find(|&index| self.claim_one(index, claimed)),
            Parity::EvenPair => order.into_iter().filter(even).find(|&index| self.claim_pair(index, claimed)),
        }
    }

    fn claim_one(&self, index: usize, claimed: u64) -> bool {
        let claim = |word: &AtomicU64| word.compare_exchange(FREE, claimed, Ordering::AcqRel, Ordering::Relaxed);
        self.words.get(index).is_some_and(|word| claim(word).is_ok())
    }

    fn claim_pair(&self, index: usize, claimed: u64) -> bool {
        if !self.claim_one(index, claimed) {
            return false;
        }
        if self.claim_one(index + 1, claimed) {
            return true;
        }
        self.words[index].store(FREE, Ordering::Release);
        false
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::turn::testing;

    const WORKER: WorkerId = WorkerId(255);

    fn ports(min: u16, max: u16) -> Ports {
        Ports::new(&Settings { port_min: min, port_max: max, ..testing::settings() })
    }

    fn rng() -> StdRng {
        StdRng::seed_from_u64(1)
    }

    #[test]
    fn every_port_is_claimed_once_and_then_none() {
        let (ports, mut rng) = (ports(50_000, 50_009), rng());
        let mut claimed: Vec<_> =
            std::iter::from_fn(|| ports.claim(Family::V4, Parity::Any, WORKER, &mut rng)).collect();
        claimed.sort();
        claimed.dedup();
        assert_eq!(claimed.len(), 10);
        ports.release(claimed[3]);
        assert_eq!(ports.claim(Family::V4, Parity::Any, WORKER, &mut rng), Some(claimed[3]));
    }

    #[test]
    fn even_ports_and_pairs_are_even() {
        let (ports, mut rng) = (ports(50_001, 50_006), rng());
        let pair = ports.claim(Family::V4, Parity::EvenPair, WORKER, &mut rng).unwrap();
        assert_eq!(pair.port() % 2, 0);
        let single = ports.claim(Family::V4, Parity::Even, WORKER, &mut rng).unwrap();
        assert_eq!(single.port() % 2, 0);
        assert_ne!(single, pair);
        let rest: Vec<_> = std::iter::from_fn(|| ports.claim(Family::V4, Parity::Any, WORKER, &mut rng)).collect();
        assert!(rest.iter().all(|address| address.port() != pair.port() + 1), "the pair's upper port is claimed");
    }

    #[test]
    fn the_last_port_of_the_range_is_no_lower_half_of_a_pair() {
        let (ports, mut rng) = (ports(50_000, 50_000), rng());
        assert_eq!(ports.claim(Family::V4, Parity::EvenPair, WORKER, &mut rng), None);
        assert!(
            ports.claim(Family::V4, Parity::Even, WORKER, &mut rng).is_some(),
            "the failed pair gave its port back"
        );
    }

    #[test]
    fn a_live_port_is_found_by_bound_and_advertised_address() {
        let mut settings = testing::settings();
        settings.relay_addresses[0].advertised = Some("198.51.100.7".parse().unwrap());
        let (ports, mut rng) = (Ports::new(&settings), rng());
        let address = ports.claim(Family::V4, Parity::Any, WORKER, &mut rng).unwrap();
        let peer = |ip: &str| PeerAddr::new(SocketAddr::new(ip.parse().unwrap(), address.port()));
        assert_eq!(ports.live(PeerAddr::new(address.socket_addr())), None, "claimed is not live");
        let relay = RelayId::new(5, 9, Family::V4);
        ports.publish(address, RelayTransport::Udp, WorkerId(3), relay);
        let live = Live { worker: WorkerId(3), relay, address, advertised: true };
        assert_eq!(ports.live(peer("198.51.100.7")), Some(live));
        assert_eq!(ports.live(PeerAddr::new(address.socket_addr())), Some(Live { advertised: false, ..live }));
        assert_eq!(ports.public(address), peer("198.51.100.7").socket_addr());
        assert_eq!(ports.live_tcp(peer("198.51.100.7")), None, "a port of UDP is none of TCP");
        ports.publish(address, RelayTransport::Tcp, WorkerId(u8::MAX), relay);
        assert_eq!(ports.live(peer("198.51.100.7")), None, "a port of TCP is none of UDP");
        let bound = PeerAddr::new(address.socket_addr());
        assert_eq!([ports.live_tcp(peer("198.51.100.7")), ports.live_tcp(bound)], [Some(bound); 2]);
        ports.withdraw(address, WorkerId(u8::MAX));
        assert_eq!((ports.live(peer("198.51.100.7")), ports.live_tcp(bound)), (None, None));
    }

    #[test]
    fn the_ports_of_one_worker_are_freed_together_whatever_they_are() {
        let (ports, mut rng) = (ports(50_000, 50_009), rng());
        for worker in [WorkerId(0), WorkerId(1)] {
            let mut claim = |parity| ports.claim(Family::V4, parity, worker, &mut rng).unwrap();
            let (live, pair) = (claim(Parity::Any), claim(Parity::EvenPair));
            ports.publish(live, RelayTransport::Udp, worker, RelayId::new(0, 0, Family::V4));
            ports.publish(pair, RelayTransport::Tcp, worker, RelayId::new(1, 0, Family::V4));
            ports.withdraw(pair, worker);
        }
        let passed_on = ports.claim(Family::V4, Parity::Any, WorkerId(0), &mut rng).unwrap();
        ports.hand_over(passed_on, WorkerId(1));
        assert_eq!(ports.usage(Family::V4), (7, 10));
        ports.release_all(WorkerId(0));
        assert_eq!(ports.usage(Family::V4), (4, 10));
        ports.release_all(WorkerId(1));
        assert_eq!(ports.usage(Family::V4), (0, 10));
    }

    #[test]
    fn ports_are_spread_over_the_range() {
        let (ports, mut rng) = (ports(49_152, 65_535), rng());
        let claimed: Vec<_> =
            (0..200).map(|_| ports.claim(Family::V4, Parity::Any, WORKER, &mut rng).unwrap().port()).collect();
        let neighbours = claimed.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 16).count();
        assert!(neighbours < 20, "{neighbours} of 199 next to their predecessor");
    }
}
