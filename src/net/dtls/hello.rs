//! The first flight of DTLS, without any state: ClientHello, cookie and HelloVerifyRequest (RFC 6347 section 4.2.1).

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use rustls::SignatureScheme;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::super::tls::TlsError;

/// Record: type, version, epoch, sequence number, length (RFC 6347 section 4.1).
const RECORD_HEADER_LEN: usize = 13;
/// Handshake message: type, length, sequence number, fragment offset and length (RFC 6347 section 4.2.2).
const MESSAGE_HEADER_LEN: usize = 12;
/// Version and random of a ClientHello.
const RANDOM_END: usize = 2 + 32;

const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const HELLO_VERIFY_REQUEST: u8 = 3;
/// RFC 6347 section 4.2.1: "DTLS 1.2 server implementations SHOULD use DTLS version 1.0 regardless of the version of TLS
/// that is expected to be negotiated."
const DTLS_1_0: [u8; 2] = [0xFE, 0xFF];

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_SIGNATURE_ALGORITHMS: u16 = 13;
/// Signature schemes that are looked at: all that are registered are fewer.
const SIGNATURE_SCHEMES_MAX: usize = 64;

/// Half a SHA-256: 128 bits are not guessed.
const COOKIE_LEN: usize = 16;
/// A cookie is good in the unit of its issue and in the next one: for 30 to 60 seconds. Clients come back within one round
/// trip, and with their last retransmission after about 30 s.
const COOKIE_UNIT_SECONDS: u64 = 30;
/// 48 bytes, which is less than the shortest ClientHello has.
pub const HELLO_VERIFY_REQUEST_LEN: usize = RECORD_HEADER_LEN + MESSAGE_HEADER_LEN + 3 + COOKIE_LEN;

/// Records that are heard of a datagram. Of the shortest messages that there are, with header, nonce and tag, a datagram of
/// 1500 bytes has 26 to 36, and one of 64 KiB more than a thousand, each of which is decrypted and answered in one turn.
pub const RECORDS_MAX: usize = 40;

/// Whether a datagram at a port of STUN is DTLS, by its first byte (RFC 7983 section 7).
pub fn is_dtls(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(20..=63))
}

/// The records of a datagram that are heard: whole ones, and no more of them than [`RECORDS_MAX`].
pub fn records(datagram: &[u8]) -> &[u8] {
    let mut end = 0;
    for _ in 0..RECORDS_MAX {
        let Some((header, rest)) = datagram[end..].split_first_chunk::<RECORD_HEADER_LEN>() else { break };
        let len = usize::from(u16::from_be_bytes([header[11], header[12]]));
        if rest.len() < len {
            break;
        }
        end += RECORD_HEADER_LEN + len;
    }
    &datagram[..end]
}

/// What a datagram of DTLS begins with.
#[derive(Debug)]
pub enum Opening<'a> {
    /// A ClientHello in the clear, or its first fragment.
    Hello(ClientHello<'a>),
    /// A ClientHello in the clear that is malformed, or whose first fragment ends before the cookie does.
    BadHello,
    /// Another message in the clear, or a later fragment.
    Clear,
    /// An encrypted record.
    Encrypted,
    /// No record.
    Garbage,
}

/// A ClientHello up to its cookie at least (RFC 6347 section 4.2.1, RFC 5246 section 7.4.1.2).
///
/// What is behind the cookie may be in later fragments: nothing is remembered to put them together, and nothing but the
/// choice of a certificate needs it.
#[derive(Debug)]
pub struct ClientHello<'a> {
    record: &'a [u8],
    /// Version, random and session id, which a client repeats with its cookie.
    before_cookie: &'a [u8],
    cookie: &'a [u8],
    /// Empty when they are not here.
    extensions: &'a [u8],
    is_whole: bool,
    message_sequence: u16,
}

