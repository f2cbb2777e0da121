//! How many connections and associations are let in, from whom, and what became of the others.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::Semaphore;

/// Limits on stream connections before their first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptLimits {
    /// Time until the first byte.
    pub first_byte_deadline: Duration,
    /// Time from the first byte to the end of the TLS handshake, waiting for its turn included.
    pub handshake_deadline: Duration,
    /// Connections of one source, an IPv4 address or an IPv6 /64; 0 for no limit.
    pub connections_per_source_max: u32,
    /// Connections in total; 0 for no limit.
    pub connections_max: u32,
    /// TLS handshakes at a time; others wait. Read once, when the [`Admission`] is made.
    pub handshakes_max: usize,
}

impl AcceptLimits {
    /// A SYN retransmitted three times is 7 s late; what takes longer to say a byte is no caller.
    pub const FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(10);
    /// Two round trips of a satellite link with a retransmission each are about 5 s; twice that.
    pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
    /// An office of 1000 behind one address, each with a call of two interfaces and two URLs: 1000 x 4.
    pub const CONNECTIONS_PER_SOURCE_MAX: u32 = 4000;
    /// The descriptor limit bounds most hosts first.
    pub const CONNECTIONS_MAX: u32 = 100_000;
    /// About 24 KiB each: 96 MiB; and more than two sources may hold, so that one cannot occupy them all.
    pub const HANDSHAKES_MAX: usize = 4096;
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            first_byte_deadline: Self::FIRST_BYTE_DEADLINE,
            handshake_deadline: Self::HANDSHAKE_DEADLINE,
            connections_per_source_max: Self::CONNECTIONS_PER_SOURCE_MAX,
            connections_max: Self::CONNECTIONS_MAX,
            handshakes_max: Self::HANDSHAKES_MAX,
        }
    }
}

/// What became of accepted connections: `accepted` is the sum of all others but `accept_failed`, once none is pending.
#[derive(Debug, Default)]
pub struct AcceptCounters {
    pub accepted: AtomicU64,
    pub established_plain: AtomicU64,
    pub established_tls: AtomicU64,
    /// Closed for too many connections of the source.
    pub refused_source_limit: AtomicU64,
    /// Closed for too many connections in total.
    pub refused_total_limit: AtomicU64,
    /// The first bytes were nothing that the listener answers.
    pub closed_unrecognised: AtomicU64,
    /// No byte in time.
    pub closed_deadline: AtomicU64,
    /// The client left before its first byte.
    pub closed_by_client: AtomicU64,
    /// The client sent a TLS alert: it dislikes the certificate, or knows no common cipher.
    pub handshake_failed_alert: AtomicU64,
    /// The client broke the protocol or offers nothing that is spoken here.
    pub handshake_failed_protocol: AtomicU64,
    /// The handshake took too long.
    pub handshake_failed_deadline: AtomicU64,
    /// The client left during the handshake.
    pub handshake_failed_eof: AtomicU64,
    /// A proxy did not begin with a preamble of the PROXY protocol, or with one that cannot be believed.
    pub closed_preamble: AtomicU64,
    /// The socket failed, as by a reset.
    pub handshake_failed_io: AtomicU64,
    /// `accept` failed for lack of descriptors or memory and was tried again after a pause.
    pub accept_failed: AtomicU64,
}

impl AcceptCounters {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The door that all stream listeners of a daemon share: limits, who is inside, counters.
#[derive(Debug)]
pub struct Admission {
    pub counters: AcceptCounters,
    pub(super) handshakes: Semaphore,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    limits: AcceptLimits,
    total: u32,
    by_source: HashMap<Source, u32, foldhash::quality::RandomState>,
}

/// Where connections come from, as limits count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IPv4 address.
    V4(u32),
    /// The upper 64 bits: hosts choose the lower ones as they please.
    V6(u64),
}

impl Source {
    /// The source that an address belongs to.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

/// Which limit keeps a client out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many connections of the source.
    Source,
    /// Too many connections in total.
    Total,
}

/// A connection's place inside; dropping it gives the place back.
#[derive(Debug)]
pub struct ConnectionGuard {
    admission: Arc<Admission>,
    /// `None` until a proxy has named its client.
    source: Option<Source>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut inside = self.admission.inside();
        inside.total -= 1;
        let Some(source) = self.source else { return };
        if let Some(count) = inside.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                inside.by_source.remove(&source);
            }
        }
    }
}

impl ConnectionGuard {
    /// Counts the connection for a source that was not known when it was let in; false, and counted as refused, when that
    /// source has too many.
    pub(super) fn name(&mut self, client: SocketAddr) -> bool {
        let source = Source::of(client.ip());
        let named = self.admission.inside().place(source);
        match named {
            true => self.source = Some(source),
            false => AcceptCounters::count(&self.admission.counters.refused_source_limit),
        }
        named
    }
}

