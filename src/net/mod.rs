//! Sockets and nothing else.

pub mod admission;
