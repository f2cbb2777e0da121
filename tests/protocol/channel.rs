//! ChannelBind (RFC 8656 section 12.2).

use ferryd::stun::channel_data::ChannelNumber;
use ferryd::stun::{AttributeType, Method};
use ferryd::turn::Effect;

use crate::harness::{Client, PEER, PEER_V6, Received, Signed, TICK, World, addr, assert_no_leak, peer, secs};

const OTHER: &str = "9.9.9.9:7001";

/// Channel numbers that opened and closed, in their order.
fn channel_events(world: &World) -> Vec<(bool, u16, String)> {
    let event = |effect: &Effect| match effect {
        Effect::ChannelOpened { channel, peer, .. } => Some((true, channel.get(), peer.to_string())),
        Effect::ChannelClosed { channel, peer, .. } => Some((false, channel.get(), peer.to_string())),
        Effect::Reply { .. }
        | Effect::OpenRelay { .. }
        | Effect::CloseRelay { .. }
        | Effect::CloseHeld { .. }
        | Effect::OpenTcpRelay { .. }
        | Effect::CloseTcpRelay { .. }
        | Effect::ConnectPeer { .. }
        | Effect::BindPeer { .. }
        | Effect::ClosePeer { .. }
        | Effect::ChannelExtended { .. }
        | Effect::IndicationRelayed { .. }
        | Effect::PermissionsChanged { .. }
        | Effect::ClientMoved { .. }
        | Effect::AllocationStarted(_)
        | Effect::AllocationEnded(_)
        | Effect::Authorize(_)
        | Effect::UserAttacked { .. } => None,
    };
    world.events.iter().filter_map(event).collect()
}

#[test]
fn a_channel_carries_data_both_ways_and_permits_its_peer() {
    // RFC 8656 section 12.2: "The server also installs or refreshes a permission for the IP address in the
    // XOR-PEER-ADDRESS attribute".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    let reply = client.bind(&mut world, 0x4000, PEER);
    assert_eq!((reply.result(), reply.signed()), (Ok(()), Signed::Sha1));
    client.channel_data(&mut world, 0x4000, b"out");
    let sent = world.sent();
    assert_eq!((sent[0].from, sent[0].to, &sent[0].bytes[..]), (relay, peer(PEER), &b"out"[..]));
    world.peer_sends(PEER, relay, b"in");
    // The permission is for the address; the channel for the port too.
    world.peer_sends(OTHER, relay, b"other port");
    let expected = [
        Received::Channel { number: 0x4000, data: b"in".to_vec() },
        Received::Data { from: addr(OTHER), data: b"other port".to_vec() },
    ];
    assert_eq!(client.received(&mut world), expected);
    assert_eq!(channel_events(&world), [(true, 0x4000, PEER.to_owned())]);
}

#[test]
fn send_indications_may_be_mixed_with_channel_data() {
    // Section 12.5: "the client is not obligated to use the channel when it exists and may freely intermix the two
    // message types [..]. The server, on the other hand, MUST use the ChannelData message if a channel has been bound
    // to the peer."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    client.bind(&mut world, 0x4000, PEER);
    client.indicate(&mut world, PEER, b"by indication");
    assert_eq!(world.sent()[0].bytes, b"by indication");
    world.peer_sends(PEER, relay, b"by channel");
    assert_eq!(client.received(&mut world), [Received::Channel { number: 0x4000, data: b"by channel".to_vec() }]);
}

#[test]
fn channel_numbers_outside_the_range_are_rejected_with_400() {
    // "The channel number is in the range 0x4000 through 0x4FFF (inclusive)".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    for number in [0, 0x3FFF, 0x5000, 0x7FFE, 0x7FFF, 0x8000, 0xFFFF] {
        let reply = client.bind(&mut world, number, PEER);
        assert_eq!((reply.result(), reply.signed()), (Err(400), Signed::Sha1), "{number:#x}");
    }
    for number in [0x4000, 0x4FFF] {
        let peer = format!("9.9.9.9:{number}");
        assert_eq!(client.bind(&mut world, number, &peer).result(), Ok(()), "{number:#x}");
    }
}

