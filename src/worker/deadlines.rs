//! Streams that own nothing do not stay: a deadline for the first message, and one for silence after it.
//!
//! A stream that owns an allocation may be silent for as long as that lives: browsers are, for up to 59 minutes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::routes::ConnectionId;

/// From the end of the handshake to the first whole message: a client connects in order to speak.
pub(super) const FIRST_MESSAGE_DEADLINE: Duration = Duration::from_secs(15);
/// Silence of a stream without allocation. A challenge is answered within a round trip, a person's consent is not waited
/// for here.
pub(super) const IDLE_DEADLINE: Duration = Duration::from_secs(60);

/// When to look at which stream, in order. Each stream is in one of the queues once, so looking costs little however
/// many there are.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    first_message: VecDeque<(Instant, ConnectionId)>,
    idle: VecDeque<(Instant, ConnectionId)>,
}

/// What a look at a stream has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Gone,
    /// It owns an allocation, or has spoken lately.
    Alive,
    Silent,
}

impl Deadlines {
    /// A stream has come.
    pub(super) fn add(&mut self, now: Instant, id: ConnectionId) {
        self.first_message.push_back((now + FIRST_MESSAGE_DEADLINE, id));
    }

    /// When the next look is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let front = |queue: &VecDeque<(Instant, ConnectionId)>| queue.front().map(|(at, _)| *at);
        [front(&self.first_message), front(&self.idle)].into_iter().flatten().min()
    }

    /// A stream whose deadline has come; [`Self::settle`] is to be told what it turned out to be.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<ConnectionId> {
        [&mut self.first_message, &mut self.idle].into_iter().find_map(|queue| {
            let (at, id) = *queue.front()?;
            (at <= now).then(|| queue.pop_front())?;
            Some(id)
        })
    }

    /// Has a living stream looked at again.
    pub(super) fn settle(&mut self, now: Instant, id: ConnectionId, found: Found) {
        match found {
            Found::Gone | Found::Silent => {}
            // All looks are equally far ahead, so that the queue stays in order; a stream is closed after one to two
            // deadlines of silence.
            Found::Alive => self.idle.push_back((now + IDLE_DEADLINE, id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ConnectionId = ConnectionId { slot: 1, generation: 0 };
    const TWO: ConnectionId = ConnectionId { slot: 2, generation: 0 };

    #[test]
    fn a_stream_is_looked_at_for_its_first_message_and_then_for_silence() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        deadlines.add(start, ONE);
        deadlines.add(start + Duration::from_secs(1), TWO);
        assert_eq!(deadlines.next(), Some(start + FIRST_MESSAGE_DEADLINE));
        assert_eq!(deadlines.pop_due(start + Duration::from_secs(14)), None);
        let due = start + FIRST_MESSAGE_DEADLINE;
        assert_eq!(deadlines.pop_due(due), Some(ONE));
        assert_eq!(deadlines.pop_due(due), None);
        deadlines.settle(due, ONE, Found::Alive);
        assert_eq!(deadlines.pop_due(due + Duration::from_secs(1)), Some(TWO));
        deadlines.settle(due, TWO, Found::Silent);
        assert_eq!(deadlines.next(), Some(due + IDLE_DEADLINE));
        assert_eq!(deadlines.pop_due(due + IDLE_DEADLINE), Some(ONE));
        deadlines.settle(due, ONE, Found::Gone);
        assert_eq!(deadlines.next(), None);
    }
}
