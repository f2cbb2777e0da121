//! What browsers send, message by message (field notes, section 1).

use std::time::Duration;

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Builder, Class, Message, Method, TransactionId};
use hex_literal::hex;

use crate::harness::{Client, PEER, Received, Reply, Signed, World, addr, peer, secs};

const HOST_CANDIDATE: &str = "8.8.4.4:50000";

#[test]
fn chrome_makes_a_call() {
    let mut world = World::new();
    let name = format!("{}:chrome", world.unix() + 300);
    let mut chrome = Client::new("198.51.100.1:1000").time_limited(&name);
    // STUN Binding on the same socket first.
    let binding = chrome.unsigned(Method::Binding, |_| {});
    assert_eq!(chrome.exchange(&mut world, &binding).unwrap().mapped(), addr("198.51.100.1:1000"));
    // "First Allocate carries only REQUESTED-TRANSPORT=UDP".
    let first = hex!("0003 0008 2112a442 000102030405060708090a0b 0019 0004 11000000");
    let challenge = chrome.exchange(&mut world, &first).unwrap();
    assert_eq!(challenge.result(), Err(401));
    chrome.learn(&challenge);
    // "Allocate success must hold XOR-MAPPED-ADDRESS, XOR-RELAYED-ADDRESS and LIFETIME [..]. Success responses must
    // carry a valid MESSAGE-INTEGRITY or are ignored."
    let allocated = chrome.allocate(&mut world);
    assert_eq!((allocated.result(), allocated.signed(), allocated.lifetime()), (Ok(()), Signed::Sha1, 600));
    assert_eq!(allocated.mapped(), addr("198.51.100.1:1000"));
    let relay = allocated.relay();
    // "CreatePermission at once per remote candidate and again every 4 min."
    for candidate in [PEER, HOST_CANDIDATE] {
        assert_eq!(chrome.permit(&mut world, &[candidate]).result(), Ok(()));
    }
    // "ICE checks and early media go as Send indications".
    let mut check = Vec::new();
    Builder::new(&mut check, Method::Binding, Class::Request, TransactionId([5; 12]))
        .attribute(AttributeType::USERNAME, b"remote:local")
        .attribute(AttributeType(0x0024), &[0x6E, 0, 1, 0xFF])
        .fingerprint();
    chrome.indicate(&mut world, PEER, &check);
    assert_eq!(world.sent()[0].bytes, check);
    world.peer_sends(PEER, relay, &check);
    assert_eq!(chrome.received(&mut world), [Received::Data { from: addr(PEER), data: check }]);
    // "ChannelBind only when real payload flows, again every 4 min. [..] after ChannelBind, ChannelData."
    for minute in 0..60 {
        if minute % 4 == 0 {
            assert_eq!(chrome.bind(&mut world, 0x4000, PEER).result(), Ok(()), "minute {minute}");
            assert_eq!(chrome.permit(&mut world, &[PEER]).result(), Ok(()));
        }
        // "Refresh is sent at lifetime - 60 s, without LIFETIME. 438 retries at once; any other error on Refresh prunes
        // every connection of the call" - and the credential has been expired for most of it.
        if minute % 9 == 0 && minute > 0 {
            let mut refreshed = chrome.refresh(&mut world, None);
            if refreshed.result() == Err(438) {
                chrome.learn(&refreshed);
                refreshed = chrome.refresh(&mut world, None);
            }
            assert_eq!((refreshed.result(), refreshed.lifetime()), (Ok(()), 600), "minute {minute}");
        }
        chrome.channel_data(&mut world, 0x4000, b"media");
        assert_eq!(world.sent()[0].to, peer(PEER));
        world.peer_sends(PEER, relay, b"media");
        assert_eq!(chrome.received(&mut world), [Received::Channel { number: 0x4000, data: b"media".to_vec() }]);
        world.advance(secs(60));
    }
    let last = chrome.refresh(&mut world, Some(0));
    chrome.learn(&last);
    assert_eq!((last.result(), chrome.refresh(&mut world, Some(0)).result()), (Err(438), Ok(())));
}

