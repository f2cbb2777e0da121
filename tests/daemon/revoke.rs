//! `ferryd revoke`: live allocations end, no new ones are made, and a restart remembers.

use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret};

use crate::admin::{call, json};
use crate::client::{Client, User};
use crate::ferryd::{Config, Ferryd};
use crate::{place, wait_until};

pub(crate) const SECRET: &str = "n3kZ8wPq0TtYbV6sLx2RfJ5uHc9GmDaE";

pub(crate) fn secret() -> SharedSecret {
    SharedSecret { secret: Secret::new(SECRET), algorithm: SecretAlgorithm::Sha1 }
}

fn minting(config: &mut Config) {
    let state = config.directory.join("state");
    config.text("state-directory", state.display()).set("auth.shared-secrets", format!("[\"{SECRET}\"]"));
}

fn minted(ferryd: &Ferryd, name: &str) -> Client {
    Client::udp(ferryd.address()).with(User::minted(&secret(), 3600, Some(name)))
}

#[test]
fn a_revoked_user_is_out_at_once_also_after_a_restart_and_until_it_is_undone() {
    let ferryd = Ferryd::start(minting);
    let (mut carol, _peer) = call(minted(&ferryd, "carol"));
    let (mut dave, _other) = call(minted(&ferryd, "dave"));
    let revoked = json(&ferryd, &["revoke", "carol"]);
    assert_eq!(
        (&revoked["subject"], &revoked["ended"], &revoked["kept"]),
        (&"user:carol".into(), &1.into(), &true.into())
    );
    assert_eq!(carol.refresh(600), Err(437));
    assert_eq!(carol.try_allocate(), Err(403));
    assert_eq!(minted(&ferryd, "carol").try_allocate(), Err(403), "a fresh credential as well");
    assert_eq!(dave.refresh(600), Ok(600));
    wait_until("the record", || ferryd.log().contains("reason=\"revoked\""));
    let ferryd = ferryd.restart();
    assert_eq!(minted(&ferryd, "carol").try_allocate(), Err(403));
    minted(&ferryd, "dave").allocate();
    let list = json(&ferryd, &["revoke", "--list"]);
    assert_eq!(list["revocations"][0]["subject"], "user:carol");
    assert_eq!(list["revocations"][0]["until"], serde_json::Value::Null);
    let words = ferryd.verb(&["revoke", "--undo", "carol"]);
    assert_eq!(words.expect_success().stdout, "user:carol may allocate again\n");
    minted(&ferryd, "carol").allocate();
    ferryd.verb(&["revoke", "--undo", "carol"]).expect_failure(1, &["user:carol is not revoked"]);
    assert_eq!(ferryd.verb(&["revoke", "--list"]).expect_success().stdout, "nothing is revoked\n");
}

#[test]
fn a_credential_is_revoked_until_it_would_have_ended() {
    let ferryd = Ferryd::start(minting);
    let user = User::minted(&secret(), 3600, Some("erin"));
    let expiry: u64 = user.name.split(':').next().unwrap().parse().unwrap();
    Client::udp(ferryd.address()).with(user.clone()).allocate();
    let revoked = json(&ferryd, &["revoke", &user.name]);
    assert_eq!((&revoked["until"], &revoked["ended"]), (&expiry.into(), &1.into()));
    assert_eq!(Client::udp(ferryd.address()).with(user.clone()).try_allocate(), Err(403));
    Client::udp(ferryd.address()).with(User::minted(&secret(), 7200, Some("erin"))).allocate();
}

#[test]
fn names_secrets_and_addresses_are_revoked_too() {
    let ferryd = Ferryd::start(minting);
    for name in ["tenant-a-1", "tenant-a-2", "tenant-b-1"] {
        minted(&ferryd, name).allocate();
    }
    assert_eq!(json(&ferryd, &["revoke", "tenant-a-*", "--for", "1h"])["ended"], 2);
    assert_eq!(minted(&ferryd, "tenant-a-3").try_allocate(), Err(403));
    let listing = json(&ferryd, &["sessions"]);
    let id = listing["sessions"][0]["secret"].as_str().unwrap();
    assert_eq!(id, secret().id().to_string());
    assert_eq!(json(&ferryd, &["revoke", &format!("secret:{id}")])["ended"], 1);
    assert_eq!(minted(&ferryd, "tenant-c-1").try_allocate(), Err(403));
    // Alice has a password of her own.
    Client::udp(ferryd.address()).allocate();
    let network = ipnet::Ipv4Net::new(place::here(), 8).unwrap().trunc().to_string();
    assert_eq!(json(&ferryd, &["revoke", &network])["ended"], 1);
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(403));
    let table = ferryd.verb(&["revoke", "--list"]).expect_success().stdout.clone();
    assert!(table.contains(&format!("client:{network}")) && table.contains("user:tenant-a-*"), "{table}");
}

#[test]
fn without_a_state_directory_it_is_said_and_a_broken_file_stops_the_start() {
    let ferryd = Ferryd::start(|_| {});
    let words = ferryd.verb(&["revoke", "bob"]).expect_success().stdout.clone();
    assert!(words.contains("a restart forgets it"), "{words}");
    ferryd.verb(&["revoke", "client:here"]).expect_failure(1, &["subject: expected a user"]);
    ferryd.verb(&["revoke"]).expect_failure(2, &["required"]);
    crate::ferryd::refused(|config| {
        minting(config);
        let state = config.directory.join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join("revocations.json"), "{").unwrap();
    })
    .expect_failure(1, &["revocations.json: cannot be read", "mend the file"]);
}
