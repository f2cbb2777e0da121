//! The workers' threads.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::failure::{Failure, host};
use crate::authority::{self, Authority};
use crate::config::Settings;
use crate::control::metrics::TakeSnapshot;
use crate::control::orders::Standing;
use crate::control::wire;
use crate::net::accept;
use crate::net::admission::Admission;
use crate::net::datagrams::{Datagrams, EpollDatagrams, RingDatagrams};
use crate::net::interfaces::{descriptor_limits, open_descriptors};
use crate::net::tls::TlsAcceptConfig;
use crate::observe::metrics::{DrainProgress, Snapshot};
use crate::observe::records;
use crate::offload::Offload;
use crate::service_manager;
use crate::turn::{Policy, Shared, WorkerId};
use crate::worker::neighbours::Neighbours;
use crate::worker::settings::Backend;
use crate::worker::{
    Berth, Command, DtlsDoor, HeldSockets, Legacy, Listening, Past, ProxyHosts, Records, Report, Stand, WorkerHandle,
};

/// A worker that says nothing for this long is not alive.
pub(super) const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// Workers are numbered by a byte.
const WORKERS_MAX: usize = 256;

/// What workers work with besides their sockets.
pub(super) struct Fittings {
    pub(super) dtls: Option<DtlsDoor>,
    pub(super) offload: Option<Offload>,
    pub(super) records: Records,
    pub(super) authority: Option<Authority>,
}

/// The workers' threads, and what they share.
pub(super) struct Crew {
    pub(super) shared: Arc<Shared>,
    pub(super) offload: Option<Offload>,
    pub(super) handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    pub(super) fn start(
        policy: Policy,
        settings: &Settings,
        listeners: Vec<Vec<Stand>>,
        fittings: Fittings,
        ended: mpsc::UnboundedSender<usize>,
    ) -> Result<Self, Failure> {
        let Fittings { dtls, offload, records, authority } = fittings;
        let shared = Arc::new(Shared::new(&settings.turn));
        let (held, proxies) = (HeldSockets::default(), ProxyHosts::default());
        let mailboxes: io::Result<Vec<_>> = listeners.iter().map(|_| WorkerHandle::new()).collect();
        let mailboxes = mailboxes.map_err(host("make a worker's mailbox"))?;
        let handles: Vec<_> = mailboxes.iter().map(|(handle, ..)| handle.clone()).collect();
        let authorizer = authority.map(|authority| authority.start(&handles)).transpose();
        let authorizer = authorizer.map_err(host("start the threads that ask authorization.url"))?;
        let rings = Neighbours::mesh(&handles);
        let backend = backend(settings);
        let mut crew =
            Self { shared: Arc::clone(&shared), offload: offload.clone(), handles: Vec::new(), threads: Vec::new() };
        for (index, (((handle, commands, wake), listeners), neighbours)) in
            mailboxes.into_iter().zip(listeners).zip(rings).enumerate()
        {
            let (id, shared, held) = (WorkerId(index as u8), Arc::clone(&shared), held.clone());
            let (settings, proxies, offload, dtls) = (settings.worker, proxies.clone(), offload.clone(), dtls.clone());
            let (records, authorizer) = (records.clone(), authorizer.clone());
            let berth = Berth { id, settings, shared, held, proxies, offload, records, authorizer, dtls };
            let (policy, past) = (policy.clone(), Past::default());
            let listeners = listeners.into_iter().map(Some).collect();
            let legacy = Legacy { policy, commands, wake, neighbours, listeners, past };
            let notice = EndNotice(index, ended.clone());
            let thread = match backend {
                Backend::IoUring => spawn(berth, legacy, RingDatagrams::new, notice)?,
                Backend::Auto | Backend::Epoll => spawn(berth, legacy, EpollDatagrams::new, notice)?,
            };
            crew.handles.push(handle);
            crew.threads.push(thread);
        }
        Ok(crew)
    }

    /// Tells every worker what becomes of a listener.
    pub(super) fn tell_listening(&self, listening: impl Fn() -> Listening) {
        for handle in &self.handles {
            handle.tell(Command::Listen(listening()));
        }
    }

    /// Has every worker judge by a policy, and waits until they do and the kernel path has heard what they make of it:
    /// whoever is told that something is in force may act on it.
    pub(super) fn judge_by(&self, policy: &Policy) {
        for handle in &self.handles {
            handle.tell(Command::Replace(policy.clone()));
        }
        let in_kernel = |offload: &Offload| offload.report(REPORT_PATIENCE).is_some();
        if reports(&self.handles).is_none() || !self.offload.as_ref().is_none_or(in_kernel) {
            warn!("a worker does not answer and may still judge by what was in force before");
        }
    }

    /// Has the kernel path serve these addresses too; returns the interfaces with a new one where it cannot.
    pub(super) fn offload(&self, addresses: Vec<IpAddr>) -> Vec<String> {
        let left = self.offload.as_ref().and_then(|offload| offload.serve(addresses, REPORT_PATIENCE));
        left.unwrap_or_default()
    }

