//! DTLS 1.2 over UDP (RFC 6347, RFC 7350): the stateless first flight, and associations in memory.
//!
//! Nothing here has a socket: datagrams go in, datagrams and messages come out, and the worker drives the timers. What a
//! source has not proved leaves no trace: [`hello`] answers a ClientHello with a cookie and forgets it, and an
//! [`Association`] is made of the one that brings the cookie back. The protocol itself is OpenSSL's, behind the Cargo
//! feature `dtls`; without it [`IS_BUILT_IN`] is false and no association can be made.

pub mod hello;

#[cfg(feature = "dtls")]
mod openssl;
#[cfg(not(feature = "dtls"))]
#[path = "absent.rs"]
mod openssl;

use std::sync::Arc;

pub use self::hello::{ClientHello, Cookies, Opening, Path, is_dtls, records};
pub use self::openssl::{Association, IS_BUILT_IN};
pub(super) use self::openssl::{Identity, identity};

use super::sni::Certificates;
use super::tls::TlsError;

/// The longest message of one record (RFC 6347 section 4.1.1).
pub const MESSAGE_LEN_MAX: usize = 16_384;

/// What workers need to answer DTLS; clones share certificates and the key of the cookies.
#[derive(Clone, Debug)]
pub struct DtlsConfig {
    certificates: Arc<Certificates>,
    pub cookies: Cookies,
}

impl DtlsConfig {
    pub(super) fn new(certificates: Arc<Certificates>) -> Result<Self, TlsError> {
        Ok(Self { certificates, cookies: Cookies::new()? })
    }

    /// Begins an association with a client that has proved its address: `hello` has a verified cookie. Its datagram is
    /// then the first to be given to [`Association::handshake`].
    ///
    /// `None` when the library refuses, for want of memory.
    pub fn accept(&self, hello: &ClientHello<'_>, buffers: &mut DtlsBuffers) -> Option<Association> {
        let identity = self.certificates.identity(hello.server_name(), &hello.signature_schemes())?;
        Association::new(&identity, &self.certificates, hello, buffers)
    }
}

/// What a handshake has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    Pending,
    Done,
    Failed(Failure),
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The client sent an alert: it dislikes the certificate, or knows no common cipher.
    Alert,
    /// The client broke the protocol or offers nothing that is spoken here.
    Protocol,
}

/// What [`Association::receive`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message of so many bytes, in [`DtlsBuffers::take_message`].
    Message(usize),
    /// Nothing more.
    Nothing,
    /// The client has ended the association, or broken it.
    End,
}

/// The buffers that the associations of a worker share: between two calls an association has none.
#[derive(Debug, Default)]
pub struct DtlsBuffers {
    pipe: Pipe,
    message: Vec<u8>,
}

/// The datagram that goes in, and those that come out.
#[derive(Debug, Default)]
struct Pipe {
    incoming: Vec<u8>,
    has_incoming: bool,
    outgoing: Vec<u8>,
    /// Where each outgoing datagram ends.
    ends: Vec<usize>,
}

impl DtlsBuffers {
    /// The datagrams to send, in order, until [`clear`](Self::clear).
    pub fn outgoing(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.pipe.ends.iter().copied());
        starts.zip(&self.pipe.ends).map(|(start, end)| &self.pipe.outgoing[start..*end])
    }

    /// Forgets what was sent.
    pub fn clear(&mut self) {
        self.pipe.outgoing.clear();
        self.pipe.ends.clear();
    }

    /// The message that was received last, to work on; to be put back by [`restore`](Self::restore).
    pub fn take_message(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.message)
    }

    /// Gives the memory back.
    pub fn restore(&mut self, message: Vec<u8>) {
        self.message = message;
    }

    #[cfg_attr(not(feature = "dtls"), expect(dead_code, reason = "no association is there to be given one"))]
    fn put(&mut self, datagram: &[u8]) {
        self.pipe.incoming.clear();
        self.pipe.incoming.extend_from_slice(datagram);
        self.pipe.has_incoming = true;
    }
}
