//! Drain, reload, log level and limits, with calls up.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::admin::{call, json};
use crate::certificate::Certificate;
use crate::client::Client;
use crate::ferryd::{Ferryd, Process, command};
use crate::metrics::{get, value};
use crate::{place, wait_until};

fn metrics_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], place::free_port()))
}

#[test]
fn a_drain_leaves_live_calls_sends_new_ones_away_and_can_be_taken_back() {
    let metrics = metrics_address();
    let ferryd = Ferryd::start(|config| _ = config.text("metrics.address", metrics));
    let (mut live, peer) = call(Client::udp(ferryd.address()));
    let drain = json(&ferryd, &["drain", "--deadline", "1h", "--redirect", "localhost:9"]);
    assert_eq!((&drain["cause"], &drain["allocations"]), (&"operator".into(), &1.into()));
    assert_eq!(drain["redirect"][0], "127.0.0.1:9");
    let ready = get(metrics, "/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("draining\n"), "{ready}");
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(300));
    live.send_by_channel(0x4000, b"goes on");
    assert_eq!(peer.recv(&mut [0; 16]).unwrap(), 7);
    assert_eq!(live.refresh(600), Ok(600));
    let status = json(&ferryd, &["status"]);
    assert_eq!((&status["state"], &status["allocations"]), (&"draining".into(), &1.into()));
    assert_eq!(status["drain"]["allocations"], 1);
    let words = ferryd.verb(&["status"]).expect_success().stdout.clone();
    assert!(words.contains("draining for ") && words.contains("1 of 1 allocations live"), "{words}");
    let page = get(metrics, "/metrics");
    assert_eq!((value(&page, "ferryd_draining"), value(&page, "ferryd_drain_allocations")), (1.0, 1.0));
    // Another drain takes its place: without a sibling clients are refused.
    ferryd.verb(&["drain"]).expect_success();
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(508));
    ferryd.verb(&["drain", "--cancel"]).expect_success();
    assert!(get(metrics, "/ready").starts_with("HTTP/1.1 200"));
    Client::udp(ferryd.address()).allocate();
    ferryd.verb(&["drain", "--cancel"]).expect_failure(1, &["not draining"]);
}

#[test]
fn a_drained_server_stops_when_the_last_call_has_ended_and_tells_who_waits() {
    let ferryd = Ferryd::start(|_| {});
    let mut live = Client::udp(ferryd.address());
    live.allocate();
    let file = ferryd.file();
    let waiting = Process::spawn(&mut command(&["--config", file.to_str().unwrap(), "drain", "--wait"]));
    wait_until("the drain", || ferryd.log().contains("draining: no new allocations"));
    assert_eq!(live.refresh(0), Ok(0));
    let ended = ferryd.ended();
    assert!(ended.expect_success().stderr.contains("drained: the last allocation has ended"), "{ended:?}");
    waiting.end().expect_success();
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let ferryd = Ferryd::start(|_| {});
    let mut live = Client::udp(ferryd.address());
    live.allocate();
    ferryd.verb(&["drain", "--deadline", "1s"]).expect_success();
    let ended = ferryd.ended();
    let log = &ended.expect_success().stderr;
    assert!(log.contains("the deadline of the drain has come") && log.contains("reason=\"stopped\""), "{log}");
}

#[test]
fn sigterm_drains_for_the_time_that_is_set_and_a_second_one_stops() {
    let ferryd = Ferryd::start(|config| {
        config.text("drain.on-stop", "1h").text("drain.redirect.v4", "127.0.0.1:9");
    });
    let mut live = Client::udp(ferryd.address());
    live.allocate();
    ferryd.signal(libc::SIGTERM);
    wait_until("the drain", || ferryd.log().contains("draining: no new allocations"));
    assert_eq!(live.refresh(600), Ok(600));
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(300));
    assert_eq!(json(&ferryd, &["status"])["drain"]["cause"], "signal");
    ferryd.verb(&["drain", "--cancel"]).expect_failure(1, &["a stop is not taken back"]);
    ferryd.verb(&["drain"]).expect_failure(1, &["ferryd is stopping"]);
    ferryd.stop().expect_success();
    // The other end: by itself.
    let ferryd = Ferryd::start(|config| _ = config.text("drain.on-stop", "1h"));
    let mut live = Client::udp(ferryd.address());
    live.allocate();
    ferryd.signal(libc::SIGTERM);
    wait_until("the drain", || ferryd.log().contains("draining: no new allocations"));
    assert_eq!(live.refresh(0), Ok(0));
    ferryd.ended().expect_success();
}

#[test]
fn siblings_that_clients_cannot_follow_are_refused() {
    let ferryd = Ferryd::start(|_| {});
    let own = ferryd.address().to_string();
    ferryd.verb(&["drain", "--redirect", &own]).expect_failure(1, &["is this server"]);
    ferryd.verb(&["drain", "--redirect", "127.0.0.1"]).expect_failure(1, &["and a port"]);
    ferryd.verb(&["drain", "--redirect", "127.0.0.1:0"]).expect_failure(1, &["no address of a server"]);
    ferryd.verb(&["drain", "--deadline", "soon"]).expect_failure(2, &["expected a duration"]);
    assert_eq!(json(&ferryd, &["status"])["state"], "serving");
}