    /// Hands established streams to the workers in turn.
    pub(super) fn sink(&self, next: &Arc<AtomicUsize>) -> impl Fn(accept::Established) + Send + Sync + use<> {
        let (handles, next) = (self.handles.clone(), Arc::clone(next));
        move |established| {
            let index = next.fetch_add(1, Ordering::Relaxed) % handles.len();
            // A worker that is gone ends the daemon; the stream closes on drop.
            handles[index].tell(Command::Serve(Box::new(established)));
        }
    }

    /// Takes snapshots of the daemon for the metrics page.
    pub(super) fn snapshots(
        &self,
        admission: &Arc<Admission>,
        tls: Option<&TlsAcceptConfig>,
        standing: &Arc<Standing>,
        records: Arc<records::Counters>,
        authorizations: Option<Arc<authority::Counters>>,
    ) -> TakeSnapshot {
        let (handles, shared) = (self.handles.clone(), Arc::clone(&self.shared));
        let (admission, tls, standing) = (Arc::clone(admission), tls.cloned(), Arc::clone(standing));
        let offload = self.offload.clone();
        Arc::new(move || {
            let offload = match &offload {
                Some(offload) => Some(offload.report(REPORT_PATIENCE)?),
                None => None,
            };
            let words = standing.lock();
            let reloads = words.reloads;
            let progress =
                |drain: &wire::Drain| DrainProgress { allocations: drain.allocations, deadline: drain.deadline };
            let drain = words.drain.as_ref().map(progress);
            drop(words);
            Some(Snapshot {
                workers: reports(&handles)?,
                offload,
                shared: Arc::clone(&shared),
                admission: Arc::clone(&admission),
                certificates: tls.as_ref().map(TlsAcceptConfig::status).unwrap_or_default(),
                records: Arc::clone(&records),
                authorizations: authorizations.clone(),
                top_users: Vec::new(),
                descriptors: descriptors(),
                reloads,
                drain,
                taken_at: SystemTime::now(),
            })
        })
    }

    pub(super) fn stop(self) {
        for handle in &self.handles {
            handle.tell(Command::Stop);
        }
        for thread in self.threads {
            // What a worker has to say of its end it has logged.
            let _ = thread.join();
        }
        if let Some(offload) = &self.offload {
            offload.stop(REPORT_PATIENCE);
        }
    }
}

/// Open descriptors and their limit.
fn descriptors() -> Option<(u64, u64)> {
    Some((open_descriptors().ok()?, descriptor_limits().ok()?.soft))
}

/// Tells when the worker's thread ends, however it does.
struct EndNotice(usize, mpsc::UnboundedSender<usize>);

impl Drop for EndNotice {
    fn drop(&mut self) {
        // At the end of the daemon nobody listens any more.
        let _ = self.1.send(self.0);
    }
}

fn spawn<D: Datagrams + Send + 'static>(
    berth: Berth,
    legacy: Legacy,
    open: impl Fn() -> io::Result<D> + Send + 'static,
    notice: EndNotice,
) -> Result<JoinHandle<()>, Failure> {
    let datagrams = open().map_err(host("set the data path up; data-path.backend chooses another one"))?;
    let worker = berth.start(legacy, datagrams).map_err(host("start a worker"))?;
    let index = notice.0;
    let body = move || {
        let _notice = notice;
        if let Err(error) = berth.serve(worker, open) {
            error!(worker = index, %error, "a worker ended");
        }
    };
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(body).map_err(host("start a worker's thread"))
}

/// Chooses what serves the datagrams, and says why it is not io_uring.
fn backend(settings: &Settings) -> Backend {
    let chosen = match settings.worker.backend {
        Backend::Auto => match RingDatagrams::new() {
            Ok(_) => Backend::IoUring,
            Err(error) => {
                info!(%error, "io_uring cannot be used, epoll serves");
                Backend::Epoll
            }
        },
        named @ (Backend::Epoll | Backend::IoUring) => named,
    };
    info!(backend = chosen.name(), "data path");
    chosen
}

pub(super) fn worker_count(settings: &Settings) -> usize {
    // Counts the cgroup's quota as well.
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let count = if settings.workers == 0 { cores() } else { settings.workers };
    count.min(WORKERS_MAX)
}

/// Tells systemd that the daemon is alive, as long as every worker answers.
pub(super) async fn watchdog(handles: Vec<WorkerHandle>) {
    let Some(interval) = service_manager::watchdog_interval() else { return };
    loop {
        tokio::time::sleep(interval).await;
        let asked = handles.clone();
        let reports = tokio::task::spawn_blocking(move || reports(&asked)).await;
        match reports {
            Ok(Some(_)) => service_manager::watchdog(),
            Ok(None) => warn!("a worker does not answer"),
            Err(error) => warn!(%error, "the workers cannot be asked"),
        }
    }
}

/// Asks every worker how it is; `None` when one does not answer in time.
fn reports(handles: &[WorkerHandle]) -> Option<Vec<Report>> {
    let ask = |handle: &WorkerHandle| {
        let (to, from) = std::sync::mpsc::sync_channel(1);
        handle.tell(Command::Report(to)).then_some(from)
    };
    let asked: Vec<_> = handles.iter().map(ask).collect::<Option<_>>()?;
    asked.into_iter().map(|from| from.recv_timeout(REPORT_PATIENCE).ok()).collect()
}
