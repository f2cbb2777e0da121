//! Authenticated encryption with associated data: AES-GCM (RFC 5116 sections 5.1 and 5.2).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Length of every nonce in bytes: "N_MIN and N_MAX are both 12 octets".
pub const NONCE_LEN: usize = 12;

/// AES-GCM by the length of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AeadAlgorithm {
    A128Gcm,
    A256Gcm,
}

impl AeadAlgorithm {
    /// The names of RFC 7518 section 5.1, as the configuration has them.
    pub const NAMES: [(&'static str, Self); 2] = [("A256GCM", Self::A256Gcm), ("A128GCM", Self::A128Gcm)];

    /// Length of a key in bytes.
    pub fn key_len(self) -> usize {
        match self {
            Self::A128Gcm => 16,
            Self::A256Gcm => 32,
        }
    }
}

/// A key, ready for use.
#[derive(Debug)]
pub struct AeadKey(LessSafeKey);

impl AeadKey {
    /// `None` for a key of another length than the algorithm's.
    pub fn new(algorithm: AeadAlgorithm, key: &[u8]) -> Option<Self> {
        let algorithm = match algorithm {
            AeadAlgorithm::A128Gcm => &AES_128_GCM,
            AeadAlgorithm::A256Gcm => &AES_256_GCM,
        };
        Some(Self(LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?)))
    }

    /// Decrypts in place; `None` when anything was changed, or was sealed by another key or for other associated data.
    pub fn open<'a>(&self, nonce: [u8; NONCE_LEN], associated: &[u8], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.0.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(associated), sealed).ok()
    }
}
