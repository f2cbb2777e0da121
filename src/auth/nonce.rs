//! Nonces that need no memory (RFC 8489 section 9.2).
//!
//! ```text
//! "obMatJos2" | base64(24 security feature bits) | base64(issue time, 2 bytes | MAC, 6 bytes)
//!      9      |                4                 |                   11
//! ```
//!
//! The MAC covers the client's address, port and transport, the feature bits and the full issue time, of which the nonce
//! carries the low 16 bits. So any worker, any node with the same key and the same daemon after a restart accepts it,
//! nothing is kept for a source that has not proved its return path, and a bid-down of the feature bits is a nonce that
//! is not ours. 48 bits of MAC cannot be guessed over a network; 24 characters keep the challenge to the smallest
//! possible request within twice its size.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::settings::Secret;
use crate::address::{FiveTuple, Transport};

/// Length of every nonce in bytes.
pub const NONCE_LEN: usize = COOKIE.len() + FEATURES_LEN + PROOF_LEN;

/// RFC 8489 section 9.2: the nonce cookie begins with these characters.
const COOKIE: &[u8; 9] = b"obMatJos2";
const FEATURES_LEN: usize = 4;
const PROOF_LEN: usize = 11;
const MAC_LEN: usize = 6;
/// Resolution of the issue time. 2^16 units are 12 days, far beyond any lifetime.
const UNIT_SECONDS: u64 = 16;
/// A node whose clock runs ahead of ours may have issued a nonce in our future.
const SKEW_UNITS: u64 = 300 / UNIT_SECONDS;

/// The STUN Security Features of RFC 8489 section 18.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Bit 0: PASSWORD-ALGORITHMS was offered along with the nonce.
    pub password_algorithms: bool,
    /// Bit 1: USERHASH is accepted in place of USERNAME.
    pub username_anonymity: bool,
}

impl Features {
    fn bits(self) -> [u8; 3] {
        [u8::from(self.password_algorithms) << 7 | u8::from(self.username_anonymity) << 6, 0, 0]
    }

    /// What a NONCE says of itself, whether it is one of ours or not.
    pub fn of(nonce: &[u8]) -> Self {
        let Some(text) = nonce.strip_prefix(COOKIE).and_then(|rest| rest.get(..FEATURES_LEN)) else {
            return Self::default();
        };
        let mut bits = [0; 3];
        match STANDARD.decode_slice(text, &mut bits) {
            Ok(3) => Self { password_algorithms: bits[0] & 0x80 != 0, username_anonymity: bits[0] & 0x40 != 0 },
            Ok(_) | Err(_) => Self::default(),
        }
    }
}

/// Makes and checks nonces.
#[derive(Clone, Debug)]
pub struct Nonces {
    key: Secret,
    lifetime_units: u64,
}

impl Nonces {
    pub fn new(key: Secret, lifetime: Duration) -> Self {
        Self { key, lifetime_units: (lifetime.as_secs() / UNIT_SECONDS).max(1) }
    }

    /// A nonce for this client at this time, in seconds since the Unix epoch.
    pub fn issue(&self, client: &FiveTuple, features: Features, unix_seconds: u64) -> [u8; NONCE_LEN] {
        let issued = unix_seconds / UNIT_SECONDS;
        let mut proof = [0; 2 + MAC_LEN];
        proof[..2].copy_from_slice(&(issued as u16).to_be_bytes());
        proof[2..].copy_from_slice(&self.mac(client, features.bits(), issued));
        let mut nonce = [0; NONCE_LEN];
        nonce[..COOKIE.len()].copy_from_slice(COOKIE);
        let text = &mut nonce[COOKIE.len()..];
        let features_len = STANDARD.encode_slice(features.bits(), &mut text[..FEATURES_LEN]);
        let proof_len = STANDARD_NO_PAD.encode_slice(proof, &mut text[FEATURES_LEN..]);
        debug_assert_eq!((features_len, proof_len), (Ok(FEATURES_LEN), Ok(PROOF_LEN)));
        nonce
    }

    /// Whether the nonce was issued to this client and has not expired; up to a unit early, and never late.
    pub fn is_valid(&self, nonce: &[u8], client: &FiveTuple, unix_seconds: u64) -> bool {
        self.age(nonce, client, unix_seconds).is_some_and(|age| age < self.lifetime_units + SKEW_UNITS)
    }

    /// Whether the nonce was issued to this client within the last 12 days: it has heard the server.
    pub fn is_authentic(&self, nonce: &[u8], client: &FiveTuple, unix_seconds: u64) -> bool {
        self.age(nonce, client, unix_seconds).is_some()
    }

    /// How old a nonce of this client is, in units, counted from the latest time that another node's clock may show.
    fn age(&self, nonce: &[u8], client: &FiveTuple, unix_seconds: u64) -> Option<u64> {
        let (bits, issued_low, mac) = split(nonce)?;
        let latest = unix_seconds / UNIT_SECONDS + SKEW_UNITS;
        let age = u64::from((latest as u16).wrapping_sub(issued_low));
        let authentic: bool = self.mac(client, bits, latest.checked_sub(age)?).ct_eq(&mac).into();
        authentic.then_some(age)
    }

