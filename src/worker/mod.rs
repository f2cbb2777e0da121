//! The shell around a `turn::Server`: one packet loop per core.

pub mod settings;
