//! Allocations that somebody else decides about.

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::DropReason;
use ferryd::turn::authorization::Verdict;

use crate::harness::{Client, World, assert_no_leak, secs};

const ALLOWED: Verdict = Verdict::Allowed { allocations_max: None };

fn world() -> World {
    World::with(|setup| setup.turn.authorize = true)
}

/// An Allocate of a client that has its nonce, which is sent and not answered.
fn asks(world: &mut World, client: &mut Client) -> Vec<u8> {
    client.challenge(world);
    let request = client.signed(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    });
    assert!(client.exchange(world, &request).is_none(), "nothing is said before the verdict");
    request
}

fn answer(world: &mut World, client: &Client, request: &[u8]) -> Result<(), u16> {
    client.reply_to(world, request).expect("an answer").result()
}

#[test]
fn an_allocate_waits_for_its_verdict_and_is_then_answered() {
    for (verdict, expected) in [(ALLOWED, Ok(())), (Verdict::Denied, Err(403)), (Verdict::Unknown, Err(500))] {
        let mut world = world();
        let mut client = Client::new("198.51.100.1:1000");
        let request = asks(&mut world, &mut client);
        // RFC 8489 section 6.2.1: it is sent again, and asked about once.
        client.send(&mut world, &request);
        assert_eq!(world.dropped(DropReason::InProgress), 1);
        let applications = world.decide(0, verdict, secs(0));
        assert_eq!(applications.len(), 1);
        assert_eq!(&*applications[0].applicant.username, "alice");
        assert_eq!(applications[0].client, client.at);
        assert_eq!(answer(&mut world, &client, &request), expected, "{verdict:?}");
        world.advance(secs(700));
        assert_no_leak(&world);
    }
}

#[test]
fn a_verdict_holds_for_its_time_for_this_user_at_this_address() {
    let mut world = world();
    let mut first = Client::new("198.51.100.1:1000");
    let request = asks(&mut world, &mut first);
    world.decide(0, ALLOWED, secs(60));
    assert_eq!(answer(&mut world, &first, &request), Ok(()));
    let mut second = Client::new("198.51.100.1:1001");
    assert_eq!(second.allocate(&mut world).result(), Ok(()), "the same user at the same address");
    asks(&mut world, &mut Client::new("198.51.100.2:1000"));
    assert_eq!(world.decide(0, ALLOWED, secs(60)).len(), 1, "at another address");
    world.advance(secs(61));
    asks(&mut world, &mut Client::new("198.51.100.1:1002"));
    assert_eq!(world.decide(0, Verdict::Denied, secs(0)).len(), 1, "its time is over");
    assert_eq!(first.refresh(&mut world, Some(600)).result(), Ok(()), "what is there goes on");
}

#[test]
fn many_who_wait_for_one_verdict_are_asked_about_once_and_all_answered() {
    let mut world = world();
    let mut clients: Vec<_> = (0..5).map(|port| Client::new(&format!("198.51.100.1:{}", 1000 + port))).collect();
    let requests: Vec<_> = clients.iter_mut().map(|client| asks(&mut world, client)).collect();
    assert_eq!(world.decide(0, ALLOWED, secs(0)).len(), 1);
    for (client, request) in clients.iter().zip(&requests) {
        assert_eq!(answer(&mut world, client, request), Ok(()));
    }
}

#[test]
fn a_verdict_may_limit_the_allocations_of_a_user_whoever_shares_the_name() {
    let mut world = world();
    let allowed = Verdict::Allowed { allocations_max: Some(2) };
    for (port, expected) in [(1000, Ok(())), (1001, Ok(())), (1002, Err(486))] {
        let mut client = Client::new(&format!("198.51.100.1:{port}"));
        let request = asks(&mut world, &mut client);
        world.decide(0, allowed, secs(0));
        assert_eq!(answer(&mut world, &client, &request), expected, "{port}");
    }
}

#[test]
fn a_client_that_leaves_gets_nothing_and_those_who_may_not_be_asked_about_are_refused() {
    let mut world = world();
    let mut gone = Client::over("198.51.100.1:1000", Transport::Tcp);
    asks(&mut world, &mut gone);
    world.client_closes(0, &gone.at);
    world.decide(0, ALLOWED, secs(0));
    assert_eq!((world.inbox(&gone.at).len(), world.workers[0].allocations()), (0, 0));
    // 1024 wait, and the next one is told to try again.
    for port in 0..1024 {
        asks(&mut world, &mut Client::new(&format!("198.51.100.2:{}", 1000 + port)));
    }
    assert_eq!(Client::new("198.51.100.3:1000").allocate(&mut world).result(), Err(500));
    // A verdict that never comes is given up.
    world.advance(secs(61));
    asks(&mut world, &mut Client::new("198.51.100.3:1001"));
}
