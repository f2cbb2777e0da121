//! Who may allocate: static users and time-limited ones, by every secret and algorithm.

use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret};

use crate::client::{Client, User};
use crate::ferryd::{ALICE, Config, Ferryd, PASSWORD, alice};
use crate::independent::{self, Way};

const NEW_SECRET: &str = "Zq8vN3xT0pLw6RbYc2HsKd5M";
const OLD_SECRET: &str = "b7Wf1GjUe9XoPz4CiVr8AnQt";
const SHA256_SECRET: &str = "Ly5DkE0mS2uJh8BtFqZx6RwN";

fn secret(text: &str, algorithm: SecretAlgorithm) -> SharedSecret {
    SharedSecret { secret: Secret::new(text), algorithm }
}

fn shared_secrets(config: &mut Config) {
    let sha256 = format!("{{ secret = \"{SHA256_SECRET}\", algorithm = \"sha256\" }}");
    config.set("auth.shared-secrets", format!("[\"{NEW_SECRET}\", \"{OLD_SECRET}\", {sha256}]"));
}

#[test]
fn a_static_user_allocates_by_password_by_file_and_by_stored_key() {
    let ferryd = Ferryd::start(|config| {
        let file = config.directory.join("bob");
        std::fs::write(&file, "Kx9qTf4LmWz7VbNs2RyGh6Pd\nnot read\n").unwrap();
        // MD5(carol:ferryd:open-sesame-17-42-99), as coturn keeps it.
        let users = [
            format!("{{ name = \"{ALICE}\", password = \"{PASSWORD}\" }}"),
            format!("{{ name = \"bob\", password-file = \"{}\" }}", file.display()),
            format!("{{ name = \"carol\", key = \"{}\" }}", stored_key("carol", "open-sesame-17-42-99")),
        ];
        config.set("auth.user", format!("[{}]", users.join(", ")));
    });
    let users = [alice(), User::new("bob", "Kx9qTf4LmWz7VbNs2RyGh6Pd"), User::new("carol", "open-sesame-17-42-99")];
    for user in users {
        let relayed = Client::udp(ferryd.address()).with(user).allocate();
        assert_eq!(relayed.ip(), ferryd.config.ip);
        assert!((49152..=65535).contains(&relayed.port()));
    }
}

fn stored_key(name: &str, password: &str) -> String {
    let key = Client::key_of(name, "ferryd", password);
    key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_unknown_user_and_a_wrong_password_get_the_same_401() {
    let ferryd = Ferryd::start(|_| {});
    for user in [User::new("mallory", PASSWORD), User::new(ALICE, "wrong")] {
        assert_eq!(Client::udp(ferryd.address()).with(user.clone()).try_allocate(), Err(401), "{user:?}");
        assert!(independent::allocation_error(ferryd.address(), &user).contains("401"));
    }
}

#[test]
fn time_limited_users_of_every_secret_allocate_with_and_without_a_name() {
    let ferryd = Ferryd::start(shared_secrets);
    for (text, algorithm) in [
        (NEW_SECRET, SecretAlgorithm::Sha1),
        (OLD_SECRET, SecretAlgorithm::Sha1),
        (SHA256_SECRET, SecretAlgorithm::Sha256),
    ] {
        for name in [None, Some("dora"), Some("a:b")] {
            let user = User::minted(&secret(text, algorithm), 60, name);
            Client::udp(ferryd.address()).with(user).allocate();
        }
        let user = User::minted(&secret(text, algorithm), 60, Some("erin"));
        independent::relays(ferryd.address(), &Way::Udp, &user);
    }
}

#[test]
fn time_limited_users_that_are_expired_or_of_another_secret_are_refused() {
    let ferryd = Ferryd::start(shared_secrets);
    for user in [
        User::minted(&secret(NEW_SECRET, SecretAlgorithm::Sha1), -1, Some("dora")),
        User::minted(&secret(NEW_SECRET, SecretAlgorithm::Sha1), -1, None),
        User::minted(&secret("someone else's", SecretAlgorithm::Sha1), 60, Some("dora")),
        // The algorithm belongs to the secret.
        User::minted(&secret(NEW_SECRET, SecretAlgorithm::Sha256), 60, Some("dora")),
        User::minted(&secret(SHA256_SECRET, SecretAlgorithm::Sha1), 60, Some("dora")),
    ] {
        assert_eq!(Client::udp(ferryd.address()).with(user.clone()).try_allocate(), Err(401), "{user:?}");
    }
}

#[test]
fn a_credential_that_expires_stops_new_allocations_and_not_a_live_one() {
    let ferryd = Ferryd::start(shared_secrets);
    let user = User::minted(&secret(NEW_SECRET, SecretAlgorithm::Sha1), 2, Some("dora"));
    let mut client = Client::udp(ferryd.address()).with(user.clone());
    client.allocate();
    let expired = || Client::udp(ferryd.address()).with(user.clone()).try_allocate() == Err(401);
    crate::wait_until("the credential to expire", expired);
    assert_eq!(client.refresh(600), Ok(600));
    let peer = "127.0.0.1:9".parse().unwrap();
    assert_eq!((client.permit(peer), client.bind_channel(0x4000, peer)), (Ok(()), Ok(())));
}

#[test]
fn without_credentials_nothing_is_relayed() {
    let ferryd = Ferryd::start(|_| {});
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut client = Client::udp(ferryd.address());
    client.send_by_indication(peer.local_addr().unwrap(), b"smuggled");
    client.send_by_channel(0x4000, b"smuggled");
    // The answer comes after both were looked at.
    client.bind();
    peer.set_nonblocking(true).unwrap();
    assert_eq!(peer.recv(&mut [0; 64]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}
