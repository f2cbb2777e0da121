//! Calls over TCP and TLS legs: clients on connections, their peers on UDP.

use std::net::{SocketAddrV4, UdpSocket};

use crate::clients::{peer_index, peer_ip};
use crate::datagrams::{self, BATCH, Inbox, Outbox};
use crate::dialog::Ask;
use crate::failure::{Failure, Result};
use crate::ledger::Ledger;
use crate::legs::{Carrier, Leg, Legs};
use crate::machine::now_ns;
use crate::pace::{Drive, Pacer};
use crate::server::Running;
use crate::watch::{Phase, Stopwatch, Watched};
use crate::wire::{Shape, Way};

const PAYLOAD_LEN: usize = 1200;
const CHANNEL: u16 = 0x4001;
/// 16 packets of each of 20 flows: 370 KiB under way.
const WINDOW: u32 = 16;
const QUIET_NS: u64 = 50_000_000;
const DRAIN_NS: u64 = 500_000_000;

/// Calls that are set up.
pub(crate) struct LegTraffic {
    legs: Vec<Leg>,
    relayed: Vec<SocketAddrV4>,
    peer: SocketAddrV4,
    peers: UdpSocket,
    outbox: Outbox,
    inbox: Inbox,
}

impl LegTraffic {
    pub(crate) fn set_up(server: &Running, carrier: Carrier, count: usize) -> Result<Self> {
        let peers = datagrams::open(None)?;
        let port = datagrams::port(&peers)?;
        let peer = |index: usize| SocketAddrV4::new(peer_ip(index), port);
        let legs = Legs::set_up(server, carrier, count, |index| {
            vec![Ask::Allocate, Ask::BindChannel { channel: CHANNEL, peer: peer(index).into() }]
        })?;
        // Dialogs end in another order than they begin in.
        let mut this = Self {
            legs: Vec::new(),
            relayed: Vec::new(),
            peer: peer(0),
            peers,
            outbox: Outbox::new(),
            inbox: Inbox::new(),
        };
        let mut sorted = legs.legs;
        sorted.sort_by_key(|(_, dialog)| dialog.seed());
        for (leg, dialog) in sorted {
            this.relayed.push(dialog.relayed_v4()?);
            this.legs.push(leg);
        }
        Ok(this)
    }

    /// The TLS version of the legs, if they run over TLS.
    pub(crate) fn tls_version(&self) -> Option<f64> {
        self.legs.first()?.tls_version()
    }

    /// Runs a saturated load one way to its end.
    pub(crate) fn run(&mut self, way: Way, mut watch: Stopwatch) -> Result<Watched> {
        let mut ledger = Ledger::new(self.legs.len(), PAYLOAD_LEN);
        let mut pacer = Pacer::new(Drive::Window(WINDOW), &[way], self.legs.len(), now_ns());
        let header = Shape::ChannelData.header(CHANNEL, self.peer, PAYLOAD_LEN);
        let mut frame = vec![0; header.len() + PAYLOAD_LEN];
        frame[..header.len()].copy_from_slice(&header);
        let mut chosen = Vec::with_capacity(BATCH);
        loop {
            let now = now_ns();
            let phase = watch.tick(now, ledger.delivered())?;
            if phase == Phase::Over {
                break;
            }
            pacer.choose(now, &mut ledger, BATCH, &mut chosen);
            for (way, flow) in &chosen {
                let measured = phase == Phase::Measured;
                match way {
                    Way::Up => {
                        ledger.write(*way, *flow, now, measured, &mut frame[header.len()..]);
                        self.legs[*flow].queue(&frame)?;
                    }
                    Way::Down => {
                        let datagram = self.outbox.push(peer_ip(*flow), self.relayed[*flow], PAYLOAD_LEN);
                        ledger.write(*way, *flow, now, measured, datagram);
                    }
                }
            }
            self.outbox.flush(&self.peers);
            self.legs.iter_mut().filter(|leg| leg.is_blocked()).try_for_each(Leg::flush)?;
            self.receive(way, &mut ledger)?;
        }
        self.drain(way, &mut ledger)?;
        let wrong: u64 = ledger.into_tallies().iter().map(|tally| tally.wrong).sum();
        if wrong > 0 {
            return Err(Failure::new(format!("{wrong} packets arrived changed or where they do not belong")));
        }
        watch.result()
    }

    fn receive(&mut self, way: Way, ledger: &mut Ledger) -> Result<usize> {
        let mut count = 0;
        if way == Way::Down {
            for (flow, leg) in self.legs.iter_mut().enumerate() {
                count += leg.read(|frame| {
                    let payload = Shape::ChannelData.unwrap(frame, CHANNEL, self.peer);
                    ledger.take(Way::Down, flow, payload, now_ns());
                    Ok(())
                })?;
            }
        }
        let at_peers = self.inbox.receive(&self.peers);
        for index in 0..at_peers {
            let arrival = self.inbox.get(index);
            let flow = peer_index(arrival.to);
            if self.relayed.get(flow) == Some(&arrival.from) {
                ledger.take(Way::Up, flow, Some(arrival.bytes), arrival.at_ns);
            } else {
                ledger.take_stray(Way::Up);
            }
        }
        Ok(count + at_peers)
    }

    fn drain(&mut self, way: Way, ledger: &mut Ledger) -> Result<()> {
        let begin = now_ns();
        let mut last = begin;
        while now_ns() < (begin + DRAIN_NS).min(last + QUIET_NS) {
            self.legs.iter_mut().filter(|leg| leg.is_blocked()).try_for_each(Leg::flush)?;
            if self.receive(way, ledger)? > 0 {
                last = now_ns();
            } else {
                crate::machine::nap(500);
            }
        }
        Ok(())
    }
}
