//! Certificates, the state directory, and the file of session records.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::Finding;
use crate::config::{CertificateFacts, Validity};

pub(super) fn certificates(facts: &[CertificateFacts], now: SystemTime) -> Vec<Finding> {
    const CHECK: &str = "certificate";
    let mut findings = Vec::new();
    for facts in facts {
        let file = facts.files.certificate.display();
        let renew = "renew it, copy chain and key, `systemctl reload ferryd`";
        findings.push(match facts.validity(now) {
            Validity::Good(days) => Finding::good(CHECK, format!("{file}: {days} days left")),
            Validity::Soon(words) => Finding::warning(CHECK, words, renew),
            Validity::Refused(words) => Finding::bad(CHECK, words, renew),
        });
        if facts.content.names.is_empty() {
            let found = format!("{file} has no subjectAltName: browsers refuse it");
            findings.push(Finding::bad(CHECK, found, "have one made for the DNS name in the turns: URLs"));
        }
        findings.extend(chain(&facts.files.certificate));
    }
    findings
}

/// Whether the file has what stands between the certificate and an authority that clients know.
fn chain(file: &Path) -> Option<Finding> {
    let text = fs::read(file).ok()?;
    let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().ok()?;
    let mut names = Vec::new();
    for certificate in &certificates {
        let (_, read) = x509_parser::parse_x509_certificate(certificate).ok()?;
        names.push((read.subject().as_raw().to_vec(), read.issuer().as_raw().to_vec()));
    }
    judge_chain(&file.display().to_string(), &names)
}

/// Judges certificates by subject and issuer, the server's own first.
fn judge_chain(file: &str, names: &[(Vec<u8>, Vec<u8>)]) -> Option<Finding> {
    const CHECK: &str = "certificate";
    let broken = names.windows(2).any(|pair| pair[0].1 != pair[1].0);
    if broken {
        let found =
            format!("{file}: a certificate in it is not the issuer of the one before: clients may refuse the chain");
        return Some(Finding::warning(
            CHECK,
            found,
            "the server's certificate first, then each issuer, as fullchain.pem has them",
        ));
    }
    match names {
        [(subject, issuer)] if subject == issuer => {
            let found = format!("{file} is signed by itself: browsers refuse it");
            Some(Finding::warning(CHECK, found, "a certificate of a public authority, or clients that trust this one"))
        }
        [(subject, issuer)] if subject != issuer => {
            let found = format!("{file} has no issuer in it: most clients cannot fill the gap");
            Some(Finding::warning(CHECK, found, "name the full chain: certbot's fullchain.pem, not cert.pem"))
        }
        _ => None,
    }
}

/// Where session records are written; the daemon makes the file, and no directory.
pub(super) fn records(file: &Path) -> Finding {
    const CHECK: &str = "records";
    let place = file.display();
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::metadata(file), directory.is_dir()) {
        (Ok(metadata), _) if metadata.is_dir() => {
            Finding::bad(CHECK, format!("{place} is a directory"), "name a file in it: sessions.file")
        }
        (Ok(_), _) | (Err(_), true) => Finding::good(CHECK, format!("session records go to {place}")),
        (Err(_), false) => Finding::warning(
            CHECK,
            format!("{} is not there, and without it ferryd does not start", directory.display()),
            "make it for the user ferryd runs as; /var/log/ferryd is made by systemd (LogsDirectory=)",
        ),
    }
}

/// The directory of the shared secret and the nonce key.
pub(super) fn state(directory: Option<&Path>) -> Vec<Finding> {
    const CHECK: &str = "state";
    let Some(directory) = directory else {
        let found = "nothing is kept: credentials and nonces end with the process, unless both secrets are configured";
        return vec![Finding::warning(CHECK, found, "state-directory = \"/var/lib/ferryd\"")];
    };
    let place = directory.display();
    let metadata = match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => {
            return vec![Finding::bad(CHECK, format!("{place} is no directory"), "remove it, or name another one")];
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let found = format!("{place} is not there yet");
            return vec![Finding::warning(
                CHECK,
                found,
                "systemd makes it (StateDirectory=); elsewhere `install -d -m 700`",
            )];
        }
        Err(error) => {
            let found = format!("{place} cannot be looked at ({error})");
            return vec![Finding::warning(CHECK, found, "run ferryd doctor as root, or as the user of the daemon")];
        }
    };
    let mut findings = Vec::new();
    if metadata.permissions().mode() & 0o077 != 0 {
        let found = format!("{place} is open to others (mode {:o})", metadata.permissions().mode() & 0o777);
        findings.push(Finding::warning(CHECK, found, format!("`chmod 700 {place}`")));
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(file) = entry.metadata() else { continue };
        let path = entry.path();
        if file.uid() != metadata.uid() {
            let found =
                format!("{} belongs to user {}, and the directory to {}", path.display(), file.uid(), metadata.uid());
            findings.push(Finding::bad(CHECK, found, format!("`chown --reference={place} {}`", path.display())));
        } else if file.is_file() && file.permissions().mode() & 0o077 != 0 {
            let found = format!("{} is open to others (mode {:o})", path.display(), file.permissions().mode() & 0o777);
            findings.push(Finding::warning(CHECK, found, format!("`chmod 600 {}`", path.display())));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(CHECK, format!("{place}, of user {}", metadata.uid())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_chain_is_complete_and_in_order() {
        let name = |text: &str| text.as_bytes().to_vec();
        let certificate = |subject: &str, issuer: &str| (name(subject), name(issuer));
        let words = |names: &[(Vec<u8>, Vec<u8>)]| judge_chain("f", names).map(|finding| finding.found);
        assert_eq!(words(&[certificate("a", "i"), certificate("i", "root")]), None);
        assert!(words(&[certificate("a", "i")]).unwrap().contains("no issuer"));
        assert!(words(&[certificate("a", "a")]).unwrap().contains("signed by itself"));
        assert!(words(&[certificate("i", "root"), certificate("a", "i")]).unwrap().contains("not the issuer"));
    }

    #[test]
    fn records_need_a_directory_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("records.jsonl");
        assert_eq!(records(&file).verdict, Verdict::Good, "the daemon makes it");
        fs::write(&file, "").unwrap();
        assert_eq!(records(&file).verdict, Verdict::Good);
        assert_eq!(records(Path::new("records.jsonl")).verdict, Verdict::Good, "beside what runs it");
        assert_eq!(records(directory.path()).verdict, Verdict::Bad);
        let nowhere = records(&directory.path().join("nowhere/records.jsonl"));
        assert!(nowhere.verdict == Verdict::Warning && nowhere.found.contains("nowhere is not there"), "{nowhere}");
    }

    #[test]
    fn the_state_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(state(None)[0].verdict, Verdict::Warning);
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        let secret = path.join("shared-secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(state(Some(path))[0].verdict, Verdict::Good);
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(state(Some(path))[0].remedy.as_ref().unwrap().contains("chmod 600"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(state(Some(path)).len(), 2);
        assert_eq!(state(Some(&path.join("none")))[0].verdict, Verdict::Warning);
        assert_eq!(state(Some(&secret))[0].verdict, Verdict::Bad);
    }
}
