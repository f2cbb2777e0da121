//! Buffers that the kernel takes datagrams into: a ring of provided buffers (io_uring_register_buf_ring(3)).

use std::io;
use std::net::SocketAddr;
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use super::super::Datagram;
use crate::net::control::{self, Name, Received};
use crate::net::poll::Token;
use crate::net::udp::{HEADROOM, PAYLOAD_MAX, TAILROOM};

/// Buffers of a worker; a power of two. More than arrive in one turn of half a millisecond at any rate that one core
/// can serve.
pub(super) const BUFFERS: u16 = 1024;
/// Buffers that the kernel has while little arrives: 64 x the few lines that a small datagram touches stay in the first
/// cache, and their pages in the TLB.
const STOCK_MIN: u16 = 64;
/// The stock is this many times what a turn uses, so that a burst finds some.
const STOCK_TURNS: u16 = 4;
/// Turns after which a stock that was too large for all of them is halved.
const STOCK_WINDOW: u16 = 256;
/// The group that receives name.
pub(super) const GROUP: u16 = 0;

/// `struct io_uring_recvmsg_out`: four 32-bit numbers.
const OUT_BYTES: usize = 16;
/// Room for the source address; with the header in front, control messages are aligned.
const NAME_BYTES: usize = 32;
/// Room for PKTINFO, TOS, the drop counter of either family, and the length of merged datagrams: 40 + 24 + 24 + 24.
const CONTROL_BYTES: usize = 112;
const PAYLOAD_AT: usize = OUT_BYTES + NAME_BYTES + CONTROL_BYTES;
const PAGE_BYTES: usize = 4096;
/// Whole pages, so that only those that were used are in memory.
const BUFFER_BYTES: usize = (PAYLOAD_AT + PAYLOAD_MAX + TAILROOM).next_multiple_of(PAGE_BYTES);

/// The buffers, and the ring in which they are given to the kernel.
pub(super) struct Buffers {
    ring: Mapping,
    bytes: Mapping,
    tail: u16,
    /// Those that the kernel does not have; the last used first.
    spare: Vec<u16>,
    /// How many the kernel has.
    given: u16,
    stock: Stock,
    /// What each receive asks for.
    template: Box<libc::msghdr>,
}

// SAFETY: the pointers inside lead to mappings that the buffers own, and to nothing of a thread.
unsafe impl Send for Buffers {}

/// A datagram in a buffer.
pub(super) struct Contents {
    from: Option<SocketAddr>,
    pub(super) received: Received,
    len: usize,
    truncated: bool,
}

impl Contents {
    /// As a datagram alone; `None` if nobody knows where it is from.
    pub(super) fn datagram(&self, token: Token, slot: usize) -> Option<Datagram> {
        Some(Datagram {
            token,
            slot,
            at: 0,
            len: self.len,
            from: self.from?,
            to: self.received.to,
            tos: self.received.tos,
            truncated: self.truncated,
            in_run: false,
        })
    }
}

impl Buffers {
    /// Maps and registers all buffers.
    pub(super) fn register(submitter: &Submitter<'_>) -> io::Result<Self> {
        let ring = Mapping::new(usize::from(BUFFERS) * size_of::<BufRingEntry>())?;
        let bytes = Mapping::new(usize::from(BUFFERS) * BUFFER_BYTES)?;
        // SAFETY: the ring is page-aligned, has room for its entries, and lives as long as the buffers, which the owner
        // drops after the io_uring instance.
        unsafe { submitter.register_buf_ring_with_flags(ring.base as u64, BUFFERS, GROUP, 0)? };
        // SAFETY: all zero is an empty message header.
        let mut template: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        template.msg_namelen = NAME_BYTES as libc::socklen_t;
        template.msg_controllen = CONTROL_BYTES as _;
        let spare = (0..BUFFERS).collect();
        let mut buffers = Self { ring, bytes, tail: 0, spare, given: 0, stock: Stock::default(), template };
        buffers.give_up_to(STOCK_MIN);
        Ok(buffers)
    }

    /// What a receive asks for.
    pub(super) fn template(&self) -> *const libc::msghdr {
        &raw const *self.template
    }

    /// Takes back what a turn has used, and gives the kernel as many as the next turns may need. The kernel had none left
    /// if it `ran_out`.
    pub(super) fn recycle(&mut self, used: &mut Vec<u16>, ran_out: bool) {
        let count = used.len() as u16;
        self.given -= count;
        self.spare.append(used);
        let wanted = self.stock.after(count, ran_out);
        self.give_up_to(wanted);
    }

    fn give_up_to(&mut self, wanted: u16) {
        while self.given < wanted
            && let Some(buffer) = self.spare.pop()
        {
            self.give(buffer);
            self.given += 1;
        }
        self.publish();
    }

