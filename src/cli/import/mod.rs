//! `ferryd import`: a coturn configuration as one of ferryd, and what became of each option.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use self::report::{Report, Verdict};
use self::translate::Translation;
use super::output::print;

mod database;
mod draft;
mod fixed;
mod lines;
mod listen;
mod ranges;
mod report;
#[cfg(test)]
mod tests;
mod translate;

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Write the configuration to a new file, which others may not read, instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The turnserver.conf
    #[arg(value_name = "TURNSERVER.CONF")]
    file: PathBuf,
}

/// coturn's own sample has 35 KB; 10,000 users have some 600.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Secrets are in it: root writes it, and the group `ferryd` may be given it.
const OUTPUT_MODE: u32 = 0o640;

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let text = match read(&arguments.file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("error: {}: cannot be read ({error})", arguments.file.display());
            return ExitCode::FAILURE;
        }
    };
    let directory = arguments.file.canonicalize().ok().and_then(|file| file.parent().map(Path::to_owned));
    let Translation { draft, report, translated } = translate::translate(&text, directory.as_deref());
    let text = draft.text(&arguments.file.display().to_string());
    match &arguments.output {
        None => _ = print(text),
        Some(file) => {
            if let Err(error) = write(file, &text) {
                let exists = error.kind() == io::ErrorKind::AlreadyExists;
                let remedy = if exists { "; nothing is written over: move it away, or name another file" } else { "" };
                eprintln!("error: {}: cannot be written ({error}){remedy}", file.display());
                return ExitCode::FAILURE;
            }
        }
    }
    eprint!("{}", words(&report, translated));
    if let Some(file) = &arguments.output {
        eprintln!("next: ferryd check --config {}", file.display());
    }
    ExitCode::SUCCESS
}

/// Reads the file; what is not UTF-8 becomes U+FFFD, which no translated value may hold.
fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("more than 16 MiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Never writes over a file that is there.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(OUTPUT_MODE).open(file)?;
    file.write_all(text.as_bytes())
}

fn words(report: &Report, translated: usize) -> String {
    let mut words: String = report.sorted().iter().map(|finding| format!("{finding}\n")).collect();
    let counts = Verdict::ALL.map(|verdict| format!("{} {verdict}", report.count(verdict)));
    words.push_str(&format!("{translated} options translated or kept as they are, {}\n", counts.join(", ")));
    words
}
