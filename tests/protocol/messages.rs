//! What is dropped without an answer, and what is ignored (RFC 8489 sections 5, 6.3 and 14).

use ferryd::address::Transport;
use ferryd::stun::message::ParseError;
use ferryd::stun::{AttributeType, Builder, Class, Method, TransactionId};
use ferryd::turn::DropReason;

use crate::harness::{BOB, Client, PEER, Received, Signed, World};

/// Asserts that bytes are dropped for a reason, on UDP and on a stream.
fn assert_dropped(world: &mut World, bytes: &[u8], reason: DropReason) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let client = Client::over("198.51.100.1:1000", transport);
        let before = world.dropped(reason);
        client.send(world, bytes);
        assert_eq!(world.inbox(&client.at), Vec::<Vec<u8>>::new(), "{bytes:02x?}");
        assert_eq!(world.dropped(reason), before + 1, "{reason:?} for {bytes:02x?}");
    }
}

fn binding(write: impl FnOnce(&mut Builder<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Builder::new(&mut bytes, Method::Binding, Class::Request, TransactionId([7; 12])));
    bytes
}

#[test]
fn messages_with_a_wrong_header_are_dropped() {
    // RFC 8489 section 6.3: "It checks that the first two bits are 0, that the Magic Cookie field has the correct
    // value, that the message length is sensible, and that the method value is a supported method. [..] If any errors
    // are detected, the message is silently discarded."
    let mut world = World::new();
    let good = binding(|_| {});
    let with = |index: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[index] = value;
        bytes
    };
    for first in [0x80, 0xC0, 0xFF] {
        assert_dropped(&mut world, &with(0, first), DropReason::UnknownProtocol);
    }
    assert_dropped(&mut world, &with(4, 0x22), DropReason::Malformed(ParseError::NotStun));
    assert_dropped(&mut world, &with(7, 0), DropReason::Malformed(ParseError::NotStun));
    assert_dropped(&mut world, &[], DropReason::UnknownProtocol);
    for len in 1..20 {
        assert_dropped(&mut world, &good[..len], DropReason::Malformed(ParseError::NotStun));
    }
    for len in [1, 2, 3, 4, 8, 255] {
        assert_dropped(&mut world, &with(3, len), DropReason::Malformed(ParseError::Length));
    }
    let longer = [&good[..], &[0; 4]].concat();
    assert_dropped(&mut world, &longer, DropReason::Malformed(ParseError::Length));
}

#[test]
fn lengths_that_are_no_multiple_of_four_are_dropped() {
    // RFC 8489 section 5: "Since all STUN attributes are padded to a multiple of 4 bytes, the last 2 bits of this field
    // are always zero. This provides another way to distinguish STUN packets from packets of other protocols."
    let mut world = World::new();
    for extra in 1..4u8 {
        let mut bytes = binding(|_| {});
        bytes[3] = extra;
        bytes.resize(20 + usize::from(extra), 0);
        assert_dropped(&mut world, &bytes, DropReason::Malformed(ParseError::Length));
    }
}

#[test]
fn attributes_that_overrun_the_message_are_dropped() {
    let mut world = World::new();
    for attribute in [[0x80, 0x22, 0x00, 0x01], [0x80, 0x22, 0xFF, 0xFF], [0x00, 0x06, 0x00, 0x04]] {
        let mut bytes = binding(|_| {});
        bytes[3] = 4;
        bytes.extend_from_slice(&attribute);
        assert_dropped(&mut world, &bytes, DropReason::Malformed(ParseError::Attribute));
    }
}

#[test]
fn unknown_methods_are_dropped() {
    let mut world = World::new();
    for message_type in [0x0000, 0x0002, 0x0005, 0x000D, 0x0FFF, 0x3EEF] {
        let mut bytes = binding(|_| {});
        bytes[..2].copy_from_slice(&u16::to_be_bytes(message_type));
        assert_dropped(&mut world, &bytes, DropReason::Malformed(ParseError::UnknownMethod));
    }
}

#[test]
fn classes_that_a_method_does_not_have_are_dropped() {
    // RFC 8489 section 6.3: "It checks that the message class is allowed for the particular method." RFC 8656 section
    // 17: Send and Data have "only indication semantics", the others "only request/response semantics".
    let mut world = World::new();
    let message = |method, class| {
        let mut bytes = Vec::new();
        Builder::new(&mut bytes, method, class, TransactionId([7; 12]));
        bytes
    };
    for method in [Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind, Method::Data] {
        assert_dropped(&mut world, &message(method, Class::Indication), DropReason::UnexpectedClass);
    }
    for method in [Method::Send, Method::Data] {
        assert_dropped(&mut world, &message(method, Class::Request), DropReason::UnexpectedClass);
    }
}

