//! Requests: authentication and the checks that all methods share, then one file per method.

mod allocate;
mod binding;
mod channel_bind;
mod classic;
mod connect;
mod connection_bind;
mod create_permission;
mod nat_behavior;
mod refresh;

use super::effect::{Effect, Forward};
use super::guessing::counted_name;
use super::ids::{AllocationId, Route};
use super::outcome::{DropReason, Outcome};
use super::peer_policy::Asker;
use super::redirect::TryAlternate;
use super::reply::Envelope;
use super::server::{Now, Server};
use super::strangers::TooMany;
use crate::address::{FiveTuple, Transport};
use crate::auth::{AuthError, Credentials};
use crate::stun::message::ParseError;
use crate::stun::{AttributeType, Class, ErrorCode, Message, Method};

/// At most this many types are listed in UNKNOWN-ATTRIBUTES, two bytes each: the answer fits into any packet, and is
/// shorter than the request that lists as many.
const UNKNOWN_ATTRIBUTES_MAX: usize = 128;

/// A request that has passed authentication.
pub(super) struct Request<'a> {
    pub(super) now: Now,
    pub(super) message: Message<'a>,
    pub(super) envelope: Envelope,
    pub(super) credentials: Credentials,
}

/// A request is answered with this error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    Error(ErrorCode),
    /// 300: another server is to be asked.
    TryAlternate(Box<TryAlternate>),
    /// Nothing is sent: the answer is on its way.
    InProgress,
    /// Nothing is sent yet: somebody else decides.
    Waiting,
}

impl From<ErrorCode> for Rejection {
    fn from(code: ErrorCode) -> Self {
        Self::Error(code)
    }
}

impl Server {
    /// A STUN message from a client.
    pub(super) fn message(
        &mut self,
        now: Now,
        client: &FiveTuple,
        route: Route,
        bytes: &[u8],
    ) -> Result<Forward, Outcome> {
        let dropped = |reason| Err(Outcome::Dropped(reason));
        let message = match Message::parse(bytes) {
            Ok(message) => message,
            Err(ParseError::NotStun) if self.settings.rfc3489 && classic::is_classic_transport(client.transport) => {
                if !self.may_bind(now, client) {
                    return dropped(DropReason::BindingRate);
                }
                return Err(self.classic(client, route, bytes));
            }
            Err(ParseError::NotStun) if client.transport == Transport::Dtls => {
                return Err(self.classic_over_dtls(client, route, bytes));
            }
            Err(error) => return dropped(DropReason::Malformed(error)),
        };
        let elsewhere = self.ticket_elsewhere(client, &message).or_else(|| self.connection_elsewhere(client, &message));
        if let Some(worker) = elsewhere {
            return Ok(Self::hand_over(worker, client, route, bytes.len()));
        }
        match (message.class(), message.method()) {
            (Class::Indication, Method::Send) => self.send_indication(now, client, &message).map_err(Outcome::Dropped),
            (Class::Indication, Method::Binding) => Err(Outcome::Keepalive),
            (Class::Request, Method::Binding) if self.may_bind(now, client) => {
                Err(self.binding(client, route, &message))
            }
            (Class::Request, Method::Binding) => dropped(DropReason::BindingRate),
            (_, Method::Connect | Method::ConnectionBind | Method::ConnectionAttempt)
                if !self.settings.tcp_allocations =>
            {
                dropped(DropReason::MethodOff)
            }
            (
                Class::Request,
                Method::Allocate
                | Method::Refresh
                | Method::CreatePermission
                | Method::ChannelBind
                | Method::Connect
                | Method::ConnectionBind,
            ) => Err(self.request(now, client, route, message)),
            (Class::Request, Method::Send | Method::Data | Method::ConnectionAttempt)
            | (
                Class::Indication,
                Method::Allocate
                | Method::Refresh
                | Method::Data
                | Method::CreatePermission
                | Method::ChannelBind
                | Method::Connect
                | Method::ConnectionBind
                | Method::ConnectionAttempt,
            )
            | (Class::Success | Class::Error, _) => dropped(DropReason::UnexpectedClass),
        }
    }

