//! Certificates and private keys from PEM files, and what can be said of them.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as RustlsError, InconsistentKeys};
use x509_parser::extensions::GeneralName;
use zeroize::Zeroizing;

/// The two files of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the certificate of this host, then the intermediates in order.
    pub certificate: PathBuf,
    /// PEM: the private key of the first certificate (PKCS#8, PKCS#1 or SEC1), without a passphrase.
    pub key: PathBuf,
}

/// What an operator wants to know about a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// The file it came from.
    pub file: PathBuf,
    /// DNS names and IP addresses of the subjectAltName extension; the common name counts for no client.
    pub names: Vec<String>,
    /// Start of validity, seconds since 1970-01-01 UTC.
    pub not_before: i64,
    /// End of validity, seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// Whether the end of validity has passed: clients refuse it, the daemon serves it all the same.
    pub expired: bool,
    /// Whether validity has not begun.
    pub not_yet_valid: bool,
}

/// Why certificates cannot be used: the file, what was expected, the remedy.
#[derive(Debug)]
pub enum TlsError {
    /// No certificate is configured at all.
    NoCertificates,
    /// A file cannot be read.
    Unreadable { file: PathBuf, source: io::Error },
    /// A certificate file without a certificate in PEM.
    NoCertificate { file: PathBuf },
    /// A certificate file whose first certificate cannot be parsed.
    InvalidCertificate { file: PathBuf, reason: String },
    /// A key file without a private key in PEM.
    NoKey { file: PathBuf },
    /// A key file that needs a passphrase.
    EncryptedKey { file: PathBuf },
    /// A private key of an algorithm or encoding that the provider cannot use.
    UnsupportedKey { file: PathBuf, reason: String },
    /// The private key belongs to another certificate.
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    /// The private key belongs to a later certificate of the file.
    ChainOrder { key: PathBuf, certificate: PathBuf },
    /// The TLS library refuses to start: no randomness for ticket keys.
    Library(RustlsError),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificates => f.write_str(
                "TLS has no certificate: expected at least one pair of certificate and key files; \
                 configure one or remove the TLS listeners",
            ),
            Self::Unreadable { file, source } => write!(
                f,
                "cannot read {}: {source}: expected a PEM file that the daemon's user may read; \
                 correct the path or the permissions",
                file.display()
            ),
            Self::NoCertificate { file } => write!(
                f,
                "no certificate in {}: expected PEM with a BEGIN CERTIFICATE section; \
                 convert DER with `openssl x509 -inform der`, and check that key and certificate are not swapped",
                file.display()
            ),
            Self::InvalidCertificate { file, reason } => write!(
                f,
                "cannot parse the certificate in {}: {reason}: expected X.509 version 3; issue it again",
                file.display()
            ),
            Self::NoKey { file } => write!(
                f,
                "no private key in {}: expected PEM with a BEGIN PRIVATE KEY, BEGIN RSA PRIVATE KEY or \
                 BEGIN EC PRIVATE KEY section; check that key and certificate are not swapped",
                file.display()
            ),
            Self::EncryptedKey { file } => write!(
                f,
                "the private key in {} is protected by a passphrase: expected a key without one, as the daemon starts \
                 unattended; remove it with `openssl pkey -in KEY -out NEW` and protect the file by permissions",
                file.display()
            ),
            Self::UnsupportedKey { file, reason } => write!(
                f,
                "cannot use the private key in {}: {reason}: expected RSA of 2048 bits or more, ECDSA on P-256, P-384 \
                 or P-521, or Ed25519; issue key and certificate again",
                file.display()
            ),
            Self::KeyMismatch { key, certificate } => write!(
                f,
                "the private key in {} does not belong to the certificate in {}: expected a pair; \
                 check that both files are of the same issue",
                key.display(),
                certificate.display()
            ),
            Self::ChainOrder { key, certificate } => write!(
                f,
                "the private key in {} belongs to a later certificate in {}: expected the certificate of this host \
                 first and the intermediates after it; reorder the file",
                key.display(),
                certificate.display()
            ),
            Self::Library(error) => write!(f, "cannot set up TLS: {error}"),
        }
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Library(error) => Some(error),
            Self::NoCertificates
            | Self::NoCertificate { .. }
            | Self::InvalidCertificate { .. }
            | Self::NoKey { .. }
            | Self::EncryptedKey { .. }
            | Self::UnsupportedKey { .. }
            | Self::KeyMismatch { .. }
            | Self::ChainOrder { .. } => None,
        }
    }
}

