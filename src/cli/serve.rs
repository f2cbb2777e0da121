//! `ferryd serve`: relay until told to stop.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use tracing::{info, warn};

use super::welcome;
use crate::config::{Loaded, StateAccess};
use crate::daemon;
use crate::net::secrecy::forbid_dumps;
#[cfg(feature = "dtls")]
use crate::net::secrecy::forget_in_openssl;
use crate::observe::logs::{self, Level};

#[derive(Clone, Copy, Debug, Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Write events of this level and above, whatever the configuration says: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", value_parser = super::level_from_name)]
    log_level: Option<Level>,
}

impl Arguments {
    /// What is given after the verb, else before it.
    pub(super) fn or(self, before: Self) -> Self {
        Self { log_level: self.log_level.or(before.log_level) }
    }
}

pub(super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    // Before the first secret is read.
    let forbidden = forbid_dumps();
    #[cfg(feature = "dtls")]
    let is_forgetful = forget_in_openssl();
    let loaded = match super::load(file, StateAccess::Create) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    let settings = loaded.settings.log;
    logs::start(logs::Settings { level: arguments.log_level.unwrap_or(settings.level), ..settings });
    if let Err(error) = forbidden {
        warn!(%error, "core dumps cannot be forbidden: they would show secrets");
    }
    #[cfg(feature = "dtls")]
    if !is_forgetful {
        warn!("OpenSSL does not zero what it frees: it was in use before");
    }
    tell(&loaded);
    let greeting = welcome::Greeting::of(&loaded);
    daemon::run(loaded, arguments.log_level, |settings| {
        if let Some(greeting) = greeting.filter(|_| !welcome::under_service_manager()) {
            welcome::print(&greeting, settings);
        }
    })
}

/// What an operator should know before anything is served.
fn tell(loaded: &Loaded) {
    match (&loaded.sources.file, loaded.sources.variables.len()) {
        (Some(file), variables) => info!(file = %file.display(), variables, "configuration read"),
        (None, variables) => info!(variables, "no configuration file, defaults are used"),
    }
    daemon::tell(loaded);
    if !loaded.settings.serves_tls() {
        info!("TLS is off: set tls.certificate and tls.key to serve turns: URLs");
    }
}
