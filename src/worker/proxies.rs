//! The hosts of the proxies that announce clients over UDP, by number: with the port of the proxy a number is the way back
//! to a client, so that nothing is kept for a client that its allocation does not keep.

use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use hashbrown::HashMap;

use crate::address::FiveTuple;

/// Hosts that are known by a number, until the daemon ends: 48 bytes each here and twice that on each worker, 10 MiB on two
/// workers. Who has an address in a range that is named as one of proxies counts.
const HOSTS_MAX: usize = 1 << 16;
/// A datagram that is longer leaves no buffer behind.
const KEPT_BYTES_MAX: usize = 4096;

/// A proxy, as far as a way back needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Host {
    ip: IpAddr,
    /// The interface of a link-local address, else 0.
    scope: u32,
    /// The address of this host that it sends to, where the listener has many.
    pub(super) asked: Option<IpAddr>,
}

impl Host {
    pub(super) fn new(from: SocketAddr, asked: Option<IpAddr>) -> Self {
        let scope = match from {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(from) => from.scope_id(),
        };
        Self { ip: from.ip(), scope, asked }
    }

    pub(super) fn socket_addr(&self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(ip) => (ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.scope).into(),
        }
    }
}

/// What workers share: a number means the same to all of them.
#[derive(Clone, Debug, Default)]
pub struct ProxyHosts(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Each by its number.
    hosts: Mutex<Vec<Host>>,
    /// Clients choose what is hashed, so the hash is seeded.
    hasher: RandomState,
}

impl ProxyHosts {
    fn lock(&self) -> MutexGuard<'_, Vec<Host>> {
        self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one worker knows of the hosts, so that it locks only for one that is new.
#[derive(Debug)]
pub(super) struct Proxies {
    shared: ProxyHosts,
    hosts: Vec<Host>,
    numbers: HashMap<Host, u16, RandomState>,
    /// Room for the datagram in hand.
    datagram: Vec<u8>,
}

impl Proxies {
    pub(super) fn new(shared: ProxyHosts) -> Self {
        Self { shared, hosts: Vec::new(), numbers: HashMap::default(), datagram: Vec::new() }
    }

    /// The number of a host; `None` when there are too many.
    pub(super) fn number(&mut self, host: Host) -> Option<u16> {
        if let Some(number) = self.numbers.get(&host) {
            return Some(*number);
        }
        if self.hosts.len() == HOSTS_MAX {
            return None;
        }
        self.learn(Some(host));
        self.numbers.get(&host).copied()
    }

    /// The host of a number.
    pub(super) fn host(&mut self, number: u16) -> Option<Host> {
        if usize::from(number) >= self.hosts.len() {
            self.learn(None);
        }
        self.hosts.get(usize::from(number)).copied()
    }

    /// Takes over what other workers have added, and adds a host that nobody has.
    fn learn(&mut self, new: Option<Host>) {
        let mut all = self.shared.lock();
        let known = self.hosts.len();
        let is_new = |new: &Host| all.len() < HOSTS_MAX && !all[known..].contains(new);
        if let Some(new) = new.filter(is_new) {
            all.push(new);
        }
        for host in &all[known..] {
            self.numbers.insert(*host, self.hosts.len() as u16);
            self.hosts.push(*host);
        }
    }

    /// The worker, of so many, that has a client, whatever ports of proxies its datagrams come from.
    pub(super) fn worker_of(&self, client: &FiveTuple, workers: usize) -> usize {
        (self.shared.0.hasher.hash_one(client) % workers as u64) as usize
    }

    /// An empty buffer, to be [restored](Self::restore).
    pub(super) fn take_datagram(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.datagram)
    }

    pub(super) fn restore(&mut self, mut datagram: Vec<u8>) {
        if datagram.capacity() <= KEPT_BYTES_MAX {
            datagram.clear();
            self.datagram = datagram;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddr, ServerAddr, Transport};

    fn host(number: u32) -> Host {
        Host::new(SocketAddr::new(IpAddr::V4(number.into()), 4000), None)
    }

    #[test]
    fn a_number_means_the_same_to_every_worker() {
        let shared = ProxyHosts::default();
        let [mut one, mut other] = [(); 2].map(|()| Proxies::new(shared.clone()));
        assert_eq!(one.number(host(1)), Some(0));
        assert_eq!(other.number(host(2)), Some(1));
        assert_eq!(one.number(host(3)), Some(2));
        assert_eq!((other.number(host(1)), one.number(host(2))), (Some(0), Some(1)));
        assert_eq!((other.host(2), one.host(1)), (Some(host(3)), Some(host(2))));
        assert_eq!(one.host(3), None);
        let asked = Host { asked: Some("192.0.2.1".parse().unwrap()), ..host(1) };
        assert_eq!(one.number(asked), Some(3), "an answer leaves from the address that was asked");
    }

    #[test]
    fn no_more_hosts_are_known_than_have_a_number() {
        let shared = ProxyHosts::default();
        let [mut one, mut other] = [(); 2].map(|()| Proxies::new(shared.clone()));
        for number in 0..HOSTS_MAX as u32 {
            assert_eq!(one.number(host(number)), Some(number as u16));
        }
        for worker in [&mut one, &mut other] {
            assert_eq!(worker.number(host(u32::MAX)), None);
            assert_eq!(worker.number(host(7)), Some(7), "who is known stays known");
            assert_eq!(worker.hosts.len(), HOSTS_MAX);
        }
    }

    #[test]
    fn a_client_belongs_to_one_worker_and_clients_to_all() {
        let shared = ProxyHosts::default();
        let [one, other] = [(); 2].map(|()| Proxies::new(shared.clone()));
        let mut clients = [0; 3];
        for port in 1..1000 {
            let client = ClientAddr::new(([192, 0, 2, 7], port).into());
            let server = ServerAddr::new(([192, 0, 2, 1], 3478).into());
            let client = FiveTuple { transport: Transport::Udp, client, server };
            let worker = one.worker_of(&client, 3);
            assert_eq!(other.worker_of(&client, 3), worker);
            clients[worker] += 1;
        }
        assert!(clients.iter().all(|count| *count > 200), "{clients:?}");
    }

    #[test]
    fn a_link_local_proxy_is_reached_on_its_interface() {
        let from = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 4000, 0, 3));
        assert_eq!(Host::new(from, None).socket_addr(4001).to_string(), "[fe80::1%3]:4001");
    }
}
