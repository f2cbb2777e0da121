//! Whose credentials are accepted, and for how long (RFC 8489 section 9.2, RFC 8656 section 5, the REST draft).

use ferryd::address::Transport;
use ferryd::auth::long_term::PasswordAlgorithm;
use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret, User, UserCredential};
use ferryd::stun::{AttributeType, Builder, Class, Method};

use crate::harness::{ALICE, BOB, Client, PEER, SECRET_SHA256, Setup, Signed, TICK, UNIX_START, World, secs};

#[test]
fn user_hashes_are_accepted_where_users_can_be_enumerated() {
    // RFC 8489 section 14.4: "The USERHASH attribute is used as a replacement for the USERNAME attribute when username
    // anonymity is supported."
    let mut world = World::with(|setup| setup.without_shared_secrets());
    for mut client in [Client::new("198.51.100.1:1000"), Client::new("198.51.100.1:1001").sha256()] {
        client.anonymous = true;
        assert_eq!(client.allocate(&mut world).result(), Ok(()));
        assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
        client.anonymous = false;
        assert_eq!(client.refresh(&mut world, None).result(), Ok(()), "the same user by name");
    }
    let mut stranger = Client::new("198.51.100.1:1002").user("nobody", ALICE);
    stranger.anonymous = true;
    assert_eq!(stranger.allocate(&mut world).result(), Err(401));
}

#[test]
fn user_hashes_of_a_wrong_length_are_unknown() {
    let mut world = World::with(|setup| setup.without_shared_secrets());
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    for length in [0, 31, 33, 64] {
        let id = client.transaction();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, Method::Allocate, Class::Request, id);
        builder.attribute(AttributeType::USERHASH, &vec![7; length]).attribute(AttributeType::REALM, b"ferryd");
        builder.attribute(AttributeType::NONCE, client.nonce.as_deref().unwrap());
        client.write_integrity(&mut builder);
        assert_eq!(client.exchange(&mut world, &bytes).unwrap().result(), Err(401), "{length} bytes");
    }
}

#[test]
fn stored_md5_keys_offer_md5_alone() {
    // RFC 8489 section 9.2.4 wants PASSWORD-ALGORITHMS in these answers; a stored MD5 key cannot be turned into
    // another.
    let mut world = World::with(with_stored_md5_key);
    let mut carol = Client::new("198.51.100.1:1000").user("carol", "stored");
    carol.algorithm = Some(PasswordAlgorithm::Md5);
    carol.challenge(&mut world);
    assert_eq!(carol.offered.as_deref(), Some(&[0, 1, 0, 0][..]));
    let reply = carol.allocate(&mut world);
    assert_eq!((reply.result(), reply.signed()), (Ok(()), Signed::Sha256));
    let mut alice = Client::new("198.51.100.1:1001").sha256();
    alice.challenge(&mut world);
    assert_eq!(alice.allocate(&mut world).result(), Err(400), "SHA-256 was not offered");
    let mut plain = Client::new("198.51.100.1:1002").user("carol", "stored");
    assert_eq!(plain.allocate(&mut world).result(), Ok(()));
}

#[test]
fn composed_and_decomposed_names_log_in() {
    // RFC 8489 section 14.3: the username "MUST have been processed using the OpaqueString profile"; clients that do
    // not are let in all the same.
    let mut world = World::new();
    for (port, username) in [(1000, "caf\u{e9}"), (1001, "cafe\u{301}")] {
        for algorithm in [None, Some(PasswordAlgorithm::Sha256)] {
            let mut client = Client::new(&format!("198.51.100.1:{port}")).user(username, ALICE);
            client.algorithm = algorithm;
            assert_eq!(client.refresh(&mut world, None).result(), Err(437), "{username} with {algorithm:?}");
        }
    }
    let mut client = Client::new("198.51.100.1:1002").user("caf\u{e9}", ALICE);
    client.allocate(&mut world).relay();
    let mut decomposed = client.clone().user("cafe\u{301}", ALICE);
    assert_eq!(decomposed.refresh(&mut world, None).result(), Ok(()), "they are the same user");
}

