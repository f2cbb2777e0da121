//! What the configuration changes, wherever it is written.

use std::collections::BTreeSet;

use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret};
use ferryd::stun::{AttributeType, Method};

use crate::client::{Client, User};
use crate::ferryd::{Config, Ferryd};
use crate::place;

const SECRET: &str = "Zq8vN3xT0pLw6RbYc2HsKd5M";

fn minted(name: &str) -> User {
    User::minted(&SharedSecret { secret: Secret::new(SECRET), algorithm: SecretAlgorithm::Sha1 }, 60, Some(name))
}

fn shared_secret(config: &mut Config) {
    config.set("auth.shared-secrets", format!("[\"{SECRET}\"]"));
}

#[test]
fn the_environment_overrides_the_file_and_ports_come_from_the_range_until_none_is_left() {
    let port = place::free_port();
    let ferryd = Ferryd::start_with(
        |config| {
            config.set("relay.port-min", 50_000);
        },
        |command| {
            for name in ["FERRYD_RELAY__PORT_MIN", "FERRYD_RELAY__PORT_MAX"] {
                command.env(name, port.to_string());
            }
        },
    );
    let (mut first, mut second) = (Client::udp(ferryd.address()), Client::udp(ferryd.address()));
    assert_eq!(first.allocate().port(), port);
    assert_eq!(second.try_allocate(), Err(508));
    first.refresh(0).unwrap();
    assert_eq!(second.allocate().port(), port);
}

#[test]
fn several_relay_addresses_are_all_used() {
    let port = place::free_port();
    let other = place::own_address();
    let ferryd = Ferryd::start(|config| {
        let addresses = format!("[\"{}\", \"{other}\"]", config.ip);
        config.set("relay.addresses", addresses).set("relay.port-min", port).set("relay.port-max", port);
    });
    let mut clients = [Client::udp(ferryd.address()), Client::udp(ferryd.address())];
    let used = clients.each_mut().map(|client| client.allocate().ip());
    assert_eq!(BTreeSet::from(used), BTreeSet::from([ferryd.config.ip.into(), other.into()]));
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(508));
}

#[test]
fn relay_ports_are_not_given_out_in_turn() {
    let ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    let mut ports = BTreeSet::new();
    for _ in 0..8 {
        ports.insert(client.allocate().port());
        client.refresh(0).unwrap();
    }
    // Eight neighbours of 16,384 by chance: never.
    let (low, high) = (ports.first().unwrap(), ports.last().unwrap());
    assert!(ports.len() > 4 && high - low > 64, "{ports:?}");
}

#[test]
fn a_systemd_credential_holds_the_shared_secrets() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ferryd.secrets"), format!("# the newest first\n{SECRET}\n")).unwrap();
    let ferryd = Ferryd::start_with(
        |config| _ = config.unset("auth.user"),
        |command| _ = command.env("CREDENTIALS_DIRECTORY", directory.path()),
    );
    Client::udp(ferryd.address()).with(minted("dora")).allocate();
    assert_eq!(ferryd.stop().expect_success().stdout, "", "who has configured a secret is not greeted");
}

#[test]
fn a_named_user_has_a_quota_across_workers_and_transports() {
    let ferryd = Ferryd::start(|config| {
        shared_secret(config);
        config.set("limits.allocations-per-user", 2);
    });
    let connect = |user: &User| {
        [Client::udp(ferryd.address()), Client::tcp(ferryd.address()), Client::tcp(ferryd.address())]
            .map(|client| client.with(user.clone()))
    };
    let [mut one, mut two, mut three] = connect(&minted("dora"));
    one.allocate();
    two.allocate();
    assert_eq!(three.try_allocate(), Err(486));
    let [mut other, ..] = connect(&minted("erin"));
    other.allocate();
    one.refresh(0).unwrap();
    three.allocate();
}

#[test]
fn a_stale_nonce_is_replaced_and_the_allocation_lives_on() {
    let ferryd = Ferryd::start(|_| {});
    let (mut client, mut other) = (Client::udp(ferryd.address()), Client::udp(ferryd.address()));
    client.allocate();
    other.allocate();
    // As good as expired: it is another client's.
    client.challenge.clone_from(&other.challenge);
    assert_eq!(client.request_once(Method::Refresh, |_| {}).code(), Some(438));
    let answer = client.request(Method::Refresh, |_| {});
    assert_eq!(answer.number(AttributeType::LIFETIME), 600);
}

#[test]
fn channels_above_4fff_are_bound_where_the_compatibility_is_set() {
    for (allowed, result) in [(false, Err(400)), (true, Ok(()))] {
        let ferryd = Ferryd::start(|config| _ = config.set("compatibility.channels-above-4fff", allowed));
        let mut client = Client::udp(ferryd.address());
        client.allocate();
        assert_eq!(client.bind_channel(0x7FFF, "127.0.0.1:9".parse().unwrap()), result);
    }
}
