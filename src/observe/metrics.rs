//! The metrics page, in the text of OpenMetrics: every name and label is written here and nowhere else.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::records;
use crate::address::{Family, Transport};
use crate::authority;
use crate::net::admission::Admission;
use crate::net::certificate::CertificateContent;
use crate::offload::{self, Total};
use crate::stun::{ErrorCode, Method};
use crate::turn::effect::Traffic;
use crate::turn::{DropReason, Shared};
use crate::worker::histogram::Histogram;
use crate::worker::{DtlsStatistics, Report};

/// The media type of [`Snapshot::page`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The media type of [`plain`].
pub const PLAIN_MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page as Prometheus's text format 0.0.4, which names a counter as its samples and has no mark of its end.
pub fn plain(page: &str) -> String {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let counters: HashSet<&str> = types.filter_map(|line| line.strip_suffix(" counter")).collect();
    let mut written = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF") {
        let named = line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')).and_then(|(word, rest)| {
            let (name, rest) = rest.split_once(' ')?;
            counters.contains(name).then(|| format!("# {word} {name}_total {rest}"))
        });
        written += named.as_deref().unwrap_or(line);
        written.push('\n');
    }
    written
}

/// The daemon at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// One of each worker.
    pub workers: Vec<Report>,
    pub shared: Arc<Shared>,
    pub admission: Arc<Admission>,
    /// The certificates in use, each after its file.
    pub certificates: Vec<(PathBuf, CertificateContent)>,
    pub records: Arc<records::Counters>,
    /// Where somebody else decides about allocations.
    pub authorizations: Option<Arc<authority::Counters>>,
    /// The users who have the most, where an operator has asked for names.
    pub top_users: Vec<UserUsage>,
    /// Open descriptors and their limit, where they can be told.
    pub descriptors: Option<(u64, u64)>,
    pub reloads: Reloads,
    /// A drain under way.
    pub drain: Option<DrainProgress>,
    /// The kernel path, where there is one.
    pub offload: Option<offload::Report>,
    pub taken_at: SystemTime,
}

/// How reloads went, since the start.
#[derive(Clone, Copy, Debug)]
pub struct Reloads {
    pub applied: u64,
    pub refused: u64,
    pub last_ok: bool,
}

impl Default for Reloads {
    fn default() -> Self {
        Self { applied: 0, refused: 0, last_ok: true }
    }
}

/// What the live allocations of a user have carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserUsage {
    pub user: String,
    pub bytes: u64,
    pub allocations: u64,
}

/// How a drain stands.
#[derive(Clone, Copy, Debug)]
pub struct DrainProgress {
    /// Allocations when it began.
    pub allocations: u64,
    /// When it ends at the latest, in seconds since 1970.
    pub deadline: Option<u64>,
}

impl Snapshot {
    /// Writes the page.
    pub fn page(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("ferryd");
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(page)
    }

    fn sum(&self, count: impl Fn(&Report) -> u64) -> u64 {
        self.workers.iter().map(count).sum()
    }

    fn drain(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge("draining", "1 while no new allocations are made", u64::from(self.drain.is_some()))?;
        let began = self.drain.map(|drain| drain.allocations).unwrap_or_default();
        page.gauge("drain_allocations", "Allocations when the drain began", began)?;
        let deadline = self.drain.and_then(|drain| drain.deadline).unwrap_or_default();
        page.gauge(
            "drain_deadline_seconds",
            "When the drain ends at the latest, seconds since 1970, 0 for never",
            deadline,
        )
    }

