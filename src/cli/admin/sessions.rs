//! `ferryd sessions`: the live allocations.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::super::table::{Table, bytes, duration};
use super::{Connection, age};
use crate::control::client::with_query;
use crate::control::wire::Sessions;

#[derive(Debug, Args)]
#[group(skip)]
pub(in super::super) struct Arguments {
    /// Those of a user, with or without the expiry; a * at the end stands for the rest of the name
    #[arg(long)]
    user: Option<String>,

    /// Those of clients at an address or in a range of addresses
    #[arg(long, value_name = "ADDRESS")]
    client: Option<String>,

    /// Those that may reach a peer at an address or in a range of addresses
    #[arg(long, value_name = "ADDRESS")]
    peer: Option<String>,

    /// What the listing begins with: the most bytes, the most packets, the oldest (started), or none for the order of
    /// the tables, in which --after goes on
    #[arg(long, default_value = "bytes", value_parser = ["bytes", "packets", "started", "none"])]
    sort: String,

    /// How many to list, up to 10000
    #[arg(long, default_value_t = 50)]
    limit: u32,

    /// Go on behind this session, with --sort none
    #[arg(long, value_name = "ID")]
    after: Option<String>,

    #[command(flatten)]
    connection: Connection,
}

pub(in super::super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    let sort = Some(arguments.sort.clone()).filter(|sort| sort != "none");
    let query = [
        ("user", arguments.user.clone()),
        ("client", arguments.client.clone()),
        ("peer", arguments.peer.clone()),
        ("sort", sort),
        ("limit", Some(arguments.limit.to_string())),
        ("after", arguments.after.clone()),
    ];
    arguments.connection.show(file, ("GET", &with_query("/v1/sessions", &query), None), words)
}

fn words(listing: Sessions) -> String {
    let mut table = Table::new(&[
        "ID",
        "USER",
        "CLIENT",
        "VIA",
        "RELAYED",
        ">AGE",
        ">TO PEERS",
        ">TO CLIENT",
        ">PEERS",
        ">CHANNELS",
        ">EXPIRES IN",
    ]);
    let shown = listing.sessions.len();
    for session in listing.sessions {
        let relayed: Vec<String> = session.relayed.iter().map(ToString::to_string).collect();
        table.row([
            session.id,
            session.user,
            session.client.to_string(),
            session.transport,
            relayed.join(" "),
            duration(age(session.started_at)),
            bytes(session.bytes_to_peers),
            bytes(session.bytes_to_client),
            session.permissions.to_string(),
            session.channels.to_string(),
            duration(session.expires_in),
        ]);
    }
    let more = match (listing.matched, listing.next) {
        (Some(0), _) => "no session matches\n".to_owned(),
        (Some(matched), _) if matched > shown as u64 => format!("{shown} of {matched} sessions\n"),
        (_, Some(next)) => format!("there are more: --after {next}\n"),
        (_, None) => String::new(),
    };
    if shown == 0 { more } else { format!("{table}{more}") }
}
