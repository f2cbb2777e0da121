//! A worker's place, which outlives it: when a worker fails, its allocations end and another takes over.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::error;

use super::associations::DtlsDoor;
use super::authorizer::Authorizer;
use super::clock::Clock;
use super::held::HeldSockets;
use super::listeners::serve;
use super::packet_loop::{Fresh, Legacy, Worker};
use super::proxies::ProxyHosts;
use super::records::Records;
use super::requests::Requests;
use super::routes::Socket;
use super::settings::Settings;
use crate::net::datagrams::Datagrams;
use crate::net::poll::Interest;
use crate::offload::Offload;
use crate::turn::{Server, Shared, WorkerId};

#[cfg(not(panic = "unwind"))]
compile_error!("a worker that panics is replaced, which needs panic = \"unwind\"");

/// How often a worker may be replaced within [`RESTART_WINDOW`]. One that fails more often fails by itself, and the
/// service manager is to know.
const RESTARTS_MAX: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// Until the next attempt when a worker cannot be made, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// What workers of one place have in common.
#[derive(Debug)]
pub struct Berth {
    pub id: WorkerId,
    pub settings: Settings,
    pub shared: Arc<Shared>,
    pub held: HeldSockets,
    /// The proxies that announce clients.
    pub proxies: ProxyHosts,
    /// The kernel path; `None` is sockets alone.
    pub offload: Option<Offload>,
    pub records: Records,
    /// Who decides about allocations; `None` where nobody is asked.
    pub authorizer: Option<Authorizer>,
    /// What answers DTLS; `None` where there is no certificate.
    pub dtls: Option<DtlsDoor>,
}

impl Berth {
    /// Makes the first worker.
    pub fn start<D: Datagrams>(&self, legacy: Legacy, datagrams: D) -> io::Result<Worker<D>> {
        Ok(Worker::new(self, self.prepare(&legacy, datagrams)?, legacy))
    }

    /// Runs a worker until it is told to stop, and others on datagrams that `open` makes when it fails.
    ///
    /// A failure is a panic, or a wait that the kernel refuses. Fails when that comes too often.
    pub fn serve<D: Datagrams>(&self, mut worker: Worker<D>, open: impl Fn() -> io::Result<D>) -> io::Result<()> {
        let mut failures = Failures::default();
        loop {
            let failure = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => words(&*panic),
            };
            error!(worker = self.id.0, failure, "a worker has failed: its allocations end, and another takes over");
            let mut legacy = self.clear_away(worker);
            let fresh = loop {
                failures.count(Clock.now().instant)?;
                match open().and_then(|datagrams| self.prepare(&legacy, datagrams)) {
                    Ok(fresh) => break fresh,
                    Err(error) => {
                        error!(worker = self.id.0, %error, "a worker cannot be made yet");
                        std::thread::sleep(PAUSE);
                    }
                }
            };
            legacy.past.statistics.restarts += 1;
            worker = Worker::new(self, fresh, legacy);
        }
    }

    /// Everything of a worker that can fail to be made.
    fn prepare<D: Datagrams>(&self, legacy: &Legacy, mut datagrams: D) -> io::Result<Fresh<D>> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        datagrams.poll().add(legacy.wake.waker(), Socket::Waker.token(), Interest::Readable, false)?;
        let (mut listeners, mut requests) = (Vec::new(), Requests::new());
        for (index, stand) in legacy.listeners.iter().enumerate() {
            let serve = |stand| serve(index as u16, stand, &mut datagrams, &mut requests);
            listeners.push(stand.as_ref().map(serve).transpose()?);
        }
        let server = Server::new(legacy.policy.clone(), Arc::clone(&self.shared), self.id, seed, Clock.now().instant);
        Ok(Fresh { server, datagrams, listeners, requests })
    }

    /// Ends what a worker was doing, as far as its state allows, and takes back the rest.
    fn clear_away<D: Datagrams>(&self, mut worker: Worker<D>) -> Legacy {
        // The orderly end writes the records of its allocations; a state that does not allow it is no surprise.
        if catch_unwind(AssertUnwindSafe(|| worker.abandon())).is_err() {
            error!(worker = self.id.0, "allocations have ended without a record");
        }
        let (mut legacy, rest) = worker.take_apart();
        // Sockets are closed before their ports are free.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(rest)));
        self.held.forget_worker(self.id);
        self.shared.forget_worker(self.id);
        legacy.neighbours.clear();
        // It may have seen a wake and not what it was about.
        legacy.wake.wake();
        legacy
    }
}

/// The failures of the last while.
#[derive(Debug, Default)]
struct Failures {
    times: Vec<Instant>,
}

impl Failures {
    /// Fails when it is one too many.
    fn count(&mut self, now: Instant) -> io::Result<()> {
        self.times.retain(|at| now.saturating_duration_since(*at) < RESTART_WINDOW);
        self.times.push(now);
        if self.times.len() <= RESTARTS_MAX {
            return Ok(());
        }
        let (times, seconds) = (self.times.len(), RESTART_WINDOW.as_secs());
        Err(io::Error::other(format!("it has failed {times} times within {seconds} s")))
    }
}

/// What a panic has said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without words").to_owned()
}

#[cfg(test)]
mod tests;
