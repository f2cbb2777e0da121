//! RFC 8656 as a state machine: bytes and time in, forwards and effects out.

pub mod settings;

pub use settings::Settings;
