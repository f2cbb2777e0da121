//! Connect (RFC 6062 section 5.2): opens a TCP connection from the relayed address to a peer.

use super::super::server::Server;
use super::{Rejection, Request};
use crate::address::PeerAddr;
use crate::stun::{AttributeType, ErrorCode};

impl Server {
    /// `Ok` is a connection that is being made: the request is answered when it is known how that went.
    pub(super) fn connect(&mut self, request: &Request<'_>) -> Result<(), Rejection> {
        // "If the request is received on a TCP connection for which no allocation exists, the server MUST return a 437
        // (Allocation Mismatch) error." An allocation of datagrams is none to connect from.
        let id = self.allocation_of(request)?;
        let allocation = self.table.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        let connections = allocation.connections.as_ref().ok_or(ErrorCode::AllocationMismatch)?;
        // "If the request does not contain an XOR-PEER-ADDRESS attribute, or if such attribute is invalid, the server
        // MUST return a 400 (Bad Request) error."
        let address = request.message.attribute(AttributeType::XOR_PEER_ADDRESS).ok_or(ErrorCode::BadRequest)?;
        let address = address.as_xor_address(request.message.transaction_id()).ok_or(ErrorCode::BadRequest)?;
        let peer = PeerAddr::new(address);
        // Of one that is being processed, or that led to a connection which is "either pending or active": "it MUST
        // return a 446 (Connection Already Exists) error."
        if connections.has(peer) {
            return Err(ErrorCode::ConnectionAlreadyExists.into());
        }
        let now = request.now;
        let own = allocation.relays().get(peer.family()).filter(|_| allocation.relays_at(peer.family(), now.instant));
        let own = own.ok_or(ErrorCode::PeerAddressFamilyMismatch)?.address;
        // "If the new connection is forbidden by local policy, the server MUST reject the request with a 403 (Forbidden)
        // error." Policy are the addresses of peers, ports of this host, and how many connections there may be.
        let permitted = self.peers.permit(Self::asker(request), peer.ip()).map_err(|_| ErrorCode::Forbidden)?;
        let to = self.destination(permitted, peer).filter(|to| to.socket_addr() != own.socket_addr());
        let to = to.ok_or(ErrorCode::Forbidden)?;
        if !connections.has_room(self.settings.limits.peer_connections_per_allocation) {
            return Err(ErrorCode::Forbidden.into());
        }
        self.begin_connection(now, id, &request.envelope, peer, to);
        Ok(())
    }
}
