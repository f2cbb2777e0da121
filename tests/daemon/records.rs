//! Session records: in the log, in a file and at a webhook that works, fails or hangs.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::admin::{call, json};
use crate::certificate::Certificate;
use crate::client::Client;
use crate::ferryd::{Ferryd, refused};
use crate::metrics::{get, value};
use crate::{PATIENCE, place, wait_until};

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_record_equals_what_the_session_and_its_client_saw() {
    let ferryd = Ferryd::start(|config| {
        let file = config.directory.join("records.jsonl");
        config.text("sessions.file", file.display()).set("sessions.starts", true).text("log.format", "json");
    });
    let file = ferryd.config.directory.join("records.jsonl");
    let (mut client, _peer) = call(Client::tcp(ferryd.address()));
    let session = json(&ferryd, &["sessions"])["sessions"][0].clone();
    client.refresh(0).unwrap();
    wait_until("two records", || lines(&file).len() == 2);
    let [started, ended] = lines(&file).try_into().unwrap();
    assert_eq!(
        (&started["event"], &started["id"], &started["start"]),
        (&"started".into(), &session["id"], &session["started_at"])
    );
    assert_eq!((&ended["event"], &ended["reason"]), (&"ended".into(), &"released".into()));
    for field in [
        "id",
        "user",
        "client",
        "server",
        "transport",
        "relayed",
        "packets_to_peers",
        "bytes_to_peers",
        "packets_to_client",
        "bytes_to_client",
        "datapath",
    ] {
        assert_eq!(ended[field], session[field], "{field}");
    }
    assert_eq!((&ended["bytes_to_peers"], &ended["bytes_to_client"]), (&300.into(), &20.into()));
    assert_eq!(ended["peers"], serde_json::json!([place::here()]));
    assert!(ended["end"].as_u64() >= ended["start"].as_u64());
    // The line of the log has the same fields, numbers and lists as such.
    wait_until("the line of the log", || ferryd.log().contains("allocation ended"));
    let log = ferryd.log();
    let line = log.lines().find(|line| line.contains("allocation ended")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["target"], &line["level"]), (&"ferryd::session".into(), &"INFO".into()));
    for (field, value) in ended.as_object().unwrap() {
        assert_eq!(&line[field], value, "{field}");
    }
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn a_reload_opens_the_file_again_and_a_stop_writes_every_record() {
    let mut ferryd = Ferryd::start(|config| {
        let file = config.directory.join("records.jsonl");
        config.text("sessions.file", file.display());
    });
    let file = ferryd.config.directory.join("records.jsonl");
    let rotated = file.with_extension("1");
    let end_one = |ferryd: &Ferryd| {
        let mut client = Client::udp(ferryd.address());
        client.allocate();
        client.refresh(0).unwrap();
    };
    end_one(&ferryd);
    wait_until("a record", || lines(&file).len() == 1);
    fs::rename(&file, &rotated).unwrap();
    ferryd.reload(|_| {});
    end_one(&ferryd);
    wait_until("a record in the new file", || lines(&file).len() == 1);
    assert_eq!(lines(&rotated).len(), 1);
    let _live: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = Client::udp(ferryd.address());
            client.allocate();
            client
        })
        .collect();
    let kept = tempfile::tempdir().unwrap();
    let linked = kept.path().join("records.jsonl");
    fs::hard_link(&file, &linked).unwrap();
    ferryd.stop().expect_success();
    let records = lines(&linked);
    assert_eq!(records.iter().filter(|record| record["reason"] == "stopped").count(), 20);
}

#[test]
fn a_file_that_cannot_be_written_is_told_at_the_start() {
    refused(|config| _ = config.text("sessions.file", "/nowhere/records.jsonl")).expect_failure(
        1,
        &["sessions.file: /nowhere/records.jsonl cannot be written (No such file", "make that directory"],
    );
    refused(|config| _ = config.text("sessions.webhook", "billing"))
        .expect_failure(78, &["sessions.webhook: no such URL"]);
}

/// A web service that answers requests with these statuses, one after the other, and tells of each.
fn service(
    answers: &'static [&'static str],
    tls: Option<Arc<ServerConfig>>,
) -> (SocketAddr, Receiver<(String, Value)>) {
    let listener = TcpListener::bind((place::here(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (told, requests) = channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (tcp, _) = listener.accept().unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            let request = match &tls {
                None => serve(tcp, answer),
                Some(config) => {
                    serve(StreamOwned::new(ServerConnection::new(Arc::clone(config)).unwrap(), tcp), answer)
                }
            };
            if told.send(request).is_err() {
                return;
            }
        }
    });
    (address, requests)
}

/// Reads one request and answers it.
fn serve(mut stream: impl Read + Write, answer: &str) -> (String, Value) {
    let mut request = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        request.extend_from_slice(&bytes[..count]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
            stream.flush().unwrap();
            return (head.to_owned(), serde_json::from_str(body).unwrap());
        }
    }
}

#[test]
fn a_webhook_that_fails_is_asked_again_until_it_takes_the_records() {
    let (address, requests) = service(&["500 Oh", "204 No Content"], None);
    let ferryd = Ferryd::start(|config| {
        let token = config.directory.join("token");
        fs::write(&token, "sesame\n").unwrap();
        config.text("sessions.webhook", format!("http://{address}/turn?x=1"));
        config.text("sessions.webhook-token-file", token.display());
    });
    let (mut client, _peer) = call(Client::udp(ferryd.address()));
    client.refresh(0).unwrap();
    let (head, first) = requests.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("POST /turn?x=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Authorization: Bearer sesame") && head.contains("Content-Type: application/json"), "{head}");
    assert_eq!((&first["events"][0]["event"], &first["events"][0]["bytes_to_peers"]), (&"ended".into(), &300.into()));
    assert_eq!(requests.recv_timeout(PATIENCE).unwrap().1, first, "the same again");
}

#[test]
fn a_webhook_over_tls_is_verified() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = Certificate::new(directory.path(), "localhost");
    let chain = vec![CertificateDer::from_pem_file(&certificate.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&certificate.key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let (address, requests) = service(&["200 OK"], Some(Arc::new(tls)));
    let ferryd = Ferryd::start(|config| {
        config.text("sessions.webhook", format!("https://localhost:{}/", address.port()));
        config.text("sessions.webhook-ca", certificate.certificate.display());
    });
    let mut client = Client::udp(ferryd.address());
    client.allocate();
    client.refresh(0).unwrap();
    assert_eq!(requests.recv_timeout(PATIENCE).unwrap().1["events"][0]["reason"], "released");
}

#[test]
fn a_webhook_that_hangs_holds_nobody_up() {
    // It accepts and says nothing.
    let listener = TcpListener::bind((place::here(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let held = Arc::new(Mutex::new(Vec::new()));
    let holding = Arc::clone(&held);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            holding.lock().unwrap().push(stream);
        }
    });
    let metrics = SocketAddr::from((place::own_address(), place::free_port()));
    let ferryd = Ferryd::start(|config| {
        config.text("sessions.webhook", format!("http://{address}/")).text("metrics.address", metrics);
    });
    for _ in 0..50 {
        let mut client = Client::udp(ferryd.address());
        client.allocate();
        client.refresh(0).unwrap();
    }
    wait_until("a request to the webhook", || !held.lock().unwrap().is_empty());
    let (_client, _peer) = call(Client::udp(ferryd.address()));
    let page = get(metrics, "/metrics");
    assert_eq!(value(&page, "ferryd_session_records_total{outcome=\"queue_lost\"}"), 0.0);
    ferryd.stop().expect_success();
}
