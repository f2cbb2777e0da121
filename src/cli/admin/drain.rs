//! `ferryd drain`: empties the server.

use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::super::table::duration;
use super::{Connection, age, told};
use crate::config::parse_duration;
use crate::control::client::{Client, ClientError, Place};
use crate::control::wire::{self, Done, Status};

#[derive(Debug, Args)]
#[group(skip)]
pub(in super::super) struct Arguments {
    /// How long live allocations may go on, such as 90s, 10m or 1h; 0 is until they end by themselves
    #[arg(long, default_value = "1h", value_parser = deadline)]
    deadline: Duration,

    /// Where clients that ask for a new allocation are sent: a name or address, and a port. A name is looked up here and
    /// now, for one address of each family. Without it that of the configuration, else they are refused
    #[arg(long, value_name = "HOST:PORT")]
    redirect: Vec<String>,

    /// The same for clients over TLS, where it differs
    #[arg(long, value_name = "HOST:PORT")]
    redirect_tls: Vec<String>,

    /// Make new allocations again
    #[arg(long, conflicts_with_all = ["redirect", "redirect_tls", "wait"])]
    cancel: bool,

    /// Return when the server has stopped
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    connection: Connection,
}

/// Between two looks at a server that drains.
const LOOK: Duration = Duration::from_millis(500);
/// How long a server may be out of reach before nobody waits for it.
const LOST_MAX: Duration = Duration::from_secs(300);

fn deadline(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration such as 90s, 10m or 1h".to_owned())
}

pub(in super::super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    let connection = &arguments.connection;
    if arguments.cancel {
        return connection
            .show(file, ("DELETE", "/v1/drain", None), |_: Done| "new allocations are made again\n".to_owned());
    }
    let (redirect, redirect_tls) = match (look_up(&arguments.redirect), look_up(&arguments.redirect_tls)) {
        (Ok(redirect), Ok(redirect_tls)) => (redirect, redirect_tls),
        (Err(words), _) | (_, Err(words)) => {
            eprintln!("error: {words}");
            return ExitCode::FAILURE;
        }
    };
    let body = json!({
        "deadline": Some(arguments.deadline.as_secs()).filter(|seconds| *seconds > 0),
        "redirect": redirect,
        "redirect_tls": redirect_tls,
        "domain": name(&arguments.redirect_tls).or_else(|| name(&arguments.redirect)),
    });
    let tls_alone = arguments.redirect.is_empty() && !arguments.redirect_tls.is_empty();
    let begun = connection.show(file, ("POST", "/v1/drain", Some(&body)), |drain| words(&drain, tls_alone));
    if begun == ExitCode::SUCCESS && arguments.wait {
        return match connection.client(file) {
            Ok(client) => wait(&client),
            Err(error) => told(Err(error)),
        };
    }
    begun
}

/// One address of each family; clients are told addresses.
fn look_up(hosts: &[String]) -> Result<Vec<SocketAddr>, String> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for host in hosts {
        let addresses = host.to_socket_addrs().map_err(|error| {
            format!("{host}: {error}, expected a name or address and a port, such as turn2.example.org:3478")
        })?;
        let before = found.len();
        for address in addresses {
            if !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                found.push(address);
            }
        }
        if found.len() == before {
            return Err(format!("{host}: has no address of a family that no earlier one has"));
        }
    }
    Ok(found)
}

/// The name among them, which the certificate of that server is for.
fn name(hosts: &[String]) -> Option<String> {
    let names = hosts.iter().filter(|host| host.parse::<SocketAddr>().is_err());
    names.filter_map(|host| host.rsplit_once(':')).map(|(name, _)| name.to_owned()).next()
}

/// `tls_alone`: only clients over TLS have a sibling.
fn words(drain: &wire::Drain, tls_alone: bool) -> String {
    let redirect: Vec<String> = drain.redirect.iter().map(ToString::to_string).collect();
    let elsewhere = match redirect.as_slice() {
        [] => "new ones are refused (508)".to_owned(),
        redirect if tls_alone => {
            format!("new ones over TLS are sent to {}, all others are refused (508)", redirect.join(", "))
        }
        redirect => format!("new ones are sent to {}", redirect.join(", ")),
    };
    let end = match drain.deadline {
        None => "without a deadline".to_owned(),
        Some(deadline) => format!("until {} from now at the latest", duration(deadline.saturating_sub(age(0)))),
    };
    format!("{} allocations go on, {end}; {elsewhere}\n", drain.allocations)
}

/// What one look at a server that drains tells.
#[derive(Debug)]
enum Look {
    /// The server that started then drains.
    Drains(u64),
    /// It answers, but cannot tell now: a worker that is slow to answer, or a stop under way.
    Later,
    /// It is gone, or another has started in its place.
    Over,
    Cancelled,
    /// It did not answer, which tells nothing about the drain.
    Lost(ClientError),
    Wrong(ClientError),
}

