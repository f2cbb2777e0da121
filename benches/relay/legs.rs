//! Clients over TCP and TLS: connections, messages on them, and their dialogs.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ferryd::stun::Message;
use ferryd::stun::framing::frame_len;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, ProtocolVersion, SignatureScheme};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::dialog::{Ask, Dialog};
use crate::failure::{Doing, Failure, Result};
use crate::machine::now_ns;
use crate::place;
use crate::server::Running;
use crate::watch::{Phase, Stopwatch};

/// Addresses that connections come from, so that no TIME-WAIT and no limit for each source is met.
const SOURCES: u32 = u32::from_be_bytes([0, 32, 0, 0]);
const SOURCES_MASK: u32 = 0x000F_FFFF;
const PATIENCE_NS: u64 = 10_000_000_000;
/// Connections that are set up at once.
const SETUP_WINDOW: usize = 16;
const READ_BYTES: usize = 64 << 10;

/// What a leg runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Tcp,
    Tls,
}

/// Makes connections.
pub(crate) struct Dialer {
    server: SocketAddrV4,
    tls: Option<Arc<ClientConfig>>,
    made: u32,
}

impl Dialer {
    pub(crate) fn new(server: &Running, carrier: Carrier) -> Result<Self> {
        let (server, tls) = match carrier {
            Carrier::Tcp => (server.plain(), None),
            Carrier::Tls => (server.tls(), Some(client_config()?)),
        };
        Ok(Self { server, tls, made: 0 })
    }

    pub(crate) fn connect(&mut self) -> Result<Leg> {
        let source = place::at(SOURCES + (self.made & SOURCES_MASK) + 1);
        self.made += 1;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).doing("open a TCP socket")?;
        socket.bind(&SockAddr::from(SocketAddrV4::new(source, 0))).doing(format_args!("bind to {source}"))?;
        let to = SockAddr::from(self.server);
        socket.connect_timeout(&to, Duration::from_secs(5)).doing(format_args!("connect to {}", self.server))?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).doing("set TCP_NODELAY")?;
        stream.set_nonblocking(true).doing("make a connection non-blocking")?;
        let name = ServerName::from(std::net::IpAddr::from(*self.server.ip()));
        let tls = self.tls.clone().map(|config| ClientConnection::new(config, name)).transpose();
        let tls = tls.doing("begin a TLS handshake")?.map(Box::new);
        Ok(Leg { stream, tls, incoming: Vec::new(), outgoing: VecDeque::new() })
    }
}

/// A connection.
pub(crate) struct Leg {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// What arrived and was not taken yet.
    incoming: Vec<u8>,
    /// What was queued on a plain connection.
    outgoing: VecDeque<u8>,
}

