//! Data between clients of different workers: one bounded ring per pair and direction.

use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};

use super::handle::WakeOnce;
use crate::address::PeerAddr;
use crate::turn::RelayId;

/// Packets that a ring holds: 20 ms of 50,000 packets a second.
const RING_CAPACITY: usize = 1024;

/// Application data for a relayed address of another worker.
#[derive(Debug)]
pub struct Packet {
    pub(super) relay: RelayId,
    pub(super) from: PeerAddr,
    pub(super) bytes: Vec<u8>,
}

/// One worker's ends of the rings.
#[derive(Debug)]
pub struct Neighbours {
    outgoing: Vec<Option<(Producer<Packet>, Arc<WakeOnce>)>>,
    incoming: Vec<Consumer<Packet>>,
    to_wake: Vec<bool>,
}

impl Neighbours {
    /// The ends for every worker, in their order; `wakers` wakes each of them.
    pub fn mesh(wakers: &[Arc<WakeOnce>]) -> Vec<Self> {
        let count = wakers.len();
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
                all[from].outgoing[to] = Some((producer, Arc::clone(&wakers[to])));
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

    /// Wakes the workers that were passed something since the last call.
    pub(super) fn wake(&mut self) {
        for (to_wake, outgoing) in self.to_wake.iter_mut().zip(&self.outgoing) {
            if std::mem::take(to_wake)
                && let Some((_, waker)) = outgoing
            {
                waker.wake();
            }
        }
    }

    /// The next packet from any neighbour.
    pub(super) fn next(&mut self) -> Option<Packet> {
        self.incoming.iter_mut().find_map(|consumer| consumer.pop().ok())
    }
}
