//! MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256 (RFC 8489 sections 14.5 and 14.6).

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::message::Covered;

/// The HMAC key of a credential: an MD5 (16 bytes) or SHA-256 (32 bytes) digest, or a third party's mac_key.
#[derive(Clone, PartialEq, Eq)]
pub struct IntegrityKey {
    bytes: [u8; 32],
    len: u8,
}

impl IntegrityKey {
    /// Takes a key of at most 32 bytes; `None` for a longer one.
    pub fn new(key: &[u8]) -> Option<Self> {
        let mut bytes = [0; 32];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self { bytes, len: key.len() as u8 })
    }

    /// The key bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// HMAC-SHA1 over what MESSAGE-INTEGRITY covers.
    pub fn sha1<'a>(&self, covered: impl IntoIterator<Item = &'a [u8]>) -> [u8; 20] {
        hmac::<Hmac<Sha1>>(self.as_bytes(), covered).finalize().into_bytes().into()
    }

    /// HMAC-SHA256 over what MESSAGE-INTEGRITY-SHA256 covers.
    pub fn sha256<'a>(&self, covered: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
        hmac::<Hmac<Sha256>>(self.as_bytes(), covered).finalize().into_bytes().into()
    }

    /// Verifies MESSAGE-INTEGRITY in constant time.
    pub fn verifies_sha1(&self, covered: &Covered<'_>) -> bool {
        self.sha1([&covered.header, covered.attributes]).ct_eq(covered.value).into()
    }

    /// Verifies MESSAGE-INTEGRITY-SHA256 in constant time.
    ///
    /// RFC 8489 section 14.6: "The value must be the full 32 bytes unless the STUN Usage explicitly specifies that
    /// truncation is allowed." RFC 8656 does not, so a shorter value does not verify.
    pub fn verifies_sha256(&self, covered: &Covered<'_>) -> bool {
        self.sha256([&covered.header, covered.attributes]).ct_eq(covered.value).into()
    }
}

impl std::fmt::Debug for IntegrityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[key]")
    }
}

impl Drop for IntegrityKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

fn hmac<'a, M: Mac + KeyInit>(key: &[u8], covered: impl IntoIterator<Item = &'a [u8]>) -> M {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    covered.into_iter().for_each(|part| mac.update(part));
    mac
}
