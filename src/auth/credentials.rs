//! The users that are known, and what a proven one carries.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::long_term::{PasswordAlgorithm, user_hash};
use super::settings::{Secret, SecretAlgorithm, SecretId, Settings, SharedSecret, UserCredential};
use crate::stun::integrity::IntegrityKey;

/// What an authenticated request has proved; an allocation keeps it.
///
/// RFC 8656 section 6: "the server MUST NOT store the password explicitly and MUST store the key value".
#[derive(Clone, Debug)]
pub struct Credentials {
    pub username: Arc<str>,
    pub kind: UserKind,
    pub algorithm: PasswordAlgorithm,
    pub key: IntegrityKey,
    /// The shared secret that minted them, if one did.
    pub secret: Option<SecretId>,
}

/// Whom allocations of a username are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserKind {
    /// A person or device of its own: `expiry:name`.
    Named,
    /// A credential that many may share: a static user, or an `expiry` without a name.
    Shared,
    /// A token of a third party, whose username is the name of a key; `ends_at` in seconds since the Unix epoch.
    Token { ends_at: u64 },
}

impl Credentials {
    /// The name that allocations are counted under; `None` for credentials that many may share.
    pub fn quota_name(&self) -> Option<&str> {
        match self.kind {
            UserKind::Named => TimeLimited::parse(&self.username)?.name,
            UserKind::Shared | UserKind::Token { .. } => None,
        }
    }

    /// Whether both prove the same user. All tokens of a key have one username, so that their session keys stand for
    /// their users.
    pub fn is_same_user(&self, other: &Self) -> bool {
        match (self.kind, other.kind) {
            (UserKind::Token { .. }, UserKind::Token { .. }) => self.key == other.key,
            (UserKind::Token { .. }, UserKind::Named | UserKind::Shared)
            | (UserKind::Named | UserKind::Shared, UserKind::Token { .. }) => false,
            (UserKind::Named | UserKind::Shared, UserKind::Named | UserKind::Shared) => self.username == other.username,
        }
    }

    /// Whether both prove the same user, be it by two credentials that were minted for one name.
    pub fn is_same_name(&self, other: &Self) -> bool {
        self.is_same_user(other) || self.quota_name().is_some_and(|name| other.quota_name() == Some(name))
    }

    /// Whether `other` may refresh what these credentials have made. RFC 7635 section 9: "The client MUST use the new
    /// token to refresh existing allocations", and nothing in it tells whose it is.
    pub fn is_refreshed_by(&self, other: &Self) -> bool {
        let are_tokens = matches!((self.kind, other.kind), (UserKind::Token { .. }, UserKind::Token { .. }));
        are_tokens || self.is_same_user(other)
    }

    /// How many seconds are left of a token; `None` for what does not bound an allocation.
    pub fn seconds_left(&self, unix_seconds: u64) -> Option<u64> {
        match self.kind {
            UserKind::Named | UserKind::Shared => None,
            UserKind::Token { ends_at } => Some(ends_at.saturating_sub(unix_seconds)),
        }
    }
}

/// A possible key of a username that a request claims.
pub(super) struct Candidate {
    pub(super) kind: UserKind,
    pub(super) key: IntegrityKey,
    pub(super) secret: Option<SecretId>,
}

/// The users of the configuration, with the keys of static ones derived once.
#[derive(Debug)]
pub(super) struct Users {
    realm: String,
    static_users: HashMap<String, StaticKeys>,
    names_by_hash: HashMap<[u8; 32], String>,
    shared_secrets: Vec<(SharedSecret, SecretId)>,
}

#[derive(Debug)]
struct StaticKeys {
    password: Option<Secret>,
    md5: IntegrityKey,
    sha256: Option<IntegrityKey>,
}

