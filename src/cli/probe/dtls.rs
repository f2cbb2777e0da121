//! An association of DTLS from a client's end (RFC 7350), by OpenSSL over a socket.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{Error, ErrorCode, Ssl, SslContext, SslMethod, SslOptions, SslStream, SslVerifyMode, SslVersion};
use rustls::pki_types::CertificateDer;
use tokio::net::UdpSocket;

use super::STEP_TIMEOUT;
use super::connection::{Ends, udp_socket};
use super::tls::Trust;
use super::words::Failure;

const STEP: &str = "dtls";
/// How often the library looks whether a flight is to be sent again.
const LOOK: Duration = Duration::from_millis(100);
/// Handshake datagrams pass every path of IPv6, with room for a tunnel.
const HANDSHAKE_MTU: u32 = 1200;
/// The longest record with its header.
const DATAGRAM_MAX: usize = 18_000;

/// An established association.
pub(super) struct Session {
    socket: UdpSocket,
    stream: Mutex<SslStream<Pipe>>,
}

/// What OpenSSL reads and writes: whole datagrams.
#[derive(Debug, Default)]
struct Pipe {
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

/// Completes the handshake and verifies the certificate; returns the association and what was agreed on.
pub(super) async fn connect(
    host: &str,
    address: SocketAddr,
    trust: &Trust,
) -> Result<(Session, Ends, String), Failure> {
    let (socket, ends) = udp_socket(address).await?;
    let stream = stream(host).map_err(|error| Failure::new(STEP, format!("cannot begin ({error})")))?;
    let session = Session { socket, stream: Mutex::new(stream) };
    let silence = || {
        let words = format!(
            "nothing answers dtls on {address}; open the port for udp in the firewall and security group, and check that \
             the server has a certificate and answers dtls there: plain TURN is probed by turn:"
        );
        Failure::new(STEP, words)
    };
    tokio::time::timeout(STEP_TIMEOUT, session.handshake(address)).await.unwrap_or_else(|_| Err(silence()))?;
    let (version, chain) = session.shown();
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    // Before anything is said to the server.
    let certificate = trust.judge(STEP, host, &chain)?;
    Ok((session, ends, format!("{}, {certificate}", version.replace("DTLSv", "DTLS "))))
}

fn stream(host: &str) -> Result<SslStream<Pipe>, ErrorStack> {
    let mut builder = SslContext::builder(SslMethod::dtls_client())?;
    builder.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
    // The MTU is told, not asked for.
    builder.set_options(SslOptions::NO_QUERY_MTU);
    // The chain is judged afterwards, by what judges it in TLS.
    builder.set_verify(SslVerifyMode::NONE);
    let mut ssl = Ssl::new(&builder.build())?;
    ssl.set_mtu(HANDSHAKE_MTU)?;
    if host.parse::<IpAddr>().is_err() {
        ssl.set_hostname(host)?;
    }
    SslStream::new(ssl, Pipe::default())
}

impl Session {
    async fn handshake(&self, address: SocketAddr) -> Result<(), Failure> {
        loop {
            let step = self.lock().connect();
            let sent = self.flush().await;
            match step {
                Ok(()) => return Ok(()),
                Err(error) if error.code() == ErrorCode::WANT_READ => {}
                Err(error) => return Err(Failure::new(STEP, failed_words(&error, address))),
            }
            let heard = match sent {
                Ok(()) => self.hear().await,
                failed => failed,
            };
            match heard {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Err(Failure::udp_refused(STEP, address));
                }
                Err(error) => return Err(Failure::connection(address, &error)),
                Ok(()) => {}
            }
        }
    }

    /// The version, and the server's chain.
    fn shown(&self) -> (&'static str, Vec<Vec<u8>>) {
        let stream = self.lock();
        let chain = stream.ssl().peer_cert_chain();
        let chain = chain.into_iter().flatten().filter_map(|certificate| certificate.to_der().ok()).collect();
        (stream.ssl().version_str(), chain)
    }

    /// The next message.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.lock().ssl_read(buffer);
            self.flush().await?;
            match read {
                Ok(length) => return Ok(length),
                Err(error) if error.code() == ErrorCode::WANT_READ => self.hear().await?,
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the association was ended"));
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Sends one message as one record.
    pub(super) async fn send(&self, message: &[u8]) -> io::Result<()> {
        let written = self.lock().ssl_write(message);
        written.map_err(io::Error::other)?;
        self.flush().await
    }

    /// Says that the association ends.
    pub(super) async fn close(&self) {
        // One that has ended already says nothing more.
        let _ = self.lock().shutdown();
        let _ = self.flush().await;
    }

    /// Takes a datagram in, or gives up after a while.
    async fn hear(&self) -> io::Result<()> {
        let mut datagram = vec![0; DATAGRAM_MAX];
        if let Ok(received) = tokio::time::timeout(LOOK, self.socket.recv(&mut datagram)).await {
            datagram.truncate(received?);
            self.lock().get_mut().incoming = Some(datagram);
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        loop {
            let next = self.lock().get_mut().outgoing.pop_front();
            let Some(datagram) = next else { return Ok(()) };
            self.socket.send(&datagram).await?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, SslStream<Pipe>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed_words(error: &Error, address: SocketAddr) -> String {
    format!("the handshake with {address} fails ({error}); look into the log of the server")
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let datagram = self.incoming.take().ok_or(io::ErrorKind::WouldBlock)?;
        let length = datagram.len().min(buffer.len());
        buffer[..length].copy_from_slice(&datagram[..length]);
        Ok(length)
    }
}

impl Write for Pipe {
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        self.outgoing.push_back(datagram.to_vec());
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
