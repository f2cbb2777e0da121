//! Start, stop, reload and signals: the workers' threads, and the runtime that accepts, listens to signals and to systemd.

mod addresses;
mod admin;
mod helm;
mod reload;
mod revocations;
mod watch;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use self::helm::Helm;
use self::reload::Reload;
use self::revocations::Store;
use crate::auth::{Authenticator, Revocations};
use crate::config::{Loaded, Settings, Sources, Validity};
use crate::control::api::Api;
use crate::control::metrics::{self, TakeSnapshot};
use crate::control::orders::{ORDERS_MAX, Standing};
use crate::control::wire;
use crate::net::accept::{self, Accept};
use crate::net::admission::Admission;
use crate::net::certificate::TlsError;
use crate::net::datagrams::{Datagrams, EpollDatagrams, RingDatagrams};
use crate::net::headroom::keep_back;
use crate::net::inherited::{InheritError, Inherited};
use crate::net::interfaces::{descriptor_limits, open_descriptors, raise_descriptor_limit};
use crate::net::socket::{OpenError, Reason, UdpOptions, open_tcp_listener};
use crate::net::steering::{Queues, open_steered};
use crate::net::tls::{self, TlsAcceptConfig, TlsSettings};
use crate::observe::logs::Level;
use crate::observe::metrics::{DrainProgress, Snapshot};
use crate::observe::records::{self, Recorder, Reopen};
use crate::offload::{self, Mode, Offload};
use crate::service_manager;
use crate::turn::{self, Drain, PeerPolicy, Policy, Shared, WorkerId};
use crate::worker::neighbours::Neighbours;
use crate::worker::settings::{Backend, ListenerKind};
use crate::worker::{
    Berth, Command, DtlsDoor, HeldSockets, Legacy, Past, REST_BUFFER_BYTES, Records, Report, WorkerHandle, rules,
};

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 1024;
/// A worker that says nothing for this long is not alive.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// Workers are numbered by a byte.
const WORKERS_MAX: usize = 256;

/// Logs what an operator should look at in a configuration that is about to be used.
pub fn tell(loaded: &Loaded) {
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    for facts in &loaded.certificates {
        match facts.validity(SystemTime::now()) {
            Validity::Good(_) => {}
            Validity::Soon(words) => warn!("{words}"),
            // UDP and plain TCP are served all the same.
            Validity::Refused(words) => error!("{words}"),
        }
    }
}

/// Runs until told to stop. `level` is logged from on whatever the configuration says, `ready` is called once everything
/// is open.
pub fn run(loaded: Loaded, level: Option<Level>, ready: impl FnOnce(&Settings)) -> ExitCode {
    let sources = loaded.sources.clone();
    match serve(loaded, level, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("ferryd stops: {}", failure.words(&sources));
            ExitCode::FAILURE
        }
    }
}

/// Why the daemon does not start, or does not go on.
#[derive(Debug)]
enum Failure {
    Listener(OpenError),
    Inherited(InheritError),
    Metrics(OpenError),
    Admin { socket: PathBuf, source: io::Error },
    Records { source: io::Error },
    Revocations { file: PathBuf, source: io::Error },
    Tls(TlsError),
    Host { what: &'static str, source: io::Error },
    WorkerEnded(usize),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listener(error) => write!(f, "listener: {error}, {}", error.remedy()),
            Self::Inherited(error) => write!(f, "sockets of the service manager: {error}"),
            Self::Metrics(error) => write!(f, "metrics.address: {error}, expected a free port; {}", error.remedy()),
            Self::Admin { socket, source } => write!(
                f,
                "admin.socket: {} cannot be served ({source}), expected a path in a directory that belongs to the user \
                 ferryd runs as; name another one, or \"off\"",
                socket.display()
            ),
            Self::Records { source } => write!(
                f,
                "sessions: records cannot be written ({source}), expected a file in a directory that belongs to the user \
                 ferryd runs as, and authorities that can be read; see sessions.file and sessions.webhook-ca"
            ),
            Self::Revocations { file, source } => write!(
                f,
                "{}: cannot be read ({source}), expected the revocations that ferryd keeps; mend the file, or remove it and \
                 revoke again",
                file.display()
            ),
            Self::Tls(error) => write!(f, "tls: {error}"),
            Self::Host { what, source } => write!(f, "cannot {what}: {source}"),
            Self::WorkerEnded(worker) => write!(f, "worker {worker} ended; see the log above"),
        }
    }
}

