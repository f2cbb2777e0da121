//! The admin API for other hosts: over TLS, to who brings a token or a certificate.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustls::{ClientConnection, StreamOwned};
use serde_json::Value;

use crate::admin::call;
use crate::certificate::Certificate;
use crate::client::Client;
use crate::ferryd::{Config, Ended, Ferryd, Process, command, refused, run};
use crate::{PATIENCE, place, wait_until};

const TOKEN: &str = "3q2XwTz8LkVb6Yp0RmUe4NcHs7GdFjAa";

fn token(config: &mut Config, text: &str) {
    let file = config.directory.join("token");
    fs::write(&file, text).unwrap();
    config.text("admin.token-file", file.display());
}

fn remote(config: &mut Config) {
    Certificate::configured(config);
    config.text("admin.address", SocketAddr::from((config.ip, place::free_port())));
    config.text("admin.socket", "off");
    // The name in the certificate.
    config.text("admin.address", config.get("admin.address").replace(&config.ip.to_string(), "127.0.0.1"));
}

fn address(ferryd: &Ferryd) -> SocketAddr {
    ferryd.config.get("admin.address").parse().unwrap()
}

/// A verb on another host: nothing but the URL and files.
fn verb(ferryd: &Ferryd, arguments: &[&str], access: &[&str]) -> Ended {
    let url = format!("https://localhost:{}", address(ferryd).port());
    let ca = ferryd.config.directory.join("ferryd.pem");
    run(&[arguments, &["--admin", &url, "--ca", ca.to_str().unwrap()], access].concat())
}

#[test]
fn every_verb_works_from_elsewhere_by_a_token() {
    let ferryd = Ferryd::start(|config| {
        remote(config);
        token(config, TOKEN);
    });
    let file = ferryd.config.directory.join("token");
    let access = ["--token-file", file.to_str().unwrap()];
    let (mut client, _peer) = call(Client::udp(ferryd.address()));
    let shown = verb(&ferryd, &["sessions", "--json"], &access);
    let sessions: Value = serde_json::from_str(&shown.expect_success().stdout).unwrap();
    let id = sessions["sessions"][0]["id"].as_str().unwrap();
    for arguments in [&["status"][..], &["session", id], &["limits"], &["reload"], &["top", "--count", "1"]] {
        verb(&ferryd, arguments, &access).expect_success();
    }
    verb(&ferryd, &["evict", id], &access).expect_success();
    assert_eq!(client.refresh(600), Err(437));
    verb(&ferryd, &["revoke", "alice"], &access).expect_success();
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(403));
    verb(&ferryd, &["log-level", "debug"], &access).expect_success();
    verb(&ferryd, &["drain"], &access).expect_success();
    ferryd.ended().expect_success();
}

