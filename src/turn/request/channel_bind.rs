//! ChannelBind (RFC 8656 section 12.2).

use super::super::effect::Effect;
use super::super::ids::{RelayId, RelayTransport};
use super::super::peer_policy::{PermittedPeer, Reach};
use super::super::server::Server;
use super::{Rejection, Request};
use crate::address::PeerAddr;
use crate::stun::channel_data::ChannelNumber;
use crate::stun::{AttributeType, ErrorCode};

impl Server {
    pub(super) fn channel_bind(&mut self, request: &Request<'_>) -> Result<(), Rejection> {
        let id = self.allocation_of(request)?;
        // RFC 6062 has no datagrams, and its control connection no application data.
        if self.table.get(id).is_some_and(|allocation| allocation.transport() == RelayTransport::Tcp) {
            return Err(ErrorCode::Forbidden.into());
        }
        let channel = self.channel_number(request)?;
        let peer = self.channel_peer(request)?;
        let now = request.now.instant;
        let allocation = self.table.get(id).ok_or(ErrorCode::AllocationMismatch)?;
        allocation.check_binding(channel, peer, now).map_err(|_| ErrorCode::BadRequest)?;
        if !allocation.relays_at(peer.family(), now) {
            return Err(ErrorCode::PeerAddressFamilyMismatch.into());
        }
        let permitted = self.permit_channel_peer(request, peer)?;
        let limits = (self.settings.limits.channels_per_allocation, self.settings.limits.permissions_per_allocation);
        let allocation = self.table.get_mut(id).ok_or(ErrorCode::AllocationMismatch)?;
        // Limits answer 403 as in CreatePermission.
        if !allocation.has_room_for_channel(channel, limits.0, now)
            || !allocation.has_room_for(&[permitted], limits.1, now)
        {
            return Err(ErrorCode::Forbidden.into());
        }
        let relay = RelayId { allocation: id, family: peer.family() };
        let replaced = allocation.bind(channel, peer, now);
        let is_told = allocation.permit(permitted, now);
        let until = allocation.open_until(peer);
        for (channel, peer) in replaced {
            let relay = RelayId { allocation: id, family: peer.family() };
            self.effects.push_back(Effect::ChannelClosed { relay, channel, peer });
        }
        self.client_speaks(id, &request.envelope.client);
        self.rearm(id);
        // From the response on nothing comes from this peer by a Data indication.
        self.permissions_changed(id);
        self.succeed(&request.envelope, |_| {});
        if let Some(until) = until {
            self.effects.push_back(Effect::ChannelOpened { relay, channel, peer, until });
        }
        // The permission is for the peer's other ports as well.
        if is_told {
            self.extend_channels(id, |other| other.ip() == peer.ip() && other != peer);
        }
        Ok(())
    }

    /// "The channel number is in the range 0x4000 through 0x4FFF (inclusive)"; up to 0x7FFF by a setting.
    fn channel_number(&self, request: &Request<'_>) -> Result<ChannelNumber, Rejection> {
        let attribute = request.message.attribute(AttributeType::CHANNEL_NUMBER).ok_or(ErrorCode::BadRequest)?;
        let number = attribute.as_channel_number().and_then(ChannelNumber::new);
        let allowed = |number: &ChannelNumber| number.is_allowed() || self.settings.channels_above_4fff;
        number.filter(allowed).ok_or_else(|| ErrorCode::BadRequest.into())
    }

    fn channel_peer(&self, request: &Request<'_>) -> Result<PeerAddr, Rejection> {
        let attribute = request.message.attribute(AttributeType::XOR_PEER_ADDRESS).ok_or(ErrorCode::BadRequest)?;
        let address = attribute.as_xor_address(request.message.transaction_id()).ok_or(ErrorCode::BadRequest)?;
        Ok(PeerAddr::new(address))
    }

    /// A channel names a port, so it is judged here already: an own address needs a live relay behind it.
    fn permit_channel_peer(&self, request: &Request<'_>, peer: PeerAddr) -> Result<PermittedPeer, Rejection> {
        let permitted = self.peers.permit(Self::asker(request), peer.ip()).map_err(|_| ErrorCode::Forbidden)?;
        let reachable = match permitted.reach() {
            Reach::Network => true,
            Reach::OwnRelays => self.shared.ports.live(peer).is_some(),
            Reach::OwnHost => self.shared.ports.live(peer).is_some() || self.peers.permits_port(peer.port()),
        };
        if reachable && peer.port() != 0 { Ok(permitted) } else { Err(ErrorCode::Forbidden.into()) }
    }
}