impl Failure {
    /// The failure, after the file or variable that an operator would change.
    fn words(&self, sources: &Sources) -> String {
        let file = || sources.file.as_ref().map(|file| file.display().to_string());
        let place = match self {
            Self::Listener(_) if sources.variables.iter().any(|name| name == "FERRYD_LISTENER") => {
                Some("environment variable FERRYD_LISTENER".to_owned())
            }
            Self::Listener(_) | Self::Metrics(_) | Self::Admin { .. } | Self::Records { .. } | Self::Tls(_) => file(),
            Self::Inherited(_) | Self::Host { .. } | Self::Revocations { .. } | Self::WorkerEnded(_) => None,
        };
        place.map_or_else(|| self.to_string(), |place| format!("{place}: {self}"))
    }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Host { what, source }
}

fn serve(loaded: Loaded, level: Option<Level>, ready: impl FnOnce(&Settings)) -> Result<(), Failure> {
    let settings = &loaded.settings.clone();
    tell_descriptors();
    let tls = load_tls(settings)?;
    let workers = worker_count(settings);
    let sockets = Sockets::open(settings, workers)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(host("start the runtime"))?;
    let (ended, mut endings) = mpsc::unbounded_channel();
    let admission = Admission::new(settings.accept);
    let dtls = dtls_door(tls.as_ref(), &admission)?;
    let directory = settings.state_directory.as_deref();
    let (store, revoked) = Store::open(directory)
        .map_err(|source| Failure::Revocations { file: directory.map(Store::file).unwrap_or_default(), source })?;
    let overlay = Overlay { drain: None, revocations: Arc::new(Revocations::new(&revoked)) };
    // Before any other thread: those that are started from here on have no capability of the kernel path.
    let offload = start_offload(settings);
    let (records, recorded) = Records::new(settings.sessions.starts);
    let reopen = Reopen::default();
    let recorder = Recorder::new(&settings.sessions, settings.log.format, recorded, records.lost(), &reopen)
        .map_err(|source| Failure::Records { source })?;
    let counters = recorder.counters();
    let recorder = std::thread::Builder::new().name("recorder".to_owned()).spawn(|| recorder.run());
    let recorder = recorder.map_err(host("start the recorder's thread"))?;
    let crew = Crew::start(policy(settings, &overlay), settings, sockets.udp, dtls, offload, records, ended)?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new().map_err(host("listen to signals"))?;
        let next = Arc::new(AtomicUsize::new(0));
        for (listener, accept, proxies) in sockets.streams {
            let sink = crew.sink(&next);
            let (tls, admission) = (tls.clone(), Arc::clone(&admission));
            tokio::spawn(async move {
                let Err(error) = accept::serve(listener, accept, proxies, tls, admission, sink).await;
                error!(%error, "a stream listener ended");
            });
        }
        for listener in &settings.listeners {
            info!(address = %listener.address, kind = ?listener.kind, "listening");
        }
        let standing = Arc::new(Standing::new(helm::first_words(settings, level, revoked)));
        let take = crew.snapshots(&admission, tls.as_ref(), &standing, counters);
        if let Some(listener) = sockets.metrics {
            let take = Arc::clone(&take);
            tokio::spawn(async move {
                if let Err(error) = metrics::serve(listener, take).await {
                    error!(%error, "the metrics page ended");
                }
            });
        }
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let served = sockets.admin.map(|socket| {
            let api = Api::new(admin::facts(&loaded), crew.handles.clone(), take, Arc::clone(&standing), orders);
            admin::serve(socket, api)
        });
        let _admin_place = served.transpose()?;
        info!(workers, "ferryd is ready");
        ready(settings);
        service_manager::ready(&format!("relaying, {workers} workers"));
        tokio::spawn(watchdog(crew.handles.clone()));
        let helm = Helm::new(Reload { loaded, tls, admission, reopen }, &crew, standing, level, overlay, store);
        helm.steer(&mut signals, ordered, &mut endings).await
    });
    crew.stop();
    // The workers are gone, and with them the last who could tell it something.
    let _ = recorder.join();
    result
}

/// Every socket that clients reach, open before anything else happens.
struct Sockets {
    /// By worker, then by listener, each with what it answers. They live as long as the daemon, whatever becomes of its
    /// workers.
    udp: Vec<Vec<(Queues, Accept)>>,
    /// Each with what it answers and the proxies that it believes.
    streams: Vec<(TcpListener, Accept, Vec<IpNet>)>,
    metrics: Option<TcpListener>,
    admin: Option<admin::Socket>,
}

