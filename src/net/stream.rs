//! An established stream, plain or TLS, driven by a worker's own loop: no runtime, no thread, no wait.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use rustls::ServerConnection;

use super::accept::Established;
use super::admission::ConnectionGuard;
use super::buffers::{Buffers, ReceiveBuffer};
pub use super::send_queue::{Class, Dropped, QueueLimits};
use super::send_queue::{Overflow, SendQueue};
use crate::address::{ClientAddr, FiveTuple, ServerAddr, Transport};
pub use splice::{Passed, Rest};

/// The plaintext of one TLS record (RFC 8446 section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// Unconsumed bytes that a connection holds at most. A message is at most 20 + 65,535 bytes, so there is always a whole one
/// to consume.
pub const RECEIVED_BYTES_MAX: usize = 128 * 1024;

/// Reading stops here: what is read may complete one TLS record that was already partly there.
const READ_MARK: usize = RECEIVED_BYTES_MAX - RECORD_BYTES_MAX;

/// Why [`Connection::fill`] stopped reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The socket is empty; the next readable event tells of more.
    Drained,
    /// The budget is used up; fill again without waiting for an event.
    Budget,
    /// [`RECEIVED_BYTES_MAX`] is near; consume, then fill again without waiting for an event.
    Full,
    /// The client sends no more (FIN or close_notify). What it sent is in `received`, and sending still works.
    Eof,
}

/// Whether [`Connection::flush`] could write everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing waits.
    Drained,
    /// The socket takes no more; the next writable event tells when it does.
    Blocked,
}

/// Why [`Connection::send`] queued nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Control messages alone filled the queue; the connection has closed itself.
    Overflow,
    /// The connection was closed before.
    Closed,
}

/// One client's stream.
///
/// Fits edge-triggered epoll with EPOLLIN, EPOLLOUT and EPOLLRDHUP registered once: after [`new`](Self::new) and after each
/// readable event [`fill`](Self::fill); [`flush`](Self::flush) once after a batch of [`send`](Self::send), and after each
/// writable event while [`wants_write`](Self::wants_write). Any error is the end of the connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    received: ReceiveBuffer,
    queue: SendQueue,
    limits: QueueLimits,
    client: SocketAddr,
    server: SocketAddr,
    read_ended: bool,
    /// Of a data connection: close_notify is on its way.
    says_goodbye: bool,
    /// Of a data connection: the client has been told that no more comes.
    write_ended: bool,
    closed: bool,
    _guard: ConnectionGuard,
}

impl Connection {
    /// Takes an established stream over.
    ///
    /// The first [`fill`](Self::fill) must not wait for an event: for TLS the client's first bytes may have been read by the
    /// handshake.
    pub fn new(established: Established, limits: QueueLimits) -> Self {
        let Established { stream, tls, client, server, guard } = established;
        Self {
            stream,
            tls,
            received: ReceiveBuffer::default(),
            queue: SendQueue::default(),
            limits,
            client,
            server,
            read_ended: false,
            says_goodbye: false,
            write_ended: false,
            closed: false,
            _guard: guard,
        }
    }

    /// The socket, for epoll.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The 5-tuple of the connection.
    pub fn five_tuple(&self) -> FiveTuple {
        FiveTuple {
            transport: if self.tls.is_some() { Transport::Tls } else { Transport::Tcp },
            client: ClientAddr::new(self.client),
            server: ServerAddr::new(self.server),
        }
    }

    /// Reads about `budget` bytes, decrypts them and appends them to [`received`](Self::received).
    ///
    /// `hang_up` tells that the event carried EPOLLRDHUP, EPOLLHUP or EPOLLERR; without it a short read is taken for the
    /// last, which saves the read that fails. Errors: the socket's, and `InvalidData` for a TLS violation, the alert
    /// for it being sent.
    pub fn fill(&mut self, buffers: &mut Buffers, budget: usize, hang_up: bool) -> io::Result<Fill> {
        let result = self.read_all(buffers, budget, hang_up);
        self.received.release_if_empty(buffers);
        result
    }

    /// What the client sent and nobody consumed yet, contiguous.
    pub fn received(&self) -> &[u8] {
        self.received.bytes()
    }

