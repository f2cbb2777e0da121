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

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::output::print;
use crate::config::{self, HostFacts};
use crate::control::client::{Client, ClientError, Place};
use crate::web::{self, Endpoint, Token, Trust, Url};

/// How the daemon is reached, and how its answer is printed.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Connection {
    #[command(flatten)]
    reach: Reach,

    /// Print the daemon's answer as JSON, as docs/openapi.json describes it
    #[arg(long)]
    json: bool,
}

/// How the daemon is reached.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Reach {
    /// The daemon's admin socket; without it that of the configuration, else /run/ferryd/admin.sock
    #[arg(long, value_name = "PATH", conflicts_with = "admin")]
    socket: Option<PathBuf>,

    /// A daemon on another host, by its admin.address
    #[arg(long, value_name = "https://HOST:PORT", value_parser = admin_url)]
    admin: Option<Url>,

    /// The token that its admin.token-file holds
    #[arg(long, value_name = "FILE", requires = "admin")]
    token_file: Option<PathBuf>,

    /// Trust the certificates of this PEM file in place of the system's
    #[arg(long, value_name = "FILE", requires = "admin")]
    ca: Option<PathBuf>,

    /// A certificate of an authority in its admin.client-ca, with --key
    #[arg(long, value_name = "FILE", requires_all = ["admin", "key"])]
    certificate: Option<PathBuf>,

    /// The key of --certificate
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

fn admin_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).filter(|url| url.is_tls && url.path == "/");
    url.ok_or_else(|| "expected a URL such as https://turn1.example.org:9642".to_owned())
}

impl Reach {
    fn client(&self, file: Option<&Path>) -> Result<Client, ClientError> {
        let Some(url) = &self.admin else {
            return Ok(Client::new(&self.socket.clone().unwrap_or_else(|| configured(file))));
        };
        let endpoint = self.token().and_then(|token| Endpoint::new(url.clone(), token, || self.tls()));
        let place = Place::url(&url.host, url.port);
        endpoint.map(Client::remote).map_err(|source| ClientError::Unreachable { place, source })
    }

    fn token(&self) -> io::Result<Option<Token>> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let text = fs::read_to_string(file).map_err(naming(file))?;
        Ok(Some(Token::parse(&text).ok_or_else(|| io::Error::other(format!("{} holds no token", file.display())))?))
    }

    fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        let trust = match &self.ca {
            Some(file) => Trust::read(Some(file)).map_err(naming(file))?,
            None => Trust::read(None)?,
        };
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((
                web::certificates(certificate).map_err(naming(certificate))?,
                web::key(key).map_err(naming(key))?,
            )),
            _ => None,
        };
        let made = web::client_config(trust, identity);
        match &self.certificate {
            Some(certificate) => made.map_err(naming(certificate)),
            None => made,
        }
    }
}

fn naming(file: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

impl Connection {
    fn client(&self, file: Option<&Path>) -> Result<Client, ClientError> {
        self.reach.client(file)
    }

    /// Asks, and prints the answer as JSON or by `words`.
    fn show<T: DeserializeOwned>(
        &self,
        file: Option<&Path>,
        (method, path, body): (&str, &str, Option<&Value>),
        words: impl FnOnce(T) -> String,
    ) -> ExitCode {
        let answered = self.client(file).and_then(|client| {
            let answer = client.request(method, path, body)?;
            if self.json { Ok(format!("{answer:#}\n")) } else { client.read(answer).map(words) }
        });
        told(answered)
    }
}

/// Prints what came, or the reason why nothing did.
fn told(answered: Result<String, ClientError>) -> ExitCode {
    match answered {
        Ok(words) => {
            print(words);
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
