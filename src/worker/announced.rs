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
use super::udp::{Body, Spoken, told_apart};
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
            return self.handle_announced(now, At { client, listener: index, path, tos, home: None }, payload);
        }
        let passed = self.neighbours.pass(worker, What::Announced { client, listener: index, path, tos }, payload);
        self.statistics.ring_full += u64::from(!passed);
    }

    /// A datagram of a client of this worker, without the header that has announced it.
    pub(super) fn handle_announced(&mut self, now: Now, at: At, bytes: &[u8]) {
        let Some(listener) = self.listeners.get(at.listener) else { return };
        let calls_alone = listener.terms.calls_alone;
        match told_apart(listener.terms.accept, bytes) {
            Spoken::Plain if self.is_closed_to(calls_alone, &at.client) => {
                self.statistics.removed_listener += 1;
            }
            Spoken::Plain => {
                let route = Way::Udp { listener: at.listener, path: at.path }.route();
                self.reroute(&at.client, route);
                if let Some(forward) = self.server.handle_client(now, &at.client, route, bytes) {
                    self.forward(now, forward, Body::Bytes(bytes), at.tos);
                }
                self.carry_out_effects(now);
            }
            Spoken::Unwanted => self.associations.statistics.plain += 1,
            Spoken::Dtls => self.handle_dtls(now, at, bytes),
        }
    }

    /// The newest way through proxies to a client is the one that is taken.
    pub(super) fn reroute(&mut self, client: &FiveTuple, route: Route) {
        if let Way::Udp { path: Path::Proxied { .. }, .. } = Way::of(route) {
            self.server.handle_rerouted(client, route);
        }
    }
}
