//! The protocol without sockets: bytes in, exact effects out, time moved by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod harness;

mod allocate;
mod authentication;
mod binding;
mod credentials;
mod dual;
mod messages;
mod refresh;
mod relay_sockets;
mod reservation;
