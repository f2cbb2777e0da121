//! Sockets and nothing else.
//!
//! Datagrams go in and out in batches, streams are accepted, opened and driven, and the kernel is asked what it knows;
//! what the bytes mean is for other rooms. `unsafe` lives here.
//!
//! - [`socket`]: opening sockets, and why one could not be opened.
//! - [`inherited`]: sockets that the service manager has opened.
//! - [`steering`]: several receive queues behind one UDP port.
//! - [`datagrams`]: the datagram sockets of a worker, by epoll or by io_uring.
//! - [`udp`]: batches of datagrams.
//! - [`error_queue`]: ICMP errors about datagrams that were sent.
//! - [`accept`], [`admission`]: from a listening socket to an established stream, and who is let in.
//! - [`proxy`]: the client that a proxy names, in front of the client's own bytes.
//! - [`tls`], [`certificate`]: what TLS listeners answer with.
//! - [`dtls`]: associations of DTLS, in memory.
//! - [`stream`], [`buffers`]: established streams in a worker's own loop.
//! - [`peer`]: TCP between relayed addresses and peers.
//! - [`poll`]: waiting for sockets, and waking a thread that waits.
//! - [`interfaces`], [`headroom`]: this host's addresses and descriptor limits, and what of those is kept back.
//! - [`secrecy`]: no memory of this process leaves it.
//! - [`address_watch`]: being told when the addresses change.

pub mod accept;
pub mod address_watch;
pub mod admission;
pub mod buffers;
pub mod certificate;
mod control;
pub mod datagrams;
pub mod drops;
pub mod dtls;
pub mod error_queue;
pub mod headroom;
pub mod inherited;
pub mod interfaces;
mod open_error;
pub mod peer;
pub mod poll;
pub mod proxy;
pub mod secrecy;
mod send_queue;
mod sni;
pub mod socket;
pub mod steering;
pub mod stream;
pub mod tls;
pub mod udp;

#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod test_tls;
