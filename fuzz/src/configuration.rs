//! Text as a configuration file, and as variables: it is understood, or every mistake is told.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;

use ferryd::config::{self, Environment, HostFacts, StateAccess};

thread_local! {
    static FILE: RefCell<(File, PathBuf)> = {
        let path = std::env::temp_dir().join(format!("ferryd-fuzz-{}.toml", std::process::id()));
        RefCell::new((File::create(&path).expect("a file in the temporary directory"), path))
    };
}

/// The text before a NUL is the file; each line behind it is a variable.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // A file that it names is read, and some never end.
    if ["/dev", "/proc", "/sys"].iter().any(|path| text.contains(path)) {
        return;
    }
    let (file, variables) = text.split_once('\0').unwrap_or((text, ""));
    let variables: Environment = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let own_addresses = ["192.0.2.1", "2001:db8::1", "127.0.0.1", "::1"].map(|ip| ip.parse().expect("an address"));
    let host = HostFacts {
        default_v4: Some(own_addresses[0]),
        default_v6: Some(own_addresses[1]),
        own_addresses: own_addresses.to_vec(),
        has_ipv6: true,
        nonlocal_bind: false,
    };
    FILE.with_borrow_mut(|(opened, path)| {
        opened.set_len(0).expect("a file of our own");
        opened.rewind().expect("a file of our own");
        opened.write_all(file.as_bytes()).expect("room for a file");
        match config::load(Some(path), &variables, &host, StateAccess::ReadOnly) {
            Ok(loaded) => {
                assert!(loaded.settings.turn.port_min <= loaded.settings.turn.port_max);
                assert!(loaded.warnings.iter().all(|warning| !warning.contains('\n')));
            }
            Err(problems) => {
                assert!(!problems.0.is_empty());
                assert!(problems.0.iter().all(|problem| !problem.to_string().contains('\n')), "one line for each");
            }
        }
    });
}
