//! Sessions as operators see them: live allocations in pages, one in detail, and its end.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::allocation::Allocation;
use super::effect::{EndReason, Traffic};
use super::ids::{AllocationId, WorkerId};
use super::server::{Now, Server};
use crate::address::{FiveTuple, PeerAddr, Transport};
use crate::auth::Subject;
use crate::auth::settings::SecretId;

/// Sessions of one page: what a packet loop tells between two turns.
pub const PAGE_LEN_MAX: usize = 256;
/// Slots that are looked at for one page, whether they match or not.
const VISITS_MAX: u32 = 1024;

/// The name of an allocation that no other one has had or will have: not on another worker, nor after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    /// When it began, in seconds since the Unix epoch.
    pub(super) started: u32,
    /// Random for each worker and run, for two runs within one second.
    pub(super) run: u16,
    pub(super) worker: WorkerId,
    pub(super) allocation: AllocationId,
}

impl SessionId {
    /// The worker that has it, unless it has ended.
    pub fn worker(self) -> WorkerId {
        self.worker
    }

    /// The allocation, of that worker.
    pub fn allocation(self) -> AllocationId {
        self.allocation
    }

    /// Where it stands in the worker's table.
    pub fn slot(self) -> u32 {
        self.allocation.slot
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AllocationId { slot, generation } = self.allocation;
        write!(f, "{:08x}{:04x}{:02x}{slot:06x}{generation:06x}", self.started, self.run, self.worker.0)
    }
}

/// The text is no session id: 26 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSessionId;

impl FromStr for SessionId {
    type Err = NoSessionId;

    fn from_str(text: &str) -> Result<Self, NoSessionId> {
        if text.len() != 26 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoSessionId);
        }
        let part = |range: std::ops::Range<usize>| u32::from_str_radix(&text[range], 16).map_err(|_| NoSessionId);
        Ok(Self {
            started: part(0..8)?,
            run: part(8..12)? as u16,
            worker: WorkerId(part(12..14)? as u8),
            allocation: AllocationId { slot: part(14..20)?, generation: part(20..26)? },
        })
    }
}

/// A live allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    pub username: Arc<str>,
    pub client: FiveTuple,
    /// As clients are told them.
    pub relayed: Vec<SocketAddr>,
    pub traffic: Traffic,
    /// What of it others than the server have carried: nothing, until the shell says so.
    pub offloaded: Traffic,
    /// When it began, in seconds since the Unix epoch.
    pub started: u64,
    /// What is left of its lifetime.
    pub expires_in: Duration,
    pub permissions: usize,
    pub channels: usize,
    /// The shared secret that minted the credential, if one did.
    pub secret: Option<SecretId>,
}

/// A live allocation with its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDetail {
    pub session: Session,
    /// Permitted addresses and what is left of each permission, sorted.
    pub permissions: Vec<(IpAddr, Duration)>,
    /// Channel numbers, peers and what is left of each binding, sorted.
    pub channels: Vec<(u16, PeerAddr, Duration)>,
}

/// Which sessions are meant; all of them when nothing is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Each must cover the session.
    pub subjects: Vec<Subject>,
    /// A peer within this range is permitted.
    pub peer: Option<IpNet>,
    /// Its client sends datagrams, to these listeners.
    pub listener: Option<ListenerFilter>,
}

/// Listeners of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerFilter {
    Anywhere,
    /// The one on this address; an unspecified one is all of its family.
    At(SocketAddr),
}

/// Some of a worker's sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionPage {
    pub sessions: Vec<Session>,
    /// Where the next page begins.
    pub next: Option<u32>,
}

impl Server {
    /// The sessions from a slot on, as many as one page holds. Takes microseconds, whatever the server holds.
    pub fn sessions(&self, now: Now, from: u32, filter: &SessionFilter) -> SessionPage {
        let mut page = SessionPage::default();
        let end = self.table.slots();
        for slot in from..end {
            if page.sessions.len() == PAGE_LEN_MAX || slot - from == VISITS_MAX {
                page.next = Some(slot);
                break;
            }
            let Some(id) = self.table.by_slot(slot) else { continue };
            let Some(allocation) = self.table.get(id) else { continue };
            if filter.covers(allocation, now.instant) {
                page.sessions.extend(self.session_of(id, now.instant));
            }
        }
        page
    }

