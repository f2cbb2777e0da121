//! `doctor` on this host: what it finds differs, what it says of ferryd's own things does not.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use serde_json::Value;

use crate::certificate::Certificate;
use crate::ferryd::{Ended, Ferryd, run};
use crate::place;

/// The findings of one check, as verdict and words.
fn findings(ended: &Ended, check: &str) -> Vec<(String, String)> {
    let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("no JSON: {ended:#?}"));
    let all = said["findings"].as_array().unwrap().clone();
    for finding in &all {
        assert_eq!(finding["remedy"].is_null(), finding["verdict"] == "ok", "{finding}");
    }
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of_check = all.iter().filter(|finding| finding["check"] == check);
    of_check.map(|finding| (text(&finding["verdict"]), text(&finding["found"]))).collect()
}

#[test]
fn a_server_that_runs_is_no_obstacle_to_itself() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let ended = ferryd.verb(&["doctor", "--json"]);
    ended.expect_success();
    for (verdict, found) in findings(&ended, "listener") {
        assert_eq!(verdict, "ok");
        assert!(found.ends_with(&format!("is served by ferryd, process {}", ferryd.id())), "{found}");
    }
    assert_eq!(findings(&ended, "listener").len(), 2);
    for check in ["configuration", "address", "relay ports", "firewall", "certificate", "state", "clock", "buffers"] {
        assert!(!findings(&ended, check).is_empty(), "nothing on {check}: {}", ended.stdout);
    }
    let text = ferryd.verb(&["doctor"]);
    assert!(text.expect_success().stdout.contains("\nok       listener       udp+dtls "), "{}", text.stdout);
    assert!(text.stdout.lines().last().unwrap().starts_with("0 bad, "), "{}", text.stdout);
}

/// What a service says to one request.
type Says = fn(&mut TcpStream);

/// The verdict and the words on a webhook, and what the service was sent.
fn webhook_examined(says: Option<Says>) -> (Ended, String, String, String) {
    let (ip, port) = (place::own_address(), place::free_port());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ferryd.toml");
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = service.local_addr().unwrap();
    let text = format!(
        "listener = [{{ address = \"{ip}:{port}\", transport = \"udp\" }}]\nrelay.addresses = [\"{ip}\"]\n\
         sessions.webhook = \"http://{at}/turn/a-secret\"\n",
    );
    std::fs::write(&file, text).unwrap();
    let told = std::thread::spawn(move || {
        let Some(says) = says else { return String::new() };
        let (mut stream, _) = service.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut bytes = [0; 1000];
            let count = stream.read(&mut bytes).unwrap();
            assert!(count > 0, "a whole request");
            request.extend_from_slice(&bytes[..count]);
        }
        says(&mut stream);
        String::from_utf8(request).unwrap()
    });
    if says.is_none() {
        // Its port is closed before anybody asks.
        while !told.is_finished() {
            std::thread::yield_now();
        }
    }
    let ended = run(&["doctor", "--json", "--config", file.to_str().unwrap()]);
    let [(verdict, found)] = <[_; 1]>::try_from(findings(&ended, "webhook")).unwrap();
    (ended, verdict, found, told.join().unwrap())
}

#[test]
fn a_web_service_is_asked_for_nothing_but_an_answer() {
    let answers: Says = |stream| stream.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").unwrap();
    let (ended, verdict, found, request) = webhook_examined(Some(answers));
    assert_eq!(verdict, "ok", "{found}");
    assert!(found.contains("answers HEAD with 405 after "), "{found}");
    assert!(request.starts_with("HEAD /turn/a-secret HTTP/1.") && !request.contains("Content-"), "{request}");
    assert!(!ended.stdout.contains("a-secret"), "{}", ended.stdout);
    let (_, verdict, found, _) = webhook_examined(Some(|stream| stream.write_all(b"SSH-2.0-x\r\n").unwrap()));
    assert_eq!(verdict, "warning");
    assert!(found.contains("no HTTP answer; session records are lost"), "{found}");
    let (_, verdict, found, _) = webhook_examined(None);
    assert_eq!(verdict, "warning");
    assert!(found.contains("refused"), "{found}");
}

#[test]
fn what_holds_the_port_is_named() {
    let (ip, port) = (place::own_address(), place::free_port());
    let holder = UdpSocket::bind((ip, port)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ferryd.toml");
    let text =
        format!("listener = [{{ address = \"{ip}:{port}\", transport = \"udp\" }}]\nrelay.addresses = [\"{ip}\"]\n");
    let page = TcpListener::bind((ip, 0)).unwrap();
    let metrics = page.local_addr().unwrap();
    std::fs::write(&file, format!("{text}metrics.address = \"{metrics}\"\n")).unwrap();
    let doctor = || run(&["doctor", "--json", "--config", file.to_str().unwrap()]);
    let ended = doctor();
    assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
    let held = findings(&ended, "listener");
    assert!(held[1].1.starts_with(&format!("metrics.address {metrics} is held by ")), "{held:?}");
    for (verdict, found) in held {
        assert_eq!(verdict, "bad");
        assert!(found.ends_with(&format!("process {}", std::process::id())), "{found}");
    }
    drop((holder, page));
    let free = findings(&doctor(), "listener");
    assert!(free.len() == 2 && free.iter().all(|(verdict, _)| verdict == "ok"), "{free:?}");
}

#[test]
fn a_configuration_that_is_wrong_is_all_there_is_to_say() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ferryd.toml");
    std::fs::write(&file, "relm = \"x\"\nrelay.port-min = 0\n").unwrap();
    let ended = run(&["doctor", "--json", "--config", file.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(78), "{ended:#?}");
    let found = findings(&ended, "configuration");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|(verdict, words)| verdict == "bad" && words.contains("relm")), "{found:?}");
}
