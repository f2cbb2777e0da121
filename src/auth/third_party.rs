//! Self-contained access tokens of an authorization server (RFC 7635).
//!
//! ```text
//! nonce_length (2) | nonce (12) | encrypted: key_length (2) | mac_key | timestamp (8) | lifetime (4) | tag (16)
//! ```

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::aead::{AeadKey, NONCE_LEN};
use super::settings::{ThirdParty, TokenKey};
use crate::stun::integrity::IntegrityKey;

/// RFC 7635 section 7: "The RECOMMENDED value for the allowed Delta is 5 seconds."
const DELTA_SECONDS: u64 = 5;

/// The authorization servers that are believed.
#[derive(Debug)]
pub(super) struct Authorities {
    server_name: String,
    keys: HashMap<String, Key>,
}

#[derive(Debug)]
struct Key {
    aead: AeadKey,
    /// Seconds since the Unix epoch.
    not_before: u64,
    ends_at: Option<u64>,
}

/// What a token that is authentic and in time says.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) mac_key: IntegrityKey,
    /// When the token ends, in seconds since the Unix epoch.
    pub(super) ends_at: u64,
}

impl Authorities {
    pub(super) fn new(settings: &ThirdParty) -> Self {
        let key = |key: &TokenKey| {
            let aead = AeadKey::new(key.algorithm, key.key.expose())?;
            let ends_at = key.lifetime.map(|lifetime| key.not_before.saturating_add(lifetime.as_secs()));
            Some((key.id.clone(), Key { aead, not_before: key.not_before, ends_at }))
        };
        Self { server_name: settings.server_name.clone(), keys: settings.keys.iter().filter_map(key).collect() }
    }

    /// The value of THIRD-PARTY-AUTHORIZATION, which is the associated data of every token.
    pub(super) fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Opens the value of ACCESS-TOKEN with the key that `kid` names; `None` is 401.
    pub(super) fn open(&self, kid: &str, value: &[u8], unix_seconds: u64) -> Option<Token> {
        let key = self.keys.get(kid)?;
        if unix_seconds < key.not_before || key.ends_at.is_some_and(|ends_at| unix_seconds >= ends_at) {
            return None;
        }
        let mut token = decode(value)?;
        let (nonce_len, rest) = token.split_first_chunk_mut::<2>()?;
        if usize::from(u16::from_be_bytes(*nonce_len)) != NONCE_LEN {
            return None;
        }
        let (nonce, sealed) = rest.split_first_chunk_mut::<NONCE_LEN>()?;
        let block = key.aead.open(*nonce, self.server_name.as_bytes(), sealed)?;
        Token::parse(block, unix_seconds)
    }
}

/// The token as bytes. RFC 7635 section 6.2 has it base64 encoded on its way to the client, which may send either form:
/// a length of 12 in two bytes is no base64.
fn decode(value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = if value.first() == Some(&0) { value.to_vec() } else { STANDARD.decode(value).ok()? };
    Some(Zeroizing::new(bytes))
}

impl Token {
    /// Reads a decrypted block and judges its time.
    fn parse(block: &[u8], unix_seconds: u64) -> Option<Self> {
        let (key_len, rest) = block.split_first_chunk::<2>()?;
        let (mac_key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*key_len)))?;
        // 160 bits for HMAC-SHA1, 256 for HMAC-SHA256; used in full by either.
        if !matches!(mac_key.len(), 20 | 32) {
            return None;
        }
        let (timestamp, rest) = rest.split_first_chunk::<8>()?;
        let lifetime = u64::from(u32::from_be_bytes(rest.try_into().ok()?));
        // "the integer number of seconds is contained in the first 48 bits"
        let timestamp = u64::from_be_bytes(*timestamp) >> 16;
        let left = time_left(timestamp, lifetime, unix_seconds)?;
        Some(Self { mac_key: IntegrityKey::new(mac_key)?, ends_at: unix_seconds.saturating_add(left) })
    }
}

