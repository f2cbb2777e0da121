//! The local socket of the admin API.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket in the file system, removed when it is dropped.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Somebody may have been faster.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at a path. A socket that nobody answers is left over from a daemon that was killed, and replaced.
pub fn listen(path: &Path, group_access: bool) -> io::Result<(UnixListener, Place)> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is there"));
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another ferryd serves it")),
            Err(error) => return Err(error),
        }
    }
    // Made under another name, so that nobody finds it before it has its mode.
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&draft);
    let listener = UnixListener::bind(&draft)?;
    let mode = if group_access { 0o660 } else { 0o600 };
    let moved = fs::set_permissions(&draft, Permissions::from_mode(mode)).and_then(|()| fs::rename(&draft, path));
    if let Err(error) = moved {
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    listener.set_nonblocking(true)?;
    Ok((listener, Place { path: path.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_mode_and_goes_with_its_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        for (group_access, mode) in [(false, 0o600), (true, 0o660)] {
            let (_listener, place) = listen(&path, group_access).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(listen(&path, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            drop(place);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "neither a socket nor a draft is left");
        }
    }

    #[test]
    fn a_socket_that_was_left_over_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(listen(&path, false).is_ok());
        fs::write(&path, "notes").unwrap();
        assert_eq!(listen(&path, false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
    }
}