#[test]
fn names_are_prepared_for_who_has_heard_the_server() {
    // Preparation costs more than all the rest of a request, which a forged source has for nothing.
    let mut world = World::new();
    let forged = || Some(b"obMatJos2AAAAAAAAAAAAAAA".to_vec());
    let answer = |world: &mut World, transport, username: &str, nonce: Option<Vec<u8>>| {
        let mut client = Client::over("198.51.100.1:1000", transport).user(username, ALICE);
        client.nonce = nonce;
        client.allocate(world).result()
    };
    let (composed, decomposed) = ("caf\u{e9}", "cafe\u{301}");
    assert_eq!(answer(&mut world, Transport::Udp, composed, forged()), Err(438));
    assert_eq!(answer(&mut world, Transport::Udp, decomposed, forged()), Err(401));
    assert_eq!(answer(&mut world, Transport::Tcp, decomposed, forged()), Err(438));
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    world.advance(secs(2 * 3600));
    assert_eq!(answer(&mut world, Transport::Udp, decomposed, client.nonce), Err(438), "its own, but stale");
}

#[test]
fn time_limited_users_log_in_until_they_expire() {
    // The REST draft: username `expiry:name`, password base64(HMAC(secret, username)).
    let mut world = World::new();
    for (port, username) in [(1000, format!("{}:alice", UNIX_START + 60)), (1001, (UNIX_START + 60).to_string())] {
        let mut client = Client::new(&format!("198.51.100.1:{port}")).time_limited(&username);
        assert_eq!(client.allocate(&mut world).result(), Ok(()), "{username}");
        let mut sha256 = Client::new(&format!("198.51.100.2:{port}")).time_limited(&username).sha256();
        assert_eq!(sha256.allocate(&mut world).result(), Ok(()), "{username}");
    }
    world.advance(secs(60) - TICK);
    let mut late = Client::new("198.51.100.1:2000").time_limited(&format!("{}:late", UNIX_START + 60));
    assert_eq!(late.allocate(&mut world).result(), Ok(()));
    world.advance(TICK);
    let mut later = Client::new("198.51.100.1:2001").time_limited(&format!("{}:late", UNIX_START + 60));
    assert_eq!(later.allocate(&mut world).result(), Err(401), "expired");
}

#[test]
fn every_shared_secret_is_accepted() {
    let mut world = World::new();
    let username = format!("{}:alice", UNIX_START + 60);
    let secret = SharedSecret { secret: Secret::new(SECRET_SHA256), algorithm: SecretAlgorithm::Sha256 };
    let password = ferryd::auth::credentials::time_limited_password(&secret, &username);
    let mut client = Client::new("198.51.100.1:1000").user(&username, &password);
    assert_eq!(client.allocate(&mut world).result(), Ok(()));
}

#[test]
fn usernames_without_a_leading_timestamp_are_refused() {
    let mut world = World::new();
    for username in [format!("alice:{}", UNIX_START + 60), "carol".to_owned(), format!("+{}", UNIX_START + 60)] {
        let mut client = Client::new("198.51.100.1:1000").time_limited(&username);
        assert_eq!(client.allocate(&mut world).result(), Err(401), "{username}");
    }
}

#[test]
fn decomposed_names_of_time_limited_users_log_in() {
    // A service may have made the password for either form of the name, and a client may hash either into its key.
    let mut world = World::new();
    let composed = format!("{}:caf\u{e9}", UNIX_START + 60);
    let decomposed = format!("{}:cafe\u{301}", UNIX_START + 60);
    let password = Client::new("198.51.100.1:1").time_limited(&composed).password;
    for (port, username) in [(1000, &composed), (1001, &decomposed)] {
        let mut client = Client::new(&format!("198.51.100.1:{port}")).user(username, &password);
        assert_eq!(client.allocate(&mut world).result(), Ok(()), "{username}");
        let mut own = Client::new(&format!("198.51.100.2:{port}")).time_limited(username);
        assert_eq!(own.allocate(&mut world).result(), Ok(()), "{username}");
    }
}

#[test]
fn an_expired_credential_goes_on_refreshing_a_live_allocation() {
    // Issue 1: "An expired credential stops new allocations, not a live one."
    let mut world = World::new();
    for (port, name) in [(1000, "alice"), (1001, "cafe\u{301}")] {
        let username = format!("{}:{name}", world.unix() + 60);
        let mut client = Client::new(&format!("198.51.100.1:{port}")).time_limited(&username);
        client.allocate(&mut world).relay();
        world.advance(secs(120));
        assert_eq!(client.refresh(&mut world, None).result(), Ok(()), "{name}");
        assert_eq!(client.permit(&mut world, &[PEER]).result(), Ok(()));
        assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Ok(()));
        let mut elsewhere = Client::new(&format!("198.51.100.2:{port}")).time_limited(&username);
        assert_eq!(elsewhere.allocate(&mut world).result(), Err(401));
    }
}

