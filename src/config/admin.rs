//! `admin`: the socket of the admin API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::problem::Report;
use super::section::Section;
use super::settings::CertificateFiles;
use super::strength::{STRENGTH_BITS_MIN, strength_bits};
use super::values::read_token;
use crate::control::remote::{self, Access, RemoteDoor};
use crate::control::settings::{RUNTIME_DIRECTORY, Settings, Socket};

/// Reads where the API is served; `runtime_directory` is the one that the service manager made, `common` the certificate of
/// the listeners.
pub(super) fn read(
    mut section: Section,
    runtime_directory: Option<PathBuf>,
    common: Option<&CertificateFiles>,
    report: &mut Report,
) -> Settings {
    let socket = match section.path("socket", report).map(|entry| entry.value) {
        None => Socket::Default,
        Some(path) if path == Path::new("off") => Socket::Off,
        Some(path) => Socket::At(path),
    };
    let group_access = section.truth("group-access", report).is_some_and(|entry| entry.value);
    let remote = read_remote(&mut section, common, report);
    section.finish(report);
    let common = || Some(PathBuf::from(RUNTIME_DIRECTORY)).filter(|directory| directory.is_dir());
    Settings {
        socket,
        group_access,
        remote,
        runtime_directory: runtime_directory.or_else(common),
        ..Settings::default()
    }
}

/// What is served to other hosts: over TLS, and never to everybody.
fn read_remote(
    section: &mut Section,
    common: Option<&CertificateFiles>,
    report: &mut Report,
) -> Option<remote::Settings> {
    let address = section.text("address", report).filter(|entry| !entry.value.is_empty());
    let token = section.path("token-file", report);
    let authorities = section.path("client-ca", report);
    let (certificate, key) = (section.path("certificate", report), section.path("key", report));
    let entry = address?;
    let files = [&token, &authorities, &certificate, &key].into_iter().flatten();
    report.secret_files.extend(files.map(|entry| entry.value.clone()));
    let problems = report.problems.len();
    let address = entry.value.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    if address.is_none() {
        let remedy = "write \"192.0.2.1:9642\", or \"\" for the socket alone";
        report.problem(entry.at.problem(format!("found \"{}\"", entry.value), "an address with a port", remedy));
    }
    if token.is_none() && authorities.is_none() {
        let remedy = "set admin.token-file (`openssl rand -base64 32`), admin.client-ca, or both";
        let words = "other hosts are let in, and nothing is asked of them";
        report.problem(entry.at.problem(words, "a token or authorities of clients", remedy));
    }
    let certificate = match (certificate, key, common) {
        (Some(certificate), Some(key), _) => Some(CertificateFiles { certificate: certificate.value, key: key.value }),
        (None, None, Some(common)) => Some(common.clone()),
        (None, None, None) | (Some(_), None, _) | (None, Some(_), _) => {
            let remedy = "set admin.certificate and admin.key; without both those of [tls] serve";
            report.problem(entry.at.problem("found no certificate with its key", "TLS for the admin API", remedy));
            None
        }
    };
    let token = token.and_then(|entry| {
        let token = read_token(&entry, report)?;
        let bits = strength_bits(token.expose());
        if bits < STRENGTH_BITS_MIN {
            let words = format!("a token of an estimated {bits} bits");
            let expected = format!("{STRENGTH_BITS_MIN} bits at least");
            report.problem(entry.at.problem(words, expected, "make one by `openssl rand -base64 32`"));
        }
        Some(token)
    });
    let access = Access { token, client_authorities: authorities.map(|entry| entry.value) };
    let settings = remote::Settings { address: address?, certificate: certificate?, access };
    if report.problems.len() > problems {
        return None;
    }
    match RemoteDoor::new(&settings) {
        Ok(_) => Some(settings),
        Err(error) => {
            let remedy = "see admin.certificate, admin.key and admin.client-ca";
            report.problem(entry.at.problem(
                format!("cannot be served: {error}"),
                "a certificate with its key",
                remedy,
            ));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load_text, problems};
    use super::*;

    #[test]
    fn the_socket_is_in_the_runtime_directory_unless_it_is_named() {
        let served = |text: &str| {
            let settings = load_text(text).unwrap().settings.admin;
            Settings { runtime_directory: Some("/run/turn".into()), ..settings }.served()
        };
        assert_eq!(served(""), Some("/run/turn/admin.sock".into()));
        assert_eq!(served("[admin]\nsocket = \"/srv/a.sock\""), Some("/srv/a.sock".into()));
        assert_eq!(served("[admin]\nsocket = \"off\""), None);
        assert!(load_text("[admin]\ngroup-access = true").unwrap().settings.admin.group_access);
        assert!(problems("[admin]\nsocket = 1")[0].contains("admin.socket: found 1"));
    }

    #[test]
    fn other_hosts_are_never_let_in_without_a_token_or_a_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let made = rcgen::generate_simple_self_signed(vec!["turn.example.org".to_owned()]).unwrap();
        std::fs::write(path("chain.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(path("token"), "3q2XwTz8LkVb6Yp0RmUe4NcHs7GdFjAa\n").unwrap();
        std::fs::write(path("weak"), "sesame\n").unwrap();
        let quoted = |name: &str| format!("\"{}\"", path(name).display());
        let tls = format!("certificate = {}\nkey = {}\n", quoted("chain.pem"), quoted("key.pem"));
        let with = |text: &str| format!("[admin]\naddress = \"127.0.0.1:9642\"\n{text}");
        let token = format!("token-file = {}\n", quoted("token"));
        let found = |text: &str| problems(&with(text)).join("\n");
        assert!(found(&tls).contains("admin.address: other hosts are let in, and nothing is asked of them"));
        assert!(found(&token).contains("admin.address: found no certificate with its key"));
        assert!(found(&format!("{tls}token-file = {}", quoted("weak"))).contains("a token of an estimated"));
        let keys = found(&format!("{tls}client-ca = {}", quoted("key.pem")));
        assert!(keys.contains("holds no PEM certificate") && !keys.contains("PRIVATE"), "{keys}");
        assert!(problems("[admin]\naddress = \"somewhere\"")[0].contains("admin.address: found \"somewhere\""));
        for access in [token.clone(), format!("client-ca = {}", quoted("chain.pem"))] {
            let settings = load_text(&with(&format!("{tls}{access}"))).unwrap().settings;
            assert!(settings.admin.remote.is_some() && settings.turn.peers.service_ports.contains(&9642));
            assert!(!format!("{settings:?}").contains("3q2X"), "the token is not shown");
        }
        // The certificate of the listeners does as well.
        let common = format!("{}[tls]\n{tls}", with(&token));
        assert!(load_text(&common).unwrap().settings.admin.remote.is_some());
    }
}
