//! What a configuration makes of certificates: which key is wrong, whether the private key is private, and for how long
//! the certificate is good.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use super::problem::{At, Report};
use super::settings::CertificateFiles;
use crate::net::certificate::{self, CertificateContent, TlsError, TlsErrorWords};

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

/// Examines both files and reports what is wrong with them; validity in time is left to the caller.
pub(super) fn examine(
    files: &CertificateFiles,
    certificate_at: &At,
    key_at: &At,
    report: &mut Report,
) -> Option<CertificateFacts> {
    if fs::metadata(&files.key).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        let words = format!("everybody may read the private key {}; chmod o-r closes it", files.key.display());
        report.warn(key_at, words);
    }
    match certificate::examine(files) {
        Ok(content) => Some(CertificateFacts { files: files.clone(), content }),
        Err(errors) => {
            for error in errors {
                let at = if is_about_key(&error) { key_at } else { certificate_at };
                let TlsErrorWords { found, expected, remedy } = error.words();
                report.problem(at.problem(found, expected, remedy));
            }
            None
        }
    }
}

/// Whether `key` is to be changed, rather than `certificate`.
fn is_about_key(error: &TlsError) -> bool {
    match error {
        TlsError::UnreadableKey { .. }
        | TlsError::NoKey { .. }
        | TlsError::EncryptedKey { .. }
        | TlsError::UnsupportedKey { .. }
        | TlsError::KeyMismatch { .. } => true,
        TlsError::NoCertificates
        | TlsError::UnreadableCertificate { .. }
        | TlsError::NoCertificate { .. }
        | TlsError::InvalidCertificate { .. }
        | TlsError::ChainOrder { .. }
        | TlsError::Library(_)
        | TlsError::Dtls { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

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

    #[test]
    fn each_problem_is_told_at_the_key_to_change() {
        let ((certificate, key), (other, _)) = (pair(&["a.example"]), pair(&["b.example"]));
        let only = |certificate: &str, key: &str, words: &[&str]| {
            let (_, problems) = examined(certificate, key);
            assert!(problems.len() == 1 && words.iter().all(|word| problems[0].contains(word)), "{problems:?}");
        };
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        only(&certificate, encrypted, &["tls.key: ", "passphrase", "openssl pkey"]);
        let unsupported = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        only(&certificate, unsupported, &["tls.key: ", "cannot be used (", "Ed25519"]);
        only(&[other, certificate].concat(), &key, &["tls.certificate: ", "a later certificate", "reorder"]);
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        only(garbage, &key, &["tls.certificate: ", "is not an X.509 certificate (", "export it again"]);
    }
}