    /// Gives a buffer to the kernel with the next [`Self::publish`].
    fn give(&mut self, buffer: u16) {
        let index = usize::from(self.tail & (BUFFERS - 1));
        let address = self.base(buffer) as u64;
        // SAFETY: the index is below the number of entries of the mapping; the kernel reads entries below the published
        // tail alone. The tail, which shares memory with the first entry's unused last field, is not touched.
        let entry = unsafe { &mut *self.ring.base.cast::<BufRingEntry>().add(index) };
        entry.set_addr(address);
        entry.set_len((BUFFER_BYTES - TAILROOM) as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see what was given.
    fn publish(&mut self) {
        // SAFETY: the ring is a mapping with the tail at its place; the kernel reads it atomically.
        let tail = unsafe { &*BufRingEntry::tail(self.ring.base.cast()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }

    /// What the kernel put into a buffer, `filled` bytes in all.
    pub(super) fn contents(&self, buffer: u16, filled: usize) -> Option<Contents> {
        let payload = filled.checked_sub(PAYLOAD_AT)?;
        let base = self.base(buffer);
        // SAFETY: the kernel has written header, name and control messages into this buffer and is done with it.
        unsafe {
            let [name_bytes, control_bytes, payload_bytes, flags] = base.cast::<[u32; 4]>().read();
            let name = base.add(OUT_BYTES).cast::<libc::sockaddr>();
            let is_whole = matches!(
                (i32::from((*name).sa_family), name_bytes as usize),
                (libc::AF_INET, 16..=NAME_BYTES) | (libc::AF_INET6, 28..=NAME_BYTES)
            );
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_control = base.add(OUT_BYTES + NAME_BYTES).cast();
            header.msg_controllen = (control_bytes as usize).min(CONTROL_BYTES) as _;
            let mut received = Received::default();
            control::for_each(&header, |level, kind, value| received.take(level, kind, value));
            Some(Contents {
                from: is_whole.then(|| Name::read(name)).flatten(),
                received,
                len: payload.min(payload_bytes as usize),
                truncated: flags & libc::MSG_TRUNC as u32 != 0 || payload_bytes as usize > payload,
            })
        }
    }

    /// A buffer as a slot: the datagram begins at [`HEADROOM`].
    pub(super) fn slot(&self, buffer: u16) -> &[u8] {
        let start = usize::from(buffer) * BUFFER_BYTES + PAYLOAD_AT - HEADROOM;
        &self.bytes.as_slice()[start..start + HEADROOM + PAYLOAD_MAX + TAILROOM]
    }

    /// The same, to write a prefix in front.
    pub(super) fn slot_mut(&mut self, buffer: u16) -> &mut [u8] {
        let start = usize::from(buffer) * BUFFER_BYTES + PAYLOAD_AT - HEADROOM;
        &mut self.bytes.as_mut_slice()[start..start + HEADROOM + PAYLOAD_MAX + TAILROOM]
    }

    fn base(&self, buffer: u16) -> *mut u8 {
        self.bytes.base.wrapping_add(usize::from(buffer) * BUFFER_BYTES)
    }
}

/// How many buffers the kernel is to have. It takes them in the order in which they were given, so all that it has are
/// touched in turn: with few, it is the same few.
#[derive(Debug)]
struct Stock {
    wanted: u16,
    /// The most that one turn of the window used.
    most: u16,
    turns: u16,
}

impl Default for Stock {
    fn default() -> Self {
        Self { wanted: STOCK_MIN, most: 0, turns: 0 }
    }
}

impl Stock {
    /// The number after a turn that used `used` of them, or all if they `ran_out`.
    fn after(&mut self, used: u16, ran_out: bool) -> u16 {
        self.most = self.most.max(if ran_out { BUFFERS } else { used });
        let needed = self.most.saturating_mul(STOCK_TURNS).clamp(STOCK_MIN, BUFFERS);
        self.wanted = self.wanted.max(needed);
        self.turns += 1;
        if self.turns == STOCK_WINDOW {
            self.wanted = needed.max(self.wanted / 2);
            (self.most, self.turns) = (0, 0);
        }
        self.wanted
    }
}

/// Anonymous memory in whole pages, all zero.
struct Mapping {
    base: *mut u8,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is ours. Huge pages would hold memory for the unused ends of buffers; without the advice
        // nothing but that happens.
        unsafe { libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE) };
        Ok(Self { base: base.cast(), bytes })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is owned and readable; buffers that the kernel has are not looked at.
        unsafe { std::slice::from_raw_parts(self.base, self.bytes) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is owned and writable; buffers that the kernel has are not touched.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody else refers to it.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_buffers_serve_little_traffic_and_all_of_them_a_burst() {
        let mut stock = Stock::default();
        assert_eq!(stock.after(8, false), 64);
        assert_eq!(stock.after(40, false), 160);
        assert_eq!(stock.after(1, false), 160, "kept for the next burst");
        assert_eq!(stock.after(900, false), BUFFERS);
        assert_eq!(Stock::default().after(3, true), BUFFERS);
    }

    #[test]
    fn the_stock_shrinks_when_nothing_has_needed_it_for_long() {
        let mut stock = Stock::default();
        stock.after(0, true);
        for _ in 0..6 * u32::from(STOCK_WINDOW) {
            stock.after(8, false);
        }
        assert_eq!(stock.wanted, STOCK_MIN);
    }
}