/// Judges an answer; `started_at` is when the server that drains has started.
fn look(answer: Result<Status, ClientError>, started_at: Option<u64>) -> Look {
    match answer {
        Ok(status) if started_at.is_some_and(|started_at| started_at != status.started_at) => Look::Over,
        Ok(status) if status.drain.is_none() => Look::Cancelled,
        Ok(status) => Look::Drains(status.started_at),
        Err(error) => match &error {
            // Nobody listens there any more, and a socket that is gone was removed by the daemon.
            ClientError::Unreachable { source, .. } if source.kind() == ErrorKind::ConnectionRefused => Look::Over,
            ClientError::Unreachable { place: Place::Socket(_), source } if source.kind() == ErrorKind::NotFound => {
                Look::Over
            }
            ClientError::Unreachable { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Look::Wrong(error)
            }
            ClientError::Unreachable { .. } | ClientError::Broken { .. } => Look::Lost(error),
            ClientError::Refused { status: 503, .. } => Look::Later,
            ClientError::Refused { .. } => Look::Wrong(error),
        },
    }
}

/// Looks until the server is gone. Fails when the drain was cancelled, and when nothing was heard for [`LOST_MAX`].
fn wait(client: &Client) -> ExitCode {
    let mut started_at = None;
    let mut lost: Option<(Instant, u32)> = None;
    loop {
        match look(client.get("/v1/status"), started_at) {
            Look::Over => return ExitCode::SUCCESS,
            Look::Cancelled => {
                eprintln!("error: the drain was cancelled");
                return ExitCode::FAILURE;
            }
            Look::Wrong(error) => return told(Err(error)),
            Look::Drains(at) => (started_at, lost) = (Some(at), None),
            Look::Later => lost = None,
            Look::Lost(error) => {
                let (since, looks) = lost.unwrap_or((Instant::now(), 0));
                if since.elapsed() >= LOST_MAX {
                    eprintln!("error: {error}; nobody knows here whether the server has drained");
                    return ExitCode::FAILURE;
                }
                // The first may be the stop.
                if looks == 1 {
                    eprintln!("warning: {error}; the drain goes on, and so do looks at it");
                }
                lost = Some((since, looks + 1));
            }
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sibling_is_looked_up_beforehand() {
        let hosts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let found = look_up(&hosts(&["192.0.2.1:3478", "[2001:db8::1]:3478"])).unwrap();
        assert_eq!(found, ["192.0.2.1:3478".parse().unwrap(), "[2001:db8::1]:3478".parse().unwrap()]);
        assert!(look_up(&hosts(&["192.0.2.1:3478", "192.0.2.2:3478"])).is_err());
        assert!(look_up(&hosts(&["192.0.2.1"])).unwrap_err().contains("and a port"));
        assert_eq!(name(&hosts(&["192.0.2.1:3478", "turn2.example.org:3478"])), Some("turn2.example.org".to_owned()));
        assert_eq!(name(&hosts(&["[2001:db8::1]:3478"])), None);
    }

    #[test]
    fn who_is_sent_away_and_who_is_refused_is_told() {
        let drain = |redirect: &[&str]| wire::Drain {
            since: 0,
            deadline: None,
            cause: "operator".to_owned(),
            redirect: redirect.iter().map(|address| address.parse().unwrap()).collect(),
            allocations: 2,
        };
        let sibling = drain(&["192.0.2.9:3478"]);
        let beginning = "2 allocations go on, without a deadline; ";
        for (drain, tls_alone, end) in [
            (&drain(&[]), false, "new ones are refused (508)\n"),
            (&sibling, false, "new ones are sent to 192.0.2.9:3478\n"),
            (&sibling, true, "new ones over TLS are sent to 192.0.2.9:3478, all others are refused (508)\n"),
        ] {
            assert_eq!(words(drain, tls_alone), format!("{beginning}{end}"));
        }
    }

    #[test]
    fn only_a_server_that_is_gone_has_drained() {
        let unreachable = |place: &Place, kind: ErrorKind| {
            Err(ClientError::Unreachable { place: place.clone(), source: kind.into() })
        };
        let (socket, url) = (&Place::Socket("/run/ferryd/admin.sock".into()), &Place::url("turn1.example.org", 9642));
        for (place, kind) in
            [(socket, ErrorKind::NotFound), (socket, ErrorKind::ConnectionRefused), (url, ErrorKind::ConnectionRefused)]
        {
            assert!(matches!(look(unreachable(place, kind), Some(1)), Look::Over), "{place} {kind}");
        }
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::TimedOut,
            ErrorKind::HostUnreachable,
            ErrorKind::NetworkUnreachable,
            ErrorKind::ConnectionReset,
            ErrorKind::UnexpectedEof,
            ErrorKind::InvalidData,
            ErrorKind::Other,
        ] {
            assert!(matches!(look(unreachable(url, kind), Some(1)), Look::Lost(_)), "{kind}");
        }
        let broken = Err(ClientError::Broken { place: url.clone(), words: String::new() });
        assert!(matches!(look(broken, Some(1)), Look::Lost(_)));
        assert!(matches!(look(unreachable(socket, ErrorKind::PermissionDenied), None), Look::Wrong(_)));
        let refused = |status| Err(ClientError::Refused { status, words: String::new() });
        assert!(matches!(look(refused(503), None), Look::Later));
        assert!(matches!(look(refused(401), None), Look::Wrong(_)));
    }
}
