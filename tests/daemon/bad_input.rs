//! What ferryd refuses to start with, and what it says.

use std::fs;
use std::net::{TcpListener, UdpSocket};

use crate::certificate::Certificate;
use crate::client::Client;
use crate::ferryd::{Config, Ended, Ferryd, refused, run};

/// sysexits.h: EX_CONFIG. systemd does not start such a daemon again.
const EXIT_CONFIG: i32 = 78;
/// What may be gone at the next start.
const EXIT_FAILURE: i32 = 1;

/// The configuration is refused, and every problem is one line with these words.
fn lists(change: impl FnOnce(&mut Config), problems: &[&[&str]]) {
    let ended = refused(change);
    for words in problems {
        ended.expect_failure(EXIT_CONFIG, words);
        let line = ended.stderr.lines().find(|line| words.iter().all(|word| line.contains(word)));
        let line = line.unwrap_or_else(|| panic!("no line has all of {words:?}:\n{}", ended.stderr));
        assert!(line.starts_with("error: ") && line.contains(", expected ") && line.contains("; "), "{line}");
    }
    assert_eq!(ended.stderr.lines().count(), problems.len(), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
}

#[test]
fn an_unknown_key_is_refused_with_the_one_that_was_meant() {
    lists(
        |config| _ = config.set("relay.port-mim", 50_000).text("realms", "x"),
        &[
            &["ferryd.toml: relay.port-mim: unknown key", "did you mean port-min?"],
            &["ferryd.toml: realms: unknown key", "did you mean realm?"],
        ],
    );
}

#[test]
fn all_bad_values_are_listed_and_not_only_the_first() {
    lists(
        |config| {
            config.set("workers", -1).text("log.level", "loud").set("relay.port-min", 80);
            config
                .text("relay.lifetime-default", "2d")
                .text("auth.nonce-lifetime", "10s")
                .set("peers.allow", "[\"10.0.0.1/8\"]");
            config.set("auth.user", "[{ name = \"bob\", password = \"secret1\" }]");
            config.listen(&[("127.0.0.1", "udp")]);
        },
        &[
            &["workers: ", "a whole number from 0 to 1024"],
            &["log.level: ", "one of \"error\""],
            &["relay.port-min: ", "from 1024 to 65535"],
            &["relay.lifetime-default: ", "a duration from 1s to 1h"],
            &["auth.nonce-lifetime: ", "a duration from 1m to 1h"],
            &["peers.allow", "10.0.0.0/8", "10.0.0.1"],
            &["auth.user #1 password: an estimated strength of"],
            &["listener #1 address: ", "add the port: \"127.0.0.1:3478\""],
        ],
    );
}

#[test]
fn a_secret_is_never_quoted() {
    let ended = refused(|config| _ = config.set("auth.user", "[{ name = \"bob\", password = \"hush-hush\" }]"));
    assert!(!ended.expect_failure(EXIT_CONFIG, &["password"]).stderr.contains("hush"), "{}", ended.stderr);
    let ended = refused(|config| _ = config.set("auth.shared-secrets", "[\"hush-hush"));
    assert!(!ended.expect_failure(EXIT_CONFIG, &["TOML"]).stderr.contains("hush"), "{}", ended.stderr);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    run(&["--config", "/nonexistent/ferryd.toml"])
        .expect_failure(EXIT_CONFIG, &["/nonexistent/ferryd.toml: cannot be read", "check the path"]);
}

#[test]
fn a_variable_of_the_environment_is_named_like_a_file() {
    let ended = crate::ferryd::Process::spawn(
        crate::ferryd::command(&["check"]).env("FERRYD_RELAY__PORT_MIN", "many").env("FERRYD_LISTNER", "x"),
    );
    let words =
        ["environment variable FERRYD_RELAY__PORT_MIN: relay.port-min: ", "FERRYD_LISTNER: ", "FERRYD_LISTENER"];
    ended.end().expect_failure(EXIT_CONFIG, &words);
}

#[test]
fn a_certificate_that_is_missing_is_refused() {
    lists(
        |config| _ = config.text("tls.certificate", "/nonexistent.pem").text("tls.key", "/nonexistent.key"),
        &[
            &["ferryd.toml: tls.certificate: /nonexistent.pem cannot be read", "expected a PEM file"],
            &["ferryd.toml: tls.key: /nonexistent.key cannot be read", "expected a PEM file"],
        ],
    );
}

#[test]
fn a_certificate_of_garbage_is_refused() {
    lists(
        |config| {
            let made = Certificate::configured(config);
            fs::write(&made.certificate, "garbage").unwrap();
            fs::write(&made.key, "garbage").unwrap();
        },
        &[
            &["tls.certificate: ", "ferryd.pem holds no PEM certificate", "-----BEGIN CERTIFICATE-----"],
            &["tls.key: ", "ferryd.key holds no PEM private key", "-----BEGIN PRIVATE KEY-----"],
        ],
    );
}

#[test]
fn the_key_of_another_certificate_is_refused() {
    lists(
        |config| {
            let (one, other) = (Certificate::configured(config), Certificate::new(&config.directory, "other"));
            config.text("tls.certificate", one.certificate.display()).text("tls.key", other.key.display());
        },
        &[&["tls.key: ", "other.key is not the key of ", "ferryd.pem", "issued together"]],
    );
}

#[test]
fn a_tls_listener_without_a_certificate_is_refused() {
    lists(
        |config| {
            let address = config.address().to_string();
            config.listen(&[(&address, "udp"), (&address, "tcp tls")]);
        },
        &[&["listener #2", "answers TLS alone", "set tls.certificate and tls.key"]],
    );
}

#[test]
fn an_expired_certificate_is_an_error_in_the_log_and_a_failed_check_but_no_outage() {
    let ferryd = Ferryd::start(|config| Certificate::until(&config.directory.clone(), "ferryd", 2021).set(config));
    Client::udp(ferryd.address()).allocate();
    Client::tcp(ferryd.address()).allocate();
    let log = ferryd.log();
    let line = log.lines().find(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("no error: {log}"));
    assert!(line.contains("ferryd.pem: expired ") && line.contains("renew it and reload ferryd"), "{line}");
    let ended = ferryd.verb(&["check"]);
    ended.expect_failure(EXIT_CONFIG, &["error: ", "ferryd.pem: expired ", "renew it and reload ferryd"]);
    assert!(ended.stdout.contains("localhost (not valid)"), "{}", ended.stdout);
}

#[test]
fn a_relay_address_of_another_host_is_refused() {
    lists(
        |config| _ = config.set("relay.addresses", "[\"203.0.113.77\"]"),
        &[&["relay.addresses", "found 203.0.113.77, which is no address of this host", "relay.advertised-addresses"]],
    );
    lists(
        |config| _ = config.listen(&[("203.0.113.77:3478", "udp")]),
        &[&["listener #1 address: ", "203.0.113.77", "behind 1:1 NAT listen on *"]],
    );
}

/// The words for a port that somebody has, once and in full.
fn tells_of_the_port(ended: &Ended, what: &str, address: &str) {
    ended.expect_failure(
        EXIT_FAILURE,
        &[
            "ferryd.toml: listener: ",
            &format!("cannot open {what} listener on {address}: the port is in use"),
            "expected a free port",
            "stop what has it",
            "or listen on another port",
        ],
    );
    assert_eq!(ended.stderr.matches("cannot open").count(), 1, "once: {}", ended.stderr);
    assert_eq!(ended.stdout, "");
}

#[test]
fn a_port_that_another_ferryd_has_is_told() {
    let first = Ferryd::start(|_| {});
    let address = first.address().to_string();
    for (kind, what) in [("udp", "UDP"), ("tcp", "TCP")] {
        tells_of_the_port(&refused(|config| _ = config.listen(&[(&address, kind)])), what, &address);
        // A wildcard covers it as well.
        let any = format!("0.0.0.0:{}", first.config.port);
        tells_of_the_port(&refused(|config| _ = config.listen(&[(&any, kind)])), what, &any);
    }
    Client::udp(first.address()).allocate();
}

#[test]
fn a_port_that_another_process_has_is_told() {
    let foreign = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = foreign.local_addr().unwrap().to_string();
    tells_of_the_port(&refused(|config| _ = config.listen(&[(&address, "udp")])), "UDP", &address);
    let environment = crate::ferryd::Process::spawn(
        crate::ferryd::command(&[])
            .env("FERRYD_LISTENER", format!("[{{ address = \"{address}\", transport = \"udp\" }}]"))
            .env("FERRYD_RELAY__ADDRESSES", "127.0.0.1"),
    );
    environment.end().expect_failure(EXIT_FAILURE, &["environment variable FERRYD_LISTENER: listener: cannot open"]);
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = foreign.local_addr().unwrap().to_string();
    tells_of_the_port(&refused(|config| _ = config.listen(&[(&address, "tcp")])), "TCP", &address);
}

#[test]
fn a_port_of_the_metrics_page_that_somebody_has_is_told_once() {
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = foreign.local_addr().unwrap();
    let ended = refused(|config| _ = config.text("metrics.address", address));
    ended.expect_failure(EXIT_FAILURE, &["metrics.address: ", "the port is in use", "expected a free port; stop"]);
    assert_eq!(ended.stderr.matches("expected a free port").count(), 1, "once: {}", ended.stderr);
}