#[test]
fn a_setting_allows_the_channel_numbers_of_rfc_5766() {
    let mut world = World::with(|setup| setup.turn.channels_above_4fff = true);
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    assert_eq!(client.bind(&mut world, 0x7FFE, PEER).result(), Ok(()));
    client.channel_data(&mut world, 0x7FFE, b"out");
    assert_eq!(world.sent().len(), 1);
    assert_eq!(client.bind(&mut world, 0x8000, PEER).result(), Err(400));
}

#[test]
fn missing_and_malformed_attributes_are_rejected_with_400() {
    // "The request contains both a CHANNEL-NUMBER and an XOR-PEER-ADDRESS attribute".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let number = |value: &'static [u8]| (AttributeType::CHANNEL_NUMBER, value);
    let peer = |value: &'static [u8]| (AttributeType::XOR_PEER_ADDRESS, value);
    const GOOD: &[u8] = &[0, 1, 0, 80, 9 ^ 0x21, 9 ^ 0x12, 9 ^ 0xA4, 9 ^ 0x42];
    for attributes in [
        &[][..],
        &[number(&[0x40, 0, 0, 0])],
        &[peer(GOOD)],
        &[number(&[0x40, 0]), peer(GOOD)],
        &[number(&[0x40, 0, 0]), peer(GOOD)],
        &[number(&[0x40, 0, 0, 0, 0]), peer(GOOD)],
        &[number(&[0x40, 0, 0, 0]), peer(&[])],
        &[number(&[0x40, 0, 0, 0]), peer(&[0, 9, 0, 80, 1, 2, 3, 4])],
        &[number(&[0x40, 0, 0, 0]), peer(&GOOD[..7])],
    ] {
        let reply = client.request(&mut world, Method::ChannelBind, |builder| {
            for (kind, value) in attributes {
                builder.attribute(*kind, value);
            }
        });
        assert_eq!(reply.result(), Err(400), "{attributes:?}");
    }
    // Section 18.1: the RFFU field "MUST be ignored on reception".
    let reply = client.request(&mut world, Method::ChannelBind, |builder| {
        builder.attribute(AttributeType::CHANNEL_NUMBER, &[0x40, 0, 0xFF, 0xFF]);
        builder.attribute(AttributeType::XOR_PEER_ADDRESS, GOOD);
    });
    assert_eq!(reply.result(), Ok(()));
}

#[test]
fn a_number_or_a_peer_that_is_bound_otherwise_is_rejected_with_400() {
    // "The channel number is not currently bound to a different transport address (same transport address is OK); The
    // transport address is not currently bound to a different channel number. If any of these tests fail, the server
    // replies with a 400 (Bad Request) error."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.bind(&mut world, 0x4000, PEER);
    assert_eq!(client.bind(&mut world, 0x4000, OTHER).result(), Err(400));
    assert_eq!(client.bind(&mut world, 0x4001, PEER).result(), Err(400));
    assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Ok(()));
    assert_eq!(client.bind(&mut world, 0x4001, OTHER).result(), Ok(()), "another port of the same address");
    assert_eq!(client.bind(&mut world, 0x4000, "127.0.0.1:1").result(), Err(400), "400 comes before 403");
    assert_eq!(client.bind(&mut world, 0x4000, PEER_V6).result(), Err(400), "400 comes before 443");
    let mut other = Client::new("198.51.100.1:1001");
    other.allocate(&mut world).relay();
    // Section 12: "the use of a channel number or peer transport address in a channel binding in one allocation has no
    // impact on their use in a different allocation."
    assert_eq!(other.bind(&mut world, 0x4001, PEER).result(), Ok(()));
}