/// How many seconds a token is good for; `None` when it is not.
///
/// RFC 7635 sections 7 and 9: accepted while "lifetime + Delta > abs(RDnew - TS)", and the difference is the longest
/// lifetime of an allocation, which "MUST be less than or equal to the lifetime of the token".
fn time_left(timestamp: u64, lifetime: u64, now: u64) -> Option<u64> {
    let left = (lifetime + DELTA_SECONDS).checked_sub(now.abs_diff(timestamp))?;
    Some(left.min(lifetime)).filter(|left| *left > 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hex_literal::hex;

    use super::super::aead::AeadAlgorithm;
    use super::super::settings::Secret;
    use super::*;

    /// 92470300704768 in the format of the token.
    const TIMESTAMP: u64 = 92_470_300_704_768 >> 16;
    const LONG_TERM_KEY: [u8; 32] = hex!("48476b6a33324b4a4769757930393873 64666171624e6a4f69617a3731393233");
    const MAC_KEY: [u8; 20] = hex!("5a6b736a7077656f6978586d766e36373533346d");
    const A256GCM: [u8; 64] = hex!(
        "000c68346a336b326c326e346235617ef134a3d5e44e9a19cc7dc104b0c03d03"
        "b2a551d8fdf5cd3b6dca6f10cfb77e5b2ddec84d293a5c50499359f0c2e26f76"
    );
    const A128GCM: [u8; 64] = hex!(
        "000c68346a336b326c326e3462357fb9e99f0827be3df1e1bd651493d3031d36"
        "df57079784aee5eacb65fad4f27fab1a3f97974b69f851b24bf5af09eda357e0"
    );

    fn authorities(algorithm: AeadAlgorithm, server_name: &str, lifetime: Option<u64>) -> Authorities {
        let key = TokenKey {
            id: "kid".to_owned(),
            algorithm,
            key: Secret::new(&LONG_TERM_KEY[..algorithm.key_len()]),
            not_before: TIMESTAMP - 100,
            lifetime: lifetime.map(Duration::from_secs),
        };
        Authorities::new(&ThirdParty { server_name: server_name.to_owned(), keys: vec![key] })
    }

    #[test]
    fn the_samples_of_rfc_7635_appendix_a_open() {
        for (algorithm, sample) in [(AeadAlgorithm::A256Gcm, A256GCM), (AeadAlgorithm::A128Gcm, A128GCM)] {
            let authorities = authorities(algorithm, "blackdow.carleon.gov", None);
            let token = authorities.open("kid", &sample, TIMESTAMP).unwrap();
            assert_eq!(token.mac_key.as_bytes(), MAC_KEY);
            assert_eq!(token.ends_at, TIMESTAMP + 3600);
            let text = STANDARD.encode(sample);
            assert!(authorities.open("kid", text.as_bytes(), TIMESTAMP).is_some(), "base64 as the client got it");
        }
    }

    #[test]
    fn what_is_not_authentic_does_not_open() {
        let authorities_here = authorities(AeadAlgorithm::A256Gcm, "blackdow.carleon.gov", None);
        for index in 0..A256GCM.len() {
            let mut token = A256GCM;
            token[index] ^= 1;
            assert!(authorities_here.open("kid", &token, TIMESTAMP).is_none(), "byte {index}");
        }
        for len in 0..A256GCM.len() {
            assert!(authorities_here.open("kid", &A256GCM[..len], TIMESTAMP).is_none(), "{len} bytes");
        }
        assert!(authorities_here.open("other", &A256GCM, TIMESTAMP).is_none());
        let elsewhere = authorities(AeadAlgorithm::A256Gcm, "blackdow.carleon.org", None);
        assert!(elsewhere.open("kid", &A256GCM, TIMESTAMP).is_none(), "a token for another server");
    }

    #[test]
    fn a_token_is_good_from_its_timestamp_until_its_lifetime_and_delta_have_passed() {
        let authorities = authorities(AeadAlgorithm::A256Gcm, "blackdow.carleon.gov", None);
        let left = |now| authorities.open("kid", &A256GCM, now).map(|token| token.ends_at - now);
        assert_eq!(left(TIMESTAMP + 5), Some(3600));
        assert_eq!(left(TIMESTAMP + 6), Some(3599));
        assert_eq!(left(TIMESTAMP + 3604), Some(1));
        assert_eq!(left(TIMESTAMP + 3605), None);
        assert_eq!(left(TIMESTAMP - 5), Some(3600), "clocks differ");
        assert_eq!(time_left(100_000, 3600, 100_000 - 3605), None);
        assert_eq!(time_left(100_000, 0, 100_000), None);
        assert_eq!(time_left(0, u64::from(u32::MAX), u64::from(u32::MAX) + 4), Some(1));
    }

    #[test]
    fn a_key_opens_tokens_in_its_own_time() {
        let authorities = authorities(AeadAlgorithm::A256Gcm, "blackdow.carleon.gov", Some(600));
        let opens = |now| authorities.open("kid", &A256GCM, now).is_some();
        assert_eq!([TIMESTAMP - 101, TIMESTAMP - 100].map(opens), [false, true]);
        assert_eq!([TIMESTAMP + 499, TIMESTAMP + 500].map(opens), [true, false]);
    }

    #[test]
    fn session_keys_have_20_or_32_bytes() {
        let block = |len: u16| {
            let mut block = len.to_be_bytes().to_vec();
            block.extend(std::iter::repeat_n(7, usize::from(len)));
            block.extend((TIMESTAMP << 16).to_be_bytes());
            block.extend(3600_u32.to_be_bytes());
            block
        };
        let parses = |block: &[u8]| Token::parse(block, TIMESTAMP).is_some();
        assert_eq!(
            [0, 16, 20, 31, 32, 33, 64].map(|len| parses(&block(len))),
            [false, false, true, false, true, false, false]
        );
        let long = [block(20), vec![0]].concat();
        assert!(!parses(&long) && !parses(&block(20)[..33]));
    }
}