    /// A request of a method that needs authentication.
    fn request(&mut self, now: Now, client: &FiveTuple, route: Route, message: Message<'_>) -> Outcome {
        let method = message.method();
        let mut envelope = Envelope::new(*client, route, &message);
        let bound_by = self.bound_by(&message);
        let live = bound_by.or_else(|| self.subject(client, &message)).and_then(|id| self.table.get(id));
        // A client may go on with the nonce of its control connection on its data connections, so that it can say all it
        // has to say at once.
        let control = live.filter(|_| bound_by.is_some()).map(|allocation| allocation.client);
        let mut held =
            live.filter(|allocation| allocation.lives(now.instant)).map(|allocation| &allocation.credentials);
        if held.is_none() && method == Method::Refresh {
            held = self.released.credentials(client, message.transaction_id());
        }
        let authenticate = |client| self.authenticator.authenticate(&message, client, held, now.unix_seconds);
        let authenticated = match (authenticate(client), &control) {
            (Err(AuthError::StaleNonce), Some(control)) => authenticate(control),
            (authenticated, _) => authenticated,
        };
        let authenticated = match authenticated {
            Ok(authenticated) => authenticated,
            Err(error) => return self.challenge(now, &envelope, &message, error),
        };
        envelope.sign(&authenticated);
        if method == Method::Allocate && !client.transport.is_connected() {
            let limits = &self.settings.limits;
            self.shared.strangers.has_authenticated(now.instant, limits, client.client.ip());
        }
        let request = Request { now, message, envelope, credentials: authenticated.credentials };
        let discovers = self.settings.nat_behavior.is_some();
        let takes_tokens = self.authenticator.takes_tokens();
        let connects = self.settings.tcp_allocations;
        let understands = |kind: AttributeType| {
            discovers && kind.is_nat_behavior()
                || takes_tokens && kind == AttributeType::ACCESS_TOKEN
                || connects && kind == AttributeType::CONNECTION_ID
        };
        if self.refuse_unknown_attributes(&request.envelope, &request.message, understands) {
            return Outcome::Refused(method, ErrorCode::UnknownAttribute);
        }
        let result = match method {
            Method::Allocate => self.allocate(&request),
            Method::Refresh => self.refresh(&request),
            Method::CreatePermission => self.create_permission(&request),
            Method::ChannelBind => self.channel_bind(&request),
            Method::Connect => self.connect(&request),
            Method::ConnectionBind => self.connection_bind(&request),
            Method::Binding | Method::Send | Method::Data | Method::ConnectionAttempt => {
                Err(ErrorCode::BadRequest.into())
            }
        };
        match result {
            Ok(()) if method == Method::Connect => Outcome::Connecting,
            Ok(()) => Outcome::Succeeded(method),
            Err(Rejection::Waiting) => Outcome::Waiting,
            Err(Rejection::InProgress) => Outcome::Dropped(DropReason::InProgress),
            Err(Rejection::Error(code)) => {
                self.refuse(&request.envelope, code, |_| {});
                Outcome::Refused(method, code)
            }
            Err(Rejection::TryAlternate(alternate)) => {
                self.refuse(&request.envelope, ErrorCode::TryAlternate, |builder| alternate.write(builder));
                Outcome::Refused(method, ErrorCode::TryAlternate)
            }
        }
    }

    /// Whether a Binding request is answered; on a connection and on the 5-tuple of an allocation always.
    fn may_bind(&self, now: Now, client: &FiveTuple) -> bool {
        client.transport.is_connected()
            || self.shared.strangers.may_bind(now.instant, &self.settings.limits, client.client.ip())
            || self.table.find(client).is_some()
    }

