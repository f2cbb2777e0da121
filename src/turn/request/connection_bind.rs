//! ConnectionBind (RFC 6062 section 5.4): makes a client's stream the client data connection of a peer.

use super::super::effect::Effect;
use super::super::ids::PeerConnectionId;
use super::super::server::Server;
use super::{Rejection, Request};
use crate::stun::{AttributeType, ErrorCode};

impl Server {
    pub(super) fn connection_bind(&mut self, request: &Request<'_>) -> Result<(), Rejection> {
        let (client, route) = (request.envelope.client, request.envelope.route);
        // "If the client connection transport is not TCP or TLS, the server MUST return a 400 (Bad Request) error."
        // A control connection carries messages, and cannot become a data connection.
        if !client.transport.is_stream() || self.table.find(&client).is_some() {
            return Err(ErrorCode::BadRequest.into());
        }
        // "If the request does not contain the CONNECTION-ID attribute, or if this attribute does not refer to an existing
        // pending connection, the server MUST return a 400 (Bad Request) error."
        let number = request.message.attribute(AttributeType::CONNECTION_ID).and_then(|it| it.as_u32());
        let connection = PeerConnectionId(number.ok_or(ErrorCode::BadRequest)?);
        let id = self.bound_by(&request.message).ok_or(ErrorCode::BadRequest)?;
        let now = request.now;
        let allocation = self.table.get(id).filter(|allocation| allocation.lives(now.instant));
        let allocation = allocation.ok_or(ErrorCode::BadRequest)?;
        // Section 4.3: "Authentication of the client by the server MUST use the same method and credentials as for the
        // control connection."
        if !allocation.credentials.is_same_user(&request.credentials) {
            return Err(ErrorCode::WrongCredentials.into());
        }
        self.bind_connection(now, id, connection)?;
        self.succeed(&request.envelope, |_| {});
        self.effects.push_back(Effect::BindPeer { connection, route, client });
        Ok(())
    }
}
