//! `ferryd doctor`: what on this host stands in the way of calls, each finding with a remedy.
//!
//! It looks and changes nothing. Nothing is sent but look-ups of names, and a request without content (HEAD) to each web
//! service that the configuration names.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::EXIT_CONFIG;
use super::output::print;
use crate::config::{self, HostFacts, StateAccess};

mod files;
mod host;
mod network;
mod services;
mod sockets;

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// What a finding means for calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Good,
    /// Calls work; somebody should look.
    Warning,
    /// Calls fail, or will.
    Bad,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// What was looked at, in a word.
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// What mends it; only what is good has none.
    remedy: Option<String>,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn bad(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Bad, found: found.into(), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, verdict, found, remedy } = self;
        write!(f, "{:<8} {check:<14} {found}", verdict.name())?;
        match remedy {
            Some(remedy) => write!(f, "\n{:<23} -> {remedy}", ""),
            None => Ok(()),
        }
    }
}

pub(super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    let (findings, status) = match examine(file) {
        Ok(findings) => {
            let is_bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
            (findings, u8::from(is_bad))
        }
        Err(findings) => (findings, EXIT_CONFIG),
    };
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Good);
    if arguments.json {
        print(format!("{}\n", as_json(&findings, worst)));
    } else {
        let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
        let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
        print(format!("{lines}{} bad, {} warnings\n", count(Verdict::Bad), count(Verdict::Warning)));
    }
    ExitCode::from(status)
}

fn as_json(findings: &[Finding], worst: Verdict) -> serde_json::Value {
    let one = |finding: &Finding| {
        let Finding { check, verdict, found, remedy } = finding;
        json!({ "check": check, "verdict": verdict.name(), "found": found, "remedy": remedy })
    };
    json!({ "worst": worst.name(), "findings": findings.iter().map(one).collect::<Vec<_>>() })
}

/// Looks at everything; `Err` is a configuration that nothing can be judged by.
fn examine(file: Option<&Path>) -> Result<Vec<Finding>, Vec<Finding>> {
    const CHECK: &str = "configuration";
    let facts = HostFacts::of_this_host().map_err(|error| {
        let found = format!("the addresses of this host cannot be listed ({error})");
        vec![Finding::bad(CHECK, found, "allow netlink sockets to this user")]
    })?;
    let loaded = config::load(file, &config::process_environment(), &facts, StateAccess::ReadOnly);
    let loaded = loaded.map_err(|problems| {
        let one = |problem: &config::Problem| {
            let found =
                format!("{}: {}: {}, expected {}", problem.source, problem.key, problem.found, problem.expected);
            Finding::bad(CHECK, found, problem.remedy.clone())
        };
        problems.0.iter().map(one).collect::<Vec<_>>()
    })?;
    let mut findings: Vec<Finding> = Vec::new();
    let warned = loaded.warnings.iter().map(|words| Finding::warning(CHECK, words, "`ferryd check` has the same line"));
    findings.extend(warned);
    if findings.is_empty() {
        let name = file.map_or_else(|| "built-in defaults".to_owned(), |file| file.display().to_string());
        findings.push(Finding::good(CHECK, name));
    }
    let (settings, now) = (&loaded.settings, SystemTime::now());
    findings.extend(sockets::listeners(&settings.listeners));
    findings.extend(sockets::pages(settings));
    findings.extend(network::addresses(&settings.turn.relay_addresses, &facts.own_addresses));
    findings.extend(network::relay_ports(&settings.turn));
    findings.extend(network::firewall(&settings.turn));
    findings.extend(network::names(&loaded));
    findings.extend(services::examine(settings));
    findings.extend(files::certificates(&loaded.certificates, now));
    findings.extend(files::state(settings.state_directory.as_deref()));
    findings.extend(settings.sessions.file.as_deref().map(files::records));
    findings.push(host::clock(now));
    findings.extend(host::descriptors());
    findings.extend(host::buffers());
    findings.extend(host::data_path(settings.worker.backend));
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_with_its_remedy() {
        let bad = Finding::bad("clock", "wrong", "set it");
        assert_eq!(bad.to_string(), "bad      clock          wrong\n                        -> set it");
        assert_eq!(Finding::good("clock", "right").to_string(), "ok       clock          right");
        let json = as_json(&[bad], Verdict::Bad);
        assert_eq!(json["worst"], "bad");
        assert_eq!(json["findings"][0]["remedy"], "set it");
    }
}