impl<'a> Opening<'a> {
    /// Looks at the first record of a datagram.
    pub fn of(datagram: &'a [u8]) -> Self {
        let Some((header, rest)) = datagram.split_first_chunk::<RECORD_HEADER_LEN>() else { return Self::Garbage };
        let len = usize::from(u16::from_be_bytes([header[11], header[12]]));
        if header[1] != 0xFE || rest.len() < len {
            return Self::Garbage;
        }
        match (u16::from_be_bytes([header[3], header[4]]), header[0], rest.first()) {
            (1.., ..) => Self::Encrypted,
            (0, CONTENT_HANDSHAKE, Some(&CLIENT_HELLO)) if !is_later_fragment(rest) => {
                ClientHello::parse(&datagram[..RECORD_HEADER_LEN + len]).map_or(Self::BadHello, Self::Hello)
            }
            (0, ..) => Self::Clear,
        }
    }
}

impl<'a> ClientHello<'a> {
    fn parse(record: &'a [u8]) -> Option<Self> {
        let message = &record[RECORD_HEADER_LEN..];
        let (header, body) = message.split_first_chunk::<MESSAGE_HEADER_LEN>()?;
        let number = |at: usize| u32::from_be_bytes([0, header[at], header[at + 1], header[at + 2]]) as usize;
        let (len, fragment_len) = (number(1), number(9));
        if fragment_len > len || body.len() < fragment_len {
            return None;
        }
        let body = &body[..fragment_len];
        let (_, rest) = body.split_at_checked(RANDOM_END)?;
        let (_session_id, rest) = take_8(rest)?;
        let before_cookie = &body[..body.len() - rest.len()];
        let (cookie, rest) = take_8(rest)?;
        let extensions = extensions(rest).unwrap_or_default();
        let message_sequence = u16::from_be_bytes([header[4], header[5]]);
        Some(Self { record, before_cookie, cookie, extensions, is_whole: fragment_len == len, message_sequence })
    }

    /// Whether everything is here, and not in fragments to come.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The client's random, which tells its attempts apart.
    pub fn random(&self) -> [u8; 32] {
        let mut random = [0; 32];
        random.copy_from_slice(&self.before_cookie[2..RANDOM_END]);
        random
    }

    /// The cookie that the client brings back; empty at first.
    pub fn cookie(&self) -> &'a [u8] {
        self.cookie
    }

    /// The name that the client asks for (RFC 6066 section 3).
    pub fn server_name(&self) -> Option<&'a str> {
        let (list, _) = take_16(self.extension(EXTENSION_SERVER_NAME)?)?;
        let (kind, rest) = list.split_first()?;
        let (name, _) = take_16(rest)?;
        (*kind == 0).then(|| str::from_utf8(name).ok())?
    }

    /// The signatures that the client can verify (RFC 5246 section 7.4.1.4.1).
    pub fn signature_schemes(&self) -> Vec<SignatureScheme> {
        let list = self.extension(EXTENSION_SIGNATURE_ALGORITHMS).and_then(take_16).map_or(&[][..], |(list, _)| list);
        let pairs = list.as_chunks::<2>().0.iter().take(SIGNATURE_SCHEMES_MAX);
        pairs.map(|pair| SignatureScheme::from(u16::from_be_bytes(*pair))).collect()
    }

    fn extension(&self, wanted: u16) -> Option<&'a [u8]> {
        let mut rest = self.extensions;
        loop {
            let (kind, behind) = rest.split_first_chunk::<2>()?;
            let (value, next) = take_16(behind)?;
            if u16::from_be_bytes(*kind) == wanted {
                return Some(value);
            }
            rest = next;
        }
    }

    /// A ClientHello as the client may have sent it first, without a cookie, and in one piece.
    ///
    /// For a library that is to go on from there, although nobody has kept what the client did send. The handshake's
    /// hashes begin behind it (RFC 6347 section 4.2.1: "the initial ClientHello and HelloVerifyRequest are not included").
    pub fn without_cookie(&self) -> Vec<u8> {
        // No cookie, one cipher suite, no compression.
        let body = [self.before_cookie, &[0, 0, 2, 0xC0, 0x2F, 1, 0]].concat();
        let record = [&self.record[..3], &[0; 8], &((MESSAGE_HEADER_LEN + body.len()) as u16).to_be_bytes()].concat();
        let [_, len @ ..] = (body.len() as u32).to_be_bytes();
        [&record[..], &[CLIENT_HELLO], &len, &[0; 5], &len, &body].concat()
    }
}

