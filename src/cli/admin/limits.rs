//! `ferryd limits`: the limits in force.

use std::path::Path;
use std::process::ExitCode;

use super::super::table::Table;
use super::Connection;
use crate::control::wire::Limits;

pub(in super::super) fn run(file: Option<&Path>, connection: &Connection) -> ExitCode {
    connection.show(file, ("GET", "/v1/limits", None), words)
}

fn words(limits: Limits) -> String {
    let mut table = Table::new(&["LIMIT", ">IN USE", ">OF"]);
    let all = |limit: u64| if limit == 0 { "no limit".to_owned() } else { limit.to_string() };
    let mut row = |name: &str, used: Option<u64>, limit: u64| {
        table.row([name.to_owned(), used.map(|used| used.to_string()).unwrap_or_default(), all(limit)]);
    };
    row("allocations-total", Some(limits.allocations), limits.allocations_total.into());
    row("allocations-per-user", None, limits.allocations_per_user.into());
    row("allocations-per-prefix", None, limits.allocations_per_prefix.into());
    row("permissions-per-allocation", None, limits.permissions_per_allocation.into());
    row("channels-per-allocation", None, limits.channels_per_allocation.into());
    row("connections-total", Some(limits.connections), limits.connections_total);
    row("connections-per-source", None, limits.connections_per_source);
    row("handshakes", None, limits.handshakes);
    row("descriptors", Some(limits.descriptors), limits.descriptors_total);
    table.to_string()
}