#[test]
fn the_reload_verb_tells_what_has_changed_or_what_is_wrong() {
    let mut ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.text("watch-files", "0s");
    });
    let nothing = ferryd.verb(&["reload"]);
    assert_eq!(nothing.expect_success().stdout, "nothing has changed\n");
    // A file that holds what it held before is no change, and one with another certificate is.
    Certificate::configured(&mut ferryd.config);
    assert_eq!(ferryd.verb(&["reload"]).expect_success().stdout, "changed          certificates\n");
    assert_eq!(ferryd.verb(&["reload"]).expect_success().stdout, "nothing has changed\n");
    ferryd.config.set("limits.allocations-total", 7).set("workers", 1);
    ferryd.config.write();
    let reloaded = json(&ferryd, &["reload"]);
    assert_eq!(reloaded["changed"][0], "limits");
    assert_eq!(reloaded["needs_restart"][0], "workers");
    assert_eq!(json(&ferryd, &["limits"])["allocations_total"], 7);
    let words = ferryd.verb(&["limits"]).expect_success().stdout.clone();
    assert!(words.contains("allocations-total"), "{words}");
    ferryd.config.set("limits.allocations-total", -1).set("relm", 1);
    ferryd.config.write();
    ferryd.verb(&["reload"]).expect_failure(1, &["limits.allocations-total: found -1", "relm: unknown key"]);
    let status = json(&ferryd, &["status"]);
    assert_eq!(
        (&status["last_reload"]["ok"], status["last_reload"]["problems"].as_array().unwrap().len()),
        (&false.into(), 2)
    );
    assert_eq!(json(&ferryd, &["limits"])["allocations_total"], 7);
}

#[test]
fn a_level_that_was_set_outlives_a_reload() {
    let level = |ferryd: &Ferryd| json(ferryd, &["log-level"])["level"].clone();
    let mut ferryd = Ferryd::start_with(|_| {}, |command: &mut Command| _ = command.args(["--log-level", "debug"]));
    assert_eq!(level(&ferryd), "debug");
    ferryd.reload(|config| _ = config.text("log.level", "error"));
    assert_eq!(level(&ferryd), "debug", "given on the command line");
    ferryd.verb(&["log-level", "trace"]).expect_success();
    ferryd.verb(&["reload"]).expect_success();
    assert_eq!(level(&ferryd), "trace", "set by the operator");
    let words = ferryd.verb(&["log-level", "--reset"]);
    assert_eq!(words.expect_success().stdout, "error\n", "the configuration's again");
    ferryd.verb(&["log-level", "loud"]).expect_failure(2, &["expected one of"]);
}

#[test]
fn a_running_call_loses_nothing_while_everything_is_reloaded() {
    let mut ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let calls = vec![call(Client::udp(ferryd.address()))];
    while_a_call_counts(calls, || {
        for round in 0..3 {
            ferryd.reload(|config| {
                Certificate::configured(config);
                config
                    .set("limits.allocations-total", 100 + round)
                    .text("log.level", ["debug", "info", "debug"][round]);
                config.set("peers.deny", format!("[\"10.{round}.0.0/16\"]"));
                config.set(
                    "auth.user",
                    format!("[{{ name = \"user{round}\", password = \"mVJ0s3yTzQkU8cXeW1bNhR4p\" }}]"),
                );
                config.set("limits.connections-total", 1000 + round);
            });
            ferryd.verb(&["drain"]).expect_success();
            ferryd.verb(&["drain", "--cancel"]).expect_success();
        }
    });
}

/// Does something while each call has a packet a millisecond on its way to the peer, and checks that none is missing.
pub(crate) fn while_a_call_counts(calls: Vec<(Client, UdpSocket)>, act: impl FnOnce()) -> Vec<(Client, UdpSocket)> {
    let (stop, echoed) = (AtomicBool::new(false), AtomicBool::new(false));
    let sent = AtomicU32::new(0);
    let (mut clients, peers): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
    for peer in &peers {
        peer.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    }
    let received = std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let sender = scope.spawn(|| {
            let _echoed = StopOnDrop(&echoed);
            while !stop.load(Ordering::Relaxed) {
                let number = sent.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                clients.iter_mut().for_each(|client| client.send_by_channel(0x4000, &number));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let receivers: Vec<_> = peers.iter().map(|peer| scope.spawn(|| count(peer, &echoed))).collect();
        act();
        let before = sent.load(Ordering::Relaxed);
        wait_until("packets after the last reload", || sent.load(Ordering::Relaxed) > before + 200);
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap();
        receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(received, vec![sent.into_inner(); peers.len()]);
    clients.into_iter().zip(peers).collect()
}

/// Ends the other threads of a test also when one fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts what arrives in its order, until nothing more is sent.
fn count(peer: &UdpSocket, sent: &AtomicBool) -> u32 {
    let mut next = 0_u32;
    loop {
        let mut bytes = [0; 16];
        match peer.recv(&mut bytes) {
            Ok(4) => {
                assert_eq!(bytes[..4], next.to_be_bytes(), "packet {next} is missing");
                next += 1;
            }
            Ok(len) => panic!("{len} bytes"),
            Err(_) if sent.load(Ordering::Relaxed) => return next,
            Err(_) => {}
        }
    }
}
