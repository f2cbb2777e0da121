//! Sockets that the service manager opened and passed on (sd_listen_fds(3)).

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Socket, Type};

use super::open_error::OpenError;
use super::socket::{UdpOptions, adopt_udp_listeners};

/// What was passed on and nobody has taken yet.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<Passed>,
}

/// A bound IP socket.
#[derive(Debug)]
struct Passed {
    /// `FileDescriptorName=` of the socket unit.
    name: String,
    address: SocketAddr,
    is_udp: bool,
    socket: Socket,
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = if self.is_udp { "udp" } else { "tcp" };
        write!(f, "\"{}\" ({transport} {})", self.name, self.address)
    }
}

/// Why a socket that was passed on is of no use.
#[derive(Debug)]
pub enum InheritError {
    /// `LISTEN_FDS` and its companions contradict each other or the descriptors.
    Environment(io::Error),
    /// Neither a bound UDP socket nor a listening TCP socket.
    Kind(String),
    /// An IPv6 socket that takes IPv4 too.
    DualStack(String),
    /// More sockets of one UDP listener than workers read.
    TooMany { address: SocketAddr, passed: usize, workers: usize },
    /// The workers' further sockets cannot be opened beside the one that was passed on.
    Group { address: SocketAddr, passed: usize, workers: usize, source: OpenError },
    /// No listener has this address and transport.
    Unmatched(Vec<String>),
}

impl fmt::Display for InheritError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(source) => write!(f, "LISTEN_FDS cannot be used ({source})"),
            Self::Kind(socket) => write!(
                f,
                "{socket} is neither a UDP socket nor a listening TCP socket; the socket unit needs ListenDatagram= or \
                 ListenStream= with an address and a port, and Accept=no"
            ),
            Self::DualStack(socket) => write!(
                f,
                "{socket} takes IPv4 as well; the socket unit needs BindIPv6Only=ipv6-only, and 0.0.0.0 beside [::]"
            ),
            Self::TooMany { address, passed, workers } => write!(
                f,
                "{passed} UDP sockets are on {address}, and {workers} workers read one each; remove some from the socket \
                 unit, or set workers = {passed}"
            ),
            Self::Group { address, passed, workers, source } => write!(
                f,
                "{passed} UDP sockets are on {address}, and the other {} of {workers} workers cannot open theirs ({source}); \
                 ListenDatagram= as often as there are workers with ReusePort=yes, or set workers = {passed}",
                workers - passed
            ),
            Self::Unmatched(sockets) => write!(
                f,
                "no listener has the address and transport of {}; make the listeners of the configuration and the socket \
                 unit say the same",
                sockets.join(", ")
            ),
        }
    }
}

/// Descriptors can be owned once.
static TAKEN: AtomicBool = AtomicBool::new(false);

impl Inherited {
    /// Takes what was passed on to this process; empty without `LISTEN_FDS`, and the second time.
    pub fn of_this_process() -> Result<Self, InheritError> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Self::default());
        }
        // Fails for a descriptor that is not open.
        let passed = sd_notify::listen_fds_with_names(false).map_err(InheritError::Environment)?;
        let mut sockets = Vec::new();
        for (descriptor, name) in passed {
            // SAFETY: the descriptor is open, was opened for this process alone (LISTEN_PID), and is taken once.
            let socket = unsafe { Socket::from_raw_fd(descriptor) };
            sockets.push(examine(name, socket)?);
        }
        Ok(Self { sockets })
    }

    fn take(&mut self, address: SocketAddr, is_udp: bool) -> Vec<Socket> {
        let matches = |passed: &mut Passed| passed.address == address && passed.is_udp == is_udp;
        self.sockets.extract_if(.., matches).map(|passed| passed.socket).collect()
    }

    /// The UDP sockets of a listener, one for each worker; `None` if none was passed on.
    ///
    /// Where fewer were, the others are opened beside them, which the kernel permits to the user who opened the first.
    pub fn udp_listeners(
        &mut self,
        address: SocketAddr,
        workers: usize,
        options: &UdpOptions,
    ) -> Result<Option<Vec<UdpSocket>>, InheritError> {
        let sockets = self.take(address, true);
        let passed = sockets.len();
        match passed {
            0 => Ok(None),
            passed if passed > workers => Err(InheritError::TooMany { address, passed, workers }),
            passed => match adopt_udp_listeners(sockets, address, workers, options) {
                Ok(group) => Ok(Some(group)),
                Err(source) => Err(InheritError::Group { address, passed, workers, source }),
            },
        }
    }

    /// The TCP socket of a listener, if one was passed on.
    pub fn tcp_listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let mut sockets = self.take(address, false);
        // Two can have one address with ReusePort=yes; what is left over is reported.
        let first = (!sockets.is_empty()).then(|| sockets.remove(0));
        self.sockets.extend(sockets.into_iter().map(|socket| Passed {
            name: "a second one".to_owned(),
            address,
            is_udp: false,
            socket,
        }));
        first.map(TcpListener::from)
    }

    /// Whether everything has been taken.
    pub fn finish(self) -> Result<(), InheritError> {
        if self.sockets.is_empty() {
            return Ok(());
        }
        Err(InheritError::Unmatched(self.sockets.iter().map(ToString::to_string).collect()))
    }
}

fn examine(name: String, socket: Socket) -> Result<Passed, InheritError> {
    let kind = || InheritError::Kind(format!("\"{name}\""));
    let is_udp = match socket.r#type() {
        Ok(Type::DGRAM) => true,
        Ok(Type::STREAM) if socket.is_listener().unwrap_or(false) => false,
        Ok(_) | Err(_) => return Err(kind()),
    };
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).ok_or_else(kind)?;
    let passed = Passed { name, address, is_udp, socket };
    if address.port() == 0 {
        return Err(InheritError::Kind(passed.to_string()));
    }
    let takes_both = |socket: &Socket| {
        socket.domain().is_ok_and(|domain| domain == Domain::IPV6) && !socket.only_v6().unwrap_or(false)
    };
    if address.ip().is_unspecified() && takes_both(&passed.socket) {
        return Err(InheritError::DualStack(passed.to_string()));
    }
    // Workers and tokio wait before they read.
    passed.socket.set_nonblocking(true).map_err(InheritError::Environment)?;
    Ok(passed)
}