    /// Forgets the first `n` received bytes.
    pub fn consume(&mut self, n: usize) {
        self.received.consume(n);
    }

    /// Gives memory back that what is left does not need; to be called after the last `consume` of an event.
    pub fn settle(&mut self, buffers: &mut Buffers) {
        self.received.settle(buffers);
    }

    /// Takes the received bytes out, to work on them while other connections are changed; to be put back before the next
    /// [`fill`](Self::fill).
    pub fn take_received(&mut self) -> ReceiveBuffer {
        std::mem::take(&mut self.received)
    }

    /// Puts back what [`take_received`](Self::take_received) gave, and [`settle`](Self::settle)s.
    pub fn restore_received(&mut self, received: ReceiveBuffer, buffers: &mut Buffers) {
        self.received = received;
        self.received.settle(buffers);
    }

    /// Queues one framed message: `prefix`, `payload` and `pad` zero bytes.
    ///
    /// A full queue drops the oldest data, see [`take_dropped`](Self::take_dropped); `Ok` is also said of data that was
    /// dropped itself. Nothing is written before [`flush`](Self::flush).
    pub fn send(
        &mut self,
        now: Instant,
        class: Class,
        prefix: &[u8],
        payload: &[u8],
        pad: usize,
        buffers: &mut Buffers,
    ) -> Result<(), SendError> {
        if self.closed {
            return Err(SendError::Closed);
        }
        match self.queue.push(now, class, [prefix, payload], pad, &self.limits, buffers) {
            Ok(()) => Ok(()),
            Err(Overflow) => {
                self.close();
                Err(SendError::Overflow)
            }
        }
    }

    /// Writes what is queued, after dropping data that is too old.
    ///
    /// Plain: one writev for all. TLS: one record per message and one write per 16 KiB, encrypted only when what was
    /// before is written, so that what waits can still be dropped.
    pub fn flush(&mut self, now: Instant, buffers: &mut Buffers) -> io::Result<Flush> {
        self.queue.drop_aged(now, self.limits.queue_age_max);
        if self.closed {
            return Ok(Flush::Drained);
        }
        let result = match self.tls.as_mut() {
            Some(tls) => flush_tls(&self.stream, tls, &mut self.queue),
            None => flush_plain(&self.stream, &mut self.queue),
        };
        self.queue.settle(buffers);
        result
    }