    /// One session with its peers.
    pub fn session(&self, now: Now, id: SessionId) -> Option<SessionDetail> {
        let (id, now) = (self.by_session(id)?, now.instant);
        let allocation = self.table.get(id)?;
        let mut permissions: Vec<_> = allocation.permissions(now).collect();
        let mut channels: Vec<_> =
            allocation.channels(now).map(|(number, peer, left)| (number.get(), peer, left)).collect();
        permissions.sort_unstable();
        channels.sort_unstable();
        Some(SessionDetail { session: self.session_of(id, now)?, permissions, channels })
    }

    /// Ends a session; false when there is none.
    pub fn evict(&mut self, id: SessionId, reason: EndReason) -> bool {
        let found = self.by_session(id);
        if let Some(id) = found {
            self.end(id, reason);
        }
        found.is_some()
    }

    pub(super) fn session_id(&self, id: AllocationId, started: u64) -> SessionId {
        SessionId { started: started as u32, run: self.run, worker: self.worker, allocation: id }
    }

    fn by_session(&self, id: SessionId) -> Option<AllocationId> {
        let allocation = self.table.get(id.allocation)?;
        (self.session_id(id.allocation, allocation.started) == id && allocation.opening.is_none())
            .then_some(id.allocation)
    }

    fn session_of(&self, id: AllocationId, now: Instant) -> Option<Session> {
        let allocation = self.table.get(id).filter(|allocation| allocation.opening.is_none())?;
        Some(Session {
            id: self.session_id(id, allocation.started),
            username: Arc::clone(&allocation.credentials.username),
            client: allocation.client,
            relayed: allocation.relays().iter().map(|relay| self.shared.ports.public(relay.address)).collect(),
            traffic: allocation.traffic,
            offloaded: Traffic::default(),
            started: allocation.started,
            expires_in: allocation.expires_at()?.saturating_duration_since(now),
            permissions: allocation.permissions(now).count(),
            channels: allocation.channels(now).count(),
            secret: allocation.credentials.secret,
        })
    }
}

impl SessionFilter {
    fn covers(&self, allocation: &Allocation, now: Instant) -> bool {
        let client = allocation.client.client.ip();
        let is_covered = self.subjects.iter().all(|subject| subject.covers(&allocation.credentials, client));
        let is_covered = is_covered && self.listener.is_none_or(|listener| comes_by(&allocation.client, listener));
        is_covered && self.peer.is_none_or(|range| allocation.permissions(now).any(|(ip, _)| range.contains(&ip)))
    }
}

fn comes_by(client: &FiveTuple, listener: ListenerFilter) -> bool {
    let at = |listener: SocketAddr| {
        let (server, ip) = (client.server.socket_addr(), listener.ip());
        let is_of_family = server.is_ipv4() == listener.is_ipv4();
        server.port() == listener.port() && (server.ip() == ip || ip.is_unspecified() && is_of_family)
    };
    let is_datagrams = matches!(client.transport, Transport::Udp | Transport::Dtls);
    is_datagrams
        && match listener {
            ListenerFilter::Anywhere => true,
            ListenerFilter::At(address) => at(address),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = SessionId {
            started: 0x6745_a1b3,
            run: 0x0f0e,
            worker: WorkerId(255),
            allocation: AllocationId { slot: 0xff_ffff, generation: 1 },
        };
        assert_eq!(id.to_string(), "6745a1b30f0effffffff000001");
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "6745a1b30f0effffffff00000", "6745a1b30f0effffffff00000g", "+745a1b30f0effffffff000001"] {
            assert_eq!(text.parse::<SessionId>(), Err(NoSessionId), "{text}");
        }
    }
}