#[test]
fn a_peer_of_another_family_is_rejected_with_443() {
    // "the server MUST generate an error response with the 443 (Peer Address Family Mismatch) response code."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    assert_eq!(client.bind(&mut world, 0x4000, PEER_V6).result(), Err(443));
    assert_eq!(client.bind(&mut world, 0x4000, "[::1]:1").result(), Err(443), "443 comes before 403");
}

#[test]
fn a_forbidden_peer_is_rejected_with_403() {
    // "The server MAY impose restrictions on the IP address and port values allowed in the XOR-PEER-ADDRESS attribute;
    // if a value is not allowed, the server rejects the request with a 403 (Forbidden) error."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    for forbidden in ["10.0.0.1:1", "127.0.0.1:3478", "169.254.169.254:80", "9.9.9.9:0", "192.0.2.1:3478"] {
        let reply = client.bind(&mut world, 0x4000, forbidden);
        assert_eq!((reply.result(), reply.signed()), (Err(403), Signed::Sha1), "{forbidden}");
    }
    world.peer_sends(PEER, relay, b"no permission came of it");
    assert!(client.received(&mut world).is_empty() && channel_events(&world).is_empty());
}

#[test]
fn a_channel_lasts_for_exactly_600_seconds() {
    // Section 12: "A channel binding lasts for 10 minutes unless refreshed."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate_with(&mut world, |builder| _ = builder.u32(AttributeType::LIFETIME, 3600)).relay();
    client.bind(&mut world, 0x4000, PEER);
    world.jump(secs(600) - TICK);
    client.permit(&mut world, &[PEER]);
    client.channel_data(&mut world, 0x4000, b"in time");
    assert_eq!(world.sent().len(), 1);
    world.jump(TICK);
    client.channel_data(&mut world, 0x4000, b"too late");
    assert!(world.sent().is_empty());
    world.peer_sends(PEER, relay, b"back to indications");
    let expected = Received::Data { from: addr(PEER), data: b"back to indications".to_vec() };
    assert_eq!(client.received(&mut world), [expected]);
    world.run_timers();
    assert_eq!(channel_events(&world), [(true, 0x4000, PEER.to_owned()), (false, 0x4000, PEER.to_owned())]);
}

#[test]
fn a_refresh_of_a_channel_starts_its_time_again() {
    // "Refreshing the binding (by the server receiving a ChannelBind request rebinding the channel to the same peer)
    // resets the time-to-expiry timer back to 10 minutes."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate_with(&mut world, |builder| _ = builder.u32(AttributeType::LIFETIME, 3600)).relay();
    for _ in 0..5 {
        assert_eq!(client.bind(&mut world, 0x4000, PEER).result(), Ok(()));
        world.advance(secs(599));
        client.permit(&mut world, &[PEER]);
        client.channel_data(&mut world, 0x4000, b"alive");
        assert_eq!(world.sent().len(), 1);
    }
    assert!(channel_events(&world).iter().all(|(opened, ..)| *opened));
}

#[test]
fn an_expired_channel_can_be_bound_otherwise() {
    // "Once unbound, the channel number can be bound to a different transport address, and the transport address can be
    // bound to a different channel number."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate_with(&mut world, |builder| _ = builder.u32(AttributeType::LIFETIME, 3600)).relay();
    client.bind(&mut world, 0x4000, PEER);
    client.bind(&mut world, 0x4001, OTHER);
    world.jump(secs(600));
    assert_eq!(client.bind(&mut world, 0x4001, PEER).result(), Ok(()), "both ends were bound otherwise");
    client.channel_data(&mut world, 0x4001, b"out");
    assert_eq!(world.sent()[0].to, peer(PEER));
    client.channel_data(&mut world, 0x4000, b"unbound");
    assert!(world.sent().is_empty());
    assert_eq!(client.bind(&mut world, 0x4000, OTHER).result(), Ok(()));
    world.peer_sends(OTHER, relay, b"in");
    assert_eq!(client.received(&mut world), [Received::Channel { number: 0x4000, data: b"in".to_vec() }]);
    world.run_timers();
    let mut open: Vec<(u16, String)> = Vec::new();
    for (opened, number, peer) in channel_events(&world) {
        if opened {
            assert!(!open.iter().any(|(n, p)| *n == number || *p == peer), "opened while open: {number:#x} {peer}");
            open.push((number, peer));
        } else {
            let index = open.iter().position(|entry| *entry == (number, peer.clone())).unwrap();
            open.remove(index);
        }
    }
    assert_eq!(open, [(0x4001, PEER.to_owned()), (0x4000, OTHER.to_owned())], "every event in its place");
}

