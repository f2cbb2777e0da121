//! The books of a load: what was sent, what arrived, and whether it was right.

use crate::histogram::Histogram;
use crate::wire::{Label, Way};

/// A flow whose window does not move for this long has lost all of it.
const STUCK_NS: u64 = 20_000_000;

/// Numbers every packet of every flow and checks what arrives.
pub(crate) struct Ledger {
    payload_len: usize,
    ways: [Book; 2],
}

struct Book {
    flows: Vec<Flow>,
    tally: Tally,
}

#[derive(Clone, Copy, Default)]
struct Flow {
    sent: u32,
    /// One more than the highest number that arrived.
    arrived: u32,
    progress_ns: u64,
}

/// The sums of one way.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    /// Sent in the measured time, and how many of those arrived, whenever that was.
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
    /// All that arrived, up to now.
    pub(crate) delivered: u64,
    /// Changed, or at a place where it does not belong.
    pub(crate) wrong: u64,
    /// Arrived behind a later one of the same flow.
    pub(crate) reordered: u64,
    pub(crate) latency: Histogram,
}

impl Tally {
    /// Share of the packets of the measured time that never arrived.
    pub(crate) fn loss(&self) -> f64 {
        1.0 - self.arrived as f64 / self.sent.max(1) as f64
    }
}

impl Ledger {
    pub(crate) fn new(flows: usize, payload_len: usize) -> Self {
        let book = || Book { flows: vec![Flow::default(); flows], tally: Tally::default() };
        Self { payload_len, ways: [book(), book()] }
    }

    /// Whether a flow has room in its window.
    pub(crate) fn has_room(&mut self, way: Way, flow: usize, window: u32, now_ns: u64) -> bool {
        let flow = &mut self.ways[way as usize].flows[flow];
        if flow.sent - flow.arrived < window {
            return true;
        }
        let is_stuck = now_ns > flow.progress_ns + STUCK_NS;
        if is_stuck {
            (flow.arrived, flow.progress_ns) = (flow.sent, now_ns);
        }
        is_stuck
    }

    /// Writes the next payload of a flow.
    pub(crate) fn write(&mut self, way: Way, flow: usize, now_ns: u64, measured: bool, payload: &mut [u8]) {
        let book = &mut self.ways[way as usize];
        let (number, entry) = (book.flows[flow].sent, &mut book.flows[flow]);
        if entry.sent == entry.arrived {
            entry.progress_ns = now_ns;
        }
        entry.sent += 1;
        book.tally.sent += u64::from(measured);
        Label { way, measured, flow: flow as u32, number, sent_ns: now_ns }.write(payload);
    }

    /// Takes what arrived where payloads of this way and flow belong; `None` is a message that is none of the bench's.
    pub(crate) fn take(&mut self, way: Way, flow: usize, payload: Option<&[u8]>, at_ns: u64) {
        let book = &mut self.ways[way as usize];
        let label = payload.and_then(|payload| Label::parse(payload, self.payload_len));
        let label = label.filter(|label| label.way == way && label.flow as usize == flow);
        let (Some(label), Some(flow)) = (label, book.flows.get_mut(flow)) else {
            book.tally.wrong += 1;
            return;
        };
        book.tally.delivered += 1;
        if label.number < flow.arrived {
            book.tally.reordered += 1;
        } else {
            (flow.arrived, flow.progress_ns) = (label.number + 1, at_ns);
        }
        if label.measured {
            book.tally.arrived += 1;
            book.tally.latency.record(at_ns.saturating_sub(label.sent_ns));
        }
    }

    /// Counts something that belongs to no flow.
    pub(crate) fn take_stray(&mut self, way: Way) {
        self.ways[way as usize].tally.wrong += 1;
    }

    /// All that arrived, by way.
    pub(crate) fn delivered(&self) -> [u64; 2] {
        [self.ways[0].tally.delivered, self.ways[1].tally.delivered]
    }

    pub(crate) fn into_tallies(self) -> [Tally; 2] {
        self.ways.map(|book| book.tally)
    }
}
