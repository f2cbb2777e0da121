//! The shell played by hand: bytes in, exact effects out, time moved by the test, no sockets.

mod check;
mod client;
mod reply;
mod setup;
mod world;

pub(crate) use check::assert_no_leak;
pub(crate) use client::{Client, Integrity};
pub(crate) use reply::{Received, Reply, Signed};
pub(crate) use setup::Setup;
pub(crate) use world::{UNIX_START, World, route};

use std::net::SocketAddr;
use std::time::Duration;

use ferryd::address::PeerAddr;

/// The password of the static user `alice`.
pub(crate) const ALICE: &str = "wonderland-7391";
/// The password of the static user `bob`.
pub(crate) const BOB: &str = "builder-2468";
/// The first shared secret; its passwords are HMAC-SHA1.
pub(crate) const SECRET: &str = "lighthouse-keeper";
/// The second shared secret; its passwords are HMAC-SHA256.
pub(crate) const SECRET_SHA256: &str = "harbour-master";
/// The realm: eight bytes or fewer keep every challenge within twice the request.
pub(crate) const REALM: &str = "ferryd";

/// Peers on the open network.
pub(crate) const PEER: &str = "9.9.9.9:7000";
pub(crate) const PEER_V6: &str = "[2620:fe::fe]:7000";

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

pub(crate) fn peer(text: &str) -> PeerAddr {
    PeerAddr::new(addr(text))
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The smallest step of time that a test takes to be on the other side of an instant.
pub(crate) const TICK: Duration = Duration::from_nanos(1);
