//! Messages on a byte stream: STUN and ChannelData one behind the other (RFC 8489 section 6.2.2, RFC 8656 section 12.5).

use super::header::{HEADER_LEN, MAGIC_COOKIE};

/// The longest message that a stream can carry: a STUN header and a length of 65,532 bytes.
pub const FRAME_LEN_MAX: usize = HEADER_LEN + 65_532;

/// Why a stream cannot be read any further: where the next message begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    /// The first byte belongs to neither STUN nor ChannelData.
    UnknownProtocol,
    /// A STUN message without the magic cookie.
    NoMagicCookie,
    /// A STUN length that is not a multiple of four.
    OddLength,
}

/// The length of the message at the beginning of `bytes`, padding included; `None` when more bytes are needed to tell.
///
/// The message is complete when `bytes` is at least that long. What makes a message invalid is found as soon as the
/// bytes that say so are there, so that a stream of another protocol is closed at its first bytes.
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, FramingError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    match first {
        0x00..=0x3F => stun_len(bytes),
        0x40..=0x7F => Ok(length_field(bytes).map(|len| (super::channel_data::HEADER_LEN + len).next_multiple_of(4))),
        0x80..=0xFF => Err(FramingError::UnknownProtocol),
    }
}

fn stun_len(bytes: &[u8]) -> Result<Option<usize>, FramingError> {
    let Some(len) = length_field(bytes) else { return Ok(None) };
    if len % 4 != 0 {
        return Err(FramingError::OddLength);
    }
    let cookie = MAGIC_COOKIE.to_be_bytes();
    let seen = bytes[4..].iter().zip(cookie);
    if seen.clone().any(|(byte, expected)| *byte != expected) {
        return Err(FramingError::NoMagicCookie);
    }
    Ok((seen.count() == cookie.len()).then_some(HEADER_LEN + len))
}

fn length_field(bytes: &[u8]) -> Option<usize> {
    let [_, _, high, low, ..] = *bytes else { return None };
    Some(usize::from(u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stun_message_is_as_long_as_its_header_says() {
        let header = b"\x00\x01\x00\x08\x21\x12\xa4\x42";
        assert_eq!(frame_len(header), Ok(Some(28)));
        for short in 0..8 {
            assert_eq!(frame_len(&header[..short]), Ok(None), "{short} bytes");
        }
    }

    #[test]
    fn channel_data_is_padded_to_four() {
        assert_eq!(frame_len(b"\x40\x00\x00\x00"), Ok(Some(4)));
        assert_eq!(frame_len(b"\x40\x00\x00\x01"), Ok(Some(8)));
        assert_eq!(frame_len(b"\x40\x00\xff\xff"), Ok(Some(65_540)));
        assert_eq!(frame_len(b"\x40\x00\x00"), Ok(None));
    }

    #[test]
    fn another_protocol_is_found_at_its_first_bytes() {
        assert_eq!(frame_len(b"\x80"), Err(FramingError::UnknownProtocol));
        assert_eq!(frame_len(b"\x00\x01\x00\x08\x21\x13"), Err(FramingError::NoMagicCookie));
        assert_eq!(frame_len(b"\x00\x01\x00\x07"), Err(FramingError::OddLength));
    }
}
