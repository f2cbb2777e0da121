//! `ferryd session`: one live allocation with its peers.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::super::table::{bytes, duration, printable};
use super::{Connection, age};
use crate::control::client::escape;
use crate::control::wire::SessionDetail;

#[derive(Debug, Args)]
#[group(skip)]
pub(in super::super) struct Arguments {
    /// The session, as `ferryd sessions` and the log name it
    id: String,

    #[command(flatten)]
    connection: Connection,
}

pub(in super::super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    let path = format!("/v1/sessions/{}", escape(&arguments.id));
    arguments.connection.show(file, ("GET", &path, None), words)
}

fn words(SessionDetail { session, permitted_peers, bound_channels }: SessionDetail) -> String {
    let relayed: Vec<String> = session.relayed.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        ("session", session.id),
        ("user", printable(&session.user)),
        ("client", format!("{} over {} to {}", session.client, session.transport, session.server)),
        ("relayed", relayed.join(", ")),
        ("age", duration(age(session.started_at))),
        ("expires in", duration(session.expires_in)),
        ("to peers", format!("{} in {} packets", bytes(session.bytes_to_peers), session.packets_to_peers)),
        ("to client", format!("{} in {} packets", bytes(session.bytes_to_client), session.packets_to_client)),
    ];
    if session.datapath == "kernel" {
        lines.push(("data path", "kernel, and sockets".to_owned()));
    }
    if let Some(id) = session.secret {
        lines.push(("secret", id));
    }
    for permission in &permitted_peers {
        lines.push(("permission", format!("{} for {}", permission.address, duration(permission.expires_in))));
    }
    for channel in &bound_channels {
        let words = format!("0x{:04X} to {} for {}", channel.number, channel.peer, duration(channel.expires_in));
        lines.push(("channel", words));
    }
    lines.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}
