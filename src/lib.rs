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
//! - [`web`]: HTTP as a client, for webhooks and the verbs.
//! - [`worker`]: one packet loop per core around a [`turn::Server`].
//! - [`authority`]: asks a web service who may allocate.
//! - [`observe`]: the log and the metrics.
//! - [`control`]: what operators ask of a running daemon.
//! - [`config`]: the file's shape on one side, each room's settings on the other.
//! - [`daemon`]: start, stop, signals, reload and drain.
//! - [`service_manager`]: what systemd is told.
//! - [`cli`]: one file for each verb.

pub mod address;
pub mod auth;
pub mod authority;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod net;
pub mod observe;
pub mod offload;
pub mod service_manager;
pub mod stun;
pub mod turn;
pub mod web;
pub mod worker;
