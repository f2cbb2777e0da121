//! Certificates and private keys from PEM files, what is wrong with them, and what a certificate says.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error as RustlsError, InconsistentKeys};
use x509_parser::error::X509Error;
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

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateContent {
    /// DNS names and IP addresses of the subjectAltName extension; the common name counts for no client.
    pub names: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl CertificateContent {
    /// Reads a certificate.
    pub fn parse(certificate: &CertificateDer<'_>) -> Result<Self, X509Error> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate)?;
        let alternative = certificate.subject_alternative_name()?;
        let names = alternative
            .map_or_else(Vec::new, |extension| extension.value.general_names.iter().filter_map(name_of).collect());
        Ok(Self {
            names,
            not_before: time_of(certificate.validity().not_before.timestamp()),
            not_after: time_of(certificate.validity().not_after.timestamp()),
        })
    }

    /// Whether clients refuse the certificate at this time; the daemon serves it all the same.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// Whether clients do not accept the certificate yet.
    pub fn is_early(&self, now: SystemTime) -> bool {
        now < self.not_before
    }
}

/// Why certificates cannot be used.
#[derive(Debug)]
pub enum TlsError {
    /// No certificate is configured at all.
    NoCertificates,
    /// A certificate file that cannot be read.
    UnreadableCertificate { file: PathBuf, source: io::Error },
    /// A certificate file without a certificate in PEM.
    NoCertificate { file: PathBuf },
    /// A certificate file whose PEM is damaged or whose first certificate cannot be parsed.
    InvalidCertificate { file: PathBuf, reason: String },
    /// A key file that cannot be read.
    UnreadableKey { file: PathBuf, source: io::Error },
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
    /// DTLS cannot start: no randomness for the key of its cookies.
    Dtls { reason: String },
}

/// A [`TlsError`] for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsErrorWords {
    /// What is there, with the file; never a secret.
    pub found: String,
    pub expected: &'static str,
    pub remedy: &'static str,
}

impl TlsError {
    /// Says what was found, what was expected and what to do about it.
    pub fn words(&self) -> TlsErrorWords {
        let (found, expected, remedy) = match self {
            Self::NoCertificates => (
                "no certificate is set".to_owned(),
                "at least one pair of certificate and key files",
                "name a pair, or remove the TLS listeners",
            ),
            Self::UnreadableCertificate { file, source } | Self::UnreadableKey { file, source } => (
                format!("{} cannot be read ({source})", file.display()),
                "a PEM file",
                "check the path and that the user ferryd runs as may read it",
            ),
            Self::NoCertificate { file } => (
                format!("{} holds no PEM certificate", file.display()),
                "a PEM certificate chain",
                "name the full chain, which begins with -----BEGIN CERTIFICATE-----, and not the key; convert DER with \
                 `openssl x509 -inform der`",
            ),
            Self::InvalidCertificate { file, reason } => (
                format!("{} is not an X.509 certificate ({reason})", file.display()),
                "a PEM certificate chain",
                "export it again as PEM, or issue it again",
            ),
            Self::NoKey { file } => (
                format!("{} holds no PEM private key", file.display()),
                "a PEM private key",
                "name the key without a passphrase, which begins with -----BEGIN PRIVATE KEY-----, BEGIN RSA PRIVATE \
                 KEY or BEGIN EC PRIVATE KEY, and not the certificate",
            ),
            Self::EncryptedKey { file } => (
                format!("{} is protected by a passphrase", file.display()),
                "a private key without one, as the daemon starts unattended",
                "remove it with `openssl pkey -in KEY -out NEW` and protect the file by permissions",
            ),
            Self::UnsupportedKey { file, reason } => (
                format!("{} cannot be used ({reason})", file.display()),
                "an RSA key of 2048 bits or more, an ECDSA key on P-256, P-384 or P-521, or an Ed25519 key",
                "issue key and certificate again",
            ),
            Self::KeyMismatch { key, certificate } => (
                format!("{} is not the key of {}", key.display(), certificate.display()),
                "the private key of the certificate",
                "name the pair that was issued together",
            ),
            Self::ChainOrder { key, certificate } => (
                format!("{} is the key of a later certificate in {}", key.display(), certificate.display()),
                "the certificate of this host first and the intermediates after it",
                "reorder the file of the certificate",
            ),
            Self::Library(error) => (
                format!("TLS cannot be set up ({error})"),
                "random numbers from the kernel",
                "check that ferryd may call getrandom",
            ),
            Self::Dtls { reason } => (
                format!("DTLS cannot be set up ({reason})"),
                "random numbers from the kernel",
                "check that ferryd may call getrandom",
            ),
        };
        TlsErrorWords { found, expected, remedy }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TlsErrorWords { found, expected, remedy } = self.words();
        write!(f, "{found}, expected {expected}; {remedy}")
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::UnreadableCertificate { source, .. } | Self::UnreadableKey { source, .. } => Some(source),
            Self::Library(error) => Some(error),
            Self::NoCertificates
            | Self::NoCertificate { .. }
            | Self::InvalidCertificate { .. }
            | Self::NoKey { .. }
            | Self::EncryptedKey { .. }
            | Self::UnsupportedKey { .. }
            | Self::Dtls { .. }
            | Self::KeyMismatch { .. }
            | Self::ChainOrder { .. } => None,
        }
    }
}

