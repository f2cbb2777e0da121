//! The PROXY protocol: what a preamble says does not depend on how its bytes arrive, and nobody impossible is
//! announced, on a stream or in front of a datagram.

use ferryd::net::proxy::{Announced, Preamble, parse_datagram};

/// The outcome of a preamble, and how many bytes it took.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Announced(Announced, usize),
    Malformed,
    WantsMore,
}

pub fn run(bytes: &[u8]) {
    datagram(bytes);
    let (sizes, bytes) = bytes.split_at(bytes.len().min(4));
    let whole = take(bytes, &[bytes.len()]);
    assert_eq!(take(bytes, &[1]), whole, "byte by byte");
    let sizes: Vec<_> = sizes.iter().map(|size| 1 + usize::from(*size)).collect();
    if !sizes.is_empty() {
        assert_eq!(take(bytes, &sizes), whole, "in pieces of {sizes:?}");
    }
    match whole {
        Outcome::Announced(announced, len) => {
            assert!(bytes[..len].starts_with(b"PROXY ") || bytes[..len].starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
            if let Announced::Client(client) = announced {
                let ip = client.ip();
                assert!(client.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip == ip.to_canonical());
            }
            // What follows is the client's.
            let rest = [&bytes[..len], b"\x00\x01 and more"].concat();
            assert_eq!(take(&rest, &[rest.len()]), Outcome::Announced(announced, len));
        }
        Outcome::Malformed => {}
        Outcome::WantsMore => assert!(bytes.len() < 16 + 4096, "at most that much is kept"),
    }
}

/// A header of a datagram is whole, names nobody impossible, and says the same whatever is behind it.
fn datagram(bytes: &[u8]) {
    let Ok((len, ends)) = parse_datagram(bytes) else { return };
    assert!((16..=bytes.len().min(16 + 4096)).contains(&len) && bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
    assert_eq!(parse_datagram(&bytes[..len]), Ok((len, ends)));
    assert!(parse_datagram(&bytes[..len - 1]).is_err(), "what is cut short is not believed");
    if let Some(ends) = ends {
        let ip = ends.client.ip();
        assert!(ends.client.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip == ip.to_canonical());
        assert_eq!(ends.server.ip(), ends.server.ip().to_canonical());
    }
}

fn take(bytes: &[u8], sizes: &[usize]) -> Outcome {
    let (mut preamble, mut taken, mut rest) = (Preamble::default(), 0, bytes);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            return Outcome::WantsMore;
        }
        let (piece, more) = rest.split_at((*size).clamp(1, rest.len()));
        match preamble.take(piece) {
            Err(_) => return Outcome::Malformed,
            Ok((len, announced)) => {
                assert!((1..=piece.len()).contains(&len));
                taken += len;
                if let Some(announced) = announced {
                    return Outcome::Announced(announced, taken);
                }
                assert_eq!(len, piece.len(), "all that has come belongs to it");
            }
        }
        rest = more;
    }
    Outcome::WantsMore
}
