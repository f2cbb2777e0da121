//! The daemon's settings, room by room.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::net::certificate::CertificateFiles;
use crate::observe::{logs, records};
use crate::worker::settings::{AcceptLimits, Listener};
use crate::{auth, authority, control, offload, turn, worker};

/// What every room needs, composed from the layers of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    pub auth: auth::Settings,
    pub turn: turn::Settings,
    /// What clients reach. Without a certificate no listener speaks TLS: those for TLS alone are left out.
    pub listeners: Vec<Listener>,
    /// The first certificate answers clients that name none; empty is no TLS.
    pub tls: Vec<CertificateFiles>,
    /// Packet loops; 0 is one per core of the cgroup quota.
    pub workers: usize,
    pub worker: worker::settings::Settings,
    pub offload: offload::Settings,
    pub state_directory: Option<PathBuf>,
    /// How often the files of certificates and secrets are looked at; zero is never.
    pub watch: Duration,
    pub log: logs::Settings,
    pub accept: AcceptLimits,
    /// Where the metrics page is served; nowhere unless set.
    pub metrics: Option<SocketAddr>,
    /// Users that the metrics page names, those with the most bytes; 0 is none.
    pub top_users: usize,
    pub sessions: records::Settings,
    /// Who decides about allocations beside the credentials; nobody unless set.
    pub authorization: Option<authority::Settings>,
    pub admin: control::settings::Settings,
}

impl Settings {
    /// Whether any client is served over TLS.
    pub fn serves_tls(&self) -> bool {
        !self.tls.is_empty()
    }
}