impl Users {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut users = Self {
            realm: settings.realm.clone(),
            static_users: HashMap::new(),
            names_by_hash: HashMap::new(),
            shared_secrets: settings.shared_secrets.iter().map(|secret| (secret.clone(), secret.id())).collect(),
        };
        for user in &settings.users {
            let Some(keys) = StaticKeys::derive(&user.name, &settings.realm, &user.credential) else { continue };
            users.names_by_hash.insert(user_hash(&user.name, &settings.realm), user.name.clone());
            users.static_users.insert(user.name.clone(), keys);
        }
        users
    }

    /// Whether every user has a key for every algorithm; stored MD5 keys cannot be turned into another.
    pub(super) fn know_sha256(&self) -> bool {
        self.static_users.values().all(|keys| keys.sha256.is_some())
    }

    /// Whether a hash finds every user, so that USERHASH can be offered: never with shared secrets.
    pub(super) fn can_be_enumerated(&self) -> bool {
        self.shared_secrets.is_empty() && !self.static_users.is_empty()
    }

    pub(super) fn name_by_hash(&self, hash: &[u8]) -> Option<&str> {
        self.names_by_hash.get(<&[u8; 32]>::try_from(hash).ok()?).map(String::as_str)
    }

    /// The keys with which a request of this username may be signed now; none when it is unknown or expired.
    ///
    /// `sent` is the username as it stands in the request, `prepared` after OpaqueString: a client may have hashed
    /// either into its key.
    pub(super) fn candidates(
        &self,
        sent: &str,
        prepared: &str,
        algorithm: PasswordAlgorithm,
        unix_seconds: u64,
    ) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        if let Some(keys) = self.static_users.get(prepared) {
            let stored = match algorithm {
                PasswordAlgorithm::Md5 => Some(&keys.md5),
                PasswordAlgorithm::Sha256 => keys.sha256.as_ref(),
            };
            candidates.extend(stored.cloned().map(|key| Candidate { kind: UserKind::Shared, key, secret: None }));
            if let (true, Some(password)) = (sent != prepared, &keys.password) {
                let key = algorithm.key(sent.as_bytes(), &self.realm, password.expose());
                candidates.push(Candidate { kind: UserKind::Shared, key, secret: None });
            }
        }
        if let Some(limited) = TimeLimited::parse(sent).filter(|limited| unix_seconds < limited.expiry) {
            let kind = if limited.name.is_some() { UserKind::Named } else { UserKind::Shared };
            // A service may have minted for either form of the name, and a client may have hashed either.
            let forms = if sent == prepared { &[sent][..] } else { &[sent, prepared] };
            let secrets = self.shared_secrets.iter();
            for ((secret, id), minted) in secrets.flat_map(|it| forms.iter().map(move |form| (it, form))) {
                let password = time_limited_password(secret, minted);
                candidates.extend(forms.iter().map(|hashed| Candidate {
                    kind,
                    key: algorithm.key(hashed.as_bytes(), &self.realm, password.as_bytes()),
                    secret: Some(*id),
                }));
            }
        }
        candidates
    }
}

impl StaticKeys {
    fn derive(name: &str, realm: &str, credential: &UserCredential) -> Option<Self> {
        match credential {
            UserCredential::Password(password) => Some(Self {
                md5: PasswordAlgorithm::Md5.key(name.as_bytes(), realm, password.expose()),
                sha256: Some(PasswordAlgorithm::Sha256.key(name.as_bytes(), realm, password.expose())),
                password: Some(password.clone()),
            }),
            UserCredential::Md5Key(key) => {
                Some(Self { md5: IntegrityKey::new(key.expose())?, sha256: None, password: None })
            }
        }
    }
}

/// A username that says when it ends: `expiry` or `expiry:name`, the expiry in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimited<'a> {
    pub expiry: u64,
    pub name: Option<&'a str>,
}

impl<'a> TimeLimited<'a> {
    /// `None` for a username without a leading timestamp, `user:timestamp` among them.
    pub fn parse(username: &'a str) -> Option<Self> {
        let (expiry, name) = match username.split_once(':') {
            Some((expiry, name)) => (expiry, Some(name).filter(|name| !name.is_empty())),
            None => (username, None),
        };
        if !expiry.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { expiry: expiry.parse().ok()?, name })
    }
}

/// The password of a time-limited username: base64(HMAC(secret, username)).
pub fn time_limited_password(secret: &SharedSecret, username: &str) -> Zeroizing<String> {
    let key = secret.secret.expose();
    Zeroizing::new(match secret.algorithm {
        SecretAlgorithm::Sha1 => base64_mac::<Hmac<Sha1>>(key, username),
        SecretAlgorithm::Sha256 => base64_mac::<Hmac<Sha256>>(key, username),
    })
}

fn base64_mac<M: Mac + KeyInit>(key: &[u8], username: &str) -> String {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(username.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_username_with_a_leading_timestamp_is_time_limited() {
        assert_eq!(TimeLimited::parse("1700000000"), Some(TimeLimited { expiry: 1_700_000_000, name: None }));
        assert_eq!(TimeLimited::parse("17:a:b"), Some(TimeLimited { expiry: 17, name: Some("a:b") }));
        assert_eq!(TimeLimited::parse("17:"), Some(TimeLimited { expiry: 17, name: None }));
    }

    #[test]
    fn other_usernames_are_not_time_limited() {
        for username in ["alice", "alice:1700000000", "", ":alice", "+17:alice", "-1", "99999999999999999999999:x"] {
            assert_eq!(TimeLimited::parse(username), None, "{username}");
        }
    }

    #[test]
    fn the_password_is_what_openssl_computes() {
        // printf 1800000000:alice | openssl dgst -sha1 -hmac secret -binary | base64, and likewise with -sha256
        let secret = |algorithm| SharedSecret { secret: Secret::new(*b"secret"), algorithm };
        let sha1 = time_limited_password(&secret(SecretAlgorithm::Sha1), "1800000000:alice");
        let sha256 = time_limited_password(&secret(SecretAlgorithm::Sha256), "1800000000:alice");
        assert_eq!(*sha1, "F9Z9KM7gUFmGwhyNrUvr6nr+06I=");
        assert_eq!(*sha256, "v/VwZQyoKn5wCFX0rQ9jBXLCWXXpnfGbu3hRZc+Fm2M=");
    }
}
