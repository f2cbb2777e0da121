//! Calls over UDP: clients with allocations, their peers, and packets between them.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use crate::clients::{Clients, client_index, client_ip, peer_index, peer_ip};
use crate::datagrams::{self, BATCH, Inbox, Outbox};
use crate::dialog::{Ask, Dialog};
use crate::failure::{Failure, Result};
use crate::flood::Flood;
use crate::ledger::{Ledger, Tally};
use crate::machine::now_ns;
use crate::pace::{Drive, Pacer};
use crate::server::Running;
use crate::watch::{Phase, Stopwatch, Watched};
use crate::wire::{Shape, Way};

/// How long packets may be under way after the last was sent: 474 ms were seen in a server's queue.
const DRAIN_NS: u64 = 1_500_000_000;
/// Nothing arrived for this long: nothing will.
const QUIET_NS: u64 = 100_000_000;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    /// Each client with a peer of its own.
    Peers,
    /// Clients in pairs, each the other's peer, by their relayed addresses; everything goes up at one and arrives at
    /// the other.
    Pairs,
    /// Everyone with the echo, which has this address for peers.
    Echo(SocketAddrV4),
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load<'a> {
    pub(crate) ways: &'a [Way],
    pub(crate) drive: Drive,
    pub(crate) payload_len: usize,
}

/// One client's call.
#[derive(Clone, Copy, Debug)]
struct Call {
    channel: u16,
    /// Where its data goes.
    peer: SocketAddrV4,
    relayed: SocketAddrV4,
}

/// Calls that are set up, and the sockets that they go through.
pub(crate) struct Traffic {
    clients: Clients,
    calls: Vec<Call>,
    shape: Shape,
    topology: Topology,
    peers: UdpSocket,
    peer_outbox: Outbox,
    peer_inbox: Inbox,
}

/// What became of a load.
pub(crate) struct Outcome {
    pub(crate) watched: Watched,
    pub(crate) tallies: [Tally; 2],
    /// Share of the time in which the generator had something to do.
    pub(crate) generator_busy: f64,
    /// Share of packets that were due and not sent in time, or not at all.
    pub(crate) generator_late: f64,
}

impl Traffic {
    /// Sets up `count` calls on a server that has just been started.
    pub(crate) fn set_up(server: &Running, count: usize, shape: Shape, pairs: bool) -> Result<Self> {
        let peers = datagrams::open(None)?;
        let peer_port = datagrams::port(&peers)?;
        let topology = match server.echo_for_peers() {
            Some(address) => Topology::Echo(address),
            None if pairs => Topology::Pairs,
            None => Topology::Peers,
        };
        let mut clients = Clients::new(server.plain())?;
        let channel = |index: usize| 0x4000 + (index % 0x1000) as u16;
        let peer = |index: usize| SocketAddrV4::new(peer_ip(index), peer_port);
        let own = |index: usize| SocketAddrV4::new(client_ip(index), 0);
        let mut calls: Vec<Call> =
            (0..count).map(|index| Call { channel: channel(index), peer: peer(index), relayed: own(index) }).collect();
        if !matches!(topology, Topology::Echo(_)) {
            let mut dialogs: Vec<_> = (0..count).map(|index| Dialog::new(index as u64, &[Ask::Allocate])).collect();
            clients.talk(&mut dialogs)?;
            for (call, dialog) in calls.iter_mut().zip(&dialogs) {
                call.relayed = dialog.relayed_v4()?;
            }
            if topology == Topology::Pairs {
                let relayed: Vec<_> = calls.iter().map(|call| call.relayed).collect();
                calls.iter_mut().enumerate().for_each(|(index, call)| call.peer = relayed[index ^ 1]);
            }
            for (call, dialog) in calls.iter().zip(&mut dialogs) {
                dialog.go_on(&[match shape {
                    Shape::ChannelData => Ask::BindChannel { channel: call.channel, peer: call.peer.into() },
                    Shape::Indication => Ask::Permit { peer: call.peer.into() },
                }]);
            }
            clients.talk(&mut dialogs)?;
        }
        let (peer_outbox, peer_inbox) = (Outbox::new(), Inbox::new());
        Ok(Self { clients, calls, shape, topology, peers, peer_outbox, peer_inbox })
    }

    /// The relayed addresses of all calls.
    pub(crate) fn relayed(&self) -> Vec<SocketAddrV4> {
        self.calls.iter().map(|call| call.relayed).collect()
    }

