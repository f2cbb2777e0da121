//! What a worker counts besides the outcomes of its server.

use std::ops::AddAssign;

use super::histogram::Histogram;
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
    /// Datagrams of clients without an allocation at a listener that was removed.
    pub removed_listener: u64,
    /// At listeners behind proxies: datagrams of somebody else than a proxy, those of proxies without a header that can be
    /// believed, and those of proxies beyond the number that is kept.
    pub proxy_strangers: u64,
    pub proxy_headers: u64,
    pub proxy_hosts: u64,
    /// Datagrams that the kernel dropped as the receive buffer was full: of listeners, requests and media alike, and of
    /// relay sockets that are closed.
    pub listener_drops: u64,
    pub relay_drops: u64,
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
    /// How long turns with packets took, from the end of the wait to the last packet sent.
    pub turns: Histogram,
    /// How often another worker has taken over from one that had failed.
    pub restarts: u64,
    pub dtls: DtlsStatistics,
}

impl AddAssign for Statistics {
    fn add_assign(&mut self, more: Self) {
        let Self {
            sent,
            truncated,
            requests_shed,
            removed_listener,
            proxy_strangers,
            proxy_headers,
            proxy_hosts,
            listener_drops,
            relay_drops,
            ring_full,
            stream_dropped,
            stream_garbage,
            stream_silent,
            relay_open_failed,
            peer_accept_failed,
            turns,
            restarts,
            dtls,
        } = more;
        self.sent += sent;
        self.truncated += truncated;
        self.requests_shed += requests_shed;
        self.removed_listener += removed_listener;
        self.proxy_strangers += proxy_strangers;
        self.proxy_headers += proxy_headers;
        self.proxy_hosts += proxy_hosts;
        self.listener_drops += listener_drops;
        self.relay_drops += relay_drops;
        self.ring_full += ring_full;
        self.stream_dropped += stream_dropped;
        self.stream_garbage += stream_garbage;
        self.stream_silent += stream_silent;
        self.relay_open_failed += relay_open_failed;
        self.peer_accept_failed += peer_accept_failed;
        self.turns += turns;
        self.restarts += restarts;
        self.dtls += dtls;
    }
}

/// What became of the datagrams and handshakes of DTLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct DtlsStatistics {
    /// ClientHellos without a good cookie, each answered with one.
    pub hello_verify_requests: u64,
    pub established: u64,
    /// The client sent an alert: it dislikes the certificate, or knows no common cipher.
    pub failed_alert: u64,
    /// The client broke the protocol or offers nothing that is spoken here.
    pub failed_protocol: u64,
    pub failed_deadline: u64,
    /// ClientHellos with a good cookie that got no handshake: too many connections of the source, in total, and too many
    /// handshakes at once.
    pub refused_source_limit: u64,
    pub refused_total_limit: u64,
    pub refused_handshakes: u64,
    /// Datagrams that are no DTLS, or a ClientHello without its cookie field.
    pub unrecognised: u64,
    /// Datagrams that are not DTLS at a listener for DTLS alone.
    pub plain: u64,
    /// Records of no association.
    pub stray: u64,
    /// Messages for a client that fit into no record, or whose association has ended.
    pub unsent: u64,
    /// Associations that ended because they owned nothing and said nothing.
    pub silent: u64,
    /// Associations that ended because too many owned nothing.
    pub crowded_out: u64,
    /// Associations that another one of the same 5-tuple has taken the place of.
    pub replaced: u64,
}

impl AddAssign for DtlsStatistics {
    fn add_assign(&mut self, more: Self) {
        let Self {
            hello_verify_requests,
            established,
            failed_alert,
            failed_protocol,
            failed_deadline,
            refused_source_limit,
            refused_total_limit,
            refused_handshakes,
            unrecognised,
            plain,
            stray,
            unsent,
            silent,
            crowded_out,
            replaced,
        } = more;
        self.hello_verify_requests += hello_verify_requests;
        self.established += established;
        self.failed_alert += failed_alert;
        self.failed_protocol += failed_protocol;
        self.failed_deadline += failed_deadline;
        self.refused_source_limit += refused_source_limit;
        self.refused_total_limit += refused_total_limit;
        self.refused_handshakes += refused_handshakes;
        self.unrecognised += unrecognised;
        self.plain += plain;
        self.stray += stray;
        self.unsent += unsent;
        self.silent += silent;
        self.crowded_out += crowded_out;
        self.replaced += replaced;
    }
}