#[test]
fn responses_are_never_answered() {
    // Field notes, section 4: STUN loops. RFC 8489 section 6.3: no transaction of ours is in progress.
    let mut world = World::new();
    for method in [Method::Binding, Method::Allocate, Method::Refresh, Method::Send, Method::ChannelBind] {
        for class in [Class::Success, Class::Error] {
            let mut bytes = Vec::new();
            Builder::new(&mut bytes, method, class, TransactionId([7; 12]));
            assert_dropped(&mut world, &bytes, DropReason::UnexpectedClass);
        }
    }
}

#[test]
fn methods_of_extensions_that_are_off_are_dropped() {
    let mut world = World::new();
    for method in [Method::Connect, Method::ConnectionBind, Method::ConnectionAttempt] {
        let mut bytes = Vec::new();
        Builder::new(&mut bytes, method, Class::Request, TransactionId([7; 12]));
        assert_dropped(&mut world, &bytes, DropReason::MethodOff);
    }
}

#[test]
fn a_binding_indication_is_a_keepalive() {
    // RFC 8489 section 6.3.2: "No response is generated for an indication."
    let mut world = World::new();
    let client = Client::new("198.51.100.1:1000");
    let mut bytes = Vec::new();
    Builder::new(&mut bytes, Method::Binding, Class::Indication, TransactionId([7; 12]));
    client.send(&mut world, &bytes);
    assert_eq!(world.counters().keepalive, 1);
    assert!(world.inbox(&client.at).is_empty());
}

#[test]
fn a_wrong_fingerprint_is_dropped() {
    // RFC 8489 section 6.3: "the agent checks that the FINGERPRINT attribute is present and contains the correct
    // value".
    let mut world = World::new();
    let mut wrong = binding(|builder| _ = builder.fingerprint());
    *wrong.last_mut().unwrap() ^= 1;
    assert_dropped(&mut world, &wrong, DropReason::Malformed(ParseError::Fingerprint));
    // RFC 8489 section 14.7: "the FINGERPRINT attribute MUST be the last attribute in the message".
    let early = binding(|builder| _ = builder.fingerprint().u32(AttributeType::LIFETIME, 1));
    assert_dropped(&mut world, &early, DropReason::Malformed(ParseError::Fingerprint));
    let short = binding(|builder| _ = builder.attribute(AttributeType::FINGERPRINT, &[1, 2]));
    assert_dropped(&mut world, &short, DropReason::Malformed(ParseError::Fingerprint));
}

#[test]
fn nothing_is_answered_to_port_zero() {
    let mut world = World::new();
    let client = Client::new("198.51.100.1:0");
    client.send(&mut world, &binding(|_| {}));
    assert!(world.inbox(&client.at).is_empty());
    assert_eq!(world.dropped(DropReason::NoSourcePort), 1);
}

#[test]
fn padding_bytes_are_ignored() {
    // RFC 8489 section 14: "The padding bits MUST be set to zero on sending and MUST be ignored by the receiver."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let mut bytes =
        client.unsigned(Method::Binding, |builder| _ = builder.attribute(AttributeType::SOFTWARE, b"abcde"));
    bytes[29..32].copy_from_slice(&[0xFF; 3]);
    assert_eq!(client.exchange(&mut world, &bytes).unwrap().result(), Ok(()));
}

#[test]
fn unknown_optional_attributes_are_ignored() {
    // RFC 8489 section 6.3: "Unknown comprehension-optional attributes MUST be ignored by the agent."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let reply = client.allocate_with(&mut world, |builder| {
        builder.attribute(AttributeType(0xFF05), b"call-1234").attribute(AttributeType(0x8055), b"");
    });
    assert_eq!(reply.result(), Ok(()));
}

#[test]
fn unknown_required_attributes_of_authenticated_requests_are_rejected_with_a_signed_420() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    for method in [Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind] {
        let reply = client.request(&mut world, method, |builder| {
            builder.attribute(AttributeType(0x0010), &[0; 4]).attribute(AttributeType(0x7FFE), b"");
        });
        assert_eq!((reply.result(), reply.signed()), (Err(420), Signed::Sha1), "{method:?}");
        assert_eq!(reply.unknown(), [0x0010, 0x7FFE]);
        assert_eq!(reply.reason(), "Unknown Attribute");
    }
}

