//! `ferryd log-level`: what is logged.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Connection;
use crate::control::wire::LogLevel;
use crate::observe::logs::Level;

#[derive(Debug, Args)]
#[group(skip)]
pub(in super::super) struct Arguments {
    /// Write events of this level and above, whatever the configuration says: error, warn, info, debug, trace
    #[arg(value_parser = super::super::level_from_name)]
    level: Option<Level>,

    /// Follow the configuration again
    #[arg(long, conflicts_with = "level")]
    reset: bool,

    #[command(flatten)]
    connection: Connection,
}

pub(in super::super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    const PATH: &str = "/v1/log-level";
    let body = arguments.level.map(|level| json!({ "level": level.name() }));
    let method = match (&body, arguments.reset) {
        (Some(_), _) => "PUT",
        (None, true) => "DELETE",
        (None, false) => "GET",
    };
    arguments.connection.show(file, (method, PATH, body.as_ref()), words)
}

fn words(level: LogLevel) -> String {
    if level.level == level.configured {
        return format!("{}\n", level.level);
    }
    format!("{}, and {} in the configuration\n", level.level, level.configured)
}
