//! MOBILITY-TICKET (RFC 8016 section 3.3): what only this server can make and read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::auth::seal::{SEALED_LEN, SealKey};

/// Names an allocation, and one of its tickets: nobody can foresee it, and none is used twice.
pub(super) type Handle = u64;

/// A ticket as clients see it: the handle, sealed, in the 32 characters that coturn's client has room for.
pub(in super::super) type Ticket = [u8; TICKET_LEN];

const TICKET_LEN: usize = SEALED_LEN / 3 * 4;

/// RFC 8016 section 5: "The TURN server MUST always ensure that the ticket is authenticated and encrypted using strong
/// cryptographic algorithms to prevent modification or eavesdropping by an attacker."
pub(super) fn seal(handle: Handle, key: &SealKey) -> Ticket {
    let mut ticket = [0; TICKET_LEN];
    let len = STANDARD_NO_PAD.encode_slice(key.seal(handle), &mut ticket);
    debug_assert_eq!(len, Ok(TICKET_LEN));
    ticket
}

/// `None` for what the key has not sealed.
pub(super) fn open(value: &[u8], key: &SealKey) -> Option<Handle> {
    let mut sealed = [0; SEALED_LEN];
    if value.len() != TICKET_LEN || STANDARD_NO_PAD.decode_slice(value, &mut sealed) != Ok(SEALED_LEN) {
        return None;
    }
    key.open(sealed)
}
