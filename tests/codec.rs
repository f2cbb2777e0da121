//! The same bytes through our codec and through the `stun` crate: what one builds the other reads, and what is mutated
//! never panics.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::net::SocketAddr;

use ferryd::stun::attribute::Attribute;
use ferryd::stun::channel_data::{ChannelData, ChannelNumber};
use ferryd::stun::framing::{FRAME_LEN_MAX, frame_len};
use ferryd::stun::integrity::IntegrityKey;
use ferryd::stun::{AttributeType, Builder, Class, ErrorCode, Message, Method, TransactionId};
use proptest::prelude::*;
use stun::error_code::ErrorCodeAttribute;
use stun::fingerprint::FINGERPRINT;
use stun::integrity::MessageIntegrity;
use stun::message::{Getter, Setter};
use stun::xoraddr::XorMappedAddress;

/// A message that both codecs can write.
#[derive(Clone, Debug)]
struct Spec {
    method: Method,
    class: Class,
    id: [u8; 12],
    attributes: Vec<Value>,
    key: Option<Vec<u8>>,
    fingerprint: bool,
}

#[derive(Clone, Debug)]
enum Value {
    Raw(u16, Vec<u8>),
    Address(u16, SocketAddr),
    Error(ErrorCode),
    Unknown(Vec<u16>),
}

fn ours(spec: &Spec) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut builder = Builder::new(&mut bytes, spec.method, spec.class, TransactionId(spec.id));
    for value in &spec.attributes {
        match value {
            Value::Raw(kind, value) => builder.attribute(AttributeType(*kind), value),
            Value::Address(kind, address) => builder.xor_address(AttributeType(*kind), *address),
            Value::Error(code) => builder.error_code(*code, code.reason()),
            Value::Unknown(kinds) => {
                builder.unknown_attributes(&kinds.iter().copied().map(AttributeType).collect::<Vec<_>>())
            }
        };
    }
    if let Some(key) = &spec.key {
        builder.integrity(&IntegrityKey::new(key).unwrap());
    }
    if spec.fingerprint {
        builder.fingerprint();
    }
    bytes
}

fn theirs(spec: &Spec) -> Vec<u8> {
    let mut message = stun::message::Message::new();
    message.transaction_id = stun::agent::TransactionId(spec.id);
    message.set_type(message_type(spec));
    message.write_header();
    for value in &spec.attributes {
        match value {
            Value::Raw(kind, value) => message.add(stun::attributes::AttrType(*kind), value),
            Value::Address(kind, address) => {
                let address = XorMappedAddress { ip: address.ip(), port: address.port() };
                address.add_to_as(&mut message, stun::attributes::AttrType(*kind)).unwrap();
            }
            Value::Error(code) => {
                let code = ErrorCodeAttribute {
                    code: stun::error_code::ErrorCode(code.number()),
                    reason: code.reason().as_bytes().to_vec(),
                };
                code.add_to(&mut message).unwrap();
            }
            Value::Unknown(kinds) => {
                let kinds = kinds.iter().copied().map(stun::attributes::AttrType).collect();
                stun::uattrs::UnknownAttributes(kinds).add_to(&mut message).unwrap();
            }
        }
    }
    if let Some(key) = &spec.key {
        MessageIntegrity(key.clone()).add_to(&mut message).unwrap();
    }
    if spec.fingerprint {
        FINGERPRINT.add_to(&mut message).unwrap();
    }
    message.raw
}

fn message_type(spec: &Spec) -> stun::message::MessageType {
    use stun::message::{CLASS_ERROR_RESPONSE, CLASS_INDICATION, CLASS_REQUEST, CLASS_SUCCESS_RESPONSE};
    let class = match spec.class {
        Class::Request => CLASS_REQUEST,
        Class::Indication => CLASS_INDICATION,
        Class::Success => CLASS_SUCCESS_RESPONSE,
        Class::Error => CLASS_ERROR_RESPONSE,
    };
    let method = match spec.method {
        Method::Binding => stun::message::METHOD_BINDING,
        Method::Allocate => stun::message::METHOD_ALLOCATE,
        Method::Refresh => stun::message::METHOD_REFRESH,
        Method::Send => stun::message::METHOD_SEND,
        Method::Data => stun::message::METHOD_DATA,
        Method::CreatePermission => stun::message::METHOD_CREATE_PERMISSION,
        Method::ChannelBind => stun::message::METHOD_CHANNEL_BIND,
        Method::Connect => stun::message::METHOD_CONNECT,
        Method::ConnectionBind => stun::message::METHOD_CONNECTION_BIND,
        Method::ConnectionAttempt => stun::message::METHOD_CONNECTION_ATTEMPT,
    };
    stun::message::MessageType::new(method, class)
}

fn decoded(bytes: &[u8]) -> Option<stun::message::Message> {
    let mut message = stun::message::Message::new();
    message.unmarshal_binary(bytes).ok()?;
    Some(message)
}

