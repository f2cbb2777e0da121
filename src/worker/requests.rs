//! Requests, which wait in queues of their own, so that no flood of them costs a packet of a call.
//!
//! Each turn serves media first, then some requests of the kinds that live calls send (Refresh, CreatePermission,
//! ChannelBind), and at last some of what strangers send. What is not served waits in the socket's buffer, and what does
//! not fit there the kernel drops, at no cost to the worker.

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::routes::Socket;
use crate::net::poll::{Interest, Poll};
use crate::net::socket::merge;
use crate::net::steering::{Queue, Rule, Then};
use crate::net::udp::RecvBatch;
use crate::stun::header::{MAGIC_COOKIE, join_type};
use crate::stun::{Class, Method};

/// Requests that one socket is read for at a time: some 100 us of work.
const BATCH: usize = 64;
/// The same of strangers, in a turn in which media left much to do.
const BATCH_BESIDE_MEDIA: usize = 8;
/// Such batches in a turn of the queue of live calls, while each is full: a flood in their dress costs little, as all but
/// some of each batch are dropped unread, and live calls wait behind it.
const ROUNDS: usize = 8;
/// Requests of a full batch of live calls that are served though their clients have no allocation.
const IMPOSTORS_MAX: usize = 4;
/// Packets of a turn that are much.
const MUCH_MEDIA: usize = 64;
/// The content type of application data, and the version's first byte (RFC 6347 section 4.1).
const DTLS_DATA: u16 = 0x17FE;
/// The signature of the PROXY protocol, version 2: its first two bytes, and those from the fifth on.
const PROXY_BEGINS: u16 = 0x0D0A;
const PROXY_GOES_ON: u32 = 0x000D_0A51;
/// What waits in the queue of strangers: at 2304 bytes charged for each small datagram and twice the number given here,
/// some 450 requests. A queue is as long as its oldest request may wait; clients ask again after 250 ms at the earliest.
pub const REST_BUFFER_BYTES: usize = 512 << 10;
/// A turn that takes so much longer than its work was held up: the processor was somebody else's, or the control group's
/// quota was used up.
const STALL: Duration = Duration::from_millis(2);
/// After a stall strangers are served for this share of the time, one of so many parts, and then for twice as much in each
/// [`RECOVERY`] without another stall.
const PARTS_MAX: u32 = 64;
const RECOVERY: Duration = Duration::from_millis(100);

/// Which datagrams wait where.
///
/// Media is ChannelData and Send indications, and whatever is in an encrypted record of DTLS or behind the header of a
/// proxy; a flood that is dressed so shares a queue with some of the calls.
pub fn rules(channels_above_4fff: bool) -> Vec<Rule> {
    let channels = 0x4000..=if channels_above_4fff { 0x7FFF } else { 0x4FFF };
    let message = |method, class, queue| {
        let begins = join_type(method, class);
        Rule { begins: begins..=begins, then: Then::Number(MAGIC_COOKIE), queue }
    };
    vec![
        Rule { begins: channels, then: Then::Length, queue: Queue::Many },
        message(Method::Send, Class::Indication, Queue::Many),
        Rule { begins: DTLS_DATA..=DTLS_DATA, then: Then::Anything, queue: Queue::Many },
        Rule { begins: PROXY_BEGINS..=PROXY_BEGINS, then: Then::Number(PROXY_GOES_ON), queue: Queue::Many },
        message(Method::Refresh, Class::Request, Queue::Few),
        message(Method::CreatePermission, Class::Request, Queue::Few),
        message(Method::ChannelBind, Class::Request, Queue::Few),
    ]
}

/// The sockets of one worker that requests wait in.
pub(super) struct Requests {
    /// By the index in their tokens; those of listeners that are gone are free.
    sockets: Vec<Option<Waiting>>,
    pub(super) batch: RecvBatch,
    pub(super) shedding: Shedding,
}

/// One socket.
struct Waiting {
    listener: u16,
    queue: Queue,
    socket: UdpSocket,
    /// It may hold more; nobody tells of that again.
    has_more: bool,
    /// What the kernel has dropped, as it last said.
    dropped: u32,
    /// Datagrams in a slot, about, as it was last read.
    in_a_slot: usize,
}

