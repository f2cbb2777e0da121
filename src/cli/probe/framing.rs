//! Messages on a byte stream: STUN by its length, ChannelData padded to four bytes (RFC 8656 section 12.5).

use std::io;

/// Takes the next message off the front of what was received; `None` until it is whole.
pub(super) fn take_message(received: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let Some(header) = received.first_chunk::<4>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let (message, on_wire) = match header[0] {
        0x00..=0x3f => (20 + length, 20 + length),
        0x40..=0x7f => (4 + length, padded(4 + length)),
        0x80..=0xff => return Err(io::Error::new(io::ErrorKind::InvalidData, "neither STUN nor ChannelData")),
    };
    if received.len() < on_wire {
        return Ok(None);
    }
    let mut taken: Vec<u8> = received.drain(..on_wire).collect();
    taken.truncate(message);
    Ok(Some(taken))
}

/// The message as it goes onto a stream.
pub(super) fn on_stream(message: &[u8]) -> Vec<u8> {
    let mut bytes = message.to_vec();
    bytes.resize(padded(message.len()), 0);
    bytes
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stun(length: u8) -> Vec<u8> {
        let mut message = vec![0x01, 0x01, 0, length];
        message.resize(20 + usize::from(length), 7);
        message
    }

    #[test]
    fn messages_come_out_as_they_went_in_whatever_the_segments() {
        let channel_data = vec![0x40, 0x01, 0x00, 0x05, 1, 2, 3, 4, 5];
        let sent = [stun(8), channel_data, stun(0)];
        let bytes: Vec<u8> = sent.iter().flat_map(|message| on_stream(message)).collect();
        for segment in [1, 3, 7, bytes.len()] {
            let (mut received, mut taken) = (Vec::new(), Vec::new());
            for part in bytes.chunks(segment) {
                received.extend_from_slice(part);
                while let Some(message) = take_message(&mut received).unwrap() {
                    taken.push(message);
                }
            }
            assert_eq!(taken, sent, "segments of {segment}");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn another_protocol_is_told() {
        assert!(take_message(&mut vec![0x80, 0, 0, 0]).is_err());
    }
}