/// What ends the attributes that count, and what the other codec takes for another type.
fn is_plain(kind: u16) -> bool {
    let integrity = [AttributeType::MESSAGE_INTEGRITY, AttributeType::MESSAGE_INTEGRITY_SHA256];
    !integrity.contains(&AttributeType(kind)) && kind != AttributeType::FINGERPRINT.0 && kind != 0x8020
}

fn an_address() -> impl Strategy<Value = SocketAddr> {
    let v4 = (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port)));
    let v6 = (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port)));
    prop_oneof![v4, v6]
}

fn a_value() -> impl Strategy<Value = Value> {
    let raw = (any::<u16>().prop_filter("plain", |kind| is_plain(*kind)), prop::collection::vec(any::<u8>(), 0..80));
    let kinds =
        [AttributeType::XOR_MAPPED_ADDRESS, AttributeType::XOR_PEER_ADDRESS, AttributeType::XOR_RELAYED_ADDRESS];
    prop_oneof![
        raw.prop_map(|(kind, value)| Value::Raw(kind, value)),
        (prop::sample::select(kinds.to_vec()), an_address())
            .prop_map(|(kind, address)| Value::Address(kind.0, address)),
        prop::sample::select(ErrorCode::ALL.to_vec()).prop_map(Value::Error),
        prop::collection::vec(any::<u16>(), 0..20).prop_map(Value::Unknown),
    ]
}

fn a_spec() -> impl Strategy<Value = Spec> {
    let class = prop::sample::select(vec![Class::Request, Class::Indication, Class::Success, Class::Error]);
    let method = prop::sample::select(Method::ALL.to_vec());
    let key = prop::option::of(prop::collection::vec(any::<u8>(), 16..=16));
    (method, class, any::<[u8; 12]>(), prop::collection::vec(a_value(), 0..8), key, any::<bool>()).prop_map(
        |(method, class, id, attributes, key, fingerprint)| Spec { method, class, id, attributes, key, fingerprint },
    )
}

/// Bytes of a message with some of them changed, left out or added.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4u8);
    (a_spec(), prop::collection::vec(change, 0..6), any::<bool>()).prop_map(|(spec, changes, repair)| {
        let mut bytes = ours(&spec);
        for (index, byte, change) in changes {
            if bytes.is_empty() {
                break;
            }
            let index = index.index(bytes.len());
            match change {
                0 => bytes[index] = byte,
                1 => bytes[index] ^= 1 << (byte % 8),
                2 => bytes.truncate(index),
                _ => bytes.insert(index, byte),
            }
        }
        if repair && bytes.len() >= 20 {
            bytes.truncate(bytes.len() / 4 * 4);
            let len = (bytes.len() - 20) as u16;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xA4, 0x42]);
        }
        bytes
    })
}

