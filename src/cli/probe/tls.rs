//! The TLS handshake, and what the certificate says when it fails.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::STEP_TIMEOUT;
use super::words::Failure;
use crate::net::certificate::CertificateContent;
use crate::web::{self, signs_itself};

const STEP: &str = "tls";

/// Which certificates are trusted.
#[derive(Clone)]
pub(super) struct Trust {
    provider: Arc<CryptoProvider>,
    /// `None` trusts every certificate.
    verifier: Option<Arc<dyn ServerCertVerifier>>,
}

impl Trust {
    /// The roots of a file, else those of the system.
    pub(super) fn read(ca: Option<&Path>, insecure: bool) -> Result<Self, Failure> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        if insecure {
            return Ok(Self { provider, verifier: None });
        }
        let read = web::Trust::read(ca).and_then(|trust| trust.of_servers(&provider));
        let verifier = read.map_err(|error| match ca {
            Some(file) => Failure::new(STEP, format!("{}: {error}", file.display())),
            None => Failure::new(STEP, format!("{error}, or pass --ca or --insecure")),
        })?;
        Ok(Self { provider, verifier: Some(verifier) })
    }

    /// Judges a chain, the server's own certificate first, as a handshake of TLS does; returns what it says in words.
    #[cfg(feature = "dtls")]
    pub(super) fn judge(
        &self,
        step: &'static str,
        host: &str,
        chain: &[CertificateDer<'_>],
    ) -> Result<String, Failure> {
        let [certificate, intermediates @ ..] = chain else {
            return Err(Failure::new(step, "the server shows no certificate"));
        };
        let content = CertificateContent::parse(certificate).ok();
        if let Some(verifier) = &self.verifier {
            let name = server_name(step, host)?;
            let verified = verifier.verify_server_cert(certificate, intermediates, &name, &[], UnixTime::now());
            verified.map_err(|error| {
                let words = if let rustls::Error::InvalidCertificate(reason) = &error {
                    certificate_words(reason, host, content.as_ref())
                } else {
                    format!("the certificate is refused ({error})")
                };
                Failure::new(step, words)
            })?;
        }
        Ok(agreed_words(content.as_ref(), SystemTime::now()))
    }
}

fn server_name(step: &'static str, host: &str) -> Result<ServerName<'static>, Failure> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| Failure::new(step, format!("{host} cannot stand in a certificate")))
}

/// Completes the handshake; returns the stream and what was agreed on.
pub(super) async fn handshake(
    stream: TcpStream,
    host: &str,
    address: SocketAddr,
    trust: &Trust,
) -> Result<(TlsStream<TcpStream>, String), Failure> {
    let name = server_name(STEP, host)?;
    let watcher = Arc::new(Watcher { trust: trust.clone(), shown: Mutex::new(None) });
    let config = ClientConfig::builder_with_provider(Arc::clone(&trust.provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(STEP, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&watcher) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let connected = tokio::time::timeout(STEP_TIMEOUT, connector.connect(name, stream)).await;
    let content = watcher.content();
    match connected {
        Ok(Ok(stream)) => {
            let version = stream.get_ref().1.protocol_version();
            let version = version.and_then(|version| version.as_str()).unwrap_or("TLS").replace("TLSv1_", "TLS 1.");
            Ok((stream, format!("{version}, {}", agreed_words(content.as_ref(), SystemTime::now()))))
        }
        Ok(Err(error)) => Err(Failure::new(STEP, failed_words(&error, host, address, content.as_ref()))),
        Err(_) => {
            let words = format!("{address} takes tcp but answers no TLS; the port may speak plain TURN: try turn:");
            Err(Failure::new(STEP, words))
        }
    }
}

fn agreed_words(content: Option<&CertificateContent>, now: SystemTime) -> String {
    match content {
        Some(content) => format!("{} for {}", names_words(content), validity_words(content, now)),
        None => "an unusual certificate".to_owned(),
    }
}

fn names_words(content: &CertificateContent) -> String {
    match content.names.as_slice() {
        [] => "no names".to_owned(),
        names => names.join(" "),
    }
}

fn validity_words(content: &CertificateContent, now: SystemTime) -> String {
    let days = |duration: Duration| duration.as_secs() / 86400;
    match (content.not_after.duration_since(now), now.duration_since(content.not_before)) {
        (Ok(_), Err(early)) => format!("a time that begins in {} days", days(early.duration())),
        (Ok(left), Ok(_)) => format!("{} more days", days(left)),
        (Err(ago), _) => format!("a time that ended {} days ago", days(ago.duration())),
    }
}

fn failed_words(error: &io::Error, host: &str, address: SocketAddr, content: Option<&CertificateContent>) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(reason)) => certificate_words(reason, host, content),
        Some(rustls::Error::InvalidMessage(_)) => {
            format!("{address} answers something other than TLS; the port may speak plain TURN: try turn:")
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("{address} breaks the handshake off ({alert:?}); look into its log, it may have no certificate")
        }
        Some(error) => format!("the handshake with {address} fails ({error})"),
        None => format!(
            "{address} closes the connection in the handshake ({error}); the port may speak plain TURN (try turn:), or \
             the server has no certificate"
        ),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls' enum grows; the rare ones speak for themselves")]
fn certificate_words(reason: &CertificateError, host: &str, content: Option<&CertificateContent>) -> String {
    let names = content.map_or_else(|| "unknown names".to_owned(), names_words);
    let validity = content.map_or_else(String::new, |content| validity_words(content, SystemTime::now()));
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the certificate ({names}) is good for {validity}; renew it and reload the server")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the certificate ({names}) is good for {validity}; check the clocks of both machines")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the certificate is for {names}, not for {host}; use a name of the certificate in the URL")
        }
        CertificateError::UnknownIssuer => format!(
            "the certificate ({names}) is not trusted: its issuer is unknown; serve the full chain, or pass --ca FILE \
             or --insecure for one of your own"
        ),
        reason if signs_itself(reason) => {
            format!("the certificate ({names}) is not trusted: it signs itself; pass it with --ca FILE, or --insecure")
        }
        reason => format!("the certificate ({names}) is refused ({reason}); --insecure probes on"),
    }
}

/// Verifies as usual, and keeps the certificate for the words.
#[derive(Debug)]
struct Watcher {
    trust: Trust,
    shown: Mutex<Option<CertificateDer<'static>>>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("verifies", &self.verifier.is_some()).finish()
    }
}

impl Watcher {
    fn content(&self) -> Option<CertificateContent> {
        let shown = self.shown.lock().ok()?;
        CertificateContent::parse(shown.as_ref()?).ok()
    }
}

impl ServerCertVerifier for Watcher {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Ok(mut shown) = self.shown.lock() {
            *shown = Some(end_entity.clone().into_owned());
        }
        let Some(verifier) = &self.trust.verifier else { return Ok(ServerCertVerified::assertion()) };
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.trust.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.trust.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.provider.signature_verification_algorithms.supported_schemes()
    }
}
