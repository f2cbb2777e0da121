//! Standard output, which may be a pipe that nobody reads any more, or a file on a full disk.

use std::io::{self, ErrorKind, Write};

/// Prints for whoever reads; false when nobody does any more, as behind `head`. What cannot be written for another reason
/// ends the process, with the reason: who reads on would take what is there for all of it.
pub(super) fn print(text: impl AsRef<[u8]>) -> bool {
    match write(text) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => false,
        Err(error) => {
            eprintln!("error: standard output: cannot be written ({error})");
            std::process::exit(1);
        }
    }
}

/// The same for a process that goes on without it.
pub(super) fn write(text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_ref())?;
    stdout.flush()
}
