//! What waits for a slow stream: whole messages, bounded in bytes and in time, the oldest media dropped first.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use super::buffers::{Buffers, LaneStore, Message};

/// Whether a message may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Responses: never dropped, and written before waiting data.
    Control,
    /// Media: stale after a while, dropped when the client is too slow.
    Data,
}

/// Bounds of one connection's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Queued bytes, `MESSAGE_COST` for each message included.
    pub queue_bytes_max: usize,
    /// How long data may wait.
    pub queue_age_max: Duration,
}

impl QueueLimits {
    /// 500 ms at 4 Mbit/s: a group call's worth of video to one client.
    pub const QUEUE_BYTES_MAX: usize = 256 * 1024;
    /// Interactive audio that is half a second late is noise; video asks for a key frame.
    pub const QUEUE_AGE_MAX: Duration = Duration::from_millis(500);
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { queue_bytes_max: Self::QUEUE_BYTES_MAX, queue_age_max: Self::QUEUE_AGE_MAX }
    }
}

/// Bookkeeping per message, so that messages of 4 bytes cannot outgrow the limit.
pub(super) const MESSAGE_COST: usize = size_of::<Message>();

/// Messages share TLS records from this many waiting bytes on: a client that is sent so much at once is no test tool.
const SHARED_RECORDS_FROM: usize = 8 * 1024;

/// Messages dropped since they were last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Messages dropped because the queue was full.
    pub full: u64,
    /// Messages dropped because they had waited too long.
    pub aged: u64,
    /// Bytes of both, framing included.
    pub bytes: u64,
}

/// Control messages alone exceed the queue: the client asks without reading, close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// Two lanes in order of arrival; control overtakes data, never a message that is partly written.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    control: Lane,
    data: Lane,
    dropped: Dropped,
}

impl SendQueue {
    /// Queues one message, `parts` and then `pad` zero bytes, or drops data to make room for it.
    pub(super) fn push(
        &mut self,
        now: Instant,
        class: Class,
        parts: [&[u8]; 2],
        pad: usize,
        limits: &QueueLimits,
        buffers: &mut Buffers,
    ) -> Result<(), Overflow> {
        let bytes = parts[0].len() + parts[1].len() + pad;
        if bytes == 0 {
            return Ok(());
        }
        self.drop_aged(now, limits.queue_age_max);
        if !self.make_room(bytes + MESSAGE_COST, limits.queue_bytes_max) {
            return match class {
                Class::Control => Err(Overflow),
                Class::Data => {
                    self.dropped.full += 1;
                    self.dropped.bytes += bytes as u64;
                    Ok(())
                }
            };
        }
        self.lane(class).push(now, parts, pad, bytes, buffers);
        Ok(())
    }

    /// Drops data that has waited longer than `age_max`.
    pub(super) fn drop_aged(&mut self, now: Instant, age_max: Duration) {
        let (messages, bytes) =
            self.data.drop_while(|message| now.saturating_duration_since(message.queued_at) > age_max);
        self.dropped.aged += messages as u64;
        self.dropped.bytes += bytes as u64;
    }

    fn make_room(&mut self, cost: usize, bytes_max: usize) -> bool {
        let mut excess = (self.control.cost() + self.data.cost() + cost).saturating_sub(bytes_max);
        if excess == 0 {
            return true;
        }
        if excess > self.data.droppable_cost() {
            return false;
        }
        let (messages, bytes) = self.data.drop_while(|message| {
            let wanted = excess > 0;
            excess = excess.saturating_sub(message.bytes as usize + MESSAGE_COST);
            wanted
        });
        self.dropped.full += messages as u64;
        self.dropped.bytes += bytes as u64;
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.data.is_empty()
    }

