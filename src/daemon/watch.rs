//! Certificates and secrets that others replace: looked at now and then, and read when they have come to rest.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::Loaded;

/// What tells one version of a file from another; `None` for one that is not there.
type Stamp = Option<(u64, u64, i64, i64, i64)>;

/// Files and how they were at the last look.
#[derive(Debug)]
pub(super) struct Watch {
    files: Vec<(PathBuf, Stamp)>,
    /// The configuration itself, which is read when an operator says so.
    configuration: Option<(PathBuf, Stamp)>,
    /// A change was seen, and may go on.
    changing: bool,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// Files have changed since they were read.
    Change,
    /// They have, and the configuration was edited too, which nobody has asked to apply.
    ChangeBesideAnEdit,
}

impl Watch {
    /// Watches what is about to be read, or was a moment ago.
    pub(super) fn of(loaded: &Loaded) -> Self {
        let stamped = |path: &PathBuf| (path.clone(), stamp(path));
        Self {
            files: loaded.watched.iter().map(stamped).collect(),
            configuration: loaded.sources.file.as_ref().map(stamped),
            changing: false,
        }
    }

    /// The same files as they are now.
    pub(super) fn now(&self) -> Self {
        let again = |(path, _): &(PathBuf, Stamp)| (path.clone(), stamp(path));
        Self {
            files: self.files.iter().map(again).collect(),
            configuration: self.configuration.as_ref().map(again),
            changing: false,
        }
    }

    /// Goes on from an earlier look: what has changed since then is a change, though it may have been read already.
    pub(super) fn since(mut self, before: Self) -> Self {
        let before: HashMap<_, _> = before.files.into_iter().chain(before.configuration).collect();
        for (path, seen) in self.files.iter_mut().chain(&mut self.configuration) {
            if let Some(earlier) = before.get(path) {
                *seen = *earlier;
            }
        }
        self
    }

    /// Looks again. A change is told at the second look that finds the same, so that nothing is read half written.
    pub(super) fn look(&mut self) -> Found {
        let mut changed = false;
        for (path, seen) in &mut self.files {
            let now = stamp(path);
            changed |= now != *seen;
            *seen = now;
        }
        if changed || !self.changing {
            self.changing |= changed;
            return Found::Nothing;
        }
        self.changing = false;
        let is_edited = self.configuration.as_ref().is_some_and(|(path, seen)| stamp(path) != *seen);
        if is_edited { Found::ChangeBesideAnEdit } else { Found::Change }
    }
}

fn stamp(path: &Path) -> Stamp {
    // Through links: ACME clients and Kubernetes swap them.
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec(), metadata.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_when_it_has_come_to_rest() {
        let directory = tempfile::tempdir().unwrap();
        let (file, configuration) = (directory.path().join("secret"), directory.path().join("ferryd.toml"));
        fs::write(&file, "a").unwrap();
        fs::write(&configuration, "").unwrap();
        let mut watch = Watch {
            files: vec![(file.clone(), stamp(&file))],
            configuration: Some((configuration.clone(), stamp(&configuration))),
            changing: false,
        };
        assert_eq!(watch.look(), Found::Nothing);
        fs::write(&file, "ab").unwrap();
        assert_eq!(watch.look(), Found::Nothing, "it may be half written");
        fs::write(&file, "abc").unwrap();
        assert_eq!(watch.look(), Found::Nothing, "it was");
        assert_eq!(watch.look(), Found::Change);
        assert_eq!(watch.look(), Found::Nothing);
        fs::remove_file(&file).unwrap();
        fs::write(&configuration, "realm = \"x\"").unwrap();
        assert_eq!(watch.look(), Found::Nothing);
        assert_eq!(watch.look(), Found::ChangeBesideAnEdit);
    }

    #[test]
    fn a_change_while_others_are_read_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| directory.path().join(name));
        fs::write(&old, "a").unwrap();
        fs::write(&new, "b").unwrap();
        let of = |files: &[&PathBuf]| Watch {
            files: files.iter().map(|path| ((*path).clone(), stamp(path))).collect(),
            configuration: None,
            changing: false,
        };
        let before = of(&[&old]).now();
        fs::write(&old, "aa").unwrap();
        let mut watch = of(&[&old, &new]).since(before);
        assert_eq!([watch.look(), watch.look(), watch.look()], [Found::Nothing, Found::Change, Found::Nothing]);
        let mut watch = of(&[&new]).since(watch.now());
        assert_eq!([watch.look(), watch.look()], [Found::Nothing; 2]);
    }
}
