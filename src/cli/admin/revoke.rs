//! `ferryd revoke`: takes credentials back.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::super::table::{Table, duration};
use super::{Connection, age};
use crate::config::parse_duration;
use crate::control::client::escape;
use crate::control::wire::{Revocations, Revoked};

#[derive(Debug, Args)]
#[group(skip)]
pub(in super::super) struct Arguments {
    /// A username, with or without the expiry; the beginning of names with a * at the end; an address or a range of
    /// addresses of clients; or secret:ID, a shared secret as `ferryd session` names it. `user:` in
    /// front takes what follows for a name in any case
    #[arg(required_unless_present = "list")]
    subject: Option<String>,

    /// How long, such as 12h or 7d; without it until the credential would have ended, where its name tells that, else
    /// until it is undone
    #[arg(long = "for", value_name = "DURATION", value_parser = period, conflicts_with_all = ["undo", "list"])]
    period: Option<Duration>,

    /// Let them in again
    #[arg(long)]
    undo: bool,

    /// List what is revoked
    #[arg(long, conflicts_with_all = ["subject", "undo"])]
    list: bool,

    #[command(flatten)]
    connection: Connection,
}

fn period(text: &str) -> Result<Duration, String> {
    let period = parse_duration(text).filter(|period| !period.is_zero());
    period.ok_or_else(|| "expected a duration such as 90s, 12h or 7d".to_owned())
}

pub(in super::super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    const PATH: &str = "/v1/revocations";
    let connection = &arguments.connection;
    let Some(subject) = &arguments.subject else {
        return connection.show(file, ("GET", PATH, None), table);
    };
    if arguments.undo {
        let path = format!("{PATH}/{}", escape(subject));
        return connection.show(file, ("DELETE", &path, None), |revoked: Revoked| {
            format!("{} may allocate again{}\n", revoked.subject, remark(&revoked))
        });
    }
    let until = arguments.period.map(|period| age(0) + period.as_secs());
    let body = json!({ "subject": subject, "until": until });
    connection.show(file, ("POST", PATH, Some(&body)), |revoked: Revoked| {
        let time = end(revoked.until);
        let remark = remark(&revoked);
        format!("{} is revoked {time}, {} allocations have ended{remark}\n", revoked.subject, revoked.ended)
    })
}

fn end(until: Option<u64>) -> String {
    until.map_or_else(
        || "until it is undone".to_owned(),
        |until| format!("for {}", duration(until.saturating_sub(age(0)))),
    )
}

fn remark(revoked: &Revoked) -> &'static str {
    if revoked.kept { "" } else { "; a restart forgets it, as there is no state directory to write to" }
}

fn table(list: Revocations) -> String {
    if list.revocations.is_empty() {
        return "nothing is revoked\n".to_owned();
    }
    let mut table = Table::new(&["SUBJECT", ">SINCE", "UNTIL"]);
    for revocation in list.revocations {
        let until = end(revocation.until);
        table.row([revocation.subject, format!("{} ago", duration(age(revocation.since))), until]);
    }
    table.to_string()
}
