//! Numbers that clients carry and cannot read, change or make.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Length of a sealed number in bytes.
pub const SEALED_LEN: usize = IV_LEN + NUMBER_LEN;

const IV_LEN: usize = 16;
const NUMBER_LEN: usize = 8;

/// Authenticated encryption of numbers by a synthetic IV, as RFC 5297 has it: the MAC of the number is the IV that it
/// is encrypted with. No nonce has to be unique, and 24 bytes hold it all. Both steps are HMAC-SHA256 under keys of
/// their own.
pub struct SealKey {
    mac: Zeroizing<[u8; 32]>,
    encryption: Zeroizing<[u8; 32]>,
}

impl SealKey {
    /// A key for one purpose, made from a secret that has others.
    pub fn derive(secret: &[u8], purpose: &str) -> Self {
        let key = |step: &str| Zeroizing::new(hmac(secret, &[purpose.as_bytes(), step.as_bytes()]));
        Self { mac: key(": mac"), encryption: key(": encryption") }
    }

    /// Equal numbers have equal seals: who wants none to be recognised takes a new number each time.
    pub fn seal(&self, number: u64) -> [u8; SEALED_LEN] {
        let number = number.to_be_bytes();
        let iv = self.iv(number);
        let mut sealed = [0; SEALED_LEN];
        sealed[..IV_LEN].copy_from_slice(&iv);
        sealed[IV_LEN..].copy_from_slice(&self.crypt(iv, number));
        sealed
    }

    /// `None` for what this key has not sealed.
    pub fn open(&self, sealed: [u8; SEALED_LEN]) -> Option<u64> {
        let (mut iv, mut number) = ([0; IV_LEN], [0; NUMBER_LEN]);
        iv.copy_from_slice(&sealed[..IV_LEN]);
        number.copy_from_slice(&sealed[IV_LEN..]);
        let number = self.crypt(iv, number);
        let authentic: bool = self.iv(number).ct_eq(&iv).into();
        authentic.then(|| u64::from_be_bytes(number))
    }

    fn iv(&self, number: [u8; NUMBER_LEN]) -> [u8; IV_LEN] {
        let mut iv = [0; IV_LEN];
        iv.copy_from_slice(&hmac(&*self.mac, &[&number])[..IV_LEN]);
        iv
    }

    /// Encrypts, and decrypts.
    fn crypt(&self, iv: [u8; IV_LEN], mut number: [u8; NUMBER_LEN]) -> [u8; NUMBER_LEN] {
        let stream = hmac(&*self.encryption, &[&iv]);
        number.iter_mut().zip(stream).for_each(|(byte, mask)| *byte ^= mask);
        number
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[key]")
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_that_sealed_a_number_opens_it_unchanged() {
        let key = SealKey::derive(&[1; 32], "a purpose");
        for number in [0, 1, 0x0123_4567_89AB_CDEF, u64::MAX] {
            let sealed = key.seal(number);
            assert_eq!(key.open(sealed), Some(number));
            assert_eq!(SealKey::derive(&[2; 32], "a purpose").open(sealed), None);
            assert_eq!(SealKey::derive(&[1; 32], "another purpose").open(sealed), None);
            for index in 0..SEALED_LEN {
                let mut changed = sealed;
                changed[index] ^= 0x10;
                assert_eq!(key.open(changed), None, "byte {index}");
            }
        }
    }

    #[test]
    fn a_seal_shows_nothing_of_its_number() {
        let key = SealKey::derive(&[1; 32], "a purpose");
        let (one, two) = (key.seal(1), key.seal(2));
        let equal = one.iter().zip(two).filter(|(one, two)| **one == *two).count();
        assert!(equal < 4, "{equal} equal bytes");
    }
}
