//! Streams: from an established connection to framed messages, both ways.

use std::time::Duration;

use tracing::debug;

use super::connections::Reader;
use super::deadlines::Found;
use super::packet_loop::Worker;
use super::routes::{ConnectionId, Socket, Way};
use super::udp::Body;
use crate::net::datagrams::Datagrams;
use crate::net::poll::{Event, Interest};
use crate::net::stream::{Connection, Fill};
use crate::stun::framing::frame_len;
use crate::turn::{Forward, Now, WorkerId};

/// Bytes read from one stream before the others have their turn: some 100 requests, or 4000 of the smallest messages, which
/// is half a millisecond.
const READ_BUDGET: usize = 16 * 1024;
/// Time for reading streams in a turn, which media in datagrams waits for. Who is not read then is read in the next turn.
pub(super) const READ_TIME: Duration = Duration::from_millis(1);

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
        self.read_later(id);
    }

    /// An event of a stream: input, room for output, or its end.
    pub(super) fn serve_stream(&mut self, id: ConnectionId, event: Event) {
        let Some((stream, _)) = self.streams.get_mut(id) else { return };
        stream.hangs_up |= event.hangup || event.error;
        let is_bound = stream.peer.is_some();
        if event.writable && !is_bound && stream.connection.wants_write() {
            self.streams.mark(id);
        }
        if is_bound || event.readable || event.hangup || event.error {
            self.read_later(id);
        }
    }

    /// Has a stream read when it has its turn.
    pub(super) fn read_later(&mut self, id: ConnectionId) {
        let Some((stream, _)) = self.streams.get_mut(id) else { return };
        let is_call = stream.peer.is_some() || self.server.has_allocation(&stream.client);
        self.streams.mark_unread(id, if is_call { Reader::Call } else { Reader::Stranger });
    }

    /// Reads streams, each once: calls first, then strangers until so much `time` has passed, and one of each at least. So
    /// however many never pause, datagrams do not wait for much longer.
    pub(super) fn read_on(&mut self, now: Now, time: Duration) {
        if !self.streams.has_unread() {
            return;
        }
        let until = self.clock.now().instant + time;
        for reader in [Reader::Call, Reader::Stranger] {
            for _ in 0..self.streams.unread(reader) {
                if let Some(id) = self.streams.pop_unread(reader) {
                    self.read_stream(now, id);
                }
                if self.clock.now().instant >= until {
                    break;
                }
            }
        }
    }

    /// Reads what is there, up to a budget, and handles every whole message. A stream that is still to be read on has its
    /// turn then.
    fn read_stream(&mut self, now: Now, id: ConnectionId) {
        let Some((stream, buffers)) = self.streams.get_mut(id) else { return };
        if stream.peer.is_some() {
            return self.pass_data(now, id);
        }
        if stream.is_unread {
            return;
        }
        let filled = stream.connection.fill(buffers, READ_BUDGET, stream.hangs_up);
        let framing = self.handle_messages(now, id);
        // TLS may have something of its own to say.
        self.streams.mark(id);
        match (filled, framing) {
            (Ok(Fill::Drained), Framing::WantsMore) => {}
            (Ok(Fill::Budget | Fill::Full), Framing::WantsMore) => self.read_later(id),
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

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};
    use std::net::{TcpListener, TcpStream};

    use socket2::SockRef;

    use super::*;
    use crate::net::accept::Established;
    use crate::net::admission::{AcceptLimits, Admission};
    use crate::net::datagrams::EpollDatagrams;
    use crate::net::stream::QueueLimits;
    use crate::worker::test_support::{wait_until, worker};

    const MESSAGE_BYTES: usize = 1024;

    /// Writes ChannelData of nobody's channel until no more is taken.
    fn flood(mut client: &TcpStream, rest: &mut Vec<u8>) {
        loop {
            if rest.is_empty() {
                rest.extend([0x40, 0, 0x03, 0xFC]);
                rest.resize(MESSAGE_BYTES, 0);
            }
            match client.write(rest) {
                Ok(written) => _ = rest.drain(..written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A stream that has said one thing: its client's end, and its own.
    fn connect(worker: &mut Worker<EpollDatagrams>) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // Room for more than two budgets.
        SockRef::from(&listener).set_recv_buffer_size(1 << 20).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, from) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let (waiting, server) = (stream.try_clone().unwrap(), stream.local_addr().unwrap());
        let guard = Admission::new(AcceptLimits::default()).admit(from).unwrap();
        // A Binding request, as nothing else begins a stream.
        client.write_all(&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).unwrap();
        wait_until(|| waiting.peek(&mut [0; 20]).is_ok_and(|len| len == 20));
        client.set_nonblocking(true).unwrap();
        let now = worker.clock.now();
        let established = Established { stream, tls: None, client: from, server, guard };
        worker.add_stream(now, Connection::new(established, QueueLimits::default()));
        (client, waiting)
    }

    fn readable(slot: u32) -> (ConnectionId, Event) {
        let id = ConnectionId { slot, generation: 0 };
        let token = Socket::Connection(id).token();
        (id, Event { token, readable: true, writable: true, error: false, hangup: false })
    }

    /// Packets of one turn.
    fn turn(worker: &mut Worker<EpollDatagrams>, time: Duration) -> usize {
        worker.packets = 0;
        worker.read_on(worker.clock.now(), time);
        worker.packets
    }

    /// With what comes in each turn epoll tells of a stream anew, which is to have one turn all the same.
    #[test]
    fn a_stream_that_is_never_drained_has_one_budget_in_each_turn() {
        let mut worker = worker();
        let (client, waiting) = connect(&mut worker);
        assert_eq!(turn(&mut worker, READ_TIME), 1);
        let (mut rest, mut peeked) = (Vec::new(), vec![0; 2 * READ_BUDGET]);
        let (id, event) = readable(0);
        for number in 0..4 {
            wait_until(|| {
                flood(&client, &mut rest);
                waiting.peek(&mut peeked).is_ok_and(|len| len == peeked.len())
            });
            worker.serve_stream(id, event);
            worker.serve_stream(id, event);
            assert_eq!(turn(&mut worker, READ_TIME), READ_BUDGET / MESSAGE_BYTES, "turn {number}");
        }
    }

    #[test]
    fn many_streams_that_are_never_drained_share_the_time_of_a_turn() {
        let mut worker = worker();
        let streams: Vec<_> = (0..4).map(|_| connect(&mut worker)).collect();
        while turn(&mut worker, READ_TIME) > 0 {}
        for (client, waiting) in &streams {
            wait_until(|| {
                flood(client, &mut Vec::new());
                waiting.peek(&mut [0; 2 * READ_BUDGET]).is_ok_and(|len| len == 2 * READ_BUDGET)
            });
        }
        (0..4).for_each(|slot| {
            let (id, event) = readable(slot);
            worker.serve_stream(id, event);
        });
        // With no time at all it is one, which is the last to have another turn.
        assert_eq!(turn(&mut worker, Duration::ZERO), READ_BUDGET / MESSAGE_BYTES);
        let next = std::iter::from_fn(|| worker.streams.pop_unread(Reader::Stranger));
        assert_eq!(next.map(|id| id.slot).collect::<Vec<_>>(), [1, 2, 3, 0]);
    }
}
