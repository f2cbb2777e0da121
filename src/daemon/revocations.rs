//! Revocations that survive a restart: a file in the state directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::auth::Revocation;
use crate::control::wire;

/// The file within the state directory.
const FILE: &str = "revocations.json";

/// Where revocations are kept.
#[derive(Debug)]
pub(super) struct Store {
    path: Option<PathBuf>,
}

impl Store {
    /// Reads what is kept. A file that cannot be read stops the start: who was locked out must not come in by a mishap.
    pub(super) fn open(state_directory: Option<&Path>) -> io::Result<(Self, Vec<Revocation>)> {
        let path = state_directory.map(|directory| directory.join(FILE));
        let text = match path.as_deref().map(fs::read_to_string) {
            None => return Ok((Self { path }, Vec::new())),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok((Self { path }, Vec::new())),
            Some(text) => text?,
        };
        let kept: wire::Revocations = serde_json::from_str(&text).map_err(io::Error::other)?;
        let revocation = |kept: wire::Revocation| {
            let subject =
                kept.subject.parse().map_err(|error| io::Error::other(format!("{}: {error}", kept.subject)))?;
            Ok(Revocation { subject, since: kept.since, until: kept.until })
        };
        let revocations = kept.revocations.into_iter().map(revocation).collect::<io::Result<_>>()?;
        Ok((Self { path }, revocations))
    }

    /// The file that [`Self::open`] reads.
    pub(super) fn file(state_directory: &Path) -> PathBuf {
        state_directory.join(FILE)
    }

    /// Writes the file whole or not at all; false when there is no place for it.
    pub(super) fn keep(&self, revocations: &[Revocation]) -> io::Result<bool> {
        let Some(path) = &self.path else { return Ok(false) };
        let kept = wire::Revocations { revocations: revocations.iter().map(Into::into).collect() };
        let text = serde_json::to_string_pretty(&kept).map_err(io::Error::other)?;
        let draft = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_broken_stops_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let (store, none) = Store::open(Some(directory.path())).unwrap();
        assert_eq!(none, []);
        let all = [
            Revocation::new("user:alice*".parse().unwrap(), 5, None),
            Revocation::new("client:192.0.2.0/24".parse().unwrap(), 6, Some(7)),
        ];
        assert!(store.keep(&all).unwrap());
        assert_eq!(Store::open(Some(directory.path())).unwrap().1, all);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
        for broken in ["", "{}", "{\"revocations\": [{\"subject\": \"client:x\", \"since\": 1, \"until\": null}]}"] {
            fs::write(Store::file(directory.path()), broken).unwrap();
            assert!(Store::open(Some(directory.path())).is_err(), "{broken}");
        }
        let (store, _) = Store::open(None).unwrap();
        assert!(!store.keep(&all).unwrap());
    }
}
