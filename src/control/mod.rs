//! What operators ask of a running daemon.

pub mod metrics;
