//! When a load begins to count and when it ends, and what the server used meanwhile.

use std::time::Duration;

use crate::failure::{Doing, Result};
use crate::machine::{self, Reading, Usage, now_ns};

/// The generator sleeps this long that often, so that a busy SCHED_FIFO thread cannot lock its core.
const NAP_US: u64 = 50;
const NAP_EVERY_NS: u64 = 10_000_000;

/// Where a load stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    WarmUp,
    Measured,
    Over,
}

/// Bounds a load in time and reads the clocks at both ends of what counts.
pub(crate) struct Stopwatch {
    process: u32,
    core: usize,
    begin_ns: u64,
    end_ns: u64,
    nap_ns: u64,
    begin: Option<(Reading, [u64; 2])>,
    end: Option<(Reading, [u64; 2])>,
}

/// What happened in the measured time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    pub(crate) usage: Usage,
    /// How far the caller's counters went.
    pub(crate) counts: [u64; 2],
}

impl Stopwatch {
    pub(crate) fn start(process: u32, core: usize, seconds: f64) -> Self {
        let now = now_ns();
        let measured = Duration::from_secs_f64(seconds);
        // Long enough for caches, buffers and the server's own adaptation.
        let warm_up = (measured / 4).clamp(Duration::from_millis(150), Duration::from_secs(1));
        let begin_ns = now + warm_up.as_nanos() as u64;
        let end_ns = begin_ns + measured.as_nanos() as u64;
        Self { process, core, begin_ns, end_ns, nap_ns: now + NAP_EVERY_NS, begin: None, end: None }
    }

    /// To be called in every turn of a load, with its counters.
    pub(crate) fn tick(&mut self, now_ns: u64, counts: [u64; 2]) -> Result<Phase> {
        if now_ns >= self.nap_ns {
            machine::nap(NAP_US);
            self.nap_ns = now_ns + NAP_EVERY_NS;
        }
        if now_ns < self.begin_ns {
            return Ok(Phase::WarmUp);
        }
        if self.begin.is_none() {
            self.begin = Some((Reading::take(self.process, self.core)?, counts));
        }
        if now_ns < self.end_ns {
            return Ok(Phase::Measured);
        }
        if self.end.is_none() {
            self.end = Some((Reading::take(self.process, self.core)?, counts));
        }
        Ok(Phase::Over)
    }

    pub(crate) fn result(&self) -> Result<Watched> {
        let both = self.begin.zip(self.end).doing("use a load that ended before its time");
        let ((begin, before), (end, after)) = both?;
        let counts = [after[0] - before[0], after[1] - before[1]];
        Ok(Watched { usage: begin.until(&end), counts })
    }
}

impl Watched {
    /// The server's on-CPU time for each of `count` things.
    pub(crate) fn cpu_us_per(&self, count: u64) -> f64 {
        self.usage.process_seconds * 1e6 / count as f64
    }

    /// `count` things in the measured time, as a rate.
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.usage.seconds
    }

    /// Share of its core that the server used.
    pub(crate) fn server_share(&self) -> f64 {
        self.usage.process_seconds / self.usage.seconds
    }
}
