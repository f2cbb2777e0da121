//! Sockets and nothing else.