#[test]
fn nobody_is_let_in_without_what_is_asked_for() {
    let mut ferryd = Ferryd::start(|config| {
        remote(config);
        token(config, TOKEN);
    });
    let wrong = ferryd.config.directory.join("wrong");
    fs::write(&wrong, format!("{TOKEN}x")).unwrap();
    verb(&ferryd, &["status"], &[]).expect_failure(1, &["asks for its token"]);
    let access = ["--token-file", wrong.to_str().unwrap()];
    verb(&ferryd, &["status"], &access).expect_failure(1, &["asks for its token"]);
    // Neither the document nor a path that is not there is an exception, nor is plain HTTP an answer.
    let config = Arc::new(Certificate::of(&ferryd.config).client_config());
    for path in ["/v1/openapi.json", "/nothing"] {
        let stream = TcpStream::connect(address(&ferryd)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let session = ClientConnection::new(Arc::clone(&config), "localhost".try_into().unwrap()).unwrap();
        let mut tls = StreamOwned::new(session, stream);
        write!(tls, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        tls.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401", "{path}");
    }
    let mut plain = TcpStream::connect(address(&ferryd)).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // Connections that say nothing keep nobody out.
    let _idle: Vec<_> = (0..50).map(|_| TcpStream::connect(address(&ferryd)).unwrap()).collect();
    let token_file = ferryd.config.directory.join("token");
    let access = ["--token-file", token_file.to_str().unwrap()];
    verb(&ferryd, &["status"], &access).expect_success();
    // A token that was replaced is asked for from the reload on, and the old one is worth nothing.
    fs::copy(&token_file, &wrong).unwrap();
    ferryd.reload(|config| token(config, &TOKEN.chars().rev().collect::<String>()));
    verb(&ferryd, &["status"], &access).expect_success();
    verb(&ferryd, &["status"], &["--token-file", wrong.to_str().unwrap()])
        .expect_failure(1, &["asks for its token, and got"]);
}

#[test]
fn a_certificate_lets_in_and_both_together_ask_for_both() {
    let mut ferryd = Ferryd::start(|config| {
        remote(config);
        let operator = Certificate::new(&config.directory.clone(), "operator");
        config.text("admin.client-ca", operator.certificate.display());
    });
    let operator = Certificate::at(&ferryd.config.directory, "operator");
    let stranger = Certificate::new(&ferryd.config.directory, "stranger");
    let shown = |certificate: &Certificate| {
        let [certificate, key] = [&certificate.certificate, &certificate.key].map(|path| path.display().to_string());
        ["--certificate".to_owned(), certificate, "--key".to_owned(), key]
    };
    let with = |ferryd: &Ferryd, access: &[String]| {
        verb(ferryd, &["status"], &access.iter().map(String::as_str).collect::<Vec<_>>())
    };
    with(&ferryd, &shown(&operator)).expect_success();
    with(&ferryd, &shown(&stranger)).expect_failure(1, &["cannot be reached"]);
    with(&ferryd, &[]).expect_failure(1, &["cannot be reached"]);
    ferryd.reload(|config| token(config, TOKEN));
    with(&ferryd, &shown(&operator)).expect_failure(1, &["asks for its token"]);
    let file = ferryd.config.directory.join("token").display().to_string();
    let both = [&shown(&operator)[..], &["--token-file".to_owned(), file]].concat();
    wait_until("both to be enough", || with(&ferryd, &both).status.success());
    // The name of the server is looked at as well.
    let url = format!("https://127.0.0.1:{}", address(&ferryd).port());
    let ca = ferryd.config.directory.join("ferryd.pem");
    let ended = run(&["status", "--admin", &url, "--ca", ca.to_str().unwrap()]);
    ended.expect_failure(1, &["cannot be reached", "certificate"]);
}

#[test]
fn certificates_that_call_themselves_authorities_are_trusted_where_they_are_named() {
    let mut ferryd = Ferryd::start(|config| {
        let directory = config.directory.clone();
        remote(config);
        Certificate::authority(&directory, "ferryd", 2099).set(config);
        let operator = Certificate::authority(&directory, "operator", 2099);
        config.text("admin.client-ca", operator.certificate.display());
    });
    let directory = ferryd.config.directory.clone();
    let status = |ferryd: &Ferryd, host: &str, ca: &str, client: &str| {
        let url = format!("https://{host}:{}", address(ferryd).port());
        let [ca, certificate, key] = [format!("{ca}.pem"), format!("{client}.pem"), format!("{client}.key")]
            .map(|name| directory.join(name).display().to_string());
        run(&["status", "--admin", &url, "--ca", &ca, "--certificate", &certificate, "--key", &key])
    };
    status(&ferryd, "localhost", "ferryd", "operator").expect_success();
    // Neither another name of the server, nor another that signs itself, at either end.
    status(&ferryd, "127.0.0.1", "ferryd", "operator").expect_failure(1, &["not valid for name"]);
    Certificate::authority(&directory, "stranger", 2099);
    status(&ferryd, "localhost", "stranger", "operator").expect_failure(1, &["signs itself", "--ca"]);
    status(&ferryd, "localhost", "ferryd", "stranger").expect_failure(1, &["cannot be reached"]);
    // Nor one that has ended.
    let ended = Certificate::authority(&directory, "ended", 2021);
    ferryd.reload(|config| ended.set(config));
    status(&ferryd, "localhost", "ended", "operator").expect_failure(1, &["expired"]);
    ferryd.reload(|config| {
        Certificate::at(&config.directory.clone(), "ferryd").set(config);
        config.text("admin.client-ca", ended.certificate.display());
    });
    status(&ferryd, "localhost", "ferryd", "ended").expect_failure(1, &["CertificateExpired"]);
}

/// Stands between an operator and a server, and fails as a network does.
struct Between {
    address: SocketAddr,
    fails: Arc<AtomicBool>,
    passed: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Between {
    fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (fails, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let passed = Arc::new(AtomicUsize::new(0));
        let shared = (Arc::clone(&fails), Arc::clone(&ends), Arc::clone(&passed));
        let thread = std::thread::spawn(move || {
            let (fails, ends, passed) = shared;
            for client in listener.incoming().map(Result::unwrap) {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                if fails.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(server) else { continue };
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                let _ = std::io::copy(&mut &server, &mut &client);
                passed.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { address, fails, passed, ends, thread }
    }

    /// Nobody listens there any more.
    fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        self.thread.join().unwrap();
    }
}

#[test]
fn a_network_that_fails_is_not_the_end_of_a_drain() {
    let ferryd = Ferryd::start(|config| {
        remote(config);
        token(config, TOKEN);
    });
    let mut live = Client::udp(ferryd.address());
    live.allocate();
    let between = Between::before(address(&ferryd));
    let url = format!("https://localhost:{}", between.address.port());
    let [ca, file] = ["ferryd.pem", "token"].map(|name| ferryd.config.directory.join(name).display().to_string());
    let mut waiting =
        Process::spawn(&mut command(&["drain", "--wait", "--admin", &url, "--ca", &ca, "--token-file", &file]));
    wait_until("a look at the drain", || between.passed.load(Ordering::Relaxed) > 1);
    between.fails.store(true, Ordering::Relaxed);
    wait_until("the failure to be told", || waiting.stderr.text().contains("the drain goes on"));
    assert!(!waiting.has_ended(), "a failure is no end");
    between.fails.store(false, Ordering::Relaxed);
    let before = between.passed.load(Ordering::Relaxed);
    wait_until("another look", || between.passed.load(Ordering::Relaxed) > before);
    assert!(!waiting.has_ended(), "a call is up");
    assert_eq!(live.refresh(0), Ok(0));
    ferryd.ended().expect_success();
    between.end();
    waiting.end().expect_success();
}

#[test]
fn it_is_not_served_to_everybody() {
    let ended = refused(|config| {
        Certificate::configured(config);
        config.text("admin.address", "127.0.0.1:9642");
    });
    ended.expect_failure(78, &["admin.address: other hosts are let in, and nothing is asked of them"]);
    run(&["status", "--admin", "http://localhost:9642"]).expect_failure(2, &["expected a URL such as https://"]);
}