impl Sockets {
    fn open(settings: &Settings, workers: usize) -> Result<Self, Failure> {
        let mut inherited = Inherited::of_this_process().map_err(Failure::Inherited)?;
        let mut sockets =
            Self { udp: (0..workers).map(|_| Vec::new()).collect(), streams: Vec::new(), metrics: None, admin: None };
        for listener in &settings.listeners {
            match listener.kind {
                ListenerKind::Udp(accept) => {
                    let passed = inherited.udp_listeners(listener.address, workers, &UdpOptions::LISTENER);
                    let group = match passed.map_err(Failure::Inherited)? {
                        // The group is older than this process, and the order of its sockets not this one's to know.
                        Some(passed) => passed.into_iter().map(Queues::one).collect(),
                        None => open_group(listener.address, workers, &settings.turn)?,
                    };
                    for (worker, queues) in sockets.udp.iter_mut().zip(group) {
                        worker.push((queues, accept));
                    }
                }
                ListenerKind::Stream(accept) => {
                    let socket = match inherited.tcp_listener(listener.address) {
                        Some(socket) => socket,
                        None => open_tcp_listener(listener.address, BACKLOG).map_err(Failure::Listener)?,
                    };
                    sockets.streams.push((socket, accept, listener.proxies.clone()));
                }
            }
        }
        inherited.finish().map_err(Failure::Inherited)?;
        if let Some(address) = settings.metrics {
            sockets.metrics = Some(open_tcp_listener(address, BACKLOG).map_err(Failure::Metrics)?);
        }
        sockets.admin = admin::open(&settings.admin)?;
        Ok(sockets)
    }
}

/// Opens the sockets of a UDP listener, with a queue for each class of datagrams where the kernel provides that.
fn open_group(address: SocketAddr, workers: usize, settings: &turn::Settings) -> Result<Vec<Queues>, Failure> {
    let rules = rules(settings.channels_above_4fff);
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other).map_err(host("read random bytes"))?;
    let (seed, options) = (u64::from_ne_bytes(seed), &UdpOptions::LISTENER);
    let open = || open_steered(address, workers, &rules, seed, options, REST_BUFFER_BYTES);
    let (group, refused) = patiently(open).map_err(Failure::Listener)?;
    if let Some(error) = refused {
        warn!(%address, %error, "requests and media share a queue: a flood of requests disturbs calls");
    }
    Ok(group)
}

/// Tries again for a moment when the port is in use: after a daemon was killed, the kernel takes milliseconds to let go
/// of the sockets of its io_uring.
fn patiently<T>(open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    const TRIES: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(50);
    for _ in 1..TRIES {
        match open() {
            Err(error) if error.reason == Reason::InUse => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
    open()
}

/// The workers' threads.
struct Crew {
    shared: Arc<Shared>,
    offload: Option<Offload>,
    handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    fn start(
        policy: Policy,
        settings: &Settings,
        listeners: Vec<Vec<(Queues, Accept)>>,
        dtls: Option<DtlsDoor>,
        offload: Option<Offload>,
        records: Records,
        ended: mpsc::UnboundedSender<usize>,
    ) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::new(&settings.turn));
        let held = HeldSockets::default();
        let mailboxes: io::Result<Vec<_>> = listeners.iter().map(|_| WorkerHandle::new()).collect();
        let mailboxes = mailboxes.map_err(host("make a worker's mailbox"))?;
        let handles: Vec<_> = mailboxes.iter().map(|(handle, ..)| handle.clone()).collect();
        let rings = Neighbours::mesh(&handles);
        let backend = backend(settings);
        let mut crew =
            Self { shared: Arc::clone(&shared), offload: offload.clone(), handles: Vec::new(), threads: Vec::new() };
        for (index, (((handle, commands, wake), listeners), neighbours)) in
            mailboxes.into_iter().zip(listeners).zip(rings).enumerate()
        {
            let (id, shared, held) = (WorkerId(index as u8), Arc::clone(&shared), held.clone());
            let (settings, offload, dtls) = (settings.worker, offload.clone(), dtls.clone());
            let records = records.clone();
            let berth = Berth { id, settings, shared, held, offload, records, listeners, dtls };
            let legacy = Legacy { policy: policy.clone(), commands, wake, neighbours, past: Past::default() };
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

    /// Hands established streams to the workers in turn.
    fn sink(&self, next: &Arc<AtomicUsize>) -> impl Fn(accept::Established) + Send + Sync + use<> {
        let (handles, next) = (self.handles.clone(), Arc::clone(next));
        move |established| {
            let index = next.fetch_add(1, Ordering::Relaxed) % handles.len();
            // A worker that is gone ends the daemon; the stream closes on drop.
            handles[index].tell(Command::Serve(Box::new(established)));
        }
    }

    /// Takes snapshots of the daemon for the metrics page.
    fn snapshots(
        &self,
        admission: &Arc<Admission>,
        tls: Option<&TlsAcceptConfig>,
        standing: &Arc<Standing>,
        records: Arc<records::Counters>,
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
                descriptors: descriptors(),
                reloads,
                drain,
                taken_at: SystemTime::now(),
            })
        })
    }

    fn stop(self) {
        for handle in &self.handles {
            handle.tell(Command::Stop);
        }
        for thread in self.threads {
            // What a worker has to say of its end it has logged.
            let _ = thread.join();
        }
    }
}