#[test]
fn authentication_is_judged_before_unknown_attributes() {
    // RFC 8489 section 6.3: "Once the authentication checks are done, the STUN agent checks for unknown attributes".
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let request = client.unsigned(Method::Allocate, |builder| _ = builder.attribute(AttributeType(0x7FFE), b""));
    assert_eq!(client.exchange(&mut world, &request).unwrap().result(), Err(401));
}

#[test]
fn unknown_attributes_are_judged_before_the_method() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let write = |builder: &mut Builder<'_>| _ = builder.attribute(AttributeType(0x7FFE), b"");
    assert_eq!(client.request(&mut world, Method::Refresh, write).result(), Err(420), "and not 437");
}

#[test]
fn the_list_of_unknown_attributes_is_bounded() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let request = client.unsigned(Method::Binding, |builder| {
        for kind in 0x7000..0x7400 {
            builder.attribute(AttributeType(kind), b"");
        }
    });
    let reply = client.exchange(&mut world, &request).unwrap();
    assert_eq!(reply.unknown(), (0x7000..0x7080).collect::<Vec<_>>());
    assert!(reply.bytes.len() <= 512);
    // No more are looked at, however often one is repeated.
    let request = client.unsigned(Method::Binding, |builder| {
        for kind in [[0x7000; 127], [0x7001; 127]].concat() {
            builder.attribute(AttributeType(kind), b"");
        }
        builder.attribute(AttributeType(0x7002), b"");
    });
    assert_eq!(client.exchange(&mut world, &request).unwrap().unknown(), [0x7000, 0x7001]);
}

#[test]
fn attributes_behind_message_integrity_have_no_effect() {
    // RFC 8489 section 9: "agents MUST ignore all attributes that follow MESSAGE-INTEGRITY, with the exception of the
    // MESSAGE-INTEGRITY-SHA256 and FINGERPRINT attributes."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let behind = |client: &mut Client, method, before: &dyn Fn(&mut Builder<'_>), behind: &dyn Fn(&mut Builder<'_>)| {
        let id = client.transaction();
        let mut bytes = Vec::new();
        let mut builder = Builder::new(&mut bytes, method, Class::Request, id);
        before(&mut builder);
        client.write_credentials(&mut builder);
        builder.integrity(&client.key());
        behind(&mut builder);
        bytes
    };
    let udp = |builder: &mut Builder<'_>| _ = builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    // The request's own attributes do not count there.
    let request = behind(&mut client, Method::Allocate, &|_| {}, &udp);
    assert_eq!(client.exchange(&mut world, &request).unwrap().result(), Err(400));
    // What would fail before has no effect behind: unknown, malformed, contradicting.
    let request = behind(&mut client, Method::Allocate, &udp, &|builder| {
        builder.attribute(AttributeType(0x7FFE), b"").attribute(AttributeType::EVEN_PORT, b"");
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[6, 0, 0, 0]).u32(AttributeType::LIFETIME, 3600);
        builder.attribute(AttributeType::USERNAME, b"bob");
    });
    let reply = client.exchange(&mut world, &request).unwrap();
    assert_eq!((reply.result(), reply.lifetime()), (Ok(()), 600));
    let request = behind(&mut client, Method::Refresh, &|_| {}, &|builder| _ = builder.u32(AttributeType::LIFETIME, 0));
    assert_eq!(client.exchange(&mut world, &request).unwrap().lifetime(), 600);
    let request = behind(
        &mut client,
        Method::CreatePermission,
        &|builder| _ = builder.xor_address(AttributeType::XOR_PEER_ADDRESS, crate::harness::addr(PEER)),
        &|builder| _ = builder.xor_address(AttributeType::XOR_PEER_ADDRESS, crate::harness::addr("9.9.9.10:1")),
    );
    assert_eq!(client.exchange(&mut world, &request).unwrap().result(), Ok(()));
    client.indicate(&mut world, "9.9.9.10:1", b"no permission");
    assert!(world.sent().is_empty());
}

#[test]
fn credentials_behind_message_integrity_are_missing_ones() {
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.challenge(&mut world);
    let id = client.transaction();
    let mut bytes = Vec::new();
    let mut builder = Builder::new(&mut bytes, Method::Allocate, Class::Request, id);
    builder.integrity(&client.key());
    client.write_credentials(&mut builder);
    assert_eq!(client.exchange(&mut world, &bytes).unwrap().result(), Err(400));
}

