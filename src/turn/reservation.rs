//! Ports that EVEN-PORT reserved for a later Allocate (RFC 8656 sections 7.2 and 18.10).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::address::RelayedAddr;

/// RFC 8656 section 7.2: "The server MUST hold this reservation for at least 30 seconds".
pub(super) const RESERVATION_LIFETIME: Duration = Duration::from_secs(30);

/// A token that names a reserved port.
pub(super) type Token = [u8; 8];

/// All reservations: "a server-wide reservation", so another worker may be the one that redeems it.
#[derive(Debug, Default)]
pub struct Reservations {
    by_token: Mutex<HashMap<Token, Reservation>>,
}

#[derive(Clone, Copy, Debug)]
struct Reservation {
    address: RelayedAddr,
    expires_at: Instant,
}

impl Reservations {
    /// Reserves a port that is claimed and whose socket is held.
    pub(super) fn insert(&self, token: Token, address: RelayedAddr, expires_at: Instant) {
        self.lock().insert(token, Reservation { address, expires_at });
    }

    /// Redeems a token, once, while it has not expired.
    pub(super) fn redeem(&self, token: Token, now: Instant) -> Option<RelayedAddr> {
        let mut by_token = self.lock();
        by_token.get(&token).filter(|reservation| now < reservation.expires_at)?;
        by_token.remove(&token).map(|reservation| reservation.address)
    }

    /// Whether a token could be redeemed now.
    pub(super) fn is_valid(&self, token: Token, now: Instant) -> bool {
        self.lock().get(&token).is_some_and(|reservation| now < reservation.expires_at)
    }

    /// Takes out a reservation that nobody redeemed.
    pub(super) fn expire(&self, token: Token) -> Option<RelayedAddr> {
        self.lock().remove(&token).map(|reservation| reservation.address)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Token, Reservation>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
