//! What workers pass to each other: packets through one bounded ring per pair and direction, streams through mailboxes.

use rtrb::{Consumer, Producer, RingBuffer};

use super::handle::{Command, WorkerHandle};
use crate::address::{FiveTuple, PeerAddr};
use crate::net::stream::Connection;
use crate::turn::{RelayId, Route};

/// Packets that a ring holds: 20 ms of 50,000 packets a second.
const RING_CAPACITY: usize = 1024;

/// What another worker is to handle.
#[derive(Debug)]
pub enum Packet {
    /// Application data for a relayed address of that worker.
    Data { relay: RelayId, from: PeerAddr, bytes: Vec<u8> },
    /// A datagram of a client whose allocation is that worker's. The route is good on every worker, as all have the
    /// same listeners in the same order.
    Client { client: FiveTuple, route: Route, tos: u8, bytes: Vec<u8> },
    /// A datagram for an association that is that worker's now.
    Dtls { client: FiveTuple, listener: u16, scope: u32, tos: u8, home: usize, bytes: Vec<u8> },
}

/// One worker's ends of the rings.
#[derive(Debug)]
pub struct Neighbours {
    outgoing: Vec<Option<(Producer<Packet>, WorkerHandle)>>,
    incoming: Vec<Consumer<Packet>>,
    to_wake: Vec<bool>,
}

impl Neighbours {
    /// The ends for every worker, in the order of their handles.
    pub fn mesh(handles: &[WorkerHandle]) -> Vec<Self> {
        let count = handles.len();
        let mut all: Vec<Self> = (0..count)
            .map(|_| Self {
                outgoing: (0..count).map(|_| None).collect(),
                incoming: Vec::new(),
                to_wake: vec![false; count],
            })
            .collect();
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let (producer, consumer) = RingBuffer::new(RING_CAPACITY);
                all[from].outgoing[to] = Some((producer, handles[to].clone()));
                all[to].incoming.push(consumer);
            }
        }
        all
    }

    /// Passes a packet on; false when the ring is full: the packet is dropped, so that the order is kept.
    pub(super) fn pass(&mut self, worker: usize, packet: Packet) -> bool {
        let Some(Some((producer, _))) = self.outgoing.get_mut(worker) else { return false };
        self.to_wake[worker] = true;
        producer.push(packet).is_ok()
    }

    /// Tells another worker something.
    pub(super) fn tell(&self, worker: usize, command: Command) {
        if let Some(Some((_, handle))) = self.outgoing.get(worker) {
            handle.tell(command);
        }
    }

    /// The number of this worker: the one that it has no ring to.
    pub(super) fn own(&self) -> usize {
        self.outgoing.iter().position(Option::is_none).unwrap_or(0)
    }

    /// Gives a stream to another worker for good. A stream that nobody takes is closed.
    pub(super) fn move_stream(&self, worker: usize, connection: Connection) {
        self.tell(worker, Command::Adopt(Box::new(connection)));
    }

    /// Wakes the workers that were passed something since the last call.
    pub(super) fn wake(&mut self) {
        for (to_wake, outgoing) in self.to_wake.iter_mut().zip(&self.outgoing) {
            if std::mem::take(to_wake)
                && let Some((_, handle)) = outgoing
            {
                handle.wake();
            }
        }
    }

    /// Throws away what was passed to a worker that has failed.
    pub(super) fn clear(&mut self) {
        for consumer in &mut self.incoming {
            // Who goes on passing meets a full ring.
            for _ in 0..RING_CAPACITY {
                if consumer.pop().is_err() {
                    break;
                }
            }
        }
    }

    /// The next packet from any neighbour.
    pub(super) fn next(&mut self) -> Option<Packet> {
        self.incoming.iter_mut().find_map(|consumer| consumer.pop().ok())
    }
}