    fn relay(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauge("allocations", "Live allocations", self.sum(|worker| worker.allocations as u64))?;
        let restarts = self.sum(|worker| worker.statistics.restarts);
        page.counter("worker_restarts", "Workers that another has taken over from after a failure", restarts)?;
        page.gauge("connections", "Streams that workers serve", self.sum(|worker| worker.connections as u64))?;
        let kernel = |total| self.offload.as_ref().map_or(0, |report| report.total(total));
        let packets = [
            ("to_peer", "sockets", self.sum(|worker| worker.counters.to_peer)),
            ("to_client", "sockets", self.sum(|worker| worker.counters.to_client)),
            ("to_worker", "sockets", self.sum(|worker| worker.counters.to_worker)),
            ("to_peer", "kernel", kernel(Total::ToPeer)),
            ("to_client", "kernel", kernel(Total::ToClient)),
        ];
        let series =
            packets.map(|(direction, datapath, count)| ([("direction", direction), ("datapath", datapath)], count));
        page.counters(
            "packets",
            "Application data relayed, to_worker being counted by the other worker as well",
            series,
        )?;
        page.gauge(
            "peer_connections",
            "TCP connections with peers of TCP allocations",
            self.sum(|worker| worker.peer_connections as u64),
        )?;
        page.counter(
            "peer_connections_accepted",
            "TCP connections that peers made and clients were told of",
            self.sum(|worker| worker.counters.accepted),
        )?;
        let bytes = [
            ("to_peer", self.sum(|worker| worker.counters.connection_bytes_to_peers)),
            ("to_client", self.sum(|worker| worker.counters.connection_bytes_to_clients)),
        ];
        let bytes = bytes.map(|(direction, count)| ([("direction", direction)], count));
        page.counters("data_connection_bytes", "Application data relayed over TCP connections with peers", bytes)?;
        self.by_transport(page)?;
        let dropped = DropReason::ALL.map(|reason| {
            // What the programs do not let through the sockets would not have.
            let in_kernel = if reason == DropReason::DataRate { kernel(Total::DataRate) } else { 0 };
            ([("reason", reason.name())], self.sum(|worker| worker.counters.dropped(reason)) + in_kernel)
        });
        page.counters("dropped", "Datagrams and messages that nothing was sent for, by reason", dropped)?;
        page.counter(
            "credential_failures",
            "Requests with a valid nonce and wrong credentials, answered or not",
            self.sum(|worker| worker.counters.credential_failures),
        )?;
        let families = [("ipv4", Family::V4), ("ipv6", Family::V6)];
        let usage = families.map(|(name, family)| ([("family", name)], self.shared.ports.usage(family)));
        page.gauges("relay_ports_used", "Relay ports in use", usage.map(|(labels, (used, _))| (labels, used as i64)))?;
        page.gauges("relay_ports", "Relay ports in all", usage.map(|(labels, (_, all))| (labels, all as i64)))
    }

    /// Application data that has passed, live calls included, and what it passes through.
    fn by_transport(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut traffic = [Traffic::default(); Transport::ALL.len()];
        for worker in &self.workers {
            traffic.iter_mut().zip(worker.counters.traffic).for_each(|(sum, more)| *sum += more);
        }
        let kernel: Traffic = self.offload.as_ref().map(|report| report.traffic.into()).unwrap_or_default();
        let sockets =
            Transport::ALL.into_iter().zip(traffic).map(|(transport, traffic)| (transport, "sockets", traffic));
        let paths: Vec<_> = sockets.chain([(Transport::Udp, "kernel", kernel)]).collect();
        let series = |to_peers: fn(&Traffic) -> u64, to_client: fn(&Traffic) -> u64| {
            paths.iter().flat_map(move |(transport, datapath, traffic)| {
                let labels =
                    |direction| [("direction", direction), ("transport", transport.name()), ("datapath", *datapath)];
                [(labels("to_peers"), to_peers(traffic)), (labels("to_clients"), to_client(traffic))]
            })
        };
        let packets = series(|it| it.packets_to_peers, |it| it.packets_to_client);
        let help = "Application data by direction, the client's transport and the data path";
        page.counters("relayed_packets", help, packets)?;
        let bytes = series(|it| it.bytes_to_peers, |it| it.bytes_to_client);
        page.counters("relayed_bytes", "Payload by direction, the client's transport and the data path", bytes)?;
        let live = Transport::ALL.into_iter().flat_map(|transport| {
            [("ipv4", Family::V4), ("ipv6", Family::V6)].map(|(name, family)| {
                let count = self.sum(|worker| worker.live.get(transport, family));
                ([("transport", transport.name()), ("family", name)], count as i64)
            })
        });
        page.gauges("relayed_addresses", "Live relayed addresses by the client's transport and their family", live)?;
        let mut turns = Histogram::default();
        self.workers.iter().for_each(|worker| turns += worker.statistics.turns);
        let help = "Turns of packet loops that had packets, from the end of the wait to the last one sent";
        page.histogram("loop_turn_seconds", help, &turns)
    }

