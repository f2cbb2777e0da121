//! The verbs that speak to a running daemon, with calls up.

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::certificate::Certificate;
use crate::client::Client;
use crate::ferryd::{Ferryd, refused, run};
use crate::place;

/// What a verb prints with `--json`.
pub(crate) fn json(ferryd: &Ferryd, arguments: &[&str]) -> Value {
    let ended = ferryd.verb(&[arguments, &["--json"]].concat());
    let value = serde_json::from_str(&ended.expect_success().stdout).unwrap();
    assert_described(arguments[0], &value);
    value
}

/// Checks an answer against the schema that docs/openapi.json has for it: the same fields, no more and no less.
fn assert_described(verb: &str, value: &Value) {
    let document: Value = serde_json::from_str(ferryd::control::api::OPENAPI).unwrap();
    let schemas = &document["components"]["schemas"];
    let schema = match verb {
        "status" => "Status",
        "sessions" => "Sessions",
        "session" => "SessionDetail",
        "evict" => "Evicted",
        "drain" => "Drain",
        "reload" => "Reloaded",
        "log-level" => "LogLevel",
        "limits" => "Limits",
        "revoke" if value.get("revocations").is_some() => "Revocations",
        "revoke" => "Revoked",
        _ => return,
    };
    assert_fits(schemas, &schemas[schema], value, verb);
}

fn assert_fits(schemas: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        return assert_fits(schemas, &schemas[name.rsplit('/').next().unwrap()], value, place);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let choice = choices.iter().find(|choice| (choice["type"] == "null") == value.is_null());
        return assert_fits(schemas, choice.unwrap(), value, place);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds = &schema["type"];
    let is_kind = kinds == kind || kinds.as_array().is_some_and(|kinds| kinds.iter().any(|it| it == kind));
    assert!(is_kind, "{place} is {value}, described as {kinds}");
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        assert_fits(schemas, &schema["items"], value, &format!("{place}[{index}]"));
    }
    if let Some(fields) = value.as_object() {
        let described = schema["properties"].as_object().unwrap();
        for (name, value) in fields {
            let schema = described.get(name).unwrap_or_else(|| panic!("{place}.{name} is not described"));
            assert_fits(schemas, schema, value, &format!("{place}.{name}"));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{place}.{name} is described and missing");
        }
    }
}

/// A client with a channel to a peer, and some packets both ways: 3 of 100 bytes out, 2 of 10 bytes back.
pub(crate) fn call(mut client: Client) -> (Client, UdpSocket) {
    let peer = place::peer();
    let relayed = client.allocate();
    client.bind_channel(0x4000, peer.local_addr().unwrap()).unwrap();
    for _ in 0..3 {
        client.send_by_channel(0x4000, &[7; 100]);
        assert_eq!(peer.recv(&mut [0; 128]).unwrap(), 100);
    }
    for _ in 0..2 {
        peer.send_to(&[8; 10], relayed).unwrap();
        client.receive();
    }
    (client, peer)
}

#[test]
fn status_tells_how_the_daemon_is() {
    let ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let (_udp, _peer) = call(Client::udp(ferryd.address()));
    let (_tcp, _other) = call(Client::tcp(ferryd.address()));
    let status = json(&ferryd, &["status"]);
    assert_eq!((&status["state"], &status["workers"]), (&"serving".into(), &2.into()));
    assert_eq!((&status["allocations"], &status["connections"]), (&2.into(), &1.into()));
    assert_eq!((&status["relay_ports"]["ipv4"]["used"], &status["process"]), (&2.into(), &ferryd.id().into()));
    assert_eq!(status["certificates"][0]["expired"], false);
    let words = ferryd.verb(&["status"]).expect_success().stdout.clone();
    for line in ["state          serving\n", "allocations    2\n", "localhost ("] {
        assert!(words.contains(line), "{line:?} is missing in:\n{words}");
    }
}

