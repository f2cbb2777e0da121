//! RFC 8656 as a state machine: bytes and time in, forwards and effects out.
//!
//! [`Server`] is the contract. Application data is a return value ([`Forward`]); everything else is an [`Effect`] in a
//! queue. Every datagram ends in exactly one [`Outcome`].

mod allocation;
pub mod authorization;
mod buckets;
pub mod effect;
mod expiry;
mod forward;
mod guessing;
pub mod ids;
pub mod live;
mod meter;
pub mod mobility;
pub mod nat_behavior;
pub mod outcome;
pub mod peer_connections;
pub mod peer_policy;
pub mod ports;
pub mod quota;
pub mod redirect;
mod released;
mod reply;
mod request;
pub mod reservation;
pub mod server;
pub mod session;
pub mod settings;
mod strangers;
mod table;
#[cfg(test)]
mod testing;

pub use effect::{Beyond, Effect, Forward, OpenError};
pub use forward::IcmpError;
pub use ids::{AllocationId, PeerConnectionId, RelayId, RelayTransport, Route, WorkerId};
pub use meter::{Buckets, SharedBuckets};
pub use outcome::{Counters, DropReason, Outcome};
pub use peer_connections::DataRoom;
pub use peer_policy::PeerPolicy;
pub use redirect::{Drain, Redirect};
pub use server::{Now, Policy, Server, Shared};
pub use session::{ListenerFilter, Session, SessionDetail, SessionFilter, SessionId, SessionPage};
pub use settings::Settings;
