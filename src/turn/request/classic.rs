//! Binding requests of RFC 3489 clients, where they are served (RFC 8489 section 12, RFC 5389 section 12.2).

use super::super::effect::Effect;
use super::super::ids::Route;
use super::super::outcome::{DropReason, Outcome};
use super::super::server::Server;
use crate::address::{FiveTuple, ServerAddr, Transport};
use crate::stun::classic::{ClassicId, ClassicRequest, cookieless_request};
use crate::stun::message::ParseError;
use crate::stun::nat_behavior::Change;
use crate::stun::{AttributeType, Builder, Class, ErrorCode, Method};

/// RFC 5389 section 12: "UDP was the only supported transport."
pub(super) fn is_classic_transport(transport: Transport) -> bool {
    match transport {
        Transport::Udp => true,
        Transport::Tcp | Transport::Tls | Transport::Dtls => false,
    }
}

/// Where an answer leaves from, and the alternate address, both `None` where there is none to tell.
#[derive(Clone, Copy, Debug)]
struct Origin {
    source: Option<ServerAddr>,
    other: Option<ServerAddr>,
}

impl Server {
    /// A datagram without magic cookie.
    pub(super) fn classic(&mut self, client: &FiveTuple, route: Route, bytes: &[u8]) -> Outcome {
        let request = match ClassicRequest::parse(bytes) {
            Ok(request) => request,
            Err(error) => return Outcome::Dropped(DropReason::Malformed(error)),
        };
        match self.judge_classic(client, &request) {
            Ok(origin) => {
                let from = FiveTuple { server: origin.source.unwrap_or(client.server), ..*client };
                self.reply_classic(&from, route, Method::Binding, request.id(), Class::Success, |builder| {
                    // RFC 5389 section 12.2: "insert a MAPPED-ADDRESS attribute instead of an XOR-MAPPED-ADDRESS attribute".
                    builder.address(AttributeType::MAPPED_ADDRESS, client.client.socket_addr());
                    for (kind, address) in
                        [(AttributeType::SOURCE_ADDRESS, origin.source), (AttributeType::CHANGED_ADDRESS, origin.other)]
                    {
                        if let Some(address) = address {
                            builder.address(kind, address.socket_addr());
                        }
                    }
                });
                Outcome::Succeeded(Method::Binding)
            }
            Err((code, unknown)) => {
                self.reply_classic(client, route, Method::Binding, request.id(), Class::Error, |builder| {
                    // As everywhere, no reason phrase for a source that has proved nothing.
                    builder.error_code(code, "");
                    if !unknown.is_empty() {
                        builder.unknown_attributes(&unknown);
                    }
                });
                Outcome::Refused(Method::Binding, code)
            }
        }
    }

    /// What has no magic cookie, over DTLS.
    ///
    /// RFC 8489 section 11: "Any STUN request or indication without the magic cookie over DTLS MUST be considered
    /// invalid: all requests MUST generate a 500 (Server Error) error response, and indications MUST be ignored."
    pub(super) fn classic_over_dtls(&mut self, client: &FiveTuple, route: Route, bytes: &[u8]) -> Outcome {
        let Some((method, id)) = cookieless_request(bytes) else {
            return Outcome::Dropped(DropReason::Malformed(ParseError::NotStun));
        };
        self.reply_classic(client, route, method, id, Class::Error, |builder| {
            builder.error_code(ErrorCode::ServerError, ErrorCode::ServerError.reason());
        });
        Outcome::Refused(method, ErrorCode::ServerError)
    }

    /// The checks of RFC 3489 section 8.1 in their order; unknown attributes go with 420.
    fn judge_classic(
        &self,
        client: &FiveTuple,
        request: &ClassicRequest<'_>,
    ) -> Result<Origin, (ErrorCode, Vec<AttributeType>)> {
        if request.has(AttributeType::MESSAGE_INTEGRITY) {
            // No Shared Secret Request is ever answered here, so no username can be remembered.
            let has_username = request.has(AttributeType::USERNAME);
            let code = if has_username { ErrorCode::StaleCredentials } else { ErrorCode::MissingUsername };
            return Err((code, Vec::new()));
        }
        let offer = self.settings.nat_behavior.as_ref();
        let other = offer.and_then(|offer| offer.other(client.server));
        let understands = |kind: AttributeType| {
            kind.is_known_to_classic() || kind == AttributeType::CHANGE_REQUEST && other.is_some()
        };
        let required =
            request.attributes().map(|attribute| attribute.kind).filter(|kind| kind.is_comprehension_required());
        let mut unknown = super::listed(required.filter(|kind| !understands(*kind)));
        if let Some(last) = unknown.last().copied() {
            // RFC 3489 section 11.2.10: "If the number of unknown attributes is an odd number, one of the attributes MUST
            // be repeated in the list".
            if unknown.len() % 2 == 1 {
                unknown.push(last);
            }
            return Err((ErrorCode::UnknownAttribute, unknown));
        }
        let change = match request.attribute(AttributeType::CHANGE_REQUEST) {
            Some(attribute) => attribute.as_change_request().ok_or((ErrorCode::BadRequest, Vec::new()))?,
            None => Change::NONE,
        };
        let source = offer.map(|offer| offer.source(client.server, change).unwrap_or(client.server));
        Ok(Origin { source, other })
    }

    fn reply_classic(
        &mut self,
        client: &FiveTuple,
        route: Route,
        method: Method,
        id: ClassicId,
        class: Class,
        write: impl FnOnce(&mut Builder<'_>),
    ) {
        let start = self.replies.len();
        write(&mut Builder::classic(&mut self.replies, method, class, id));
        self.effects.push_back(Effect::Reply { route, client: *client, bytes: start..self.replies.len() });
    }
}
