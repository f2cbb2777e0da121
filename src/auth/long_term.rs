//! Keys of the long-term credential mechanism (RFC 8489 sections 9.2.2 and 18.5.1).

use md5::{Digest, Md5};
use sha2::Sha256;

use crate::stun::integrity::IntegrityKey;

/// How a key is derived from the password (RFC 8489 section 18.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasswordAlgorithm {
    Md5,
    Sha256,
}

impl PasswordAlgorithm {
    /// Length of an algorithm without parameters, of which there are none.
    pub const VALUE_LEN: usize = 4;

    /// PASSWORD-ALGORITHMS in preferential order: MD5 alone where SHA-256 keys cannot be derived for everybody.
    pub fn offer(sha256: bool) -> &'static [u8] {
        if sha256 { &[0x00, 0x02, 0, 0, 0x00, 0x01, 0, 0] } else { &[0x00, 0x01, 0, 0] }
    }

    /// The value of PASSWORD-ALGORITHM; `None` for what is not known.
    pub fn parse(value: &[u8]) -> Option<Self> {
        match value {
            [0x00, 0x01, 0, 0] => Some(Self::Md5),
            [0x00, 0x02, 0, 0] => Some(Self::Sha256),
            _ => None,
        }
    }

    /// hash(username ":" realm ":" password); realm and password are prepared, the username is as sent.
    pub fn key(self, username: &[u8], realm: &str, password: &[u8]) -> IntegrityKey {
        let parts = [username, b":", realm.as_bytes(), b":", password];
        match self {
            Self::Md5 => digest::<Md5>(parts),
            Self::Sha256 => digest::<Sha256>(parts),
        }
    }
}

/// USERHASH: SHA-256(username ":" realm) (RFC 8489 section 14.4).
pub fn user_hash(username: &str, realm: &str) -> [u8; 32] {
    Sha256::new().chain_update(username).chain_update(":").chain_update(realm).finalize().into()
}

fn digest<D: Digest>(parts: [&[u8]; 5]) -> IntegrityKey {
    let digest = parts.into_iter().fold(D::new(), |digest, part| digest.chain_update(part)).finalize();
    IntegrityKey::new(&digest).expect("the digests in use are at most 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_md5_key_is_the_one_of_the_rfc() {
        // RFC 8489 section 9.2.2: the MD5 hash of 'user:realm:pass'.
        let key = PasswordAlgorithm::Md5.key(b"user", "realm", b"pass");
        assert_eq!(key.as_bytes(), hex_literal::hex!("8493fbc53ba582fb4c044c456bdc40eb"));
        assert_eq!(PasswordAlgorithm::Sha256.key(b"user", "realm", b"pass").as_bytes().len(), 32);
    }

    #[test]
    fn the_offer_lists_what_parse_accepts() {
        let parse = |offer: &[u8]| -> Vec<_> {
            offer.chunks(PasswordAlgorithm::VALUE_LEN).filter_map(PasswordAlgorithm::parse).collect()
        };
        assert_eq!(parse(PasswordAlgorithm::offer(true)), [PasswordAlgorithm::Sha256, PasswordAlgorithm::Md5]);
        assert_eq!(parse(PasswordAlgorithm::offer(false)), [PasswordAlgorithm::Md5]);
        assert_eq!(PasswordAlgorithm::parse(&[0, 3, 0, 0]), None);
        assert_eq!(PasswordAlgorithm::parse(&[0, 1, 0, 4, 1, 2, 3, 4]), None);
    }

    #[test]
    fn the_user_hash_is_the_one_of_rfc_8489_appendix_b_1() {
        let expected = hex_literal::hex!("4a3cf38fef6992bda952c67804 17da0f24819415569e60b205c46e41407f1704");
        assert_eq!(user_hash("マトリックス", "example.org"), expected);
    }
}
