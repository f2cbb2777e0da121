//! Associations by OpenSSL, over memory.

use std::ffi::{c_int, c_long};
use std::fmt;
use std::io::{self, Read, Write};
use std::mem::swap;
use std::ptr::null_mut;
use std::sync::{Arc, LazyLock};

use openssl::bn::BigNum;
use openssl::dh::Dh;
use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::pkey::PKey;
use openssl::ssl::{
    AlpnError, Error, ErrorCode, NameType, SniError, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions,
    SslSessionCacheMode, SslStream, SslVersion, select_next_proto,
};
use openssl::x509::X509;
use zeroize::Zeroizing;

use super::{ClientHello, DtlsBuffers, Failure, Handshake, MESSAGE_LEN_MAX, Pipe, Received};
use crate::net::certificate::{CertificateFiles, TlsError};
use crate::net::sni::Certificates;

/// Whether associations can be made.
pub const IS_BUILT_IN: bool = true;

/// RFC 7350 section 3: TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 and TLS_DHE_RSA_WITH_AES_128_GCM_SHA256 "MUST" be supported,
/// "Perfect Forward Secrecy (PFS) cipher suites MUST be preferred over non-PFS cipher suites", of which there are none.
const CIPHERS: &str = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!PSK";
/// The protocols of RFC 7443 in order of preference, each after its length.
const ALPN: &[u8] = b"\x09stun.turn\x12stun.nat-discovery";
/// Handshake datagrams pass every path of IPv6 (RFC 8200 section 5) with room for a tunnel: 1280 - 48 - 32.
const HANDSHAKE_MTU: u32 = 1200;

/// The cookie that the client of an association has brought back.
static COOKIE: LazyLock<Option<Index<Ssl, Vec<u8>>>> = LazyLock::new(|| Ssl::new_ex_index().ok());

/// Where the certificate is chosen when the name that the client asks for is in a fragment to come.
static CERTIFICATES: LazyLock<Option<Index<Ssl, Arc<Certificates>>>> = LazyLock::new(|| Ssl::new_ex_index().ok());

/// A certificate with its key, as OpenSSL has it.
#[derive(Clone)]
pub(in crate::net) struct Identity(SslContext);

/// Loads a pair; rustls has checked that it is one.
pub(in crate::net) fn identity(files: &CertificateFiles) -> Result<Identity, TlsError> {
    let read = |file| std::fs::read(file).map(Zeroizing::new);
    let certificate = read(&files.certificate)
        .map_err(|source| TlsError::UnreadableCertificate { file: files.certificate.clone(), source })?;
    let key = read(&files.key).map_err(|source| TlsError::UnreadableKey { file: files.key.clone(), source })?;
    // The error is not told: it may quote the file.
    context(&certificate, &key)
        .map(Identity)
        .map_err(|_| TlsError::UnsupportedKey { file: files.key.clone(), reason: "OpenSSL refuses it".to_owned() })
}

fn context(certificate: &[u8], key: &[u8]) -> Result<SslContext, ErrorStack> {
    let mut builder = SslContextBuilder::new(SslMethod::dtls_server())?;
    builder.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
    builder.set_cipher_list(CIPHERS)?;
    builder.set_tmp_dh(&*Dh::from_pqg(BigNum::get_rfc3526_prime_2048()?, None, BigNum::from_u32(2)?)?)?;
    builder.set_options(
        SslOptions::COOKIE_EXCHANGE
            | SslOptions::NO_QUERY_MTU
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION
            | SslOptions::NO_TICKET
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    bound_messages(&builder);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_alpn_select_callback(|_, offered| select_next_proto(ALPN, offered).ok_or(AlpnError::NOACK));
    builder.set_servername_callback(|ssl, _| {
        let certificates = CERTIFICATES.and_then(|index| ssl.ex_data(index));
        let identity = certificates.and_then(|certificates| certificates.named(ssl.servername(NameType::HOST_NAME)?));
        // Without another one the certificate that it has will do.
        identity.map_or(Ok(()), |identity| ssl.set_ssl_context(&identity.0).map_err(|_| SniError::NOACK))
    });
    // Cookies have been verified before OpenSSL sees one.
    builder.set_cookie_generate_cb(|ssl, cookie| {
        let known = COOKIE.and_then(|index| ssl.ex_data(index)).map_or(&[][..], Vec::as_slice);
        cookie[..known.len()].copy_from_slice(known);
        Ok(known.len())
    });
    builder.set_cookie_verify_cb(|ssl, cookie| {
        COOKIE.and_then(|index| ssl.ex_data(index)).is_some_and(|known| known == cookie)
    });
    let mut chain = X509::stack_from_pem(certificate)?.into_iter();
    if let Some(leaf) = chain.next() {
        builder.set_certificate(&leaf)?;
    }
    for intermediate in chain {
        builder.add_extra_chain_cert(intermediate)?;
    }
    builder.set_private_key(&*PKey::private_key_from_pem(key)?)?;
    builder.check_private_key()?;
    Ok(builder.build())
}

/// Has OpenSSL put no message together that is longer than it has to: 16 KiB, where the certificates of clients would have
/// 100 KiB. It keeps ten that are ahead of their turn, each in a buffer as long as its first fragment says.
fn bound_messages(builder: &SslContextBuilder) {
    const SET_MAX_CERT_LIST: c_int = 51;
    // SAFETY: the context is the builder's, which outlives the call, and this one takes a number and no pointer.
    unsafe { openssl_sys::SSL_CTX_ctrl(builder.as_ptr(), SET_MAX_CERT_LIST, MESSAGE_LEN_MAX as c_long, null_mut()) };
}

/// An association with one client, from the ClientHello that has proved its address to the end.
///
/// [`handshake`](Self::handshake) until it is done, then [`receive`](Self::receive) and [`send`](Self::send). After each
/// call, [`DtlsBuffers::outgoing`] is to be sent.
pub struct Association {
    stream: SslStream<Pipe>,
}

impl fmt::Debug for Association {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Association").field("state", &self.stream.ssl().state_string_long()).finish()
    }
}

