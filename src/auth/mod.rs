//! Credentials: who may allocate, and how a request proves it (RFC 8489 section 9.2).
//!
//! [`Authenticator::authenticate`] judges a request; what it refuses is answered with a [`Challenge`]. Nothing is
//! remembered between requests: nonces prove themselves, keys are derived from the configuration, and a live allocation
//! keeps the [`Credentials`] that created it.

pub mod aead;
pub mod authenticator;
pub mod challenge;
pub mod credentials;
pub mod long_term;
pub mod nonce;
pub mod prepare;
pub mod revocation;
pub mod seal;
pub mod settings;
pub mod subject;
mod third_party;

pub use authenticator::{AuthError, Authenticator};
pub use challenge::Challenge;
pub use credentials::Credentials;
pub use prepare::{PrepareError, opaque_string};
pub use revocation::{Revocation, Revocations};
pub use settings::Settings;
pub use subject::Subject;
