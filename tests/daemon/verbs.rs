//! `check`, `credential` and `probe`.

use std::path::{Path, PathBuf};

use crate::certificate::Certificate;
use crate::client::User;
use crate::ferryd::{ALICE, Ended, Ferryd, PASSWORD, run};
use crate::first_run::user_of;
use crate::independent::{self, Way};

fn shipped() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = Vec::new();
    for directory in [directory.clone(), directory.join("examples")] {
        files.extend(std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files
}

#[test]
fn every_shipped_configuration_passes_the_check() {
    let files = shipped();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let ended = run(&["check", "--config", file.to_str().unwrap()]);
        let said = &ended.expect_success().stdout;
        assert!(said.starts_with(&format!("configuration  {}\n", file.display())), "{said}");
    }
}

#[test]
fn a_check_tells_what_the_daemon_would_do_and_leaves_nothing() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.set("relay.advertised-addresses", "[\"203.0.113.5\"]");
    });
    let files = || std::fs::read_dir(&ferryd.config.directory).unwrap().count();
    let before = files();
    let ended = ferryd.verb(&["check"]);
    let said = &ended.expect_success().stdout;
    let (address, ip) = (ferryd.address(), ferryd.config.ip);
    for words in [
        format!("udp {address}, tcp+tls {address}"),
        format!("relay          {ip} told as 203.0.113.5, ports 49152 to 65535"),
        "1 users, 0 shared secrets".to_owned(),
        "localhost (".to_owned(),
    ] {
        assert!(said.contains(&words), "{words:?} is missing in:\n{said}");
    }
    assert!(!said.contains(PASSWORD), "{said}");
    assert_eq!(files(), before);
}

#[test]
fn a_credential_relays_and_its_urls_lead_to_the_server() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.unset("auth.user").set("auth.shared-secrets", "[\"Zq8vN3xT0pLw6RbYc2HsKd5M\"]");
    });
    let ended = ferryd.verb(&["credential", "--ttl", "10m", "dora"]);
    let json: serde_json::Value = serde_json::from_str(&ended.expect_success().stdout).unwrap();
    let address = ferryd.address();
    let urls = serde_json::json!([
        format!("turn:{address}?transport=udp"),
        format!("turn:{address}?transport=tcp"),
        format!("turns:localhost:{}?transport=tcp", address.port()),
    ]);
    assert_eq!(json["iceServers"][0]["urls"], urls);
    let user = user_of(&ended.stdout);
    assert!(user.name.ends_with(":dora"));
    independent::relays(address, &Way::Udp, &user);
    independent::relays(address, &Way::Tcp, &user);
    let nameless = ferryd.verb(&["credential"]);
    independent::relays(address, &Way::Udp, &user_of(&nameless.expect_success().stdout));
}

#[test]
fn a_credential_without_a_secret_says_what_to_do() {
    let ferryd = Ferryd::start(|_| {});
    let words = ["ferryd.toml: auth.shared-secrets: ", "expected a shared secret", "openssl rand"];
    ferryd.verb(&["credential", "dora"]).expect_failure(78, &words);
    run(&["credential"]).expect_failure(78, &["auth.shared-secrets", "set state-directory"]);
    run(&["credential", "--ttl", "soon"]).expect_failure(2, &["expected a duration such as 90s"]);
}

#[cfg(feature = "probe")]
fn probe(url: &str, user: &User, arguments: &[&str]) -> Ended {
    run(&[&["probe", url, "-u", &user.name, "-p", &user.password], arguments].concat())
}

#[cfg(feature = "probe")]
#[test]
fn a_probe_passes_over_udp_tcp_and_tls() {
    // The default policy: the two ends of a probe are relayed addresses of the server.
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.unset("peers.allow");
    });
    let (address, alice) = (ferryd.address(), User::new(ALICE, PASSWORD));
    let words = "10 of 10 packets there and back by channels";
    for url in [format!("turn:{address}"), format!("turn:{address}?transport=tcp")] {
        let ended = probe(&url, &alice, &[]);
        assert!(ended.expect_success().stdout.contains(words), "{ended:#?}");
    }
    let certificate = Certificate::of(&ferryd.config);
    let url = format!("turns:{address}");
    let ended = probe(&url, &alice, &["--insecure"]);
    assert!(ended.expect_success().stdout.contains(words), "{ended:#?}");
    let ca = certificate.certificate.to_str().unwrap();
    probe(&url, &alice, &["--ca", ca]).expect_failure(1, &["the certificate is for localhost, not for"]);
    probe(&url, &alice, &[]).expect_failure(1, &["is not trusted"]);
}

#[cfg(feature = "probe")]
#[test]
fn a_probe_trusts_the_certificate_that_it_is_given() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        let address = format!("*:{}", config.port);
        config.listen(&[(&address, "tcp tls")]);
    });
    let certificate = Certificate::of(&ferryd.config);
    let url = format!("turns:localhost:{}", ferryd.config.port);
    let ended = probe(&url, &User::new(ALICE, PASSWORD), &["--ca", certificate.certificate.to_str().unwrap()]);
    assert!(ended.expect_success().stdout.contains("10 of 10 packets"), "{ended:#?}");
}

#[cfg(feature = "probe")]
#[test]
fn a_probe_fails_in_words_for_a_wrong_password_and_a_dead_port() {
    let ferryd = Ferryd::start(|_| {});
    let address = ferryd.address();
    let wrong = User::new(ALICE, "wrong");
    let words = ["401", "the username or password is wrong"];
    probe(&format!("turn:{address}"), &wrong, &[]).expect_failure(1, &words);
    probe(&format!("turn:{address}?transport=tcp"), &wrong, &[]).expect_failure(1, &words);
    ferryd.stop().expect_success();
    let dead = format!("{address} is closed for udp; check that the server runs");
    probe(&format!("turn:{address}"), &wrong, &[]).expect_failure(1, &[&dead]);
    let dead = format!("{address} refuses tcp; check that the server runs");
    probe(&format!("turn:{address}?transport=tcp"), &wrong, &[]).expect_failure(1, &[&dead]);
    probe(&format!("turns:{address}"), &wrong, &[]).expect_failure(1, &[&dead]);
}
