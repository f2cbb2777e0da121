//! Sessions as operators see them: pages, filters, details and their end.

use std::collections::BTreeSet;

use ferryd::auth::{Revocation, Subject};
use ferryd::turn::effect::EndReason;
use ferryd::turn::session::PAGE_LEN_MAX;
use ferryd::turn::{Session, SessionFilter, SessionId};

use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret};

use crate::harness::{Client, PEER, SECRET, UNIX_START, World, assert_no_leak, secs};

fn all(world: &World, filter: &SessionFilter) -> Vec<Session> {
    let (mut sessions, mut from) = (Vec::new(), Some(0));
    while let Some(slot) = from {
        let page = world.workers[0].sessions(world.now(), slot, filter);
        assert!(page.sessions.len() <= PAGE_LEN_MAX);
        sessions.extend(page.sessions);
        from = page.next;
    }
    sessions
}

fn by_subject(subject: &str) -> SessionFilter {
    SessionFilter { subjects: vec![subject.parse::<Subject>().unwrap()], ..SessionFilter::default() }
}

fn with_clients(count: usize) -> (World, Vec<Client>) {
    let mut world = World::new();
    let mut clients: Vec<_> =
        (0..count).map(|index| Client::new(&format!("198.51.100.{}:{}", index % 250, 1000 + index))).collect();
    for client in &mut clients {
        client.allocate(&mut world).relay();
    }
    (world, clients)
}

#[test]
fn a_listing_comes_in_pages_and_has_every_session_once() {
    let (mut world, mut clients) = with_clients(700);
    for client in clients.iter_mut().step_by(3) {
        client.refresh(&mut world, Some(0));
    }
    let sessions = all(&world, &SessionFilter::default());
    let ids: BTreeSet<SessionId> = sessions.iter().map(|session| session.id).collect();
    assert_eq!((sessions.len(), ids.len()), (466, 466));
    let first = world.workers[0].sessions(world.now(), 0, &SessionFilter::default());
    assert_eq!(first.sessions.len(), PAGE_LEN_MAX);
    assert!(first.next.is_some());
}

#[test]
fn a_page_looks_at_no_more_slots_than_it_may() {
    let (world, _clients) = with_clients(1030);
    let page = world.workers[0].sessions(world.now(), 0, &by_subject("nobody"));
    assert_eq!((page.sessions.len(), page.next), (0, Some(1024)));
    assert_eq!(all(&world, &by_subject("nobody")), []);
}

#[test]
fn a_listing_of_a_hundred_thousand_is_told_in_pages_between_which_calls_go_on() {
    const COUNT: usize = 100_000;
    let mut world = World::with(|setup| {
        for address in 20..27 {
            setup.relay(&format!("192.0.2.{address}"), None);
        }
        setup.turn.limits.allocations_per_prefix = 0;
        setup.turn.limits.allocations_total = 0;
    });
    let mut call = Client::new("198.51.100.1:999");
    call.allocate(&mut world).relay();
    call.bind(&mut world, 0x4000, PEER);
    for index in 1..COUNT {
        let (host, port) = (index % 250, 1000 + index / 250);
        Client::new(&format!("203.0.113.{host}:{port}")).allocate(&mut world).relay();
    }
    let (mut ids, mut pages, mut from) = (BTreeSet::new(), 0, Some(0));
    while let Some(slot) = from {
        let page = world.workers[0].sessions(world.now(), slot, &SessionFilter::default());
        assert!(page.sessions.len() <= PAGE_LEN_MAX);
        ids.extend(page.sessions.iter().map(|session| session.id));
        (pages, from) = (pages + 1, page.next);
        // What the worker does between two pages.
        call.channel_data(&mut world, 0x4000, b"still");
        assert_eq!(world.sent().len(), 1, "page {pages}");
    }
    assert_eq!((ids.len(), pages), (COUNT, COUNT.div_ceil(PAGE_LEN_MAX)));
}

#[test]
fn filters_name_users_clients_and_peers() {
    let mut world = World::new();
    let mut alice = Client::new("198.51.100.1:1000");
    let mut minted = Client::new("198.51.100.2:1000").time_limited("1900000000:carol");
    alice.allocate(&mut world).relay();
    minted.allocate(&mut world).relay();
    minted.permit(&mut world, &[PEER]);
    let count = |world: &World, filter: &SessionFilter| all(world, filter).len();
    for (subject, matching) in
        [("alice", 1), ("carol", 1), ("1900000000:carol", 1), ("19*", 1), ("198.51.100.0/30", 2), ("198.51.100.2", 1)]
    {
        assert_eq!(count(&world, &by_subject(subject)), matching, "{subject}");
    }
    let peer = |range: &str| SessionFilter { peer: Some(range.parse().unwrap()), ..SessionFilter::default() };
    assert_eq!(count(&world, &peer("9.9.9.0/24")), 1);
    assert_eq!(count(&world, &peer("9.9.8.0/24")), 0);
    world.advance(secs(301));
    assert_eq!(count(&world, &peer("9.9.9.0/24")), 0, "the permission has expired");
}