#[test]
fn firefox_makes_a_call_by_indications_alone() {
    // "Never binds a channel [..]. REQUESTED-TRANSPORT=UDP, LIFETIME=3600. Initial RTO 100 ms".
    let mut world = World::new();
    let mut firefox = Client::new("198.51.100.1:1000");
    firefox.challenge(&mut world);
    world.opens_wait = true;
    let allocate = firefox.signed(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).u32(AttributeType::LIFETIME, 3600);
    });
    for _ in 0..3 {
        assert!(firefox.exchange(&mut world, &allocate).is_none(), "one answer, when the socket is open");
        world.advance(Duration::from_millis(100));
    }
    world.open_pending();
    let allocated = firefox.reply_to(&mut world, &allocate).unwrap();
    assert_eq!(allocated.lifetime(), 3600);
    assert_eq!(firefox.exchange(&mut world, &allocate).unwrap().relay(), allocated.relay());
    // "CreatePermission: 403 disables that peer only".
    assert_eq!(firefox.permit(&mut world, &["192.168.1.20:5000"]).result(), Err(403));
    assert_eq!(firefox.permit(&mut world, &[PEER]).result(), Ok(()));
    for _ in 0..100 {
        firefox.indicate(&mut world, PEER, &[0x80; 1200]);
        world.peer_sends(PEER, allocated.relay(), &[0x81; 1200]);
    }
    assert_eq!((world.sent().len(), firefox.received(&mut world).len()), (100, 100));
    // "Refreshes 10 s before expiry."
    for _ in 0..14 {
        world.advance(secs(255));
        let reply = firefox.permit(&mut world, &[PEER]);
        assert_eq!(reply.result(), Ok(()));
    }
    world.advance(secs(20));
    let refreshed = firefox.refresh(&mut world, Some(3600));
    assert_eq!(refreshed.result(), Ok(()), "3590 s after the nonce");
    // "On close: one unacknowledged Refresh 0."
    world.advance(secs(60));
    let close =
        |firefox: &mut Client| firefox.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
    let stale = close(&mut firefox);
    firefox.learn(&firefox.exchange(&mut world, &stale).unwrap());
    let closed = close(&mut firefox);
    firefox.send(&mut world, &closed);
    assert_eq!(world.workers[0].allocations(), 0);
}

#[test]
fn a_client_that_gets_437_starts_again_on_another_socket() {
    // "437: a new local socket, at most two retries."
    let mut world = World::new();
    let mut lost = Client::new("198.51.100.1:1000");
    lost.allocate(&mut world).relay();
    let mut chrome = Client::new("198.51.100.1:1000");
    assert_eq!(chrome.allocate(&mut world).result(), Err(437));
    assert_eq!(Client::new("198.51.100.1:1001").allocate(&mut world).result(), Ok(()));
}

#[test]
fn chrome_over_tcp_and_tls_pads_and_is_padded() {
    for transport in [Transport::Tcp, Transport::Tls] {
        let mut world = World::new();
        let mut chrome = Client::over("198.51.100.1:1000", transport);
        let relay = chrome.allocate(&mut world).relay();
        chrome.bind(&mut world, 0x4000, PEER);
        for len in 0..8 {
            let data = vec![7; len];
            chrome.channel_data(&mut world, 0x4000, &data);
            assert_eq!(world.sent()[0].bytes, data);
            world.peer_sends(PEER, relay, &data);
            assert_eq!(chrome.received(&mut world), [Received::Channel { number: 0x4000, data }]);
        }
        // Silent for nine minutes, then a Refresh.
        world.advance(secs(540));
        assert_eq!(chrome.refresh(&mut world, None).result(), Ok(()));
    }
}

#[test]
fn a_native_app_names_its_call() {
    // "Native apps may add TURN_LOGGING_ID (0xFF05, comprehension-optional)".
    let mut world = World::new();
    let mut app = Client::new("198.51.100.1:1000");
    let request = app.unsigned(Method::Allocate, |builder| {
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        builder.attribute(AttributeType(0xFF05), b"call-8f3a");
    });
    assert_eq!(app.exchange(&mut world, &request).unwrap().result(), Err(401));
    assert_eq!(
        app.allocate_with(&mut world, |b| _ = b.attribute(AttributeType(0xFF05), b"call-8f3a")).result(),
        Ok(())
    );
}

#[test]
fn chrome_retransmits_for_forty_seconds_and_gets_the_same_answer() {
    // "Retransmits at 250 ms doubling to 8 s, 9 sends, 39.75 s in all."
    let mut world = World::new();
    let mut chrome = Client::new("198.51.100.1:1000");
    chrome.challenge(&mut world);
    let udp = |builder: &mut Builder<'_>| _ = builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    let requests = [
        chrome.signed(Method::Allocate, udp),
        chrome.signed(Method::CreatePermission, |builder| {
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER));
        }),
        chrome.signed(Method::ChannelBind, |builder| {
            builder.u32(AttributeType::CHANNEL_NUMBER, 0x4000_0000);
            builder.xor_address(AttributeType::XOR_PEER_ADDRESS, addr(PEER));
        }),
        chrome.signed(Method::Refresh, |_| {}),
        chrome.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 0)),
    ];
    for request in &requests {
        let method = Message::parse(request).unwrap().method();
        let first = chrome.exchange(&mut world, request).unwrap();
        let mut wait = Duration::from_millis(250);
        for _ in 0..8 {
            world.advance(wait);
            wait = (2 * wait).min(secs(8));
            let again: Reply = chrome.exchange(&mut world, request).unwrap();
            assert_eq!((again.result(), again.kinds()), (Ok(()), first.kinds()), "{method:?}");
            assert_eq!(again.relayed(), first.relayed());
        }
    }
    assert_eq!(world.attempts.len(), 1);
}