    /// How many bytes to write as one record of at most `max`: one message, or a part of one that is longer. Clients are
    /// about that take what one read of TLS returns for one message, so messages share a record only when many wait.
    pub(super) fn record(&self, max: usize) -> usize {
        let rest = self.data.partial_rest();
        let data = self.data.sizes().skip(usize::from(rest > 0));
        let shared = self.control.bytes().len() + self.data.bytes().len() >= SHARED_RECORDS_FROM;
        let mut total = rest.min(max);
        for size in self.control.sizes().chain(data) {
            if total > 0 && (!shared || total + size > max) {
                break;
            }
            total = (total + size).min(max);
        }
        total
    }

    /// The first `max` bytes in the order of writing.
    pub(super) fn slices(&self, max: usize) -> [IoSlice<'_>; 3] {
        let mut left = max;
        let mut cut = |bytes: &'_ [u8]| {
            let n = left.min(bytes.len());
            left -= n;
            n
        };
        let (rest, data) = self.data.bytes().split_at(self.data.partial_rest());
        let control = self.control.bytes();
        let (a, b, c) = (cut(rest), cut(control), cut(data));
        [IoSlice::new(&rest[..a]), IoSlice::new(&control[..b]), IoSlice::new(&data[..c])]
    }

    /// Forgets the first `n` bytes in the order of writing.
    pub(super) fn advance(&mut self, mut n: usize) {
        for (class, bytes) in [
            (Class::Data, self.data.partial_rest()),
            (Class::Control, self.control.bytes().len()),
            (Class::Data, usize::MAX),
        ] {
            let part = n.min(bytes);
            self.lane(class).advance(part);
            n -= part;
        }
    }

    /// Gives the memory of empty lanes back.
    pub(super) fn settle(&mut self, buffers: &mut Buffers) {
        self.control.settle(buffers);
        self.data.settle(buffers);
    }

    pub(super) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    fn lane(&mut self, class: Class) -> &mut Lane {
        match class {
            Class::Control => &mut self.control,
            Class::Data => &mut self.data,
        }
    }
}

