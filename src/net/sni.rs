//! The choice among several certificates by the name that a client asks for.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::CertificateContent;
use super::dtls;

/// A loaded certificate.
pub(super) struct Entry {
    pub(super) file: PathBuf,
    /// A first label `*` of a name stands for any one label (RFC 6125 section 6.4.3).
    pub(super) content: CertificateContent,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) dtls: dtls::Identity,
}

impl Entry {
    fn usable(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }
}

/// Resolves SNI (RFC 6066 section 3) to a certificate; the list is replaced as a whole by a reload.
pub(super) struct Certificates(RwLock<Arc<[Entry]>>);

impl Certificates {
    pub(super) fn new(entries: Vec<Entry>) -> Self {
        Self(RwLock::new(entries.into()))
    }

    /// Replaces all certificates; handshakes in flight keep what they have chosen.
    pub(super) fn replace(&self, entries: Vec<Entry>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = entries.into();
    }

    /// The certificate that answers a client over DTLS; the choice is the same as over TLS.
    pub(super) fn identity(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<dtls::Identity> {
        choose(&self.entries(), name, schemes).map(|entry| entry.dtls.clone())
    }

    /// The certificate of a name, when there is one.
    #[cfg(feature = "dtls")]
    pub(super) fn named(&self, name: &str) -> Option<dtls::Identity> {
        let entries = self.entries();
        let named = |matches: fn(&str, &str) -> bool| {
            entries.iter().find(|entry| entry.content.names.iter().any(|pattern| matches(pattern, name)))
        };
        named(is_exact).or_else(|| named(is_wildcard)).map(|entry| entry.dtls.clone())
    }

    /// The certificates in use.
    pub(super) fn entries(&self) -> Arc<[Entry]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let entries = self.entries();
        choose(&entries, hello.server_name(), hello.signature_schemes()).map(|entry| entry.key.clone())
    }
}

/// Keys are left out.
impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries().iter().map(|entry| &entry.file)).finish()
    }
}

/// Chooses by exact name, then by wildcard, then the first; among equals the first whose key the client can verify,
/// so that an ECDSA and an RSA certificate may share a name.
fn choose<'a>(entries: &'a [Entry], name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&'a Entry> {
    let named = |matches: fn(&str, &str) -> bool| {
        let name = name?;
        entries
            .iter()
            .find(|entry| entry.content.names.iter().any(|pattern| matches(pattern, name)) && entry.usable(schemes))
    };
    named(is_exact)
        .or_else(|| named(is_wildcard))
        .or_else(|| entries.iter().find(|entry| entry.usable(schemes)))
        .or(entries.first())
}

fn is_exact(pattern: &str, name: &str) -> bool {
    pattern.eq_ignore_ascii_case(name)
}

fn is_wildcard(pattern: &str, name: &str) -> bool {
    let Some(parent) = pattern.strip_prefix("*.") else { return false };
    name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::certificate::load_pair;
    use crate::net::test_tls::TestCertificate;

    const ALL: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];

    fn entries(names: &[&[&str]]) -> Vec<Entry> {
        let entry = |(i, names): (usize, &&[&str])| {
            let test = TestCertificate::new(names);
            let (content, key) = load_pair(&test.files).unwrap();
            Entry {
                file: i.to_string().into(),
                content,
                key: Arc::new(key),
                dtls: dtls::identity(&test.files).unwrap(),
            }
        };
        names.iter().enumerate().map(entry).collect()
    }

    fn chosen(entries: &[Entry], name: Option<&str>) -> String {
        choose(entries, name, &ALL).unwrap().file.display().to_string()
    }

    #[test]
    fn exact_names_come_before_wildcards_and_the_first_is_the_default() {
        let entries = entries(&[&["first.example"], &["*.example.org"], &["turn.example.org", "b.example"]]);
        assert_eq!(chosen(&entries, Some("turn.example.org")), "2");
        assert_eq!(chosen(&entries, Some("TURN.Example.ORG")), "2");
        assert_eq!(chosen(&entries, Some("other.example.org")), "1");
        assert_eq!(chosen(&entries, Some("a.other.example.org")), "0", "a wildcard is one label");
        assert_eq!(chosen(&entries, Some("example.org")), "0");
        assert_eq!(chosen(&entries, None), "0");
    }

    #[test]
    fn a_key_that_the_client_cannot_verify_is_passed_over() {
        let entries = entries(&[&["first.example"], &["b.example"]]);
        let rsa_only = [SignatureScheme::RSA_PSS_SHA256];
        let fallback = choose(&entries, Some("b.example"), &rsa_only).unwrap();
        assert_eq!(fallback.file.display().to_string(), "0");
    }

    #[test]
    fn debug_output_is_files_alone() {
        let certificates = Certificates::new(entries(&[&["first.example"]]));
        assert_eq!(format!("{certificates:?}"), "[\"0\"]");
    }
}
