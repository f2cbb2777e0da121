//! What operators ask of a running daemon: the metrics page, and the admin API on a local socket
//! and, where it is asked for, over TLS.
//!
//! The API is HTTP with JSON; [`wire`] has its words, [`api`] its routes, and docs/openapi.json describes it. The daemon
//! serves it, and the verbs of the command line speak it through [`client`].

pub mod api;
mod bounded;
pub mod client;
pub mod metrics;
mod operate;
pub mod orders;
pub mod remote;
mod revoke;
pub mod settings;
pub mod socket;
pub mod wire;
pub mod workers;
