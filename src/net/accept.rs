//! From a listening socket to an established stream: first bytes, TLS handshake, deadlines.
//!
//! Runs on tokio. What is [`Established`] leaves tokio and is driven by a worker, as
//! [`Connection`](super::stream::Connection).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ipnet::IpNet;
use rustls::ServerConnection;
use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::StartHandshake;
use tracing::debug;

use super::admission::{AcceptCounters, Admission, ConnectionGuard};
use super::headroom::spare;
use super::proxy::{Announced, Preamble};
use super::tls::TlsAcceptConfig;

/// What a listener answers; the rest of a stream is closed without a byte, and the rest of datagrams dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Plain STUN and TLS, which is DTLS over UDP, told apart by the first bytes.
    Both,
    /// TLS or DTLS alone: what looks like TLS on 443 must answer nothing else.
    Tls,
    /// Plain STUN alone.
    Plain,
}

/// A stream whose client has said its first byte and, for TLS, finished the handshake.
///
/// `tls` may hold bytes of the client that the handshake has read along, decrypted or not.
#[derive(Debug)]
pub struct Established {
    /// Non-blocking, known to no runtime.
    pub stream: std::net::TcpStream,
    pub tls: Option<Box<ServerConnection>>,
    /// Who the client is, by the word of a proxy where that is believed.
    pub client: SocketAddr,
    /// The local address that the client reached, also on a wildcard listener.
    pub server: SocketAddr,
    /// The connection's place under the limits, for as long as it lives.
    pub guard: ConnectionGuard,
}

/// Pause after an `accept` that failed for want of descriptors or memory: 10 tries a second.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A ClientHello with a post-quantum key share is about 1.8 KiB.
const CLIENT_HELLO_READ: usize = 2048;

/// A preamble with a few values is about 100 bytes; longer ones are read in parts.
const PREAMBLE_READ: usize = 512;

/// A browser may be silent for 59 minutes, and NATs forget idle TCP after as little as 4 (RFC 5382 asks for 124).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBES: u32 = 4;
/// Idle + 4 intervals: a client that is gone is noticed in 4 minutes, whether data waits for it or not. The kernel uses
/// this instead of the number of probes, so a shorter time would end idle connections at one lost probe.
const USER_TIMEOUT: Duration = Duration::from_secs(240);

/// Unsent bytes that the kernel takes beyond what is in flight: more would be stale media that cannot be dropped.
/// 16 KiB are 65 ms at 2 Mbit/s.
const NOT_SENT_LOW_WATER: u32 = 16 * 1024;

/// Accepts connections of one listener until dropped, which also ends the handshakes in flight.
///
/// A connection from one of `proxies` begins with a preamble of the PROXY protocol, which names the client; nobody else's
/// may. `sink` gets what is established, from this runtime's threads, and must not block. Everything else ends in a counter of
/// `admission`. Fails only if tokio cannot take the listener; must be called within a tokio runtime.
pub async fn serve<S>(
    listener: std::net::TcpListener,
    accept: Accept,
    proxies: Vec<IpNet>,
    tls: Option<TlsAcceptConfig>,
    admission: Arc<Admission>,
    sink: S,
) -> io::Result<Infallible>
where
    S: Fn(Established) + Send + Sync + 'static,
{
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let door = Arc::new(Door { accept, proxies, tls, admission, sink });
    let mut openings = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted.and_then(spared) {
                Ok((stream, client)) => {
                    AcceptCounters::count(&door.admission.counters.accepted);
                    if let Some(guard) = door.admit(client) {
                        openings.spawn(open(door.clone(), stream, client, guard));
                    }
                }
                Err(error) if ended_in_the_queue(&error) => {}
                Err(error) => {
                    debug!(%error, "cannot accept, trying again");
                    AcceptCounters::count(&door.admission.counters.accept_failed);
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = openings.join_next() => {}
        }
    }
}

/// Closes a connection that would have one of the last descriptors.
fn spared((stream, client): (TcpStream, SocketAddr)) -> io::Result<(TcpStream, SocketAddr)> {
    spare(&stream)?;
    Ok((stream, client))
}

/// What all connections of a listener share.
struct Door<S> {
    accept: Accept,
    proxies: Vec<IpNet>,
    tls: Option<TlsAcceptConfig>,
    admission: Arc<Admission>,
    sink: S,
}

