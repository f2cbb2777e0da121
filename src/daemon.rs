//! Start, stop, signals, reload and drain.

use std::process::ExitCode;

use crate::config::{Loaded, Settings};

/// Runs until told to stop. `ready` is called once the listeners are bound, with the addresses they got.
pub fn run(loaded: Loaded, ready: impl FnOnce(&Settings)) -> ExitCode {
    let _ = (loaded, ready);
    tracing::error!("the daemon is not connected yet");
    ExitCode::FAILURE
}
