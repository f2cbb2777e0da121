//! `ferryd credential`: mints a time-limited user.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use rustls_pki_types::DnsName;
use serde_json::json;

use super::mint::{Credential, mint};
use super::output::print;
use super::urls::urls;
use super::welcome::certificate_name;
use crate::auth::opaque_string;
use crate::config::{SecretOrigin, StateAccess, parse_duration};

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// How long the user may make allocations; those made before go on
    #[arg(long, default_value = "1d", value_parser = ttl)]
    ttl: Duration,

    /// A DNS name for the URLs, in place of addresses
    #[arg(long, value_name = "NAME", value_parser = host)]
    host: Option<String>,

    /// A name for logs and quotas; without one the user is not counted
    name: Option<String>,
}

/// A credential that outlives its secret helps nobody.
const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 86400);

fn ttl(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).filter(|duration| (1..=TTL_MAX.as_secs()).contains(&duration.as_secs()));
    duration.ok_or_else(|| "expected a duration such as 90s, 10m, 12h or 1d, up to 3650d".to_owned())
}

/// The host of a URL (RFC 7065 section 3.1), in which an IPv6 address has brackets.
fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(v6) = bare.parse::<Ipv6Addr>() {
        return Ok(format!("[{v6}]"));
    }
    let is_host = text.parse::<IpAddr>().is_ok() || DnsName::try_from(text).is_ok();
    let expected = "expected a DNS name such as turn.example.org, without a port; ports are those of the configuration";
    is_host.then(|| text.to_owned()).ok_or_else(|| expected.to_owned())
}

pub(super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    let loaded = match super::load(file, StateAccess::ReadOnly) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let name = match arguments.name.as_deref().map(opaque_string).transpose() {
        Ok(name) => name,
        Err(error) => {
            eprintln!("error: the name {error}");
            return ExitCode::FAILURE;
        }
    };
    let Some(secret) = loaded.settings.auth.shared_secrets.first() else {
        eprintln!(
            "error: {}: auth.shared-secrets: there are only users with passwords of their own, expected a shared \
             secret; add one (`openssl rand -base64 18`) and restart ferryd",
            loaded.sources.file.as_deref().map_or_else(|| "environment".into(), |file| file.to_string_lossy())
        );
        return ExitCode::from(super::EXIT_CONFIG);
    };
    if loaded.secret_origin == SecretOrigin::Forgotten {
        eprintln!("error: {}", no_secret(loaded.settings.state_directory.as_deref()));
        return ExitCode::from(super::EXIT_CONFIG);
    }
    let credential = mint(secret, SystemTime::now(), arguments.ttl, name.as_deref());
    let urls = urls(&loaded.settings, arguments.host.as_deref(), certificate_name(&loaded).as_deref());
    print(format!("{:#}\n", ice_servers(&urls, &credential)));
    ExitCode::SUCCESS
}

fn no_secret(state_directory: Option<&Path>) -> String {
    match state_directory {
        Some(directory) => format!(
            "{}: no shared-secret is there, expected the one the daemon made; start ferryd first, with the same \
             configuration",
            directory.display()
        ),
        None => "auth.shared-secrets: no secret is set, expected one that the daemon knows too; set it in the file \
                 both read, or set state-directory, where the daemon keeps one (without either it prints a credential \
                 when it starts)"
            .to_owned(),
    }
}

/// What `new RTCPeerConnection()` takes.
fn ice_servers(urls: &[String], credential: &Credential) -> serde_json::Value {
    json!({
        "iceServers": [{ "urls": urls, "username": credential.username, "credential": credential.password }]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_fits_into_a_url() {
        for (given, in_url) in [
            ("turn.example.org", "turn.example.org"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("[2001:db8::1]", "[2001:db8::1]"),
        ] {
            assert_eq!(host(given).as_deref(), Ok(in_url));
        }
        for given in ["", "turn.example.org:3478", "turn:turn.example.org", "a b", "[turn.example.org]", "a/b"] {
            assert!(host(given).unwrap_err().contains("without a port"), "{given}");
        }
    }
}
