//! The UDP listeners of a worker: they come and go while it runs, and outlive it when it fails.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use ipnet::IpNet;

use super::packet_loop::Worker;
use super::requests::Requests;
use super::routes::Socket;
use super::settings::{self, Accept};
use crate::address::FiveTuple;
use crate::net::datagrams::{Datagrams, Role, SocketKey};
use crate::net::drops::receive_drops;
use crate::net::steering::{Queue, Queues};

/// A listener's sockets of one worker. They stay open here while workers come and go, so that the kernel goes on
/// spreading clients as it did.
#[derive(Debug)]
pub struct Stand {
    pub queues: Queues,
    pub terms: Terms,
}

impl Stand {
    fn drops(&self) -> u64 {
        let Queues { many, few, rest } = &self.queues;
        let sockets = many.iter().chain(few).chain(rest);
        // What cannot be asked for is not known of.
        sockets.map(|socket| receive_drops(socket).map_or(0, u64::from)).sum()
    }
}

/// What a listener answers, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub accept: Accept,
    /// Who announces clients, in front of each datagram, and is believed; unless it is empty, nobody else is heard.
    pub proxies: Arc<[IpNet]>,
    /// It was removed: who has an allocation there keeps it, and to all others it is a closed port.
    pub calls_alone: bool,
}

impl Terms {
    /// Those of a listener as it is configured.
    pub fn of(listener: &settings::Listener) -> Self {
        Self { proxies: listener.proxies.as_slice().into(), ..Self::open(listener.kind.accept()) }
    }

    /// Everybody is served.
    pub fn open(accept: Accept) -> Self {
        Self { accept, proxies: [].into(), calls_alone: false }
    }
}

/// What becomes of a listener. Its index is the same on all workers, and no other listener's ever after.
#[derive(Debug)]
pub enum Listening {
    /// Serve these sockets; the answer is whether that could be begun.
    Begin {
        index: u16,
        stand: Box<Stand>,
        to: SyncSender<io::Result<()>>,
    },
    Change {
        index: u16,
        terms: Terms,
    },
    /// Close it. What is left of its clients cannot be answered any more.
    End {
        index: u16,
    },
}

/// A UDP listener.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    /// The socket that answers leave from: one of those that media arrives at.
    pub(super) key: SocketKey,
    pub(super) address: SocketAddr,
    pub(super) terms: Terms,
}

/// A listener with every socket that media arrives at.
#[derive(Debug)]
pub(super) struct Served {
    listener: Listener,
    keys: Vec<SocketKey>,
    /// Its sockets for requests were asked to receive runs as one.
    merges_requests: bool,
}

/// The listeners by their index.
#[derive(Debug)]
pub(super) struct Listeners {
    /// What the next worker goes on with.
    pub(super) stands: Vec<Option<Stand>>,
    served: Vec<Option<Served>>,
}

impl Listeners {
    pub(super) fn new(stands: Vec<Option<Stand>>, served: Vec<Option<Served>>) -> Self {
        Self { stands, served }
    }

    /// Hot.
    pub(super) fn get(&self, index: u16) -> Option<&Listener> {
        Some(&self.served.get(usize::from(index))?.as_ref()?.listener)
    }

    /// What the kernel has dropped of all of them, as their receive buffers were full.
    pub(super) fn drops(&self) -> u64 {
        self.stands.iter().flatten().map(Stand::drops).sum()
    }

    pub(super) fn position(&self, is_meant: impl Fn(&Listener) -> bool) -> Option<u16> {
        let found = |served: &Option<Served>| served.as_ref().is_some_and(|served| is_meant(&served.listener));
        self.served.iter().position(found).map(|index| index as u16)
    }
}

