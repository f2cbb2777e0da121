//! Allocate (RFC 8656 section 7.2), step by step.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;

use super::super::allocation::{Allocation, Created, Opening, Relay};
use super::super::effect::{Effect, OpenError, RelaySource};
use super::super::ids::{AllocationId, RelayId, RelayTransport};
use super::super::peer_connections::PeerConnections;
use super::super::peer_policy::is_tunnel;
use super::super::ports::Parity;
use super::super::quota::QuotaGuard;
use super::super::reservation::{RESERVATION_LIFETIME, Token, next_port};
use super::super::server::{Now, Server};
use super::super::settings::Limits;
use super::{Envelope, Rejection, Request};
use crate::address::{Family, RelayedAddr};
use crate::stun::{AttributeType, ErrorCode, Message};

/// REQUESTED-TRANSPORT of UDP: the protocol number of the IP header.
const PROTOCOL_UDP: u8 = 17;
/// REQUESTED-TRANSPORT of TCP: a TCP allocation (RFC 6062 section 4.1).
const PROTOCOL_TCP: u8 = 6;
/// Ports tried when something else on the host has the chosen one.
const ATTEMPTS_MAX: u8 = 16;

/// Which relayed addresses a request asks for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    transport: RelayTransport,
    family: Family,
    /// ADDITIONAL-ADDRESS-FAMILY: an IPv6 address beside the IPv4 one.
    additional: bool,
    /// EVEN-PORT with its R bit.
    even_port: Option<bool>,
    token: Option<Token>,
    /// The client asks for a ticket.
    mobile: bool,
}

/// What an Allocate has taken: ports, and places in the quotas for the allocation and for a reservation.
struct Claim {
    addresses: [Option<RelayedAddr>; 2],
    address_error: Option<(Family, ErrorCode)>,
    source: RelaySource,
    quota: QuotaGuard,
    reservation_quota: Option<QuotaGuard>,
}

impl Server {
    pub(super) fn allocate(&mut self, request: &Request<'_>) -> Result<(), Rejection> {
        if let Some(id) = self.in_use(request) {
            return self.repeat(request, id);
        }
        let Envelope { client, transaction, .. } = &request.envelope;
        // A duplicate that comes after the release of what the first of it has made: nobody would ever refresh another.
        if self.released.has_been(client, *transaction, request.now.instant) {
            return Err(ErrorCode::AllocationMismatch.into());
        }
        let client = request.envelope.client.client.ip();
        if self.revocations.cover(&request.credentials, client, request.now.unix_seconds) {
            return Err(ErrorCode::Forbidden.into());
        }
        self.redirect(request)?;
        let wanted = self.wanted(request)?;
        let requested = self.requested_lifetime(request)?;
        let lifetime = self.granted_lifetime(request, requested);
        let allocations_max = self.authorized(request)?;
        let Claim { addresses, address_error, source, quota, reservation_quota } =
            self.claim(request, &wanted, allocations_max)?;
        let created = Created { transaction: request.envelope.transaction, reservation: None, address_error };
        let opening = Box::new(Opening {
            envelope: request.envelope.clone(),
            waiting: addresses.iter().flatten().count() as u8,
            attempts: 0,
            even_port: wanted.even_port,
            mobile: wanted.mobile,
            lifetime,
            source,
            reservation_quota,
        });
        let (client, credentials) = (request.envelope.client, request.credentials.clone());
        let mut allocation = Allocation::new(
            client,
            credentials,
            created,
            opening,
            quota,
            self.hasher.clone(),
            request.now.unix_seconds,
        );
        if wanted.transport == RelayTransport::Tcp {
            allocation.connections = Some(Box::new(PeerConnections::new(self.hasher.clone())));
        }
        let expires_at = request.now.instant + lifetime;
        for address in addresses.into_iter().flatten() {
            allocation.relays_mut().insert(Relay { address, expires_at });
        }
        let id = self.table.insert(allocation);
        self.rearm(id);
        let hold_next = wanted.even_port == Some(true);
        for address in addresses.into_iter().flatten() {
            let relay = RelayId { allocation: id, family: address.family() };
            self.effects.push_back(match wanted.transport {
                RelayTransport::Udp => Effect::OpenRelay { relay, address, source, hold_next },
                RelayTransport::Tcp => Effect::OpenTcpRelay { relay, address },
            });
        }
        Ok(())
    }

