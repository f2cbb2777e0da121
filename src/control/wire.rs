//! The words of the admin API, as docs/openapi.json has them. Times are seconds since the Unix epoch, durations seconds.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{auth, turn};

/// The daemon as it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub process: u32,
    /// `serving` or `draining`.
    pub state: String,
    pub started_at: u64,
    /// The configuration file, if there is one.
    pub configuration: Option<String>,
    pub workers: usize,
    pub allocations: u64,
    pub connections: u64,
    pub relay_ports: RelayPorts,
    pub listeners: Vec<String>,
    pub certificates: Vec<Certificate>,
    /// Set while the daemon drains.
    pub drain: Option<Drain>,
    /// Set once the configuration was read again.
    pub last_reload: Option<LastReload>,
    pub log_level: LogLevel,
}

/// A drain under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drain {
    pub since: u64,
    /// When live allocations end; never unless set.
    pub deadline: Option<u64>,
    /// `operator` or `signal`.
    pub cause: String,
    /// Where clients are sent.
    pub redirect: Vec<SocketAddr>,
    /// Allocations when it began.
    pub allocations: u64,
}

/// How to drain.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainRequest {
    /// Seconds that live allocations may go on; without end unless set.
    pub deadline: Option<u64>,
    pub redirect: Vec<SocketAddr>,
    pub redirect_tls: Vec<SocketAddr>,
    pub domain: Option<String>,
}

/// The configuration was read again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reloaded {
    /// What has changed and is in force.
    pub changed: Vec<String>,
    /// What has changed and waits for a restart.
    pub needs_restart: Vec<String>,
    /// What an operator should look at.
    pub warnings: Vec<String>,
}

/// How the last reload went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastReload {
    pub at: u64,
    pub ok: bool,
    /// Why nothing was applied.
    pub problems: Vec<String>,
}

/// What is logged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogLevel {
    /// The level in force.
    pub level: String,
    /// The level of the configuration.
    pub configured: String,
}

/// A level to log from on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLogLevel {
    pub level: String,
}

/// The limits in force, 0 being none, and what is in use of them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limits {
    pub allocations: u64,
    pub allocations_total: u32,
    pub allocations_per_user: u32,
    pub allocations_per_prefix: u32,
    pub permissions_per_allocation: u16,
    pub channels_per_allocation: u16,
    pub connections: u64,
    pub connections_total: u64,
    pub connections_per_source: u64,
    pub handshakes: u64,
    pub descriptors: u64,
    pub descriptors_total: u64,
}

/// Credentials that have been taken back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Revocations {
    pub revocations: Vec<Revocation>,
}

/// Whose credentials make no new allocations.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Revocation {
    /// `user:alice`, `user:alice*`, `secret:0f3a9c11` or `client:192.0.2.0/24`.
    pub subject: String,
    pub since: u64,
    /// Without end unless set.
    pub until: Option<u64>,
}

/// Whom to revoke.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    pub subject: String,
    /// Without it until the credential would have ended, where its name tells that, else without end.
    #[serde(default)]
    pub until: Option<u64>,
}

/// What was revoked, or taken back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Revoked {
    pub subject: String,
    pub until: Option<u64>,
    /// Whether it will be known after a restart.
    pub kept: bool,
    /// Allocations that have ended by it.
    pub ended: u64,
}

impl From<&auth::Revocation> for Revocation {
    fn from(revocation: &auth::Revocation) -> Self {
        Self { subject: revocation.subject.to_string(), since: revocation.since, until: revocation.until }
    }
}

/// Seconds since the Unix epoch.
pub fn unix_now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// Something was done that has no more to tell.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Done {
    pub done: bool,
}

/// Relay ports of all relay addresses of a family.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RelayPorts {
    pub ipv4: Usage,
    pub ipv6: Usage,
}

/// How much of something is in use.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Usage {
    pub used: u64,
    pub all: u64,
}

/// A certificate in use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Certificate {
    pub file: String,
    pub names: Vec<String>,
    pub not_after: i64,
    pub expired: bool,
}

/// Some of the sessions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sessions {
    pub sessions: Vec<Session>,
    /// How many there are that match; not told of a listing that has more.
    pub matched: Option<u64>,
    /// Where the next page of an unsorted listing begins: to be given as `after`.
    pub next: Option<String>,
}

/// A live allocation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    pub id: String,
    pub user: String,
    pub client: SocketAddr,
    /// `udp`, `tcp` or `tls`.
    pub transport: String,
    /// The address of this server that the client uses.
    pub server: SocketAddr,
    /// As clients are told them.
    pub relayed: Vec<SocketAddr>,
    pub started_at: u64,
    pub expires_in: u64,
    pub packets_to_peers: u64,
    pub bytes_to_peers: u64,
    pub packets_to_client: u64,
    pub bytes_to_client: u64,
    /// `kernel` when that has carried any of it, else `sockets`.
    pub datapath: String,
    pub permissions: usize,
    pub channels: usize,
    /// The id of the shared secret that minted the credential, if one did.
    pub secret: Option<String>,
}

/// A live allocation with its peers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionDetail {
    #[serde(flatten)]
    pub session: Session,
    pub permitted_peers: Vec<Permission>,
    pub bound_channels: Vec<Channel>,
}

/// A permission (RFC 8656 section 9).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Permission {
    pub address: IpAddr,
    pub expires_in: u64,
}

/// A channel binding (RFC 8656 section 12).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Channel {
    pub number: u16,
    pub peer: SocketAddr,
    pub expires_in: u64,
}

/// Sessions to be ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evict {
    pub ids: Vec<String>,
}

/// What became of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evicted {
    pub evicted: Vec<String>,
    /// Those that had ended before, or never were.
    pub unknown: Vec<String>,
}

/// Why something was not done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
    /// Each problem, where there are several.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl From<turn::Session> for Session {
    fn from(session: turn::Session) -> Self {
        Self {
            id: session.id.to_string(),
            user: session.username.to_string(),
            client: session.client.client.socket_addr(),
            transport: session.client.transport.name().to_owned(),
            server: session.client.server.socket_addr(),
            relayed: session.relayed,
            started_at: session.started,
            expires_in: session.expires_in.as_secs(),
            packets_to_peers: session.traffic.packets_to_peers,
            bytes_to_peers: session.traffic.bytes_to_peers,
            packets_to_client: session.traffic.packets_to_client,
            bytes_to_client: session.traffic.bytes_to_client,
            datapath: session.offloaded.datapath().to_owned(),
            permissions: session.permissions,
            channels: session.channels,
            secret: session.secret.map(|id| id.to_string()),
        }
    }
}

impl From<turn::SessionDetail> for SessionDetail {
    fn from(detail: turn::SessionDetail) -> Self {
        let permission =
            |(address, left): (IpAddr, std::time::Duration)| Permission { address, expires_in: left.as_secs() };
        let channel = |(number, peer, left): (u16, crate::address::PeerAddr, std::time::Duration)| Channel {
            number,
            peer: peer.socket_addr(),
            expires_in: left.as_secs(),
        };
        Self {
            permitted_peers: detail.permissions.into_iter().map(permission).collect(),
            bound_channels: detail.channels.into_iter().map(channel).collect(),
            session: detail.session.into(),
        }
    }
}