#[test]
fn sessions_are_listed_by_bytes_and_found_by_user_client_and_peer() {
    let ferryd = Ferryd::start(|_| {});
    let (small, _peer) = {
        let mut client = Client::udp(ferryd.address());
        client.allocate();
        (client, ())
    };
    let (big, peer) = call(Client::tcp(ferryd.address()));
    let listing = json(&ferryd, &["sessions"]);
    assert_eq!(listing["matched"], 2);
    let first = &listing["sessions"][0];
    assert_eq!((&first["transport"], &first["user"]), (&"tcp".into(), &"alice".into()));
    assert_eq!((&first["packets_to_peers"], &first["bytes_to_peers"]), (&3.into(), &300.into()));
    assert_eq!((&first["packets_to_client"], &first["bytes_to_client"]), (&2.into(), &20.into()));
    assert_eq!((&first["permissions"], &first["channels"]), (&1.into(), &1.into()));
    let matched = |arguments: &[&str]| json(&ferryd, &[&["sessions"], arguments].concat())["matched"].clone();
    assert_eq!(matched(&["--user", "alice"]), 2);
    assert_eq!(matched(&["--user", "al*", "--client", "127.0.0.0/8"]), 2);
    assert_eq!(matched(&["--user", "bob"]), 0);
    assert_eq!(matched(&["--client", "198.51.100.1"]), 0);
    assert_eq!(matched(&["--peer", "127.0.0.1"]), 1);
    let page = json(&ferryd, &["sessions", "--sort", "none", "--limit", "1"]);
    let next = page["next"].as_str().unwrap();
    assert_eq!(next, page["sessions"][0]["id"]);
    let rest = json(&ferryd, &["sessions", "--sort", "none", "--after", next]);
    assert_eq!((rest["sessions"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    let table = ferryd.verb(&["sessions", "--limit", "1"]).expect_success().stdout.clone();
    assert!(table.starts_with("ID ") && table.contains("300 B") && table.ends_with("1 of 2 sessions\n"), "{table}");
    drop((small, big, peer));
}

#[test]
fn a_session_is_shown_with_its_peers_and_ended() {
    let ferryd = Ferryd::start(|_| {});
    let (mut client, peer) = call(Client::udp(ferryd.address()));
    let (mut other, _other_peer) = call(Client::udp(ferryd.address()));
    let port = client.bind().port();
    let listing = json(&ferryd, &["sessions"]);
    let session = listing["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|session| session["client"].as_str().unwrap().parse::<SocketAddr>().unwrap().port() == port);
    let id = session.unwrap()["id"].as_str().unwrap().to_owned();
    let detail = json(&ferryd, &["session", &id]);
    assert_eq!(detail["bound_channels"][0]["peer"], peer.local_addr().unwrap().to_string());
    assert_eq!(
        (&detail["bound_channels"][0]["number"], &detail["permitted_peers"][0]["address"]),
        (&0x4000.into(), &"127.0.0.1".into())
    );
    let words = ferryd.verb(&["session", &id]).expect_success().stdout.clone();
    assert!(words.contains("to peers    300 B in 3 packets") && words.contains("0x4000 to 127.0.0.1:"), "{words}");
    let ended = ferryd.verb(&["evict", &id]);
    assert_eq!(ended.expect_success().stdout, format!("ended {id}\n"));
    assert_eq!(client.refresh(600), Err(437));
    assert_eq!(other.refresh(600), Ok(600), "the other session goes on");
    ferryd.verb(&["evict", &id]).expect_failure(1, &["no session", "is live"]);
    ferryd.verb(&["session", &id]).expect_failure(1, &["is live"]);
    crate::wait_until("the record", || {
        ferryd.log().contains(&format!("id={id}")) && ferryd.log().contains("reason=\"evicted\"")
    });
}

#[test]
fn what_is_asked_wrongly_is_told() {
    let ferryd = Ferryd::start(|_| {});
    ferryd.verb(&["session", "abc"]).expect_failure(1, &["\"abc\" is no session id"]);
    ferryd.verb(&["sessions", "--client", "here"]).expect_failure(1, &["client: expected an address or a range"]);
    ferryd.verb(&["sessions", "--limit", "0"]).expect_failure(1, &["limit: expected a number from 1 to 10000"]);
    ferryd.verb(&["sessions", "--after", &"0".repeat(26)]).expect_failure(1, &["after: goes with an unsorted"]);
    run(&["status", "--socket", "/nowhere/admin.sock"]).expect_failure(1, &["/nowhere/admin.sock: cannot be reached"]);
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_daemon() {
    let ferryd = Ferryd::start(|_| {});
    let path = ferryd.config.directory.join("admin.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // A second daemon does not take it over.
    refused(|config| _ = config.text("admin.socket", path.display()))
        .expect_failure(1, &["admin.socket", "another ferryd serves it"]);
    let kept = tempfile::tempdir().unwrap();
    let socket = kept.path().join("admin.sock");
    let second = Ferryd::start(|config| {
        config.text("admin.socket", socket.display()).set("admin.group-access", true);
    });
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    second.stop().expect_success();
    assert!(!socket.exists());
}

#[test]
fn without_a_socket_nothing_is_served() {
    let ferryd = Ferryd::start(|config| _ = config.text("admin.socket", "off"));
    assert!(!ferryd.config.directory.join("admin.sock").exists());
    Client::udp(ferryd.address()).allocate();
}

#[test]
fn top_shows_the_busiest_and_what_they_had_since_the_last_look() {
    let ferryd = Ferryd::start(|_| {});
    let (_quiet, _peer) = call(Client::udp(ferryd.address()));
    let looks = ferryd.verb(&["top", "--interval", "1s", "--count", "2"]).expect_success().stdout.clone();
    assert_eq!(looks.matches("serving, up ").count(), 2, "{looks}");
    assert_eq!(looks.matches("300 B").count(), 2, "{looks}");
    ferryd.verb(&["top", "--interval", "0"]).expect_failure(2, &["expected a duration"]);
}
