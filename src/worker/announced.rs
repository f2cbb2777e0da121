//! Datagrams that a proxy has passed on, each behind a header that names its client.
//!
//! A client's datagrams may come from any port of any proxy, so that the kernel gives them to any worker. The client's
//! 5-tuple says which worker has it; the others pass its datagrams on.

use std::net::{IpAddr, SocketAddr};

use super::dtls::At;
use super::neighbours::What;
use super::packet_loop::Worker;
use super::proxies::Host;
use super::routes::{Path, Way};
use crate::address::{ClientAddr, FiveTuple, ServerAddr, Transport};
use crate::net::datagrams::Datagrams;
use crate::net::proxy::parse_datagram;
use crate::turn::{Now, Route};

/// How a datagram has arrived at a listener behind proxies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) listener: u16,
    pub(super) from: SocketAddr,
    /// The address that was asked, where the listener has many.
    pub(super) to: Option<IpAddr>,
    pub(super) tos: u8,
}

impl<D: Datagrams> Worker<D> {
    /// A datagram at a listener behind proxies: one of a proxy that names a client, or nothing.
    pub(super) fn handle_proxy(&mut self, now: Now, arrived: &Arrived, bytes: &[u8]) {
        let Arrived { listener: index, from, to, tos } = *arrived;
        let Some(listener) = self.listeners.get(index) else { return };
        let ip = from.ip();
        if !listener.terms.proxies.iter().any(|range| range.contains(&ip)) {
            self.statistics.proxy_strangers += 1;
            return;
        }
        let Ok((header_len, ends)) = parse_datagram(bytes) else {
            self.statistics.proxy_headers += 1;
            return;
        };
        let client = match ends {
            Some(ends) => FiveTuple {
                transport: Transport::Udp,
                client: ClientAddr::new(ends.client),
                server: ServerAddr::new(ends.server),
            },
            None => listener.five_tuple(from, to),
        };
        let asked = to.filter(|_| listener.address.ip().is_unspecified());
        let Some(host) = self.proxies.number(Host::new(from, asked)) else {
            self.statistics.proxy_hosts += 1;
            return;
        };
        let (path, payload) = (Path::Proxied { host, port: from.port() }, &bytes[header_len..]);
        let worker = self.proxies.worker_of(&client, self.neighbours.workers());
        if worker == usize::from(self.id.0) {
            return self.handle_detached(now, At { client, listener: index, path, tos, home: None }, payload);
        }
        let passed = self.neighbours.pass(worker, What::Announced { client, listener: index, path, tos }, payload);
        self.statistics.ring_full += u64::from(!passed);
    }

    /// The newest way through proxies to a client is the one that is taken.
    pub(super) fn reroute(&mut self, client: &FiveTuple, route: Route) {
        if let Way::Udp { path: Path::Proxied { .. }, .. } = Way::of(route) {
            self.server.handle_rerouted(client, route);
        }
    }
}
