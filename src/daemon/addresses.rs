//! Follows the addresses of this host: a new one is as closed to peers as those that were there at start.

use std::future::pending;
use std::net::IpAddr;

use tracing::warn;

use crate::net::address_watch::AddressWatch;
use crate::net::interfaces;

/// The watch over the addresses; without one they are read at start and by a reload.
pub(super) struct Addresses(Option<AddressWatch>);

impl Addresses {
    pub(super) fn watch() -> Self {
        match AddressWatch::open() {
            Ok(watch) => Self(Some(watch)),
            Err(error) => {
                warn!(%error, "addresses that this host gets later are not closed to peers until a reload");
                Self(None)
            }
        }
    }

    /// Waits until they may have changed. Nothing is lost when the wait is given up.
    pub(super) async fn change(&mut self) {
        let result = match &self.0 {
            None => return pending().await,
            Some(watch) => watch.change().await,
        };
        if let Err(error) = result {
            warn!(%error, "addresses that this host gets from now on are not closed to peers until a reload");
            self.0 = None;
        }
    }
}

/// The addresses of all interfaces now; `None` when they cannot be listed.
pub(super) fn of_interfaces() -> Option<Vec<IpAddr>> {
    interfaces::own_addresses().inspect_err(|error| warn!(%error, "the addresses of this host cannot be listed")).ok()
}