/// Registers the sockets of a listener; on an error none of them is.
pub(super) fn serve<D: Datagrams>(
    index: u16,
    stand: &Stand,
    datagrams: &mut D,
    requests: &mut Requests,
) -> io::Result<Served> {
    let mut keys = Vec::new();
    let result = register(index, stand, datagrams, requests, &mut keys);
    match (result, keys.first()) {
        (Ok(address), Some(key)) => Ok(Served {
            listener: Listener { key: *key, address, terms: stand.terms.clone() },
            keys,
            merges_requests: false,
        }),
        (result, _) => {
            keys.into_iter().for_each(|key| datagrams.remove(key));
            requests.remove(datagrams.poll(), index);
            Err(result.err().unwrap_or_else(|| io::ErrorKind::InvalidInput.into()))
        }
    }
}

fn register<D: Datagrams>(
    index: u16,
    stand: &Stand,
    datagrams: &mut D,
    requests: &mut Requests,
    keys: &mut Vec<SocketKey>,
) -> io::Result<SocketAddr> {
    let queues = &stand.queues;
    let address = queues.many.first().ok_or(io::ErrorKind::InvalidInput)?.local_addr()?;
    for socket in &queues.many {
        keys.push(datagrams.add(Socket::Listener(index).token(), Role::Listener, socket.try_clone()?)?);
    }
    for (queue, socket) in [(Queue::Few, &queues.few), (Queue::Rest, &queues.rest)] {
        if let Some(socket) = socket {
            requests.add(datagrams.poll(), index, queue, socket.try_clone()?)?;
        }
    }
    Ok(address)
}

impl<D: Datagrams> Worker<D> {
    /// Opens, changes or closes a listener.
    pub(super) fn listen(&mut self, listening: Listening) {
        match listening {
            Listening::Begin { index, stand, to } => {
                let begun = self.begin_listener(index, *stand);
                // Whoever asked may have given up, and then ends it.
                let _ = to.try_send(begun);
            }
            Listening::Change { index, terms } => {
                let Listeners { stands, served } = &mut self.listeners;
                if let Some(Some(stand)) = stands.get_mut(usize::from(index)) {
                    stand.terms = terms.clone();
                }
                if let Some(Some(served)) = served.get_mut(usize::from(index)) {
                    served.listener.terms = terms;
                }
            }
            Listening::End { index } => self.end_listener(index),
        }
    }

    fn begin_listener(&mut self, index: u16, stand: Stand) -> io::Result<()> {
        let Some(requests) = &mut self.requests else { return Err(io::ErrorKind::ResourceBusy.into()) };
        let served = serve(index, &stand, &mut self.datagrams, requests)?;
        let Listeners { stands, served: all } = &mut self.listeners;
        let len = stands.len().max(usize::from(index) + 1);
        stands.resize_with(len, || None);
        all.resize_with(len, || None);
        stands[usize::from(index)] = Some(stand);
        all[usize::from(index)] = Some(served);
        Ok(())
    }

    fn end_listener(&mut self, index: u16) {
        let Listeners { stands, served } = &mut self.listeners;
        let served = served.get_mut(usize::from(index)).and_then(Option::take);
        for key in served.into_iter().flat_map(|served| served.keys) {
            self.datagrams.remove(key);
        }
        if let Some(requests) = &mut self.requests {
            requests.remove(self.datagrams.poll(), index);
        }
        if let Some(stand) = stands.get_mut(usize::from(index)).and_then(Option::take) {
            self.statistics.listener_drops += stand.drops();
        }
    }

    /// Has what requests arrive at receive runs as one, as what media arrives at does.
    pub(super) fn merge_requests(&mut self, index: u16) {
        if let Some(Some(served)) = self.listeners.served.get_mut(usize::from(index))
            && !served.merges_requests
            && let Some(requests) = &self.requests
        {
            served.merges_requests = true;
            requests.merge(index);
        }
    }

    /// Whether a listener that was removed, `calls_alone`, has nothing to say to a client: it has no call there.
    pub(super) fn is_closed_to(&self, calls_alone: bool, client: &FiveTuple) -> bool {
        calls_alone && self.is_stranger(client)
    }

    /// Whether a client has no allocation, here or at another worker.
    pub(super) fn is_stranger(&self, client: &FiveTuple) -> bool {
        !self.server.has_allocation(client) && !self.server.is_elsewhere(client)
    }
}
