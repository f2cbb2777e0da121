//! The configuration: the file's shape on one side, each room's settings on the other.
//!
//! Layers, each over the one before: the defaults of the rooms, the file, the environment (`FERRYD_RELAY__PORT_MIN` is
//! `relay.port-min`). An unknown key or a bad value is a [`Problem`]; all of them are listed, and then nothing starts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod admin;
mod authorization;
mod certificate;
mod credentials;
mod host;
mod layers;
mod listeners;
mod nat_behavior;
mod problem;
mod redirect;
mod relay;
#[cfg(test)]
mod secret_tests;
mod section;
mod sessions;
pub mod settings;
#[cfg(test)]
mod shipped_tests;
mod state;
mod strength;
#[cfg(test)]
mod tests;
mod third_party;
mod values;

pub use certificate::{CertificateFacts, Validity};
pub use credentials::{REALM, SecretOrigin};
pub use host::HostFacts;
pub use problem::{Problem, Problems};
pub use settings::{CertificateFiles, Settings};
pub use state::StateAccess;
pub use strength::{STRENGTH_BITS_MIN, strength_bits};
pub use values::{duration_words, parse_duration};

use credentials::{Credentials, Places};
use problem::{At, Report};
use section::{Entry, Section};

use crate::control::{self, settings::Drain};
use crate::observe::logs;
use crate::offload;
use crate::worker::settings as worker;

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

/// The file that is read when none is named and it exists.
pub const DEFAULT_FILE: &str = "/etc/ferryd/ferryd.toml";

/// How often files are looked at unless set otherwise; a change counts when two looks agree.
const WATCH_DEFAULT: Duration = Duration::from_secs(15);
const WATCH_MAX: Duration = Duration::from_secs(86400);

/// A stop that takes longer than a day is none.
const ON_STOP_MAX: Duration = Duration::from_secs(86400);

/// A configuration that holds together.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub settings: Settings,
    pub sources: Sources,
    pub secret_origin: SecretOrigin,
    nonce_key_forgotten: bool,
    /// What the certificates say, in the order of `settings.tls`; expiry is the caller's to judge.
    pub certificates: Vec<CertificateFacts>,
    /// The files of certificates and secrets, which others replace.
    pub watched: Vec<PathBuf>,
    /// What an operator should look at; each is one line.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// Takes over what the daemon made for itself at an earlier load, so that a reload ends neither credentials nor nonces:
    /// another state directory waits for the next start.
    pub fn carry_over(&mut self, earlier: &Self) {
        let was_made = |origin: &SecretOrigin| *origin != SecretOrigin::Configured;
        let is_the_file =
            matches!(self.secret_origin, SecretOrigin::Kept(_)) && self.secret_origin == earlier.secret_origin;
        if was_made(&self.secret_origin) && was_made(&earlier.secret_origin) && !is_the_file {
            self.settings.auth.shared_secrets.clone_from(&earlier.settings.auth.shared_secrets);
            self.secret_origin = earlier.secret_origin.clone();
        }
        if self.nonce_key_forgotten {
            self.settings.auth.nonce_key = earlier.settings.auth.nonce_key.clone();
        }
    }
}

/// The layers over the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// The names of the variables that set something.
    pub variables: Vec<String>,
}

impl Sources {
    /// Whether nothing was configured at all.
    pub fn are_defaults(&self) -> bool {
        self.file.is_none() && self.variables.is_empty()
    }
}

/// The variables of this process; what is not UTF-8 is not a setting.
pub fn process_environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The file to read: the one named, else the default one if there is one.
pub fn choose_file(named: Option<&Path>) -> Option<PathBuf> {
    let default = Path::new(DEFAULT_FILE);
    // A file that cannot be looked at is read, so that the reason is told.
    named.map(Path::to_owned).or_else(|| default.try_exists().unwrap_or(true).then(|| default.to_owned()))
}

/// Reads the layers and composes every room's settings, or lists everything that is wrong.
pub fn load(
    file: Option<&Path>,
    environment: &Environment,
    host: &HostFacts,
    access: StateAccess,
) -> Result<Loaded, Problems> {
    let mut report = Report::default();
    let loaded = read(file, environment, host, access, &mut report);
    if report.problems.is_empty() { Ok(loaded) } else { Err(Problems(report.problems)) }
}

