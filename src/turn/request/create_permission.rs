//! CreatePermission (RFC 8656 section 10): every peer is judged, and all are permitted or none.

use std::net::IpAddr;

use super::super::peer_policy::PermittedPeer;
use super::super::server::Server;
use super::{Rejection, Request};
use crate::address::Family;
use crate::stun::{AttributeType, ErrorCode};

impl Server {
    pub(super) fn create_permission(&mut self, request: &Request<'_>) -> Result<(), Rejection> {
        let id = self.allocation_of(request)?;
        let peers = peer_addresses(request)?;
        let allocation = self.table.get_mut(id).ok_or(ErrorCode::AllocationMismatch)?;
        if peers.iter().any(|peer| !allocation.relays_at(Family::of(*peer), request.now.instant)) {
            return Err(ErrorCode::PeerAddressFamilyMismatch.into());
        }
        let judged = peers.iter().map(|peer| self.peers.permit(Self::asker(request), *peer));
        let judged: Result<Vec<PermittedPeer>, _> = judged.collect();
        let permitted = judged.map_err(|_| ErrorCode::Forbidden)?;
        // RFC 8656 section 10.2 says 508; Firefox gives the whole relay up on any final error but 403.
        let max = self.settings.limits.permissions_per_allocation;
        if !allocation.has_room_for(&permitted, max, request.now.instant) {
            return Err(ErrorCode::Forbidden.into());
        }
        // Sorted, as `peers` are.
        let told: Vec<IpAddr> = permitted
            .into_iter()
            .filter(|peer| allocation.permit(*peer, request.now.instant))
            .map(|it| it.ip())
            .collect();
        self.client_speaks(id, &request.envelope.client);
        self.rearm(id);
        self.permissions_changed(id);
        self.succeed(&request.envelope, |_| {});
        if !told.is_empty() {
            self.extend_channels(id, |peer| told.binary_search(&peer.ip()).is_ok());
        }
        Ok(())
    }
}

/// The addresses of every XOR-PEER-ADDRESS, each once; 400 when there is none or one is malformed.
fn peer_addresses(request: &Request<'_>) -> Result<Vec<IpAddr>, Rejection> {
    let id = request.message.transaction_id();
    let attributes = request.message.attributes();
    let peers: Option<Vec<_>> = attributes
        .filter(|attribute| attribute.kind == AttributeType::XOR_PEER_ADDRESS)
        .map(|attribute| attribute.as_xor_address(id).map(|address| address.ip()))
        .collect();
    let mut peers = peers.filter(|peers| !peers.is_empty()).ok_or(ErrorCode::BadRequest)?;
    peers.sort_unstable();
    peers.dedup();
    Ok(peers)
}
