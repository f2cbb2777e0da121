//! TLS of stream listeners: certificates, versions, resumption and ALPN.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ServerSessionMemoryCache};
use rustls::version::{TLS12, TLS13};

use super::certificate::load_pair;
pub use super::certificate::{CertificateContent, CertificateFiles, TlsError};
use super::dtls::{self, DtlsConfig};
use super::sni::{Certificates, Entry};

/// The application protocols of RFC 7443, in order of preference.
const ALPN: [&[u8]; 2] = [b"stun.turn", b"stun.nat-discovery"];

/// Sessions kept for TLS 1.2 clients without tickets: 1024 of about 300 bytes are 300 KiB. All others carry their own.
const STORED_SESSIONS_MAX: usize = 1024;

/// What an operator decides about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Chosen by SNI; the first is for clients that ask for none of the names.
    pub certificates: Vec<CertificateFiles>,
}

/// What a listener needs to answer TLS; clones share certificates, ticket keys and sessions.
#[derive(Clone, Debug)]
pub struct TlsAcceptConfig {
    with_alpn: Arc<ServerConfig>,
    without_alpn: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

/// Loads all certificates for TLS 1.2 and 1.3 with resumption.
///
/// Errors name the file, what was expected and the remedy. Expired certificates load; see [`TlsAcceptConfig::status`].
pub fn load(settings: &TlsSettings) -> Result<TlsAcceptConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificates = Arc::new(Certificates::new(load_entries(settings)?));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Library)?
        .with_no_client_auth()
        .with_cert_resolver(certificates.clone());
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::Library)?;
    config.session_storage = ServerSessionMemoryCache::new(STORED_SESSIONS_MAX);
    let without_alpn = Arc::new(config.clone());
    config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
    Ok(TlsAcceptConfig { with_alpn: Arc::new(config), without_alpn, certificates })
}

impl TlsAcceptConfig {
    /// Loads other certificates into a configuration in use, and says whether they are others; sessions stay resumable.
    ///
    /// On an error all certificates stay as they are.
    pub fn reload(&self, settings: &TlsSettings) -> Result<bool, TlsError> {
        let entries = load_entries(settings)?;
        let chains = |entries: &[Entry]| -> Vec<_> { entries.iter().map(|entry| entry.key.cert.clone()).collect() };
        let differs = chains(&entries) != chains(&self.certificates.entries());
        self.certificates.replace(entries);
        Ok(differs)
    }

    /// Says what the certificates in use are, in order, each with its file.
    pub fn status(&self) -> Vec<(PathBuf, CertificateContent)> {
        self.certificates.entries().iter().map(|entry| (entry.file.clone(), entry.content.clone())).collect()
    }

    /// What answers DTLS, with the same certificates.
    pub fn dtls(&self) -> Result<DtlsConfig, TlsError> {
        DtlsConfig::new(self.certificates.clone())
    }

    /// Chooses the configuration that answers a ClientHello.
    ///
    /// RFC 7443 names protocols that a client may offer; ALPN is never required. RFC 7301 section 3.2 would have a
    /// server that knows none of the offered names answer no_application_protocol, and clients on port 443 offer `h2`:
    /// those are answered as if ALPN were unknown here.
    pub fn config_for(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let known = hello.alpn().is_some_and(|mut offered| offered.any(|name| ALPN.contains(&name)));
        if known { self.with_alpn.clone() } else { self.without_alpn.clone() }
    }

    #[cfg(test)]
    pub(super) fn without_alpn(&self) -> Arc<ServerConfig> {
        self.without_alpn.clone()
    }
}

fn load_entries(settings: &TlsSettings) -> Result<Vec<Entry>, TlsError> {
    if settings.certificates.is_empty() {
        return Err(TlsError::NoCertificates);
    }
    let load_one = |files: &CertificateFiles| {
        let (content, key) = load_pair(files)?;
        Ok(Entry { file: files.certificate.clone(), content, key: Arc::new(key), dtls: dtls::identity(files)? })
    };
    settings.certificates.iter().map(load_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::test_tls::TestCertificate;

    #[test]
    fn no_certificates_are_an_error() {
        assert!(matches!(load(&TlsSettings::default()), Err(TlsError::NoCertificates)));
    }

    #[test]
    fn a_reload_replaces_all_certificates_or_none() {
        let (one, two) = (TestCertificate::new(&["one.example"]), TestCertificate::new(&["two.example"]));
        let config = load(&one.settings()).unwrap();
        let names = |config: &TlsAcceptConfig| {
            config.status().into_iter().flat_map(|(_, content)| content.names).collect::<Vec<_>>()
        };
        let mut broken = two.settings();
        broken.certificates.push(CertificateFiles { certificate: "/nonexistent".into(), key: "/nonexistent".into() });
        assert!(config.reload(&broken).is_err());
        assert_eq!(names(&config), ["one.example"]);
        assert!(config.clone().reload(&two.settings()).unwrap());
        assert_eq!(names(&config), ["two.example"]);
        assert!(!config.reload(&two.settings()).unwrap());
    }

    #[test]
    fn debug_output_holds_no_key() {
        let test = TestCertificate::new(&["one.example"]);
        let config = load(&test.settings()).unwrap();
        let text = format!("{config:?}");
        assert!(!text.contains("CertifiedKey") && !text.contains("PrivateKey"), "{text}");
    }
}
