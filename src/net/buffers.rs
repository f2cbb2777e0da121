//! Buffers that a worker lends to its connections, so that idle ones hold none and busy ones allocate none.

use std::collections::VecDeque;
use std::time::Instant;

/// One read takes at most this much; a fast client fills it, a call never does.
const SCRATCH_BYTES: usize = 64 * 1024;
/// A buffer that grew beyond this belonged to a slow connection and is freed.
const SPARE_BYTES_MAX: usize = 16 * 1024;
/// Messages of the smallest sort (4 bytes) outgrow their bytes: 256 x 24 = 6 KiB.
const SPARE_MESSAGES_MAX: usize = 256;
/// 32 of each kind x at most 22 KiB: 1.2 MiB per worker.
const SPARES_MAX: usize = 32;
/// A remainder below a quarter of a buffer beyond this size moves into its own.
const REMAINDER_BUFFER_MAX: usize = 4096;

/// One worker's scratch space and spare buffers.
#[derive(Debug)]
pub struct Buffers {
    pub(super) scratch: Box<[u8]>,
    bytes: Vec<Vec<u8>>,
    #[expect(clippy::vec_box, reason = "the box moves between pool and connection, where None is 8 bytes")]
    lanes: Vec<Box<LaneStore>>,
}

/// What a queue of messages is kept in.
#[derive(Debug, Default)]
pub(super) struct LaneStore {
    pub(super) bytes: Vec<u8>,
    pub(super) messages: VecDeque<Message>,
}

/// A queued message, or what is still to be written of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) bytes: u32,
    pub(super) queued_at: Instant,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { scratch: vec![0; SCRATCH_BYTES].into(), bytes: Vec::new(), lanes: Vec::new() }
    }
}

impl Buffers {
    fn take_bytes(&mut self) -> Vec<u8> {
        self.bytes.pop().unwrap_or_default()
    }

    fn give_bytes(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= SPARE_BYTES_MAX && bytes.capacity() > 0 && self.bytes.len() < SPARES_MAX {
            bytes.clear();
            self.bytes.push(bytes);
        }
    }

    pub(super) fn take_lane(&mut self) -> Box<LaneStore> {
        self.lanes.pop().unwrap_or_default()
    }

    pub(super) fn give_lane(&mut self, mut lane: Box<LaneStore>) {
        let small = lane.bytes.capacity() <= SPARE_BYTES_MAX && lane.messages.capacity() <= SPARE_MESSAGES_MAX;
        if small && self.lanes.len() < SPARES_MAX {
            lane.bytes.clear();
            lane.messages.clear();
            self.lanes.push(lane);
        }
    }
}

/// Bytes received and not yet consumed, contiguous; holds no memory when empty and given back.
#[derive(Debug, Default)]
pub struct ReceiveBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl ReceiveBuffer {
    /// What is to be consumed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Forgets the first `n` bytes, at most all.
    pub fn consume(&mut self, n: usize) {
        self.start = self.bytes.len().min(self.start + n);
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn append(&mut self, bytes: &[u8], buffers: &mut Buffers) {
        if self.bytes.capacity() == 0 {
            self.bytes = buffers.take_bytes();
        }
        if self.start > 0 && self.bytes.len() + bytes.len() > self.bytes.capacity() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn release_if_empty(&mut self, buffers: &mut Buffers) {
        if self.len() == 0 {
            self.start = 0;
            buffers.give_bytes(std::mem::take(&mut self.bytes));
        }
    }

    /// Gives memory back: all of it when empty, most of it when little is left in much.
    pub(super) fn settle(&mut self, buffers: &mut Buffers) {
        self.release_if_empty(buffers);
        if self.bytes.capacity() > REMAINDER_BUFFER_MAX && self.len() < self.bytes.capacity() / 4 {
            let remainder = self.bytes().to_vec();
            self.start = 0;
            buffers.give_bytes(std::mem::replace(&mut self.bytes, remainder));
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emptied_buffer_goes_back_and_is_lent_again() {
        let mut buffers = Buffers::default();
        let mut one = ReceiveBuffer::default();
        one.append(&[7; 1000], &mut buffers);
        let address = one.bytes().as_ptr();
        one.consume(1000);
        one.settle(&mut buffers);
        assert_eq!(one.capacity(), 0);
        let mut two = ReceiveBuffer::default();
        two.append(&[8; 10], &mut buffers);
        assert_eq!((two.bytes().as_ptr(), two.bytes()), (address, &[8; 10][..]));
    }

    #[test]
    fn a_small_remainder_does_not_hold_a_large_buffer() {
        let mut buffers = Buffers::default();
        let mut buffer = ReceiveBuffer::default();
        buffer.append(&[7; 50_000], &mut buffers);
        buffer.consume(49_990);
        buffer.settle(&mut buffers);
        assert_eq!(buffer.bytes(), [7; 10]);
        assert!(buffer.capacity() < 100);
        buffer.append(&[8; 3], &mut buffers);
        assert_eq!(buffer.bytes(), [[7; 10].as_slice(), &[8; 3]].concat());
    }

    #[test]
    fn consumed_bytes_make_room_before_the_buffer_grows() {
        let mut buffers = Buffers::default();
        let mut buffer = ReceiveBuffer::default();
        buffer.append(&[1; 1024], &mut buffers);
        let capacity = buffer.capacity();
        for _ in 0..100 {
            buffer.consume(1000);
            buffer.append(&[2; 1000], &mut buffers);
        }
        assert_eq!((buffer.len(), buffer.capacity()), (1024, capacity));
    }

    #[test]
    fn spares_are_bounded_in_number_and_size() {
        let mut buffers = Buffers::default();
        for _ in 0..100 {
            buffers.give_bytes(Vec::with_capacity(100));
            buffers.give_bytes(Vec::with_capacity(SPARE_BYTES_MAX + 1));
            buffers.give_lane(Box::default());
        }
        assert_eq!((buffers.bytes.len(), buffers.lanes.len()), (SPARES_MAX, SPARES_MAX));
        assert!(buffers.bytes.iter().all(|spare| spare.capacity() <= SPARE_BYTES_MAX));
    }
}
