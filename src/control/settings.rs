//! What an operator decides about the admin API.

use std::path::PathBuf;
use std::time::Duration;

use super::remote;
use crate::turn::Redirect;

/// The runtime directory of the unit, in which the verbs look for the socket unless another one is named.
pub const RUNTIME_DIRECTORY: &str = "/run/ferryd";
/// The socket within the runtime directory.
const SOCKET: &str = "admin.sock";

/// The admin API as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub socket: Socket,
    /// Lets the group of the socket in, beside its owner and root: mode 0660 in place of 0600.
    pub group_access: bool,
    pub drain: Drain,
    /// For other hosts, beside the socket.
    pub remote: Option<remote::Settings>,
    /// What the service manager has made for this process, or the usual one where it is there.
    pub runtime_directory: Option<PathBuf>,
}

/// How the daemon empties itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// How long live allocations go on after SIGTERM; zero is not at all.
    pub on_stop: Duration,
    /// Where clients are sent meanwhile, unless the operator names another server.
    pub redirect: Option<Redirect>,
}

/// Where the API is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Socket {
    Off,
    /// In the runtime directory, if the service manager has made one; the daemon goes on without where it cannot be.
    #[default]
    Default,
    /// There, or the daemon does not start.
    At(PathBuf),
}

impl Settings {
    /// The path that the daemon serves.
    pub fn served(&self) -> Option<PathBuf> {
        match &self.socket {
            Socket::Off => None,
            Socket::At(path) => Some(path.clone()),
            Socket::Default => self.runtime_directory.as_ref().map(|directory| directory.join(SOCKET)),
        }
    }

    /// The path that the verbs of the command line try.
    pub fn asked(&self) -> PathBuf {
        match &self.socket {
            Socket::At(path) => path.clone(),
            Socket::Off | Socket::Default => PathBuf::from(RUNTIME_DIRECTORY).join(SOCKET),
        }
    }
}
