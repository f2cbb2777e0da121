//! The rows of the table: what is measured, in which unit, and what is better.

mod calls;
mod control;
mod floods;
mod memory;
mod overload;
mod saturated;
mod streams;

use crate::failure::Result;
use crate::machine::RealTime;
use crate::options::Options;
use crate::server::{Candidate, Kind, Running};
use crate::traffic::Outcome;
use crate::watch::{Stopwatch, Watched};

/// Which value is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
    /// Told for context.
    Neither,
}

/// One figure of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

const fn less(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit, better: Better::Less }
}

const fn more(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit, better: Better::More }
}

const fn context(name: &'static str, unit: &'static str) -> Metric {
    Metric { name, unit, better: Better::Neither }
}

/// The server's own on-CPU time, wherever a metric has this unit.
const CPU: &str = "CPU us";

/// A row of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) metrics: &'static [Metric],
    /// Whether the bare echo can do it as well.
    pub(crate) echo: bool,
    /// Whether the server gets less than its core.
    is_held: bool,
    run: fn(&Bench, &Running) -> Result<Sample>,
}

/// Every row, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    saturated::SATURATED,
    saturated::BURSTS,
    saturated::BOTH_WAYS,
    calls::THOUSAND,
    calls::TWO_HUNDRED,
    saturated::RELAY_TO_RELAY,
    saturated::INDICATIONS,
    overload::OFFERED,
    overload::QUOTA,
    overload::FLOOD,
    floods::BINDINGS,
    floods::ALLOCATES,
    floods::GUESSES,
    floods::GARBAGE,
    floods::HANDSHAKES,
    floods::CHANNELS,
    floods::CLIENTS,
    floods::SENDS,
    floods::PEERS,
    floods::ALL,
    streams::TCP,
    streams::TLS,
    control::BINDING,
    control::ALLOCATIONS,
    control::ALLOCATIONS_TLS,
    memory::UDP,
    memory::TLS,
];

/// The figures of one server in one round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    values: Vec<(&'static str, f64)>,
    /// What makes the figures doubtful.
    pub(crate) notes: Vec<String>,
    /// Whether the server comes before other work on its core.
    shielded: bool,
}

impl Sample {
    fn new(bench: &Bench) -> Self {
        Self { shielded: bench.shield, ..Self::default() }
    }

    fn put(&mut self, metric: &'static str, value: f64) {
        self.values.push((metric, value));
    }

    pub(crate) fn get(&self, metric: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| *name == metric).map(|(_, value)| *value)
    }

    /// Doubts a saturated load in which the server had time to spare.
    fn doubt_saturation(&mut self, what: &str, watched: &Watched) {
        let idle = (1.0 - watched.usage.core_busy) * 100.0;
        if idle > 5.0 {
            self.notes
                .push(format!("{what}: the generator was the bottleneck, the server's core was idle for {idle:.0} %"));
        }
        self.doubt_core(what, watched);
    }

    /// Doubts a load whose packets were not sent in time.
    fn doubt_pace(&mut self, what: &str, outcome: &Outcome) {
        let late = outcome.generator_late * 100.0;
        if late > 1.0 {
            let busy = outcome.generator_busy * 100.0;
            self.notes.push(format!("{what}: the generator sent {late:.1} % late, busy {busy:.0} % of its time"));
        }
        self.doubt_core(what, &outcome.watched);
    }

    /// Doubts a measurement beside other work.
    fn doubt_core(&mut self, what: &str, watched: &Watched) {
        let others = (watched.usage.core_busy - watched.server_share()) * 100.0;
        // What a shielded server leaves over is for whoever wants it.
        if others > 10.0 && !self.shielded {
            self.notes.push(format!("{what}: {others:.0} % of the server's core went to other work than the server"));
        }
        let (steal, waited) = (watched.usage.core_steal * 100.0, watched.usage.generator_waited * 100.0);
        if steal > 2.0 || waited > 2.0 {
            self.notes.push(format!("{what}: steal {steal:.0} %, the generator waited for its core {waited:.0} %"));
        }
    }
}

/// What rows are measured with.
pub(crate) struct Bench {
    pub(crate) seconds: f64,
    pub(crate) server_core: usize,
    pub(crate) fifo: bool,
    /// Scales counts of memory and the like down for a quick run.
    pub(crate) quick: bool,
    pub(crate) shield: bool,
    pub(crate) overload: f64,
    /// Percent of a core, in rows that hold the server to a share.
    pub(crate) quota: u64,
}

impl Bench {
    pub(crate) fn new(options: &Options, server_core: usize) -> Self {
        Self {
            seconds: options.seconds(),
            server_core,
            fifo: !options.no_fifo,
            quick: options.quick,
            shield: options.shield,
            overload: options.overload,
            quota: options.quota,
        }
    }

    /// Measures a row with a fresh server; `None` where it does not apply.
    pub(crate) fn measure(&self, row: &Row, candidate: &Candidate) -> Result<Option<Sample>> {
        if candidate.kind == Kind::Echo && !row.echo {
            return Ok(None);
        }
        // A quota does not hold what runs under SCHED_RR.
        let shield = self.shield && !row.is_held;
        let server = Running::start(candidate, self.server_core, shield)?;
        (row.run)(self, &server).map(Some)
    }

    /// A stopwatch for `share` of a row's time.
    fn watch(&self, server: &Running, share: f64) -> Stopwatch {
        Stopwatch::start(server.process(), self.server_core, self.seconds * share)
    }

    fn real_time(&self) -> RealTime {
        RealTime::claim(self.fifo)
    }
}
