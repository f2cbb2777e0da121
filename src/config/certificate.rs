//! Looks into certificate files: readable, a certificate, the key that belongs to it, whom it names and until when.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::problem::{At, Report};
use super::settings::CertificateFiles;

/// A certificate that is set, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    pub files: CertificateFiles,
    pub content: CertificateContent,
}

/// A certificate that ends sooner deserves a look.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86400);

/// What a certificate is worth at some time, and in words where that is not everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Days left.
    Good(u64),
    Soon(String),
    /// Clients refuse it.
    Refused(String),
}

impl CertificateFacts {
    /// Judges the certificate at this time.
    pub fn validity(&self, now: SystemTime) -> Validity {
        let (file, content) = (self.files.certificate.display(), &self.content);
        let days = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default().as_secs() / 86400;
        if content.is_expired(now) {
            let ago = days(content.not_after, now);
            return Validity::Refused(format!(
                "{file}: expired {ago} days ago, expected a valid certificate; renew it and reload ferryd"
            ));
        }
        if content.is_early(now) {
            return Validity::Refused(format!(
                "{file}: is not valid yet, expected a valid certificate; check the clock of this host"
            ));
        }
        let left = days(now, content.not_after);
        if content.not_after.duration_since(now).unwrap_or_default() < EXPIRY_WARNING {
            return Validity::Soon(format!("{file}: expires in {left} days; renew it and reload ferryd"));
        }
        Validity::Good(left)
    }
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateContent {
    /// DNS names and addresses of the subject.
    pub names: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl CertificateContent {
    /// Reads a certificate; `None` when it is none.
    pub fn parse(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let names = alternatives.map(|extension| extension.value.general_names.iter().filter_map(name_words).collect());
        let time = |seconds: i64| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
        };
        Some(Self {
            names: names.unwrap_or_default(),
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
        })
    }

    /// Whether clients refuse the certificate at this time.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }

    /// Whether clients do not accept the certificate yet.
    pub fn is_early(&self, now: SystemTime) -> bool {
        now < self.not_before
    }
}

/// Reads both files and reports what is wrong with them; validity in time is left to the caller.
pub(super) fn examine(
    files: &CertificateFiles,
    certificate_at: &At,
    key_at: &At,
    report: &mut Report,
) -> Option<CertificateFacts> {
    let chain = read_chain(&files.certificate, certificate_at, report);
    let key = read_key(&files.key, key_at, report);
    let facts = chain.as_ref().and_then(|chain| match CertificateContent::parse(&chain[0]) {
        Some(content) => Some(CertificateFacts { files: files.clone(), content }),
        None => {
            let words = format!("{} is not an X.509 certificate", files.certificate.display());
            report.problem(certificate_at.problem(words, "a PEM certificate chain", "export it again as PEM"));
            None
        }
    })?;
    let provider: Arc<CryptoProvider> = rustls::crypto::aws_lc_rs::default_provider().into();
    match CertifiedKey::from_der(chain?, key?, &provider) {
        Ok(_) => Some(facts),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let words = format!("{} is not the key of {}", files.key.display(), files.certificate.display());
            report.problem(key_at.problem(
                words,
                "the private key of the certificate",
                "name the pair that was issued together",
            ));
            None
        }
        Err(error) => {
            let words = format!("{} cannot be used ({error})", files.key.display());
            report.problem(key_at.problem(words, "an RSA, ECDSA or Ed25519 key", "make a key of that kind"));
            None
        }
    }
}

fn read_chain(path: &Path, at: &At, report: &mut Report) -> Option<Vec<CertificateDer<'static>>> {
    let bytes = read(path, at, report)?;
    match CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if !chain.is_empty() => Some(chain),
        Ok(_) | Err(_) => {
            let words = format!("{} holds no PEM certificate", path.display());
            let remedy = "name the full chain, which begins with -----BEGIN CERTIFICATE-----";
            report.problem(at.problem(words, "a PEM certificate chain", remedy));
            None
        }
    }
}

