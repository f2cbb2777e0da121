//! Why the daemon does not start, or does not go on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::config::Sources;
use crate::control::remote::DoorError;
use crate::net::inherited::InheritError;
use crate::net::socket::OpenError;
use crate::net::tls::TlsError;

/// Why the daemon does not start, or does not go on.
#[derive(Debug)]
pub(super) enum Failure {
    Listener(OpenError),
    Inherited(InheritError),
    Metrics(OpenError),
    Admin { socket: PathBuf, source: io::Error },
    RemoteAdmin(OpenError),
    RemoteDoor(DoorError),
    RecordFile { file: PathBuf, source: io::Error },
    Revocations { file: PathBuf, source: io::Error },
    Tls(TlsError),
    Host { what: &'static str, source: io::Error },
    WorkerEnded(usize),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(error) => write!(f, "listener: {error}, {}", error.remedy()),
            Self::Inherited(error) => write!(f, "sockets of the service manager: {error}"),
            Self::Metrics(error) => write!(f, "metrics.address: {error}, {}", error.remedy()),
            Self::Admin { socket, source } => write!(
                f,
                "admin.socket: {} cannot be served ({source}), expected a path in a directory that belongs to the user \
                 ferryd runs as; name another one, or \"off\"",
                socket.display()
            ),
            Self::RemoteAdmin(error) => write!(f, "admin.address: {error}, {}", error.remedy()),
            Self::RemoteDoor(error) => write!(f, "admin.address: cannot be served: {error}"),
            Self::RecordFile { file, source } => write!(
                f,
                "sessions.file: {} cannot be written ({source}), expected a file in a directory that the user ferryd runs \
                 as may write to; make that directory, or name another file",
                file.display()
            ),
            Self::Revocations { file, source } => write!(
                f,
                "{}: cannot be read ({source}), expected the revocations that ferryd keeps; mend the file, or remove it and \
                 revoke again",
                file.display()
            ),
            Self::Tls(error) => write!(f, "tls: {error}"),
            Self::Host { what, source } => write!(f, "cannot {what}: {source}"),
            Self::WorkerEnded(worker) => write!(f, "worker {worker} ended; see the log above"),
        }
    }
}

impl Failure {
    /// The failure, after the file or variable that an operator would change.
    pub(super) fn words(&self, sources: &Sources) -> String {
        let file = || sources.file.as_ref().map(|file| file.display().to_string());
        let place = match self {
            Self::Listener(_) if sources.variables.iter().any(|name| name == "FERRYD_LISTENER") => {
                Some("environment variable FERRYD_LISTENER".to_owned())
            }
            Self::Listener(_)
            | Self::Metrics(_)
            | Self::Admin { .. }
            | Self::RemoteAdmin(_)
            | Self::RemoteDoor(_)
            | Self::RecordFile { .. }
            | Self::Tls(_) => file(),
            Self::Inherited(_) | Self::Host { .. } | Self::Revocations { .. } | Self::WorkerEnded(_) => None,
        };
        place.map_or_else(|| self.to_string(), |place| format!("{place}: {self}"))
    }
}

pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Host { what, source }
}