/// Messages of one class, their bytes contiguous; without a store while empty.
#[derive(Debug, Default)]
struct Lane {
    store: Option<Box<LaneStore>>,
    /// Bytes of the store that are written or dropped.
    start: usize,
    /// Whether a part of the first message is written; the message then counts for its rest.
    partial: bool,
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.store.as_ref().is_none_or(|store| store.messages.is_empty())
    }

    fn bytes(&self) -> &[u8] {
        self.store.as_ref().map_or(&[], |store| &store.bytes[self.start..])
    }

    fn sizes(&self) -> impl Iterator<Item = usize> {
        self.store.iter().flat_map(|store| store.messages.iter().map(|message| message.bytes as usize))
    }

    fn partial_rest(&self) -> usize {
        if self.partial { self.sizes().next().unwrap_or(0) } else { 0 }
    }

    fn cost(&self) -> usize {
        self.store.as_ref().map_or(0, |store| self.bytes().len() + store.messages.len() * MESSAGE_COST)
    }

    fn droppable_cost(&self) -> usize {
        self.cost() - if self.partial { self.partial_rest() + MESSAGE_COST } else { 0 }
    }

    fn push(&mut self, now: Instant, parts: [&[u8]; 2], pad: usize, bytes: usize, buffers: &mut Buffers) {
        let store = self.store.get_or_insert_with(|| buffers.take_lane());
        // At least half is dead, so that each byte moves at most once per byte queued.
        if store.bytes.len() + bytes > store.bytes.capacity() && self.start >= store.bytes.len() / 2 {
            store.bytes.drain(..self.start);
            self.start = 0;
        }
        store.bytes.extend_from_slice(parts[0]);
        store.bytes.extend_from_slice(parts[1]);
        store.bytes.resize(store.bytes.len() + pad, 0);
        store.messages.push_back(Message { bytes: bytes as u32, queued_at: now });
    }

    fn advance(&mut self, mut n: usize) {
        let Some(store) = self.store.as_mut() else { return };
        while n > 0 {
            let Some(first) = store.messages.front_mut() else { return };
            let rest = first.bytes as usize;
            let part = n.min(rest);
            self.start += part;
            n -= part;
            self.partial = part < rest;
            if self.partial {
                first.bytes -= part as u32;
            } else {
                store.messages.pop_front();
            }
        }
    }

    /// Drops the oldest messages while `unwanted`, but not one that is partly written; returns messages and bytes.
    fn drop_while(&mut self, mut unwanted: impl FnMut(&Message) -> bool) -> (usize, usize) {
        let rest = self.partial_rest();
        let first = usize::from(self.partial);
        let Some(store) = self.store.as_mut() else { return (0, 0) };
        let mut bytes = 0;
        let mut end = first;
        while let Some(message) = store.messages.get(end)
            && unwanted(message)
        {
            bytes += message.bytes as usize;
            end += 1;
        }
        if end > first {
            store.messages.drain(first..end);
            store.bytes.copy_within(self.start..self.start + rest, self.start + bytes);
            self.start += bytes;
        }
        (end - first, bytes)
    }

    fn settle(&mut self, buffers: &mut Buffers) {
        if self.is_empty()
            && let Some(store) = self.store.take()
        {
            buffers.give_lane(store);
            self.start = 0;
            self.partial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: QueueLimits = QueueLimits { queue_bytes_max: 1000, queue_age_max: Duration::from_millis(500) };

    struct Bench {
        queue: SendQueue,
        buffers: Buffers,
        start: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { queue: SendQueue::default(), buffers: Buffers::default(), start: Instant::now() }
        }

        fn push(&mut self, millis: u64, class: Class, message: &[u8]) -> Result<(), Overflow> {
            let now = self.start + Duration::from_millis(millis);
            self.queue.push(now, class, [message, &[]], 0, &LIMITS, &mut self.buffers)
        }

        fn write(&mut self, max: usize) -> Vec<u8> {
            let written = self.queue.slices(max).iter().flat_map(|slice| slice.to_vec()).collect::<Vec<_>>();
            self.queue.advance(written.len());
            self.queue.settle(&mut self.buffers);
            written
        }
    }

    #[test]
    fn prefix_payload_and_padding_are_one_message() {
        let mut bench = Bench::new();
        let now = bench.start;
        bench.queue.push(now, Class::Data, [&[0x40, 0, 0, 1], &[9]], 3, &LIMITS, &mut bench.buffers).unwrap();
        assert_eq!(bench.write(100), [0x40, 0, 0, 1, 9, 0, 0, 0]);
        assert!(bench.queue.is_empty() && bench.queue.data.store.is_none(), "an empty queue holds no memory");
    }

    #[test]
    fn control_overtakes_data_but_not_inside_a_message() {
        let mut bench = Bench::new();
        bench.push(0, Class::Data, b"aaaa").unwrap();
        bench.push(0, Class::Data, b"bbbb").unwrap();
        assert_eq!(bench.write(2), b"aa");
        bench.push(0, Class::Control, b"CC").unwrap();
        assert_eq!(bench.write(3), b"aaC");
        assert_eq!(bench.write(99), b"Cbbbb");
    }

    #[test]
    fn the_oldest_data_goes_first_and_a_message_partly_written_stays() {
        let mut bench = Bench::new();
        let cost = 200 + MESSAGE_COST;
        for fill in 0..(1000 / cost) as u8 {
            bench.push(0, Class::Data, &[fill; 200]).unwrap();
        }
        assert_eq!(bench.queue.take_dropped(), Dropped::default());
        bench.write(50);
        bench.push(0, Class::Data, &[100; 200]).unwrap();
        bench.push(0, Class::Control, &[101; 200]).unwrap();
        assert_eq!(bench.queue.take_dropped(), Dropped { full: 2, aged: 0, bytes: 400 });
        let expected = [[0; 150].as_slice(), &[101; 200], &[3; 200], &[100; 200]].concat();
        assert_eq!(bench.write(usize::MAX), expected);
    }

    #[test]
    fn old_data_is_dropped_and_old_control_is_not() {
        let mut bench = Bench::new();
        bench.push(0, Class::Control, b"C").unwrap();
        bench.push(0, Class::Data, b"old").unwrap();
        bench.push(400, Class::Data, b"new").unwrap();
        bench.push(501, Class::Data, b"now").unwrap();
        assert_eq!(bench.queue.take_dropped(), Dropped { full: 0, aged: 1, bytes: 3 });
        assert_eq!(bench.write(99), b"Cnewnow");
    }

    #[test]
    fn control_that_fills_the_queue_overflows_and_data_beside_it_is_dropped() {
        let mut bench = Bench::new();
        while bench.push(0, Class::Control, &[1; 100]).is_ok() {}
        assert_eq!(bench.queue.control.store.as_ref().unwrap().messages.len(), 1000 / (100 + MESSAGE_COST));
        bench.push(0, Class::Data, &[2; 300]).unwrap();
        assert_eq!(bench.queue.take_dropped(), Dropped { full: 1, aged: 0, bytes: 300 });
    }

    #[test]
    fn data_beyond_the_limit_does_not_empty_the_queue() {
        let mut bench = Bench::new();
        bench.push(0, Class::Data, b"keep").unwrap();
        bench.push(0, Class::Data, &[2; 1001]).unwrap();
        assert_eq!(bench.queue.take_dropped().full, 1);
        assert_eq!(bench.write(99), b"keep");
    }

    #[test]
    fn a_record_is_one_message_unless_the_message_is_longer() {
        let mut bench = Bench::new();
        bench.push(0, Class::Data, &[1; 60]).unwrap();
        bench.push(0, Class::Data, &[2; 60]).unwrap();
        bench.push(0, Class::Data, &[3; 300]).unwrap();
        assert_eq!(bench.queue.record(100), 60);
        assert_eq!(bench.queue.record(120), 60, "one message while little waits");
        bench.write(120);
        assert_eq!(bench.queue.record(100), 100);
        bench.write(100);
        assert_eq!(bench.queue.record(usize::MAX), 200);
        assert_eq!(bench.queue.record(150), 150);
    }

    proptest! {
        /// Against a model of a plain list: every message comes out whole or not at all, in order within its class.
        #[test]
        fn messages_come_out_whole_and_in_order(
            steps in prop::collection::vec((0u8..4, 1usize..400), 1..200),
        ) {
            let mut bench = Bench::new();
            let (mut written, mut sent, mut dropped) = (Vec::new(), 0u32, 0u64);
            let mut controls = 0u32;
            for (millis, (kind, size)) in steps.into_iter().enumerate() {
                let class = if kind == 0 { Class::Control } else { Class::Data };
                if kind == 3 {
                    written.extend(bench.write(size));
                } else {
                    let mut message = vec![kind; size + 12];
                    message[..4].copy_from_slice(&(size as u32 + 12).to_be_bytes());
                    message[4..8].copy_from_slice(&sent.to_be_bytes());
                    if bench.push(millis as u64 * 20, class, &message).is_ok() {
                        sent += 1;
                        controls += u32::from(class == Class::Control);
                    }
                }
                prop_assert!(bench.queue.control.cost() + bench.queue.data.cost() <= LIMITS.queue_bytes_max);
                let counted = bench.queue.take_dropped();
                dropped += counted.full + counted.aged;
            }
            written.extend(bench.write(usize::MAX));
            let (mut rest, mut last, mut seen, mut seen_controls) = (&written[..], [None, None], 0, 0);
            while !rest.is_empty() {
                let size = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
                let number = u32::from_be_bytes(rest[4..8].try_into().unwrap());
                let kind = rest[8];
                prop_assert!(rest[8..size].iter().all(|&byte| byte == kind));
                let lane = usize::from(kind != 0);
                seen += 1;
                seen_controls += u32::from(kind == 0);
                prop_assert!(last[lane] < Some(number));
                last[lane] = Some(number);
                rest = &rest[size..];
            }
            prop_assert_eq!(seen_controls, controls);
            prop_assert_eq!(seen + dropped, u64::from(sent));
        }
    }
}
