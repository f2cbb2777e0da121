//! SIGHUP: the configuration is read again, checked first, and applied as a whole or not at all.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::{Crew, policy, tell};
use crate::config::{self, HostFacts, Loaded, Settings, StateAccess};
use crate::net::admission::Admission;
use crate::net::tls::{TlsAcceptConfig, TlsSettings};
use crate::observe::logs;
use crate::service_manager;
use crate::worker::Command;

/// What a reload compares with and what it changes.
pub(super) struct Reload {
    pub(super) loaded: Loaded,
    pub(super) tls: Option<TlsAcceptConfig>,
    pub(super) admission: Arc<Admission>,
}

impl Reload {
    /// Reads the configuration again; on any problem everything stays as it is.
    pub(super) fn run(&mut self, crew: &Crew) {
        service_manager::reloading();
        match self.read().and_then(|loaded| self.apply(crew, loaded)) {
            Ok(changed) if changed.is_empty() => info!("configuration read again, nothing has changed"),
            Ok(changed) => info!(changed = changed.join(", "), "configuration read again"),
            Err(problems) => {
                for problem in problems {
                    error!("{problem}");
                }
                error!("the configuration stays as it was; nothing of it has been applied");
            }
        }
        service_manager::ready("relaying");
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

    /// Applies what can change in a running daemon; returns the names of what has.
    fn apply(&mut self, crew: &Crew, mut loaded: Loaded) -> Result<Vec<&'static str>, Vec<String>> {
        let (new, old) = (&mut loaded.settings, &self.loaded.settings);
        keep_what_needs_a_restart(new, old);
        let mut changed = Vec::new();
        if let Some(tls) = &self.tls {
            // Also when the names are the same: the files may hold other certificates.
            let settings = TlsSettings { certificates: new.tls.clone() };
            tls.reload(&settings).map_err(|error| vec![format!("tls: {error}")])?;
            changed.push("certificates");
        }
        let mut note = |name, differs: bool| changed.extend(differs.then_some(name));
        note("credentials", new.auth != old.auth);
        note("relay and peer policy", new.turn != old.turn);
        note("limits on connections", new.accept != old.accept);
        note("log level", new.log.level != old.log.level);
        self.admission.set_limits(new.accept);
        logs::set_level(new.log.level);
        for handle in &crew.handles {
            handle.tell(Command::Replace(policy(new)));
        }
        tell(&loaded);
        self.loaded = loaded;
        Ok(changed)
    }
}

/// Takes over from the running daemon what is bound to its sockets and threads, and says so.
fn keep_what_needs_a_restart(new: &mut Settings, old: &Settings) {
    let mut kept = Vec::new();
    let mut keep = |name, differs: bool| kept.extend(differs.then_some(name));
    keep("listener", new.listeners != old.listeners);
    keep("extensions.nat-behavior", new.turn.nat_behavior != old.turn.nat_behavior);
    keep("workers", new.workers != old.workers);
    keep("metrics.address", new.metrics != old.metrics);
    keep("data-path", new.worker != old.worker);
    keep("relay.addresses", new.turn.relay_addresses != old.turn.relay_addresses);
    let ports = |settings: &Settings| (settings.turn.port_min, settings.turn.port_max);
    keep("relay.port-min, relay.port-max", ports(new) != ports(old));
    keep("tls (on or off)", new.tls.is_empty() != old.tls.is_empty());
    keep("log.format", new.log.format != old.log.format);
    if !kept.is_empty() {
        warn!(settings = kept.join(", "), "these have changed and take effect at the next start");
    }
    new.listeners.clone_from(&old.listeners);
    new.metrics = old.metrics;
    (new.workers, new.worker) = (old.workers, old.worker);
    new.turn.nat_behavior = old.turn.nat_behavior;
    new.turn.relay_addresses.clone_from(&old.turn.relay_addresses);
    (new.turn.port_min, new.turn.port_max) = ports(old);
    new.turn.peers.listener_ports.clone_from(&old.turn.peers.listener_ports);
    new.turn.peers.service_ports.clone_from(&old.turn.peers.service_ports);
    if new.tls.is_empty() != old.tls.is_empty() {
        new.tls.clone_from(&old.tls);
    }
    new.log.format = old.log.format;
}
