//! The server's settings, users and secrets.

use std::sync::Arc;

use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret, User, UserCredential};
use ferryd::auth::{Authenticator, Revocation, Revocations};
use ferryd::turn::settings::{RelayAddress, Settings};
use ferryd::turn::{Drain, PeerPolicy, Policy};

use super::{ALICE, BOB, REALM, SECRET, SECRET_SHA256};

/// What a test can choose before the server starts.
pub(crate) struct Setup {
    pub(crate) turn: Settings,
    pub(crate) auth: ferryd::auth::Settings,
    pub(crate) workers: u8,
    pub(crate) drain: Option<Drain>,
    pub(crate) revocations: Vec<Revocation>,
}

impl Setup {
    pub(crate) fn relay(&mut self, bind: &str, advertised: Option<&str>) {
        let advertised = advertised.map(|ip| ip.parse().expect("an address"));
        self.turn.relay_addresses.push(RelayAddress { bind: bind.parse().expect("an address"), advertised });
    }

    /// Only users that can be enumerated.
    pub(crate) fn without_shared_secrets(&mut self) {
        self.auth.shared_secrets.clear();
    }

    pub(super) fn policy(self) -> Policy {
        Policy {
            drain: self.drain.map(Arc::new),
            revocations: Arc::new(Revocations::new(&self.revocations)),
            peers: Arc::new(PeerPolicy::new(&self.turn)),
            authenticator: Arc::new(Authenticator::new(&self.auth)),
            settings: Arc::new(self.turn),
        }
    }

    pub(super) fn standard() -> Self {
        let user = |name: &str, password: &str| User {
            name: name.to_owned(),
            credential: UserCredential::Password(Secret::new(password)),
        };
        let secret = |secret: &str, algorithm| SharedSecret { secret: Secret::new(secret), algorithm };
        let mut setup = Self {
            turn: Settings { software: Some("ferryd".to_owned()), ..Settings::relaying_on(Vec::new()) },
            auth: ferryd::auth::Settings {
                realm: REALM.to_owned(),
                users: vec![user("alice", ALICE), user("bob", BOB), user("caf\u{e9}", ALICE)],
                shared_secrets: vec![
                    secret(SECRET, SecretAlgorithm::Sha1),
                    secret(SECRET_SHA256, SecretAlgorithm::Sha256),
                ],
                nonce_lifetime: ferryd::auth::Settings::NONCE_LIFETIME,
                nonce_key: Secret::new([9; 32]),
                third_party: None,
            },
            workers: 1,
            drain: None,
            revocations: Vec::new(),
        };
        setup.relay("192.0.2.1", None);
        setup.relay("2001:db8::1", None);
        setup
    }
}
