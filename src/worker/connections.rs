//! The streams of a worker, and what waits to be written to them.

use std::collections::VecDeque;
use std::time::Instant;

use super::deadlines::Signs;
use super::routes::{CONNECTION_GENERATION_MASK, ConnectionId};
use crate::address::FiveTuple;
use crate::net::buffers::Buffers;
use crate::net::stream::{Class, Connection};
use crate::turn::{Now, PeerConnectionId};

/// A stream and what the loop has to remember of it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) connection: Connection,
    pub(super) client: FiveTuple,
    pub(super) signs: Signs,
    /// The connection with a peer that it is bound to: what comes are no messages.
    pub(super) peer: Option<PeerConnectionId>,
    /// What comes from the client, and what comes from the peer, waits for its turn until the limits let more pass.
    pub(super) waits: [bool; 2],
    /// An event has told that the client closes, or has closed its half.
    pub(super) hangs_up: bool,
    /// It is in [`Connections::unread`], where it has its turn.
    pub(super) is_unread: bool,
    /// It is in [`Connections::to_flush`].
    to_flush: bool,
}

/// Whose streams have their turn before the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// One that owns an allocation, or is bound to a connection with a peer.
    Call,
    Stranger,
}

/// One framed message on its way to a client.
pub(super) struct Message<'a> {
    pub(super) class: Class,
    pub(super) prefix: &'a [u8],
    pub(super) payload: &'a [u8],
    /// Zero bytes behind the payload.
    pub(super) padding: u8,
}

/// A slab of streams with the buffers that they share.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Streams that may hold more than was read, by [`Reader`], each once: what comes meanwhile gives none another turn.
    unread: [VecDeque<ConnectionId>; 2],
    /// Streams with something to write, each once.
    to_flush: Vec<ConnectionId>,
    pub(super) buffers: Buffers,
    /// Messages that slow streams did not get.
    pub(super) dropped: u64,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    stream: Option<Box<Stream>>,
}

impl Connections {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, now: Instant, connection: Connection) -> ConnectionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, stream: None });
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        let client = connection.five_tuple();
        let signs = Signs::new(now);
        entry.stream = Some(Box::new(Stream {
            client,
            connection,
            signs,
            peer: None,
            waits: [false; 2],
            hangs_up: false,
            is_unread: false,
            to_flush: false,
        }));
        ConnectionId { slot, generation: entry.generation }
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<(&mut Stream, &mut Buffers)> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        Some((slot.stream.as_deref_mut()?, &mut self.buffers))
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Stream> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        let mut stream = slot.stream.take()?;
        slot.generation = (slot.generation + 1) & CONNECTION_GENERATION_MASK;
        self.free.push(id.slot);
        self.dropped += dropped(&mut stream);
        Some(*stream)
    }

    /// Queues one message; what a slow stream does not take is dropped and counted.
    pub(super) fn queue(&mut self, now: Now, id: ConnectionId, message: &Message<'_>) {
        let Some((stream, buffers)) = self.get_mut(id) else {
            self.dropped += 1;
            return;
        };
        let Message { class, prefix, payload, padding } = *message;
        let queued = stream.connection.send(now.instant, class, prefix, payload, usize::from(padding), buffers);
        self.dropped += u64::from(queued.is_err());
        self.mark(id);
    }

    /// Has the stream read when it has its turn.
    pub(super) fn mark_unread(&mut self, id: ConnectionId, reader: Reader) {
        if let Some((stream, _)) = self.get_mut(id)
            && !std::mem::replace(&mut stream.is_unread, true)
        {
            self.unread[reader as usize].push_back(id);
        }
    }

    /// How many streams are to be read.
    pub(super) fn unread(&self, reader: Reader) -> usize {
        self.unread[reader as usize].len()
    }

    /// Whether any stream is to be read.
    pub(super) fn has_unread(&self) -> bool {
        self.unread.iter().any(|queue| !queue.is_empty())
    }

    /// A stream whose turn it is to be read.
    pub(super) fn pop_unread(&mut self, reader: Reader) -> Option<ConnectionId> {
        let id = self.unread[reader as usize].pop_front()?;
        if let Some((stream, _)) = self.get_mut(id) {
            stream.is_unread = false;
        }
        Some(id)
    }

    /// Has the stream flushed at the end of the turn.
    pub(super) fn mark(&mut self, id: ConnectionId) {
        if let Some((stream, _)) = self.get_mut(id)
            && !std::mem::replace(&mut stream.to_flush, true)
        {
            self.to_flush.push(id);
        }
    }

    /// The streams that were marked.
    pub(super) fn take_marked(&mut self) -> Vec<ConnectionId> {
        std::mem::take(&mut self.to_flush)
    }

    /// Writes what a stream has queued; false when the stream is at its end.
    pub(super) fn flush(&mut self, now: Now, id: ConnectionId) -> bool {
        let Some((stream, buffers)) = self.get_mut(id) else { return true };
        stream.to_flush = false;
        let flushed = stream.connection.flush(now.instant, buffers);
        let lost = dropped(stream);
        self.dropped += lost;
        flushed.is_ok()
    }
}

fn dropped(stream: &mut Stream) -> u64 {
    let dropped = stream.connection.take_dropped();
    dropped.full + dropped.aged
}
