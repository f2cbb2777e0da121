//! `ferryd probe`: a client's view of a server.

use std::process::ExitCode;

use clap::Args;

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Arguments {
    url: String,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    eprintln!("error: {} is not probed yet", arguments.url);
    ExitCode::FAILURE
}
