//! A client's connection and a peer's as one: bytes as they are, both ways, and no faster than they are taken.
//!
//! Nothing is read from one side while the other does not take what was read before. So at most one round of bytes waits
//! in each direction, and TCP's own flow control slows the sender down.

use std::io;
use std::net::Shutdown;
use std::time::Instant;

use socket2::SockRef;

use super::super::peer::{NOT_SENT_LOW_WATER, PeerStream};
use super::{Buffers, Class, Connection, Fill, Flush, RECORD_BYTES_MAX, write_tls};

/// Bytes read in one round: what waits in one direction when its destination is slow.
const ROUND_BYTES: usize = 64 * 1024;
/// Bytes read in one round at least: what a budget may be overdrawn by, or by a record of TLS.
pub(super) const ROUND_BYTES_MIN: usize = 4096;
/// Bytes of a client's read in one turn, whatever they hold: a record of TLS may have one byte of data in 23, or none. Where
/// records are long a budget of one round is used up before.
pub(super) const READ_BYTES_MAX: usize = ROUND_BYTES + 2 * RECORD_BYTES_MAX;

/// Why a direction has come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// The source has no more; its readable event tells of more.
    Drained,
    /// The destination takes no more; its writable event tells when it does.
    Blocked,
    /// The budget is used up; go on without waiting for an event.
    Budget,
    /// The source has ended, and the destination has everything and knows it.
    Ended,
}

/// What has become of a direction.
#[derive(Debug)]
pub struct Passed {
    /// Bytes taken by the destination's socket, or for a client by its queue.
    pub bytes: u64,
    /// Any error is the end of both connections.
    pub rest: io::Result<Rest>,
}

impl Connection {
    /// Makes the connection one of application data.
    pub fn begin_data(&self) {
        // Without it data goes in smaller pieces.
        let _ = SockRef::from(&self.stream).set_tcp_notsent_lowat(NOT_SENT_LOW_WATER);
    }

    /// Passes what the client sends to the peer, what was received before first, about `budget` bytes.
    pub fn pass_to(&mut self, peer: &mut PeerStream, buffers: &mut Buffers, budget: u64) -> Passed {
        let mut bytes = 0;
        let rest = self.pass_all_to(peer, buffers, budget, &mut bytes);
        self.received.settle(buffers);
        Passed { bytes, rest }
    }

    /// Passes what the peer sends to the client, what is queued first, about `budget` bytes.
    pub fn pass_from(&mut self, now: Instant, peer: &mut PeerStream, buffers: &mut Buffers, budget: u64) -> Passed {
        let mut bytes = 0;
        let rest = self.pass_all_from(now, peer, buffers, budget, &mut bytes);
        Passed { bytes, rest }
    }

    fn pass_all_to(
        &mut self,
        peer: &mut PeerStream,
        buffers: &mut Buffers,
        budget: u64,
        passed: &mut u64,
    ) -> io::Result<Rest> {
        let mut read = 0;
        loop {
            while self.received.len() > 0 {
                let Some(n) = peer.write(self.received.bytes())? else { return Ok(Rest::Blocked) };
                self.received.consume(n);
                *passed += n as u64;
            }
            if *passed >= budget || read >= READ_BYTES_MAX {
                return Ok(Rest::Budget);
            }
            let round = round(budget - *passed).min(READ_BYTES_MAX - read);
            let filled = self.fill(buffers, round, true)?;
            read += round;
            if self.received.len() > 0 {
                continue;
            }
            match filled {
                Fill::Drained => return Ok(Rest::Drained),
                Fill::Eof => {
                    peer.end_writing()?;
                    return Ok(Rest::Ended);
                }
                // TLS without a byte of data.
                Fill::Budget | Fill::Full => {}
            }
        }
    }

    fn pass_all_from(
        &mut self,
        now: Instant,
        peer: &mut PeerStream,
        buffers: &mut Buffers,
        budget: u64,
        passed: &mut u64,
    ) -> io::Result<Rest> {
        loop {
            if self.flush(now, buffers)? == Flush::Blocked {
                return Ok(Rest::Blocked);
            }
            if peer.read_ended {
                return self.end_writing();
            }
            if *passed >= budget {
                return Ok(Rest::Budget);
            }
            let mut scratch = std::mem::take(&mut buffers.scratch);
            let read = peer.read(&mut scratch[..round(budget - *passed)]);
            // Control is never dropped, and the queue is empty.
            let queued = match &read {
                Ok(Some(n @ 1..)) => self.send(now, Class::Control, &[], &scratch[..*n], 0, buffers),
                Ok(Some(0) | None) | Err(_) => Ok(()),
            };
            buffers.scratch = scratch;
            queued.map_err(|_| io::ErrorKind::BrokenPipe)?;
            match read? {
                Some(n) => *passed += n as u64,
                None => return Ok(Rest::Drained),
            }
        }
    }

    /// Tells the client that no more comes: close_notify for TLS, then FIN. What it sends is still read.
    fn end_writing(&mut self) -> io::Result<Rest> {
        if self.write_ended {
            return Ok(Rest::Ended);
        }
        if let Some(tls) = self.tls.as_mut() {
            if !std::mem::replace(&mut self.says_goodbye, true) {
                tls.send_close_notify();
            }
            if write_tls(&self.stream, tls)? == Flush::Blocked {
                return Ok(Rest::Blocked);
            }
        }
        self.write_ended = true;
        self.stream.shutdown(Shutdown::Write)?;
        Ok(Rest::Ended)
    }
}

/// How much to read at once where so much of a budget is left.
fn round(left: u64) -> usize {
    (left.min(ROUND_BYTES as u64) as usize).max(ROUND_BYTES_MIN)
}
