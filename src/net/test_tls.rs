//! Certificates, clients and pairs of connected streams for tests.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConnection, SupportedProtocolVersion,
};

use super::accept::Established;
use super::admission::{AcceptLimits, Admission};
use super::certificate::CertificateFiles;
use super::tls::{TlsAcceptConfig, TlsSettings, load};

/// A self-signed certificate in a directory of its own.
pub(super) struct TestCertificate {
    pub(super) files: CertificateFiles,
    pub(super) der: CertificateDer<'static>,
    pub(super) certificate_pem: String,
    _directory: tempfile::TempDir,
}

impl TestCertificate {
    pub(super) fn new(names: &[&str]) -> Self {
        Self::valid_between(names, (2020, 1, 1), (2099, 1, 1))
    }

    pub(super) fn valid_between(names: &[&str], begin: (i32, u8, u8), end: (i32, u8, u8)) -> Self {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(begin.0, begin.1, begin.2);
        params.not_after = rcgen::date_time_ymd(end.0, end.1, end.2);
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let files =
            CertificateFiles { certificate: directory.path().join("chain.pem"), key: directory.path().join("key.pem") };
        write_file(&files.certificate, &certificate.pem());
        write_file(&files.key, &key.serialize_pem());
        Self { files, der: certificate.der().clone(), certificate_pem: certificate.pem(), _directory: directory }
    }

    pub(super) fn settings(&self) -> TlsSettings {
        TlsSettings { certificates: vec![self.files.clone()] }
    }

    pub(super) fn load(&self) -> TlsAcceptConfig {
        load(&self.settings()).unwrap()
    }
}

pub(super) fn write_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

/// A client that trusts the certificates and offers the protocols.
pub(super) fn client_config(
    trusted: &[&TestCertificate],
    version: &'static SupportedProtocolVersion,
    alpn: &[&str],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.der.clone()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub(super) fn client(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    ClientConnection::new(config.clone(), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

/// Both ends of a loopback connection: the server's non-blocking, the client's blocking.
pub(super) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    server.set_nodelay(true).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (server, client)
}

/// An established stream and the client's end of it.
pub(super) fn established(tls: Option<Box<ServerConnection>>) -> (Established, TcpStream) {
    let (stream, client_stream) = tcp_pair();
    let (client, server) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
    let guard = Admission::new(AcceptLimits::default()).admit(client).unwrap();
    (Established { stream, tls, client, server, guard }, client_stream)
}

/// Finishes a handshake in memory and returns the server's side.
pub(super) fn handshake(config: &TlsAcceptConfig, client: &mut ClientConnection) -> Box<ServerConnection> {
    let mut server = ServerConnection::new(config.without_alpn()).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        pump(client, &mut server);
        pump(&mut server, client);
    }
    Box::new(server)
}

fn pump<A, B>(from: &mut ConnectionCommon<A>, to: &mut ConnectionCommon<B>) {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut rest = &wire[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().unwrap();
    }
}

/// Waits for a condition that needs other threads or the kernel.
pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