#[test]
fn an_expired_credential_gets_no_new_allocation_from_one_that_has_expired() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000").time_limited(&format!("{}:alice", UNIX_START + 60));
    client.allocate(&mut world).relay();
    world.jump(secs(600));
    assert_eq!(client.allocate(&mut world).result(), Err(401), "the timers have not run yet");
    assert_eq!(client.refresh(&mut world, None).result(), Err(401));
}

/// A user whose password is not known, so that SHA-256 cannot be offered.
fn with_stored_md5_key(setup: &mut Setup) {
    let key = PasswordAlgorithm::Md5.key(b"carol", "ferryd", b"stored");
    let credential = UserCredential::Md5Key(Secret::new(key.as_bytes()));
    setup.auth.users.push(User { name: "carol".to_owned(), credential });
}

#[test]
fn a_reload_that_offers_other_algorithms_ends_no_call() {
    // Field notes, section 1: any error but 438 on Refresh prunes every connection of the call.
    let mut world = World::new();
    for (port, algorithm) in [(1000, PasswordAlgorithm::Sha256), (1001, PasswordAlgorithm::Md5)] {
        let mut client = Client::new(&format!("198.51.100.1:{port}"));
        client.algorithm = Some(algorithm);
        client.allocate(&mut world).relay();
        world.reload(with_stored_md5_key);
        assert_eq!(client.refresh(&mut world, None).result(), Ok(()), "{algorithm:?}");
        let mut elsewhere = Client::new(&format!("198.51.100.2:{port}"));
        elsewhere.algorithm = Some(algorithm);
        elsewhere.challenge(&mut world);
        elsewhere.offered.clone_from(&client.offered);
        assert_eq!(elsewhere.allocate(&mut world).result(), Err(400), "a bid-down all the same");
        world.reload(|_| {});
    }
}

#[test]
fn a_reload_that_removes_a_user_ends_no_call_but_starts_no_other() {
    let mut world = World::new();
    let mut alice = Client::new("198.51.100.1:1000");
    alice.allocate(&mut world).relay();
    world.reload(|setup| setup.auth.users.clear());
    assert_eq!(alice.refresh(&mut world, None).result(), Ok(()));
    assert_eq!(alice.permit(&mut world, &[PEER]).result(), Ok(()));
    assert_eq!(Client::new("198.51.100.1:1001").allocate(&mut world).result(), Err(401));
    assert_eq!(alice.refresh(&mut world, Some(0)).result(), Ok(()));
    assert_eq!(alice.allocate(&mut world).result(), Err(401));
}

#[test]
fn another_user_on_the_five_tuple_of_an_allocation_is_rejected_with_441() {
    // RFC 8656 section 5: "the request does not use the same username as used to create the allocation, then the
    // request MUST be rejected with a 441 (Wrong Credentials) error."
    let mut world = World::new();
    let mut alice = Client::new("198.51.100.1:1000");
    alice.allocate(&mut world).relay();
    let mut bob = alice.clone().user("bob", BOB);
    assert_eq!(bob.refresh(&mut world, Some(0)).result(), Err(441));
    assert_eq!(bob.permit(&mut world, &[PEER]).result(), Err(441));
    let reply = bob.bind(&mut world, 0x4000, PEER);
    assert_eq!((reply.result(), reply.signed()), (Err(441), Signed::Sha1));
    assert_eq!(bob.allocate(&mut world).result(), Err(437), "an Allocate is a mismatch");
    assert_eq!(alice.refresh(&mut world, None).result(), Ok(()));
}

#[test]
fn requests_without_an_allocation_are_rejected_with_437() {
    // RFC 8656 section 5: "if the 5-tuple does not identify an existing allocation, then the message MUST either be
    // rejected with a 437 Allocation Mismatch error (if it is a request) or be silently ignored".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    assert_eq!(client.refresh(&mut world, None).result(), Err(437));
    assert_eq!(client.refresh(&mut world, Some(0)).result(), Err(437));
    assert_eq!(client.permit(&mut world, &[PEER]).result(), Err(437));
    assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Err(437));
    client.indicate(&mut world, PEER, b"data");
    client.channel_data(&mut world, 0x4000, b"data");
    assert!(world.sent().is_empty() && world.inbox(&client.at).is_empty());
}
