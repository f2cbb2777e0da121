//! Makes time-limited users: the server derives the same password from the same name (REST draft).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::auth::credentials::time_limited_password;
use crate::auth::settings::SharedSecret;

/// A username and its password.
pub(super) struct Credential {
    /// `expiry[:name]`
    pub(super) username: String,
    /// base64 of the HMAC of the username.
    pub(super) password: String,
}

/// Mints a user that may allocate until `now + ttl`.
pub(super) fn mint(secret: &SharedSecret, now: SystemTime, ttl: Duration, name: Option<&str>) -> Credential {
    let expiry = now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_add(ttl).as_secs();
    let username = match name {
        Some(name) => format!("{expiry}:{name}"),
        None => expiry.to_string(),
    };
    let password = time_limited_password(secret, &username).to_string();
    Credential { username, password }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::settings::{Secret, SecretAlgorithm};

    fn minted(algorithm: SecretAlgorithm, name: Option<&str>) -> Credential {
        let secret = SharedSecret { secret: Secret::new("north"), algorithm };
        mint(&secret, UNIX_EPOCH + Duration::from_secs(1_700_000_000), Duration::from_secs(86400), name)
    }

    #[test]
    fn the_name_carries_the_expiry() {
        assert_eq!(minted(SecretAlgorithm::Sha1, None).username, "1700086400");
        assert_eq!(minted(SecretAlgorithm::Sha1, Some("alice")).username, "1700086400:alice");
    }

    #[test]
    fn passwords_are_those_of_openssl() {
        // printf 1700086400:alice | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(minted(SecretAlgorithm::Sha1, Some("alice")).password, "SXua5ne/+mDhiHTp0pQJzRO4ESg=");
        assert_eq!(
            minted(SecretAlgorithm::Sha256, Some("alice")).password,
            "KSS152hxvY2JZI3vhP9SzicI8j9L48JD3A92pBfQTYg="
        );
    }
}