#[test]
fn channels_end_with_their_allocation() {
    // "If an allocation expires, all its channel bindings expire with it."
    for released in [true, false] {
        let mut world = World::new();
        let mut client = Client::new("198.51.100.1:1000");
        client.allocate(&mut world).relay();
        world.advance(secs(500));
        client.bind(&mut world, 0x4000, PEER);
        client.bind(&mut world, 0x4001, OTHER);
        if released {
            client.refresh(&mut world, Some(0));
        } else {
            world.advance(secs(100));
        }
        client.channel_data(&mut world, 0x4000, b"gone");
        assert!(world.sent().is_empty());
        assert_eq!(channel_events(&world).iter().filter(|(opened, ..)| !opened).count(), 2);
        client.allocate(&mut world).relay();
        client.channel_data(&mut world, 0x4000, b"not of the new one");
        assert!(world.sent().is_empty());
        assert_eq!(client.bind(&mut world, 0x4001, PEER).result(), Ok(()));
        client.refresh(&mut world, Some(0));
        world.advance(secs(60));
        assert_no_leak(&world);
    }
}

#[test]
fn retransmissions_are_answered_alike() {
    // "Retransmitted ChannelBind requests will simply refresh the channel binding and the corresponding permission."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    let request = client.signed(Method::ChannelBind, |builder| {
        builder.u32(AttributeType::CHANNEL_NUMBER, 0x4000_0000);
        builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER));
    });
    let first = client.exchange(&mut world, &request).unwrap();
    assert_eq!(client.exchange(&mut world, &request).unwrap().bytes, first.bytes);
}

#[test]
fn more_channels_than_the_limit_are_rejected_with_403_and_refreshes_are_not_counted() {
    // 403 instead of 508 as in CreatePermission: a recorded exception.
    let mut world = World::with(|setup| setup.turn.limits.channels_per_allocation = 2);
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate_with(&mut world, |builder| _ = builder.u32(AttributeType::LIFETIME, 3600)).relay();
    assert_eq!(client.bind(&mut world, 0x4000, "9.9.9.1:1").result(), Ok(()));
    assert_eq!(client.bind(&mut world, 0x4001, "9.9.9.2:1").result(), Ok(()));
    assert_eq!(client.bind(&mut world, 0x4002, "9.9.9.3:1").result(), Err(403));
    assert_eq!(client.bind(&mut world, 0x4001, "9.9.9.2:1").result(), Ok(()));
    world.jump(secs(600));
    assert_eq!(client.bind(&mut world, 0x4002, "9.9.9.3:1").result(), Ok(()));
}

#[test]
fn every_allowed_number_can_be_bound() {
    let mut world = World::with(|setup| setup.turn.limits.channels_per_allocation = 4096);
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    for number in 0x4000..=0x4FFF {
        let peer = format!("9.9.9.9:{}", number - 0x3FFF);
        assert_eq!(client.bind(&mut world, number, &peer).result(), Ok(()));
        assert!(ChannelNumber::new(number).unwrap().is_allowed());
    }
    world.peer_sends("9.9.9.9:4096", relay, b"last");
    assert_eq!(client.received(&mut world), [Received::Channel { number: 0x4FFF, data: b"last".to_vec() }]);
}