    /// Runs a load to its end; `flood` is poured in beside it.
    pub(crate) fn run(
        &mut self,
        load: &Load<'_>,
        mut watch: Stopwatch,
        mut flood: Option<&mut Flood>,
    ) -> Result<Outcome> {
        let mut ledger = Ledger::new(self.calls.len(), load.payload_len);
        let headers: Vec<_> =
            self.calls.iter().map(|call| self.shape.header(call.channel, call.peer, load.payload_len)).collect();
        let mut pacer = Pacer::new(load.drive, load.ways, self.calls.len(), now_ns());
        let mut chosen = Vec::with_capacity(BATCH);
        let (mut busy_ns, mut all_ns) = (0, 0);
        loop {
            let now = now_ns();
            let phase = watch.tick(now, ledger.delivered())?;
            if phase == Phase::Over {
                break;
            }
            pacer.choose(now, &mut ledger, BATCH / 2, &mut chosen);
            for (way, flow) in &chosen {
                self.push(&mut ledger, *way, *flow, now, phase == Phase::Measured, load.payload_len, &headers[*flow]);
            }
            self.clients.outbox.flush(&self.clients.socket);
            self.peer_outbox.flush(&self.peers);
            let arrived = self.receive(&mut ledger);
            let poured = flood.as_mut().map_or(0, |flood| flood.pour(now));
            let spent = now_ns().saturating_sub(now);
            all_ns += spent;
            busy_ns += if chosen.is_empty() && arrived == 0 && poured == 0 { 0 } else { spent };
        }
        self.drain(&mut ledger);
        let tallies = ledger.into_tallies();
        let wrong: u64 = tallies.iter().map(|tally| tally.wrong).sum();
        if wrong > 0 {
            return Err(Failure::new(format!("{wrong} packets arrived changed or where they do not belong")));
        }
        let late = pacer.late as f64 / pacer.due.max(1) as f64;
        let generator_busy = busy_ns as f64 / f64::max(all_ns as f64, 1.0);
        Ok(Outcome { watched: watch.result()?, tallies, generator_busy, generator_late: late })
    }

    #[expect(clippy::too_many_arguments, reason = "what one packet is made of")]
    fn push(
        &mut self,
        ledger: &mut Ledger,
        way: Way,
        flow: usize,
        now: u64,
        measured: bool,
        payload_len: usize,
        header: &[u8],
    ) {
        let call = &self.calls[flow];
        match way {
            Way::Up => {
                let len = header.len() + payload_len;
                let datagram = self.clients.outbox.push(client_ip(flow), self.clients.server, len);
                datagram[..header.len()].copy_from_slice(header);
                ledger.write(way, flow, now, measured, &mut datagram[header.len()..]);
            }
            Way::Down => {
                let to = match self.topology {
                    Topology::Echo(peers) => peers,
                    Topology::Peers | Topology::Pairs => call.relayed,
                };
                let datagram = self.peer_outbox.push(peer_ip(flow), to, payload_len);
                ledger.write(way, flow, now, measured, datagram);
            }
        }
    }

    /// Takes what has arrived at clients and peers, and says how much it was.
    fn receive(&mut self, ledger: &mut Ledger) -> usize {
        let at_clients = self.clients.inbox.receive(&self.clients.socket);
        for index in 0..at_clients {
            let arrival = self.clients.inbox.get(index);
            let client = client_index(arrival.to);
            let (way, flow) = match self.topology {
                Topology::Peers => (Way::Down, client),
                Topology::Pairs => (Way::Up, client ^ 1),
                Topology::Echo(_) => (Way::Up, client),
            };
            match self.calls.get(client).filter(|_| arrival.from == self.clients.server) {
                Some(call) => {
                    let payload = match self.topology {
                        Topology::Echo(_) => Shape::ChannelData.unwrap(arrival.bytes, call.channel, call.peer),
                        Topology::Peers | Topology::Pairs => self.shape.unwrap(arrival.bytes, call.channel, call.peer),
                    };
                    ledger.take(way, flow, payload, arrival.at_ns);
                }
                None => ledger.take_stray(way),
            }
        }
        let at_peers = self.peer_inbox.receive(&self.peers);
        for index in 0..at_peers {
            let arrival = self.peer_inbox.get(index);
            let flow = peer_index(arrival.to);
            let (way, from) = match (self.topology, self.calls.get(flow)) {
                (Topology::Echo(peers), _) => (Way::Down, peers),
                (Topology::Peers | Topology::Pairs, Some(call)) => (Way::Up, call.relayed),
                (Topology::Peers | Topology::Pairs, None) => (Way::Up, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
            };
            if arrival.from == from {
                ledger.take(way, flow, Some(arrival.bytes), arrival.at_ns);
            } else {
                ledger.take_stray(way);
            }
        }
        at_clients + at_peers
    }

    /// Waits for what is still under way.
    fn drain(&mut self, ledger: &mut Ledger) {
        let begin = now_ns();
        let mut last = begin;
        while now_ns() < (begin + DRAIN_NS).min(last + QUIET_NS) {
            if self.receive(ledger) > 0 {
                last = now_ns();
            } else {
                crate::machine::nap(500);
            }
        }
    }
}