    /// The process and its configuration.
    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        if let Some((open, limit)) = self.descriptors {
            page.gauge("descriptors", "Open descriptors", open)?;
            page.gauge("descriptors_max", "Descriptors that the process may have", limit)?;
        }
        let reloads = [("applied", self.reloads.applied), ("refused", self.reloads.refused)];
        let reloads = reloads.map(|(result, count)| ([("result", result)], count));
        page.counters("reloads", "Reloads of the configuration, by result", reloads)?;
        page.gauge("last_reload_ok", "0 when the last reload was refused", u64::from(self.reloads.last_ok))
    }

    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let succeeded = Method::ALL.into_iter().map(|method| {
            let count = self.sum(|worker| worker.counters.succeeded(method));
            ([("method", method.name().to_owned()), ("result", "success".to_owned())], count)
        });
        let refused = Method::ALL.into_iter().flat_map(|method| {
            ErrorCode::ALL.into_iter().map(move |code| (method, code)).map(|(method, code)| {
                let count = self.sum(|worker| worker.counters.refused(method, code));
                ([("method", method.name().to_owned()), ("result", code.number().to_string())], count)
            })
        });
        // What never happened is left out: most methods cannot be refused with most codes.
        let seen = succeeded.chain(refused).filter(|(_, count)| *count > 0);
        page.counters("requests", "Requests by method and success or error code", seen)
    }

    fn sockets(&self, page: &mut Page<'_>) -> fmt::Result {
        let sent =
            |pick: fn(&crate::net::udp::SendReport) -> usize| self.sum(|worker| pick(&worker.statistics.sent) as u64);
        page.counter("datagrams_sent", "Datagrams that the kernel took", sent(|report| report.sent))?;
        let failed = [
            ("would_block", sent(|report| report.would_block)),
            ("no_buffers", sent(|report| report.no_buffers)),
            ("too_large", sent(|report| report.too_large)),
            ("unreachable", sent(|report| report.unreachable)),
            ("denied", sent(|report| report.denied)),
            ("refused", sent(|report| report.refused)),
            ("overflowed", sent(|report| report.overflowed)),
            ("other", sent(|report| report.closed + report.other)),
        ];
        let failed = failed.map(|(reason, count)| ([("reason", reason)], count));
        page.counters("datagrams_unsent", "Datagrams that the kernel refused, by reason", failed)?;
        let statistics = |pick: fn(&crate::worker::Statistics) -> u64| self.sum(|worker| pick(&worker.statistics));
        page.counter(
            "peer_accept_failures",
            "TCP connections of peers that were not taken for want of descriptors",
            statistics(|it| it.peer_accept_failed),
        )?;
        let lost = [
            ("slow_stream", statistics(|it| it.stream_dropped)),
            ("ring_full", statistics(|it| it.ring_full)),
            ("requests_shed", statistics(|it| it.requests_shed)),
            ("removed_listener", statistics(|it| it.removed_listener)),
            ("proxy_stranger", statistics(|it| it.proxy_strangers)),
            ("proxy_header", statistics(|it| it.proxy_headers)),
            ("proxy_hosts", statistics(|it| it.proxy_hosts)),
            ("truncated", statistics(|it| it.truncated)),
            ("dtls_unsent", statistics(|it| it.dtls.unsent)),
        ];
        let lost = lost.map(|(reason, count)| ([("reason", reason)], count));
        page.counters("queue_drops", "Messages dropped inside the daemon, by reason", lost)?;
        let drops = [
            ([("socket", "listener")], statistics(|it| it.listener_drops)),
            ([("socket", "relay")], statistics(|it| it.relay_drops)),
        ];
        let help =
            "Datagrams that the kernel dropped for a full receive buffer, those of relay sockets when they close";
        page.counters("receive_buffer_drops", help, drops)?;
        page.counter(
            "relay_open_failures",
            "Relay sockets that could not be opened",
            statistics(|it| it.relay_open_failed),
        )
    }

    fn streams(&self, page: &mut Page<'_>) -> fmt::Result {
        let counters = &self.admission.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let outcomes = [
            ("established_plain", read(&counters.established_plain)),
            ("established_tls", read(&counters.established_tls)),
            ("refused_source_limit", read(&counters.refused_source_limit)),
            ("refused_total_limit", read(&counters.refused_total_limit)),
            ("unrecognised", read(&counters.closed_unrecognised)),
            ("proxy_preamble", read(&counters.closed_preamble)),
            ("first_byte_deadline", read(&counters.closed_deadline)),
            ("closed_by_client", read(&counters.closed_by_client)),
            ("handshake_alert", read(&counters.handshake_failed_alert)),
            ("handshake_protocol", read(&counters.handshake_failed_protocol)),
            ("handshake_deadline", read(&counters.handshake_failed_deadline)),
            ("handshake_eof", read(&counters.handshake_failed_eof)),
            ("handshake_io", read(&counters.handshake_failed_io)),
        ];
        let outcomes = outcomes.map(|(outcome, count)| ([("outcome", outcome)], count));
        page.counters("streams_accepted", "Connections to stream listeners, by what became of them", outcomes)?;
        let ended = [
            ("garbage", self.sum(|worker| worker.statistics.stream_garbage)),
            ("silent", self.sum(|worker| worker.statistics.stream_silent)),
        ];
        let ended = ended.map(|(reason, count)| ([("reason", reason)], count));
        page.counters("streams_ended", "Established streams that the daemon ended, by reason", ended)?;
        page.counter("accept_failures", "accept() failed for want of descriptors", read(&counters.accept_failed))
    }

    fn offload(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(report) = &self.offload else { return Ok(()) };
        let interfaces = report.interfaces.iter();
        let interfaces =
            interfaces.map(|(name, method)| ([("interface", name.as_str()), ("method", method.name())], 1));
        page.gauges("offload_interfaces", "Interfaces whose data the kernel carries", interfaces)?;
        page.gauge(
            "offload_flows",
            "Open channels and peers reached by indications that the kernel knows",
            report.flows as u64,
        )?;
        let passed = Total::PASSED.map(|(total, reason)| ([("reason", reason)], report.total(total)));
        page.counters("offload_passed", "Packets of flows left to the sockets, by reason", passed)?;
        let dropped = Total::DROPPED.map(|(total, reason)| ([("reason", reason)], report.total(total)));
        page.counters("offload_dropped", "Packets that the kernel path dropped, by reason", dropped)
    }

    fn dtls(&self, page: &mut Page<'_>) -> fmt::Result {
        let associations = self.sum(|worker| worker.associations as u64);
        page.gauge("dtls_associations", "Associations of DTLS, handshakes included", associations)?;
        let count = |pick: fn(&DtlsStatistics) -> u64| self.sum(|worker| pick(&worker.statistics.dtls));
        let cookies = count(|it| it.hello_verify_requests);
        page.counter("dtls_hello_verify_requests", "ClientHellos that were answered with a cookie", cookies)?;
        let outcomes = [
            ("established", count(|it| it.established)),
            ("refused_source_limit", count(|it| it.refused_source_limit)),
            ("refused_total_limit", count(|it| it.refused_total_limit)),
            ("refused_handshakes", count(|it| it.refused_handshakes)),
            ("handshake_alert", count(|it| it.failed_alert)),
            ("handshake_protocol", count(|it| it.failed_protocol)),
            ("handshake_deadline", count(|it| it.failed_deadline)),
        ];
        let outcomes = outcomes.map(|(outcome, count)| ([("outcome", outcome)], count));
        page.counters("dtls_handshakes", "Clients that brought their cookie back, by what became of them", outcomes)?;
        let dropped = [
            ("unrecognised", count(|it| it.unrecognised)),
            ("not_dtls", count(|it| it.plain)),
            ("no_association", count(|it| it.stray)),
        ];
        let dropped = dropped.map(|(reason, count)| ([("reason", reason)], count));
        page.counters("dtls_dropped", "Datagrams at listeners that answer DTLS, dropped by reason", dropped)?;
        let ended = [
            ("silent", count(|it| it.silent)),
            ("crowded_out", count(|it| it.crowded_out)),
            ("replaced", count(|it| it.replaced)),
        ];
        let ended = ended.map(|(reason, count)| ([("reason", reason)], count));
        page.counters("dtls_ended", "Established associations that the daemon ended, by reason", ended)
    }

    fn records(&self, page: &mut Page<'_>) -> fmt::Result {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let records = &self.records;
        let series = [
            ("queue_lost", read(&records.lost)),
            ("file_written", read(&records.file_written)),
            ("file_failed", read(&records.file_failed)),
            ("webhook_delivered", read(&records.webhook.delivered)),
            ("webhook_lost", read(&records.webhook.lost)),
        ];
        let series = series.map(|(outcome, count)| ([("outcome", outcome)], count));
        page.counters("session_records", "Session records beside the log, by what became of them", series)?;
        let of = |pick: fn(&UserUsage) -> u64| {
            self.top_users.iter().map(move |it| ([("user", it.user.clone())], pick(it) as i64))
        };
        if !self.top_users.is_empty() {
            let help = "Payload both ways of the live allocations of the users who have the most";
            page.gauges("top_user_bytes", help, of(|it| it.bytes))?;
            page.gauges("top_user_allocations", "Live allocations of these users", of(|it| it.allocations))?;
        }
        let Some(authorizations) = &self.authorizations else { return Ok(()) };
        let results = [
            ("allowed", read(&authorizations.allowed)),
            ("denied", read(&authorizations.denied)),
            ("cached", read(&authorizations.cached)),
            ("failed", read(&authorizations.failed)),
            ("spared", read(&authorizations.spared)),
        ];
        let series = results.map(|(result, count)| ([("result", result)], count));
        page.counters("authorizations", "Questions to the authorization service, by what became of them", series)
    }

    fn certificates(&self, page: &mut Page<'_>) -> fmt::Result {
        let label = |file: &Path| [("file", file.display().to_string())];
        let ends = self.certificates.iter().map(|(file, content)| (label(file), unix_seconds(content.not_after)));
        page.gauges("certificate_not_after_seconds", "End of validity, seconds since 1970", ends)?;
        let is_expired = |content: &CertificateContent| i64::from(content.is_expired(self.taken_at));
        let expired = self.certificates.iter().map(|(file, content)| (label(file), is_expired(content)));
        page.gauges("certificate_expired", "1 when clients refuse the certificate for its age", expired)
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page { encoder };
        page.gauges("build_info", "The version that runs", [([("version", env!("CARGO_PKG_VERSION"))], 1)])?;
        self.drain(&mut page)?;
        self.relay(&mut page)?;
        self.requests(&mut page)?;
        self.sockets(&mut page)?;
        self.streams(&mut page)?;
        self.offload(&mut page)?;
        self.dtls(&mut page)?;
        self.records(&mut page)?;
        self.process(&mut page)?;
        self.certificates(&mut page)
    }
}

/// Seconds since 1970-01-01 UTC, negative before.
pub fn unix_seconds(time: SystemTime) -> i64 {
    let whole = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => whole(after.as_secs()),
        Err(before) => -whole(before.duration().as_secs()),
    }
}

/// Writes families of series.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(count).encode(metric)
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<[(&str, &str); 0]>(histogram.seconds(), histogram.count(), &histogram.buckets(), None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value as i64).encode(metric)
    }

    fn counters<const N: usize, V: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, V); N], u64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in series {
            let labels = labels.each_ref().map(|(name, value)| (*name, value.as_ref()));
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges<const N: usize, V: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, V); N], i64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            let labels = labels.each_ref().map(|(name, value)| (*name, value.as_ref()));
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