    /// Step 2: the allocation that has the 5-tuple; one whose time is over does not.
    fn in_use(&mut self, request: &Request<'_>) -> Option<AllocationId> {
        let id = self.table.find(&request.envelope.client)?;
        let allocation = self.table.get(id)?;
        if allocation.lives(request.now.instant) {
            return Some(id);
        }
        self.end(id, super::super::effect::EndReason::Expired);
        None
    }

    /// A retransmission of the Allocate that made the allocation gets the same answer, anything else 437.
    fn repeat(&mut self, request: &Request<'_>, id: AllocationId) -> Result<(), Rejection> {
        let allocation = self.table.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        let same = allocation.created.transaction == request.envelope.transaction
            && allocation.credentials.is_same_user(&request.credentials);
        if !same {
            return Err(ErrorCode::AllocationMismatch.into());
        }
        if allocation.opening.is_some() {
            return Err(Rejection::InProgress);
        }
        self.answer_allocate(&request.envelope.clone(), id, request.now);
        Ok(())
    }

    /// Step 11: sends the client to another server. A token names a port that is reserved here and nowhere else.
    fn redirect(&self, request: &Request<'_>) -> Result<(), Rejection> {
        let drained = self.drain.as_ref().map(|drain| &drain.redirect);
        let Some(redirect) = drained.or(self.settings.redirect.as_ref()) else { return Ok(()) };
        if request.message.has(AttributeType::RESERVATION_TOKEN) {
            return Ok(());
        }
        // RFC 8489 section 10: an ALTERNATE-SERVER "MUST contain an IP address of the same address family as the source
        // IP address of the request message".
        let alternate = redirect.of(&request.envelope.client).ok_or(ErrorCode::InsufficientCapacity)?;
        Err(Rejection::TryAlternate(Box::new(alternate)))
    }

    /// Steps 3 to 9, as far as they concern the request itself.
    fn wanted(&self, request: &Request<'_>) -> Result<Wanted, Rejection> {
        let message = &request.message;
        let transport = self.relay_transport(request)?;
        let even_port = parsed(message, AttributeType::EVEN_PORT, |it| it.as_even_port())?;
        let requested = parsed(message, AttributeType::REQUESTED_ADDRESS_FAMILY, |it| it.as_family())?;
        let additional = parsed(message, AttributeType::ADDITIONAL_ADDRESS_FAMILY, |it| it.as_family())?;
        let token = parsed(message, AttributeType::RESERVATION_TOKEN, |it| it.as_token())?;
        if token.is_some() && (even_port.is_some() || requested.is_some() || additional.is_some()) {
            return Err(ErrorCode::BadRequest.into());
        }
        if requested.is_some() && additional.is_some() {
            return Err(ErrorCode::BadRequest.into());
        }
        let family = match requested {
            None => Family::V4,
            Some(family) => family.ok_or(ErrorCode::AddressFamilyNotSupported)?,
        };
        if !self.settings.serves(family) && token.is_none() {
            return Err(ErrorCode::AddressFamilyNotSupported.into());
        }
        if additional.is_some() && even_port == Some(true) {
            return Err(ErrorCode::BadRequest.into());
        }
        // Step 9: "the attribute value of 0x02 (IPv6 address) is the only valid value in Allocate request".
        if additional.is_some_and(|family| family != Some(Family::V6)) {
            return Err(ErrorCode::BadRequest.into());
        }
        // RFC 8656 section 21.4: "a TURN server MUST NOT accept Teredo or 6to4 addresses in these requests."
        if is_tunnel(request.envelope.client.client.ip()) {
            return Err(ErrorCode::Forbidden.into());
        }
        let mobile = self.wants_ticket(message)?;
        // RFC 8016 moves a 5-tuple, and a TCP allocation is its control connection and data connections beside it.
        if mobile && transport == RelayTransport::Tcp {
            return Err(ErrorCode::MobilityForbidden.into());
        }
        Ok(Wanted { transport, family, additional: additional.is_some(), even_port, token, mobile })
    }