    /// Whether a request that did not authenticate is answered.
    ///
    /// Credentials are always judged before, so that right ones are never refused, whoever guesses beside them. A wrong
    /// guess is told from a right one whatever the nonce is (RFC 8489 section 9.2.4 judges that last), so on a path that
    /// is proved by a connection it is a failure without a valid nonce as well.
    fn may_refuse(
        &mut self,
        now: Now,
        client: &FiveTuple,
        message: &Message<'_>,
        error: AuthError,
    ) -> Result<(), DropReason> {
        let (source, limits) = (client.client.ip(), &self.settings.limits);
        let guesses_on_a_connection = error == AuthError::WrongCredentials && client.transport.is_connected();
        if guesses_on_a_connection || self.authenticator.has_valid_nonce(message, client, now.unix_seconds) {
            let name = [AttributeType::USERNAME, AttributeType::USERHASH].map(|kind| message.attribute(kind));
            let name = name.into_iter().flatten().next().map_or(&[][..], |attribute| attribute.value);
            let answers = self.shared.strangers.may_be_refused(now.instant, limits, source, name);
            self.count_credential_failure();
            if self.guessing.count(now.instant, name) {
                let username = String::from_utf8_lossy(counted_name(name)).into();
                self.effects.push_back(Effect::UserAttacked { username });
            }
            return if answers { Ok(()) } else { Err(DropReason::FailureRate) };
        }
        if client.transport.is_connected() || self.table.find(client).is_some() {
            return Ok(());
        }
        self.shared.strangers.may_be_challenged(now.instant, limits, source).map_err(|too_many| match too_many {
            TooMany::OfSource => DropReason::ChallengeRate,
            TooMany::OfAll => DropReason::ChallengeRateOfAll,
        })
    }

    /// Answers a request that did not authenticate.
    fn challenge(&mut self, now: Now, envelope: &Envelope, message: &Message<'_>, error: AuthError) -> Outcome {
        if let Err(reason) = self.may_refuse(now, &envelope.client, message, error) {
            return Outcome::Dropped(reason);
        }
        let code = error.code();
        match error {
            AuthError::BadRequest => self.refuse(envelope, code, |_| {}),
            // RFC 7635 section 7: "it will respond with an error code of 420 (Unknown Attribute)".
            AuthError::UnexpectedToken => self.refuse(envelope, code, |builder| {
                builder.unknown_attributes(&[AttributeType::ACCESS_TOKEN]);
            }),
            AuthError::NoIntegrity | AuthError::WrongCredentials | AuthError::StaleNonce => {
                let authenticator = std::sync::Arc::clone(&self.authenticator);
                let challenge = authenticator.challenge(error, message, &envelope.client, now.unix_seconds);
                self.refuse(envelope, code, |builder| challenge.write(builder));
            }
        }
        Outcome::Refused(envelope.method, code)
    }

    /// Answers 420 when a request has comprehension-required attributes that are not known (RFC 8489 section 6.3.1),
    /// nor understood by an extension that is on.
    fn refuse_unknown_attributes(
        &mut self,
        envelope: &Envelope,
        message: &Message<'_>,
        understands: impl Fn(AttributeType) -> bool,
    ) -> bool {
        let unknown = listed(message.unknown_attributes().filter(|kind| !understands(*kind)));
        if unknown.is_empty() {
            return false;
        }
        self.refuse(envelope, ErrorCode::UnknownAttribute, |builder| {
            builder.unknown_attributes(&unknown);
        });
        true
    }

    /// Whom the peer policy judges.
    fn asker<'a>(request: &'a Request<'_>) -> Asker<'a> {
        Asker { credentials: &request.credentials, client: request.envelope.client.client.ip() }
    }

    /// The allocation that a non-Allocate request is about, after the checks of RFC 8656 section 5.
    fn allocation_of(&self, request: &Request<'_>) -> Result<AllocationId, Rejection> {
        let id = self.table.find(&request.envelope.client).ok_or(ErrorCode::AllocationMismatch)?;
        let allocation = self.table.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        if allocation.opening.is_some() || !allocation.lives(request.now.instant) {
            return Err(ErrorCode::AllocationMismatch.into());
        }
        let is_owner = match request.message.method() {
            Method::Refresh => allocation.credentials.is_refreshed_by(&request.credentials),
            Method::Binding
            | Method::Allocate
            | Method::Send
            | Method::Data
            | Method::CreatePermission
            | Method::ChannelBind
            | Method::Connect
            | Method::ConnectionBind
            | Method::ConnectionAttempt => allocation.credentials.is_same_user(&request.credentials),
        };
        if !is_owner {
            return Err(ErrorCode::WrongCredentials.into());
        }
        Ok(id)
    }
}

/// What UNKNOWN-ATTRIBUTES lists: each type once, of as many attributes as may be listed.
fn listed(unknown: impl Iterator<Item = AttributeType>) -> Vec<AttributeType> {
    let mut kinds = Vec::new();
    for kind in unknown.take(UNKNOWN_ATTRIBUTES_MAX) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}
