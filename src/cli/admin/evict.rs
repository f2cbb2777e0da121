//! `ferryd evict`: ends live allocations.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::super::output::print;
use super::{Connection, told};
use crate::control::wire::Evicted;

#[derive(Debug, Args)]
#[group(skip)]
pub(in super::super) struct Arguments {
    /// The sessions, as `ferryd sessions` names them
    #[arg(required = true)]
    ids: Vec<String>,

    #[command(flatten)]
    connection: Connection,
}

/// Fails when one of them was not there.
pub(in super::super) fn run(file: Option<&Path>, arguments: &Arguments) -> ExitCode {
    let client = match arguments.connection.client(file) {
        Ok(client) => client,
        Err(error) => return told(Err(error)),
    };
    let body = json!({ "ids": arguments.ids });
    let answered = client.request("POST", "/v1/sessions/evict", Some(&body)).and_then(|answer: Value| {
        let evicted: Evicted = client.read(answer.clone())?;
        let words = if arguments.connection.json { format!("{answer:#}\n") } else { words(&evicted) };
        Ok((words, evicted.unknown))
    });
    match answered {
        Ok((words, unknown)) => {
            print(words);
            for id in &unknown {
                eprintln!("error: no session {id} is live");
            }
            if unknown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => told(Err(error)),
    }
}

fn words(evicted: &Evicted) -> String {
    evicted.evicted.iter().map(|id| format!("ended {id}\n")).collect()
}
