//! Streams: from an established connection to framed messages, both ways.

use tracing::debug;

use super::deadlines::Found;
use super::packet_loop::Worker;
use super::routes::{ConnectionId, Socket, Way};
use super::udp::Body;
use crate::net::datagrams::Datagrams;
use crate::net::poll::{Event, Interest};
use crate::net::stream::{Connection, Fill};
use crate::stun::framing::frame_len;
use crate::turn::{Forward, Now, WorkerId};

/// Bytes read from one stream before the others have their turn.
const READ_BUDGET: usize = 64 * 1024;

/// What is left of a stream's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// Nothing, or the beginning of a message.
    WantsMore,
    /// A message, and maybe more, for an allocation of another worker.
    Elsewhere(WorkerId),
    /// Application data: the stream is bound to a connection with a peer.
    Bound,
    /// Bytes of which nobody knows where the next message begins.
    Lost,
}

impl<D: Datagrams> Worker<D> {
    /// Takes a stream over, established just now or another worker's.
    pub(super) fn add_stream(&mut self, now: Now, connection: Connection) {
        let id = self.streams.insert(now.instant, connection);
        let Some((stream, _)) = self.streams.get_mut(id) else { return };
        let token = Socket::Connection(id).token();
        if let Err(error) = self.datagrams.poll().add(&stream.connection, token, Interest::Both, true) {
            debug!(%error, "cannot watch a stream");
            self.streams.remove(id);
            return;
        }
        self.deadlines.add(now.instant, id);
        // The handshake or another worker may have read the first message along.
        self.read_stream(now, id, false);
    }

    /// An event of a stream: input, room for output, or its end.
    pub(super) fn serve_stream(&mut self, now: Now, id: ConnectionId, event: Event) {
        if self.streams.get_mut(id).is_some_and(|(stream, _)| stream.peer.is_some()) {
            return self.pass_data(now, id);
        }
        if event.writable
            && let Some((stream, _)) = self.streams.get_mut(id)
            && stream.connection.wants_write()
        {
            self.streams.mark(id);
        }
        if event.readable || event.hangup || event.error {
            self.read_stream(now, id, event.hangup || event.error);
        }
    }

    /// Reads what is there, up to a budget, and handles every whole message.
    pub(super) fn read_stream(&mut self, now: Now, id: ConnectionId, hang_up: bool) {
        let Some((stream, buffers)) = self.streams.get_mut(id) else { return };
        if stream.peer.is_some() {
            return self.pass_data(now, id);
        }
        let filled = stream.connection.fill(buffers, READ_BUDGET, hang_up);
        let framing = self.handle_messages(now, id);
        // TLS may have something of its own to say.
        self.streams.mark(id);
        match (filled, framing) {
            (Ok(Fill::Drained), Framing::WantsMore) => {}
            (Ok(Fill::Budget | Fill::Full), Framing::WantsMore) => self.unfinished.push_back((id, hang_up)),
            (Ok(_), Framing::Elsewhere(worker)) => self.hand_stream_over(id, worker),
            (Ok(_), Framing::Bound) => self.pass_data(now, id),
            (Ok(_), Framing::Lost) => {
                self.statistics.stream_garbage += 1;
                self.close_stream(now, id);
            }
            // A client that has closed its half hears the answers to what it asked before.
            (Ok(Fill::Eof), Framing::WantsMore) => {
                self.streams.flush(now, id);
                self.close_stream(now, id);
            }
            (Err(error), _) => {
                debug!(%error, "stream ended");
                self.close_stream(now, id);
            }
        }
    }

    fn handle_messages(&mut self, now: Now, id: ConnectionId) -> Framing {
        let Some((stream, _)) = self.streams.get_mut(id) else { return Framing::Lost };
        let (client, route) = (stream.client, Way::Stream(id).route());
        let mut received = stream.connection.take_received();
        let mut signs = stream.signs;
        let framing = loop {
            let bytes = received.bytes();
            // HTTP's methods begin like ChannelData, which nobody sends before a STUN message.
            if signs.heard_at.is_none() && bytes.first().is_some_and(|first| *first >= 0x40) {
                break Framing::Lost;
            }
            let len = match frame_len(bytes) {
                Ok(Some(len)) if len <= bytes.len() => len,
                Ok(Some(_) | None) => break Framing::WantsMore,
                Err(error) => {
                    debug!(client = %client.client, ?error, "stream cannot be framed");
                    break Framing::Lost;
                }
            };
            let message = &bytes[..len];
            signs.heard(now.instant);
            match self.server.handle_client(now, &client, route, message) {
                Some(Forward::Elsewhere { worker, .. }) => break Framing::Elsewhere(worker),
                Some(forward) => self.forward(now, forward, Body::Bytes(message), 0),
                None => {}
            }
            self.carry_out_effects(now);
            self.packets += 1;
            received.consume(len);
            if self.streams.get_mut(id).is_some_and(|(stream, _)| stream.peer.is_some()) {
                break Framing::Bound;
            }
        };
        if let Some((stream, buffers)) = self.streams.get_mut(id) {
            stream.signs = signs;
            stream.connection.restore_received(received, buffers);
        }
        framing
    }

    /// Looks at the streams whose deadline has come, and ends those that own nothing and say nothing, or talk on.
    pub(super) fn end_silent_streams(&mut self, now: Now) {
        while let Some(id) = self.deadlines.pop_due(now.instant) {
            let found = match self.streams.get_mut(id) {
                None => Found::Gone,
                Some((stream, _)) => {
                    let owns = match stream.peer {
                        Some(peer) => stream.signs.heard_lately(now.instant) || !self.peers.is_half_closed(peer),
                        None => self.server.has_allocation(&stream.client),
                    };
                    stream.signs.look(now.instant, owns)
                }
            };
            if found == Found::Silent {
                self.statistics.stream_silent += 1;
                self.close_stream(now, id);
            }
            self.deadlines.settle(now.instant, id, found);
        }
    }

    /// Gives a stream with everything unread and unwritten to the worker of its client's allocation.
    fn hand_stream_over(&mut self, id: ConnectionId, worker: WorkerId) {
        let Some(stream) = self.streams.remove(id) else { return };
        // A stream that is watched no more is not heard of here, whatever its new worker does with it.
        let _ = self.datagrams.poll().remove(&stream.connection);
        self.neighbours.move_stream(usize::from(worker.0), stream.connection);
    }

    /// Ends a stream, and the allocation that it owns or the connection that it is bound to.
    pub(super) fn close_stream(&mut self, now: Now, id: ConnectionId) {
        let Some(mut stream) = self.streams.remove(id) else { return };
        stream.connection.close();
        match stream.peer {
            Some(peer) => self.forget_peer(peer),
            None => self.server.handle_client_closed(&stream.client),
        }
        self.carry_out_effects(now);
    }

    /// Writes what streams have queued.
    pub(super) fn flush_streams(&mut self, now: Now) {
        for id in self.streams.take_marked() {
            if !self.streams.flush(now, id) {
                self.close_stream(now, id);
            }
        }
    }
}
