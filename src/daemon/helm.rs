//! The main loop: signals, orders of the admin API, and the drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::addresses::{self, Addresses};
use super::crew::Crew;
use super::failure::Failure;
use super::reach::Removed;
use super::reload::Reload;
use super::revocations::Store;
use super::signals::{Signal, Signals};
use super::watch::{Found, Watch};
use super::{Overlay, policy};
use crate::auth::revocation::REVOCATIONS_MAX;
use crate::auth::{Revocation, Revocations, Subject};
use crate::config::Settings;
use crate::control::orders::{DrainOrder, Kept, Order, Standing, Words};
use crate::control::wire::{self, unix_now};
use crate::observe::logs::{self, Level};
use crate::observe::metrics::Reloads;
use crate::service_manager;
use crate::turn::redirect::Alternates;
use crate::turn::{Drain, Redirect};

/// How often a daemon that drains looks whether it is empty.
const LOOK: Duration = Duration::from_millis(250);
/// How often removed listeners are looked at, which costs a look at every allocation.
const SWEEP: Duration = Duration::from_secs(2);
/// Listeners that are told to be empty at a time.
const EMPTY_MAX: usize = 16;
/// What the service manager is told to wait for at least, at each look.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What the main loop steers by.
pub(super) struct Helm<'a> {
    reload: Reload,
    crew: &'a Crew,
    standing: Arc<Standing>,
    /// The level that an operator has set over the configuration's.
    level: Option<Level>,
    drain: Option<Draining>,
    overlay: Overlay,
    store: Store,
    watch: Watch,
}

/// A drain under way.
struct Draining {
    deadline: Option<Instant>,
    /// A signal has said so: there is no way back.
    stops: bool,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    On,
    Stop,
}

impl<'a> Helm<'a> {
    pub(super) fn new(
        reload: Reload,
        crew: &'a Crew,
        standing: Arc<Standing>,
        level: Option<Level>,
        overlay: Overlay,
        store: Store,
        watch: Watch,
    ) -> Self {
        Self { reload, crew, standing, level, drain: None, overlay, store, watch }
    }

