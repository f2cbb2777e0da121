//! Whose certificates are trusted: those of authorities, and one that was named and signs itself.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, SignatureScheme,
};

use super::certificates;

/// Authorities, and the certificates that an operator has named.
///
/// What `openssl req -x509` makes calls itself an authority, and webpki lets no authority stand at the end of a chain. One
/// that was named itself is trusted there all the same: its time and its name are looked at as those of any other.
#[derive(Debug)]
pub struct Trust {
    roots: RootCertStore,
    named: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// The certificates of a PEM file, or the authorities that the system trusts.
    pub fn read(file: Option<&Path>) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        let mut named = Vec::new();
        match file {
            Some(file) => {
                named = certificates(file)?;
                for certificate in &named {
                    roots.add(certificate.clone()).map_err(io::Error::other)?;
                }
            }
            // Some of the system's may be unfit; without any, nothing would be trusted.
            None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        }
        if roots.is_empty() {
            return Err(io::Error::other("no certificate authority is known; install the package ca-certificates"));
        }
        Ok(Self { roots, named })
    }

    /// What a client verifies a server by.
    pub fn of_servers(self, provider: &Arc<CryptoProvider>) -> io::Result<Arc<dyn ServerCertVerifier>> {
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots), Arc::clone(provider)).build();
        Ok(Arc::new(Servers { usual: built.map_err(io::Error::other)?, named: self.named }))
    }

    /// What a server verifies its clients by, all of which need a certificate.
    pub fn of_clients(self, provider: &Arc<CryptoProvider>) -> io::Result<Arc<dyn ClientCertVerifier>> {
        let built = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots), Arc::clone(provider)).build();
        Ok(Arc::new(Clients { usual: built.map_err(io::Error::other)?, named: self.named }))
    }
}

/// Whether a certificate was refused for being an authority alone, after its time was found good.
pub fn signs_itself(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity"))
}

/// Whether it was refused for that alone, and is one of those that were named.
fn is_named(error: &TlsError, certificate: &CertificateDer<'_>, named: &[CertificateDer<'_>]) -> bool {
    matches!(error, TlsError::InvalidCertificate(reason) if signs_itself(reason))
        && named.iter().any(|named| named == certificate)
}

#[derive(Debug)]
struct Servers {
    usual: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(error) if is_named(&error, end_entity, &self.named) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct Clients {
    usual: Arc<dyn ClientCertVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.usual.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        match self.usual.verify_client_cert(end_entity, intermediates, now) {
            Err(error) if is_named(&error, end_entity, &self.named) => Ok(ClientCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
