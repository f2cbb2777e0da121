//! `ferryd reload`: the configuration is read again.

use std::path::Path;
use std::process::ExitCode;

use super::Connection;
use crate::control::wire::Reloaded;

pub(in super::super) fn run(file: Option<&Path>, connection: &Connection) -> ExitCode {
    connection.show(file, ("POST", "/v1/reload", None), words)
}

fn words(reloaded: Reloaded) -> String {
    let mut lines: Vec<String> = reloaded.changed.iter().map(|name| format!("changed          {name}\n")).collect();
    if lines.is_empty() {
        lines.push("nothing has changed\n".to_owned());
    }
    lines.extend(reloaded.needs_restart.iter().map(|name| format!("needs a restart  {name}\n")));
    lines.extend(reloaded.warnings.iter().map(|warning| format!("warning          {warning}\n")));
    lines.concat()
}
