//! The admin API for other hosts: TLS always, and beside it a token, a certificate of the client's, or both.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::api::Refusal;
use super::bounded::{Bounded, PAUSE};
use crate::net::certificate::{CertificateFiles, load_pair};
use crate::web::{Token, Trust};

/// Connections at a time, handshakes included: some operators and some scripts.
const CONNECTIONS_MAX: usize = 64;
/// For the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For everything that a connection is for. The verbs make one for each request, and wait as long.
const LIFETIME: Duration = Duration::from_secs(60);

/// What an operator decides about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub address: SocketAddr,
    pub certificate: CertificateFiles,
    pub access: Access,
}

/// Who is let in; one of the two is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who knows this.
    pub token: Option<Token>,
    /// Who has a certificate of these authorities.
    pub client_authorities: Option<PathBuf>,
}

/// Why nobody can be let in.
#[derive(Debug)]
pub struct DoorError(String);

impl fmt::Display for DoorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is asked of clients; a reload puts another in its place.
#[derive(Debug)]
pub struct RemoteDoor(RwLock<Lock>);

/// One thing that is asked of clients.
#[derive(Clone, Debug)]
pub struct Lock {
    tls: Arc<ServerConfig>,
    token: Option<Token>,
}

impl RemoteDoor {
    pub fn new(settings: &Settings) -> Result<Self, DoorError> {
        Ok(Self(RwLock::new(Lock::new(settings)?)))
    }

    /// Asks for this from now on.
    pub fn replace(&self, lock: Lock) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = lock;
    }

    fn lock(&self) -> Lock {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Lock {
    /// Reads the files that the settings name.
    pub fn new(settings: &Settings) -> Result<Self, DoorError> {
        let failure = |error: &dyn fmt::Display| DoorError(error.to_string());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (_, key) = load_pair(&settings.certificate).map_err(|error| failure(&error))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| failure(&error))?;
        let Access { token, client_authorities } = &settings.access;
        let builder = match client_authorities {
            None if token.is_none() => return Err(DoorError("neither a token nor authorities of clients".to_owned())),
            None => builder.with_no_client_auth(),
            Some(file) => {
                let named = |error: &dyn fmt::Display| DoorError(format!("{}: {error}", file.display()));
                let verifier = Trust::read(Some(file)).and_then(|trust| trust.of_clients(&provider));
                builder.with_client_cert_verifier(verifier.map_err(|error| named(&error))?)
            }
        };
        let tls = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        Ok(Self { tls: Arc::new(tls), token: token.clone() })
    }
}

/// Lets a request pass that brings the token, where one is asked for. Nothing of another one is read.
pub(super) async fn check(State(door): State<Arc<RemoteDoor>>, request: Request, next: Next) -> Response {
    let Some(token) = door.lock().token else { return next.run(request).await };
    let brought = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let brought = brought.and_then(|value| value.split_once(' '));
    let is_it = brought.is_some_and(|(scheme, brought)| {
        scheme.eq_ignore_ascii_case("bearer") && bool::from(brought.trim().as_bytes().ct_eq(token.expose().as_bytes()))
    });
    if is_it {
        return next.run(request).await;
    }
    debug!("a request to the admin API without its token");
    let refusal = Refusal::new(
        StatusCode::UNAUTHORIZED,
        "the admin API of this server asks for its token, and got none or another one",
    );
    ([(header::WWW_AUTHENTICATE, "Bearer")], refusal).into_response()
}

/// Connections whose handshake is done.
pub(super) struct Arrivals {
    established: mpsc::Receiver<(Bounded<TlsStream<TcpStream>>, SocketAddr)>,
    address: SocketAddr,
}

impl Arrivals {
    /// Accepts until dropped; a handshake keeps no other one waiting.
    pub(super) fn of(listener: TcpListener, door: Arc<RemoteDoor>) -> Self {
        let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let (to, established) = mpsc::channel(1);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tokio::spawn(async move {
            // A closed semaphore cannot be: nobody closes it.
            while let Ok(place) = Arc::clone(&places).acquire_owned().await {
                tokio::select! {
                    () = to.closed() => return,
                    accepted = listener.accept() => match accepted {
                        Ok((stream, from)) => {
                            let (door, to) = (Arc::clone(&door), to.clone());
                            tokio::spawn(async move {
                                match timeout(HANDSHAKE, TlsAcceptor::from(door.lock().tls).accept(stream)).await {
                                    Ok(Ok(stream)) => _ = to.send((Bounded::new(stream, LIFETIME, place), from)).await,
                                    Ok(Err(error)) => debug!(%error, client = %from, "no handshake for the admin API"),
                                    Err(_) => debug!(client = %from, "no handshake for the admin API in time"),
                                }
                            });
                        }
                        Err(error) => {
                            debug!(%error, "cannot accept for the admin API, trying again");
                            sleep(PAUSE).await;
                        }
                    },
                }
            }
        });
        Self { established, address }
    }
}

impl axum::serve::Listener for Arrivals {
    type Io = Bounded<TlsStream<TcpStream>>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.established.recv().await {
            Some(established) => established,
            // Whoever accepts has panicked.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
