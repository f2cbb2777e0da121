//! Our codec beside the `stun` crate: what we accept it reads alike, and both write the same again.

use ferryd::stun::framing::frame_len;
use ferryd::stun::{AttributeType, Builder, Message};
use stun::attributes::AttrType;
use stun::fingerprint::FINGERPRINT;
use stun::message::Setter;
use stun::xoraddr::XorMappedAddress;

pub fn run(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    super::mend(&mut bytes);
    bytes.truncate(bytes.len() & !3);
    let Ok(message) = Message::parse(&bytes) else { return };
    assert_eq!(frame_len(&bytes), Ok(Some(bytes.len())));
    let mut other = stun::message::Message::new();
    other.unmarshal_binary(&bytes).expect("what we accept is well-formed");
    assert_eq!(other.transaction_id.0, message.transaction_id().0);
    assert!(other.attributes.0.len() >= message.attributes().count());
    for (read, own) in other.attributes.0.iter().zip(message.attributes()) {
        // It takes 0x8020, a draft's number, for XOR-MAPPED-ADDRESS.
        assert!(read.typ.0 == own.kind.0 || own.kind.0 == 0x8020);
        assert_eq!(&read.value[..], own.value);
    }
    if message.has_fingerprint() {
        assert!(FINGERPRINT.check(&other).is_ok());
    }
    same_address(&message, &other);
    same_bytes(&message, &other);
}

fn same_address(message: &Message<'_>, other: &stun::message::Message) {
    let kind = AttributeType::XOR_PEER_ADDRESS;
    let Some(attribute) = message.attribute(kind) else { return };
    // It minds the reserved byte, which RFC 8489 section 14.1 says to ignore.
    if attribute.value.first() != Some(&0) {
        return;
    }
    let Some(address) = attribute.as_xor_address(message.transaction_id()) else { return };
    let mut read = XorMappedAddress::default();
    read.get_from_as(other, AttrType(kind.0)).expect("an address that we read");
    assert_eq!((read.ip, read.port), (address.ip(), address.port()));
}

/// Writes the attributes that count by both codecs.
fn same_bytes(message: &Message<'_>, read: &stun::message::Message) {
    let mut ours = Vec::new();
    let mut builder = Builder::new(&mut ours, message.method(), message.class(), message.transaction_id());
    let mut theirs = stun::message::Message::new();
    theirs.transaction_id = read.transaction_id;
    theirs.set_type(read.typ);
    theirs.write_header();
    for attribute in message.attributes() {
        builder.attribute(attribute.kind, attribute.value);
        theirs.add(AttrType(attribute.kind.0), attribute.value);
    }
    if message.has_fingerprint() {
        builder.fingerprint();
        FINGERPRINT.add_to(&mut theirs).expect("room for it");
    }
    assert_eq!(ours, theirs.raw);
    let again = Message::parse(&ours).expect("what we write we read");
    assert!(again.attributes().map(|it| (it.kind, it.value)).eq(message.attributes().map(|it| (it.kind, it.value))));
}
