//! What the generator puts on the wire and expects back: numbered, stamped payloads, and framing for TURN.

use std::net::{SocketAddr, SocketAddrV4};

use ferryd::stun::attribute::XorAddress;
use ferryd::stun::header::{HEADER_LEN, MAGIC_COOKIE, join_type};
use ferryd::stun::{AttributeType, Class, Message, Method, TransactionId};

const MARK: u32 = 0xFE77_1D01;
/// What fits into one slot and one Ethernet frame.
pub(crate) const PAYLOAD_LEN_MAX: usize = 1400;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From a client to a peer.
    Up = 0,
    /// From a peer to a client.
    Down = 1,
}

/// What a payload says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) way: Way,
    /// Whether it was sent within the measured time.
    pub(crate) measured: bool,
    pub(crate) flow: u32,
    pub(crate) number: u32,
    pub(crate) sent_ns: u64,
}

const PATTERN: [u8; PAYLOAD_LEN_MAX] = {
    let mut pattern = [0; PAYLOAD_LEN_MAX];
    let mut index = 0;
    while index < PAYLOAD_LEN_MAX {
        pattern[index] = (index * 167 + 13) as u8;
        index += 1;
    }
    pattern
};

impl Label {
    /// Fills a payload of at least 32 bytes: mark, way and epoch, flow, number, time stamp, a pattern, and the number once
    /// more at the end.
    pub(crate) fn write(&self, payload: &mut [u8]) {
        let end = payload.len() - 4;
        payload[..4].copy_from_slice(&MARK.to_le_bytes());
        payload[4..8].copy_from_slice(&[self.way as u8, u8::from(self.measured), 0, 0]);
        payload[8..12].copy_from_slice(&self.flow.to_le_bytes());
        payload[12..16].copy_from_slice(&self.number.to_le_bytes());
        payload[16..24].copy_from_slice(&self.sent_ns.to_le_bytes());
        payload[24..end].copy_from_slice(&PATTERN[24..end]);
        payload[end..].copy_from_slice(&(!self.number).to_le_bytes());
    }

    /// Checks every byte of a payload; `None` when it is not exactly one that was written with this length.
    pub(crate) fn parse(payload: &[u8], len: usize) -> Option<Self> {
        let end = len - 4;
        if payload.len() != len || payload[..4] != MARK.to_le_bytes() || payload[24..end] != PATTERN[24..end] {
            return None;
        }
        let word = |at: usize| u32::from_le_bytes([payload[at], payload[at + 1], payload[at + 2], payload[at + 3]]);
        let way = match payload[4] {
            0 => Way::Up,
            1 => Way::Down,
            2.. => return None,
        };
        let number = word(12);
        let sent_ns = u64::from(word(20)) << 32 | u64::from(word(16));
        (word(end) == !number).then_some(Self { way, measured: payload[5] != 0, flow: word(8), number, sent_ns })
    }
}

/// How application data is wrapped between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    ChannelData,
    /// Send indications to the server, Data indications back.
    Indication,
}

/// Length of the header of a ChannelData message.
const CHANNEL_HEADER_LEN: usize = 4;
/// Length of an indication before its data: header, XOR-PEER-ADDRESS with an IPv4 address, the header of DATA.
const INDICATION_HEADER_LEN: usize = HEADER_LEN + 12 + 4;

impl Shape {
    /// The bytes in front of a payload of this length, which is a multiple of four.
    pub(crate) fn header(self, channel: u16, peer: SocketAddrV4, payload_len: usize) -> Vec<u8> {
        let len = payload_len as u16;
        match self {
            Self::ChannelData => [channel.to_be_bytes(), len.to_be_bytes()].concat(),
            Self::Indication => {
                let id = TransactionId([7; 12]);
                let address = XorAddress::new(SocketAddr::V4(peer), id);
                let mut header = Vec::with_capacity(INDICATION_HEADER_LEN);
                header.extend(join_type(Method::Send, Class::Indication).to_be_bytes());
                header.extend((16 + len).to_be_bytes());
                header.extend(MAGIC_COOKIE.to_be_bytes());
                header.extend(id.0);
                header.extend([AttributeType::XOR_PEER_ADDRESS.0.to_be_bytes(), 8_u16.to_be_bytes()].concat());
                header.extend(address.as_bytes());
                header.extend([AttributeType::DATA.0.to_be_bytes(), len.to_be_bytes()].concat());
                header
            }
        }
    }

    /// The payload of a message from the server, if it is of this shape and names this channel or peer.
    pub(crate) fn unwrap(self, message: &[u8], channel: u16, peer: SocketAddrV4) -> Option<&[u8]> {
        match self {
            Self::ChannelData => {
                let (&[a, b, c, d], payload) = message.split_first_chunk::<CHANNEL_HEADER_LEN>()?;
                let len = usize::from(u16::from_be_bytes([c, d]));
                (u16::from_be_bytes([a, b]) == channel && len == payload.len()).then_some(payload)
            }
            Self::Indication => {
                let message = Message::parse(message).ok()?;
                let (mut from, mut data) = (None, None);
                for attribute in message.attributes() {
                    match attribute.kind {
                        AttributeType::XOR_PEER_ADDRESS => from = attribute.as_xor_address(message.transaction_id()),
                        AttributeType::DATA => data = Some(attribute.value),
                        _ => {}
                    }
                }
                let is_data = (message.method(), message.class()) == (Method::Data, Class::Indication);
                if is_data && from == Some(SocketAddr::V4(peer)) { data } else { None }
            }
        }
    }
}