/// Every accessor of a message and of its attributes.
fn look_at_everything(message: &Message<'_>) {
    let key = IntegrityKey::new(&[7; 16]).unwrap();
    for attribute in message.attributes() {
        let Attribute { kind, value } = attribute;
        let start = message.offset_of(&attribute);
        assert!(start + value.len() <= message.len());
        _ = (attribute.as_u32(), attribute.as_channel_number(), attribute.as_code(), attribute.as_family());
        _ = (attribute.as_even_port(), attribute.as_token(), attribute.as_xor_address(message.transaction_id()));
        _ = (kind.is_known(), kind.is_comprehension_required());
    }
    _ = message.unknown_attributes().count();
    _ = message.integrity().map(|covered| key.verifies_sha1(&covered));
    _ = message.integrity_sha256().map(|covered| key.verifies_sha256(&covered));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn both_codecs_build_the_same_bytes(spec in a_spec()) {
        prop_assert_eq!(ours(&spec), theirs(&spec));
    }

    #[test]
    fn what_we_build_the_other_codec_reads(spec in a_spec()) {
        let bytes = ours(&spec);
        let mut message = decoded(&bytes).unwrap();
        prop_assert_eq!(message.typ, message_type(&spec));
        prop_assert_eq!(message.transaction_id.0, spec.id);
        let integrity_and_fingerprint = usize::from(spec.key.is_some()) + usize::from(spec.fingerprint);
        prop_assert_eq!(message.attributes.0.len(), spec.attributes.len() + integrity_and_fingerprint);
        for (read, written) in message.attributes.0.iter().zip(&spec.attributes) {
            if let Value::Raw(kind, value) = written {
                prop_assert_eq!((read.typ.0, &read.value), (*kind, value));
            }
        }
        for value in &spec.attributes {
            let Value::Address(kind, address) = value else { continue };
            let mut read = XorMappedAddress::default();
            let first = spec.attributes.iter().find_map(|value| match value {
                Value::Address(other, address) if other == kind => Some(*address),
                Value::Raw(..) | Value::Address(..) | Value::Error(_) | Value::Unknown(_) => None,
            });
            if spec.attributes.iter().any(|value| matches!(value, Value::Raw(raw, _) if raw == kind)) {
                continue;
            }
            read.get_from_as(&message, stun::attributes::AttrType(*kind)).unwrap();
            prop_assert_eq!(first, Some(SocketAddr::new(read.ip, read.port)));
            prop_assert_eq!(address.is_ipv4(), address.ip().is_ipv4());
        }
        if let Some(key) = &spec.key {
            prop_assert!(MessageIntegrity(key.clone()).check(&mut message).is_ok());
            prop_assert!(MessageIntegrity(vec![0; 16]).check(&mut message).is_err() || *key == vec![0; 16]);
        }
        if spec.fingerprint {
            prop_assert!(FINGERPRINT.check(&message).is_ok());
        }
        let errors = spec.attributes.iter().filter(|it| matches!(it, Value::Error(_) | Value::Raw(0x0009, _))).count();
        if let (1, Some(Value::Error(code))) = (errors, spec.attributes.iter().find(|it| matches!(it, Value::Error(_)))) {
            let mut read = ErrorCodeAttribute::default();
            read.get_from(&message).unwrap();
            prop_assert_eq!(read.code.0, code.number());
        }
    }

    #[test]
    fn what_the_other_codec_builds_we_read(spec in a_spec()) {
        let bytes = theirs(&spec);
        let message = Message::parse(&bytes).unwrap();
        prop_assert_eq!((message.method(), message.class()), (spec.method, spec.class));
        prop_assert_eq!(message.transaction_id(), TransactionId(spec.id));
        prop_assert_eq!(message.attributes().count(), spec.attributes.len());
        prop_assert_eq!(message.has_fingerprint(), spec.fingerprint);
        for (read, written) in message.attributes().zip(&spec.attributes) {
            match written {
                Value::Raw(kind, value) => prop_assert_eq!((read.kind.0, read.value), (*kind, &value[..])),
                Value::Address(_, address) => {
                    prop_assert_eq!(read.as_xor_address(message.transaction_id()), Some(*address));
                }
                Value::Error(code) => {
                    let number = u16::from(read.value[2]) * 100 + u16::from(read.value[3]);
                    prop_assert_eq!((number, &read.value[4..]), (code.number(), code.reason().as_bytes()));
                }
                Value::Unknown(kinds) => {
                    let read: Vec<_> = read.value.chunks(2).map(|it| u16::from_be_bytes([it[0], it[1]])).collect();
                    prop_assert_eq!(&read, kinds);
                }
            }
        }
        prop_assert_eq!(message.integrity().is_some(), spec.key.is_some());
        if let Some(key) = &spec.key {
            prop_assert!(IntegrityKey::new(key).unwrap().verifies_sha1(&message.integrity().unwrap()));
        }
    }

    #[test]
    fn mutations_never_panic_and_what_we_accept_the_other_codec_reads_alike(bytes in mutated()) {
        _ = ChannelData::parse(&bytes).map(|data| bytes[data.data()].len());
        if let Ok(Some(len)) = frame_len(&bytes) {
            prop_assert!((4..=FRAME_LEN_MAX.max(65_540)).contains(&len) && len % 4 == 0);
        }
        let Ok(message) = Message::parse(&bytes) else { return Ok(()) };
        look_at_everything(&message);
        let other = decoded(&bytes).unwrap();
        prop_assert!(other.attributes.0.len() >= message.attributes().count());
        for (read, own) in other.attributes.0.iter().zip(message.attributes()) {
            // The other codec takes 0x8020, a draft's number, for XOR-MAPPED-ADDRESS.
            prop_assert!(read.typ.0 == own.kind.0 || own.kind.0 == 0x8020);
            prop_assert_eq!(&read.value[..], own.value);
        }
        if message.has_fingerprint() {
            prop_assert!(FINGERPRINT.check(&other).is_ok());
        }
        prop_assert_eq!(frame_len(&bytes), Ok(Some(bytes.len())));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        _ = frame_len(&bytes);
        _ = ChannelData::parse(&bytes).map(|data| bytes[data.data()].len());
        if let Ok(message) = Message::parse(&bytes) {
            look_at_everything(&message);
        }
    }

    #[test]
    fn channel_data_is_read_as_it_was_written(number in 0x4000..0x8000u16, data in prop::collection::vec(any::<u8>(), 0..100)) {
        let header = ChannelData::header(ChannelNumber::new(number).unwrap(), data.len() as u16);
        let mut bytes = [&header[..], &data].concat();
        let mut other = turn::proto::chandata::ChannelData { raw: bytes.clone(), ..Default::default() };
        if number <= 0x4FFF {
            other.decode().unwrap();
            prop_assert_eq!((other.number.0, &other.data), (number, &data));
        }
        let read = ChannelData::parse(&bytes).unwrap();
        prop_assert_eq!((read.channel.get(), &bytes[read.data()]), (number, &data[..]));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        prop_assert_eq!(frame_len(&bytes), Ok(Some(bytes.len())));
    }
}
