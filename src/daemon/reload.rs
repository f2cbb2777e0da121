//! SIGHUP: the configuration is read again, checked first, and applied as a whole or not at all.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::crew::Crew;
use super::reach::Listeners;
use super::{Overlay, offloaded, policy, tell};
use crate::config::{self, HostFacts, Loaded, Settings, StateAccess};
use crate::control;
use crate::control::remote::{Lock, RemoteDoor};
use crate::control::wire::Reloaded;
use crate::net::admission::Admission;
use crate::net::tls::{TlsAcceptConfig, TlsSettings};
use crate::observe::records::Reopen;
use crate::service_manager;
use crate::turn;
use crate::turn::settings::{Limits, PeerSettings};

/// A listener that is opened beside one whose sockets would have its packets too.
const OVERLAP: &str = "listener (one on * and one on an address have the same port)";

/// What a reload compares with and what it changes.
pub(super) struct Reload {
    pub(super) loaded: Loaded,
    pub(super) tls: Option<TlsAcceptConfig>,
    pub(super) admission: Arc<Admission>,
    pub(super) reopen: Reopen,
    pub(super) listeners: Listeners,
    /// Where other hosts are let in to the admin API.
    pub(super) door: Option<Arc<RemoteDoor>>,
}

impl Reload {
    /// Reads the configuration again; on any problem everything stays as it is.
    pub(super) fn run(&mut self, crew: &Crew, overlay: &Overlay) -> Result<Reloaded, Vec<String>> {
        service_manager::reloading();
        let result = self.read().and_then(|loaded| self.apply(crew, overlay, loaded));
        match &result {
            Ok(reloaded) if reloaded.changed.is_empty() => info!("configuration read again, nothing has changed"),
            Ok(reloaded) => info!(changed = reloaded.changed.join(", "), "configuration read again"),
            Err(problems) => {
                for problem in problems {
                    error!("{problem}");
                }
                error!("the configuration stays as it was; nothing of it has been applied");
            }
        }
        service_manager::ready("relaying");
        result
    }

    /// Reads the certificates of the configuration in force again, and nothing else.
    pub(super) fn certificates(&self) {
        let Some(tls) = &self.tls else { return };
        match tls.reload(&TlsSettings { certificates: self.loaded.settings.tls.clone() }) {
            Ok(_) => info!("certificates read again"),
            Err(error) => error!(%error, "the certificates stay as they were"),
        }
    }

