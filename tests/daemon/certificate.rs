//! Self-signed certificates for localhost.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::ferryd::Config;

pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    der: CertificateDer<'static>,
}

impl Certificate {
    /// Writes `NAME.pem` and `NAME.key` into the directory.
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        Self::until(directory, name, 2099)
    }

    /// One with an RSA key.
    #[cfg(feature = "dtls")]
    pub(crate) fn rsa(directory: &Path, name: &str) -> Self {
        Self::made(directory, name, "localhost", 2099, &rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap())
    }

    /// One that ends on the first day of a year.
    pub(crate) fn until(directory: &Path, name: &str, year: i32) -> Self {
        Self::made(directory, name, "localhost", year, &rcgen::KeyPair::generate().unwrap())
    }

    /// One for another host.
    #[cfg(feature = "dtls")]
    pub(crate) fn named(directory: &Path, name: &str, host: &str) -> Self {
        Self::made(directory, name, host, 2099, &rcgen::KeyPair::generate().unwrap())
    }

    /// One that calls itself an authority, as what `openssl req -x509` makes; it ends on the first day of a year.
    pub(crate) fn authority(directory: &Path, name: &str, year: i32) -> Self {
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self::of_parameters(directory, name, parameters, year, &rcgen::KeyPair::generate().unwrap())
    }

    fn made(directory: &Path, name: &str, host: &str, year: i32, pair: &rcgen::KeyPair) -> Self {
        let parameters = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        Self::of_parameters(directory, name, parameters, year, pair)
    }

    fn of_parameters(
        directory: &Path,
        name: &str,
        mut parameters: rcgen::CertificateParams,
        year: i32,
        pair: &rcgen::KeyPair,
    ) -> Self {
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let made = parameters.self_signed(pair).unwrap();
        let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        fs::write(&certificate, made.pem()).unwrap();
        fs::write(&key, pair.serialize_pem()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        Self { certificate, key, der: made.der().clone() }
    }

    /// The certificate that `ferryd.pem` is, made if it is not there yet.
    pub(crate) fn configured(config: &mut Config) -> Self {
        let made = Self::new(&config.directory.clone(), "ferryd");
        made.set(config);
        made
    }

    /// Has the server use it.
    pub(crate) fn set(&self, config: &mut Config) {
        config.text("tls.certificate", self.certificate.display()).text("tls.key", self.key.display());
    }

    /// The certificate of a server that [`Self::configured`] has set up.
    pub(crate) fn of(config: &Config) -> Self {
        Self::at(&config.directory, "ferryd")
    }

    /// The certificate that was written there by that name.
    pub(crate) fn at(directory: &Path, name: &str) -> Self {
        use rustls::pki_types::pem::PemObject;
        let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        let der = CertificateDer::from_pem_file(&certificate).unwrap();
        Self { certificate, key, der }
    }

    /// What a client that trusts this certificate alone needs.
    pub(crate) fn client_config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}
