//! Start, stop, reload and signals: the workers' threads, and the runtime that accepts, listens to signals and to systemd.

mod addresses;
mod admin;
mod crew;
mod failure;
mod helm;
mod reach;
mod reload;
mod revocations;
mod signals;
mod watch;

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use self::crew::{Crew, Fittings, watchdog, worker_count};
use self::failure::{Failure, host};
use self::helm::Helm;
use self::reach::{Door, Listeners, Sockets};
use self::reload::Reload;
use self::revocations::Store;
use self::signals::Signals;
use self::watch::Watch;
use crate::auth::{Authenticator, Revocations};
use crate::authority::Authority;
use crate::config::{Loaded, Settings, Validity};
use crate::control::api::Api;
use crate::control::metrics;
use crate::control::orders::{ORDERS_MAX, Standing};
use crate::control::remote::RemoteDoor;
use crate::net::admission::Admission;
use crate::net::headroom::keep_back;
use crate::net::interfaces::{descriptor_limits, raise_descriptor_limit};
use crate::net::tls::{self, TlsAcceptConfig, TlsSettings};
use crate::observe::logs::Level;
use crate::observe::records::{Recorder, Reopen, StartError};
use crate::offload::{self, Mode, Offload};
use crate::service_manager;
use crate::turn::{Drain, PeerPolicy, Policy};
use crate::worker::{DtlsDoor, Records};

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

fn serve(loaded: Loaded, level: Option<Level>, ready: impl FnOnce(&Settings)) -> Result<(), Failure> {
    let settings = &loaded.settings.clone();
    let watch = Watch::of(&loaded);
    tell_descriptors();
    let tls = load_tls(settings)?;
    let workers = worker_count(settings);
    let sockets = Sockets::open(settings, workers)?;
    let door =
        settings.admin.remote.as_ref().map(RemoteDoor::new).transpose().map_err(Failure::RemoteDoor)?.map(Arc::new);
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
    let (records, recorded) = Records::new(settings.sessions.wanted());
    let reopen = Reopen::default();
    let recorder =
        Recorder::new(&settings.sessions, settings.log.format, recorded, records.lost(), &reopen).map_err(|error| {
            match error {
                StartError::File(source) => {
                    Failure::RecordFile { file: settings.sessions.file.clone().unwrap_or_default(), source }
                }
                StartError::Webhook(source) => host("start the thread of sessions.webhook")(source),
            }
        })?;
    let counters = recorder.counters();
    let recorder = std::thread::Builder::new().name("recorder".to_owned()).spawn(|| recorder.run());
    let recorder = recorder.map_err(host("start the recorder's thread"))?;
    let authority = settings.authorization.clone().map(Authority::new).transpose();
    let authority = authority.map_err(host("ask authorization.url"))?;
    let authorizations = authority.as_ref().map(Authority::counters);
    let fittings = Fittings { dtls, offload, records, authority };
    let crew = Crew::start(policy(settings, &overlay), settings, sockets.udp, fittings, ended)?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new().map_err(host("listen to signals"))?;
        let next = Arc::new(AtomicUsize::new(0));
        let sink = Arc::new(crew.sink(&next));
        let entrance = Door { tls: tls.clone(), admission: Arc::clone(&admission), sink };
        let listeners = Listeners::serve(settings, sockets.streams, entrance)?;
        let standing = Arc::new(Standing::new(helm::first_words(settings, level, listeners.words(), revoked)));
        let take = crew.snapshots(&admission, tls.as_ref(), &standing, counters, authorizations);
        if let Some(listener) = sockets.metrics {
            let (take, top_users) = (Arc::clone(&take), settings.top_users);
            let source = metrics::Source { take, top_users, workers: crew.handles.clone() };
            tokio::spawn(async move {
                if let Err(error) = metrics::serve(listener, source).await {
                    error!(%error, "the metrics page ended");
                }
            });
        }
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let api = Api::new(admin::facts(&loaded), crew.handles.clone(), take, Arc::clone(&standing), orders);
        let api = Arc::new(api);
        let served = sockets.admin.map(|socket| admin::serve(socket, Arc::clone(&api)));
        let _admin_place = served.transpose()?;
        if let (Some(listener), Some(door)) = (sockets.remote_admin, &door) {
            admin::serve_remote(listener, Arc::clone(door), api)?;
        }
        info!(workers, "ferryd is ready");
        ready(settings);
        service_manager::ready(&format!("relaying, {workers} workers"));
        tokio::spawn(watchdog(crew.handles.clone()));
        let helm = Helm::new(
            Reload { loaded, tls, admission, reopen, listeners, door },
            &crew,
            standing,
            level,
            overlay,
            store,
            watch,
        );
        helm.steer(&mut signals, ordered, &mut endings).await
    });
    crew.stop();
    // The workers are gone, and with them the last who could tell it something.
    let _ = recorder.join();
    result
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

/// Starts the kernel path where it is asked for. Without it the sockets serve, and the daemon starts all the same.
fn start_offload(settings: &Settings) -> Option<Offload> {
    let mode = settings.offload.mode;
    if mode == Mode::Off {
        return None;
    }
    let started = Offload::start(&settings.offload, &offloaded(settings));
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

/// The addresses whose packets the kernel path may carry.
fn offloaded(settings: &Settings) -> Vec<IpAddr> {
    let listeners = settings.listeners.iter().filter(|listener| listener.is_udp());
    let relays = settings.turn.relay_addresses.iter().map(|relay| relay.bind);
    listeners.map(|listener| listener.address.ip()).chain(relays).collect()
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