#[test]
fn a_session_tells_what_its_record_will() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    client.bind(&mut world, 0x4000, PEER);
    client.channel_data(&mut world, 0x4000, b"12345");
    world.peer_sends(PEER, relay, b"123");
    assert_eq!(client.received(&mut world).len(), 1);
    let session = all(&world, &SessionFilter::default()).remove(0);
    let detail = world.workers[0].session(world.now(), session.id).unwrap();
    assert_eq!(detail.session, session);
    assert_eq!(detail.permissions, [(PEER.parse::<std::net::SocketAddr>().unwrap().ip(), secs(300))]);
    assert_eq!((detail.channels[0].0, detail.channels[0].2), (0x4000, secs(600)));
    assert_eq!((session.permissions, session.channels, session.expires_in), (1, 1, secs(600)));
    client.refresh(&mut world, Some(0));
    let ended = world.ended().remove(0);
    assert_eq!((ended.id, ended.traffic, ended.started), (session.id, session.traffic, session.started));
    assert_eq!((ended.traffic.bytes_to_peers, ended.traffic.bytes_to_client), (5, 3));
    assert_eq!((ended.peers.len(), ended.peers_more), (1, 0));
    assert_eq!(world.workers[0].session(world.now(), session.id), None);
}

#[test]
fn a_record_names_sixteen_peers_and_counts_the_rest() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let peers: Vec<String> = (1..=20).map(|host| format!("9.9.9.{host}:9")).collect();
    let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
    for _ in 0..2 {
        client.permit(&mut world, &peers);
    }
    client.refresh(&mut world, Some(0));
    let ended = world.ended().remove(0);
    assert_eq!((ended.peers.len(), ended.peers_more), (16, 4), "a refresh is not counted");
}

#[test]
fn an_evicted_session_is_gone_with_everything_and_cannot_be_evicted_again() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.bind(&mut world, 0x4000, PEER);
    let id = all(&world, &SessionFilter::default())[0].id;
    assert!(world.workers[0].evict(id, EndReason::Evicted));
    world.drain(0);
    assert_eq!(world.ended()[0].reason, EndReason::Evicted);
    assert_eq!(client.refresh(&mut world, None).result(), Err(437));
    // The same slot, and another session.
    client.allocate(&mut world).relay();
    let next = all(&world, &SessionFilter::default())[0].id;
    assert_ne!(id, next);
    assert!(!world.workers[0].evict(id, EndReason::Evicted));
    assert!(world.workers[0].evict(next, EndReason::Evicted));
    world.drain(0);
    assert_no_leak(&world);
}

#[test]
fn what_is_revoked_allocates_no_more_until_its_time_is_over() {
    let until = UNIX_START + 100;
    let mut world = World::new();
    let mut live = Client::new("198.51.100.1:1000").time_limited("1900000000:carol");
    live.allocate(&mut world).relay();
    let revoked = ["user:carol", "user:1900000000:dave*", "client:198.51.100.8/30"];
    world.reload(|setup| {
        let revocation = |subject: &&str| Revocation::new(subject.parse().unwrap(), UNIX_START, Some(until));
        setup.revocations = revoked.iter().map(revocation).collect();
    });
    let try_one =
        |world: &mut World, client: &str, user: &str| Client::new(client).time_limited(user).allocate(world).result();
    assert_eq!(try_one(&mut world, "198.51.100.1:1001", "1900000000:carol"), Err(403));
    assert_eq!(try_one(&mut world, "198.51.100.1:1002", "1900000000:dave2"), Err(403));
    assert_eq!(try_one(&mut world, "198.51.100.9:1003", "1900000000:erin"), Err(403));
    assert_eq!(try_one(&mut world, "198.51.100.1:1004", "1900000000:erin"), Ok(()));
    assert_eq!(live.refresh(&mut world, None).result(), Ok(()), "who is live is ended by the operator's order");
    world.advance(secs(100));
    assert_eq!(try_one(&mut world, "198.51.100.1:1005", "1900000000:carol"), Ok(()));
}

#[test]
fn a_secret_is_revoked_with_everybody_it_has_minted() {
    let secret = |secret: &str, algorithm| SharedSecret { secret: Secret::new(secret), algorithm };
    let id = secret(SECRET, SecretAlgorithm::Sha1).id();
    let mut world = World::with(|setup| {
        let subject = format!("secret:{id}").parse().unwrap();
        setup.revocations = vec![Revocation::new(subject, UNIX_START, None)];
    });
    let mut minted = Client::new("198.51.100.1:1000").time_limited("1900000000:carol");
    assert_eq!(minted.allocate(&mut world).result(), Err(403));
    assert_eq!(Client::new("198.51.100.1:1001").allocate(&mut world).result(), Ok(()), "alice has a password");
}