impl Association {
    pub(super) fn new(
        identity: &Identity,
        certificates: &Arc<Certificates>,
        hello: &ClientHello<'_>,
        buffers: &mut DtlsBuffers,
    ) -> Option<Self> {
        let mut ssl = Ssl::new(&identity.0).ok()?;
        ssl.set_ex_data((*COOKIE)?, hello.cookie().to_vec());
        if !hello.is_whole() {
            ssl.set_ex_data((*CERTIFICATES)?, certificates.clone());
        }
        ssl.set_mtu(HANDSHAKE_MTU).ok()?;
        let mut association = Self { stream: SslStream::new(ssl, Pipe::default()).ok()? };
        // OpenSSL gets the ClientHello that was answered without it, so that its numbers are those that the client
        // expects. Its own HelloVerifyRequest goes nowhere.
        let handshake = association.handshake(Some(&hello.without_cookie()), buffers);
        buffers.clear();
        (handshake == Handshake::Pending).then_some(association)
    }

    /// Goes on with the handshake: with a datagram of the client, or without one, so that what is overdue is sent again
    /// (RFC 6347 section 4.2.4).
    pub fn handshake(&mut self, datagram: Option<&[u8]>, buffers: &mut DtlsBuffers) -> Handshake {
        let result = self.with(datagram, buffers, |stream, _| stream.accept());
        match result {
            Ok(()) => Handshake::Done,
            Err(error) if error.code() == ErrorCode::WANT_READ => Handshake::Pending,
            Err(error) => Handshake::Failed(cause(&error)),
        }
    }

    /// Takes a datagram and gives its first message, then without one the next message.
    pub fn receive(&mut self, datagram: Option<&[u8]>, buffers: &mut DtlsBuffers) -> Received {
        let result = self.with(datagram, buffers, |stream, message| {
            message.resize(MESSAGE_LEN_MAX, 0);
            stream.ssl_read(message)
        });
        match result {
            Ok(len) => Received::Message(len),
            Err(error) if error.code() == ErrorCode::WANT_READ => Received::Nothing,
            Err(_) => Received::End,
        }
    }

    /// Sends one message as one record; false when it is too long or the association has ended.
    pub fn send(&mut self, message: &[u8], buffers: &mut DtlsBuffers) -> bool {
        !message.is_empty()
            && message.len() <= MESSAGE_LEN_MAX
            && self.with(None, buffers, |stream, _| stream.ssl_write(message)).is_ok()
    }

    /// Says that the association ends (close_notify).
    pub fn close(&mut self, buffers: &mut DtlsBuffers) {
        // One that has failed says nothing more.
        let _ = self.with(None, buffers, |stream, _| stream.shutdown());
    }

    /// Lends the shared buffers to the library.
    fn with<R>(
        &mut self,
        datagram: Option<&[u8]>,
        buffers: &mut DtlsBuffers,
        call: impl FnOnce(&mut SslStream<Pipe>, &mut Vec<u8>) -> R,
    ) -> R {
        if let Some(datagram) = datagram {
            buffers.put(datagram);
        }
        swap(self.stream.get_mut(), &mut buffers.pipe);
        let result = call(&mut self.stream, &mut buffers.message);
        swap(self.stream.get_mut(), &mut buffers.pipe);
        buffers.pipe.has_incoming = false;
        result
    }
}

/// OpenSSL's number of an alert that was received is 1000 and the alert.
fn cause(error: &Error) -> Failure {
    const RECEIVED_ALERT: std::ops::Range<i32> = 1000..1256;
    let errors = error.ssl_error().map_or(&[][..], ErrorStack::errors);
    let is_alert = errors.iter().any(|error| RECEIVED_ALERT.contains(&error.reason_code()));
    if is_alert { Failure::Alert } else { Failure::Protocol }
}

impl Read for Pipe {
    /// A datagram is read whole.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !std::mem::take(&mut self.has_incoming) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = self.incoming.len().min(buffer.len());
        buffer[..len].copy_from_slice(&self.incoming[..len]);
        Ok(len)
    }
}

impl Write for Pipe {
    /// Each write is a datagram.
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(datagram);
        self.ends.push(self.outgoing.len());
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
