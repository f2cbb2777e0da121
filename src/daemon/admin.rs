//! The admin API: its socket is opened with the others, and served by the runtime.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{error, info, warn};

use super::failure::{Failure, host};
use crate::config::Loaded;
use crate::control::api::{self, Api, Facts};
use crate::control::remote::RemoteDoor;
use crate::control::settings::{self, Settings};
use crate::control::socket::{self, Place};

/// The socket and its place in the file system.
pub(super) struct Socket(UnixListener, Place);

/// Opens the socket. One that was not asked for is done without where it cannot be had.
pub(super) fn open(settings: &Settings) -> Result<Option<Socket>, Failure> {
    let Some(path) = settings.served() else { return Ok(None) };
    match (socket::listen(&path, settings.group_access), &settings.socket) {
        (Ok((listener, place)), _) => {
            info!(socket = %path.display(), "the admin API is served");
            Ok(Some(Socket(listener, place)))
        }
        (Err(source), settings::Socket::At(_)) => Err(Failure::Admin { socket: path, source }),
        (Err(error), settings::Socket::Default | settings::Socket::Off) => {
            warn!(socket = %path.display(), %error, "the admin API is not served, and ferryd's verbs find nobody");
            Ok(None)
        }
    }
}

/// Serves the API on the runtime; the socket goes with what is returned.
pub(super) fn serve(socket: Socket, api: Arc<Api>) -> Result<Place, Failure> {
    let Socket(listener, place) = socket;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(host("serve the admin socket"))?;
    tokio::spawn(async move {
        if let Err(error) = api::serve(listener, api).await {
            error!(%error, "the admin API ended");
        }
    });
    Ok(place)
}

/// Serves the API to other hosts.
pub(super) fn serve_remote(listener: TcpListener, door: Arc<RemoteDoor>, api: Arc<Api>) -> Result<(), Failure> {
    let address = listener.local_addr().map_err(host("serve admin.address"))?;
    listener.set_nonblocking(true).map_err(host("serve admin.address"))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(host("serve admin.address"))?;
    info!(%address, "the admin API is served to other hosts");
    tokio::spawn(async move {
        if let Err(error) = api::serve_remote(listener, door, api).await {
            error!(%error, "the admin API for other hosts ended");
        }
    });
    Ok(())
}

pub(super) fn facts(loaded: &Loaded) -> Facts {
    Facts {
        started_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        configuration: loaded.sources.file.as_ref().map(|file| file.display().to_string()),
    }
}