impl Leg {
    /// Queues a message; over TLS it becomes a record of its own.
    pub(crate) fn queue(&mut self, message: &[u8]) -> Result<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(message).doing("write to TLS"),
            None => {
                self.outgoing.extend(message);
                Ok(())
            }
        }
    }

    /// Whether something waits to be written.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.outgoing.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Writes what the kernel takes.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while self.is_blocked() {
            let written = match &mut self.tls {
                Some(tls) => tls.write_tls(&mut self.stream),
                None => self.stream.write(self.outgoing.make_contiguous()).inspect(|len| {
                    self.outgoing.drain(..*len);
                }),
            };
            match written {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).doing("write to the server"),
            }
        }
        Ok(())
    }

    /// Reads what is there, once; `each` gets every whole message. Returns how many there were.
    pub(crate) fn read(&mut self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<usize> {
        let had = self.incoming.len();
        let read = match &mut self.tls {
            Some(tls) => tls.read_tls(&mut self.stream),
            None => {
                self.incoming.resize(had + READ_BYTES, 0);
                let read = self.stream.read(&mut self.incoming[had..]);
                self.incoming.truncate(had + read.as_ref().map_or(0, |len| *len));
                read
            }
        };
        match read {
            Ok(0) => return Err(Failure::new("the server closed a connection")),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error).doing("read from the server"),
        }
        if let Some(tls) = &mut self.tls {
            let state = tls.process_new_packets().doing("understand the server's TLS")?;
            let plain = state.plaintext_bytes_to_read();
            self.incoming.resize(had + plain, 0);
            tls.reader().read_exact(&mut self.incoming[had..]).doing("read from TLS")?;
        }
        let (mut begin, mut count) = (0, 0);
        while let Ok(Some(len)) = frame_len(&self.incoming[begin..]) {
            let Some(message) = self.incoming.get(begin..begin + len) else { break };
            each(message)?;
            (begin, count) = (begin + len, count + 1);
        }
        self.incoming.drain(..begin);
        Ok(count)
    }

    /// The TLS version, as a number for the table.
    pub(crate) fn tls_version(&self) -> Option<f64> {
        let version = self.tls.as_ref()?.protocol_version()?;
        let known = [(ProtocolVersion::TLSv1_3, 1.3), (ProtocolVersion::TLSv1_2, 1.2)];
        known.iter().find(|(known, _)| *known == version).map(|(_, number)| *number)
    }

    /// Closes with a reset: no TIME-WAIT is left behind.
    pub(crate) fn abandon(self) {
        // Without it the connection lingers, which costs memory and nothing else.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// A connection and what is asked on it.
struct Talking {
    leg: Leg,
    dialog: Dialog,
    begin_ns: u64,
}

impl Talking {
    fn new(dialer: &mut Dialer, seed: u64, asks: &[Ask]) -> Result<Self> {
        let mut this = Self { leg: dialer.connect()?, dialog: Dialog::new(seed, asks), begin_ns: now_ns() };
        this.ask(&mut Vec::new())?;
        Ok(this)
    }

    fn ask(&mut self, request: &mut Vec<u8>) -> Result<()> {
        request.clear();
        self.dialog.write_request(request);
        self.leg.queue(request)?;
        self.leg.flush()
    }

    /// Goes on as far as it can; true when the dialog is done.
    fn go_on(&mut self, request: &mut Vec<u8>) -> Result<bool> {
        let Self { leg, dialog, .. } = self;
        let mut answered = false;
        leg.read(|bytes| {
            let message = Message::parse(bytes).map_err(|_| Failure::new("the server sent no STUN message"))?;
            answered |= dialog.handle(&message)?;
            Ok(())
        })?;
        if self.dialog.is_done() {
            return Ok(true);
        }
        if answered {
            self.ask(request)?;
        }
        self.leg.flush()?;
        if now_ns() > self.begin_ns + PATIENCE_NS {
            return Err(Failure::new("the server does not answer on a connection"));
        }
        Ok(false)
    }
}

/// Connections that are set up.
pub(crate) struct Legs {
    pub(crate) legs: Vec<(Leg, Dialog)>,
}

impl Legs {
    /// Connects and carries dialogs to their end; `asks` tells what each connection asks for.
    pub(crate) fn set_up(
        server: &Running,
        carrier: Carrier,
        count: usize,
        asks: impl Fn(usize) -> Vec<Ask>,
    ) -> Result<Self> {
        let mut dialer = Dialer::new(server, carrier)?;
        let mut talking: VecDeque<Talking> = VecDeque::new();
        let (mut legs, mut begun) = (Vec::new(), 0);
        let mut request = Vec::new();
        while legs.len() < count {
            while begun < count && talking.len() < SETUP_WINDOW {
                talking.push_back(Talking::new(&mut dialer, begun as u64, &asks(begun))?);
                begun += 1;
            }
            for _ in 0..talking.len() {
                let Some(mut one) = talking.pop_front() else { break };
                if one.go_on(&mut request)? {
                    legs.push((one.leg, one.dialog));
                } else {
                    talking.push_back(one);
                }
            }
        }
        Ok(Self { legs })
    }
}

/// Lets clients connect over TLS, ask and leave until the watch ends, `window` at a time; the watch counts those that
/// had all their answers. Returns the TLS version.
pub(crate) fn come_and_go(server: &Running, asks: &[Ask], window: usize, watch: &mut Stopwatch) -> Result<Option<f64>> {
    let mut dialer = Dialer::new(server, Carrier::Tls)?;
    let mut talking: Vec<Talking> = Vec::new();
    let (mut done, mut request) = (0_u64, Vec::new());
    while watch.tick(now_ns(), [done, 0])? != Phase::Over {
        if talking.len() < window {
            talking.push(Talking::new(&mut dialer, talking.len() as u64, asks)?);
        }
        for one in &mut talking {
            if one.go_on(&mut request)? {
                done += 1;
                let next = Talking::new(&mut dialer, done, asks)?;
                std::mem::replace(one, next).leg.abandon();
            }
        }
    }
    let version = talking.iter().find_map(|one| one.leg.tls_version());
    talking.into_iter().for_each(|one| one.leg.abandon());
    Ok(version)
}

/// TLS 1.3 or 1.2 (coturn 4.6 has no more) with P-256 (coturn 4.6 has no other), a full handshake each time, and no look at
/// the certificate: the generator's time is dear.
fn client_config() -> Result<Arc<ClientConfig>> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::SECP256R1];
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder =
        builder.with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12]).doing("configure TLS")?;
    let verifier = Arc::new(AnyCertificate { schemes });
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Takes any certificate.
#[derive(Debug)]
struct AnyCertificate {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