impl Inside {
    /// Takes a place of a source, if it has one left.
    fn place(&mut self, source: Source) -> bool {
        let max = self.limits.connections_per_source_max;
        let count = self.by_source.entry(source).or_insert(0);
        let has_place = max == 0 || *count < max;
        *count += u32::from(has_place);
        has_place
    }
}

impl Admission {
    /// Makes an empty door.
    pub fn new(limits: AcceptLimits) -> Arc<Self> {
        let by_source = HashMap::with_hasher(foldhash::quality::RandomState::default());
        Arc::new(Self {
            counters: AcceptCounters::default(),
            handshakes: Semaphore::new(limits.handshakes_max.clamp(1, Semaphore::MAX_PERMITS)),
            inside: Mutex::new(Inside { limits, total: 0, by_source }),
        })
    }

    /// Lets a client in or counts the refusal; the caller then closes at once.
    pub fn admit(self: &Arc<Self>, client: SocketAddr) -> Option<ConnectionGuard> {
        match self.enter(client) {
            Ok(guard) => Some(guard),
            Err(refusal) => {
                self.count_refusal(refusal);
                None
            }
        }
    }

    /// Lets a client in; a refusal is the caller's to count.
    pub fn enter(self: &Arc<Self>, client: SocketAddr) -> Result<ConnectionGuard, Refusal> {
        let mut guard = self.enter_unnamed()?;
        let source = Source::of(client.ip());
        if !self.inside().place(source) {
            return Err(Refusal::Source);
        }
        guard.source = Some(source);
        Ok(guard)
    }

    /// Lets a proxy in, whose clients are many; [`ConnectionGuard::name`] counts the one that it names.
    pub(super) fn admit_unnamed(self: &Arc<Self>) -> Option<ConnectionGuard> {
        self.enter_unnamed().map_err(|refusal| self.count_refusal(refusal)).ok()
    }

    fn enter_unnamed(self: &Arc<Self>) -> Result<ConnectionGuard, Refusal> {
        let mut inside = self.inside();
        let max = inside.limits.connections_max;
        if max != 0 && inside.total >= max {
            return Err(Refusal::Total);
        }
        inside.total += 1;
        Ok(ConnectionGuard { admission: self.clone(), source: None })
    }

    fn count_refusal(&self, refusal: Refusal) {
        AcceptCounters::count(match refusal {
            Refusal::Total => &self.counters.refused_total_limit,
            Refusal::Source => &self.counters.refused_source_limit,
        });
    }

    /// Connections inside now, those in handshake included.
    pub fn connections(&self) -> u32 {
        self.inside().total
    }

    /// The limits in force.
    pub fn limits(&self) -> AcceptLimits {
        self.inside().limits
    }

    /// Puts other limits in force for connections to come; `handshakes_max` stays.
    pub fn set_limits(&self, limits: AcceptLimits) {
        self.inside().limits = limits;
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(per_source: u32, total: u32) -> Arc<Admission> {
        Admission::new(AcceptLimits {
            connections_per_source_max: per_source,
            connections_max: total,
            ..AcceptLimits::default()
        })
    }

    fn from(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 40000)
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        let admission = admission(1, 0);
        let first = admission.admit(from("192.0.2.1")).unwrap();
        assert!(admission.admit(from("192.0.2.1")).is_none());
        assert!(admission.admit(from("::ffff:192.0.2.1")).is_none());
        let _other = admission.admit(from("192.0.2.2")).unwrap();
        let _v6 = admission.admit(from("2001:db8::1")).unwrap();
        assert!(admission.admit(from("2001:db8::ffff:1")).is_none());
        let _other_64 = admission.admit(from("2001:db8:0:1::1")).unwrap();
        assert_eq!(admission.counters.refused_source_limit.load(Ordering::Relaxed), 3);
        drop(first);
        assert!(admission.admit(from("192.0.2.1")).is_some());
    }

    #[test]
    fn a_place_is_held_as_long_as_its_guard() {
        let admission = admission(0, 2);
        let (one, two) = (admission.admit(from("192.0.2.1")), admission.admit(from("192.0.2.1")));
        assert!(admission.admit(from("192.0.2.2")).is_none());
        assert_eq!(admission.connections(), 2);
        drop((one, two));
        assert_eq!(admission.connections(), 0);
        assert!(admission.inside().by_source.is_empty(), "nothing is kept for sources outside");
        assert_eq!(admission.counters.refused_total_limit.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn limits_change_for_connections_to_come() {
        let admission = admission(1, 0);
        let _one = admission.admit(from("192.0.2.1")).unwrap();
        assert!(admission.admit(from("192.0.2.1")).is_none());
        admission.set_limits(AcceptLimits { connections_per_source_max: 2, ..admission.limits() });
        assert!(admission.admit(from("192.0.2.1")).is_some());
    }
}