impl<S> Door<S> {
    fn is_proxy(&self, from: SocketAddr) -> bool {
        let ip = from.ip().to_canonical();
        self.proxies.iter().any(|range| range.contains(&ip))
    }

    fn admit(&self, from: SocketAddr) -> Option<ConnectionGuard> {
        if self.is_proxy(from) { self.admission.admit_unnamed() } else { self.admission.admit(from) }
    }
}

/// How a connection ends before it is established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    Unrecognised,
    Preamble,
    /// Counted already.
    SourceLimit,
    FirstByteDeadline,
    ByClient,
    HandshakeAlert,
    HandshakeProtocol,
    HandshakeDeadline,
    HandshakeEof,
    HandshakeIo,
}

impl Closed {
    fn counter(self, counters: &AcceptCounters) -> Option<&AtomicU64> {
        Some(match self {
            Self::Unrecognised => &counters.closed_unrecognised,
            Self::Preamble => &counters.closed_preamble,
            Self::SourceLimit => return None,
            Self::FirstByteDeadline => &counters.closed_deadline,
            Self::ByClient => &counters.closed_by_client,
            Self::HandshakeAlert => &counters.handshake_failed_alert,
            Self::HandshakeProtocol => &counters.handshake_failed_protocol,
            Self::HandshakeDeadline => &counters.handshake_failed_deadline,
            Self::HandshakeEof => &counters.handshake_failed_eof,
            Self::HandshakeIo => &counters.handshake_failed_io,
        })
    }

    fn of_handshake(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(_)) => Self::HandshakeAlert,
            Some(_) => Self::HandshakeProtocol,
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::HandshakeEof,
            None => Self::HandshakeIo,
        }
    }
}

/// What the first byte announces.
enum Opening {
    Tls,
    Stun,
}

async fn open<S>(door: Arc<Door<S>>, stream: TcpStream, from: SocketAddr, mut guard: ConnectionGuard)
where
    S: Fn(Established) + Send + Sync + 'static,
{
    let counters = &door.admission.counters;
    match establish(&door, stream, from, &mut guard).await {
        Ok((stream, client, server, tls)) => {
            let tls = tls.map(Box::new);
            let counter = if tls.is_some() { &counters.established_tls } else { &counters.established_plain };
            AcceptCounters::count(counter);
            (door.sink)(Established { stream, tls, client, server, guard });
        }
        Err(closed) => {
            debug!(client = %from, ?closed, "stream closed before it was established");
            if let Some(counter) = closed.counter(counters) {
                AcceptCounters::count(counter);
            }
        }
    }
}

/// The stream, its client, the local address, and the session.
type EstablishedParts = (std::net::TcpStream, SocketAddr, SocketAddr, Option<ServerConnection>);

async fn establish<S>(
    door: &Door<S>,
    mut stream: TcpStream,
    from: SocketAddr,
    guard: &mut ConnectionGuard,
) -> Result<EstablishedParts, Closed> {
    let limits = door.admission.limits();
    let server = stream.local_addr().map_err(|_| Closed::ByClient)?;
    tune(&stream, NOT_SENT_LOW_WATER).map_err(|_| Closed::ByClient)?;
    let began = async {
        let client = if door.is_proxy(from) { announced(&mut stream, from, guard).await? } else { from };
        Ok((client, first_byte(&stream).await?))
    };
    let (client, opening) =
        timeout(limits.first_byte_deadline, began).await.map_err(|_| Closed::FirstByteDeadline)??;
    match (opening, door.accept, &door.tls) {
        (Opening::Stun, Accept::Both | Accept::Plain, _) => {
            Ok((stream.into_std().map_err(|_| Closed::ByClient)?, client, server, None))
        }
        (Opening::Tls, Accept::Both | Accept::Tls, Some(tls)) => {
            let handshake = handshake(stream, tls, &door.admission);
            let (stream, session) =
                timeout(limits.handshake_deadline, handshake).await.map_err(|_| Closed::HandshakeDeadline)??;
            Ok((stream.into_std().map_err(|_| Closed::HandshakeIo)?, client, server, Some(session)))
        }
        (Opening::Stun, Accept::Tls, _)
        | (Opening::Tls, Accept::Plain, _)
        | (Opening::Tls, Accept::Both | Accept::Tls, None) => Err(Closed::Unrecognised),
    }
}

