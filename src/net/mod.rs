//! Sockets and nothing else.

pub mod interfaces;
