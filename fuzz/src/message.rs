//! Every parser of a single message: what is accepted can be looked at in every way.

use ferryd::stun::channel_data::ChannelData;
use ferryd::stun::classic::ClassicRequest;
use ferryd::stun::integrity::IntegrityKey;
use ferryd::stun::{AttributeType, Message};

/// Bytes as they are, and mended, so that more of them are messages.
pub fn run(bytes: &[u8]) {
    look_at(bytes);
    let mut mended = bytes.to_vec();
    super::mend(&mut mended);
    look_at(&mended);
    let whole = mended.len() & !3;
    look_at(&mended[..whole]);
}

fn look_at(bytes: &[u8]) {
    if let Some(data) = ChannelData::parse(bytes) {
        assert!((0x4000..0x8000).contains(&data.channel.get()));
        assert_eq!(data.data().start, 4);
        assert!(data.data().end <= bytes.len());
    }
    if let Ok(request) = ClassicRequest::parse(bytes) {
        assert_eq!(request.id().0, bytes[4..20]);
        for attribute in request.attributes() {
            assert!(request.has(attribute.kind));
        }
    }
    let Ok(message) = Message::parse(bytes) else { return };
    assert_eq!(message.len(), bytes.len());
    let key = IntegrityKey::new(&[7; 16]).expect("a key");
    for attribute in message.attributes() {
        let start = message.offset_of(&attribute);
        assert_eq!(&bytes[start..start + attribute.value.len()], attribute.value);
        let first = message.attribute(attribute.kind).expect("it is there");
        assert!(message.offset_of(&first) <= start);
        let _ = (attribute.as_u32(), attribute.as_channel_number(), attribute.as_code(), attribute.as_family());
        let _ = (attribute.as_even_port(), attribute.as_token(), attribute.as_xor_address(message.transaction_id()));
    }
    for unknown in message.unknown_attributes() {
        assert!(unknown.is_comprehension_required() && message.has(unknown));
    }
    // Nobody knows the key, so that an integrity that verifies has been made up.
    assert!(message.integrity().is_none_or(|covered| !key.verifies_sha1(&covered)));
    assert!(message.integrity_sha256().is_none_or(|covered| !key.verifies_sha256(&covered)));
    assert!(!message.has(AttributeType::MESSAGE_INTEGRITY), "it ends the attributes that count");
}
