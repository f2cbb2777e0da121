//! A web service that decides who may allocate: one that works, hangs, fails and answers garbage.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::admin::call;
use crate::client::Client;
use crate::ferryd::{Config, Ferryd};
use crate::metrics::{metric, with_metrics};
use crate::{PATIENCE, wait_until};

/// What the service does with a request.
#[derive(Clone)]
enum Manner {
    Answer(String),
    Hang,
    Close,
}

struct Service {
    address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Service {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (manner, asked) = (Arc::new(Mutex::new(manner)), Arc::new(Mutex::new(Vec::new())));
        let (of_thread, seen) = (Arc::clone(&manner), Arc::clone(&asked));
        std::thread::spawn(move || {
            let mut hanging = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let Some(request) = read(&mut stream) else { continue };
                seen.lock().unwrap().push(request);
                match of_thread.lock().unwrap().clone() {
                    Manner::Answer(answer) => _ = stream.write_all(answer.as_bytes()),
                    Manner::Hang => hanging.push(stream),
                    Manner::Close => {}
                }
            }
        });
        Self { address, manner, asked }
    }

    fn does(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn read(stream: &mut TcpStream) -> Option<(String, Value)> {
    let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            return Some((head.to_owned(), body));
        }
        let count = stream.read(&mut bytes).ok().filter(|count| *count > 0)?;
        request.extend_from_slice(&bytes[..count]);
    }
}

fn says(json: &str) -> Manner {
    Manner::Answer(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len()))
}

fn start(service: &Service, change: impl Fn(&mut Config)) -> Ferryd {
    Ferryd::start(|config| {
        with_metrics(config);
        std::fs::write(config.directory.join("token"), "sesame\n").unwrap();
        config.text("authorization.token-file", config.directory.join("token").display());
        config.text("authorization.url", format!("http://{}/turn?site=1", service.address));
        config.text("authorization.timeout", "1s");
        change(config);
    })
}

fn count(ferryd: &Ferryd, result: &str) -> u64 {
    metric(ferryd, &format!("ferryd_authorizations_total{{result=\"{result}\"}}"))
}

#[test]
fn a_service_allows_limits_and_denies() {
    let service = Service::start(says("{\"allow\": true}"));
    let ferryd = start(&service, |_| {});
    let mut client = Client::udp(ferryd.address());
    client.allocate();
    let [(head, question)] = <[_; 1]>::try_from(service.asked()).unwrap();
    assert!(head.starts_with("POST /turn?site=1 HTTP/1.") && head.contains("Authorization: Bearer sesame"), "{head}");
    assert_eq!((&question["username"], &question["transport"]), (&"alice".into(), &"udp".into()));
    assert_eq!(question["server"], ferryd.address().to_string());
    assert!(question["client"].as_str().unwrap().starts_with("127.0.0.1:") && question["secret"].is_null());
    // Streams are answered when the verdict has come, and it holds for whoever comes next.
    Client::tcp(ferryd.address()).allocate();
    assert_eq!((service.asked().len(), count(&ferryd, "allowed")), (0, 1));
    assert!(!ferryd.log().contains("sesame"));
    // Each question anew.
    let ferryd = start(&service, |config| _ = config.text("authorization.cache", "0s"));
    service.does(says("{\"allow\": true, \"allocations\": 1}"));
    let mut one = Client::udp(ferryd.address());
    one.allocate();
    assert_eq!(Client::tcp(ferryd.address()).try_allocate(), Err(486));
    service.does(says("{\"allow\": false}"));
    assert_eq!(Client::tcp(ferryd.address()).try_allocate(), Err(403));
    service.does(Manner::Answer("HTTP/1.1 403 Forbidden\r\n\r\n".to_owned()));
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(403));
    assert_eq!(one.refresh(600), Ok(600), "what is there goes on");
    assert_eq!((count(&ferryd, "denied"), service.asked().len()), (2, 4));
}

#[test]
fn a_service_that_hangs_or_fails_or_answers_garbage_is_what_on_failure_says() {
    let bad = [
        Manner::Hang,
        Manner::Close,
        says("{\"allow\": \"yes\"}"),
        says("[]"),
        Manner::Answer("HTTP/1.1 500 Oops\r\nContent-Length: 15\r\n\r\n{\"allow\": true}".to_owned()),
        Manner::Answer("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"allow\": true}".to_owned()),
        Manner::Answer("SSH-2.0-OpenSSH\r\n\r\n".to_owned()),
        Manner::Answer("x".repeat(100_000)),
    ];
    let service = Service::start(says("{\"allow\": true, \"cache_seconds\": 0}"));
    for (on_failure, expected) in [("deny", Err(500)), ("allow", Ok(()))] {
        service.does(says("{\"allow\": true, \"cache_seconds\": 0}"));
        let ferryd = start(&service, |config| _ = config.text("authorization.on-failure", on_failure));
        let (mut live, peer) = call(Client::udp(ferryd.address()));
        for manner in &bad {
            // One good answer in between, so that the service is not left alone for a moment.
            service.does(says("{\"allow\": true, \"cache_seconds\": 0}"));
            Client::udp(ferryd.address()).allocate();
            let before = count(&ferryd, "failed");
            service.does(manner.clone());
            assert_eq!(Client::udp(ferryd.address()).try_allocate().map(|_| ()), expected);
            assert_eq!(count(&ferryd, "failed"), before + 1);
        }
        // Failures in a row: from the fourth on nobody waits.
        wait_until("the service to be left alone", || {
            assert_eq!(Client::udp(ferryd.address()).try_allocate().map(|_| ()), expected);
            count(&ferryd, "spared") > 0
        });
        live.send_by_channel(0x4000, b"goes on");
        assert_eq!(peer.recv(&mut [0; 16]).unwrap(), 7);
        assert!(ferryd.log().contains("the authorization service does not decide"));
        service.does(says("{\"allow\": true}"));
        wait_until("the service to decide again", || {
            Client::udp(ferryd.address()).try_allocate().is_ok() && ferryd.log().contains("decides again")
        });
    }
}

#[test]
fn nobody_waits_for_a_service_that_hangs_but_those_who_ask() {
    let service = Service::start(says("{\"allow\": true, \"cache_seconds\": 0}"));
    let ferryd = start(&service, |config| _ = config.set("workers", 1).text("authorization.timeout", "10s"));
    let (mut live, peer) = call(Client::udp(ferryd.address()));
    service.does(Manner::Hang);
    service.asked();
    // Each thread that asks has its own, and more wait behind them.
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let mut client = Client::udp(ferryd.address());
            // For the nonce.
            assert_eq!(client.refresh(600), Err(437));
            let (request, _) = client.signed(ferryd::stun::Method::Allocate, crate::client::udp_transport);
            client.wire.send(&request);
            client
        })
        .collect();
    wait_until("the service to hang", || !service.asked().is_empty());
    let began = Instant::now();
    for number in 0..100_u32 {
        live.send_by_channel(0x4000, &number.to_be_bytes());
        let mut bytes = [0; 16];
        assert_eq!((peer.recv(&mut bytes).unwrap(), &bytes[..4]), (4, &number.to_be_bytes()[..]));
    }
    assert_eq!(live.refresh(600), Ok(600));
    let new = UdpSocket::bind("127.0.0.1:0").unwrap();
    live.bind_channel(0x4001, new.local_addr().unwrap()).unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "the call went on while the service hung");
    drop(waiting);
    // A stop does not wait either.
    ferryd.stop().expect_success();
}
