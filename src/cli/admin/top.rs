//! `ferryd top`: the busiest allocations, again and again.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::super::output::print;
use super::super::table::{Table, bytes, duration};
use super::{Reach, age, told};
use crate::config::parse_duration;
use crate::control::client::{Client, ClientError};
use crate::control::wire::{Session, Sessions, Status};

#[derive(Debug, Args)]
#[group(skip)]
pub(in super::super) struct Arguments {
    /// Between two looks
    #[arg(long, default_value = "2s", value_parser = interval)]
    interval: Duration,

    /// How many allocations to show
    #[arg(long, default_value_t = 20)]
    limit: usize,

    /// Stop after so many looks
    #[arg(long, value_name = "LOOKS")]
    count: Option<u64>,

    #[command(flatten)]
    reach: Reach,
}

/// Among these, which have had the most bytes so far, the busiest are looked for.
const PATH: &str = "/v1/sessions?sort=bytes&limit=1000";
/// To the top left corner of an empty screen.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

fn interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text).filter(|interval| !interval.is_zero());
    interval.ok_or_else(|| "expected a duration such as 2s or 1m".to_owned())
}

/// What was counted at the last look, by session.
struct Look {
    at: Instant,
    counted: HashMap<String, (u64, u64)>,
}

pub(in super::super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    let client = match arguments.reach.client(file) {
        Ok(client) => client,
        Err(error) => return told(Err(error)),
    };
    let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    let mut before: Option<Look> = None;
    let mut looks = 0;
    loop {
        let screen = match look(&client, &mut before, arguments.limit) {
            Ok(screen) => screen,
            Err(error) => return told(Err(error)),
        };
        if !print(format!("{clear}{screen}")) {
            return ExitCode::SUCCESS;
        }
        looks += 1;
        if arguments.count.is_some_and(|count| looks >= count) {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(arguments.interval);
    }
}

fn look(client: &Client, before: &mut Option<Look>, limit: usize) -> Result<String, ClientError> {
    let status: Status = client.get("/v1/status")?;
    let Sessions { sessions, .. } = client.get(PATH)?;
    let at = Instant::now();
    let rates = rates(&sessions, before.as_ref(), at);
    let counted = sessions.iter().map(|it| (it.id.clone(), (it.bytes_to_peers, it.bytes_to_client))).collect();
    *before = Some(Look { at, counted });
    let mut rows: Vec<(Session, (u64, u64))> = sessions.into_iter().zip(rates).collect();
    // Bytes decide between those that are silent.
    rows.sort_by_key(|(_, (to_peers, to_client))| std::cmp::Reverse(to_peers + to_client));
    let mut table =
        Table::new(&["ID", "USER", "CLIENT", "VIA", ">AGE", ">TO PEERS/s", ">TO CLIENT/s", ">TO PEERS", ">TO CLIENT"]);
    for (session, (to_peers, to_client)) in rows.into_iter().take(limit) {
        table.row([
            session.id,
            session.user,
            session.client.to_string(),
            session.transport,
            duration(age(session.started_at)),
            bytes(to_peers),
            bytes(to_client),
            bytes(session.bytes_to_peers),
            bytes(session.bytes_to_client),
        ]);
    }
    Ok(format!(
        "{}, up {}, {} allocations, {} connections, {} of {} relay ports (IPv4)\n\n{table}",
        status.state,
        duration(age(status.started_at)),
        status.allocations,
        status.connections,
        status.relay_ports.ipv4.used,
        status.relay_ports.ipv4.all,
    ))
}

/// Bytes a second since the last look, to peers and to the client; none for what was not there yet.
fn rates(sessions: &[Session], before: Option<&Look>, at: Instant) -> Vec<(u64, u64)> {
    let rate = |session: &Session| {
        let look = before?;
        let (to_peers, to_client) = look.counted.get(&session.id)?;
        let seconds = at.duration_since(look.at).as_secs_f64().max(0.001);
        let per_second = |now: u64, then: u64| (now.saturating_sub(then) as f64 / seconds) as u64;
        Some((per_second(session.bytes_to_peers, *to_peers), per_second(session.bytes_to_client, *to_client)))
    };
    sessions.iter().map(|session| rate(session).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_came_since_the_last_look() {
        let session = |id: &str, bytes: u64| Session {
            id: id.to_owned(),
            user: String::new(),
            client: "192.0.2.1:1".parse().unwrap(),
            transport: "udp".to_owned(),
            server: "192.0.2.2:1".parse().unwrap(),
            relayed: Vec::new(),
            started_at: 0,
            expires_in: 0,
            packets_to_peers: 0,
            bytes_to_peers: bytes,
            packets_to_client: 0,
            bytes_to_client: 0,
            datapath: "sockets".to_owned(),
            permissions: 0,
            channels: 0,
            secret: None,
        };
        let now = Instant::now();
        let counted = [("a".to_owned(), (1000, 0))].into_iter().collect();
        let before = Look { at: now, counted };
        let sessions = [session("a", 5000), session("b", 700)];
        assert_eq!(rates(&sessions, Some(&before), now + Duration::from_secs(2)), [(2000, 0), (0, 0)]);
        assert_eq!(rates(&sessions, None, now), [(0, 0), (0, 0)]);
    }
}