    /// What REQUESTED-TRANSPORT asks for, with the exceptions of RFC 6062 section 5.1 for a TCP allocation.
    fn relay_transport(&self, request: &Request<'_>) -> Result<RelayTransport, Rejection> {
        let message = &request.message;
        let protocol = message.attribute(AttributeType::REQUESTED_TRANSPORT).and_then(|it| it.as_code());
        match protocol.ok_or(ErrorCode::BadRequest)? {
            PROTOCOL_UDP => Ok(RelayTransport::Udp),
            PROTOCOL_TCP if self.settings.tcp_allocations => {
                // "If the client connection transport is not TCP or TLS, the server MUST reject the request with a 400
                // (Bad Request) error."
                let is_stream = request.envelope.client.transport.is_stream();
                // "If the request contains the DONT-FRAGMENT, EVEN-PORT, or RESERVATION-TOKEN attribute, the server
                // MUST reject the request with a 400 (Bad Request) error."
                let of_datagrams =
                    [AttributeType::DONT_FRAGMENT, AttributeType::EVEN_PORT, AttributeType::RESERVATION_TOKEN];
                if !is_stream || of_datagrams.into_iter().any(|kind| message.has(kind)) {
                    return Err(ErrorCode::BadRequest.into());
                }
                Ok(RelayTransport::Tcp)
            }
            _ => Err(ErrorCode::UnsupportedTransportProtocol.into()),
        }
    }

    /// RFC 8016 section 3.1.2: "If the MOBILITY-TICKET attribute is included, and has a length of zero, but TURN
    /// session mobility is forbidden by local policy, the server will reject the request with the new error code 405".
    fn wants_ticket(&self, message: &Message<'_>) -> Result<bool, Rejection> {
        match message.attribute(AttributeType::MOBILITY_TICKET) {
            None => Ok(false),
            Some(ticket) if !ticket.value.is_empty() => Err(ErrorCode::BadRequest.into()),
            Some(_) if self.settings.mobility => Ok(true),
            Some(_) => Err(ErrorCode::MobilityForbidden.into()),
        }
    }

    /// Takes places and ports; what was taken is given back with the claim.
    /// `allocations_max` is what a verdict allows the user, in place of what is configured.
    fn claim(
        &mut self,
        request: &Request<'_>,
        wanted: &Wanted,
        allocations_max: Option<u32>,
    ) -> Result<Claim, Rejection> {
        let (mut user, client) = (request.credentials.quota_name(), request.envelope.client.client.ip());
        let mut limits = Cow::Borrowed(&self.settings.limits);
        if let Some(allocations_max) = allocations_max {
            limits.to_mut().allocations_per_user = allocations_max;
        }
        // Whoever sets a limit for a name means all who have it.
        if allocations_max.is_some()
            || ![0, Limits::DEFAULT.allocations_per_user].contains(&limits.allocations_per_user)
        {
            user = user.or(Some(&request.credentials.username));
        }
        let acquire = |paid: Option<&QuotaGuard>| {
            let acquired = self.shared.quotas.acquire(&limits, user, client, paid);
            acquired.map_err(|_| ErrorCode::AllocationQuotaReached)
        };
        if let Some(token) = wanted.token {
            let (now, owner) = (request.now.instant, &request.credentials);
            let redeemed = self.shared.reservations.redeem(token, now, owner, |address, paid| {
                let quota = acquire(Some(paid))?;
                self.shared.ports.hand_over(address, self.worker);
                Ok(quota)
            });
            let (address, quota) = redeemed?;
            let (addresses, source) = ([Some(address), None], RelaySource::Held);
            return Ok(Claim { addresses, address_error: None, source, quota, reservation_quota: None });
        }
        let quota = acquire(None)?;
        let reservation_quota = if wanted.even_port == Some(true) { Some(acquire(None)?) } else { None };
        let parity = parity(wanted.even_port);
        let first = self.claim_family(wanted.family, parity);
        let (addresses, address_error) = if wanted.additional {
            let other = wanted.family.other();
            match (first, self.claim_family(other, parity)) {
                (Ok(first), Ok(second)) => ([Some(first), Some(second)], None),
                (Ok(first), Err(code)) => ([Some(first), None], Some((other, code))),
                (Err(code), Ok(second)) => ([None, Some(second)], Some((wanted.family, code))),
                (Err(code), Err(_)) => return Err(code.into()),
            }
        } else {
            ([Some(first?), None], None)
        };
        Ok(Claim { addresses, address_error, source: RelaySource::Fresh, quota, reservation_quota })
    }