/// Open descriptors and their limit.
fn descriptors() -> Option<(u64, u64)> {
    Some((open_descriptors().ok()?, descriptor_limits().ok()?.soft))
}

/// What operators have laid over the configuration.
#[derive(Clone, Debug)]
struct Overlay {
    drain: Option<Arc<Drain>>,
    revocations: Arc<Revocations>,
}

/// What workers judge by.
fn policy(settings: &Settings, overlay: &Overlay) -> Policy {
    Policy {
        settings: Arc::new(settings.turn.clone()),
        authenticator: Arc::new(Authenticator::new(&settings.auth)),
        peers: Arc::new(PeerPolicy::new(&settings.turn)),
        drain: overlay.drain.clone(),
        revocations: Arc::clone(&overlay.revocations),
    }
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

/// Starts the kernel path where it is asked for. Without it the sockets serve, and the daemon starts all the same.
fn start_offload(settings: &Settings) -> Option<Offload> {
    let mode = settings.offload.mode;
    if mode == Mode::Off {
        return None;
    }
    let listeners = settings.listeners.iter().filter(|listener| matches!(listener.kind, ListenerKind::Udp(_)));
    let relays = settings.turn.relay_addresses.iter().map(|relay| relay.bind);
    let addresses: Vec<_> = listeners.map(|listener| listener.address.ip()).chain(relays).collect();
    let started = Offload::start(&settings.offload, &addresses);
    // Its thread keeps them; workers and everything else that meets clients do without.
    if let Err(error) = offload::drop_capabilities() {
        warn!(%error, "the capabilities of the kernel path cannot be given up");
    }
    match started {
        Ok(offload) => Some(offload),
        Err(error) if mode == Mode::Auto => {
            info!(%error, "the kernel path cannot be used, sockets serve");
            None
        }
        Err(error) => {
            warn!(%error, "data-path.offload: the kernel path cannot be used, sockets serve");
            None
        }
    }
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
    info!(backend = ?chosen, "data path");
    chosen
}

fn worker_count(settings: &Settings) -> usize {
    // Counts the cgroup's quota as well.
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let count = if settings.workers == 0 { cores() } else { settings.workers };
    count.min(WORKERS_MAX)
}

fn load_tls(settings: &Settings) -> Result<Option<TlsAcceptConfig>, Failure> {
    if settings.tls.is_empty() {
        return Ok(None);
    }
    let config = tls::load(&TlsSettings { certificates: settings.tls.clone() }).map_err(Failure::Tls)?;
    Ok(Some(config))
}

/// What workers answer DTLS with.
fn dtls_door(tls: Option<&TlsAcceptConfig>, admission: &Arc<Admission>) -> Result<Option<DtlsDoor>, Failure> {
    let Some(tls) = tls else { return Ok(None) };
    Ok(Some(DtlsDoor { config: tls.dtls().map_err(Failure::Tls)?, admission: Arc::clone(admission) }))
}

/// One descriptor goes to each allocation, and one to each stream.
fn tell_descriptors() {
    match raise_descriptor_limit().or_else(|_| descriptor_limits().map(|limits| limits.soft)) {
        Ok(limit) => {
            let descriptors = keep_back(limit);
            info!(descriptors, "each allocation takes one descriptor, each stream one");
        }
        Err(error) => warn!(%error, "the limit on descriptors cannot be read"),
    }
}

/// What the daemon is told by a signal.
enum Signal {
    /// SIGHUP.
    Reload,
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }
}

/// Tells systemd that the daemon is alive, as long as every worker answers.
async fn watchdog(handles: Vec<WorkerHandle>) {
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
