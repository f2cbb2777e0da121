//! Faults around the daemon: full disks, files that somebody breaks, directories that cannot be written. Others are where
//! their subject is; docs/operating.md has the table.

use std::fs::{self, OpenOptions};
use std::process::Stdio;

use ferryd::auth::settings::{Secret, SecretAlgorithm, SharedSecret};

use crate::admin::{call, json};
use crate::client::{Client, User};
use crate::ferryd::{Ferryd, command};
use crate::metrics::{metric, with_metrics};
use crate::wait_until;

#[test]
fn a_disk_that_is_full_stops_no_call() {
    let ferryd = Ferryd::start(|config| {
        with_metrics(config);
        config.text("sessions.file", "/dev/full");
    });
    let (mut live, _peer) = call(Client::udp(ferryd.address()));
    for _ in 0..20 {
        let mut client = Client::udp(ferryd.address());
        client.allocate();
        client.refresh(0).unwrap();
    }
    let failed = r#"ferryd_session_records_total{outcome="file_failed"}"#;
    wait_until("the records to fail", || metric(&ferryd, failed) == 20);
    assert_eq!(ferryd.log().matches("session records cannot be written").count(), 1, "once in a minute");
    assert_eq!(live.refresh(600), Ok(600));
    let ferryd = ferryd.stop();
    assert_eq!(ferryd.expect_success().stderr.matches("allocation ended").count(), 21, "the log has them");
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    // A configuration with a port that was free.
    let other = Ferryd::start(|config| _ = config.text("admin.socket", "off"));
    let address = other.address();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ferryd.toml");
    fs::copy(other.file(), &path).unwrap();
    other.stop();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = command(&["--config", path.to_str().unwrap(), "--log-level", "trace"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full).spawn().unwrap();
    let mut client = Client::udp(address);
    let answered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        client.allocate();
        client.refresh(0).unwrap();
        client.allocate();
    }));
    let running = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((answered.is_ok(), running), (true, None));
}

#[test]
fn secrets_that_turn_to_garbage_change_nothing_until_they_are_mended() {
    let secret = |text: &str| SharedSecret { secret: Secret::new(text), algorithm: SecretAlgorithm::Sha1 };
    let (first, second) = ("n3kZ8wPq0TtYbV6sLx2RfJ5uHc9GmDaE", "Qm7VxR2dKf9LsW4tHy6NbJ8pZc3GaTeU");
    let ferryd = Ferryd::start(|config| {
        let file = config.directory.join("secrets");
        fs::write(&file, first).unwrap();
        config.text("auth.shared-secrets-file", file.display()).text("watch-files", "1s");
    });
    let minted = |text: &str| {
        Client::udp(ferryd.address()).with(User::minted(&secret(text), 3600, Some("carol"))).try_allocate().map(drop)
    };
    let refusals = || ferryd.log().matches("nothing of it has been applied").count();
    let file = ferryd.config.directory.join("secrets");
    for (garbage, told) in [(&b"\xff\xfe\x00\x80"[..], 1), (b"", 2)] {
        fs::write(&file, garbage).unwrap();
        wait_until("the refusal", || refusals() == told);
        assert_eq!(minted(first), Ok(()), "{garbage:?}");
    }
    fs::remove_file(&file).unwrap();
    wait_until("the refusal", || refusals() == 3);
    assert_eq!(minted(first), Ok(()), "the file is gone");
    fs::write(&file, second).unwrap();
    wait_until("the reload", || ferryd.log().contains("configuration read again"));
    assert_eq!((minted(second), minted(first)), (Ok(()), Err(401)));
    assert!(!ferryd.log().contains(second));
}

#[test]
fn a_state_directory_that_cannot_be_written_is_told_and_holds_up_no_call() {
    let ferryd = Ferryd::start(|config| {
        let state = config.directory.join("state");
        // Root writes to what is read-only, but not to a file that is a directory.
        fs::create_dir_all(state.join("revocations.new")).unwrap();
        config.text("state-directory", state.display());
    });
    let (mut live, _peer) = call(Client::udp(ferryd.address()));
    let revoked = json(&ferryd, &["revoke", "mallory"]);
    assert_eq!(revoked["kept"], false, "it holds until the restart");
    wait_until("the log", || ferryd.log().contains("revocations cannot be written to the state directory"));
    assert_eq!(json(&ferryd, &["revoke", "--list"])["revocations"][0]["subject"], "user:mallory");
    assert_eq!(live.refresh(600), Ok(600));
}