    /// Runs until there is a reason to stop.
    pub(super) async fn steer(
        mut self,
        signals: &mut Signals,
        mut orders: mpsc::Receiver<Order>,
        endings: &mut mpsc::UnboundedReceiver<usize>,
    ) -> Result<(), Failure> {
        let mut addresses = Addresses::watch();
        // What has changed since the configuration was read.
        self.follow_addresses();
        let every = self.reload.loaded.settings.watch;
        let mut watch = tokio::time::interval(if every.is_zero() { LOOK } else { every });
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (emptied, mut empty) = mpsc::channel(EMPTY_MAX);
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let drained = self.drain.is_some();
            let course = tokio::select! {
                signal = signals.next() => self.obey(signal),
                Some(order) = orders.recv() => self.carry_out(order),
                _ = watch.tick(), if !every.is_zero() => self.watch(),
                _ = look.tick(), if self.drain.is_some() => self.look(),
                _ = sweep.tick() => self.sweep(&emptied),
                Some(removed) = empty.recv() => self.close_listener(removed),
                () = addresses.change() => self.follow_addresses(),
                Some(worker) = endings.recv() => return Err(Failure::WorkerEnded(worker)),
            };
            if self.drain.is_some() && !drained {
                // Whoever asked for it is answered before an empty daemon stops.
                look.reset();
            }
            if course == Course::Stop {
                service_manager::stopping("ending allocations");
                return Ok(());
            }
        }
    }

    /// Closes the addresses to peers that this host has got, and opens those that it has lost.
    fn follow_addresses(&mut self) -> Course {
        let Some(host) = addresses::of_interfaces() else { return Course::On };
        let settings = &mut self.reload.loaded.settings.turn;
        let own = settings.own_addresses(&host);
        if settings.peers.own_addresses != own {
            settings.peers.own_addresses = own;
            info!(addresses = ?settings.peers.own_addresses, "the addresses of this host have changed");
            self.tell_policy();
        }
        Course::On
    }

    fn obey(&mut self, signal: Signal) -> Course {
        match signal {
            Signal::Reload => {
                // What came of it is in the log.
                let _ = self.reload();
                Course::On
            }
            Signal::Terminate => {
                let on_stop = self.reload.loaded.settings.admin.drain.on_stop;
                if on_stop.is_zero() || self.drain.as_ref().is_some_and(|drain| drain.stops) {
                    info!(signal = "SIGTERM", "stopping");
                    return Course::Stop;
                }
                service_manager::stopping("draining");
                let configured = DrainOrder { deadline: Some(on_stop), ..DrainOrder::default() };
                self.begin_drain(&configured, true);
                Course::On
            }
            Signal::Interrupt => {
                info!(signal = "SIGINT", "stopping");
                Course::Stop
            }
        }
    }

    /// Does what an operator asks for; one who has given up is not told.
    fn carry_out(&mut self, order: Order) -> Course {
        match order {
            Order::Reload(to) => _ = to.send(self.reload()),
            Order::Drain(drain, to) => {
                let result = self.judge(&drain).map(|()| self.begin_drain(&drain, false));
                _ = to.send(result);
            }
            Order::CancelDrain(to) => _ = to.send(self.cancel_drain()),
            Order::Revoke(revocation, to) => _ = to.send(self.revoke(revocation)),
            Order::Restore(subject, to) => _ = to.send(self.restore(&subject)),
            Order::LogLevel(level, to) => {
                self.level = level;
                self.follow_level();
                info!(level = self.standing.lock().log_level.level, "log level set by an operator");
                _ = to.send(());
            }
        }
        Course::On
    }

    /// Reads certificates and secrets that somebody has replaced.
    fn watch(&mut self) -> Course {
        match self.watch.look() {
            Found::Nothing => {}
            Found::Change => {
                info!("files of certificates or secrets have changed");
                // What came of it is in the log.
                let _ = self.reload();
            }
            Found::ChangeBesideAnEdit => {
                warn!(
                    "files of certificates or secrets have changed, and the configuration too: certificates alone are read"
                );
                self.reload.certificates();
            }
        }
        Course::On
    }

    fn reload(&mut self) -> Result<wire::Reloaded, Vec<String>> {
        let before = self.watch.now();
        let result = self.reload.run(self.crew, &self.overlay);
        let problems = result.as_ref().err().cloned().unwrap_or_default();
        let settings = &self.reload.loaded.settings;
        let mut words = self.standing.lock();
        words.last_reload = Some(wire::LastReload { at: unix_now(), ok: result.is_ok(), problems });
        let Reloads { applied, refused, last_ok } = &mut words.reloads;
        *(if result.is_ok() { applied } else { refused }) += 1;
        *last_ok = result.is_ok();
        words.limits = limits(settings);
        words.listeners = self.reload.listeners.words();
        drop(words);
        self.follow_level();
        self.watch = Watch::of(&self.reload.loaded).since(before);
        result
    }

    /// Logs from the operator's level on, else from the configuration's.
    fn follow_level(&self) {
        let words = level_words(&self.reload.loaded.settings, self.level);
        logs::set_level(self.level.unwrap_or(self.reload.loaded.settings.log.level));
        self.standing.lock().log_level = words;
    }

    /// Refuses a sibling that is this server itself, and clients that it sends to itself give up.
    fn judge(&self, order: &DrainOrder) -> Result<(), String> {
        let settings = &self.reload.loaded.settings;
        let is_own = |address: &&SocketAddr| {
            let listens = settings.listeners.iter().any(|listener| listener.address.port() == address.port());
            listens && settings.turn.peers.own_addresses.contains(&address.ip())
        };
        match order.redirect.iter().chain(&order.redirect_tls).find(is_own) {
            Some(address) => Err(format!("{address} is this server; name another one")),
            None if self.drain.as_ref().is_some_and(|drain| drain.stops) => Err("ferryd is stopping".to_owned()),
            None => Ok(()),
        }
    }

    /// Begins a drain, or goes on with another deadline and another sibling.
    fn begin_drain(&mut self, order: &DrainOrder, stops: bool) -> wire::Drain {
        let now = Instant::now();
        let configured = || self.reload.loaded.settings.admin.drain.redirect.clone();
        let earlier = self.drain.as_ref().filter(|_| stops);
        let deadline = order.deadline.map(|deadline| now + deadline);
        let deadline = [deadline, earlier.and_then(|drain| drain.deadline)].into_iter().flatten().min();
        let drain = match (named(order), earlier) {
            (Some(redirect), _) => Arc::new(Drain { redirect }),
            (None, Some(_)) if let Some(drain) = &self.overlay.drain => Arc::clone(drain),
            (None, _) => {
                let common = self.reload.loaded.settings.turn.redirect.clone();
                Arc::new(Drain { redirect: configured().or(common).unwrap_or_default() })
            }
        };
        let before = self.standing.lock().drain.clone();
        let allocations = u64::from(self.crew.shared.quotas.total());
        let seconds = |instant: Instant| unix_now() + instant.saturating_duration_since(now).as_secs();
        let words = wire::Drain {
            since: before.as_ref().map_or_else(unix_now, |before| before.since),
            deadline: deadline.map(seconds),
            cause: if stops { "signal" } else { "operator" }.to_owned(),
            redirect: siblings(&drain.redirect),
            allocations: before.map_or(allocations, |before| before.allocations),
        };
        self.drain = Some(Draining { deadline, stops });
        self.standing.lock().drain = Some(words.clone());
        self.overlay.drain = Some(drain);
        self.tell_policy();
        info!(
            allocations,
            deadline = order.deadline.map(|deadline| deadline.as_secs()),
            redirect = ?words.redirect,
            cause = words.cause,
            "draining: no new allocations are made"
        );
        service_manager::status(&format!("draining, {allocations} allocations"));
        words
    }

    fn cancel_drain(&mut self) -> Result<(), String> {
        match &self.drain {
            None => return Err("ferryd is not draining".to_owned()),
            Some(drain) if drain.stops => return Err("ferryd is stopping, and a stop is not taken back".to_owned()),
            Some(_) => {}
        }
        self.drain = None;
        self.standing.lock().drain = None;
        self.overlay.drain = None;
        self.tell_policy();
        info!("the drain was cancelled: new allocations are made again");
        service_manager::status("relaying");
        Ok(())
    }

    fn revoke(&mut self, revocation: Revocation) -> Result<Kept, String> {
        let now = unix_now();
        let mut all = self.standing.lock().revocations.clone();
        all.retain(|other| other.holds(now) && other.subject != revocation.subject);
        if all.len() >= REVOCATIONS_MAX {
            return Err(format!(
                "{REVOCATIONS_MAX} revocations are known already; remove a secret in place of its users"
            ));
        }
        all.push(revocation);
        Ok(self.revoked(all))
    }

    fn restore(&mut self, subject: &Subject) -> Result<Kept, String> {
        let now = unix_now();
        let mut all = self.standing.lock().revocations.clone();
        all.retain(|other| other.holds(now));
        let before = all.len();
        all.retain(|other| other.subject != *subject);
        if all.len() == before {
            return Err(format!("{subject} is not revoked"));
        }
        Ok(self.revoked(all))
    }

    /// These are revoked from now on, also where they cannot be kept.
    fn revoked(&mut self, all: Vec<Revocation>) -> Kept {
        let kept = match self.store.keep(&all) {
            Ok(true) => Kept::Yes,
            Ok(false) => Kept::No,
            Err(error) => {
                error!(%error, "revocations cannot be written to the state directory");
                Kept::No
            }
        };
        self.overlay.revocations = Arc::new(Revocations::new(&all));
        self.tell_policy();
        self.standing.lock().revocations = all;
        kept
    }

    fn tell_policy(&self) {
        self.crew.judge_by(&policy(&self.reload.loaded.settings, &self.overlay));
    }

    /// Looks whether removed listeners have calls left.
    fn sweep(&self, emptied: &mpsc::Sender<Removed>) -> Course {
        for removed in self.reload.listeners.removed() {
            let (handles, emptied) = (self.crew.handles.clone(), emptied.clone());
            tokio::spawn(async move {
                if removed.is_empty(handles).await {
                    // Else it is told at the next look.
                    let _ = emptied.try_send(removed);
                }
            });
        }
        Course::On
    }

    fn close_listener(&mut self, removed: Removed) -> Course {
        self.reload.listeners.close(self.crew, removed);
        self.reload.guard_ports();
        self.standing.lock().listeners = self.reload.listeners.words();
        self.tell_policy();
        Course::On
    }

    /// Stops a drain at its end.
    fn look(&self) -> Course {
        let Some(drain) = &self.drain else { return Course::On };
        let allocations = self.crew.shared.quotas.total();
        if allocations == 0 {
            info!("drained: the last allocation has ended, stopping");
            return Course::Stop;
        }
        if drain.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            info!(allocations, "the deadline of the drain has come, stopping");
            return Course::Stop;
        }
        if drain.stops {
            service_manager::stopping_for(LOOK_AGAIN);
        }
        Course::On
    }
}

