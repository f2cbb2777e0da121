//! Credentials: who may allocate, and how a request proves it (RFC 8489 section 9.2).

pub mod prepare;
pub mod settings;

pub use prepare::{PrepareError, opaque_string};
pub use settings::Settings;
