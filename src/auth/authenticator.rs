//! Judges requests by the long-term credential mechanism (RFC 8489 section 9.2.4).

use std::borrow::Cow;
use std::sync::Arc;

use super::challenge::Challenge;
use super::credentials::{Candidate, Credentials, UserKind, Users};
use super::long_term::PasswordAlgorithm;
use super::nonce::{Features, Nonces};
use super::prepare::opaque_string;
use super::seal::SealKey;
use super::settings::Settings;
use super::third_party::{Authorities, Token};
use crate::address::FiveTuple;
use crate::stun::integrity::IntegrityKey;
use crate::stun::{AttributeType, ErrorCode, Message};

/// RFC 8489 section 14.3: "A compliant implementation MUST be able to parse a UTF-8-encoded sequence of 763 or fewer
/// octets"; a longer one names nobody, and costs no preparation.
const USERNAME_LEN_MAX: usize = 763;

/// The credentials in force; shared by all workers and replaced as a whole by a reload.
#[derive(Debug)]
pub struct Authenticator {
    realm: String,
    users: Users,
    nonces: Nonces,
    /// PASSWORD-ALGORITHMS of every challenge.
    offer: &'static [u8],
    offers_anonymity: bool,
    /// Who makes tokens, where third parties may authorize.
    authorities: Option<Authorities>,
    /// Seals mobility tickets (RFC 8016).
    ticket_key: SealKey,
    /// Verified against when a username is unknown, so that the answer takes the same time.
    decoy: IntegrityKey,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// No integrity attribute: the first request of every client. 401 with a challenge.
    NoIntegrity,
    /// Attributes missing or contradictory. 400 without a challenge.
    BadRequest,
    /// Unknown, expired or wrong. 401 with a challenge.
    WrongCredentials,
    /// A token, and third parties do not authorize here. 420 without a challenge.
    UnexpectedToken,
    /// Proven, but the nonce has expired or is another client's. 438 with a challenge.
    StaleNonce,
}

impl AuthError {
    /// The error code of the answer.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::NoIntegrity | Self::WrongCredentials => ErrorCode::Unauthenticated,
            Self::BadRequest => ErrorCode::BadRequest,
            Self::UnexpectedToken => ErrorCode::UnknownAttribute,
            Self::StaleNonce => ErrorCode::StaleNonce,
        }
    }
}

/// A request that has passed, and how its answer is to be signed.
#[derive(Clone, Debug)]
pub struct Authenticated {
    pub credentials: Credentials,
    pub signature: Signature,
}

/// The integrity attribute of answers (RFC 8489 section 9.2.4, last paragraph).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// The request named no algorithm and "was processed as though PASSWORD-ALGORITHM was MD5".
    MessageIntegrity,
    MessageIntegritySha256,
}

impl Authenticator {
    pub fn new(settings: &Settings) -> Self {
        let users = Users::new(settings);
        Self {
            realm: settings.realm.clone(),
            nonces: Nonces::new(settings.nonce_key.clone(), settings.nonce_lifetime),
            offer: PasswordAlgorithm::offer(users.know_sha256()),
            // A kid is told by USERNAME alone (RFC 7635 section 7).
            offers_anonymity: users.can_be_enumerated() && settings.third_party.is_none(),
            ticket_key: SealKey::derive(settings.nonce_key.expose(), "mobility tickets"),
            authorities: settings.third_party.as_ref().map(Authorities::new),
            decoy: PasswordAlgorithm::Md5.key(b"decoy", &settings.realm, settings.nonce_key.expose()),
            users,
        }
    }