    fn claim_family(&mut self, family: Family, parity: Parity) -> Result<RelayedAddr, ErrorCode> {
        if !self.settings.serves(family) {
            return Err(ErrorCode::AddressFamilyNotSupported);
        }
        let claimed = self.shared.ports.claim(family, parity, self.worker, &mut self.rng);
        claimed.ok_or(ErrorCode::InsufficientCapacity)
    }

    /// The shell has opened a relay socket, or could not.
    pub(in super::super) fn relay_opened(&mut self, now: Now, relay: RelayId, result: Result<(), OpenError>) {
        let id = relay.allocation;
        let Some(address) = self.relayed_address(relay) else { return };
        let Some(opening) = self.table.get_mut(id).and_then(|allocation| allocation.opening.as_mut()) else { return };
        match result {
            Ok(()) => {
                opening.waiting -= 1;
                if opening.waiting == 0 {
                    self.finish_allocate(now, id);
                }
            }
            Err(OpenError::AddressInUse) if opening.source == RelaySource::Fresh && opening.attempts < ATTEMPTS_MAX => {
                opening.attempts += 1;
                let even_port = opening.even_port;
                self.try_another_port(now, relay, address, even_port);
            }
            Err(OpenError::AddressInUse | OpenError::Exhausted) => self.give_up(now, relay, address),
        }
    }

    fn try_another_port(&mut self, now: Now, relay: RelayId, taken: RelayedAddr, even_port: Option<bool>) {
        // The taken port stays claimed until another one is, so that it is not chosen again.
        let claimed = self.claim_family(relay.family, parity(even_port));
        self.release_claim(taken, even_port);
        match claimed {
            Ok(address) => {
                let Some(allocation) = self.table.get_mut(relay.allocation) else { return };
                if let Some(slot) = allocation.relays_mut().get_mut(relay.family) {
                    slot.address = address;
                }
                let (source, hold_next) = (RelaySource::Fresh, even_port == Some(true));
                self.effects.push_back(match allocation.transport() {
                    RelayTransport::Udp => Effect::OpenRelay { relay, address, source, hold_next },
                    RelayTransport::Tcp => Effect::OpenTcpRelay { relay, address },
                });
            }
            Err(_) => self.abandon(now, relay),
        }
    }

    fn give_up(&mut self, now: Now, relay: RelayId, address: RelayedAddr) {
        let even_port = self
            .table
            .get(relay.allocation)
            .and_then(|allocation| allocation.opening.as_ref())
            .and_then(|opening| opening.even_port);
        self.release_claim(address, even_port);
        self.abandon(now, relay);
    }

    fn release_claim(&self, address: RelayedAddr, even_port: Option<bool>) {
        self.shared.ports.release(address);
        if even_port == Some(true) {
            self.shared.ports.release(next_port(address));
        }
    }

    /// One socket cannot be had: the other half of a dual allocation goes on alone, else 508.
    fn abandon(&mut self, now: Now, relay: RelayId) {
        let id = relay.allocation;
        let Some(allocation) = self.table.get_mut(id) else { return };
        allocation.relays_mut().remove(relay.family);
        let Some(opening) = allocation.opening.as_mut() else { return };
        opening.waiting -= 1;
        let (waiting, envelope) = (opening.waiting, opening.envelope.clone());
        if allocation.relays().iter().next().is_some() {
            allocation.created.address_error = Some((relay.family, ErrorCode::InsufficientCapacity));
            if waiting == 0 {
                self.finish_allocate(now, id);
            }
            return;
        }
        self.end(id, super::super::effect::EndReason::Evicted);
        self.refuse(&envelope, ErrorCode::InsufficientCapacity, |_| {});
    }