    fn mac(&self, client: &FiveTuple, features: [u8; 3], issued: u64) -> [u8; MAC_LEN] {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.key.expose()).expect("any length is a key");
        match client.client.ip() {
            IpAddr::V4(ip) => mac.update(&ip.to_ipv6_mapped().octets()),
            IpAddr::V6(ip) => mac.update(&ip.octets()),
        }
        mac.update(&client.client.port().to_be_bytes());
        mac.update(&[transport_code(client.transport)]);
        mac.update(&features);
        mac.update(&issued.to_be_bytes());
        let mut truncated = [0; MAC_LEN];
        truncated.copy_from_slice(&mac.finalize().into_bytes()[..MAC_LEN]);
        truncated
    }
}

/// Part of what nodes agree on: the codes never change.
fn transport_code(transport: Transport) -> u8 {
    match transport {
        Transport::Udp => 1,
        Transport::Tcp => 2,
        Transport::Tls => 3,
        Transport::Dtls => 4,
    }
}

fn split(nonce: &[u8]) -> Option<([u8; 3], u16, [u8; MAC_LEN])> {
    let (features, proof) = nonce.strip_prefix(COOKIE)?.split_at_checked(FEATURES_LEN)?;
    let (mut bits, mut bytes) = ([0; 3], [0; 2 + MAC_LEN]);
    if proof.len() != PROOF_LEN
        || STANDARD.decode_slice(features, &mut bits) != Ok(bits.len())
        || STANDARD_NO_PAD.decode_slice(proof, &mut bytes) != Ok(bytes.len())
    {
        return None;
    }
    let [high, low, mac @ ..] = bytes;
    Some((bits, u16::from_be_bytes([high, low]), mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddr, ServerAddr};

    const NOW: u64 = 1_800_000_000;

    fn nonces() -> Nonces {
        Nonces::new(Secret::new([7; 32]), Duration::from_secs(3600))
    }

    fn client(address: &str, transport: Transport) -> FiveTuple {
        FiveTuple {
            transport,
            client: ClientAddr::new(address.parse().unwrap()),
            server: ServerAddr::new("192.0.2.1:3478".parse().unwrap()),
        }
    }

    #[test]
    fn a_nonce_is_valid_for_its_client_until_it_expires() {
        let (nonces, client) = (nonces(), client("198.51.100.1:1000", Transport::Udp));
        let nonce = nonces.issue(&client, Features::default(), NOW);
        for age in [0, 1, 600, 3599] {
            assert!(nonces.is_valid(&nonce, &client, NOW + age), "after {age} s");
        }
        for age in [3600, 86_400, (1 << 16) * UNIT_SECONDS, (1 << 20) * UNIT_SECONDS] {
            assert!(!nonces.is_valid(&nonce, &client, NOW + age), "after {age} s");
        }
    }

    #[test]
    fn a_nonce_from_a_node_whose_clock_is_ahead_is_valid() {
        let (nonces, client) = (nonces(), client("198.51.100.1:1000", Transport::Udp));
        let nonce = nonces.issue(&client, Features::default(), NOW + 60);
        assert!(nonces.is_valid(&nonce, &client, NOW));
        assert!(!nonces.is_valid(&nonces.issue(&client, Features::default(), NOW + 3600), &client, NOW));
    }

    #[test]
    fn a_nonce_is_bound_to_address_port_transport_and_key() {
        let nonces = nonces();
        let nonce = nonces.issue(&client("198.51.100.1:1000", Transport::Udp), Features::default(), NOW);
        for other in [
            client("198.51.100.2:1000", Transport::Udp),
            client("198.51.100.1:1001", Transport::Udp),
            client("198.51.100.1:1000", Transport::Tcp),
        ] {
            assert!(!nonces.is_valid(&nonce, &other, NOW));
        }
        let stranger = Nonces::new(Secret::new([8; 32]), Duration::from_secs(3600));
        assert!(!stranger.is_valid(&nonce, &client("198.51.100.1:1000", Transport::Udp), NOW));
    }

    #[test]
    fn changed_feature_bits_are_not_valid() {
        let (nonces, client) = (nonces(), client("[2001:db8::1]:1000", Transport::Tls));
        let features = Features { password_algorithms: true, username_anonymity: false };
        let mut nonce = nonces.issue(&client, features, NOW);
        assert_eq!(Features::of(&nonce), features);
        assert!(nonces.is_valid(&nonce, &client, NOW));
        nonce[COOKIE.len()..COOKIE.len() + FEATURES_LEN].copy_from_slice(b"AAAA");
        assert_eq!(Features::of(&nonce), Features::default());
        assert!(!nonces.is_valid(&nonce, &client, NOW));
    }

    #[test]
    fn garbage_is_not_valid() {
        let (nonces, client) = (nonces(), client("198.51.100.1:1000", Transport::Udp));
        for garbage in
            [&b""[..], b"obMatJos2", b"obMatJos2gAAA", b"obMatJos2gAAA???????????", &[0xFF; 24], &[b'A'; 128]]
        {
            assert!(!nonces.is_valid(garbage, &client, NOW));
        }
    }
}
