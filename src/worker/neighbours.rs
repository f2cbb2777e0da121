//! What workers pass to each other: packets through one bounded ring per pair and direction, streams through mailboxes.
//!
//! A packet's bytes cross in a buffer, and the buffer comes back through a second ring, so that passing a packet asks
//! nothing of the heap. There are as many buffers as packets were ever under way at once, in steps.

use rtrb::{Consumer, Producer, RingBuffer};

use super::handle::{Command, WorkerHandle};
use super::routes::Path;
use crate::address::{FiveTuple, PeerAddr};
use crate::net::stream::Connection;
use crate::turn::{RelayId, Route};

/// Packets that a ring holds: 20 ms of 50,000 packets a second.
const RING_CAPACITY: usize = 1024;
/// Longer buffers are not kept: calls have packets of at most an Ethernet frame, and 1024 x 2 KiB are 2 MiB for each pair
/// and direction, when everything was under way at once.
const KEPT_BYTES_MAX: usize = 2048;
/// Buffers that are made at once, when there are none.
const BUFFERS_MADE: usize = 64;

/// What another worker is to handle.
#[derive(Debug)]
pub struct Packet {
    pub what: What,
    pub bytes: Vec<u8>,
}

/// What the bytes are.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// Application data for a relayed address of that worker.
    Data { relay: RelayId, from: PeerAddr },
    /// A datagram of a client whose allocation is that worker's. The route is good on every worker, as all have the
    /// same listeners in the same order.
    Client { client: FiveTuple, route: Route, tos: u8 },
    /// A datagram for an association that is that worker's now.
    Dtls { client: FiveTuple, listener: u16, path: Path, tos: u8, home: usize },
    /// A datagram of a client that a proxy has announced, without the header, for the worker of that client.
    Announced { client: FiveTuple, listener: u16, path: Path, tos: u8 },
}

/// One worker's ends of the rings.
#[derive(Debug)]
pub struct Neighbours {
    outgoing: Vec<Option<Outgoing>>,
    incoming: Vec<Incoming>,
    /// The ring that is looked at first, so that a busy one keeps no other waiting.
    first: usize,
    to_wake: Vec<bool>,
}

#[derive(Debug)]
struct Outgoing {
    packets: Producer<Packet>,
    /// Buffers that have come back.
    buffers: Consumer<Vec<u8>>,
    /// Those that have not crossed yet.
    fresh: Vec<Vec<u8>>,
    worker: WorkerHandle,
}

#[derive(Debug)]
struct Incoming {
    packets: Consumer<Packet>,
    buffers: Producer<Vec<u8>>,
}

/// Where a packet came from, and its buffer goes back to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring(usize);

impl Outgoing {
    /// An empty buffer.
    fn buffer(&mut self) -> Vec<u8> {
        if let Ok(buffer) = self.buffers.pop() {
            return buffer;
        }
        if self.fresh.is_empty() {
            self.fresh.extend((0..BUFFERS_MADE).map(|_| Vec::with_capacity(KEPT_BYTES_MAX)));
        }
        self.fresh.pop().unwrap_or_default()
    }
}

