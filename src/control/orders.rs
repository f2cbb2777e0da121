//! What the admin API has the daemon do, and what it last said of itself.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::wire;
use crate::auth::{Revocation, Subject};
use crate::observe::logs::Level;
use crate::observe::metrics::Reloads;

/// Orders that wait for the daemon; an operator who asks for more has to wait.
pub const ORDERS_MAX: usize = 16;

/// To be carried out by the daemon's main loop, one by one; the answer is what has been done, or why not.
#[derive(Debug)]
pub enum Order {
    /// Read the configuration again.
    Reload(oneshot::Sender<Result<wire::Reloaded, Vec<String>>>),
    /// Make no new allocations, and end when there are none or the deadline comes.
    Drain(DrainOrder, oneshot::Sender<Result<wire::Drain, String>>),
    /// Go on after all.
    CancelDrain(oneshot::Sender<Result<(), String>>),
    /// Make no new allocations for these credentials.
    Revoke(Revocation, oneshot::Sender<Result<Kept, String>>),
    /// Take a revocation back.
    Restore(Subject, oneshot::Sender<Result<Kept, String>>),
    /// Log from this level on, whatever the configuration says; `None` is to follow it again.
    LogLevel(Option<Level>, oneshot::Sender<()>),
}

/// Whether a revocation will be known after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Yes,
    /// There is no state directory, or it cannot be written: the log says why.
    No,
}

/// How to drain.
#[derive(Clone, Debug, Default)]
pub struct DrainOrder {
    /// How long live allocations may go on; without end unless set.
    pub deadline: Option<Duration>,
    /// Where clients are sent, at most one address of each family.
    pub redirect: Vec<SocketAddr>,
    /// The same for clients over TLS, where it differs.
    pub redirect_tls: Vec<SocketAddr>,
    /// A name in the other server's certificate.
    pub domain: Option<String>,
}

/// What the daemon says of itself: written by its main loop, read by the routes.
#[derive(Debug)]
pub struct Standing(Mutex<Words>);

/// See [`Standing`].
#[derive(Clone, Debug)]
pub struct Words {
    pub drain: Option<wire::Drain>,
    pub last_reload: Option<wire::LastReload>,
    pub reloads: Reloads,
    pub log_level: wire::LogLevel,
    pub limits: wire::Limits,
    pub listeners: Vec<String>,
    pub revocations: Vec<Revocation>,
}

impl Standing {
    pub fn new(words: Words) -> Self {
        Self(Mutex::new(words))
    }

    pub fn lock(&self) -> MutexGuard<'_, Words> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether new allocations are refused, so that nobody new is to be sent here.
    pub fn is_draining(&self) -> bool {
        self.lock().drain.is_some()
    }
}
