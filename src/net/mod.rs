//! Sockets and nothing else.

pub mod accept;
pub mod admission;
pub mod buffers;
pub mod certificate;
pub mod send_queue;
pub mod sni;
pub mod stream;
#[cfg(test)]
mod test_tls;
pub mod tls;
