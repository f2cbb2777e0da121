//! Ports that EVEN-PORT reserved for a later Allocate (RFC 8656 sections 7.2 and 18.10).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ids::WorkerId;
use super::quota::QuotaGuard;
use crate::address::RelayedAddr;
use crate::auth::Credentials;
use crate::stun::ErrorCode;

/// RFC 8656 section 7.2: "The server MUST hold this reservation for at least 30 seconds".
pub(super) const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);

/// A token that names a reserved port.
pub(super) type Token = [u8; 8];

/// The port that goes with an even one.
pub(super) fn next_port(address: RelayedAddr) -> RelayedAddr {
    RelayedAddr::new(SocketAddr::new(address.ip(), address.port() + 1))
}

/// All reservations: "a server-wide reservation", so another worker may be the one that redeems it.
#[derive(Debug, Default)]
pub struct Reservations {
    by_token: Mutex<HashMap<Token, Reservation>>,
}

#[derive(Debug)]
struct Reservation {
    address: RelayedAddr,
    /// The worker that made it, and that lets it expire.
    worker: WorkerId,
    expires_at: Instant,
    /// Whose it is: nobody else redeems it.
    owner: Credentials,
    /// It holds a port as an allocation does, and is paid for as one.
    quota: QuotaGuard,
}

impl Reservations {
    /// Reserves a port that is claimed and whose socket is held.
    pub(super) fn insert(
        &self,
        token: Token,
        address: RelayedAddr,
        worker: WorkerId,
        expires_at: Instant,
        owner: Credentials,
        quota: QuotaGuard,
    ) {
        self.lock().insert(token, Reservation { address, worker, expires_at, owner, quota });
    }

    /// Redeems a token of this user, once, while it has not expired; another's is as one that is unknown. `pay` takes the place of the allocation that does and makes the
    /// port its worker's, given the place of the reservation, and keeps the token good when it fails.
    pub(super) fn redeem(
        &self,
        token: Token,
        now: Instant,
        user: &Credentials,
        pay: impl FnOnce(RelayedAddr, &QuotaGuard) -> Result<QuotaGuard, ErrorCode>,
    ) -> Result<(RelayedAddr, QuotaGuard), ErrorCode> {
        let mut by_token = self.lock();
        let reservation = by_token.get(&token).filter(|reservation| now < reservation.expires_at);
        let reservation = reservation.filter(|reservation| reservation.owner.is_same_name(user));
        let reservation = reservation.ok_or(ErrorCode::InsufficientCapacity)?;
        let (address, quota) = (reservation.address, pay(reservation.address, &reservation.quota)?);
        by_token.remove(&token);
        Ok((address, quota))
    }

    /// Takes out a reservation that nobody redeemed.
    pub(super) fn expire(&self, token: Token) -> Option<RelayedAddr> {
        self.lock().remove(&token).map(|reservation| reservation.address)
    }

    /// Takes out every reservation that a worker made.
    pub(super) fn expire_all(&self, worker: WorkerId) {
        self.lock().retain(|_, reservation| reservation.worker != worker);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Token, Reservation>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
