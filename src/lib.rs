//! ferryd, a STUN/TURN relay server: a pure state machine decides, a thin shell does the I/O, the kernel carries what
//! is already decided.
//!
//! The rooms, from the inside out; each may use the ones before it (`tests/architecture.rs` checks this):
//!
//! - [`address`]: transport addresses by role, and the 5-tuple.
//! - [`stun`]: RFC 8489 on the wire.
//! - [`auth`]: credentials, long-term keys and nonces.
//! - [`turn`]: RFC 8656 as a state machine without sockets, clock or randomness of its own.
//! - [`net`]: sockets and nothing else; `unsafe` lives here.
//! - [`worker`]: one packet loop per core around a [`turn::Server`].

pub mod address;
pub mod auth;
pub mod net;
pub mod stun;
pub mod turn;
pub mod worker;
