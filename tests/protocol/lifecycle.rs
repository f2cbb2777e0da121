//! Time: what `poll_timeout` promises, what expires when, and that nothing is left behind.

use ferryd::stun::AttributeType;
use ferryd::turn::effect::EndReason;

use crate::harness::{Client, PEER, PEER_V6, TICK, World, assert_no_leak, secs};

#[test]
fn an_allocation_expires_at_its_instant_and_not_before() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    world.advance(secs(599));
    client.bind(&mut world, 0x4000, PEER);
    world.jump(secs(1) - TICK);
    client.channel_data(&mut world, 0x4000, b"in time");
    assert_eq!(world.sent().len(), 1);
    world.jump(TICK);
    client.channel_data(&mut world, 0x4000, b"too late");
    client.indicate(&mut world, PEER, b"too late");
    world.peer_sends(PEER, relay, b"too late");
    assert!(world.sent().is_empty() && client.received(&mut world).is_empty());
    assert_eq!(client.refresh(&mut world, None).result(), Err(437));
    assert_eq!(client.permit(&mut world, &[PEER]).result(), Err(437));
    assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Err(437));
    world.run_timers();
    assert_eq!(world.ended()[0].reason, EndReason::Expired);
    assert_no_leak(&world);
}

#[test]
fn an_expired_five_tuple_is_free_though_no_timer_has_run() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.bind(&mut world, 0x4000, PEER);
    world.jump(secs(600));
    assert_eq!(client.allocate(&mut world).result(), Ok(()));
    assert_eq!(world.ended().len(), 1);
    client.channel_data(&mut world, 0x4000, b"not of the new one");
    assert!(world.sent().is_empty());
    assert_eq!(world.sockets.len(), 1);
}

#[test]
fn the_timeout_is_due_when_something_expires() {
    let mut world = World::new();
    assert_eq!(world.workers[0].poll_timeout(), None);
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate_with(&mut world, |builder| _ = builder.u32(AttributeType::LIFETIME, 3600)).relay();
    let due = |world: &World| world.workers[0].poll_timeout().unwrap() - world.now().instant;
    assert!((secs(3600)..secs(3601)).contains(&due(&world)));
    client.bind(&mut world, 0x4000, PEER);
    assert!((secs(300)..secs(301)).contains(&due(&world)), "the permission first");
    world.advance(secs(301));
    assert!((secs(298)..secs(300)).contains(&due(&world)), "then the channel");
    world.advance(secs(300));
    assert!((secs(2998)..secs(3000)).contains(&due(&world)), "then the allocation");
    client.refresh(&mut world, Some(0));
    assert_eq!(due(&world), secs(40), "the release is remembered");
    world.advance(secs(40));
    assert_no_leak(&world);
}

#[test]
fn a_server_that_was_idle_for_days_goes_on() {
    let mut world = World::new();
    world.jump(secs(10 * 86_400));
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    world.advance(secs(599));
    assert_eq!(world.workers[0].allocations(), 1);
    world.advance(secs(2));
    assert_no_leak(&world);
}

#[test]
fn lifetimes_beyond_the_timing_wheel_are_kept() {
    let mut world = World::with(|setup| setup.turn.lifetime_max = secs(100_000));
    let mut client = Client::new("198.51.100.1:1000");
    let reply = client.allocate_with(&mut world, |builder| _ = builder.u32(AttributeType::LIFETIME, 50_000));
    assert_eq!(reply.lifetime(), 50_000);
    world.advance(secs(49_999));
    assert_eq!(world.workers[0].allocations(), 1);
    world.advance(secs(2));
    assert_no_leak(&world);
}

#[test]
fn thousands_of_allocations_leave_nothing_behind() {
    let mut world = World::with(|setup| {
        setup.workers = 2;
        setup.turn.limits.allocations_per_prefix = 0;
    });
    let mut clients: Vec<_> = (0..2000u16)
        .map(|index| Client::new(&format!("198.51.100.1:{}", 1000 + index)).on_worker(usize::from(index % 2)))
        .collect();
    for (index, client) in clients.iter_mut().enumerate() {
        world.advance(std::time::Duration::from_millis(7));
        let reply = client.allocate_with(&mut world, |builder| match index % 4 {
            0 => _ = builder.attribute(AttributeType::EVEN_PORT, &[0x80]),
            1 => _ = builder.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]),
            2 => _ = builder.u32(AttributeType::LIFETIME, 1000),
            _ => {}
        });
        assert_eq!(reply.result(), Ok(()));
        client.bind(&mut world, 0x4000, if index % 4 == 1 { PEER_V6 } else { PEER });
        if index % 5 == 0 {
            client.refresh(&mut world, Some(0));
        }
    }
    world.advance(secs(1100));
    assert_eq!(world.ended().len(), 2000);
    assert_no_leak(&world);
}

#[test]
fn a_refused_request_leaves_nothing_behind() {
    let mut world = World::new();
    for port in 1000..1100 {
        let mut client = Client::new(&format!("198.51.100.1:{port}"));
        client.challenge(&mut world);
        client.password = "wrong".to_owned();
        client.allocate(&mut world);
    }
    assert_no_leak(&world);
}
