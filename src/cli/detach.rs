//! `ferryd detach`: what a killed ferryd has left on network interfaces.

use std::process::ExitCode;

use super::output::print;
use crate::offload::remove_leftovers;

pub(super) fn run() -> ExitCode {
    match remove_leftovers() {
        Ok(interfaces) => {
            for name in interfaces {
                print(format!("{name}: the filter is gone\n"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: filters of the kernel path cannot be removed ({error})");
            ExitCode::FAILURE
        }
    }
}
