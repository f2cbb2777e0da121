//! A flood of Allocates without credentials, from a new address each.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use crate::datagrams::{self, BATCH, Outbox};
use crate::dialog::write_unauthenticated_allocate;
use crate::failure::Result;

/// Addresses of those who flood; 65,536 of them.
const FLOODERS: u32 = u32::from_be_bytes([127, 96, 0, 0]);
const FLOODERS_MASK: u32 = 0xFFFF;
/// Answers go to waste: they are not read, so that the server's sending costs the generator nothing.
const RECEIVE_BUFFER: libc::c_int = 4096;

/// Requests that lead to nothing, at a rate.
pub(crate) struct Flood {
    socket: UdpSocket,
    outbox: Outbox,
    server: SocketAddrV4,
    per_second: f64,
    begin_ns: Option<u64>,
    last_ns: u64,
    poured: u64,
    request: Vec<u8>,
}

impl Flood {
    pub(crate) fn new(server: SocketAddrV4, per_second: f64) -> Result<Self> {
        let socket = datagrams::open(Some(RECEIVE_BUFFER))?;
        let mut request = Vec::new();
        write_unauthenticated_allocate(&mut request, [9; 12]);
        Ok(Self { socket, outbox: Outbox::new(), server, per_second, begin_ns: None, last_ns: 0, poured: 0, request })
    }

    /// Sends what is due, at most a batch; says how much it was.
    pub(crate) fn pour(&mut self, now_ns: u64) -> usize {
        let begin = *self.begin_ns.get_or_insert(now_ns);
        self.last_ns = now_ns;
        let due = (now_ns.saturating_sub(begin) as f64 * self.per_second / 1e9) as u64;
        let count = due.saturating_sub(self.poured).min(BATCH as u64);
        for _ in 0..count {
            let number = self.poured;
            let from = Ipv4Addr::from(FLOODERS + (number as u32 & FLOODERS_MASK));
            let datagram = self.outbox.push(from, self.server, self.request.len());
            datagram.copy_from_slice(&self.request);
            datagram[12..20].copy_from_slice(&number.to_be_bytes());
            self.poured += 1;
        }
        self.outbox.flush(&self.socket);
        count as usize
    }

    /// The rate that the generator came to.
    pub(crate) fn per_second(&self) -> f64 {
        let elapsed_ns = self.last_ns.saturating_sub(self.begin_ns.unwrap_or(self.last_ns));
        self.poured as f64 * 1e9 / (elapsed_ns as f64).max(1.0)
    }
}
