//! What a worker counts besides the outcomes of its server.

use crate::net::udp::SendReport;

/// Counts since the worker started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Datagrams given to the kernel, and those that it refused, by reason.
    pub sent: SendReport,
    /// Datagrams that were longer than a buffer; dropped whole.
    pub truncated: u64,
    /// Packets for another worker whose ring was full.
    pub ring_full: u64,
    /// Messages that slow streams did not get.
    pub stream_dropped: u64,
    /// Streams closed because what they sent could not be framed.
    pub stream_garbage: u64,
    /// Streams closed because they owned nothing and said nothing.
    pub stream_silent: u64,
    /// Relay sockets that could not be opened.
    pub relay_open_failed: u64,
}
