//! Sockets and nothing else.
//!
//! Datagrams go in and out in batches, streams are opened, and the kernel is asked what it knows; what the bytes mean
//! is for other rooms. `unsafe` lives here.
//!
//! - [`socket`]: opening sockets, and why one could not be opened.
//! - [`udp`]: batches of datagrams.
//! - [`error_queue`]: ICMP errors about datagrams that were sent.
//! - [`poll`]: waiting for sockets, and waking a thread that waits.
//! - [`interfaces`]: this host's addresses and descriptor limits.

mod control;
pub mod error_queue;
pub mod interfaces;
mod open_error;
pub mod poll;
pub mod socket;
pub mod udp;

#[cfg(test)]
mod test_support;
