//! Sockets and nothing else.
//!
//! Datagrams go in and out in batches, streams are opened, and the kernel is asked what it knows; what the bytes mean
//! is for other rooms. `unsafe` lives here.
//!
//! - [`poll`]: waiting for sockets, and waking a thread that waits.

pub mod poll;
