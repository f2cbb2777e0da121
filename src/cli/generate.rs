//! `ferryd man` and `ferryd completions`: pages and scripts made from the command line itself.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct ManArguments {
    /// Write a page for ferryd and one for each verb into this directory, instead of the one to standard output
    #[arg(value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct CompletionArguments {
    /// The shell that is to complete the command line
    shell: Shell,
}

/// What a page has beside the command line.
const MORE: &str = "\
Files: /etc/ferryd/ferryd.toml is the configuration, /var/lib/ferryd/ holds the shared secret and the nonce key.

Environment: every key of the configuration is a variable too, FERRYD_RELAY__PORT_MIN being relay.port-min; \
FERRYD_CONFIG names the file.

Exit status: 0 is success, 1 a failure, 2 a command line that is wrong, 78 a configuration that is wrong.

Signals: SIGHUP reads the configuration again, SIGTERM and SIGINT stop the daemon.

See also: systemctl(1), journalctl(1), and /usr/share/doc/ferryd/operating.md.";

pub(super) fn man(command: Command, arguments: &ManArguments) -> ExitCode {
    let command = command.disable_help_subcommand(true).after_long_help(MORE);
    let written = match &arguments.directory {
        Some(directory) => clap_mangen::generate_to(command, directory).map_err(|error| (place(directory), error)),
        None => page(command).and_then(|page| to_standard_output(&page)).map_err(|error| (STDOUT.to_owned(), error)),
    };
    ended(written)
}

pub(super) fn completions(mut command: Command, arguments: &CompletionArguments) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "ferryd", &mut script);
    ended(to_standard_output(&script).map_err(|error| (STDOUT.to_owned(), error)))
}

const STDOUT: &str = "standard output";

fn place(directory: &Path) -> String {
    directory.display().to_string()
}

fn page(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

fn to_standard_output(bytes: &[u8]) -> io::Result<()> {
    io::stdout().write_all(bytes)
}

fn ended(written: Result<(), (String, io::Error)>) -> ExitCode {
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err((place, error)) => {
            eprintln!("error: {place}: cannot be written ({error})");
            ExitCode::FAILURE
        }
    }
}
