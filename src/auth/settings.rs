//! What an operator decides about credentials.

use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::aead::AeadAlgorithm;

/// The credentials that are accepted, and how nonces are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The REALM of every challenge, after OpaqueString preparation.
    pub realm: String,
    /// Users with a password or a key of their own.
    pub users: Vec<User>,
    /// Secrets of time-limited users (`expiry[:name]`); the first mints, all are accepted.
    pub shared_secrets: Vec<SharedSecret>,
    /// How long a nonce is accepted. RFC 8656 section 5: expired at least once every hour.
    pub nonce_lifetime: Duration,
    /// The key of the nonce MAC; the same on every worker and node.
    pub nonce_key: Secret,
    /// Tokens that are accepted beside all these.
    pub third_party: Option<ThirdParty>,
}

impl Settings {
    /// Nonces are good for this long unless set otherwise.
    pub const NONCE_LIFETIME: Duration = Duration::from_secs(3600);
}

/// A user who is named in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The username after OpaqueString preparation.
    pub name: String,
    /// What proves the user.
    pub credential: UserCredential,
}

/// What proves a static user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserCredential {
    /// A password, after OpaqueString preparation.
    Password(Secret),
    /// The stored 16-byte key MD5(username ":" realm ":" password), as coturn keeps it.
    Md5Key(Secret),
}

/// A secret from which the passwords of time-limited users are derived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSecret {
    pub secret: Secret,
    pub algorithm: SecretAlgorithm,
}

/// A name for a shared secret that can be shown: 32 bits of its hash, which nobody can turn back into a secret that is
/// not guessed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretId(pub u32);

impl SharedSecret {
    /// Its name; the same on every node and after every restart.
    pub fn id(&self) -> SecretId {
        let mut hash = Sha256::new();
        hash.update(b"ferryd shared secret\0");
        hash.update(self.secret.expose());
        let [a, b, c, d, ..] = hash.finalize().0;
        SecretId(u32::from_be_bytes([a, b, c, d]))
    }
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The HMAC that turns a time-limited username into its password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretAlgorithm {
    /// base64(HMAC-SHA1(secret, username)): the REST draft, and what every TURN REST service mints.
    Sha1,
    /// base64(HMAC-SHA256(secret, username)).
    Sha256,
}

/// Third-party authorization (RFC 7635).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThirdParty {
    /// THIRD-PARTY-AUTHORIZATION of every 401; tokens are made for this server alone.
    pub server_name: String,
    /// The long-term keys shared with authorization servers; several while they are changed.
    pub keys: Vec<TokenKey>,
}

/// A long-term key that tokens are encrypted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKey {
    /// The kid, which is the USERNAME of requests with a token.
    pub id: String,
    pub algorithm: AeadAlgorithm,
    /// As long as the algorithm wants it.
    pub key: Secret,
    /// When the key begins to be good, in seconds since the Unix epoch.
    pub not_before: u64,
    /// How long it is good from then on; `None` is for good.
    pub lifetime: Option<Duration>,
}

/// Bytes that never print and do not outlive their use.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes, for a computation.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