#[test]
fn attributes_behind_message_integrity_sha256_have_no_effect() {
    // RFC 8489 section 9: "Similarly, agents MUST ignore all attributes that follow the MESSAGE-INTEGRITY-SHA256
    // attribute if the MESSAGE-INTEGRITY-SHA256 attribute is present, with the exception of the FINGERPRINT attribute."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000").sha256();
    client.challenge(&mut world);
    let id = client.transaction();
    let mut bytes = Vec::new();
    let mut builder = Builder::new(&mut bytes, Method::Allocate, Class::Request, id);
    builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    client.write_credentials(&mut builder);
    builder.integrity_sha256(&client.key());
    builder.attribute(AttributeType(0x7FFE), b"").u32(AttributeType::LIFETIME, 3600);
    builder.attribute(AttributeType::MESSAGE_INTEGRITY, &[0; 20]).fingerprint();
    client.fingerprint = true;
    let reply = client.exchange(&mut world, &bytes).unwrap();
    assert_eq!((reply.result(), reply.lifetime()), (Ok(()), 600));
}

#[test]
fn attributes_behind_fingerprint_make_no_second_message() {
    // A DATA attribute of a Send indication that looks like MESSAGE-INTEGRITY is data all the same.
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    client.allocate(&mut world).relay();
    client.permit(&mut world, &[PEER]);
    let payload = [&[0x00, 0x08, 0x00, 0x14][..], &[0; 20], &[0x80, 0x28, 0x00, 0x04, 1, 2, 3, 4]].concat();
    client.indicate(&mut world, PEER, &payload);
    assert_eq!(world.sent()[0].bytes, payload);
}

#[test]
fn only_the_first_of_several_attributes_counts() {
    // RFC 8489 section 14: "only the first occurrence needs to be processed by a receiver, and any duplicates MAY be
    // ignored by a receiver."
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let reply = client.allocate_with(&mut world, |builder| {
        builder.u32(AttributeType::LIFETIME, 1200).u32(AttributeType::LIFETIME, 1800);
        builder.attribute(AttributeType::REQUESTED_TRANSPORT, &[6, 0, 0, 0]);
    });
    assert_eq!(reply.lifetime(), 1200);
    client.permit(&mut world, &[PEER, "9.9.9.10:7000"]);
    client.indicate_with(&mut world, |builder| {
        builder.xor_address(AttributeType::XOR_PEER_ADDRESS, crate::harness::addr(PEER));
        builder.attribute(AttributeType::DATA, b"first");
        builder.xor_address(AttributeType::XOR_PEER_ADDRESS, crate::harness::addr("9.9.9.10:7000"));
        builder.attribute(AttributeType::DATA, b"second");
    });
    let sent = world.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].to, &sent[0].bytes[..]), (crate::harness::peer(PEER), &b"first"[..]));
}

#[test]
fn every_datagram_ends_in_one_outcome() {
    // Whatever arrives, one counter moves by one.
    let mut world = World::new();
    let mut client = Client::new("198.51.100.1:1000");
    let relay = client.allocate(&mut world).relay();
    let total = |world: &World| {
        let counters = world.counters();
        let by_method = |method: Method| {
            let refused = ferryd::stun::ErrorCode::ALL.iter().map(|code| counters.refused(method, *code)).sum::<u64>();
            counters.succeeded(method) + refused
        };
        counters.to_peer
            + counters.to_client
            + counters.to_worker
            + counters.keepalive
            + Method::ALL.into_iter().map(by_method).sum::<u64>()
            + DropReason::ALL.into_iter().map(|reason| counters.dropped(reason)).sum::<u64>()
    };
    let mut expected = total(&world);
    let mut step = |world: &World| {
        expected += 1;
        assert_eq!(total(world), expected);
    };
    client.permit(&mut world, &[PEER]);
    step(&world);
    client.bind(&mut world, 0x3FFF, PEER);
    step(&world);
    client.bind(&mut world, 0x4000, PEER);
    step(&world);
    client.channel_data(&mut world, 0x4000, b"data");
    step(&world);
    client.channel_data(&mut world, 0x4001, b"data");
    step(&world);
    client.indicate(&mut world, PEER, b"data");
    step(&world);
    client.indicate_with(&mut world, |_| {});
    step(&world);
    world.peer_sends(PEER, relay, b"data");
    step(&world);
    world.peer_sends("9.9.9.10:1", relay, b"data");
    step(&world);
    client.send(&mut world, &[0xFF; 64]);
    step(&world);
    assert_eq!(client.received(&mut world), [Received::Channel { number: 0x4000, data: b"data".to_vec() }]);
    let mut other = client.clone().user("bob", BOB);
    other.refresh(&mut world, None);
    step(&world);
}