    /// Performs "the checks listed below in the order specified" (RFC 8489 section 9.2.4).
    ///
    /// `held` are the credentials of the live allocation on this 5-tuple: the same user proves itself by the key that
    /// created the allocation, so that an expired or withdrawn credential ends no running call.
    pub fn authenticate(
        &self,
        request: &Message<'_>,
        client: &FiveTuple,
        held: Option<&Credentials>,
        unix_seconds: u64,
    ) -> Result<Authenticated, AuthError> {
        if request.integrity().is_none() && request.integrity_sha256().is_none() {
            return Err(AuthError::NoIntegrity);
        }
        let value = |kind| request.attribute(kind).map(|attribute| attribute.value);
        let (username, user_hash) = (value(AttributeType::USERNAME), value(AttributeType::USERHASH));
        let (Some(realm), Some(nonce), true) =
            (value(AttributeType::REALM), value(AttributeType::NONCE), username.is_some() || user_hash.is_some())
        else {
            return Err(AuthError::BadRequest);
        };
        let (algorithm, signature) = self.algorithm(request, nonce, held)?;
        let username = match (username, user_hash) {
            (Some(username), _) if username.len() > USERNAME_LEN_MAX => None,
            (Some(username), _) => std::str::from_utf8(username).ok(),
            (None, hash) => hash.and_then(|hash| self.users.name_by_hash(hash)),
        };
        let token = value(AttributeType::ACCESS_TOKEN);
        let credentials = match (&self.authorities, token) {
            (Some(authorities), Some(token)) => {
                prove_by_token(authorities, request, username, algorithm, token, unix_seconds)
            }
            (Some(_) | None, _) => {
                let username = username.unwrap_or_default();
                let prepared = self.prepared(username, nonce, client, unix_seconds);
                self.prove(request, realm, (username, &prepared), algorithm, held, unix_seconds)
            }
        };
        let credentials = credentials.ok_or(match (&self.authorities, token) {
            (None, Some(_)) => AuthError::UnexpectedToken,
            (Some(_), _) | (None, None) => AuthError::WrongCredentials,
        })?;
        if !self.nonces.is_valid(nonce, client, unix_seconds) {
            return Err(AuthError::StaleNonce);
        }
        Ok(Authenticated { credentials, signature })
    }

    /// The password algorithm that a request uses; a contradiction is a bid-down attack or a broken client.
    ///
    /// Without the feature bit the attributes were not offered along with this nonce; a client that names an algorithm
    /// all the same is taken at its word.
    /// A reload may offer other algorithms than the nonce of a live allocation came with, whose client goes on with the
    /// one that it has proved itself by.
    fn algorithm(
        &self,
        request: &Message<'_>,
        nonce: &[u8],
        held: Option<&Credentials>,
    ) -> Result<(PasswordAlgorithm, Signature), AuthError> {
        let offered = request.attribute(AttributeType::PASSWORD_ALGORITHMS);
        let chosen = request.attribute(AttributeType::PASSWORD_ALGORITHM);
        match (offered, chosen) {
            (None, None) => Ok((PasswordAlgorithm::Md5, Signature::MessageIntegrity)),
            (Some(offered), Some(chosen)) if offered.value == self.offer => {
                let is_offered = self.offer.chunks(PasswordAlgorithm::VALUE_LEN).any(|value| value == chosen.value);
                let algorithm = PasswordAlgorithm::parse(chosen.value).filter(|_| is_offered);
                let algorithm = algorithm.ok_or(AuthError::BadRequest)?;
                Ok((algorithm, Signature::MessageIntegritySha256))
            }
            (Some(offered), Some(chosen))
                if held.is_some_and(|held| PasswordAlgorithm::parse(chosen.value) == Some(held.algorithm))
                    && [true, false].map(PasswordAlgorithm::offer).contains(&offered.value) =>
            {
                let algorithm = held.map_or(PasswordAlgorithm::Md5, |held| held.algorithm);
                Ok((algorithm, Signature::MessageIntegritySha256))
            }
            (Some(_), _) | (_, Some(_)) if Features::of(nonce).password_algorithms => Err(AuthError::BadRequest),
            (Some(_), _) | (_, Some(_)) => Ok((PasswordAlgorithm::Md5, Signature::MessageIntegrity)),
        }
    }

