//! Messages on a stream: where one ends does not depend on how the bytes arrive.

use ferryd::stun::framing::{FRAME_LEN_MAX, FramingError, frame_len};

/// The messages of a stream, until bytes are missing or nobody knows where the next one begins.
#[derive(Debug, PartialEq, Eq)]
struct Frames {
    lengths: Vec<usize>,
    error: Option<FramingError>,
}

pub fn run(bytes: &[u8]) {
    let (sizes, bytes) = bytes.split_at(bytes.len().min(8));
    let whole = frames(bytes, &[bytes.len()]);
    assert_eq!(frames(bytes, &[1]), whole, "byte by byte");
    let sizes: Vec<_> = sizes.iter().map(|size| 1 + usize::from(*size)).collect();
    if !sizes.is_empty() {
        assert_eq!(frames(bytes, &sizes), whole, "in pieces of {sizes:?}");
    }
    // What has been told of a message does not change with what comes behind it.
    let mut told = Ok(None);
    for end in 0..=bytes.len().min(64) {
        let now = frame_len(&bytes[..end]);
        assert!(told == Ok(None) || told == now, "{told:?} became {now:?}");
        told = now;
    }
}

/// Cuts a stream that arrives in pieces of these sizes, over and over.
fn frames(bytes: &[u8], sizes: &[usize]) -> Frames {
    let (mut buffer, mut found, mut rest) = (Vec::new(), Frames { lengths: Vec::new(), error: None }, bytes);
    for size in sizes.iter().cycle() {
        let (piece, more) = rest.split_at((*size).clamp(1, rest.len().max(1)).min(rest.len()));
        buffer.extend_from_slice(piece);
        rest = more;
        loop {
            match frame_len(&buffer) {
                Ok(Some(len)) if len <= buffer.len() => {
                    assert!((4..=FRAME_LEN_MAX.max(65_540)).contains(&len) && len % 4 == 0);
                    found.lengths.push(len);
                    buffer.drain(..len);
                }
                Ok(_) => break,
                Err(error) => {
                    found.error = Some(error);
                    return found;
                }
            }
        }
        if rest.is_empty() {
            break;
        }
    }
    found
}
