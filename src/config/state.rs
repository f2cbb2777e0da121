//! What must survive a restart without being configured: the shared secret and the nonce key.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::problem::{At, Report};

pub(super) const SHARED_SECRET: &str = "shared-secret";
pub(super) const NONCE_KEY: &str = "nonce.key";

/// Whether reading the configuration may leave files behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateAccess {
    /// The daemon: what is missing is made and kept.
    Create,
    /// Other verbs, which may run as another user: what is missing is made up and forgotten.
    ReadOnly,
}

/// A secret that the daemon made, and the file that keeps it.
pub(super) struct Kept {
    pub(super) text: Zeroizing<String>,
    /// `None`: made now and forgotten at exit.
    pub(super) file: Option<PathBuf>,
}

/// Reads a file of the state directory, or makes it with the text given. `None` when that failed and was reported.
pub(super) fn keep(
    directory: Option<&Path>,
    name: &str,
    access: StateAccess,
    report: &mut Report,
    make: impl Fn() -> Zeroizing<String>,
) -> Option<Kept> {
    let Some(directory) = directory else { return Some(Kept { text: make(), file: None }) };
    let path = directory.join(name);
    let at = At::file(&path, "");
    let kept = match (fs::read_to_string(&path), access) {
        (Ok(text), _) => Ok(Some(text)),
        (Err(error), StateAccess::Create) if error.kind() == io::ErrorKind::NotFound => {
            create(directory, &path, &make()).map(Some)
        }
        (Err(error), StateAccess::ReadOnly) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        (Err(error), StateAccess::Create | StateAccess::ReadOnly) => Err(error),
    };
    match kept {
        Ok(Some(text)) => {
            warn_if_readable(&path, report);
            Some(Kept { text: Zeroizing::new(text.trim().to_owned()), file: Some(path) })
        }
        Ok(None) => Some(Kept { text: make(), file: None }),
        Err(error) => {
            report.problem(at.problem(
                format!("cannot be read or made ({error})"),
                "a file in a directory that belongs to the user ferryd runs as",
                match access {
                    StateAccess::Create => "give that user the directory (chown), or set state-directory elsewhere",
                    StateAccess::ReadOnly => "run this as root or as the user ferryd runs as",
                },
            ));
            None
        }
    }
}

fn warn_if_readable(path: &Path, report: &mut Report) {
    let open = fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0);
    if open {
        report.warn(&At::file(path, "mode"), "others than its owner may read this secret; chmod 600 closes it");
    }
}

/// Makes the file whole or not at all; when another process was first, its text is the answer.
fn create(directory: &Path, path: &Path, text: &str) -> io::Result<String> {
    if !directory.exists() {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
    }
    let draft = directory.join(format!(
        ".{}.{}",
        path.file_name().map_or_else(Default::default, |name| name.to_string_lossy()),
        std::process::id()
    ));
    let written = write_draft(&draft, text).and_then(|()| match fs::hard_link(&draft, path) {
        // File systems without links.
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
            fs::rename(&draft, path)
        }
        linked => linked,
    });
    let _ = fs::remove_file(&draft);
    match written {
        Ok(()) => {
            File::open(directory)?.sync_all()?;
            Ok(text.to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::read_to_string(path),
        Err(error) => Err(error),
    }
}

fn write_draft(draft: &Path, text: &str) -> io::Result<()> {
    let _ = fs::remove_file(draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// 256 random bits as 43 characters that need no quoting anywhere.
pub(super) fn random_secret() -> Zeroizing<String> {
    Zeroizing::new(URL_SAFE_NO_PAD.encode(*random_bytes()))
}

/// 256 random bits in hexadecimal.
pub(super) fn random_key() -> Zeroizing<String> {
    Zeroizing::new(random_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random_bytes() -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut()).expect("Linux gives random bytes once it has booted");
    bytes
}

/// Parses hexadecimal digits; `None` when there are other characters or half a byte.
pub(super) fn parse_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digits: Zeroizing<Vec<u8>> =
        Zeroizing::new(text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    Some(Zeroizing::new(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep_in(directory: &Path, access: StateAccess) -> (Option<Kept>, Report) {
        let mut report = Report::default();
        let kept = keep(Some(directory), SHARED_SECRET, access, &mut report, random_secret);
        (kept, report)
    }

    #[test]
    fn a_secret_is_made_once_and_kept_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let first = keep_in(&state, StateAccess::Create).0.unwrap();
        let path = first.file.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "no draft is left");
        let (second, report) = keep_in(&state, StateAccess::ReadOnly);
        assert_eq!(second.unwrap().text, first.text);
        assert!(report.problems.is_empty() && report.warnings.is_empty());
    }

    #[test]
    fn reading_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let kept = keep_in(&directory.path().join("state"), StateAccess::ReadOnly).0.unwrap();
        assert_eq!(kept.file, None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_unreadable_file_is_reported_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(SHARED_SECRET)).unwrap();
        let (kept, report) = keep_in(directory.path(), StateAccess::Create);
        assert!(kept.is_none());
        let words = report.problems[0].to_string();
        assert!(words.contains("shared-secret: cannot be read or made"), "{words}");
        assert!(directory.path().join(SHARED_SECRET).is_dir());
    }

    #[test]
    fn a_file_others_may_read_is_warned_about() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SHARED_SECRET);
        fs::write(&path, random_secret().as_bytes()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let (_, report) = keep_in(directory.path(), StateAccess::Create);
        assert!(report.warnings[0].contains("chmod 600"), "{:?}", report.warnings);
    }

    #[test]
    fn two_processes_end_with_one_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SHARED_SECRET);
        fs::write(&path, "first\n").unwrap();
        assert_eq!(create(directory.path(), &path, "second").unwrap(), "first\n");
    }

    #[test]
    fn hexadecimal_is_whole_bytes() {
        assert_eq!(**parse_hex("00fF").unwrap(), [0, 255]);
        assert!(parse_hex("0").is_none() && parse_hex("0g").is_none());
    }
}
