//! The cost of reading and writing messages, beside the `stun` crate in the same run.

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "shared with the benches that need a server")]
mod support;

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use ferryd::stun::{AttributeType, Builder, ChannelData, Class, ErrorCode, Message, Method, TransactionId};
use stun::agent::TransactionId as TheirId;
use stun::attributes::{ATTR_DATA, ATTR_NONCE, ATTR_REALM, ATTR_USERNAME, ATTR_XOR_PEER_ADDRESS};
use stun::error_code::{CODE_UNAUTHORIZED, ErrorCodeAttribute};
use stun::integrity::MessageIntegrity;
use stun::message::{BINDING_SUCCESS, CLASS_ERROR_RESPONSE, METHOD_ALLOCATE, Message as TheirMessage, MessageType};
use stun::textattrs::TextAttribute;
use stun::xoraddr::XorMappedAddress;
use support::{PASSWORD, REALM, USER, channel_data, key, send_indication};

const ID: [u8; 12] = [9; 12];
const NONCE: &[u8] = b"obMatJos2AAABa72VxCvCRhT0eHVjO5k4Gd5T1Fhzqk";
const ADDRESS: &str = "203.0.113.9:50123";

fn address() -> SocketAddr {
    ADDRESS.parse().expect("a literal address")
}

/// An Allocate with credentials.
fn allocate() -> Vec<u8> {
    let mut message = Vec::new();
    Builder::new(&mut message, Method::Allocate, Class::Request, TransactionId(ID))
        .attribute(AttributeType::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
        .attribute(AttributeType::USERNAME, USER.as_bytes())
        .attribute(AttributeType::REALM, REALM.as_bytes())
        .attribute(AttributeType::NONCE, NONCE)
        .integrity(&key());
    message
}

fn theirs(bytes: &[u8]) -> TheirMessage {
    let mut message = TheirMessage { raw: bytes.to_vec(), ..TheirMessage::default() };
    message.decode().expect("it is a message");
    message
}

fn parse_allocate(criterion: &mut Criterion) {
    let (bytes, key) = (allocate(), key());
    let mut group = criterion.benchmark_group("parse and verify an Allocate");
    group.bench_function("ferryd", |bencher| {
        bencher.iter(|| {
            let message = Message::parse(black_box(&bytes)).expect("it is a message");
            let covered = message.integrity().expect("it has integrity");
            assert!(key.verifies_sha1(&covered));
            for kind in [AttributeType::USERNAME, AttributeType::REALM, AttributeType::NONCE] {
                black_box(message.attribute(kind));
            }
        });
    });
    let integrity = MessageIntegrity::new_long_term_integrity(USER.into(), REALM.into(), PASSWORD.into());
    group.bench_function("stun", |bencher| {
        bencher.iter(|| {
            let mut message = theirs(black_box(&bytes));
            integrity.check(&mut message).expect("it has integrity");
            for kind in [ATTR_USERNAME, ATTR_REALM, ATTR_NONCE] {
                black_box(TextAttribute::get_from_as(&message, kind).expect("it is there"));
            }
        });
    });
    group.finish();
}

fn parse_send(criterion: &mut Criterion) {
    let bytes = send_indication(address(), 160);
    let mut group = criterion.benchmark_group("parse a Send indication");
    group.bench_function("ferryd", |bencher| {
        bencher.iter(|| {
            let message = Message::parse(black_box(&bytes)).expect("it is a message");
            let peer = message.attribute(AttributeType::XOR_PEER_ADDRESS).expect("it has a peer");
            black_box(peer.as_xor_address(message.transaction_id()));
            black_box(message.attribute(AttributeType::DATA));
        });
    });
    group.bench_function("stun", |bencher| {
        bencher.iter(|| {
            let message = theirs(black_box(&bytes));
            let mut peer = XorMappedAddress::default();
            peer.get_from_as(&message, ATTR_XOR_PEER_ADDRESS).expect("it has a peer");
            black_box(peer);
            black_box(message.get(ATTR_DATA).expect("it has data"));
        });
    });
    group.finish();
}

fn parse_channel_data(criterion: &mut Criterion) {
    let bytes = channel_data(160);
    let mut group = criterion.benchmark_group("parse ChannelData");
    group.bench_function("ferryd", |bencher| bencher.iter(|| ChannelData::parse(black_box(&bytes))));
    group.finish();
}

fn build_challenge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build a 401");
    let mut buffer = Vec::with_capacity(256);
    group.bench_function("ferryd", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            Builder::new(&mut buffer, Method::Allocate, Class::Error, TransactionId(black_box(ID)))
                .error_code(ErrorCode::Unauthenticated, ErrorCode::Unauthenticated.reason())
                .attribute(AttributeType::REALM, REALM.as_bytes())
                .attribute(AttributeType::NONCE, NONCE);
            black_box(&buffer);
        });
    });
    group.bench_function("stun", |bencher| {
        let nonce = String::from_utf8_lossy(NONCE).into_owned();
        let mut message = TheirMessage::new();
        bencher.iter(|| {
            let text = |kind, value: &str| Box::new(TextAttribute::new(kind, value.to_owned()));
            let built = message.build(&[
                Box::new(TheirId(black_box(ID))),
                Box::new(MessageType::new(METHOD_ALLOCATE, CLASS_ERROR_RESPONSE)),
                Box::new(ErrorCodeAttribute { code: CODE_UNAUTHORIZED, reason: b"Unauthenticated".to_vec() }),
                text(ATTR_REALM, REALM),
                text(ATTR_NONCE, &nonce),
            ]);
            built.expect("it can be built");
            black_box(&message.raw);
        });
    });
    group.finish();
}

fn build_binding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build a Binding success");
    let (mut buffer, address) = (Vec::with_capacity(64), address());
    group.bench_function("ferryd", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            Builder::new(&mut buffer, Method::Binding, Class::Success, TransactionId(black_box(ID)))
                .xor_address(AttributeType::XOR_MAPPED_ADDRESS, black_box(address));
            black_box(&buffer);
        });
    });
    group.bench_function("stun", |bencher| {
        let mut message = TheirMessage::new();
        bencher.iter(|| {
            let built = message.build(&[
                Box::new(TheirId(black_box(ID))),
                Box::new(BINDING_SUCCESS),
                Box::new(XorMappedAddress { ip: address.ip(), port: address.port() }),
            ]);
            built.expect("it can be built");
            black_box(&message.raw);
        });
    });
    group.finish();
}

criterion_group!(benches, parse_allocate, parse_send, parse_channel_data, build_challenge, build_binding);
criterion_main!(benches);