    /// A username after OpaqueString preparation.
    ///
    /// RFC 8489 section 14.3: it "MUST have been processed using the OpaqueString profile" by the client. For those that
    /// have not done so it is made up for, which costs tens of microseconds: not for a source that has never heard the
    /// server, whose address may be forged.
    fn prepared<'a>(&self, username: &'a str, nonce: &[u8], client: &FiveTuple, unix_seconds: u64) -> Cow<'a, str> {
        let has_heard = || client.transport.is_connected() || self.nonces.is_authentic(nonce, client, unix_seconds);
        let prepared = if username.is_ascii() || !has_heard() { None } else { opaque_string(username).ok() };
        prepared.map_or(Cow::Borrowed(username), Cow::Owned)
    }

    fn prove(
        &self,
        request: &Message<'_>,
        realm: &[u8],
        (username, prepared): (&str, &str),
        algorithm: PasswordAlgorithm,
        held: Option<&Credentials>,
        unix_seconds: u64,
    ) -> Option<Credentials> {
        if let Some(held) = held
            && *held.username == *prepared
            && is_good(held, algorithm, unix_seconds)
            && verifies(request, &held.key)
        {
            return Some(held.clone());
        }
        let mut candidates = self.users.candidates(username, prepared, algorithm, unix_seconds);
        // RFC 8489 section 14.9: the realm is the one that the credentials belong to. The key that created a live
        // allocation proves its user whatever the realm has become since.
        if !is_realm(realm, &self.realm) {
            candidates.clear();
        }
        if candidates.is_empty() {
            verifies(request, &self.decoy);
        }
        let proven = candidates.into_iter().find(|candidate| verifies(request, &candidate.key))?;
        let Candidate { kind, key, secret } = proven;
        Some(Credentials { username: Arc::from(prepared), kind, algorithm, key, secret })
    }

    /// Whether a request carries a nonce that this client has been given and that has not expired: it has proved its
    /// return path, if nothing else.
    pub fn has_valid_nonce(&self, request: &Message<'_>, client: &FiveTuple, unix_seconds: u64) -> bool {
        let nonce = request.attribute(AttributeType::NONCE);
        nonce.is_some_and(|nonce| self.nonces.is_valid(nonce.value, client, unix_seconds))
    }

    /// Whether ACCESS-TOKEN is known.
    pub fn takes_tokens(&self) -> bool {
        self.authorities.is_some()
    }

    /// What mobility tickets are sealed with: every worker and node with the same nonce key has the same.
    pub fn ticket_key(&self) -> &SealKey {
        &self.ticket_key
    }

    /// The challenge that answers a refused request, with a fresh nonce.
    ///
    /// PASSWORD-ALGORITHMS and its nonce bit go both or neither: always on streams and on answers to requests with
    /// integrity, to an unproved UDP source only where the answer stays within twice the request.
    pub fn challenge(
        &self,
        error: AuthError,
        request: &Message<'_>,
        client: &FiveTuple,
        unix_seconds: u64,
    ) -> Challenge<'_> {
        let third_party = match error {
            AuthError::NoIntegrity | AuthError::WrongCredentials => {
                self.authorities.as_ref().map(Authorities::server_name)
            }
            AuthError::BadRequest | AuthError::UnexpectedToken | AuthError::StaleNonce => None,
        };
        let proved_path = client.transport.is_connected() || error != AuthError::NoIntegrity;
        let fits =
            || Challenge::fits_with_algorithms(&self.realm, third_party, self.offer, request, client.client.family());
        let features =
            Features { password_algorithms: proved_path || fits(), username_anonymity: self.offers_anonymity };
        let nonce = self.nonces.issue(client, features, unix_seconds);
        Challenge { realm: &self.realm, nonce, features, offer: self.offer, third_party }
    }
}

/// Whether REALM names a realm; RFC 8489 section 9.2.2: "with any quotes and trailing nulls removed".
fn is_realm(value: &[u8], realm: &str) -> bool {
    let end = value.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let value = &value[..end];
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    unquoted == realm.as_bytes()
}

/// Whether the credentials of a live allocation prove another request: a token is good until it ends and for every
/// algorithm, as its key is not derived.
fn is_good(held: &Credentials, algorithm: PasswordAlgorithm, unix_seconds: u64) -> bool {
    match held.kind {
        UserKind::Named | UserKind::Shared => held.algorithm == algorithm,
        UserKind::Token { ends_at } => unix_seconds < ends_at,
    }
}

/// The steps of RFC 7635 section 7, in their order: the key by its kid, the token, its time, the integrity.
fn prove_by_token(
    authorities: &Authorities,
    request: &Message<'_>,
    kid: Option<&str>,
    algorithm: PasswordAlgorithm,
    token: &[u8],
    unix_seconds: u64,
) -> Option<Credentials> {
    let kid = kid?;
    let Token { mac_key, ends_at } = authorities.open(kid, token, unix_seconds)?;
    verifies(request, &mac_key).then(|| Credentials {
        username: Arc::from(kid),
        kind: UserKind::Token { ends_at },
        algorithm,
        key: mac_key,
        secret: None,
    })
}

/// RFC 8489 section 9.2.4: MESSAGE-INTEGRITY-SHA256 where present, else MESSAGE-INTEGRITY.
fn verifies(request: &Message<'_>, key: &IntegrityKey) -> bool {
    match (request.integrity_sha256(), request.integrity()) {
        (Some(covered), _) => key.verifies_sha256(&covered),
        (None, Some(covered)) => key.verifies_sha1(&covered),
        (None, None) => false,
    }
}