/// Where the admin API is, whatever else is wrong: the verbs that ask the daemon are needed then above all.
pub fn admin_settings(file: Option<&Path>, environment: &Environment, host: &HostFacts) -> control::settings::Settings {
    read(file, environment, host, StateAccess::ReadOnly, &mut Report::default()).settings.admin
}

fn read(
    file: Option<&Path>,
    environment: &Environment,
    host: &HostFacts,
    access: StateAccess,
    report: &mut Report,
) -> Loaded {
    let text = file.and_then(|path| Some((path, layers::read_file(path, report)?)));
    let world_readable = text.as_ref().is_some_and(|(_, file)| file.world_readable);
    let values = layers::merge(text.as_ref().map(|(path, file)| (*path, file.text.as_str())), environment, report);
    let name = file.map_or_else(|| "environment".to_owned(), |path| path.display().to_string());
    let mut root = Section::root(name, values);
    if let Some(path) = file.filter(|_| world_readable && root.holds_secrets()) {
        let words = "everybody may read the secrets in this file; chmod o-r closes it";
        report.warn(&At::file(path, "mode"), words);
    }

    let state_directory = root.path("state-directory", report).map(|entry| entry.value);
    let state_directory = state_directory.or_else(|| systemd_directory(environment, "STATE_DIRECTORY"));
    let credentials_directory = systemd_directory(environment, "CREDENTIALS_DIRECTORY");
    let places = Places {
        state_directory: state_directory.as_deref(),
        credentials_directory: credentials_directory.as_deref(),
        access,
    };
    let workers = root.number("workers", 0..=1024, report).map_or(0, |entry: Entry<u32>| entry.value as usize);
    let tls_section = root.section("tls", report);
    let tls = listeners::read_tls(tls_section, report);
    let mut listeners = listeners::read(&mut root, !tls.is_empty(), host, report);
    let (mut turn, accept) = relay::read(&mut root, host, report);
    let mut extensions = root.section("extensions", report);
    turn.mobility = extensions.truth("mobility", report).is_some_and(|entry| entry.value);
    turn.tcp_allocations = extensions.truth("tcp-allocations", report).is_some_and(|entry| entry.value);
    let section = extensions.section("nat-behavior", report);
    turn.nat_behavior = nat_behavior::read(section, &mut listeners, &turn.relay_addresses, host, report);
    extensions.finish(report);
    let udp = listeners.iter().filter(|listener| listener.is_udp());
    turn.peers.listener_ports = udp.map(|listener| listener.address.port()).collect();
    let own = redirect::Own { addresses: &turn.peers.own_addresses, listeners: &listeners };
    turn.redirect = redirect::read(root.section("redirect", report), &own, report);
    let watch = root.duration("watch-files", Duration::ZERO..=WATCH_MAX, report);
    let watch = watch.map_or(WATCH_DEFAULT, |entry| entry.value);
    let drain = read_drain(root.section("drain", report), &own, report);
    let (worker, offload) = read_data_path(root.section("data-path", report), report);
    let (metrics, top_users) = read_metrics(root.section("metrics", report), report);
    let runtime_directory = systemd_directory(environment, "RUNTIME_DIRECTORY");
    let mut admin =
        admin::read(root.section("admin", report), runtime_directory, tls.first().map(|(files, _)| files), report);
    admin.drain = drain;
    let streams = listeners.iter().filter(|listener| !listener.is_udp());
    turn.peers.service_ports = streams.map(|listener| listener.address.port()).collect();
    turn.peers.service_ports.extend(metrics.map(|address| address.port()));
    turn.peers.service_ports.extend(admin.remote.as_ref().map(|remote| remote.address.port()));
    let authorization = authorization::read(root.section("authorization", report), report);
    turn.authorize = authorization.is_some();
    let sessions = sessions::read(root.section("sessions", report), report);
    let log = read_log(root.section("log", report), report);
    // Last, so that a configuration that is wrong elsewhere leaves no secret behind.
    let places = if report.problems.is_empty() { places } else { Places { access: StateAccess::ReadOnly, ..places } };
    let Credentials { settings: auth, secret_origin, nonce_key_forgotten } =
        credentials::read(&mut root, &places, report);
    root.finish(report);

    let (tls, certificates): (Vec<_>, Vec<_>) = tls.into_iter().unzip();
    let of_pair = |pair: &CertificateFiles| [pair.certificate.clone(), pair.key.clone()];
    let watched = tls.iter().flat_map(of_pair).chain(std::mem::take(&mut report.secret_files)).collect();
    Loaded {
        watched,
        settings: Settings {
            auth,
            turn,
            listeners,
            tls,
            workers,
            worker,
            offload,
            state_directory,
            log,
            accept,
            metrics,
            top_users,
            admin,
            authorization,
            sessions,
            watch,
        },
        sources: Sources { file: file.map(Path::to_owned), variables: layers::setting_names(environment) },
        secret_origin,
        nonce_key_forgotten,
        certificates: certificates.into_iter().flatten().collect(),
        warnings: std::mem::take(&mut report.warnings),
    }
}

