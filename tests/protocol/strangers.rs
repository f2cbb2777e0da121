//! How much is answered to sources that have proved nothing, and to those that guess passwords.

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::{DropReason, Effect};

use crate::harness::{ALICE, Client, World, secs};

/// Sends a request many times over, each with a transaction of its own; returns how many were answered.
fn flood(world: &mut World, client: &mut Client, method: Method, times: usize) -> usize {
    let request = |client: &mut Client| client.unsigned(method, |_| {});
    (0..times)
        .filter(|_| {
            let bytes = request(client);
            client.exchange(world, &bytes).is_some()
        })
        .count()
}

#[test]
fn bindings_of_one_source_are_bounded_and_others_are_answered() {
    let mut world = World::with(|setup| setup.turn.limits.bindings_per_second = 50);
    let mut flooder = Client::new("198.51.100.1:1000");
    assert_eq!(flood(&mut world, &mut flooder, Method::Binding, 500), 50);
    assert_eq!(flood(&mut world, &mut Client::new("198.51.100.1:1001"), Method::Binding, 1), 0, "another port");
    assert_eq!(flood(&mut world, &mut Client::new("198.51.100.2:1000"), Method::Binding, 1), 1, "another source");
    let mut stream = Client::over("198.51.100.1:1002", Transport::Tcp);
    assert_eq!(flood(&mut world, &mut stream, Method::Binding, 100), 100, "a stream has proved its path");
    assert_eq!(world.dropped(DropReason::BindingRate), 451);
    world.advance(secs(1));
    assert_eq!(flood(&mut world, &mut flooder, Method::Binding, 500), 50);
}

#[test]
fn the_five_tuple_of_an_allocation_is_answered_beside_a_flood_from_its_source() {
    let mut world = World::with(|setup| {
        (setup.turn.limits.bindings_per_second, setup.turn.limits.challenges_per_second) = (5, 5);
    });
    let mut client = Client::new("198.51.100.1:1000");
    assert_eq!(client.allocate(&mut world).result(), Ok(()));
    let mut flooder = Client::new("198.51.100.1:1001");
    flood(&mut world, &mut flooder, Method::Binding, 100);
    flood(&mut world, &mut flooder, Method::Allocate, 200);
    assert_eq!(flood(&mut world, &mut client, Method::Binding, 10), 10);
    assert_eq!(flood(&mut world, &mut client, Method::Refresh, 10), 10, "401, and a nonce");
    assert_eq!(client.refresh(&mut world, None).result(), Ok(()));
    // RFC 8656 section 5: a nonce ends within the hour, and 438 brings the next one.
    client.nonce = Some(b"obMatJos2AAAAAAAAAAAAAAA".to_vec());
    assert_eq!(client.refresh(&mut world, None).result(), Err(438));
}

#[test]
fn challenges_of_one_source_are_bounded_and_those_that_credentials_follow_are_not() {
    let mut world = World::with(|setup| {
        setup.turn.limits.challenges_per_second = 10;
        setup.turn.limits.allocations_per_prefix = 0;
    });
    for port in 1000..3000 {
        let mut client = Client::new(&format!("198.51.100.1:{port}"));
        assert_eq!(client.allocate(&mut world).result(), Ok(()), "client {port} behind the NAT");
    }
    let mut flooder = Client::new("198.51.100.1:999");
    assert_eq!(flood(&mut world, &mut flooder, Method::Allocate, 5000), 160, "16 seconds of 10");
    assert_eq!(world.dropped(DropReason::ChallengeRate), 4840);
    assert_eq!(Client::new("198.51.100.2:1000").allocate(&mut world).result(), Ok(()), "another source");
    let mut waiting = Client::new("198.51.100.1:998");
    world.advance(secs(1));
    assert_eq!(waiting.allocate(&mut world).result(), Ok(()), "the bucket fills again");
}

#[test]
fn every_answer_to_a_source_without_a_valid_nonce_comes_out_of_the_bucket() {
    let mut world = World::with(|setup| setup.turn.limits.challenges_per_second = 1);
    let mut client = Client::new("198.51.100.1:1000");
    client.nonce = Some(b"obMatJos2AAAAAAAAAAAAAAA".to_vec());
    let mut answered = 0;
    for round in 0..100 {
        client.password = if round % 2 == 0 { ALICE } else { "wrong" }.to_owned();
        let signed = client.signed(Method::Allocate, |_| {});
        answered += usize::from(client.exchange(&mut world, &signed).is_some());
        // Integrity without REALM and NONCE is a 400.
        let key = client.key();
        let bad = client.unsigned(Method::Refresh, |builder| _ = builder.integrity(&key));
        answered += usize::from(client.exchange(&mut world, &bad).is_some());
        answered += flood(&mut world, &mut client, Method::ChannelBind, 1);
    }
    assert_eq!(answered, 16, "438, 401 and 400 alike");
}