impl Neighbours {
    /// The ends for every worker, in the order of their handles.
    pub fn mesh(handles: &[WorkerHandle]) -> Vec<Self> {
        let count = handles.len();
        let mut all: Vec<Self> = (0..count)
            .map(|_| Self {
                outgoing: (0..count).map(|_| None).collect(),
                incoming: Vec::new(),
                first: 0,
                to_wake: vec![false; count],
            })
            .collect();
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let ((packets, taken), (given_back, buffers)) =
                    (RingBuffer::new(RING_CAPACITY), RingBuffer::new(RING_CAPACITY));
                let (fresh, worker) = (Vec::new(), handles[to].clone());
                all[from].outgoing[to] = Some(Outgoing { packets, buffers, fresh, worker });
                all[to].incoming.push(Incoming { packets: taken, buffers: given_back });
            }
        }
        all
    }

    /// Passes a packet on; false when the ring is full: the packet is dropped, so that the order is kept.
    pub(super) fn pass(&mut self, worker: usize, what: What, bytes: &[u8]) -> bool {
        let Some(Some(outgoing)) = self.outgoing.get_mut(worker) else { return false };
        self.to_wake[worker] = true;
        if outgoing.packets.is_full() {
            return false;
        }
        let mut buffer = outgoing.buffer();
        buffer.extend_from_slice(bytes);
        outgoing.packets.push(Packet { what, bytes: buffer }).is_ok()
    }

    /// Tells another worker something.
    pub(super) fn tell(&self, worker: usize, command: Command) {
        if let Some(Some(outgoing)) = self.outgoing.get(worker) {
            outgoing.worker.tell(command);
        }
    }

    /// The number of this worker: the one that it has no ring to.
    pub(super) fn own(&self) -> usize {
        self.outgoing.iter().position(Option::is_none).unwrap_or(0)
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> usize {
        self.outgoing.len()
    }

    /// Gives a stream to another worker for good. A stream that nobody takes is closed.
    pub(super) fn move_stream(&self, worker: usize, connection: Connection) {
        self.tell(worker, Command::Adopt(Box::new(connection)));
    }

    /// Wakes the workers that were passed something since the last call.
    pub(super) fn wake(&mut self) {
        for (to_wake, outgoing) in self.to_wake.iter_mut().zip(&self.outgoing) {
            if std::mem::take(to_wake)
                && let Some(outgoing) = outgoing
            {
                outgoing.worker.wake();
            }
        }
    }

    /// Throws away what was passed to a worker that has failed.
    pub(super) fn clear(&mut self) {
        for incoming in &mut self.incoming {
            // Who goes on passing meets a full ring.
            for _ in 0..RING_CAPACITY {
                if incoming.packets.pop().is_err() {
                    break;
                }
            }
        }
    }

    /// The next packet from any neighbour, whose buffer is to be given back.
    pub(super) fn next(&mut self) -> Option<(Ring, Packet)> {
        let count = self.incoming.len();
        let mut order = (self.first..count).chain(0..self.first.min(count));
        order.find_map(|index| {
            let packet = self.incoming[index].packets.pop().ok()?;
            self.first = (index + 1) % count;
            Some((Ring(index), packet))
        })
    }

    /// Gives the buffer of a packet back, to be used again.
    pub(super) fn give_back(&mut self, ring: Ring, mut buffer: Vec<u8>) {
        if buffer.capacity() <= KEPT_BYTES_MAX {
            buffer.clear();
            // When everything was under way at once there are a few more than places.
            let _ = self.incoming[ring.0].buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbours(count: usize) -> Vec<Neighbours> {
        let handles: Vec<_> = (0..count).map(|_| WorkerHandle::new().unwrap().0).collect();
        Neighbours::mesh(&handles)
    }

    fn pass(neighbours: &mut Neighbours, to: usize, bytes: &[u8]) -> bool {
        let from = PeerAddr::new("127.0.0.1:4000".parse().unwrap());
        neighbours.pass(to, What::Data { relay: RelayId::unpack(1), from }, bytes)
    }

    #[test]
    fn a_full_ring_drops_what_comes_and_keeps_the_order() {
        let [mut one, mut other] = neighbours(2).try_into().unwrap();
        for round in 0..3_u32 {
            let passed = (0..RING_CAPACITY as u32 + 5).filter(|number| pass(&mut one, 1, &number.to_be_bytes()));
            assert_eq!(passed.count(), RING_CAPACITY, "{round}");
            for number in 0..RING_CAPACITY as u32 {
                let (from, packet) = other.next().unwrap();
                assert_eq!(packet.bytes, number.to_be_bytes());
                other.give_back(from, packet.bytes);
            }
            assert!(other.next().is_none());
        }
    }

    #[test]
    fn a_buffer_is_used_again_unless_it_has_grown_too_long() {
        let [mut one, mut other] = neighbours(2).try_into().unwrap();
        let mut crosses = |bytes: &[u8]| {
            assert!(pass(&mut one, 1, bytes));
            let (from, packet) = other.next().unwrap();
            assert_eq!(packet.bytes, bytes);
            let place = packet.bytes.as_ptr();
            other.give_back(from, packet.bytes);
            (place, one.outgoing[1].as_ref().unwrap().buffers.slots())
        };
        let (first, _) = crosses(&[1; 1500]);
        assert_eq!((crosses(&[2; 7]), crosses(&[3; 1500])), ((first, 1), (first, 1)));
        assert_eq!(crosses(&[4; KEPT_BYTES_MAX + 1]).1, 0);
    }

    #[test]
    fn a_busy_neighbour_keeps_no_other_waiting() {
        let [mut one, mut two, mut three] = neighbours(3).try_into().unwrap();
        for _ in 0..10 {
            assert!(pass(&mut one, 2, b"one"));
        }
        assert!(pass(&mut two, 2, b"two"));
        let first: Vec<_> = (0..2).map(|_| three.next().unwrap().1.bytes).collect();
        assert!(first.contains(&b"two".to_vec()), "{first:?}");
        assert_eq!(std::iter::from_fn(|| three.next()).count(), 9);
    }
}