/// What was read of one socket.
pub(super) struct Taken {
    pub(super) listener: u16,
    /// The slots that hold something.
    pub(super) slots: usize,
    /// How many datagrams that are.
    pub(super) datagrams: usize,
    /// How many of them are served whose clients have no allocation; the others are not.
    pub(super) strangers_max: usize,
    /// Datagrams that the kernel has dropped since the last time.
    pub(super) dropped: u32,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self { sockets: Vec::new(), batch: RecvBatch::new(BATCH), shedding: Shedding::default() }
    }

    /// Serves a socket of a listener from now on.
    pub(super) fn add(&mut self, poll: &Poll, listener: u16, queue: Queue, socket: UdpSocket) -> io::Result<()> {
        let free = self.sockets.iter().position(Option::is_none).unwrap_or(self.sockets.len());
        poll.add(&socket, Socket::Requests(free as u16).token(), Interest::Readable, true)?;
        let waiting = Some(Waiting { listener, queue, socket, has_more: false, dropped: 0, in_a_slot: 1 });
        match self.sockets.get_mut(free) {
            Some(place) => *place = waiting,
            None => self.sockets.push(waiting),
        }
        Ok(())
    }

    /// Has the sockets of a listener receive runs as one. Before it knows where datagrams go the kernel asks any socket of
    /// their address whether it is to merge them, so that those for media merge only their share alone.
    pub(super) fn merge(&self, listener: u16) {
        for waiting in self.sockets.iter().flatten().filter(|waiting| waiting.listener == listener) {
            // What it refuses goes on as it was.
            let _ = merge(&waiting.socket);
        }
    }

    /// Closes the sockets of a listener.
    pub(super) fn remove(&mut self, poll: &Poll, listener: u16) {
        let is_its = |waiting: &mut Waiting| waiting.listener == listener;
        for waiting in self.sockets.iter_mut().filter_map(|place| place.take_if(is_its)) {
            // Another descriptor of the socket keeps it known to epoll; where this fails nobody listens any more.
            let _ = poll.remove(&waiting.socket);
        }
    }

    /// Something has arrived at a socket.
    pub(super) fn mark(&mut self, index: u16) {
        if let Some(Some(waiting)) = self.sockets.get_mut(usize::from(index)) {
            waiting.has_more = true;
        }
    }

    /// How many sockets there are.
    pub(super) fn len(&self) -> usize {
        self.sockets.len()
    }

    /// How many requests a socket is read for now, in a turn that has handled `media` packets.
    fn budget(&self, queue: Queue, now: Instant, media: usize) -> usize {
        match queue {
            Queue::Few | Queue::Many => BATCH,
            Queue::Rest if !self.shedding.may_serve(now) => 0,
            Queue::Rest if media >= MUCH_MEDIA => BATCH_BESIDE_MEDIA,
            Queue::Rest => BATCH,
        }
    }

    /// Reads a socket, if it has something and its kind has its turn; the datagrams are in the batch until the next call.
    pub(super) fn take(&mut self, index: usize, now: Instant, media: usize) -> Option<Taken> {
        let queue = self.sockets.get(index)?.as_ref()?.queue;
        let budget = self.budget(queue, now, media);
        let waiting = self.sockets.get_mut(index)?.as_mut().filter(|waiting| waiting.has_more && budget > 0)?;
        self.batch.clear();
        let slots = (budget / waiting.in_a_slot).max(1);
        // What fails here is the host's want of memory; the next arrival tells again.
        let received = self.batch.recv(&waiting.socket, slots).unwrap_or(0..0);
        waiting.has_more = received.len() == slots;
        let (mut datagrams, mut told) = (0, None);
        for meta in received.clone().map(|slot| self.batch.meta(slot)) {
            datagrams += meta.datagrams();
            told = meta.drops.or(told);
        }
        waiting.in_a_slot = datagrams.div_ceil(received.len().max(1)).max(1);
        let dropped = told.map_or(0, |told| told.wrapping_sub(waiting.dropped));
        waiting.dropped = told.unwrap_or(waiting.dropped);
        let strangers_max = match queue {
            Queue::Few if waiting.has_more => IMPOSTORS_MAX,
            Queue::Few | Queue::Many | Queue::Rest => budget,
        };
        Some(Taken { listener: waiting.listener, slots: received.len(), datagrams, strangers_max, dropped })
    }

    /// How often a socket is read in a turn while it fills its batch.
    pub(super) fn rounds(&self, index: usize) -> usize {
        let queue = self.sockets.get(index).and_then(Option::as_ref).map(|waiting| waiting.queue);
        if queue == Some(Queue::Few) { ROUNDS } else { 1 }
    }

    /// Whether a socket of this index is one of strangers.
    pub(super) fn are_strangers(&self, index: usize) -> bool {
        self.sockets.get(index).and_then(Option::as_ref).is_some_and(|waiting| waiting.queue == Queue::Rest)
    }

    /// When there is something to read; `None` while nothing is known to be there.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let due = |waiting: &Waiting| match waiting.queue {
            Queue::Few | Queue::Many => now,
            Queue::Rest => self.shedding.free_at.map_or(now, |free_at| free_at.max(now)),
        };
        self.sockets.iter().flatten().filter(|waiting| waiting.has_more).map(due).min()
    }
}

