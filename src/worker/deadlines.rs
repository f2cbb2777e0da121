//! Streams that own nothing do not stay: a deadline for the first message, one for silence after it, and one for the
//! allocation that a stream is there for.
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

/// How long a stream stays that owns nothing, however much it says: a client allocates within two round trips, and all
/// that one without a credential can do otherwise is to be challenged and to ask for its address.
pub(super) const ALLOCATION_DEADLINE: Duration = Duration::from_secs(60);

/// What is remembered of a stream for the looks at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signs {
    /// When the last whole message came.
    pub(super) heard_at: Option<Instant>,
    /// When a look found it to own something; before, when it came.
    owned_at: Instant,
}

impl Signs {
    /// Of a stream that comes now.
    pub(super) fn new(now: Instant) -> Self {
        Self { heard_at: None, owned_at: now }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = Some(now);
    }

    pub(super) fn heard_lately(&self, now: Instant) -> bool {
        self.heard_at.is_some_and(|heard| now < heard + IDLE_DEADLINE)
    }

    /// Judges a stream that owns something or not.
    pub(super) fn look(&mut self, now: Instant, owns: bool) -> Found {
        if owns {
            self.owned_at = now;
            return Found::Alive;
        }
        let may_allocate_yet = now < self.owned_at + ALLOCATION_DEADLINE;
        if may_allocate_yet && self.heard_lately(now) { Found::Alive } else { Found::Silent }
    }
}

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
    /// It owns an allocation, or is new and has spoken lately.
    Alive,
    /// It says nothing, or nothing that leads to an allocation.
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
    fn a_stream_that_owns_nothing_ends_however_much_it_says() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut signs = Signs::new(start);
        assert_eq!(signs.look(at(15), false), Found::Silent, "it has said nothing");
        signs.heard(at(14));
        assert_eq!(signs.look(at(15), false), Found::Alive);
        signs.heard(at(74));
        assert_eq!(signs.look(at(75), false), Found::Silent, "it has only talked");
        // One that has had an allocation has its time again to make another.
        let mut signs = Signs::new(start);
        signs.heard(at(1));
        assert_eq!(signs.look(at(3600), true), Found::Alive, "browsers are silent");
        signs.heard(at(3601));
        assert_eq!(signs.look(at(3659), false), Found::Alive);
        assert_eq!(signs.look(at(3661), false), Found::Silent);
    }

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
