//! The protocol without sockets: bytes in, exact effects out, time moved by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod harness;

mod authentication;
mod binding;
mod credentials;
mod messages;