fn read_key(path: &Path, at: &At, report: &mut Report) -> Option<PrivateKeyDer<'static>> {
    let bytes = read(path, at, report)?;
    if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        report.warn(at, format!("everybody may read the private key {}; chmod o-r closes it", path.display()));
    }
    if let Ok(key) = PrivateKeyDer::from_pem_slice(&bytes) {
        return Some(key);
    }
    let words = format!("{} holds no PEM private key", path.display());
    let remedy = "name the key without a passphrase, which begins with -----BEGIN PRIVATE KEY-----";
    report.problem(at.problem(words, "a PEM private key", remedy));
    None
}

fn read(path: &Path, at: &At, report: &mut Report) -> Option<Vec<u8>> {
    match fs::read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            report.problem(at.problem(
                format!("{} cannot be read ({error})", path.display()),
                "a PEM file",
                "check the path and that the user ferryd runs as may read it",
            ));
            None
        }
    }
}

fn name_words(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some((*name).to_owned());
    }
    let GeneralName::IPAddress(bytes) = name else { return None };
    let v4 = <[u8; 4]>::try_from(*bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
    v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examined(certificate: &str, key: &str) -> (Option<CertificateFacts>, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let files =
            CertificateFiles { certificate: directory.path().join("cert.pem"), key: directory.path().join("key.pem") };
        fs::write(&files.certificate, certificate).unwrap();
        fs::write(&files.key, key).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        let mut report = Report::default();
        let facts = examine(&files, &At::new("f.toml", "tls.certificate"), &At::new("f.toml", "tls.key"), &mut report);
        (facts, report.problems.iter().map(ToString::to_string).collect())
    }

    fn pair(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_good_pair_tells_its_names() {
        let (certificate, key) = pair(&["turn.example.org", "192.0.2.1"]);
        let (facts, problems) = examined(&certificate, &key);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(facts.unwrap().content.names, ["turn.example.org", "192.0.2.1"]);
    }

    fn judged(days: u64, today: u64) -> Validity {
        let day = |number| UNIX_EPOCH + Duration::from_secs(number * 86400);
        let files = CertificateFiles { certificate: "/c.pem".into(), key: "/k.pem".into() };
        let content = CertificateContent { names: Vec::new(), not_before: day(10), not_after: day(days) };
        CertificateFacts { files, content }.validity(day(today))
    }

    #[test]
    fn certificates_are_judged_by_their_days() {
        let soon = "/c.pem: expires in 10 days; renew it and reload ferryd";
        assert_eq!(judged(100, 20), Validity::Good(80));
        assert_eq!(judged(100, 90), Validity::Soon(soon.to_owned()));
        let refused = |validity: Validity, words: &str| {
            assert!(matches!(&validity, Validity::Refused(text) if text.starts_with(words)), "{validity:?}");
        };
        refused(judged(100, 103), "/c.pem: expired 3 days ago");
        refused(judged(100, 5), "/c.pem: is not valid yet");
    }

    #[test]
    fn the_key_of_another_certificate_is_refused() {
        let (facts, problems) = examined(&pair(&["a.example"]).0, &pair(&["b.example"]).1);
        assert!(facts.is_none());
        assert!(problems[0].contains("tls.key: ") && problems[0].contains("is not the key of"), "{problems:?}");
    }

    #[test]
    fn garbage_in_both_files_is_two_problems() {
        let (_, problems) = examined("hello", "world");
        assert_eq!(problems.len(), 2);
        assert!(problems[0].contains("holds no PEM certificate"), "{problems:?}");
        assert!(problems[1].contains("holds no PEM private key"), "{problems:?}");
    }

    #[test]
    fn the_two_files_swapped_are_told() {
        let (certificate, key) = pair(&["a.example"]);
        let (_, problems) = examined(&key, &certificate);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