/// Checks that a pair can be served, and reads what its certificate says.
///
/// Errors: the problems of both files, those of the certificate first; never none. An expired certificate is none of
/// them.
pub fn examine(files: &CertificateFiles) -> Result<CertificateContent, Vec<TlsError>> {
    match (read_certificate(&files.certificate), read_key(&files.key)) {
        (Ok(certificate), Ok(key)) => {
            join(files, certificate, key).map(|(content, _)| content).map_err(|error| vec![error])
        }
        (certificate, key) => Err(certificate.err().into_iter().chain(key.err()).collect()),
    }
}

/// Loads what [`examine`] would accept; the error is the first problem.
///
/// An expired certificate loads: it is the caller's error in the log, not an outage.
pub fn load_pair(files: &CertificateFiles) -> Result<(CertificateContent, CertifiedKey), TlsError> {
    join(files, read_certificate(&files.certificate)?, read_key(&files.key)?)
}

/// A chain, and what its first certificate says.
struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    content: CertificateContent,
}

/// Checks that certificate and key belong together.
fn join(
    files: &CertificateFiles,
    Certificate { chain, content }: Certificate,
    key: Arc<dyn SigningKey>,
) -> Result<(CertificateContent, CertifiedKey), TlsError> {
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // A provider that cannot tell does not stop the daemon.
        Ok(()) | Err(RustlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok((content, certified)),
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

fn read_certificate(file: &Path) -> Result<Certificate, TlsError> {
    let invalid = |reason: String| TlsError::InvalidCertificate { file: file.to_owned(), reason };
    let pem = read(file).map_err(|source| TlsError::UnreadableCertificate { file: file.to_owned(), source })?;
    // The error is not told: it may quote the file, which may be the key by mistake.
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| invalid("its PEM is damaged".to_owned()))?;
    let leaf = chain.first().ok_or_else(|| TlsError::NoCertificate { file: file.to_owned() })?;
    let content = CertificateContent::parse(leaf).map_err(|error| invalid(error.to_string()))?;
    Ok(Certificate { chain, content })
}

fn read_key(file: &Path) -> Result<Arc<dyn SigningKey>, TlsError> {
    let pem = read(file).map_err(|source| TlsError::UnreadableKey { file: file.to_owned(), source })?;
    if contains(&pem, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(&pem, b"Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::EncryptedKey { file: file.to_owned() });
    }
    let der = key_of(&pem).ok_or_else(|| TlsError::NoKey { file: file.to_owned() })?;
    let unsupported = |reason| TlsError::UnsupportedKey { file: file.to_owned(), reason };
    let key = PrivateKeyDer::try_from(&der[..]).map_err(|reason| unsupported(reason.to_owned()))?;
    any_supported_type(&key).map_err(|error| unsupported(reason_of(&error)))
}

/// The DER of the first private key of a PEM file. Read by hand, as parsers of PEM leave copies of it in memory.
fn key_of(pem: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut lines = pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.find(|line| line.starts_with(b"-----BEGIN ") && line.ends_with(b"PRIVATE KEY-----"))?;
    // As long as it can become, so that it never moves.
    let mut base64 = Zeroizing::new(Vec::with_capacity(pem.len()));
    loop {
        match lines.next()? {
            line if line.starts_with(b"-----END ") => break,
            line => base64.extend_from_slice(line),
        }
    }
    let mut der = Zeroizing::new(vec![0; base64.len()]);
    let len = STANDARD.decode_slice(&base64, &mut der).ok()?;
    der.truncate(len);
    Some(der)
}

fn read(file: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    fs::read(file).map(Zeroizing::new)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// A time in seconds since 1970-01-01 UTC.
fn time_of(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some((*name).to_owned());
    }
    let GeneralName::IPAddress(octets) = name else { return None };
    let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(*octets).map(IpAddr::from);
    v4.or(v6).ok().map(|ip| ip.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::test_tls::{TestCertificate, write_file};

    fn load(files: &CertificateFiles) -> Result<(CertificateContent, CertifiedKey), TlsError> {
        load_pair(files)
    }

    #[test]
    fn a_pair_loads_and_tells_its_names() {
        let test = TestCertificate::new(&["turn.example.org", "192.0.2.7", "2001:db8::7"]);
        let (content, certified) = load(&test.files).unwrap();
        assert_eq!(certified.cert.len(), 1);
        assert_eq!(content.names, ["turn.example.org", "192.0.2.7", "2001:db8::7"]);
        assert_eq!(examine(&test.files).unwrap(), content);
    }

    #[test]
    fn an_expired_certificate_loads_and_is_told() {
        let test = TestCertificate::valid_between(&["old.example.org"], (2020, 1, 1), (2021, 1, 1));
        let (content, _) = load(&test.files).unwrap();
        let (begin, end) = (time_of(1_577_836_800), time_of(1_609_459_200));
        assert_eq!((content.not_before, content.not_after), (begin, end));
        let second = Duration::from_secs(1);
        assert!(content.is_expired(end + second) && !content.is_expired(end));
        assert!(content.is_early(begin - second) && !content.is_early(begin));
    }

    #[test]
    fn a_time_before_1970_is_kept() {
        let test = TestCertificate::valid_between(&["old.example.org"], (1960, 1, 1), (1969, 12, 31));
        let content = examine(&test.files).unwrap();
        assert_eq!(content.not_after, UNIX_EPOCH - Duration::from_secs(86400));
    }

    #[test]
    fn the_problems_of_both_files_are_told() {
        let nowhere = CertificateFiles { certificate: "/nonexistent/c".into(), key: "/nonexistent/k".into() };
        let errors = examine(&nowhere).unwrap_err();
        assert!(
            matches!(&errors[..], [TlsError::UnreadableCertificate { .. }, TlsError::UnreadableKey { .. }]),
            "{errors:?}"
        );
        let test = TestCertificate::new(&["a.example"]);
        write_file(&test.files.certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        write_file(&test.files.key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        let errors = examine(&test.files).unwrap_err();
        assert!(
            matches!(&errors[..], [TlsError::InvalidCertificate { .. }, TlsError::UnsupportedKey { .. }]),
            "{errors:?}"
        );
    }

    #[test]
    fn a_key_in_the_place_of_the_certificate_is_not_printed() {
        let test = TestCertificate::new(&["a.example"]);
        write_file(&test.files.certificate, "-----BEGIN PRIVATE KEY-----c2VjcmV0-----END PRIVATE KEY-----\n");
        let error = load(&test.files).unwrap_err();
        assert!(matches!(error, TlsError::InvalidCertificate { .. }));
        let (text, bytes) = (format!("{error:?} {error}"), format!("{:?}", b"c2VjcmV0"));
        assert!(!text.contains("c2VjcmV0") && !text.contains(bytes.trim_matches(['[', ']'])), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut test = TestCertificate::new(&["a.example"]);
        test.files.certificate = "/nonexistent/chain.pem".into();
        let error = load(&test.files).unwrap_err();
        assert!(
            matches!(&error, TlsError::UnreadableCertificate { source, .. } if source.kind() == io::ErrorKind::NotFound)
        );
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
    }
}
