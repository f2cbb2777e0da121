//! Binding (RFC 8489 sections 6.3.1 and 12): no authentication, and nothing in the answer but the mapped address.

use super::super::ids::Route;
use super::super::outcome::Outcome;
use super::super::reply::Envelope;
use super::super::server::Server;
use crate::address::FiveTuple;
use crate::stun::{AttributeType, ErrorCode, Message, Method};

impl Server {
    pub(super) fn binding(&mut self, client: &FiveTuple, route: Route, message: &Message<'_>) -> Outcome {
        if let Some(offer) = self.settings.nat_behavior {
            return self.discover(client, route, message, &offer);
        }
        let envelope = Envelope::new(*client, route, message);
        if self.refuse_unknown_attributes(&envelope, message, |_| false) {
            return Outcome::Refused(Method::Binding, ErrorCode::UnknownAttribute);
        }
        self.succeed(&envelope, |builder| {
            builder.xor_address(AttributeType::XOR_MAPPED_ADDRESS, client.client.socket_addr());
        });
        Outcome::Succeeded(Method::Binding)
    }
}