    /// Whether something waits for the socket.
    pub fn wants_write(&self) -> bool {
        !self.closed && (!self.queue.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write()))
    }

    /// Messages dropped since the last call.
    pub fn take_dropped(&mut self) -> Dropped {
        self.queue.take_dropped()
    }

    /// Ends the connection: close_notify for TLS as far as the socket takes it, then FIN. The socket closes on drop.
    pub fn close(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.read_ended = true;
        if let Some(tls) = self.tls.as_mut() {
            tls.send_close_notify();
            // The client may be gone or may not read; it learns by the FIN.
            let _ = write_tls(&self.stream, tls);
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn read_all(&mut self, buffers: &mut Buffers, budget: usize, hang_up: bool) -> io::Result<Fill> {
        let mut left = budget;
        // What the handshake read along.
        self.take_in(0, buffers)?;
        loop {
            if self.read_ended {
                return Ok(Fill::Eof);
            }
            let space = READ_MARK.saturating_sub(self.received.len());
            let want = space.min(left).min(buffers.scratch.len());
            if want == 0 {
                return Ok(if space == 0 { Fill::Full } else { Fill::Budget });
            }
            match (&self.stream).read(&mut buffers.scratch[..want]) {
                Ok(0) => self.read_ended = true,
                Ok(n) => {
                    left -= n;
                    self.take_in(n, buffers)?;
                    if n < want && !hang_up && !self.read_ended {
                        return Ok(Fill::Drained);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Fill::Drained),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the first `n` bytes of the scratch space in.
    fn take_in(&mut self, n: usize, buffers: &mut Buffers) -> io::Result<()> {
        let scratch = std::mem::take(&mut buffers.scratch);
        let result = match self.tls.as_mut() {
            None => {
                if n > 0 {
                    self.received.append(&scratch[..n], buffers);
                }
                Ok(())
            }
            Some(_) if self.read_ended => Ok(()),
            Some(tls) => decrypt(&self.stream, tls, &scratch[..n], &mut self.received, buffers)
                .map(|ended| self.read_ended |= ended),
        };
        buffers.scratch = scratch;
        result
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A socket that has delivered `0` and then would block, so that rustls sees neither an end nor too much.
struct Delivered<'a>(&'a [u8]);

impl Read for Delivered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { self.0.read(buffer) }
    }
}

/// Decrypts all of `ciphertext`; returns whether the client has sent close_notify.
///
/// Leaves no plaintext in rustls. The read that would block makes rustls shrink its buffer to 4 KiB.
fn decrypt(
    mut stream: &TcpStream,
    tls: &mut ServerConnection,
    ciphertext: &[u8],
    received: &mut ReceiveBuffer,
    buffers: &mut Buffers,
) -> io::Result<bool> {
    let mut ciphertext = Delivered(ciphertext);
    loop {
        let state = match tls.process_new_packets() {
            Ok(state) => state,
            Err(error) => {
                // The alert that says why; the connection ends either way.
                let _ = tls.write_tls(&mut stream);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        };
        take_plaintext(tls, state.plaintext_bytes_to_read(), received, buffers)?;
        if state.peer_has_closed() {
            return Ok(true);
        }
        match tls.read_tls(&mut ciphertext) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    // Alerts such as no_renegotiation; the rest of the output waits for flush.
    if tls.wants_write() {
        write_tls(stream, tls)?;
    }
    Ok(false)
}

fn take_plaintext(
    tls: &mut ServerConnection,
    mut bytes: usize,
    received: &mut ReceiveBuffer,
    buffers: &mut Buffers,
) -> io::Result<()> {
    use std::io::BufRead;
    let mut reader = tls.reader();
    while bytes > 0 {
        let chunk = reader.fill_buf()?;
        let n = chunk.len();
        received.append(chunk, buffers);
        reader.consume(n);
        bytes = if n == 0 { 0 } else { bytes.saturating_sub(n) };
    }
    Ok(())
}

fn flush_plain(mut stream: &TcpStream, queue: &mut SendQueue) -> io::Result<Flush> {
    while !queue.is_empty() {
        let slices = queue.slices(usize::MAX);
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        match stream.write_vectored(&slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => {
                queue.advance(n);
                if n < total {
                    return Ok(Flush::Blocked);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flush::Blocked),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Flush::Drained)
}

fn flush_tls(stream: &TcpStream, tls: &mut ServerConnection, queue: &mut SendQueue) -> io::Result<Flush> {
    loop {
        if write_tls(stream, tls)? == Flush::Blocked {
            return Ok(Flush::Blocked);
        }
        if queue.is_empty() {
            return Ok(Flush::Drained);
        }
        let mut encrypted = 0;
        while encrypted < RECORD_BYTES_MAX && !queue.is_empty() {
            let n = encrypt(tls, queue)?;
            queue.advance(n);
            encrypted += n;
        }
    }
}

/// Encrypts one record's worth of the queue; returns how many of its bytes.
fn encrypt(tls: &mut ServerConnection, queue: &SendQueue) -> io::Result<usize> {
    let slices = queue.slices(queue.record(RECORD_BYTES_MAX));
    let mut parts = slices.iter().filter(|slice| !slice.is_empty());
    // rustls allocates for several parts but not for one, and one is the rule.
    let n = match (parts.next(), parts.next()) {
        (Some(only), None) => tls.writer().write(only)?,
        (Some(_), Some(_)) => tls.writer().write_vectored(&slices)?,
        (None, _) => 0,
    };
    // TLS 1.2 with AES-GCM ends after 2^24 records (RFC 8446 section 5.5): rustls then says close_notify and no more.
    if n == 0 || !tls.wants_write() {
        return Err(io::Error::new(ErrorKind::BrokenPipe, "tls write keys are exhausted"));
    }
    Ok(n)
}

fn write_tls(mut stream: &TcpStream, tls: &mut ServerConnection) -> io::Result<Flush> {
    while tls.wants_write() {
        match tls.write_tls(&mut stream) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flush::Blocked),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Flush::Drained)
}

#[cfg(test)]
mod memory_tests;
mod splice;
#[cfg(test)]
mod splice_tests;
#[cfg(test)]
mod tests;
