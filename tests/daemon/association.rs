//! A client's side of DTLS, by OpenSSL over a UDP socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslStream, SslVerifyMode, SslVersion,
};
use openssl::x509::X509;

use crate::PATIENCE;
use crate::certificate::Certificate;
use crate::place;

/// How long the socket waits before OpenSSL looks at its timers.
const LOOK: Duration = Duration::from_millis(100);

/// An association that is established, or on its way there.
pub(crate) struct Association {
    stream: SslStream<Datagrams>,
}

/// A connected socket: a read is a datagram, and so is a write.
pub(crate) struct Datagrams {
    socket: UdpSocket,
    /// What is to be sent in one datagram.
    together: Option<Vec<u8>>,
    /// Fragments of a ClientHello that went out: records of a handshake whose message has more than the record.
    fragments: usize,
}

impl Read for Datagrams {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(buffer)
    }
}

impl Write for Datagrams {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes[0] == 22 && bytes[13] == 1 && bytes[14..17] != bytes[22..25] {
            self.fragments += 1;
        }
        match &mut self.together {
            Some(together) => together.extend_from_slice(bytes),
            None => _ = self.socket.send(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a client trusts: this certificate alone.
pub(crate) fn trusting(certificate: &Certificate) -> SslContextBuilder {
    let mut builder = SslContextBuilder::new(SslMethod::dtls_client()).unwrap();
    builder.set_min_proto_version(Some(SslVersion::DTLS1_2)).unwrap();
    builder.set_verify(SslVerifyMode::PEER);
    // The MTU is told, not asked for.
    builder.set_options(SslOptions::NO_QUERY_MTU);
    let pem = std::fs::read(&certificate.certificate).unwrap();
    builder.cert_store_mut().add_cert(X509::from_pem(&pem).unwrap()).unwrap();
    builder
}

/// A socket of its own, which hears nobody but the server.
pub(crate) fn socket(server: SocketAddr) -> UdpSocket {
    let here = if place::namespace().is_some() { place::here().into() } else { server.ip() };
    let socket = UdpSocket::bind((here, 0)).unwrap();
    socket.connect(server).unwrap();
    socket
}

impl Association {
    /// Shakes hands with a server that has this certificate.
    pub(crate) fn open(server: SocketAddr, certificate: &Certificate) -> Self {
        Self::over(socket(server), &trusting(certificate).build(), "localhost").unwrap()
    }

    /// Shakes hands over a socket, asking for a name.
    pub(crate) fn over(socket: UdpSocket, context: &SslContext, name: &str) -> Result<Self, openssl::ssl::Error> {
        Self::with_mtu(socket, context, name, 1400)
    }

    /// Shakes hands in datagrams of so many bytes at most.
    pub(crate) fn with_mtu(
        socket: UdpSocket,
        context: &SslContext,
        name: &str,
        mtu: u32,
    ) -> Result<Self, openssl::ssl::Error> {
        let mut association = Self::begin(socket, context, name, mtu);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match association.stream.connect() {
                Ok(()) => return Ok(association),
                Err(error) if error.code() == ErrorCode::WANT_READ && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn begin(socket: UdpSocket, context: &SslContext, name: &str, mtu: u32) -> Self {
        socket.set_read_timeout(Some(LOOK)).unwrap();
        let mut ssl = Ssl::new(context).unwrap();
        ssl.set_mtu(mtu).unwrap();
        ssl.set_hostname(name).unwrap();
        ssl.param_mut().set_host(name).unwrap();
        Self { stream: SslStream::new(ssl, Datagrams { socket, together: None, fragments: 0 }).unwrap() }
    }

    /// Fragments of its ClientHello.
    pub(crate) fn fragments(&self) -> usize {
        self.stream.get_ref().fragments
    }

    pub(crate) fn ssl(&self) -> &openssl::ssl::SslRef {
        self.stream.ssl()
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.stream.get_ref().socket
    }

    pub(crate) fn send(&mut self, message: &[u8]) {
        assert_eq!(self.stream.ssl_write(message).unwrap(), message.len());
    }

    /// Sends the records of several messages in one datagram.
    pub(crate) fn send_together(&mut self, messages: &[Vec<u8>]) {
        self.stream.get_mut().together = Some(Vec::new());
        messages.iter().for_each(|message| self.send(message));
        let together = self.stream.get_mut().together.take().unwrap();
        self.socket().send(&together).unwrap();
    }

    /// The next message; `None` when none comes in time.
    pub(crate) fn receive(&mut self, deadline: Instant) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket().set_read_timeout(Some(left)).unwrap();
            match self.stream.ssl_read(&mut buffer) {
                Ok(len) => return Some(buffer[..len].to_vec()),
                Err(error) if error.code() == ErrorCode::WANT_READ => {}
                Err(error) => panic!("the association fails: {error}"),
            }
        }
    }

    /// Says that it ends, and waits until the server has said so too.
    pub(crate) fn close(mut self) {
        self.stream.shutdown().unwrap();
        self.await_close();
    }

    /// Waits for the server to end it. What comes before is an answer once more, to a request that was sent twice.
    pub(crate) fn await_close(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.socket().set_read_timeout(Some(LOOK)).unwrap();
        loop {
            match self.stream.ssl_read(&mut [0; 100]) {
                Ok(_) => {}
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => return,
                Err(error) if error.code() == ErrorCode::WANT_READ => {}
                other => panic!("{other:?} is no close_notify"),
            }
            assert!(Instant::now() < deadline, "the server does not close the association");
        }
    }
}
