//! The only reader of time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::turn::Now;

/// The host's clocks: the monotonic one for lifetimes, the wall clock for nonces and time-limited users.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Reads both clocks.
    pub fn now(self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { instant: Instant::now(), unix_seconds: unix.as_secs() }
    }
}
