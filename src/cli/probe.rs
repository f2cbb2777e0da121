//! `ferryd probe`: a TURN server as a client sees it, step by step, by a client that shares no code with the server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::net::TcpStream;

mod connection;
#[cfg(feature = "dtls")]
mod dtls;
#[cfg(not(feature = "dtls"))]
#[path = "probe/dtls_absent.rs"]
mod dtls;
mod framing;
mod relay;
#[cfg(test)]
mod tests;
mod tls;
mod url;
mod words;

use connection::{Connection, Credentials, Ends};
use url::{Carrier, Url};
use words::Failure;

use super::output;

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Arguments {
    // As a doc comment, its brackets would be links.
    #[arg(
        value_name = "URL",
        help = "turn:HOST[:PORT][?transport=udp|tcp], turns: in the same forms, or stun:HOST[:PORT]"
    )]
    url: String,

    /// The username; `ferryd credential` mints one
    #[arg(long, short)]
    username: Option<String>,

    /// The password, which the WebRTC API calls credential
    #[arg(long, short)]
    password: Option<String>,

    /// Trust these certificates (PEM) rather than the system's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,

    /// Trust every certificate
    #[arg(long)]
    insecure: bool,
}

/// No step takes longer on a path that carries calls.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let url = match Url::parse(&arguments.url) {
        Ok(url) => url,
        Err(words) => {
            eprintln!("error: {words}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start ({error})");
            return ExitCode::FAILURE;
        }
    };
    let mut print = |line: &Line| _ = output::print(format!("{line}\n"));
    match runtime.block_on(probe(&url, arguments, &mut print)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What one step found and how long it took.
struct Line {
    step: &'static str,
    found: String,
    took: Option<Duration>,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.took {
            Some(took) => write!(f, "{:<12}{:<60}{:>10}", self.step, self.found, time_words(took)),
            None => write!(f, "{:<12}{}", self.step, self.found),
        }
    }
}

fn time_words(duration: Duration) -> String {
    match duration.as_secs_f64() * 1000.0 {
        milliseconds if milliseconds < 10.0 => format!("{milliseconds:.2} ms"),
        milliseconds => format!("{milliseconds:.0} ms"),
    }
}

/// Takes the steps; each that succeeds is a line.
async fn probe(url: &Url, arguments: &Arguments, print: &mut dyn FnMut(&Line)) -> Result<(), Failure> {
    let addresses = resolve(url, print).await?;
    let trust = match url.carrier {
        Carrier::Tls | Carrier::Dtls => Some(tls::Trust::read(arguments.ca.as_deref(), arguments.insecure)?),
        Carrier::Udp | Carrier::Tcp => None,
    };
    let credentials = match (&arguments.username, &arguments.password) {
        (Some(username), Some(password)) => {
            Some(Credentials { username: username.clone(), password: password.clone() })
        }
        (Some(_), None) | (None, Some(_)) | (None, None) => None,
    };
    let dial = Dial { url, trust, credentials: credentials.clone().unwrap_or_default() };
    let (address, first) = dial.reach_any(&addresses, print).await?;
    if !url.relays {
        return Ok(());
    }
    if credentials.is_none() {
        return Err(Failure::no_credentials());
    }
    let second = dial.connect(address, &mut |_| {}).await?;
    let outcome = relay::there_and_back(&first, &second, print).await;
    first.close().await;
    second.close().await;
    outcome
}

async fn resolve(url: &Url, print: &mut dyn FnMut(&Line)) -> Result<Vec<SocketAddr>, Failure> {
    let started = Instant::now();
    let looked_up = tokio::time::timeout(STEP_TIMEOUT, tokio::net::lookup_host((url.host.as_str(), url.port))).await;
    let addresses: Vec<SocketAddr> = match looked_up {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(Failure::name(&url.host, &error)),
        Err(_) => return Err(Failure::name(&url.host, &io::ErrorKind::TimedOut.into())),
    };
    if addresses.is_empty() {
        return Err(Failure::name(&url.host, &io::ErrorKind::NotFound.into()));
    }
    if url.host.parse::<IpAddr>().is_ok() {
        return Ok(addresses);
    }
    let found = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
    print(&Line { step: "name", found: format!("{} is {found}", url.host), took: Some(started.elapsed()) });
    Ok(addresses)
}

/// What every connection to the server needs.
struct Dial<'a> {
    url: &'a Url,
    trust: Option<tls::Trust>,
    credentials: Credentials,
}

impl Dial<'_> {
    /// Connects to the first address that answers a Binding request, trying one after the other.
    async fn reach_any(
        &self,
        addresses: &[SocketAddr],
        print: &mut dyn FnMut(&Line),
    ) -> Result<(SocketAddr, Connection), Failure> {
        let mut last = None;
        for address in addresses {
            if let Some(failure) = last.take() {
                let failure: Failure = failure;
                print(&Line { step: "failed", found: failure.to_string(), took: None });
            }
            match self.reach(*address, print).await {
                Ok(connection) => return Ok((*address, connection)),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| Failure::name(&self.url.host, &io::ErrorKind::NotFound.into())))
    }

    async fn reach(&self, address: SocketAddr, print: &mut dyn FnMut(&Line)) -> Result<Connection, Failure> {
        let connection = self.connect(address, print).await?;
        let started = Instant::now();
        let mapped = connection.bind().await?;
        let found = format!("this client is seen as {mapped}");
        print(&Line { step: "binding", found, took: Some(started.elapsed()) });
        Ok(connection)
    }

    async fn connect(&self, address: SocketAddr, print: &mut dyn FnMut(&Line)) -> Result<Connection, Failure> {
        match (self.url.carrier, &self.trust) {
            (Carrier::Udp, _) => return Connection::udp(address, &self.credentials).await,
            (Carrier::Dtls, Some(trust)) => {
                let started = Instant::now();
                let (session, ends, found) = dtls::connect(&self.url.host, address, trust).await?;
                print(&Line { step: "dtls", found, took: Some(started.elapsed()) });
                return Connection::dtls(session, ends, &self.credentials).await;
            }
            (Carrier::Dtls | Carrier::Tcp | Carrier::Tls, _) => {}
        }
        let failure = |error: &io::Error| Failure::connection(address, error);
        let started = Instant::now();
        let stream = tokio::time::timeout(STEP_TIMEOUT, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| failure(&error))?;
        // Small requests do not wait for each other.
        stream.set_nodelay(true).map_err(|error| failure(&error))?;
        let ends = Ends { local: stream.local_addr().map_err(|error| failure(&error))?, address };
        print(&Line { step: "connection", found: format!("tcp to {address}"), took: Some(started.elapsed()) });
        let Some(trust) = &self.trust else {
            return Connection::stream(stream, ends, Carrier::Tcp, &self.credentials).await;
        };
        let started = Instant::now();
        let (stream, found) = tls::handshake(stream, &self.url.host, address, trust).await?;
        print(&Line { step: "tls", found, took: Some(started.elapsed()) });
        Connection::stream(stream, ends, Carrier::Tls, &self.credentials).await
    }
}