/// How much time strangers get: all that media leaves, until the worker is held up. Then it has less than it needs, and
/// gives up what it can: it serves strangers for a small share of the time, and finds the largest that it can afford.
#[derive(Debug)]
pub(super) struct Shedding {
    /// Strangers have one of so many parts of the time.
    parts: u32,
    /// When they are served again.
    free_at: Option<Instant>,
    changed_at: Option<Instant>,
}

impl Default for Shedding {
    fn default() -> Self {
        Self { parts: 1, free_at: None, changed_at: None }
    }
}

impl Shedding {
    /// Whether strangers have less than all of the time, so that what they cost is to be told.
    pub(super) fn is_sparing(&self) -> bool {
        self.parts > 1
    }

    fn may_serve(&self, now: Instant) -> bool {
        self.free_at.is_none_or(|free_at| now >= free_at)
    }

    /// Strangers were served from `began` to `ended`.
    pub(super) fn served(&mut self, began: Instant, ended: Instant) {
        let cost = ended.saturating_duration_since(began);
        self.free_at = (self.parts > 1).then(|| ended + cost * (self.parts - 1));
    }

    /// A turn has taken `longer` than it should have.
    pub(super) fn turn(&mut self, now: Instant, longer: Duration) {
        let recovered = |since: Instant| now.saturating_duration_since(since) >= RECOVERY;
        if longer >= STALL {
            self.parts = (self.parts * 2).min(PARTS_MAX);
            self.changed_at = Some(now);
        } else if self.parts > 1 && self.changed_at.is_none_or(recovered) {
            self.parts -= (self.parts / 4).max(1);
            self.changed_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::test_support::send_in_trains;

    #[test]
    fn strangers_get_all_of_the_time_until_the_worker_is_held_up() {
        let (mut shedding, begin) = (Shedding::default(), Instant::now());
        let cost = Duration::from_micros(100);
        shedding.turn(begin, Duration::ZERO);
        shedding.served(begin, begin + cost);
        assert!(shedding.may_serve(begin + cost));
        shedding.turn(begin + cost, STALL);
        shedding.turn(begin + cost, STALL);
        shedding.served(begin, begin + cost);
        assert!(!shedding.may_serve(begin + cost * 3), "one of four parts");
        assert!(shedding.may_serve(begin + cost * 4));
    }

    /// A socket that requests wait in, by its index, with one that sends to it.
    fn waiting(requests: &mut Requests, poll: &Poll, queue: Queue) -> (usize, UdpSocket) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(socket.local_addr().unwrap()).unwrap();
        let index = requests.len();
        requests.add(poll, 0, queue, socket).unwrap();
        (index, sender)
    }

    #[test]
    fn a_full_batch_of_live_calls_is_served_for_few_strangers() {
        let poll = Poll::new().unwrap();
        let mut requests = Requests::new();
        for (queue, of_full) in [(Queue::Few, IMPOSTORS_MAX), (Queue::Rest, BATCH)] {
            let (index, sender) = waiting(&mut requests, &poll, queue);
            (0..BATCH + 6).for_each(|_| _ = sender.send(b"request").unwrap());
            requests.mark(index as u16);
            let mut take =
                || requests.take(index, Instant::now(), 0).map(|taken| (taken.datagrams, taken.strangers_max));
            assert_eq!(take(), Some((BATCH, of_full)));
            assert_eq!(take(), Some((6, BATCH)), "what is not full is no flood");
            assert_eq!(take(), None);
        }
        assert_eq!([0, 1].map(|index| requests.rounds(index)), [ROUNDS, 1]);
    }

    #[test]
    fn runs_are_read_for_what_they_hold() {
        const RUN: usize = 16;
        let poll = Poll::new().unwrap();
        let mut requests = Requests::new();
        let (index, sender) = waiting(&mut requests, &poll, Queue::Few);
        requests.merge(0);
        // The sender's train arrives as one; its end is shorter.
        send_in_trains(&sender, 10);
        (0..BATCH).for_each(|_| assert_eq!(sender.send(&[7; 10 * RUN - 3]).unwrap(), 10 * RUN - 3));
        requests.mark(index as u16);
        let mut take = || {
            let taken = requests.take(index, Instant::now(), 0)?;
            let meta = requests.batch.meta(0);
            let lens: Vec<_> = meta.cut(requests.batch.datagram(0)).map(<[u8]>::len).collect();
            assert_eq!((lens.len(), lens[0], lens[RUN - 1]), (RUN, 10, 7));
            Some((taken.slots, taken.datagrams, taken.strangers_max))
        };
        assert_eq!(take(), Some((BATCH, BATCH * RUN, IMPOSTORS_MAX)), "the first time nobody knows");
        (0..BATCH / RUN + 1).for_each(|_| _ = sender.send(&[7; 10 * RUN - 3]).unwrap());
        assert_eq!(take(), Some((BATCH / RUN, BATCH, IMPOSTORS_MAX)));
        assert_eq!(take(), Some((1, RUN, BATCH)));
        assert_eq!(take(), None);
    }

    #[test]
    fn a_share_shrinks_fast_and_grows_again() {
        let (mut shedding, mut now) = (Shedding::default(), Instant::now());
        (0..20).for_each(|_| shedding.turn(now, STALL));
        assert_eq!(shedding.parts, PARTS_MAX);
        shedding.turn(now, Duration::ZERO);
        assert_eq!(shedding.parts, PARTS_MAX, "not at once");
        let mut steps = 0;
        while shedding.parts > 1 {
            now += RECOVERY;
            shedding.turn(now, Duration::ZERO);
            steps += 1;
        }
        assert!((10..30).contains(&steps), "{steps}");
    }

    #[test]
    fn media_and_live_calls_have_queues_of_their_own() {
        let rules = rules(false);
        let queue = |begins: u16| rules.iter().find(|rule| rule.begins.contains(&begins)).map(|rule| rule.queue);
        assert_eq!(queue(0x4000), Some(Queue::Many));
        assert_eq!(queue(0x4FFF), Some(Queue::Many));
        assert_eq!(queue(0x5000), None);
        assert_eq!(queue(0x0016), Some(Queue::Many));
        assert_eq!((queue(0x17FE), queue(0x16FE)), (Some(Queue::Many), None), "data and handshakes of DTLS");
        for method in [0x0004, 0x0008, 0x0009] {
            assert_eq!(queue(method), Some(Queue::Few));
        }
        assert_eq!((queue(0x0001), queue(0x0003)), (None, None));
        assert_eq!(queue(PROXY_BEGINS), Some(Queue::Many));
        assert!(super::rules(true)[0].begins.contains(&0x7FFF));
    }
}
