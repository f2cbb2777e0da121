//! What a client receives, parsed and checked.

use std::net::SocketAddr;

use ferryd::address::Family;
use ferryd::stun::channel_data::ChannelData;
use ferryd::stun::{AttributeType, Class, Message, Method, TransactionId};

/// An answer, owned.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
}

/// The integrity attributes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signed {
    No,
    Sha1,
    Sha256,
}

/// One message at a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Channel { number: u16, data: Vec<u8> },
    Data { from: SocketAddr, data: Vec<u8> },
    Icmp { about: SocketAddr, value: Vec<u8> },
}

impl Reply {
    pub(crate) fn message(&self) -> Message<'_> {
        Message::parse(&self.bytes).expect("the server sends well-formed messages")
    }

    pub(crate) fn class(&self) -> Class {
        self.message().class()
    }

    pub(crate) fn method(&self) -> Method {
        self.message().method()
    }

    pub(crate) fn id(&self) -> TransactionId {
        self.message().transaction_id()
    }

    pub(crate) fn signed(&self) -> Signed {
        match (self.message().integrity(), self.message().integrity_sha256()) {
            (None, None) => Signed::No,
            (Some(_), None) => Signed::Sha1,
            (None, Some(_)) => Signed::Sha256,
            (Some(_), Some(_)) => {
                panic!("RFC 8489 section 9.1.3: only one of these attributes can appear in a response")
            }
        }
    }

    /// Success, or the number of the error.
    pub(crate) fn result(&self) -> Result<(), u16> {
        match self.class() {
            Class::Success => Ok(()),
            Class::Error => Err(self.code()),
            Class::Request | Class::Indication => panic!("no response: {:?}", self.class()),
        }
    }

    pub(crate) fn code(&self) -> u16 {
        let value = self.value(AttributeType::ERROR_CODE).expect("every error response has ERROR-CODE");
        assert_eq!(value[..2], [0, 0], "RFC 8489 section 14.8: reserved bits should be 0");
        u16::from(value[2]) * 100 + u16::from(value[3])
    }

    pub(crate) fn reason(&self) -> String {
        String::from_utf8(self.value(AttributeType::ERROR_CODE).expect("an error")[4..].to_vec()).expect("UTF-8")
    }

    pub(crate) fn value(&self, kind: AttributeType) -> Option<Vec<u8>> {
        self.message().attribute(kind).map(|attribute| attribute.value.to_vec())
    }

    pub(crate) fn has(&self, kind: AttributeType) -> bool {
        self.message().has(kind)
    }

    /// The types of all attributes that count, in their order.
    pub(crate) fn kinds(&self) -> Vec<AttributeType> {
        self.message().attributes().map(|attribute| attribute.kind).collect()
    }

    pub(crate) fn lifetime(&self) -> u32 {
        self.message().attribute(AttributeType::LIFETIME).and_then(|it| it.as_u32()).expect("LIFETIME")
    }

    /// Every XOR-RELAYED-ADDRESS.
    pub(crate) fn relayed(&self) -> Vec<SocketAddr> {
        let message = self.message();
        let addresses = message.attributes().filter(|it| it.kind == AttributeType::XOR_RELAYED_ADDRESS);
        addresses.map(|it| it.as_xor_address(message.transaction_id()).expect("an address")).collect()
    }

    /// The relayed address of an allocation that has one.
    pub(crate) fn relay(&self) -> SocketAddr {
        assert_eq!(self.result(), Ok(()));
        let [relay] = self.relayed()[..] else { panic!("one relayed address: {:?}", self.relayed()) };
        relay
    }

    pub(crate) fn relay_of(&self, family: Family) -> SocketAddr {
        let relays = self.relayed();
        *relays.iter().find(|relay| Family::of(relay.ip()) == family).expect("a relayed address of the family")
    }

    pub(crate) fn mapped(&self) -> SocketAddr {
        let message = self.message();
        let attribute = message.attribute(AttributeType::XOR_MAPPED_ADDRESS).expect("XOR-MAPPED-ADDRESS");
        attribute.as_xor_address(message.transaction_id()).expect("an address")
    }

    pub(crate) fn token(&self) -> Vec<u8> {
        self.value(AttributeType::RESERVATION_TOKEN).expect("RESERVATION-TOKEN")
    }

    /// UNKNOWN-ATTRIBUTES as numbers.
    pub(crate) fn unknown(&self) -> Vec<u16> {
        let value = self.value(AttributeType::UNKNOWN_ATTRIBUTES).expect("UNKNOWN-ATTRIBUTES");
        value.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    }
}

impl Received {
    /// Reads a message that is no response; `padded` says whether it came on a stream.
    pub(crate) fn parse(bytes: &[u8], padded: bool) -> Self {
        if let Some(data) = ChannelData::parse(bytes) {
            let expected = if padded { (4 + data.len).next_multiple_of(4) } else { 4 + data.len };
            assert_eq!(bytes.len(), expected, "padding belongs on streams and nowhere else");
            assert!(bytes[4 + data.len..].iter().all(|byte| *byte == 0), "padding is zero");
            return Self::Channel { number: data.channel.get(), data: bytes[data.data()].to_vec() };
        }
        let message = Message::parse(bytes).expect("the server sends well-formed messages");
        assert_eq!((message.method(), message.class()), (Method::Data, Class::Indication));
        let peer = message.attribute(AttributeType::XOR_PEER_ADDRESS).expect("XOR-PEER-ADDRESS");
        let peer = peer.as_xor_address(message.transaction_id()).expect("an address");
        match (message.attribute(AttributeType::DATA), message.attribute(AttributeType::ICMP)) {
            (Some(data), None) => Self::Data { from: peer, data: data.value.to_vec() },
            (None, Some(icmp)) => Self::Icmp { about: peer, value: icmp.value.to_vec() },
            (data, icmp) => panic!("DATA or ICMP: {data:?}, {icmp:?}"),
        }
    }
}