/// Sets the options of a socket that is connected.
pub(super) fn tune(stream: &impl AsFd, not_sent_low_water: u32) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(not_sent_low_water)
}

/// Reads the preamble of a proxy, and nothing of what follows; returns the client that it names, which then counts as the
/// source of the connection.
async fn announced(
    stream: &mut TcpStream,
    proxy: SocketAddr,
    guard: &mut ConnectionGuard,
) -> Result<SocketAddr, Closed> {
    let (mut preamble, mut buffer) = (Preamble::default(), [0; PREAMBLE_READ]);
    let announced = loop {
        let come = match stream.peek(&mut buffer).await {
            Ok(0) | Err(_) => return Err(Closed::ByClient),
            Ok(come) => come,
        };
        let (taken, announced) = preamble.take(&buffer[..come]).map_err(|_| Closed::Preamble)?;
        stream.read_exact(&mut buffer[..taken]).await.map_err(|_| Closed::ByClient)?;
        if let Some(announced) = announced {
            break announced;
        }
    };
    let client = match announced {
        Announced::Client(client) => client,
        Announced::Proxy => proxy,
    };
    if guard.name(client) { Ok(client) } else { Err(Closed::SourceLimit) }
}

/// Looks at the first byte and leaves it in the socket.
///
/// 0x00 and 0x01 begin STUN messages (RFC 8489 section 5), 0x40 to 0x4F ChannelData (RFC 8656 section 12), 0x16 a TLS
/// handshake record, whose second byte [`client_hello`] checks.
async fn first_byte(stream: &TcpStream) -> Result<Opening, Closed> {
    let mut head = [0; 1];
    match stream.peek(&mut head).await {
        Ok(0) | Err(_) => Err(Closed::ByClient),
        Ok(_) => match head[0] {
            0x16 => Ok(Opening::Tls),
            0x00 | 0x01 | 0x40..=0x4f => Ok(Opening::Stun),
            _ => Err(Closed::Unrecognised),
        },
    }
}

async fn handshake(
    mut stream: TcpStream,
    tls: &TlsAcceptConfig,
    admission: &Admission,
) -> Result<(TcpStream, ServerConnection), Closed> {
    // The semaphore is never closed; without a turn there is no handshake.
    let _turn = admission.handshakes.acquire().await.map_err(|_| Closed::HandshakeDeadline)?;
    let accepted = client_hello(&mut stream).await?;
    let config = tls.config_for(&accepted.client_hello());
    let established = StartHandshake::from_parts(accepted, stream).into_stream(config).await;
    established.map(tokio_rustls::server::TlsStream::into_inner).map_err(|error| Closed::of_handshake(&error))
}

/// Reads a ClientHello and nothing of what may follow it in other records is lost.
///
/// A record that is not TLS by its second byte is closed without an alert, as by any service that is none.
async fn client_hello(stream: &mut TcpStream) -> Result<Accepted, Closed> {
    let mut acceptor = Acceptor::default();
    let mut buffer = [0; CLIENT_HELLO_READ];
    let mut buffered = 0;
    while buffered < 2 {
        buffered += read_some(stream, &mut buffer[buffered..]).await?;
    }
    if buffer[1] != 0x03 {
        return Err(Closed::Unrecognised);
    }
    loop {
        let mut unread = &buffer[..buffered];
        while !unread.is_empty() {
            match acceptor.read_tls(&mut unread) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(Closed::HandshakeProtocol),
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => buffered = read_some(stream, &mut buffer).await?,
            Err((error, alert)) => {
                send_alert(stream, alert);
                return Err(Closed::of_handshake(&io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }
}

async fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<usize, Closed> {
    match stream.read(buffer).await {
        Ok(0) => Err(Closed::HandshakeEof),
        Ok(n) => Ok(n),
        Err(_) => Err(Closed::HandshakeIo),
    }
}

/// Says why, if the socket takes 7 bytes at once: nothing else has been sent on it.
fn send_alert(stream: &TcpStream, mut alert: AcceptedAlert) {
    let mut record = Vec::new();
    if alert.write_all(&mut record).is_ok() {
        // The connection is closed either way.
        let _ = stream.try_write(&record);
    }
}

/// Whether `accept` reports the end of a connection that was still in the queue (accept(2)): the next may follow at once.
pub(super) fn ended_in_the_queue(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::ETIMEDOUT
        )
    )
}

#[cfg(test)]
mod tests;
