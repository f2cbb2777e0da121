//! Hostile bytes: nothing that a network can carry panics, allocates for a stranger, or is answered twice.

use ferryd::address::Transport;
use ferryd::stun::{AttributeType, Method};
use proptest::prelude::*;

use crate::harness::{Client, PEER, World, addr, assert_no_leak, secs};

/// One change of a datagram: where, what with, and how.
type Change = (prop::sample::Index, u8, u8);

fn mutate(bytes: &mut Vec<u8>, changes: &[Change]) {
    for (index, byte, how) in changes {
        if bytes.is_empty() {
            return;
        }
        let index = index.index(bytes.len());
        match how % 5 {
            0 => bytes[index] = *byte,
            1 => bytes[index] ^= 1 << (byte % 8),
            2 => bytes.truncate(index),
            3 => bytes.insert(index, *byte),
            _ => bytes.extend_from_within(index..),
        }
    }
}

/// A message of an authenticated client, of any kind.
fn message(client: &mut Client, kind: u8) -> Vec<u8> {
    let peer = addr(PEER);
    match kind % 8 {
        0 => client.unsigned(Method::Binding, |_| {}),
        1 => client.signed(Method::Allocate, |builder| {
            builder
                .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(AttributeType::EVEN_PORT, &[0x80]);
        }),
        2 => client.signed(Method::Refresh, |builder| _ = builder.u32(AttributeType::LIFETIME, 700)),
        3 => client.signed(Method::CreatePermission, |builder| {
            builder
                .xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
                .xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        }),
        4 => client.signed(Method::ChannelBind, |builder| {
            builder.u32(AttributeType::CHANNEL_NUMBER, 0x4000_0000).xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        }),
        5 => b"\x40\x00\x00\x05hello\0\0\0".to_vec(),
        _ => {
            let mut bytes = client.unsigned(Method::Send, |builder| {
                builder.xor_address(AttributeType::XOR_PEER_ADDRESS, peer).attribute(AttributeType::DATA, b"data");
            });
            bytes[1] = 0x16;
            bytes
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutated_messages_never_panic_and_leave_nothing(
        messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<Change>(), 0..4)), 1..40),
        stream in any::<bool>(),
    ) {
        let mut world = World::new();
        let transport = if stream { Transport::Tcp } else { Transport::Udp };
        let mut client = Client::over("198.51.100.1:1000", transport);
        client.challenge(&mut world);
        for (kind, changes) in &messages {
            let mut bytes = message(&mut client, *kind);
            mutate(&mut bytes, changes);
            client.send(&mut world, &bytes);
            prop_assert!(world.inbox(&client.at).len() <= 1);
            prop_assert!(world.sent().len() <= 1);
        }
        world.advance(secs(4000));
        assert_no_leak(&world);
    }

    #[test]
    fn strangers_make_no_state(
        messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<Change>(), 0..4)), 1..40),
    ) {
        let mut world = World::new();
        let mut stranger = Client::new("198.51.100.1:1000").user("alice", "guessed");
        stranger.challenge(&mut world);
        for (kind, changes) in &messages {
            let mut bytes = message(&mut stranger, *kind);
            mutate(&mut bytes, changes);
            stranger.send(&mut world, &bytes);
            for reply in world.inbox(&stranger.at) {
                prop_assert!(28 + reply.len() <= 2 * (28 + bytes.len()), "{} for {}", reply.len(), bytes.len());
            }
        }
        prop_assert!(world.sent().is_empty());
        assert_no_leak(&world);
    }
}