/// Whether a handshake message continues one that has begun in another record.
fn is_later_fragment(message: &[u8]) -> bool {
    message.get(6..9).is_some_and(|offset| offset != [0; 3])
}

/// The extensions, from what is behind the cookie; `None` when they are not all there.
fn extensions(behind_cookie: &[u8]) -> Option<&[u8]> {
    let (_cipher_suites, rest) = take_16(behind_cookie)?;
    let (_compression, rest) = take_8(rest)?;
    Some(take_16(rest)?.0)
}

/// A vector with a length of one byte, and what is behind it.
fn take_8(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*len))
}

/// A vector with a length of two bytes, and what is behind it.
fn take_16(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

/// Makes and verifies cookies: a MAC over the client's address and its parameters, with a key of this process.
#[derive(Clone)]
pub struct Cookies {
    key: [u8; 32],
}

/// The key is left out.
impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cookies").finish_non_exhaustive()
    }
}

/// Between whom a datagram goes: the client's address, and this server's.
pub type Path = (SocketAddr, SocketAddr);

impl Cookies {
    /// Draws a key.
    pub fn new() -> Result<Self, TlsError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| TlsError::Dtls { reason: error.to_string() })?;
        Ok(Self { key })
    }

    /// Whether a client has brought back what it was sent: it is where it claims to be.
    ///
    /// RFC 6347 section 4.2.2 numbers the messages of a handshake: with the cookie comes the second one.
    pub fn verify(&self, hello: &ClientHello<'_>, path: Path, unix_seconds: u64) -> bool {
        let unit = unix_seconds / COOKIE_UNIT_SECONDS;
        let is_of = |unit| bool::from(self.cookie(hello, path, unit).ct_eq(hello.cookie));
        hello.message_sequence == 1 && (is_of(unit) || is_of(unit.wrapping_sub(1)))
    }

    /// The HelloVerifyRequest that answers a ClientHello.
    pub fn hello_verify_request(
        &self,
        hello: &ClientHello<'_>,
        path: Path,
        unix_seconds: u64,
    ) -> [u8; HELLO_VERIFY_REQUEST_LEN] {
        let cookie = self.cookie(hello, path, unix_seconds / COOKIE_UNIT_SECONDS);
        let body_len = (3 + COOKIE_LEN) as u8;
        let mut answer = [0; HELLO_VERIFY_REQUEST_LEN];
        answer[0] = CONTENT_HANDSHAKE;
        answer[1..3].copy_from_slice(&DTLS_1_0);
        // RFC 6347 section 4.2.1: "the server MUST use the record sequence number in the ClientHello as the record
        // sequence number in the HelloVerifyRequest."
        answer[5..11].copy_from_slice(&hello.record[5..11]);
        answer[12] = MESSAGE_HEADER_LEN as u8 + body_len;
        answer[13] = HELLO_VERIFY_REQUEST;
        answer[16] = body_len;
        answer[24] = body_len;
        answer[25..27].copy_from_slice(&DTLS_1_0);
        answer[27] = COOKIE_LEN as u8;
        answer[28..].copy_from_slice(&cookie);
        answer
    }

    /// RFC 6347 section 4.2.1: "Cookie = HMAC(Secret, Client-IP, Client-Parameters)".
    fn cookie(&self, hello: &ClientHello<'_>, (client, server): Path, unit: u64) -> [u8; COOKIE_LEN] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.key).expect("any length is a key");
        for address in [client, server] {
            match address.ip() {
                IpAddr::V4(ip) => mac.update(&ip.to_ipv6_mapped().octets()),
                IpAddr::V6(ip) => mac.update(&ip.octets()),
            }
            mac.update(&address.port().to_be_bytes());
        }
        mac.update(&unit.to_be_bytes());
        mac.update(hello.before_cookie);
        let mut cookie = [0; COOKIE_LEN];
        cookie.copy_from_slice(&mac.finalize().into_bytes()[..COOKIE_LEN]);
        cookie
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    /// A ClientHello with a cookie, and extensions behind it.
    pub(in crate::net) fn client_hello(sequence: u16, cookie: &[u8], extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![0xFE, 0xFD];
        body.extend([7; 32]);
        body.push(0);
        body.push(cookie.len() as u8);
        body.extend(cookie);
        body.extend([0, 2, 0xC0, 0x2B, 1, 0]);
        if !extensions.is_empty() {
            body.extend((extensions.len() as u16).to_be_bytes());
            body.extend(extensions);
        }
        message(sequence, 0, body.len(), &body)
    }

    fn message(sequence: u16, offset: u8, len: usize, fragment: &[u8]) -> Vec<u8> {
        let mut record = vec![22, 0xFE, 0xFF, 0, 0, 0, 0, 0, 0, 0, sequence as u8];
        record.extend(((12 + fragment.len()) as u16).to_be_bytes());
        record.extend([1, 0, 0, len as u8, 0, sequence as u8, 0, 0, offset, 0, 0, fragment.len() as u8]);
        record.extend(fragment);
        record
    }

    #[test]
    fn of_a_datagram_whole_records_are_heard_and_no_more_than_fit_into_one() {
        let one = message(1, 0, 20, &[0; 20]);
        let many = one.repeat(RECORDS_MAX);
        assert_eq!(records(&many), many);
        assert_eq!(records(&one.repeat(1000)), many);
        for len in 0..one.len() {
            assert_eq!(records(&[&one[..], &one[..len]].concat()), one, "{len}");
            assert!(records(&one[..len]).is_empty());
        }
    }

    fn hello(bytes: &[u8]) -> ClientHello<'_> {
        match Opening::of(bytes) {
            Opening::Hello(hello) => hello,
            Opening::BadHello | Opening::Clear | Opening::Encrypted | Opening::Garbage => panic!("no ClientHello"),
        }
    }

    fn path(client: &str) -> Path {
        (client.parse().unwrap(), "192.0.2.1:5349".parse().unwrap())
    }

    fn offered(cookies: &Cookies, path: Path, now: u64) -> Vec<u8> {
        cookies.hello_verify_request(&hello(&client_hello(0, b"", &[])), path, now)[28..].to_vec()
    }

    #[test]
    fn stun_and_dtls_are_told_apart_by_the_first_byte() {
        // RFC 7983 section 7, figure 3.
        for first in 0..=255_u8 {
            assert_eq!(is_dtls(&[first]), (20..=63).contains(&first), "{first}");
        }
        assert!(!is_dtls(&[]));
    }

    #[test]
    fn a_client_that_brings_its_cookie_back_is_verified() {
        let (cookies, path) = (Cookies::new().unwrap(), path("198.51.100.1:1000"));
        let cookie = offered(&cookies, path, NOW);
        let verifies = |at: Path, now| cookies.verify(&hello(&client_hello(1, &cookie, &[])), at, now);
        assert!(verifies(path, NOW) && verifies(path, NOW + COOKIE_UNIT_SECONDS));
        assert!(!verifies(path, NOW + 2 * COOKIE_UNIT_SECONDS), "cookies grow old");
        for stranger in ["198.51.100.2:1000", "198.51.100.1:1001", "[2001:db8::1]:1000"] {
            assert!(!verifies(self::path(stranger), NOW), "{stranger}");
        }
        assert!(!verifies((path.0, "192.0.2.2:5349".parse().unwrap()), NOW), "another address of the server");
        assert!(!Cookies::new().unwrap().verify(&hello(&client_hello(1, &cookie, &[])), path, NOW), "another key");
        assert!(!cookies.verify(&hello(&client_hello(0, &cookie, &[])), path, NOW), "no second message");
        for wrong in [&cookie[..15], &[], &[0; 16], &[0; 100]] {
            assert!(!cookies.verify(&hello(&client_hello(1, wrong, &[])), path, NOW));
        }
        let mut other = client_hello(1, &cookie, &[]);
        other[30] ^= 1;
        assert!(!cookies.verify(&hello(&other), path, NOW), "another random");
    }

    #[test]
    fn the_answer_is_shorter_than_any_client_hello() {
        // The shortest: no session id, one cipher suite, no extensions.
        let shortest = client_hello(0, b"", &[]);
        assert!(HELLO_VERIFY_REQUEST_LEN < shortest.len(), "{} bytes", shortest.len());
        let cookies = Cookies::new().unwrap();
        let mut with_number = shortest;
        with_number[10] = 9;
        let answer = cookies.hello_verify_request(&hello(&with_number), path("198.51.100.1:1"), NOW);
        let expected = [22, 0xFE, 0xFF, 0, 0, 0, 0, 0, 0, 0, 9, 0, 31, 3, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 19];
        assert_eq!(answer[..25], expected);
        assert_eq!(answer[25..28], [0xFE, 0xFF, 16]);
    }

    #[test]
    fn what_is_no_whole_client_hello_is_told_apart() {
        let whole = client_hello(0, b"", &[0, 23, 0, 0]);
        assert!(matches!(Opening::of(&whole), Opening::Hello(_)));
        for len in 0..whole.len() {
            assert!(matches!(Opening::of(&whole[..len]), Opening::Garbage), "{len} bytes");
        }
        for end in 25..whole.len() {
            // The first fragment is one from the end of the cookie on.
            let cut = message(0, 0, whole.len() - 25, &whole[25..end]);
            if end < 25 + 36 {
                assert!(matches!(Opening::of(&cut), Opening::BadHello), "{end} bytes");
            } else {
                assert!(!hello(&cut).is_whole(), "{end} bytes");
            }
        }
        assert!(hello(&whole).is_whole());
        assert!(matches!(Opening::of(&message(0, 4, 39, &whole[25..60])), Opening::Clear), "a later fragment");
        let mut longer_than_its_message = whole.clone();
        longer_than_its_message[16] -= 1;
        assert!(matches!(Opening::of(&longer_than_its_message), Opening::BadHello));
        let mut encrypted = whole.clone();
        encrypted[4] = 1;
        assert!(matches!(Opening::of(&encrypted), Opening::Encrypted));
        let mut key_exchange = whole.clone();
        key_exchange[13] = 16;
        assert!(matches!(Opening::of(&key_exchange), Opening::Clear));
        let mut tls = whole;
        tls[1] = 3;
        assert!(matches!(Opening::of(&tls), Opening::Garbage));
    }

    #[test]
    fn a_hello_tells_the_name_and_the_signatures_it_asks_for() {
        let name = b"turn.example.org";
        let mut extensions = vec![0, 23, 0, 0, 0, 0, 0, 21, 0, 19, 0, 0, 16];
        extensions.extend(name);
        extensions.extend([0, 13, 0, 6, 0, 4, 4, 3, 8, 4]);
        let bytes = client_hello(0, b"", &extensions);
        let hello = hello(&bytes);
        assert_eq!(hello.server_name(), Some("turn.example.org"));
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];
        assert_eq!(hello.signature_schemes(), schemes);
        let bytes = client_hello(0, b"", &[0, 0, 0, 9, 0, 1]);
        assert_eq!(self::hello(&bytes).server_name(), None, "a name that ends too early");
    }

    #[test]
    fn without_its_cookie_it_is_a_first_hello_with_the_same_random() {
        let second = client_hello(1, &[9; 16], &[0, 23, 0, 0]);
        let first = hello(&second).without_cookie();
        let parsed = hello(&first);
        assert_eq!((parsed.cookie(), parsed.random(), parsed.message_sequence), (&[][..], [7; 32], 0));
        assert!(parsed.is_whole());
    }
}