    fn read(&self) -> Result<Loaded, Vec<String>> {
        let host = HostFacts::of_this_host()
            .map_err(|error| vec![format!("the addresses of this host cannot be listed ({error})")])?;
        let file = self.loaded.sources.file.as_deref();
        let mut loaded = config::load(file, &config::process_environment(), &host, StateAccess::ReadOnly)
            .map_err(|problems| problems.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        loaded.carry_over(&self.loaded);
        Ok(loaded)
    }

    /// Applies what can change in a running daemon, as a whole or not at all.
    fn apply(&mut self, crew: &Crew, overlay: &Overlay, mut loaded: Loaded) -> Result<Reloaded, Vec<String>> {
        let (new, old) = (&mut loaded.settings, &self.loaded.settings);
        let mut kept = keep_what_needs_a_restart(new, old);
        if self.listeners.blocked(&new.listeners) {
            kept.push(OVERLAP);
            new.listeners.clone_from(&old.listeners);
        }
        if !kept.is_empty() {
            warn!(settings = kept.join(", "), "these have changed and take effect at the next start");
        }
        let lock = new.admin.remote.as_ref().filter(|_| self.door.is_some()).map(Lock::new).transpose();
        let lock = lock.map_err(|error| vec![format!("admin: {error}")])?;
        let prepared = self.listeners.prepare(crew, new)?;
        let mut changed: Vec<String> = Vec::new();
        if let Some(tls) = &self.tls {
            // Also when the names are the same: the files may hold other certificates.
            match tls.reload(&TlsSettings { certificates: new.tls.clone() }) {
                Ok(differs) => changed.extend(differs.then(|| "certificates".to_owned())),
                Err(error) => {
                    self.listeners.give_up(crew, prepared);
                    return Err(vec![format!("tls: {error}")]);
                }
            }
        }
        if let (Some(door), Some(lock)) = (&self.door, lock) {
            door.replace(lock);
        }
        let mut note = |name, differs: bool| changed.extend(differs.then(|| String::from(name)));
        let ports = (old.turn.peers.listener_ports.clone(), old.turn.peers.service_ports.clone());
        (new.turn.peers.listener_ports, new.turn.peers.service_ports) = ports;
        note("credentials", new.auth != old.auth);
        note("peers", new.turn.peers != old.turn.peers);
        note("limits", new.turn.limits != old.turn.limits || new.accept != old.accept);
        note("redirect", new.turn.redirect != old.turn.redirect);
        note("lifetimes, extensions, compatibility", remainder(&new.turn) != remainder(&old.turn));
        note("log level", new.log.level != old.log.level);
        note("who may use the admin API", new.admin.remote != old.admin.remote);
        note("drain", new.admin.drain != old.admin.drain);
        changed.extend(self.listeners.apply(crew, &new.listeners, prepared));
        self.admission.set_limits(new.accept);
        self.reopen.ask();
        tell(&loaded);
        let mut warnings = loaded.warnings.clone();
        self.loaded = loaded;
        self.guard_ports();
        for interface in crew.offload(offloaded(&self.loaded.settings)) {
            let warning =
                format!("the kernel path is not on {interface}: sockets serve the listener that is new there");
            warn!("{warning}");
            warnings.push(warning);
        }
        crew.judge_by(&policy(&self.loaded.settings, overlay));
        let needs_restart = kept.into_iter().map(str::to_owned).collect();
        Ok(Reloaded { changed, needs_restart, warnings })
    }

    /// Keeps relays away from every port that is open, of removed listeners too.
    pub(super) fn guard_ports(&mut self) {
        let settings = &mut self.loaded.settings;
        settings.turn.peers.listener_ports = self.listeners.udp_ports();
        settings.turn.peers.service_ports = self.listeners.stream_ports();
        settings.turn.peers.service_ports.extend(settings.metrics.map(|address| address.port()));
        let remote = settings.admin.remote.as_ref().map(|remote| remote.address.port());
        settings.turn.peers.service_ports.extend(remote);
    }
}

/// What has no name of its own in the summary of a reload.
fn remainder(turn: &turn::Settings) -> turn::Settings {
    turn::Settings { peers: PeerSettings::default(), limits: Limits::default(), redirect: None, ..turn.clone() }
}

/// Takes over from the running daemon what is bound to its sockets and threads, and says so.
fn keep_what_needs_a_restart(new: &mut Settings, old: &Settings) -> Vec<&'static str> {
    let mut kept = Vec::new();
    let mut keep = |name, differs: bool| kept.extend(differs.then_some(name));
    keep("extensions.nat-behavior", new.turn.nat_behavior != old.turn.nat_behavior);
    keep("workers", new.workers != old.workers);
    keep("metrics", (new.metrics, new.top_users) != (old.metrics, old.top_users));
    keep("data-path", new.worker != old.worker || new.offload != old.offload);
    let relays_differ = new.turn.relay_addresses != old.turn.relay_addresses;
    keep("relay.addresses, relay.advertised-addresses", relays_differ);
    let ports = |settings: &Settings| (settings.turn.port_min, settings.turn.port_max);
    keep("relay.port-min, relay.port-max", ports(new) != ports(old));
    keep("limits.handshakes", new.accept.handshakes_max != old.accept.handshakes_max);
    keep("tls (on or off)", new.tls.is_empty() != old.tls.is_empty());
    keep("state-directory", new.state_directory != old.state_directory);
    keep("watch-files", new.watch != old.watch);
    keep("log.format", new.log.format != old.log.format);
    let remote = |settings: &Settings| settings.admin.remote.as_ref().map(|remote| remote.address);
    let socket = |settings: &Settings| (settings.admin.served(), settings.admin.group_access, remote(settings));
    keep("authorization", new.authorization != old.authorization);
    keep("sessions", new.sessions != old.sessions);
    keep("admin", socket(new) != socket(old));
    // What answers TLS, and what the alternate addresses are, is decided at the start.
    let depends = new.tls.is_empty() != old.tls.is_empty() || new.turn.nat_behavior != old.turn.nat_behavior;
    if depends && new.listeners != old.listeners {
        kept.push("listener");
        new.listeners.clone_from(&old.listeners);
    }
    (new.metrics, new.top_users) = (old.metrics, old.top_users);
    (new.workers, new.worker) = (old.workers, old.worker);
    new.offload.clone_from(&old.offload);
    new.turn.nat_behavior = old.turn.nat_behavior;
    new.accept.handshakes_max = old.accept.handshakes_max;
    if relays_differ {
        new.turn.relay_addresses.clone_from(&old.turn.relay_addresses);
        new.turn.peers.own_addresses.clone_from(&old.turn.peers.own_addresses);
    }
    (new.turn.port_min, new.turn.port_max) = ports(old);
    if new.tls.is_empty() != old.tls.is_empty() {
        new.tls.clone_from(&old.tls);
    }
    new.log.format = old.log.format;
    new.authorization.clone_from(&old.authorization);
    new.turn.authorize = old.turn.authorize;
    new.sessions.clone_from(&old.sessions);
    new.state_directory.clone_from(&old.state_directory);
    new.watch = old.watch;
    // The files of a door that stays where it is are read again.
    let same_door = remote(new) == remote(old);
    let admin = std::mem::take(&mut new.admin);
    let remote = if same_door { admin.remote } else { old.admin.remote.clone() };
    new.admin = control::settings::Settings { drain: admin.drain, remote, ..old.admin.clone() };
    kept
}
