//! The codec against RFC 5769's vectors, against malformed input and against itself.

use hex_literal::hex;
use md5::Digest;

use super::attribute::AttributeType;
use super::builder::Builder;
use super::header::{Class, Method, TransactionId};
use super::integrity::IntegrityKey;
use super::message::{Message, ParseError};

/// RFC 5769 section 2.1, sample request.
const REQUEST: &[u8] = &hex!(
    "00010058 2112a442 b7e7a701 bc34d686 fa87dfae 80220010 5354554e 20746573 7420636c 69656e74 00240004 6e0001ff"
    "80290008 932ff9b1 51263b36 00060009 6576746a 3a683676 59202020 00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249"
    "c1b571a2 80280004 e57a3bcf"
);

/// RFC 5769 section 2.2, sample IPv4 response.
const RESPONSE: &[u8] = &hex!(
    "0101003c 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 00200008 0001a147 e112a643"
    "00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7 80280004 c07d4c96"
);

/// RFC 5769 section 2.4, sample request with long-term authentication.
const LONG_TERM: &[u8] = &hex!(
    "00010060 2112a442 78ad3433 c6ad72c0 29da412e 00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000 0015001c"
    "662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341 0014000b 6578616d 706c652e 6f726700 00080014"
    "f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666"
);

fn key(bytes: &[u8]) -> IntegrityKey {
    IntegrityKey::new(bytes).expect("a short key")
}

#[test]
fn rfc_5769_request_and_response_verify() {
    for vector in [REQUEST, RESPONSE] {
        let message = Message::parse(vector).unwrap();
        assert!(message.has_fingerprint());
        let covered = message.integrity().unwrap();
        assert!(key(b"VOkJxbRl1RmTxUk/WvJxBt").verifies_sha1(&covered));
        assert!(!key(b"VOkJxbRl1RmTxUk/WvJxBT").verifies_sha1(&covered));
    }
}

#[test]
fn rfc_5769_long_term_request_verifies() {
    let message = Message::parse(LONG_TERM).unwrap();
    assert_eq!(message.attribute(AttributeType::REALM).unwrap().value, b"example.org");
    let digest = md5::Md5::digest("マトリックス:example.org:TheMatrIX".as_bytes());
    assert!(key(&digest).verifies_sha1(&message.integrity().unwrap()));
}

#[test]
fn what_is_built_is_what_is_parsed() {
    let mut bytes = b"before".to_vec();
    let id = TransactionId(*b"abcdefghijkl");
    let secret = key(b"secret");
    Builder::new(&mut bytes, Method::Allocate, Class::Success, id)
        .xor_address(AttributeType::XOR_RELAYED_ADDRESS, "[2001:db8::1]:50000".parse().unwrap())
        .u32(AttributeType::LIFETIME, 600)
        .attribute(AttributeType::SOFTWARE, b"ferry")
        .integrity(&secret)
        .integrity_sha256(&secret)
        .fingerprint();
    let message = Message::parse(&bytes[6..]).unwrap();
    assert_eq!((message.method(), message.class(), message.transaction_id()), (Method::Allocate, Class::Success, id));
    assert_eq!(message.attributes().count(), 3);
    assert_eq!(message.attribute(AttributeType::SOFTWARE).unwrap().value, b"ferry");
    assert!(secret.verifies_sha1(&message.integrity().unwrap()));
    assert!(secret.verifies_sha256(&message.integrity_sha256().unwrap()));
    assert!(message.has_fingerprint());
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    for len in 0..REQUEST.len() {
        assert!(Message::parse(&REQUEST[..len]).is_err(), "{len} bytes");
    }
    let mut longer = REQUEST.to_vec();
    longer.extend_from_slice(&[0; 4]);
    assert_eq!(Message::parse(&longer).unwrap_err(), ParseError::Length);
}

fn message_with(attributes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Builder::new(&mut bytes, Method::Binding, Class::Request, TransactionId([7; 12]));
    bytes[3] = attributes.len() as u8;
    bytes.extend_from_slice(attributes);
    bytes
}

#[test]
fn attributes_that_overrun_are_refused() {
    assert_eq!(Message::parse(&message_with(&[0x80, 0x22, 0, 5, 1, 2, 3, 4])).unwrap_err(), ParseError::Attribute);
    assert_eq!(Message::parse(&message_with(&[0x80, 0x22, 0xff, 0xff])).unwrap_err(), ParseError::Attribute);
    assert_eq!(Message::parse(&message_with(&[0x80, 0x22])).unwrap_err(), ParseError::Length);
    assert!(Message::parse(&message_with(&[0x80, 0x22, 0, 3, 1, 2, 3, 9])).is_ok());
}

#[test]
fn a_wrong_or_early_fingerprint_is_refused() {
    let mut wrong = REQUEST.to_vec();
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(Message::parse(&wrong).unwrap_err(), ParseError::Fingerprint);
    let mut early = Vec::new();
    Builder::new(&mut early, Method::Binding, Class::Request, TransactionId([7; 12]))
        .fingerprint()
        .attribute(AttributeType::SOFTWARE, b"late");
    assert_eq!(Message::parse(&early).unwrap_err(), ParseError::Fingerprint);
}

#[test]
fn attributes_behind_message_integrity_have_no_effect() {
    let mut bytes = Vec::new();
    let secret = key(b"secret");
    Builder::new(&mut bytes, Method::Allocate, Class::Request, TransactionId([7; 12]))
        .attribute(AttributeType::USERNAME, b"before")
        .integrity(&secret)
        .attribute(AttributeType::REALM, b"behind")
        .attribute(AttributeType(0x7777), b"")
        .integrity_sha256(&secret)
        .fingerprint();
    let message = Message::parse(&bytes).unwrap();
    assert!(message.has(AttributeType::USERNAME));
    assert!(!message.has(AttributeType::REALM));
    assert_eq!(message.unknown_attributes().count(), 0);
    assert!(message.integrity_sha256().is_some());
}

#[test]
fn message_integrity_behind_its_sha256_form_does_not_count() {
    let mut bytes = Vec::new();
    let secret = key(b"secret");
    Builder::new(&mut bytes, Method::Allocate, Class::Request, TransactionId([7; 12]))
        .integrity_sha256(&secret)
        .integrity(&secret);
    let message = Message::parse(&bytes).unwrap();
    assert!(message.integrity().is_none() && message.integrity_sha256().is_some());
}

#[test]
fn truncated_sha256_integrity_does_not_verify() {
    let secret = key(b"secret");
    let mut bytes = Vec::new();
    let mut builder = Builder::new(&mut bytes, Method::Refresh, Class::Request, TransactionId([7; 12]));
    builder.attribute(AttributeType::MESSAGE_INTEGRITY_SHA256, &[0; 16]);
    let covered = Message::parse(&bytes).unwrap().integrity_sha256().map(|covered| covered.header).unwrap();
    let mac = secret.sha256([&covered[..]]);
    bytes[24..].copy_from_slice(&mac[..16]);
    let message = Message::parse(&bytes).unwrap();
    assert!(!secret.verifies_sha256(&message.integrity_sha256().unwrap()));
}

#[test]
fn unknown_required_attributes_are_listed_in_order() {
    let message = message_with(&hex!("7f010000 ff020000 00030000 8055000100000000"));
    let unknown: Vec<_> = Message::parse(&message).unwrap().unknown_attributes().collect();
    assert_eq!(unknown, [AttributeType(0x7F01), AttributeType(0x0003)]);
}
