//! The ChannelData message (RFC 8656 section 12.4).

use std::ops::Range;

/// Length of the header: channel number and length, two bytes each.
pub const HEADER_LEN: usize = 4;

/// A channel number that a ChannelData message can carry.
///
/// RFC 8656 section 12: 0x4000 through 0x4FFF are allowed. Values up to 0x7FFF, which RFC 5766 allowed, are told apart
/// from everything else by the first two bits all the same; whether they can be bound is the server's setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    /// Checks the first two bits, 01.
    pub fn new(number: u16) -> Option<Self> {
        (0x4000..=0x7FFF).contains(&number).then_some(Self(number))
    }

    /// The number on the wire.
    pub fn get(self) -> u16 {
        self.0
    }

    /// Whether RFC 8656 allows it: 0x4000 through 0x4FFF.
    pub fn is_allowed(self) -> bool {
        self.0 <= 0x4FFF
    }
}

/// A checked view on a ChannelData message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelData {
    pub channel: ChannelNumber,
    /// Length of the application data in bytes.
    pub len: usize,
}

impl ChannelData {
    /// Looks at a datagram or a stream frame; bytes behind the claimed length are padding.
    ///
    /// `None` when it is no ChannelData message or is too short for the length that it claims (RFC 8656 section 12.6).
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, data @ ..] = bytes else { return None };
        let channel = ChannelNumber::new(u16::from_be_bytes([*a, *b]))?;
        let len = usize::from(u16::from_be_bytes([*c, *d]));
        (data.len() >= len).then_some(Self { channel, len })
    }

    /// Where the application data is, counted from the first byte of the message.
    pub fn data(&self) -> Range<usize> {
        HEADER_LEN..HEADER_LEN + self.len
    }

    /// The header for application data of this length.
    pub fn header(channel: ChannelNumber, len: u16) -> [u8; HEADER_LEN] {
        let ([a, b], [c, d]) = (channel.0.to_be_bytes(), len.to_be_bytes());
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_parsed_with_and_without_padding() {
        let expected = ChannelData { channel: ChannelNumber(0x4001), len: 3 };
        assert_eq!(ChannelData::parse(b"\x40\x01\x00\x03abc"), Some(expected));
        assert_eq!(ChannelData::parse(b"\x40\x01\x00\x03abc\0"), Some(expected));
        assert_eq!(expected.data(), 4..7);
    }

    #[test]
    fn a_zero_length_message_is_valid() {
        assert_eq!(ChannelData::parse(b"\x40\x00\x00\x00").map(|data| data.len), Some(0));
    }

    #[test]
    fn a_message_shorter_than_it_claims_is_none() {
        assert_eq!(ChannelData::parse(b"\x40\x01\x00\x03ab"), None);
        assert_eq!(ChannelData::parse(b"\x40\x01\x00"), None);
    }

    #[test]
    fn numbers_outside_the_channel_space_are_none() {
        assert_eq!(ChannelData::parse(b"\x80\x01\x00\x00"), None);
        assert_eq!(ChannelData::parse(b"\x00\x01\x00\x00"), None);
        assert!(ChannelNumber::new(0x4FFF).is_some_and(ChannelNumber::is_allowed));
        assert!(!ChannelNumber::new(0x5000).is_some_and(ChannelNumber::is_allowed));
    }

    #[test]
    fn a_header_is_what_parse_reads() {
        let header = ChannelData::header(ChannelNumber(0x4ABC), 0);
        assert_eq!(ChannelData::parse(&header), Some(ChannelData { channel: ChannelNumber(0x4ABC), len: 0 }));
    }
}
