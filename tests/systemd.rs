//! The unit is valid and hardened, and what the daemon tells systemd arrives.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may fail like tests")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The overall exposure that `systemd-analyze security` may find, in tenths; drop-ins add their capabilities.
const EXPOSURE_MAX: u32 = 15;
const EXPOSURE_MAX_LOW_PORTS: u32 = 16;
const EXPOSURE_MAX_OFFLOAD: u32 = 20;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

/// Runs a tool of systemd, or says which package has it.
fn tool(name: &str, arguments: &[&str]) -> Output {
    Command::new(name).args(arguments).env("SYSTEMD_COLORS", "0").output().unwrap_or_else(|error| {
        panic!("{name} cannot be run ({error}): install the Debian package systemd to test the unit")
    })
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The unit with this build's binary, in a directory of its own, with these drop-ins.
fn unit(names: &[&str]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(shipped("ferryd.service")).unwrap();
    assert_eq!(text.matches("/usr/bin/ferryd").count(), 1);
    let path = directory.path().join("ferryd.service");
    fs::write(&path, text.replace("/usr/bin/ferryd", env!("CARGO_BIN_EXE_ferryd"))).unwrap();
    let drop_ins = directory.path().join("ferryd.service.d");
    fs::create_dir(&drop_ins).unwrap();
    for name in names {
        fs::copy(shipped("ferryd.service.d").join(name), drop_ins.join(name)).unwrap();
    }
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn the_unit_verifies_without_a_word() {
    for drop_ins in [&[][..], &["low-ports.conf"], &["offload.conf"], &["low-ports.conf", "offload.conf"]] {
        let (_directory, unit) = unit(drop_ins);
        let output = tool("systemd-analyze", &["verify", "--man=no", &unit]);
        assert!(output.status.success(), "{}", words(&output));
        let about_us: Vec<String> =
            words(&output).lines().filter(|line| line.contains("ferryd")).map(str::to_owned).collect();
        assert_eq!(about_us, Vec::<String>::new());
    }
}

#[test]
fn a_mistake_in_the_unit_would_be_seen() {
    let (_directory, unit) = unit(&[]);
    fs::write(&unit, fs::read_to_string(&unit).unwrap().replace("ProtectHome", "ProtectHoome")).unwrap();
    let output = tool("systemd-analyze", &["verify", "--man=no", &unit]);
    assert!(words(&output).contains("ProtectHoome"), "{}", words(&output));
}

#[test]
fn the_unit_is_exposed_to_little() {
    for (drop_ins, tenths) in [
        (&[][..], EXPOSURE_MAX),
        (&["low-ports.conf"], EXPOSURE_MAX_LOW_PORTS),
        (&["offload.conf"], EXPOSURE_MAX_OFFLOAD),
    ] {
        let (_directory, unit) = unit(drop_ins);
        let threshold = format!("--threshold={tenths}");
        let output = tool("systemd-analyze", &["security", "--offline=true", &threshold, "--no-pager", &unit]);
        assert!(output.status.success(), "{drop_ins:?}: {}", words(&output));
        assert!(words(&output).contains("Overall exposure"), "{}", words(&output));
    }
}

#[test]
fn the_user_can_be_made() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let root = format!("--root={}", root.path().display());
    let user = shipped("ferryd.sysusers");
    let output = tool("systemd-sysusers", &[&root, user.to_str().unwrap()]);
    assert!(output.status.success(), "{}", words(&output));
    let passwd = Path::new(root.trim_start_matches("--root=")).join("etc/passwd");
    assert!(fs::read_to_string(passwd).unwrap().starts_with("ferryd:"));
}

#[test]
fn what_the_daemon_tells_arrives() {
    // The process environment is set for a child alone: this test again, with a socket to talk to.
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        ferryd::service_manager::ready("2 listeners");
        ferryd::service_manager::reloading();
        ferryd::service_manager::watchdog();
        ferryd::service_manager::stopping("bye");
        // WATCHDOG_PID is another's.
        assert_eq!(ferryd::service_manager::watchdog_interval(), None);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_the_daemon_tells_arrives"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "30000000")
        .env("WATCHDOG_PID", "1")
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", words(&status));
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 512];
    let mut receive = || {
        let length = socket.recv(&mut buffer).expect("a message is there");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(receive(), "READY=1\nSTATUS=2 listeners\n");
    assert!(receive().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(receive(), "WATCHDOG=1\n");
    assert_eq!(receive(), "STOPPING=1\nSTATUS=bye\n");
}
