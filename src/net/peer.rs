//! TCP between a relayed address and its peers: listening, connecting from the same address and port, and one
//! connection with what is known of its two directions.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::accept::{ended_in_the_queue, tune};
use super::headroom::spare;
use super::socket::{OpenError, Purpose, open_tcp};

/// Connections that wait to be accepted: a worker accepts whenever it is awake.
const BACKLOG: i32 = 64;

/// Unsent bytes that the kernel takes beyond what is in flight: one round of the relay. Application data over TCP is
/// nothing that goes stale.
pub(super) const NOT_SENT_LOW_WATER: u32 = 128 * 1024;

/// Opens a non-blocking TCP socket that listens on exactly this relayed address and port, which connections to peers
/// may then share.
///
/// SO_REUSEADDR: connections of an earlier allocation that still wait for their time to be over do not keep it. It is
/// bound without SO_REUSEPORT, so that it fails if anything else listens there, another ferryd included; what connects
/// from the port joins it afterwards.
pub fn open_tcp_relay(address: SocketAddr) -> Result<TcpListener, OpenError> {
    let listener = open_tcp(Purpose::Relay, address, BACKLOG)?;
    spare(&listener).map_err(|error| OpenError::new(Purpose::Relay, address, error))?;
    let shared = SockRef::from(&listener).set_reuse_port(true);
    shared.map_err(|error| OpenError::option(Purpose::Relay, address, "SO_REUSEPORT", error))?;
    Ok(listener)
}

/// Takes the next connection that waits at a relay; `None` when there is none. Errors: descriptors or memory are
/// missing, and what waits goes on waiting; one that would have one of the last descriptors is closed.
pub fn accept(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok(accepted) => return spare(&accepted.0).map(|()| Some(accepted)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if ended_in_the_queue(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A connection with a peer, non-blocking.
#[derive(Debug)]
pub struct PeerStream {
    stream: TcpStream,
    /// The peer sends no more.
    pub(super) read_ended: bool,
    /// The peer has been told that no more comes.
    pub(super) write_ended: bool,
}

impl PeerStream {
    /// Takes a connection that a relay's listener has accepted.
    pub fn accepted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::of(stream)
    }

    /// Begins a connection from a relayed address, where a listener is, to a peer; a writable event tells to ask
    /// [`Self::established`].
    pub fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        spare(&socket)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&from.into())?;
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        Self::of(socket.into())
    }

    fn of(stream: TcpStream) -> io::Result<Self> {
        tune(&stream, NOT_SENT_LOW_WATER)?;
        Ok(Self { stream, read_ended: false, write_ended: false })
    }

    /// How the connection went; `None` while that is not known.
    pub fn established(&self) -> Option<io::Result<()>> {
        match self.stream.take_error() {
            Ok(Some(error)) | Err(error) => Some(Err(error)),
            Ok(None) => match self.stream.peer_addr() {
                Ok(_) => Some(Ok(())),
                Err(error) if error.kind() == ErrorKind::NotConnected => None,
                Err(error) => Some(Err(error)),
            },
        }
    }

    /// Reads what is there; `None` when that is nothing yet, and 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let read = transfer(|| (&self.stream).read(buffer))?;
        self.read_ended |= read == Some(0);
        Ok(read)
    }

    /// Writes what the socket takes; `None` when that is nothing.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        transfer(|| (&self.stream).write(bytes))
    }

    /// Tells the peer that no more comes.
    pub(super) fn end_writing(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.write_ended, true) {
            self.stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }
}

impl AsFd for PeerStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn transfer(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(n) => return Ok(Some(n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::socket::Reason;
    use crate::net::test_support::wait_until;

    /// A relay's listener on a port that was free a moment ago.
    fn relay(ip: &str) -> (TcpListener, SocketAddr) {
        let listener = open_tcp_relay(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<PeerStream> {
        let stream = PeerStream::connect(from, to)?;
        let mut result = None;
        wait_until(|| {
            result = stream.established();
            result.is_some()
        });
        result.unwrap().map(|()| stream)
    }

    #[test]
    fn a_relay_listens_and_connects_from_one_port() {
        for ip in ["127.0.0.1", "::1"] {
            let (listener, address) = relay(ip);
            let peers = [TcpListener::bind((ip, 0)).unwrap(), TcpListener::bind((ip, 0)).unwrap()];
            let mut streams = Vec::new();
            for peer in &peers {
                streams.push(connect(address, peer.local_addr().unwrap()).unwrap());
                assert_eq!(peer.accept().unwrap().1, address, "the peer sees the relayed address");
            }
            let again = PeerStream::connect(address, peers[0].local_addr().unwrap()).map(|stream| stream.established());
            assert!(!matches!(again, Ok(Some(Ok(())))), "one connection to one peer");
            // Others still reach the listener, and one of them may be accepted and connected back to.
            let incoming = TcpStream::connect(address).unwrap();
            let mut accepted = None;
            wait_until(|| {
                accepted = listener.accept().ok();
                accepted.is_some()
            });
            assert_eq!(accepted.unwrap().1, incoming.local_addr().unwrap());
        }
    }

    #[test]
    fn the_port_of_a_relay_is_nobody_elses() {
        let (listener, address) = relay("127.0.0.1");
        assert_eq!(open_tcp_relay(address).unwrap_err().reason, Reason::InUse);
        let peer = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(address, peer.local_addr().unwrap()).unwrap();
        assert_eq!(open_tcp_relay(address).unwrap_err().reason, Reason::InUse);
        drop((listener, stream));
        let plain = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = plain.local_addr().unwrap();
        assert_eq!(open_tcp_relay(taken).unwrap_err().reason, Reason::InUse);
    }

    #[test]
    fn connections_that_have_ended_keep_neither_the_port_nor_the_peer() {
        let peer = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = peer.local_addr().unwrap();
        let (mut listener, address) = relay("127.0.0.1");
        for _ in 0..3 {
            let mut stream = connect(address, to).unwrap();
            let (mut accepted, _) = peer.accept().unwrap();
            // The relay ends first, and its port waits for the time of the connection to be over.
            stream.end_writing().unwrap();
            assert_eq!(accepted.read(&mut [0; 1]).unwrap(), 0);
            drop(accepted);
            wait_until(|| stream.read(&mut [0; 1]).unwrap() == Some(0));
            drop((stream, listener));
            listener = open_tcp_relay(address).unwrap();
        }
    }

    #[test]
    fn a_connection_that_is_refused_says_so() {
        let (_listener, address) = relay("127.0.0.1");
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(connect(address, closed).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}
