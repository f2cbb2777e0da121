//! What a worker counts besides the outcomes of its server.

use std::ops::AddAssign;

use crate::net::udp::SendReport;

/// Counts since the daemon started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Datagrams given to the kernel, and those that it refused, by reason.
    pub sent: SendReport,
    /// Datagrams that were longer than a buffer; dropped whole.
    pub truncated: u64,
    /// Requests that the kernel dropped before they were read, as their queue was full.
    pub requests_shed: u64,
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
    /// Connections with peers that could not be taken for want of descriptors or memory.
    pub peer_accept_failed: u64,
    /// How often another worker has taken over from one that had failed.
    pub restarts: u64,
}

impl AddAssign for Statistics {
    fn add_assign(&mut self, more: Self) {
        let Self {
            sent,
            truncated,
            requests_shed,
            ring_full,
            stream_dropped,
            stream_garbage,
            stream_silent,
            relay_open_failed,
            peer_accept_failed,
            restarts,
        } = more;
        self.sent += sent;
        self.truncated += truncated;
        self.requests_shed += requests_shed;
        self.ring_full += ring_full;
        self.stream_dropped += stream_dropped;
        self.stream_garbage += stream_garbage;
        self.stream_silent += stream_silent;
        self.relay_open_failed += relay_open_failed;
        self.peer_accept_failed += peer_accept_failed;
        self.restarts += restarts;
    }
}