/// Reads what `ferryd check` says of a certificate, `now` in seconds since 1970-01-01 UTC.
///
/// The key is not looked at. Errors: unreadable file, no certificate, not X.509.
pub fn certificate_status(files: &CertificateFiles, now: i64) -> Result<CertificateStatus, TlsError> {
    let chain = read_chain(&files.certificate)?;
    let leaf = chain.first().ok_or_else(|| TlsError::NoCertificate { file: files.certificate.clone() })?;
    status_of(&files.certificate, leaf, now)
}

/// Says what a certificate in DER is, `now` in seconds since 1970-01-01 UTC.
pub(super) fn status_of(file: &Path, der: &CertificateDer<'_>, now: i64) -> Result<CertificateStatus, TlsError> {
    let invalid = |reason: String| TlsError::InvalidCertificate { file: file.to_owned(), reason };
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|error| invalid(error.to_string()))?;
    let alternative = certificate.subject_alternative_name().map_err(|error| invalid(error.to_string()))?;
    let names = alternative
        .map_or_else(Vec::new, |extension| extension.value.general_names.iter().filter_map(name_of).collect());
    let not_before = certificate.validity().not_before.timestamp();
    let not_after = certificate.validity().not_after.timestamp();
    Ok(CertificateStatus {
        file: file.to_owned(),
        names,
        not_before,
        not_after,
        expired: now > not_after,
        not_yet_valid: now < not_before,
    })
}

/// Loads a certificate with its key and checks that they belong together.
///
/// An expired certificate loads: it is the caller's error in the log, not an outage.
pub(super) fn load_pair(files: &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain = read_chain(&files.certificate)?;
    let key = read_key(&files.key)?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| TlsError::UnsupportedKey { file: files.key.clone(), reason: reason_of(&error) })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // A provider that cannot tell does not stop the daemon.
        Ok(()) | Err(RustlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(RustlsError::InconsistentKeys(_)) if matches_later_certificate(&certified) => {
            Err(TlsError::ChainOrder { key: files.key.clone(), certificate: files.certificate.clone() })
        }
        Err(RustlsError::InconsistentKeys(_)) => {
            Err(TlsError::KeyMismatch { key: files.key.clone(), certificate: files.certificate.clone() })
        }
        Err(error) => Err(TlsError::InvalidCertificate { file: files.certificate.clone(), reason: reason_of(&error) }),
    }
}

fn matches_later_certificate(certified: &CertifiedKey) -> bool {
    (1..certified.cert.len())
        .any(|i| CertifiedKey::new(certified.cert[i..].to_vec(), certified.key.clone()).keys_match().is_ok())
}

fn reason_of(error: &RustlsError) -> String {
    if let RustlsError::General(reason) = error { reason.clone() } else { error.to_string() }
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(file)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(TlsError::NoCertificate { file: file.to_owned() }),
        Err(error) => Err(TlsError::InvalidCertificate { file: file.to_owned(), reason: error.to_string() }),
    }
}

fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = Zeroizing::new(read(file)?);
    if contains(&pem, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(&pem, b"Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::EncryptedKey { file: file.to_owned() });
    }
    // The error is not told: it may quote the file.
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::NoKey { file: file.to_owned() })
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(file).map_err(|source| TlsError::Unreadable { file: file.to_owned(), source })
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some(name.to_ascii_lowercase());
    }
    let GeneralName::IPAddress(octets) = name else { return None };
    let v4 = <[u8; 4]>::try_from(*octets).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    let v6 = <[u8; 16]>::try_from(*octets).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
    v4.or(v6).ok().map(|ip| ip.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::test_tls::{TestCertificate, write_file};

    fn load(files: &CertificateFiles) -> Result<CertifiedKey, TlsError> {
        load_pair(files, &rustls::crypto::aws_lc_rs::default_provider())
    }

    #[test]
    fn a_pair_loads_and_its_status_names_it() {
        let test = TestCertificate::new(&["turn.example.org", "192.0.2.7", "2001:db8::7"]);
        assert_eq!(load(&test.files).unwrap().cert.len(), 1);
        let status = certificate_status(&test.files, 1_700_000_000).unwrap();
        assert_eq!(status.names, ["turn.example.org", "192.0.2.7", "2001:db8::7"]);
        assert_eq!(status.file, test.files.certificate);
        assert!(!status.expired && !status.not_yet_valid);
    }

    #[test]
    fn an_expired_certificate_loads_and_is_told() {
        let test = TestCertificate::valid_between(&["old.example.org"], (2020, 1, 1), (2021, 1, 1));
        load(&test.files).unwrap();
        let status = certificate_status(&test.files, 1_609_459_201).unwrap();
        assert_eq!((status.not_before, status.not_after), (1_577_836_800, 1_609_459_200));
        assert!(status.expired);
        let in_time = certificate_status(&test.files, 1_609_459_200).unwrap();
        assert!(!in_time.expired);
        assert!(certificate_status(&test.files, 1_577_836_799).unwrap().not_yet_valid);
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut test = TestCertificate::new(&["a.example"]);
        test.files.certificate = "/nonexistent/chain.pem".into();
        let error = load(&test.files).unwrap_err();
        assert!(matches!(&error, TlsError::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound));
        assert!(error.to_string().contains("/nonexistent/chain.pem"), "{error}");
    }

    #[test]
    fn swapped_files_are_told_apart() {
        let test = TestCertificate::new(&["a.example"]);
        let swapped = CertificateFiles { certificate: test.files.key.clone(), key: test.files.certificate.clone() };
        assert!(matches!(load(&swapped).unwrap_err(), TlsError::NoCertificate { file } if file == test.files.key));
        let twice =
            CertificateFiles { certificate: test.files.certificate.clone(), key: test.files.certificate.clone() };
        assert!(matches!(load(&twice).unwrap_err(), TlsError::NoKey { file } if file == test.files.certificate));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, two) = (TestCertificate::new(&["a.example"]), TestCertificate::new(&["a.example"]));
        let mixed = CertificateFiles { certificate: one.files.certificate.clone(), key: two.files.key.clone() };
        let error = load(&mixed).unwrap_err();
        assert!(matches!(&error, TlsError::KeyMismatch { key, .. } if *key == two.files.key));
        assert!(error.to_string().contains(one.files.certificate.to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_chain_in_the_wrong_order_is_told_apart_from_a_wrong_key() {
        let (leaf, other) = (TestCertificate::new(&["a.example"]), TestCertificate::new(&["ca.example"]));
        let chain = [other.certificate_pem.as_str(), &leaf.certificate_pem].concat();
        write_file(&leaf.files.certificate, &chain);
        assert!(matches!(load(&leaf.files).unwrap_err(), TlsError::ChainOrder { .. }));
    }

    #[test]
    fn keys_with_a_passphrase_are_told_with_the_remedy() {
        let test = TestCertificate::new(&["a.example"]);
        for pem in [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
             -----END RSA PRIVATE KEY-----\n",
        ] {
            write_file(&test.files.key, pem);
            let error = load(&test.files).unwrap_err();
            assert!(matches!(error, TlsError::EncryptedKey { .. }));
            assert!(error.to_string().contains("openssl pkey"), "{error}");
        }
    }

    #[test]
    fn a_key_that_is_no_key_is_unsupported_and_not_printed() {
        let test = TestCertificate::new(&["a.example"]);
        write_file(&test.files.key, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n");
        let error = load(&test.files).unwrap_err();
        assert!(matches!(error, TlsError::UnsupportedKey { .. }));
        assert!(!format!("{error:?} {error}").contains("c2VjcmV0"));
    }

    #[test]
    fn garbage_in_a_certificate_section_is_invalid() {
        let test = TestCertificate::new(&["a.example"]);
        write_file(&test.files.certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        assert!(matches!(load(&test.files).unwrap_err(), TlsError::InvalidCertificate { .. }));
        assert!(matches!(certificate_status(&test.files, 0).unwrap_err(), TlsError::InvalidCertificate { .. }));
    }
}
