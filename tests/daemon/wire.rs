//! A client's way to the server: datagrams, or messages on a byte stream, plain or in TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferryd::stun::framing::frame_len;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::PATIENCE;
use crate::certificate::Certificate;

pub(crate) enum Wire {
    Udp(UdpSocket),
    Stream(Stream),
    #[cfg(feature = "dtls")]
    Dtls(crate::association::Association),
}

impl Wire {
    /// Whether what is sent may get lost, so that it is sent again.
    pub(crate) fn loses_messages(&self) -> bool {
        !matches!(self, Self::Stream(_))
    }

    /// The port that the server is to see.
    pub(crate) fn local_port(&self) -> u16 {
        let address = match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Stream(stream) => stream.socket.local_addr(),
            #[cfg(feature = "dtls")]
            Self::Dtls(association) => association.socket().local_addr(),
        };
        address.unwrap().port()
    }

    pub(crate) fn send(&mut self, message: &[u8]) {
        match self {
            Self::Udp(socket) => assert_eq!(socket.send(message).unwrap(), message.len()),
            Self::Stream(stream) => {
                let mut bytes = message.to_vec();
                // RFC 8656 section 12.5: on streams ChannelData "MUST be padded to a multiple of four bytes".
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                stream.write(&bytes);
            }
            #[cfg(feature = "dtls")]
            Self::Dtls(association) => association.send(message),
        }
    }

    /// The next message; `None` when none comes in time.
    pub(crate) fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        match self {
            Self::Udp(socket) => loop {
                let mut buffer = vec![0; 65_536];
                socket.set_read_timeout(Some(time_left(deadline)?)).unwrap();
                match socket.recv(&mut buffer) {
                    Ok(count) => {
                        buffer.truncate(count);
                        return Some(buffer);
                    }
                    Err(error) if is_timeout(&error) => return None,
                    // The server's socket is closed for the moment, while it starts again.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) => panic!("the socket fails: {error}"),
                }
            },
            Self::Stream(stream) => stream.receive(deadline),
            #[cfg(feature = "dtls")]
            Self::Dtls(association) => association.receive(deadline),
        }
    }
}

/// A connection of bytes, from which messages are taken.
pub(crate) struct Stream {
    bytes: Box<dyn Bytes>,
    socket: TcpStream,
    received: Vec<u8>,
}

trait Bytes: Read + Write + Send {}

impl<T: Read + Write + Send> Bytes for T {}

impl Stream {
    pub(crate) fn plain(server: SocketAddr) -> Self {
        let socket = connect(server);
        Self { bytes: Box::new(socket.try_clone().unwrap()), socket, received: Vec::new() }
    }

    /// TLS, to a server with this certificate.
    pub(crate) fn tls(server: SocketAddr, certificate: &Certificate) -> io::Result<Self> {
        Self::tls_behind(server, certificate, b"")
    }

    /// TLS, behind what a proxy says first.
    pub(crate) fn tls_behind(server: SocketAddr, certificate: &Certificate, preamble: &[u8]) -> io::Result<Self> {
        let socket = connect(server);
        (&socket).write_all(preamble)?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut session = ClientConnection::new(Arc::new(certificate.client_config()), name).unwrap();
        let mut transport = socket.try_clone().unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut transport)?;
        }
        Ok(Self { bytes: Box::new(StreamOwned::new(session, transport)), socket, received: Vec::new() })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.bytes.write_all(bytes).unwrap();
        self.bytes.flush().unwrap();
    }

    /// What has come, when nothing of it is a message: at least one byte; none at the end.
    pub(crate) fn read(&mut self) -> Vec<u8> {
        if !self.received.is_empty() {
            return std::mem::take(&mut self.received);
        }
        let mut buffer = [0; 65_536];
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        match self.bytes.read(&mut buffer) {
            Ok(count) => buffer[..count].to_vec(),
            Err(error) if is_end(&error) => Vec::new(),
            Err(error) => panic!("the connection fails: {error}"),
        }
    }

    /// Waits for something to read, and leaves it unread.
    pub(crate) fn peek(&self) {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(self.socket.peek(&mut [0; 1]).unwrap(), 1);
    }

    /// Exactly so many bytes.
    pub(crate) fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let more = self.read();
            assert!(!more.is_empty(), "the connection ends after {} of {count} bytes", bytes.len());
            bytes.extend(more);
        }
        self.received = bytes.split_off(count);
        bytes
    }

    /// Says that nothing more will come.
    pub(crate) fn close_half(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    pub(crate) fn receive(&mut self, deadline: Instant) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = frame_len(&self.received).unwrap().filter(|length| *length <= self.received.len()) {
                return Some(self.received.drain(..length).collect());
            }
            let mut buffer = [0; 65_536];
            self.socket.set_read_timeout(Some(time_left(deadline)?)).unwrap();
            match self.bytes.read(&mut buffer) {
                Ok(0) => panic!("the server has closed the connection"),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if is_timeout(&error) => return None,
                Err(error) => panic!("the connection fails: {error}"),
            }
        }
    }

    /// Waits for the server's end of the connection; what it said before.
    pub(crate) fn rest(mut self) -> Vec<u8> {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 4096];
        loop {
            match self.bytes.read(&mut buffer) {
                Ok(0) => return self.received,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                // What the server has not read is answered with a reset; TLS wants more than an end.
                Err(error) if is_end(&error) => return self.received,
                Err(error) => panic!("the server does not close the connection: {error}"),
            }
        }
    }
}

fn connect(server: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(server).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn time_left(deadline: Instant) -> Option<Duration> {
    Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
}
