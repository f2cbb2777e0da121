//! Refresh (RFC 8656 section 8).

use std::time::Duration;

use super::super::effect::EndReason;
use super::super::ids::AllocationId;
use super::super::mobility::Admission;
use super::super::peer_policy::is_tunnel;
use super::super::server::Server;
use super::{Envelope, Rejection, Request};
use crate::address::Family;
use crate::stun::{AttributeType, ErrorCode};

impl Server {
    pub(super) fn refresh(&mut self, request: &Request<'_>) -> Result<(), Rejection> {
        let envelope = &request.envelope;
        // A late duplicate of a release says what it said, and ends nothing that has come since.
        if self.released.knows(&envelope.client, envelope.transaction) {
            self.succeed(envelope, |builder| _ = builder.u32(AttributeType::LIFETIME, 0));
            return Ok(());
        }
        let (id, moves) = match self.admission(request)? {
            None => (self.allocation_of(request)?, false),
            Some(Admission::Moves(id)) => (id, true),
            Some(Admission::HasMoved(id, lifetime)) => {
                self.answer_refresh(request, id, lifetime, true);
                return Ok(());
            }
        };
        let families = self.families_to_refresh(request, id)?;
        let lifetime = self.desired_lifetime(request)?;
        if moves && !self.claim_client(&envelope.client) {
            return Err(ErrorCode::AllocationMismatch.into());
        }
        let now = request.now.instant;
        if lifetime.is_zero() {
            let allocate = self.table.get(id).map(|allocation| allocation.created.transaction);
            for family in families.into_iter().flatten() {
                self.end_family(id, family, EndReason::Released, now);
            }
            let credentials = request.credentials.clone();
            self.released.remember(envelope.client, envelope.transaction, credentials, now);
            if let Some(allocate) = allocate.filter(|_| self.table.get(id).is_none()) {
                self.released.remember_allocate(envelope.client, allocate, now);
            }
        } else if let Some(allocation) = self.table.get_mut(id) {
            if allocation.credentials.seconds_left(request.now.unix_seconds).is_some() {
                allocation.credentials = request.credentials.clone();
            }
            let mut is_felt = false;
            for family in families.into_iter().flatten() {
                is_felt |= allocation.is_felt(family, now + lifetime, now);
                if let Some(relay) = allocation.relays_mut().get_mut(family) {
                    relay.expires_at = now + lifetime;
                }
            }
            self.rearm(id);
            if is_felt {
                self.permissions_changed(id);
                self.extend_channels(id, |peer| families.contains(&Some(peer.family())));
            }
        }
        if moves {
            self.announce(id, (envelope.client, envelope.route), envelope.transaction, lifetime, now);
        }
        self.answer_refresh(request, id, lifetime, moves);
        Ok(())
    }

    /// What the ticket of a request is good for, and whether the client may use it (RFC 8016 section 3.2.2).
    fn admission(&self, request: &Request<'_>) -> Result<Option<Admission>, Rejection> {
        let Some(ticket) = request.message.attribute(AttributeType::MOBILITY_TICKET) else { return Ok(None) };
        let Envelope { client, transaction, .. } = &request.envelope;
        let admission = self.admit(client, *transaction, ticket.value, request.now.instant)?;
        let (Admission::Moves(id) | Admission::HasMoved(id, _)) = admission;
        let allocation = self.table.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        // "identify that it is the same user that had previously created the TURN allocation. If the above check is not
        // successful, then the server MUST reject the request with a 441 (Wrong Credentials) error."
        if !allocation.credentials.is_same_user(&request.credentials) {
            return Err(ErrorCode::WrongCredentials.into());
        }
        if is_tunnel(client.client.ip()) {
            return Err(ErrorCode::Forbidden.into());
        }
        Ok(Some(admission))
    }

    /// The success response, with the new ticket of an allocation that moves.
    fn answer_refresh(&mut self, request: &Request<'_>, id: AllocationId, lifetime: Duration, moves: bool) {
        let mobility = self.table.get(id).and_then(|allocation| allocation.mobility.as_ref()).filter(|_| moves);
        let ticket = mobility.map(|mobility| *mobility.ticket());
        self.succeed(&request.envelope, |builder| {
            builder.u32(AttributeType::LIFETIME, lifetime.as_secs() as u32);
            if let Some(ticket) = ticket {
                builder.attribute(AttributeType::MOBILITY_TICKET, &ticket);
            }
        });
    }

    /// The halves that REQUESTED-ADDRESS-FAMILY names, else all; 443 for one that the allocation does not have.
    fn families_to_refresh(&self, request: &Request<'_>, id: AllocationId) -> Result<[Option<Family>; 2], Rejection> {
        let now = request.now.instant;
        let has = |family| self.table.get(id).is_some_and(|allocation| allocation.relays_at(family, now));
        let Some(attribute) = request.message.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY) else {
            return Ok([Family::V4, Family::V6].map(|family| has(family).then_some(family)));
        };
        match attribute.as_family().ok_or(ErrorCode::BadRequest)? {
            Some(family) if has(family) => Ok([Some(family), None]),
            Some(_) | None => Err(ErrorCode::PeerAddressFamilyMismatch.into()),
        }
    }

    fn desired_lifetime(&self, request: &Request<'_>) -> Result<Duration, Rejection> {
        let requested = self.requested_lifetime(request)?;
        Ok(if requested == Some(Duration::ZERO) { Duration::ZERO } else { self.granted_lifetime(request, requested) })
    }

    /// LIFETIME as the client asks for it.
    pub(super) fn requested_lifetime(&self, request: &Request<'_>) -> Result<Option<Duration>, Rejection> {
        let Some(attribute) = request.message.attribute(AttributeType::LIFETIME) else { return Ok(None) };
        let seconds = attribute.as_u32().ok_or(ErrorCode::BadRequest)?;
        Ok(Some(Duration::from_secs(u64::from(seconds))))
    }

    /// "the minimum of the client's proposed lifetime and the server's maximum allowed lifetime", and at least the
    /// default (RFC 8656 sections 7.2 and 8.2); but never more than is left of a token (RFC 7635 section 9).
    pub(super) fn granted_lifetime(&self, request: &Request<'_>, requested: Option<Duration>) -> Duration {
        let default = self.settings.lifetime_default;
        let granted = requested.map_or(default, |requested| requested.min(self.settings.lifetime_max).max(default));
        let left = request.credentials.seconds_left(request.now.unix_seconds).map(Duration::from_secs);
        left.map_or(granted, |left| granted.min(left))
    }
}