/// The first of systemd's directories; it separates several with colons.
fn systemd_directory(environment: &Environment, variable: &str) -> Option<PathBuf> {
    let first = environment.get(variable)?.split(':').next()?;
    (!first.is_empty()).then(|| PathBuf::from(first))
}

fn read_data_path(mut section: Section, report: &mut Report) -> (worker::Settings, offload::Settings) {
    let (default, default_offload) = (worker::Settings::default(), offload::Settings::default());
    let backend = section.word("backend", &worker::Backend::NAMES, report).map_or(default.backend, |entry| entry.value);
    let delay: Option<Entry<u32>> = section.number("wake-up-delay-max-us", 0..=10_000, report);
    let mode = section.word("offload", &offload::Mode::NAMES, report).map_or(default_offload.mode, |entry| entry.value);
    let interfaces = section.texts("offload-interfaces", report, parse_interface);
    section.finish(report);
    let interfaces = interfaces.into_iter().map(|entry| entry.value).collect();
    let wake_up_delay_max = delay.map_or(default.wake_up_delay_max, |entry| Duration::from_micros(entry.value.into()));
    (worker::Settings { backend, wake_up_delay_max }, offload::Settings { mode, interfaces })
}

/// Names are not looked up: an interface may come later.
fn parse_interface(text: &str, at: &At, report: &mut Report) -> Option<String> {
    // IFNAMSIZ, less the zero byte.
    if (1..=15).contains(&text.len()) && !text.contains(|character: char| character == '/' || character.is_whitespace())
    {
        return Some(text.to_owned());
    }
    let remedy = "write names as `ip link` shows them, such as \"eth0\"";
    report.problem(at.problem(format!("found \"{text}\""), "the name of a network interface", remedy));
    None
}

fn read_drain(mut section: Section, own: &redirect::Own<'_>, report: &mut Report) -> Drain {
    let on_stop = section.duration("on-stop", Duration::ZERO..=ON_STOP_MAX, report);
    let redirect = redirect::read(section.section("redirect", report), own, report);
    section.finish(report);
    Drain { on_stop: on_stop.map_or(Duration::ZERO, |entry| entry.value), redirect }
}

/// A page of more names than this is nobody's to read.
const TOP_USERS_MAX: u32 = 1000;

fn read_metrics(mut section: Section, report: &mut Report) -> (Option<SocketAddr>, usize) {
    let top_users = section.number("top-users", 0..=TOP_USERS_MAX, report);
    let top_users = top_users.map_or(0, |entry: Entry<u32>| entry.value as usize);
    let address = section.text("address", report).filter(|entry| !entry.value.is_empty());
    section.finish(report);
    let Some(Entry { value, at }) = address else { return (None, top_users) };
    let parsed = value.parse().ok();
    if parsed.is_none() {
        let remedy = "write \"127.0.0.1:9641\", or \"\" for no metrics page";
        report.problem(at.problem(format!("found \"{value}\""), "an address with a port", remedy));
    }
    (parsed, top_users)
}

fn read_log(mut log: Section, report: &mut Report) -> logs::Settings {
    let default = logs::Settings::default();
    let level = log.word("level", &logs::Level::NAMES, report).map_or(default.level, |entry| entry.value);
    let format = log.word("format", &logs::Format::NAMES, report).map_or(default.format, |entry| entry.value);
    log.finish(report);
    logs::Settings { level, format }
}
