//! The command line: one file for each verb. Output for people is printed here and nowhere else.

#![warn(clippy::print_stdout, reason = "it panics where nobody reads any more; output::print does not")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{self, HostFacts, Loaded, StateAccess};
use crate::observe::logs::Level;

mod admin;
mod check;
mod credential;
mod detach;
mod doctor;
mod generate;
mod import;
mod mint;
mod output;
#[cfg(feature = "probe")]
mod probe;
mod serve;
mod table;
mod urls;
pub mod welcome;

/// sysexits.h: "something was found in an unconfigured or misconfigured state".
pub const EXIT_CONFIG: u8 = 78;

/// A STUN/TURN relay server.
#[derive(Debug, Parser)]
#[command(name = "ferryd", version, about, max_term_width = 100)]
struct Arguments {
    /// The configuration file; without it /etc/ferryd/ferryd.toml is read if it exists
    #[arg(long, short, global = true, value_name = "FILE", env = "FERRYD_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    serve: serve::Arguments,

    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Relay until told to stop (what ferryd does without a verb)
    Serve(serve::Arguments),
    /// List everything that is wrong with the configuration; exit status 78 if anything is
    Check,
    /// Mint a time-limited user and print it as iceServers JSON
    Credential(credential::Arguments),
    /// Look for what stands in the way of calls on this host; exit status 1 if anything does
    Doctor(doctor::Arguments),
    /// Take away what a killed ferryd with data-path.offload has left on network interfaces (kernels before 6.6)
    Detach,
    /// Translate coturn's turnserver.conf, and tell what became of each option
    Import(import::Arguments),
    /// How the running daemon is: state, allocations, listeners, certificates
    Status(admin::Connection),
    /// List live allocations, those with the most bytes first
    Sessions(admin::sessions::Arguments),
    /// The busiest live allocations, again and again
    Top(admin::top::Arguments),
    /// Show one live allocation with its peers
    Session(admin::session::Arguments),
    /// End live allocations
    Evict(admin::evict::Arguments),
    /// Take credentials back: live allocations end and no new ones are made, also after a restart
    Revoke(admin::revoke::Arguments),
    /// Make no new allocations, and stop when the live ones have ended or at a deadline
    Drain(admin::drain::Arguments),
    /// Read the configuration again, and tell what has changed
    Reload(admin::Connection),
    /// Show or set the level that is logged from on, until the next start
    LogLevel(admin::log_level::Arguments),
    /// The limits in force, and what is in use of them
    Limits(admin::Connection),
    /// See a TURN server as a client does: binding, allocation, packets through the relay, times
    #[cfg(feature = "probe")]
    Probe(probe::Arguments),
    /// Print the man page, or write those of all verbs into a directory
    Man(generate::ManArguments),
    /// Print a completion script for a shell
    Completions(generate::CompletionArguments),
}

/// Parses the command line and does what it says.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let file = config::choose_file(arguments.config.as_deref());
    match arguments.verb {
        None => serve::run(file.as_deref(), &arguments.serve),
        Some(Verb::Serve(serve)) => serve::run(file.as_deref(), &serve.or(arguments.serve)),
        Some(Verb::Check) => check::run(file.as_deref()),
        Some(Verb::Credential(credential)) => credential::run(file.as_deref(), &credential),
        Some(Verb::Doctor(doctor)) => doctor::run(file.as_deref(), &doctor),
        Some(Verb::Detach) => detach::run(),
        Some(Verb::Import(import)) => import::run(&import),
        Some(Verb::Status(connection)) => admin::status::run(file.as_deref(), &connection),
        Some(Verb::Sessions(sessions)) => admin::sessions::run(file.as_deref(), &sessions),
        Some(Verb::Top(top)) => admin::top::run(file.as_deref(), &top),
        Some(Verb::Session(session)) => admin::session::run(file.as_deref(), &session),
        Some(Verb::Evict(evict)) => admin::evict::run(file.as_deref(), &evict),
        Some(Verb::Revoke(revoke)) => admin::revoke::run(file.as_deref(), &revoke),
        Some(Verb::Drain(drain)) => admin::drain::run(file.as_deref(), &drain),
        Some(Verb::Reload(connection)) => admin::reload::run(file.as_deref(), &connection),
        Some(Verb::LogLevel(level)) => admin::log_level::run(file.as_deref(), &level),
        Some(Verb::Limits(connection)) => admin::limits::run(file.as_deref(), &connection),
        #[cfg(feature = "probe")]
        Some(Verb::Probe(probe)) => probe::run(&probe),
        Some(Verb::Man(man)) => generate::man(Arguments::command(), &man),
        Some(Verb::Completions(completions)) => generate::completions(Arguments::command(), &completions),
    }
}

/// Loads the configuration; what is wrong goes to standard error, one line each.
fn load(file: Option<&Path>, access: StateAccess) -> Result<Loaded, ExitCode> {
    let host = HostFacts::of_this_host().map_err(|error| {
        eprintln!("error: the addresses of this host cannot be listed ({error})");
        ExitCode::FAILURE
    })?;
    config::load(file, &config::process_environment(), &host, access).map_err(|problems| {
        for problem in &problems.0 {
            eprintln!("error: {problem}");
        }
        ExitCode::from(EXIT_CONFIG)
    })
}

fn level_from_name(name: &str) -> Result<Level, String> {
    let names = Level::NAMES.map(|(name, _)| name).join(", ");
    let found = Level::NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, level)| *level).ok_or_else(|| format!("expected one of {names}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn no_verb_is_serve_and_the_file_goes_anywhere() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap();
        assert!(parse("ferryd").verb.is_none());
        assert_eq!(parse("ferryd --config a").config, parse("ferryd serve --config a").config);
        assert_eq!(parse("ferryd check -c a").config, Some(PathBuf::from("a")));
        assert!(Arguments::try_parse_from(["ferryd", "--log-level", "loud"]).is_err());
    }
}
