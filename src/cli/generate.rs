//! `ferryd man` and `ferryd completions`: pages and scripts made from the command line itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::output::print;

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
    let Some(directory) = &arguments.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page).expect("a vector takes what is written");
        print(page);
        return ExitCode::SUCCESS;
    };
    match clap_mangen::generate_to(command, directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: cannot be written ({error})", directory.display());
            ExitCode::FAILURE
        }
    }
}

pub(super) fn completions(mut command: Command, arguments: &CompletionArguments) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "ferryd", &mut script);
    print(script);
    ExitCode::SUCCESS
}
