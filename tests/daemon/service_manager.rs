//! What systemd hears, and what it does.

use std::os::unix::net::UnixDatagram;

use crate::ferryd::Ferryd;
use crate::metrics::with_metrics;
use crate::{PATIENCE, wait_until};

/// The next message to the service manager, as its lines.
fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).expect("the service manager is told something");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn systemd_is_told_of_the_start_of_every_ping_and_of_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ferryd = Ferryd::start_with(
        |_| {},
        |command| _ = command.arg("serve").env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000"),
    );
    let ready = heard(&socket);
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    assert!(ready.contains("STATUS=relaying, 2 workers"), "{ready}");
    for _ in 0..3 {
        assert_eq!(heard(&socket).trim(), "WATCHDOG=1");
    }
    ferryd.stop().expect_success();
    let mut last = heard(&socket);
    while last.trim() == "WATCHDOG=1" {
        last = heard(&socket);
    }
    assert!(last.lines().any(|line| line == "STOPPING=1"), "{last}");
}

#[test]
fn without_a_watchdog_nothing_is_pinged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ferryd = Ferryd::start_with(|_| {}, |command| _ = command.env("NOTIFY_SOCKET", &path));
    assert!(heard(&socket).contains("READY=1"));
    ferryd.stop().expect_success();
    assert!(heard(&socket).contains("STOPPING=1"));
}

/// Keeps one thread of a process from running, until it is dropped.
struct Held(libc::pid_t);

impl Held {
    /// `None` where debuggers are kept away: ferryd does so, and root alone may pass.
    fn thread(process: u32, name: &str) -> Option<Self> {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let is_named = |path: &std::path::Path| std::fs::read_to_string(path.join("comm")).unwrap().trim() == name;
        let task = tasks.map(|task| task.unwrap().path()).find(|path| is_named(path)).expect("the thread is there");
        let id: libc::pid_t = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let (nothing, none) = (std::ptr::null_mut::<libc::c_void>(), 0_usize);
        // SAFETY: neither request reads or writes memory of this process.
        unsafe {
            if libc::ptrace(libc::PTRACE_SEIZE, id, nothing, none) != 0 {
                assert_ne!(libc::geteuid(), 0, "root may do so: {}", std::io::Error::last_os_error());
                return None;
            }
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, id, nothing, none), 0);
            // It has stopped when this says so.
            assert_eq!(libc::waitpid(id, std::ptr::null_mut(), libc::__WALL), id);
        }
        Some(Self(id))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the request reads and writes no memory of this process.
        let let_go =
            unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, std::ptr::null_mut::<libc::c_void>(), 0_usize) };
        assert_eq!(let_go, 0);
    }
}

#[test]
fn the_watchdog_is_not_pinged_while_one_worker_hangs_and_the_process_lives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let ferryd = Ferryd::start_with(with_metrics, |command| {
        _ = command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    while heard(&socket).trim() != "WATCHDOG=1" {}
    let Some(held) = Held::thread(ferryd.id(), "worker-1") else {
        eprintln!("not tried: it takes root to stop one thread of another process");
        return;
    };
    wait_until("the silence to be noticed", || ferryd.log().contains("a worker does not answer"));
    // What was on its way when the worker stopped is one ping at most.
    socket.set_nonblocking(true).unwrap();
    let mut late = 0;
    while socket.recv(&mut [0; 1024]).is_ok() {
        late += 1;
    }
    assert!(late <= 1, "{late} pings while a worker hangs");
    // The process itself lives: the other worker serves, and the page says that one does not answer.
    let metrics = ferryd.config.get("metrics.address").parse().unwrap();
    assert!(crate::metrics::get(metrics, "/ready").starts_with("HTTP/1.1 503"));
    drop(held);
    socket.set_nonblocking(false).unwrap();
    assert_eq!(heard(&socket).trim(), "WATCHDOG=1", "it goes on when the worker does");
}
