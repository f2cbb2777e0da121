//! `probe` against a running server.

use crate::certificate::Certificate;
use crate::client::User;
use crate::ferryd::{ALICE, Ended, Ferryd, alice, run};

fn probe(url: &str, user: &User, arguments: &[&str]) -> Ended {
    run(&[&["probe", url, "-u", &user.name, "-p", &user.password], arguments].concat())
}

#[test]
fn a_probe_passes_over_udp_tcp_and_tls() {
    // The default policy: the two ends of a probe are relayed addresses of the server.
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.unset("peers.allow");
    });
    let (address, user) = (ferryd.address(), alice());
    let words = "10 of 10 packets there and back by channels";
    for url in [format!("turn:{address}"), format!("turn:{address}?transport=tcp")] {
        let ended = probe(&url, &user, &[]);
        assert!(ended.expect_success().stdout.contains(words), "{ended:#?}");
    }
    let certificate = Certificate::of(&ferryd.config);
    let url = format!("turns:{address}");
    let ended = probe(&url, &user, &["--insecure"]);
    assert!(ended.expect_success().stdout.contains(words), "{ended:#?}");
    let ca = certificate.certificate.to_str().unwrap();
    probe(&url, &user, &["--ca", ca]).expect_failure(1, &["the certificate is for localhost, not for"]);
    probe(&url, &user, &[]).expect_failure(1, &["is not trusted"]);
}

#[test]
fn a_probe_trusts_the_certificate_that_it_is_given() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        let address = format!("*:{}", config.port);
        config.listen(&[(&address, "tcp tls")]);
    });
    let certificate = Certificate::of(&ferryd.config);
    let url = format!("turns:localhost:{}", ferryd.config.port);
    let ended = probe(&url, &alice(), &["--ca", certificate.certificate.to_str().unwrap()]);
    assert!(ended.expect_success().stdout.contains("10 of 10 packets"), "{ended:#?}");
}

#[cfg(feature = "dtls")]
#[test]
fn a_probe_over_dtls_passes_and_trusts_as_one_over_tls_does() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.unset("peers.allow");
        let address = format!("*:{}", config.port);
        config.listen(&[(&address, "udp")]);
    });
    let certificate = Certificate::of(&ferryd.config);
    let (ca, user) = (certificate.certificate.to_str().unwrap(), alice());
    let named = format!("turns:localhost:{}?transport=udp", ferryd.config.port);
    let ended = probe(&named, &user, &["--ca", ca]);
    let stdout = &ended.expect_success().stdout;
    for words in ["DTLS 1.2, localhost for ", "10 of 10 packets there and back by channels"] {
        assert!(stdout.contains(words), "{ended:#?}");
    }
    probe(&named, &user, &[]).expect_failure(1, &["dtls: ", "is not trusted"]);
    let address = format!("turns:{}?transport=udp", ferryd.address());
    probe(&address, &user, &["--ca", ca]).expect_failure(1, &["the certificate is for localhost, not for"]);
    let ended = probe(&address, &user, &["--insecure"]);
    assert!(ended.expect_success().stdout.contains("10 of 10 packets"), "{ended:#?}");
    probe(&address, &User::new(ALICE, "wrong"), &["--insecure"]).expect_failure(1, &["401"]);
    let dead = ferryd.address();
    ferryd.stop().expect_success();
    probe(&address, &user, &["--insecure"]).expect_failure(1, &[&format!("{dead} is closed for udp")]);
}

#[cfg(feature = "dtls")]
#[test]
fn a_probe_over_dtls_tells_of_a_listener_that_speaks_none() {
    let ferryd = Ferryd::start(|_| {});
    let address = format!("turns:{}?transport=udp", ferryd.address());
    probe(&address, &alice(), &["--insecure"]).expect_failure(1, &["nothing answers dtls on", "probed by turn:"]);
}

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

#[test]
fn a_probe_tells_where_clients_are_sent() {
    let ferryd = Ferryd::start(|config| _ = config.text("redirect.v4", "192.0.2.9:3478"));
    let words = ["300 Try Alternate", "it sends clients to 192.0.2.9:3478; probe that one"];
    probe(&format!("turn:{}", ferryd.address()), &alice(), &[]).expect_failure(1, &words);
}
