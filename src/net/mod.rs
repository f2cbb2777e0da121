//! Sockets and nothing else.

pub mod admission;
pub mod buffers;
pub mod send_queue;
