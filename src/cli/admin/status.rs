//! `ferryd status`: how the daemon is.

use std::path::Path;
use std::process::ExitCode;

use super::super::table::duration;
use super::{Connection, age};
use crate::control::wire::{Certificate, Status};

pub(in super::super) fn run(file: Option<&Path>, connection: &Connection) -> ExitCode {
    connection.show(file, ("GET", "/v1/status", None), words)
}

fn words(status: Status) -> String {
    let configuration = status.configuration.clone().unwrap_or_else(|| "built-in defaults".to_owned());
    let certificates: Vec<String> = status.certificates.iter().map(certificate).collect();
    let certificates = if certificates.is_empty() { "none".to_owned() } else { certificates.join(", ") };
    let ports = &status.relay_ports;
    let mut lines = vec![
        ("state", state(&status)),
        ("version", format!("{}, process {}, up {}", status.version, status.process, duration(age(status.started_at)))),
        ("configuration", configuration),
        ("workers", status.workers.to_string()),
        ("allocations", status.allocations.to_string()),
        ("connections", status.connections.to_string()),
        (
            "relay ports",
            format!("{} of {} IPv4, {} of {} IPv6", ports.ipv4.used, ports.ipv4.all, ports.ipv6.used, ports.ipv6.all),
        ),
        ("listeners", status.listeners.join(", ")),
    ];
    lines.push(("certificates", certificates));
    lines.push(("log level", status.log_level.level));
    if let Some(reload) = status.last_reload {
        let ago = duration(age(reload.at));
        let words =
            if reload.ok { format!("{ago} ago") } else { format!("failed {ago} ago: {}", reload.problems.join("; ")) };
        lines.push(("last reload", words));
    }
    lines.iter().map(|(name, value)| format!("{name:<15}{value}\n")).collect()
}

/// Serving, or how far a drain has come.
fn state(status: &Status) -> String {
    let Some(drain) = &status.drain else { return status.state.clone() };
    let end = match drain.deadline {
        None => String::new(),
        Some(deadline) => format!(", {} left", duration(deadline.saturating_sub(now()))),
    };
    format!(
        "{} for {}{end}, {} of {} allocations live",
        status.state,
        duration(age(drain.since)),
        status.allocations,
        drain.allocations
    )
}

fn certificate(certificate: &Certificate) -> String {
    let names = if certificate.names.is_empty() { certificate.file.clone() } else { certificate.names.join(" ") };
    if certificate.expired {
        return format!("{names} (has ended)");
    }
    let left = u64::try_from(certificate.not_after).unwrap_or(0).saturating_sub(now());
    format!("{names} ({} left)", duration(left))
}

fn now() -> u64 {
    age(0)
}