#[test]
fn challenges_to_forged_sources_are_bounded_together() {
    let mut world = World::with(|setup| setup.turn.limits.challenges_total_per_second = 100);
    let answered = (0..5000_u32)
        .filter(|number| {
            let [_, _, high, low] = number.to_be_bytes();
            let mut forged = Client::new(&format!("198.18.{high}.{low}:1000"));
            flood(&mut world, &mut forged, Method::Allocate, 1) == 1
        })
        .count();
    assert_eq!(answered, 100);
    assert_eq!(world.dropped(DropReason::ChallengeRateOfAll), 4900);
}

#[test]
fn a_right_password_is_never_refused_however_many_wrong_ones_come_beside_it() {
    let mut world = World::with(|setup| setup.turn.limits.failures_per_second = 5);
    let mut guesser = Client::new("198.51.100.1:1000");
    guesser.challenge(&mut world);
    guesser.password = "wrong".to_owned();
    let answered = (0..2000)
        .filter(|_| {
            let guess = guesser.signed(Method::Allocate, |_| {});
            let reply = guesser.exchange(&mut world, &guess);
            assert!(reply.as_ref().is_none_or(|reply| reply.result() == Err(401)));
            reply.is_some()
        })
        .count();
    assert_eq!(answered, 50, "ten seconds of 5");
    assert_eq!(world.counters().credential_failures, 2000);
    assert_eq!(world.dropped(DropReason::FailureRate), 1950);
    // The same user elsewhere, another user here, and the very socket that guessed.
    assert_eq!(Client::new("198.51.100.2:1000").allocate(&mut world).result(), Ok(()));
    assert_eq!(Client::new("198.51.100.1:1001").allocate(&mut world).result(), Ok(()), "another device behind the NAT");
    guesser.password = ALICE.to_owned();
    assert_eq!(guesser.allocate(&mut world).result(), Ok(()));
}

#[test]
fn a_user_whose_password_is_guessed_is_told_of_seldom() {
    let mut world = World::new();
    let mut guesser = Client::over("198.51.100.1:1000", Transport::Tls).user("bob", "wrong");
    guesser.challenge(&mut world);
    for _ in 0..5000 {
        let guess = guesser.signed(Method::Allocate, |_| {});
        guesser.exchange(&mut world, &guess);
    }
    let attacked: Vec<_> = world
        .events
        .iter()
        .filter_map(
            |event| if let Effect::UserAttacked { username } = event { Some(username.to_string()) } else { None },
        )
        .collect();
    assert_eq!(attacked, ["bob"]);
    guesser.username = "a name without end, ".repeat(1000);
    for _ in 0..1000 {
        let guess = guesser.signed(Method::Allocate, |_| {});
        guesser.exchange(&mut world, &guess);
    }
    let Some(Effect::UserAttacked { username }) = world.events.last() else { panic!("nobody is told") };
    assert!(guesser.username.starts_with(&**username) && username.len() == 128, "{username}");
    assert!(world.dropped(DropReason::FailureRate) > 4000, "on streams as well");
}

#[test]
fn guesses_on_a_connection_are_bounded_whatever_their_nonce() {
    let mut world = World::new();
    let mut guesser = Client::over("198.51.100.1:1000", Transport::Tcp).user("bob", "wrong");
    guesser.nonce = Some(b"obMatJos2AAAAAAAAAAAAAAA".to_vec());
    let answered = (0..1000)
        .filter(|_| {
            let guess = guesser.signed(Method::Allocate, |_| {});
            guesser.exchange(&mut world, &guess).is_some()
        })
        .count();
    assert_eq!(answered, 100, "ten seconds of 10");
    assert_eq!(world.counters().credential_failures, 1000);
    assert!(world.events.iter().any(|event| matches!(event, Effect::UserAttacked { .. })));
    (guesser.username, guesser.password) = ("alice".to_owned(), ALICE.to_owned());
    assert_eq!(guesser.allocate(&mut world).result(), Err(438), "a right one is told that its nonce is stale");
}

#[test]
fn known_and_unknown_users_are_limited_alike() {
    let answers = |name: &str| {
        let mut world = World::new();
        let mut guesser = Client::new("198.51.100.1:1000").user(name, "wrong");
        guesser.challenge(&mut world);
        let guesses = (0..500).map(|_| {
            let guess = guesser.signed(Method::Allocate, |builder| {
                builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            });
            guesser.exchange(&mut world, &guess).map(|reply| reply.result())
        });
        guesses.collect::<Vec<_>>()
    };
    assert_eq!(answers("alice"), answers("nobody"));
}