/// The sibling that an operator names.
fn named(order: &DrainOrder) -> Option<Redirect> {
    if order.redirect.is_empty() && order.redirect_tls.is_empty() {
        return None;
    }
    let every = alternates(&order.redirect);
    let tls = alternates(&order.redirect_tls);
    let tls = Alternates { v4: tls.v4.or(every.v4), v6: tls.v6.or(every.v6) };
    Some(Redirect { udp: every, tcp: every, tls, dtls: tls, domain: order.domain.clone() })
}

fn alternates(addresses: &[SocketAddr]) -> Alternates {
    let mut alternates = Alternates::default();
    for address in addresses {
        match address {
            SocketAddr::V4(v4) => alternates.v4 = Some(*v4),
            SocketAddr::V6(v6) => alternates.v6 = Some(*v6),
        }
    }
    alternates
}

fn siblings(redirect: &Redirect) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = [&redirect.udp, &redirect.tcp, &redirect.tls]
        .into_iter()
        .flat_map(|it| [it.v4.map(SocketAddr::V4), it.v6.map(SocketAddr::V6)])
        .flatten()
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// What the daemon says of itself before anything has happened.
pub(super) fn first_words(
    settings: &Settings,
    level: Option<Level>,
    listeners: Vec<String>,
    revocations: Vec<Revocation>,
) -> Words {
    Words {
        drain: None,
        last_reload: None,
        reloads: Reloads::default(),
        log_level: level_words(settings, level),
        limits: limits(settings),
        listeners,
        revocations,
    }
}

fn level_words(settings: &Settings, level: Option<Level>) -> wire::LogLevel {
    let configured = settings.log.level;
    wire::LogLevel { level: level.unwrap_or(configured).name().to_owned(), configured: configured.name().to_owned() }
}

/// The limits alone: what is in use is counted when it is asked for.
fn limits(settings: &Settings) -> wire::Limits {
    let (turn, accept) = (&settings.turn.limits, &settings.accept);
    wire::Limits {
        allocations: 0,
        allocations_total: turn.allocations_total,
        allocations_per_user: turn.allocations_per_user,
        allocations_per_prefix: turn.allocations_per_prefix,
        permissions_per_allocation: turn.permissions_per_allocation,
        channels_per_allocation: turn.channels_per_allocation,
        connections: 0,
        connections_total: accept.connections_max.into(),
        connections_per_source: accept.connections_per_source_max.into(),
        handshakes: accept.handshakes_max as u64,
        descriptors: 0,
        descriptors_total: 0,
    }
}
