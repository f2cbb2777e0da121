//! CreatePermission (RFC 8656 section 10): every peer is judged, and all are permitted or none.

use super::super::peer_policy::PermittedPeer;
use super::super::server::Server;
use super::{Rejection, Request};
use crate::address::{Family, PeerAddr};
use crate::stun::{AttributeType, ErrorCode};

impl Server {
    pub(super) fn create_permission(&mut self, request: &Request<'_>) -> Result<(), Rejection> {
        let id = self.allocation_of(request)?;
        let peers = peer_addresses(request)?;
        let allocation = self.table.get_mut(id).ok_or(ErrorCode::AllocationMismatch)?;
        if peers.iter().any(|peer| allocation.relays.get(peer.family()).is_none()) {
            return Err(ErrorCode::PeerAddressFamilyMismatch.into());
        }
        let judged: Result<Vec<PermittedPeer>, _> = peers.iter().map(|peer| self.peers.permit(peer.ip())).collect();
        let permitted = judged.map_err(|_| ErrorCode::Forbidden)?;
        // RFC 8656 section 10.2 says 508; Firefox gives the whole relay up on any final error but 403.
        let max = self.settings.limits.permissions_per_allocation;
        if !allocation.has_room_for(&permitted, max, request.now.instant) {
            return Err(ErrorCode::Forbidden.into());
        }
        for peer in permitted {
            allocation.permit(peer, request.now.instant);
        }
        self.rearm(id);
        self.succeed(&request.envelope, |_| {});
        Ok(())
    }
}

/// Every XOR-PEER-ADDRESS; 400 when there is none or one is malformed.
fn peer_addresses(request: &Request<'_>) -> Result<Vec<PeerAddr>, Rejection> {
    let id = request.message.transaction_id();
    let attributes = request.message.attributes();
    let peers: Option<Vec<_>> = attributes
        .filter(|attribute| attribute.kind == AttributeType::XOR_PEER_ADDRESS)
        .map(|attribute| attribute.as_xor_address(id).map(PeerAddr::new))
        .collect();
    peers.filter(|peers| !peers.is_empty()).ok_or_else(|| ErrorCode::BadRequest.into())
}

/// The one XOR-PEER-ADDRESS of a ChannelBind; 400 when it is missing or malformed.
pub(super) fn peer_address(request: &Request<'_>) -> Result<PeerAddr, Rejection> {
    let attribute = request.message.attribute(AttributeType::XOR_PEER_ADDRESS).ok_or(ErrorCode::BadRequest)?;
    let address = attribute.as_xor_address(request.message.transaction_id()).ok_or(ErrorCode::BadRequest)?;
    Ok(PeerAddr::new(address))
}

impl Server {
    /// 443 when the allocation has no relayed address of the peer's family.
    pub(super) fn check_family(&self, id: super::AllocationId, family: Family) -> Result<(), Rejection> {
        let allocation = self.table.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        allocation.relays.get(family).ok_or(ErrorCode::PeerAddressFamilyMismatch)?;
        Ok(())
    }
}