    /// Every socket is open: the allocation exists from now on, and the client hears of it.
    fn finish_allocate(&mut self, now: Now, id: AllocationId) {
        let token: Token = self.rng.random();
        let Some(allocation) = self.table.get_mut(id) else { return };
        let Some(opening) = allocation.opening.take().map(|opening| *opening) else { return };
        allocation.set_expiry(now.instant + opening.lifetime);
        let first = allocation.relays().iter().next().copied();
        if let (Some(quota), Some(relay)) = (opening.reservation_quota, first) {
            let (address, owner) = (next_port(relay.address), allocation.credentials.clone());
            let expires_at = now.instant + RESERVATION_LIFETIME;
            self.shared.reservations.insert(token, address, self.worker, expires_at, owner, quota);
            self.reserved.push_back((expires_at, token));
            allocation.created.reservation = Some(token);
        }
        for relay in allocation.relays().iter() {
            let relay_id = RelayId { allocation: id, family: relay.address.family() };
            self.shared.ports.publish(relay.address, allocation.transport(), self.worker, relay_id);
        }
        self.rearm(id);
        if opening.mobile {
            self.issue_ticket(id);
        }
        self.answer_allocate(&opening.envelope, id, now);
        if let Some(allocation) = self.table.get(id) {
            self.live.enter_all(allocation);
            let session = self.session_id(id, allocation.started);
            self.effects.push_back(Effect::AllocationStarted(session));
        }
    }

    /// The success response, first or repeated.
    fn answer_allocate(&mut self, envelope: &Envelope, id: AllocationId, now: Now) {
        let Some(allocation) = self.table.get(id) else { return };
        let left = allocation.expires_at().map(|at| at.saturating_duration_since(now.instant)).unwrap_or_default();
        let created = allocation.created;
        let relays = [Family::V4, Family::V6]
            .map(|family| allocation.relays().get(family).map(|relay| self.shared.ports.public(relay.address)));
        let ticket = allocation.mobility.as_ref().map(|mobility| *mobility.ticket());
        let mapped: SocketAddr = envelope.client.client.socket_addr();
        self.succeed(envelope, |builder| {
            for relayed in relays.into_iter().flatten() {
                builder.xor_address(AttributeType::XOR_RELAYED_ADDRESS, relayed);
            }
            // To the nearest second: a retransmission that comes at once gets the very same answer.
            builder.u32(AttributeType::LIFETIME, (left + Duration::from_millis(500)).as_secs() as u32);
            builder.xor_address(AttributeType::XOR_MAPPED_ADDRESS, mapped);
            if let Some(token) = created.reservation {
                builder.attribute(AttributeType::RESERVATION_TOKEN, &token);
            }
            if let Some(ticket) = ticket {
                builder.attribute(AttributeType::MOBILITY_TICKET, &ticket);
            }
            if let Some((family, code)) = created.address_error {
                builder.address_error_code(family_code(family), code);
            }
        });
    }
}

/// An optional attribute; 400 when it is there and malformed.
fn parsed<'a, T>(
    message: &Message<'a>,
    kind: AttributeType,
    parse: impl Fn(crate::stun::attribute::Attribute<'a>) -> Option<T>,
) -> Result<Option<T>, Rejection> {
    match message.attribute(kind) {
        Some(attribute) => Ok(Some(parse(attribute).ok_or(ErrorCode::BadRequest)?)),
        None => Ok(None),
    }
}

fn parity(even_port: Option<bool>) -> Parity {
    match even_port {
        None => Parity::Any,
        Some(false) => Parity::Even,
        Some(true) => Parity::EvenPair,
    }
}

fn family_code(family: Family) -> u8 {
    match family {
        Family::V4 => 0x01,
        Family::V6 => 0x02,
    }
}
