//! Binding where NAT Behavior Discovery is offered (RFC 5780 section 6.1).

use std::net::SocketAddr;

use super::super::ids::Route;
use super::super::nat_behavior::NatBehavior;
use super::super::outcome::Outcome;
use super::super::reply::Envelope;
use super::super::server::Server;
use crate::address::{ClientAddr, FiveTuple};
use crate::stun::nat_behavior::Change;
use crate::stun::{AttributeType, ErrorCode, Message, Method};

/// What the client asks for beside its mapped address.
#[derive(Clone, Copy, Debug)]
struct Wishes {
    change: Change,
    response_port: Option<u16>,
    padding_len: Option<usize>,
}

impl Server {
    /// Answers a Binding request from the address and to the port that it asks for.
    pub(super) fn discover(
        &mut self,
        client: &FiveTuple,
        route: Route,
        message: &Message<'_>,
        offer: &NatBehavior,
    ) -> Outcome {
        let mut envelope = Envelope::new(*client, route, message);
        if self.refuse_unknown_attributes(&envelope, message, |kind| understands(kind, client, message, offer)) {
            return Outcome::Refused(Method::Binding, ErrorCode::UnknownAttribute);
        }
        let Some(wishes) = read(message) else {
            self.refuse(&envelope, ErrorCode::BadRequest, |_| {});
            return Outcome::Refused(Method::Binding, ErrorCode::BadRequest);
        };
        let source = offer.source(client.server, wishes.change).unwrap_or(client.server);
        let other = offer.other(client.server);
        let port = wishes.response_port.unwrap_or(client.client.port());
        let destination = ClientAddr::new(SocketAddr::new(client.client.ip(), port));
        envelope.client = FiveTuple { client: destination, server: source, ..*client };
        let mapped = client.client.socket_addr();
        self.succeed(&envelope, |builder| {
            // RFC 5780 section 6.1: "The server MUST include both MAPPED-ADDRESS and XOR-MAPPED-ADDRESS in its Response."
            builder.xor_address(AttributeType::XOR_MAPPED_ADDRESS, mapped);
            builder.address(AttributeType::MAPPED_ADDRESS, mapped);
            builder.address(AttributeType::RESPONSE_ORIGIN, source.socket_addr());
            if let Some(other) = other {
                builder.address(AttributeType::OTHER_ADDRESS, other.socket_addr());
            }
            if let Some(len) = wishes.padding_len {
                builder.attribute(AttributeType::PADDING, &PADDING[..padding_len(len, offer)]);
            }
        });
        Outcome::Succeeded(Method::Binding)
    }
}

/// What PADDING is made of; the value does not matter.
static PADDING: [u8; NatBehavior::MTU_MAX as usize] = [0; NatBehavior::MTU_MAX as usize];

/// RFC 5780 section 6.1: "The server SHOULD use a length of PADDING equal to the MTU on the outgoing interface, rounded up
/// to an even multiple of four bytes." But never more than the request has: a source that has proved nothing gets no
/// more bytes than it sends (section 10, "servers should not allocate more memory than the size of the received
/// datagram").
fn padding_len(requested: usize, offer: &NatBehavior) -> usize {
    requested.min(offer.mtu.into()).next_multiple_of(4).min(PADDING.len())
}

/// Whether an attribute of the extension can be followed here.
///
/// RFC 5780 section 6.1: "If the Request contains the CHANGE-REQUEST attribute and the server does not have an alternate
/// address and port as described above, the server MUST generate an error response of type 420." A connection has none
/// to answer from, nor another port of the client to answer to (section 3: "STUN forbids a server from creating a new TCP
/// or TCP/TLS connection to the client").
fn understands(kind: AttributeType, client: &FiveTuple, message: &Message<'_>, offer: &NatBehavior) -> bool {
    let is_connected = client.transport.is_connected();
    match kind {
        AttributeType::CHANGE_REQUEST => {
            let change = message.attribute(kind).and_then(|attribute| attribute.as_change_request());
            offer.other(client.server).is_some() && (!is_connected || change == Some(Change::NONE))
        }
        AttributeType::RESPONSE_PORT => !is_connected,
        kind => kind.is_nat_behavior(),
    }
}

/// Reads the attributes of the extension; `None` when one is malformed, or when they exclude each other.
fn read(message: &Message<'_>) -> Option<Wishes> {
    let change = match message.attribute(AttributeType::CHANGE_REQUEST) {
        Some(attribute) => attribute.as_change_request()?,
        None => Change::NONE,
    };
    let response_port = match message.attribute(AttributeType::RESPONSE_PORT) {
        // Nothing can be sent to port 0.
        Some(attribute) => Some(attribute.as_response_port().filter(|port| *port != 0)?),
        None => None,
    };
    let padding_len = message.attribute(AttributeType::PADDING).map(|attribute| attribute.value.len());
    // RFC 5780 section 6.1: "If the Request also contains the RESPONSE-PORT attribute the server MUST return an error
    // response of type 400."
    let contradicts = response_port.is_some() && padding_len.is_some();
    (!contradicts).then_some(Wishes { change, response_port, padding_len })
}
