//! `admin`: the socket of the admin API.

use std::path::{Path, PathBuf};

use super::problem::Report;
use super::section::Section;
use crate::control::settings::{RUNTIME_DIRECTORY, Settings, Socket};

/// Reads where the API is served; `runtime_directory` is the one that the service manager made.
pub(super) fn read(mut section: Section, runtime_directory: Option<PathBuf>, report: &mut Report) -> Settings {
    let socket = match section.path("socket", report).map(|entry| entry.value) {
        None => Socket::Default,
        Some(path) if path == Path::new("off") => Socket::Off,
        Some(path) => Socket::At(path),
    };
    let group_access = section.truth("group-access", report).is_some_and(|entry| entry.value);
    section.finish(report);
    let common = || Some(PathBuf::from(RUNTIME_DIRECTORY)).filter(|directory| directory.is_dir());
    Settings { socket, group_access, runtime_directory: runtime_directory.or_else(common), ..Settings::default() }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{load_text, problems};
    use super::*;

    #[test]
    fn the_socket_is_in_the_runtime_directory_unless_it_is_named() {
        let served = |text: &str| {
            let settings = load_text(text).unwrap().settings.admin;
            Settings { runtime_directory: Some("/run/turn".into()), ..settings }.served()
        };
        assert_eq!(served(""), Some("/run/turn/admin.sock".into()));
        assert_eq!(served("[admin]\nsocket = \"/srv/a.sock\""), Some("/srv/a.sock".into()));
        assert_eq!(served("[admin]\nsocket = \"off\""), None);
        assert!(load_text("[admin]\ngroup-access = true").unwrap().settings.admin.group_access);
        assert!(problems("[admin]\nsocket = 1")[0].contains("admin.socket: found 1"));
    }
}
