//! The verbs that speak to a running daemon: tables for people, `--json` for scripts.

pub(super) mod drain;
pub(super) mod evict;
pub(super) mod limits;
pub(super) mod log_level;
pub(super) mod reload;
pub(super) mod revoke;
pub(super) mod session;
pub(super) mod sessions;
pub(super) mod status;
pub(super) mod top;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{self, HostFacts};
use crate::control::client::{Client, ClientError};

/// How the daemon is reached, and how its answer is printed.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Connection {
    /// The daemon's admin socket; without it that of the configuration, else /run/ferryd/admin.sock
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Print the daemon's answer as JSON, as docs/openapi.json describes it
    #[arg(long)]
    json: bool,
}

impl Connection {
    fn client(&self, file: Option<&Path>) -> Client {
        Client::new(&self.socket.clone().unwrap_or_else(|| configured(file)))
    }

    /// Asks, and prints the answer as JSON or by `words`.
    fn show<T: DeserializeOwned>(
        &self,
        file: Option<&Path>,
        (method, path, body): (&str, &str, Option<&Value>),
        words: impl FnOnce(T) -> String,
    ) -> ExitCode {
        let client = self.client(file);
        let answered = client.request(method, path, body).and_then(|answer| match self.json {
            true => Ok(format!("{answer:#}\n")),
            false => client.read(answer).map(words),
        });
        told(answered)
    }
}

/// Prints what came, or the reason why nothing did.
fn told(answered: Result<String, ClientError>) -> ExitCode {
    match answered {
        Ok(words) => {
            print!("{words}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The socket that the configuration names, whatever else is wrong with it.
fn configured(file: Option<&Path>) -> PathBuf {
    let host = HostFacts::of_this_host().unwrap_or_default();
    config::admin_settings(file, &config::process_environment(), &host).asked()
}

/// How long ago a moment was, in seconds.
fn age(unix_seconds: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().saturating_sub(unix_seconds))
}
