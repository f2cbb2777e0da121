//! The real binary on loopback: every transport, every kind of credential, what it prints and when it refuses to start.
//!
//! Each test has a ferryd of its own, on a loopback address and ports that no other test uses. [`client`] is a small
//! client of ours, for what no real one does; [`independent`] runs webrtc-rs, which shares no code with the server.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may fail like tests")]

#[cfg(feature = "dtls")]
mod association;
mod certificate;
mod client;
mod ferryd;
mod independent;
mod place;
mod wire;

mod addresses;
mod admin;
mod authorization;
mod bad_input;
mod between_clients;
mod credentials;
mod doctor;
#[cfg(feature = "dtls")]
mod dtls;
mod faults;
mod first_run;
mod flood;
mod headroom;
mod import;
mod inherited;
mod kernel_indications;
mod kernel_path;
mod lifetimes;
mod listener_reload;
mod listeners;
mod metrics;
mod mobility;
mod operate;
#[cfg(feature = "probe")]
mod probe;
mod proxied_datagrams;
mod proxy;
mod records;
mod relaying;
mod reload;
mod remote_admin;
mod revoke;
mod secrecy;
mod service_manager;
mod settings;
mod soak;
mod streams;
mod tcp_allocations;
mod trains;
mod verbs;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Tells threads to end when it is dropped, by a test that fails as well.
struct Ending(Arc<AtomicBool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long a condition may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition that another process brings about.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
