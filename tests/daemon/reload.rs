//! SIGHUP: what changes under running calls, what does not, and what a wrong configuration leaves as it was.

use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret};

use crate::certificate::Certificate;
use crate::client::{Client, User};
use crate::ferryd::{Ferryd, PASSWORD};
use crate::{place, wait_until};

fn one_user(name: &str) -> String {
    format!("[{{ name = \"{name}\", password = \"{PASSWORD}\" }}]")
}

#[test]
fn a_user_who_is_taken_out_keeps_the_call_and_starts_no_other() {
    let mut ferryd = Ferryd::start(|_| {});
    let mut alice = Client::udp(ferryd.address());
    let peer = place::peer();
    alice.allocate();
    alice.permit(peer.local_addr().unwrap()).unwrap();
    let log = ferryd.reload(|config| _ = config.set("auth.user", one_user("bob")));
    assert!(log.contains("changed=\"credentials\""), "{log}");
    alice.send_by_indication(peer.local_addr().unwrap(), b"still here");
    let mut bytes = [0; 16];
    assert_eq!(peer.recv(&mut bytes).unwrap(), 10);
    assert_eq!(alice.refresh(600), Ok(600));
    assert_eq!(Client::udp(ferryd.address()).try_allocate(), Err(401));
    Client::udp(ferryd.address()).with(User::new("bob", PASSWORD)).allocate();
}

#[test]
fn peers_and_lifetimes_change_for_what_comes_after() {
    let mut ferryd = Ferryd::start(|_| {});
    let mut client = Client::udp(ferryd.address());
    client.allocate();
    client.permit("127.0.0.1:9".parse().unwrap()).unwrap();
    let log = ferryd.reload(|config| {
        config.set("peers.deny", "[\"127.0.0.1\"]").set("relay.lifetime-default", "\"5m\"");
    });
    assert!(log.contains("changed=\"peers, lifetimes, extensions, compatibility\""), "{log}");
    assert_eq!(client.permit("127.0.0.1:9".parse().unwrap()), Err(403));
    assert_eq!(client.refresh(1), Ok(300));
}

#[test]
fn a_certificate_that_was_renewed_is_served() {
    let mut ferryd = Ferryd::start(|config| _ = Certificate::configured(config));
    let old = Certificate::of(&ferryd.config);
    let mut before = Client::tls(ferryd.address(), &old);
    before.allocate();
    ferryd.reload(|config| _ = Certificate::configured(config));
    let new = Certificate::of(&ferryd.config);
    Client::tls(ferryd.address(), &new).allocate();
    assert_eq!(before.refresh(600), Ok(600), "the connection under the old certificate goes on");
}

#[test]
fn a_wrong_configuration_changes_nothing_and_is_told_whole() {
    let mut ferryd = Ferryd::start(|_| {});
    let log = ferryd.reload(|config| {
        config.set("auth.user", one_user("bob")).text("relay.port-max", "many").set("relm", 1);
    });
    for words in ["relay.port-max", "relm: unknown key", "did you mean realm", "nothing of it has been applied"] {
        assert!(log.contains(words), "{words:?} is missing in:\n{log}");
    }
    Client::udp(ferryd.address()).allocate();
}

#[test]
fn what_needs_a_restart_is_named_and_kept() {
    let mut ferryd = Ferryd::start(|_| {});
    let address = ferryd.address();
    let log = ferryd.reload(|config| _ = config.text("metrics.address", "127.0.0.1:9").set("workers", 1));
    assert!(log.contains("workers, metrics") && log.contains("take effect at the next start"), "{log}");
    assert!(log.contains("nothing has changed"), "{log}");
    Client::udp(address).allocate();
    let log = ferryd.reload(|config| {
        config.set("relay.advertised-addresses", "[\"198.51.100.1\"]").set("limits.handshakes", 7);
    });
    assert!(log.contains("relay.addresses, relay.advertised-addresses, limits.handshakes"), "{log}");
    assert!(log.contains("nothing has changed"), "nothing else: {log}");
    // As it was: a session to come is told the address that sockets are bound to.
    let mut client = Client::udp(address);
    assert_eq!(client.allocate().ip(), address.ip());
}

#[test]
fn another_state_directory_waits_for_the_next_start() {
    let mut ferryd = Ferryd::start(|config| {
        let state = config.directory.join("one");
        config.unset("auth.user").text("state-directory", state.display());
    });
    let made = std::fs::read_to_string(ferryd.config.directory.join("one/shared-secret")).unwrap();
    let made = SharedSecret { secret: Secret::new(made.trim()), algorithm: SecretAlgorithm::Sha1 };
    let user = User::minted(&made, 3600, Some("carol"));
    let mut live = Client::udp(ferryd.address()).with(user.clone());
    live.allocate();
    for name in ["two", "three"] {
        let log = ferryd.reload(|config| {
            let state = config.directory.join(name);
            config.text("state-directory", state.display());
        });
        assert!(log.contains("settings=\"state-directory\"") && !log.contains("credentials"), "{log}");
        // No credential ends by it, nor is anybody's nonce stale.
        Client::udp(ferryd.address()).with(user.clone()).allocate();
        assert_eq!(live.refresh(600), Ok(600));
    }
    assert!(!ferryd.config.directory.join("two").exists());
}

#[test]
fn certificates_and_secrets_that_are_replaced_are_read_without_being_told() {
    let secret = |text: &str| SharedSecret { secret: Secret::new(text), algorithm: SecretAlgorithm::Sha1 };
    let (first, second) = ("n3kZ8wPq0TtYbV6sLx2RfJ5uHc9GmDaE", "Qm7VxR2dKf9LsW4tHy6NbJ8pZc3GaTeU");
    let mut ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        let file = config.directory.join("secrets");
        std::fs::write(&file, first).unwrap();
        config.text("auth.shared-secrets-file", file.display()).text("watch-files", "1s");
    });
    let minted = |ferryd: &Ferryd, text: &str| {
        Client::udp(ferryd.address()).with(User::minted(&secret(text), 3600, Some("carol"))).try_allocate()
    };
    minted(&ferryd, first).unwrap();
    // Both, under a running call.
    let mut live = Client::udp(ferryd.address());
    live.allocate();
    let directory = ferryd.config.directory.clone();
    std::fs::write(directory.join("secrets"), second).unwrap();
    let new = Certificate::new(&directory, "ferryd");
    wait_until("the reload", || ferryd.log().contains("configuration read again"));
    minted(&ferryd, second).unwrap();
    assert_eq!(minted(&ferryd, first), Err(401));
    Client::tls(ferryd.address(), &new).allocate();
    assert_eq!(live.refresh(600), Ok(600));
    // A configuration that somebody is editing is not applied by the way.
    ferryd.config.text("realm", "elsewhere").write();
    let newer = Certificate::new(&directory, "ferryd");
    wait_until("the certificates", || ferryd.log().contains("certificates read again"));
    Client::tls(ferryd.address(), &newer).allocate();
    assert_eq!(ferryd.log().matches("configuration read again").count(), 1);
    // One that is broken changes nothing.
    ferryd.reload(|config| _ = config.unset("realm"));
    std::fs::write(directory.join("ferryd.pem"), "no certificate").unwrap();
    wait_until("the refusal", || ferryd.log().contains("nothing of it has been applied"));
    Client::tls(ferryd.address(), &newer).allocate();
}
