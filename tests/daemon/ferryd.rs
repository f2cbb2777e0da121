//! A running ferryd: its configuration, its output and its end.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::client::User;
use crate::place;
use crate::wait_until;

/// The user of [`Config::new`].
pub(crate) const ALICE: &str = "alice";
pub(crate) const PASSWORD: &str = "mVJ0s3yTzQkU8cXeW1bNhR4p";

/// Another try when somebody else was faster to take a port.
const ATTEMPTS: usize = 5;

pub(crate) fn alice() -> User {
    User::new(ALICE, PASSWORD)
}

/// A configuration: TOML values by their dotted keys.
pub(crate) struct Config {
    /// The loopback address that everything is on.
    pub(crate) ip: Ipv4Addr,
    /// The port of the listeners.
    pub(crate) port: u16,
    /// For files that the configuration names.
    pub(crate) directory: PathBuf,
    values: BTreeMap<String, String>,
}

impl Config {
    /// UDP and TCP listeners, a static user and peers on loopback, for two workers.
    fn new(directory: &Path) -> Self {
        let mut config = Self {
            ip: place::own_address(),
            port: place::free_port(),
            directory: directory.to_owned(),
            values: BTreeMap::new(),
        };
        let address = SocketAddr::from((config.ip, config.port));
        config.listen(&[(&address.to_string(), "udp"), (&address.to_string(), "tcp")]);
        config.text("admin.socket", directory.join("admin.sock").display());
        config.set("workers", 2);
        config.set("relay.addresses", format!("[\"{}\"]", config.ip));
        config.set("auth.user", format!("[{{ name = \"{ALICE}\", password = \"{PASSWORD}\" }}]"));
        config.set("peers.allow", "[\"127.0.0.0/8\", \"::1\", \"10.77.0.0/24\", \"172.31.255.0/29\"]");
        // The same tests run on every back end: tests/run sets it.
        if let Ok(backend) = std::env::var("FERRY_TEST_BACKEND") {
            config.text("data-path.backend", backend);
        }
        // And with the kernel path forced: it takes every channel between clients and peers on loopback.
        if let Ok(offload) = std::env::var("FERRY_TEST_OFFLOAD") {
            offload_by(&mut config, &offload);
        }
        config
    }

    /// Sets a key to a value of TOML.
    pub(crate) fn set(&mut self, key: &str, value: impl Display) -> &mut Self {
        self.values.insert(key.to_owned(), value.to_string());
        self
    }

    /// Sets a key to a text.
    pub(crate) fn text(&mut self, key: &str, value: impl Display) -> &mut Self {
        self.set(key, format!("\"{value}\""))
    }

    /// The text that a key is set to.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.values[key].trim_matches('"')
    }

    pub(crate) fn unset(&mut self, key: &str) -> &mut Self {
        self.values.remove(key);
        self
    }

    /// Listens on addresses; `tcp accept` is a stream listener that accepts less than both.
    pub(crate) fn listen(&mut self, listeners: &[(&str, &str)]) -> &mut Self {
        let one = |(address, kind): &(&str, &str)| {
            let (transport, accept) = kind.split_once(' ').unwrap_or((kind, ""));
            let accept = if accept.is_empty() { String::new() } else { format!(", accept = \"{accept}\"") };
            format!("{{ address = \"{address}\", transport = \"{transport}\"{accept} }}")
        };
        let listeners = listeners.iter().map(one).collect::<Vec<_>>().join(", ");
        self.set("listener", format!("[{listeners}]"))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((self.ip, self.port))
    }

    pub(crate) fn write(&self) -> PathBuf {
        let path = self.directory.join("ferryd.toml");
        let text: String = self.values.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

/// Has the kernel carry every channel of clients and peers here.
pub(crate) fn offload_by(config: &mut Config, method: &str) {
    let interfaces = format!("[\"{}\"]", place::interface());
    config.text("data-path.offload", method).set("data-path.offload-interfaces", interfaces);
}

/// A ferryd that is killed when it is dropped.
pub(crate) struct Ferryd {
    pub(crate) config: Config,
    process: Process,
    _directory: tempfile::TempDir,
}

impl Ferryd {
    /// Starts with the usual configuration, changed, and waits until it serves.
    pub(crate) fn start(change: impl Fn(&mut Config)) -> Self {
        Self::start_with(change, |_| {})
    }

    /// Starts with arguments or an environment of its own.
    pub(crate) fn start_with(change: impl Fn(&mut Config), prepare: impl Fn(&mut Command)) -> Self {
        for _ in 0..ATTEMPTS {
            let directory = tempfile::tempdir().unwrap();
            let mut config = Config::new(directory.path());
            change(&mut config);
            let path = config.write();
            let mut command = command(&["--config", path.to_str().unwrap()]);
            prepare(&mut command);
            let mut process = Process::spawn(&mut command);
            if process.serves() {
                return Self { config, process, _directory: directory };
            }
            let log = process.stderr.text();
            assert!(log.contains("port is in use"), "ferryd does not start:\n{log}");
        }
        panic!("in {ATTEMPTS} attempts another process had the port each time");
    }

    /// Starts again with the same configuration after a stop by SIGTERM.
    pub(crate) fn restart(self) -> Self {
        let Self { config, process, _directory } = self;
        process.stop();
        let mut process = Process::spawn(&mut command(&["--config", config.write().to_str().unwrap()]));
        assert!(process.serves(), "ferryd does not start again:\n{}", process.stderr.text());
        Self { config, process, _directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.config.address()
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.child.id()
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.stderr.text()
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        self.process.stdout.text()
    }

    /// Runs another verb with the same configuration.
    pub(crate) fn verb(&self, arguments: &[&str]) -> Ended {
        let path = self.config.directory.join("ferryd.toml");
        Process::spawn(command(&["--config", path.to_str().unwrap()]).args(arguments)).end()
    }

    /// Has it read its configuration again, after a change, and waits until it says what came of it.
    pub(crate) fn reload(&mut self, change: impl FnOnce(&mut Config)) -> String {
        change(&mut self.config);
        self.config.write();
        let before = self.log().len();
        self.process.signal(libc::SIGHUP);
        let told = |log: &str| log.contains("configuration read again") || log.contains("stays as it was");
        wait_until("the reload", || told(&self.log()[before..]));
        self.log()[before..].to_owned()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        self.process.signal(signal);
    }

    /// Waits for the end that comes by itself.
    pub(crate) fn ended(self) -> Ended {
        self.process.end()
    }

    /// The path of its configuration.
    pub(crate) fn file(&self) -> PathBuf {
        self.config.directory.join("ferryd.toml")
    }

    /// Stops it as Ctrl-C in its terminal does.
    pub(crate) fn interrupt(self) -> Ended {
        self.process.signal(libc::SIGINT);
        self.process.end()
    }

    /// Stops it as an operator does.
    pub(crate) fn stop(self) -> Ended {
        self.process.stop()
    }
}

/// Runs ferryd with a configuration that it should refuse.
pub(crate) fn refused(change: impl FnOnce(&mut Config)) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::new(directory.path());
    change(&mut config);
    Process::spawn(&mut command(&["--config", config.write().to_str().unwrap()])).end()
}

/// Runs a verb to its end.
pub(crate) fn run(arguments: &[&str]) -> Ended {
    Process::spawn(&mut command(arguments)).end()
}

/// The binary under test, in an environment that configures nothing.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferryd"));
    if let Some(namespace) = place::namespace() {
        let namespace = File::open(namespace).unwrap();
        // SAFETY: one system call is all that it does between fork and exec.
        unsafe { command.pre_exec(move || place::enter(&namespace)) };
    }
    // Backtraces and coverage are the caller's business.
    let kept = |name: &str| name.starts_with("RUST_") || name.starts_with("LLVM_");
    command.args(arguments).env_clear().envs(std::env::vars().filter(|(name, _)| kept(name)));
    command
}

/// What a process left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn expect_success(&self) -> &Self {
        assert!(self.status.success(), "{self:#?}");
        self
    }

    /// Checks the status and every word of standard error.
    pub(crate) fn expect_failure(&self, status: i32, words: &[&str]) -> &Self {
        assert_eq!(self.status.code(), Some(status), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing in:\n{}", self.stderr);
        }
        self
    }
}

/// A process whose output is read while it runs.
pub(crate) struct Process {
    child: Child,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, stdout: Output::of(stdout), stderr: Output::of(stderr) }
    }

    /// Waits until it serves; false when it ends instead.
    pub(crate) fn serves(&mut self) -> bool {
        wait_until("ferryd to start", || {
            self.stderr.text().contains("ferryd is ready") || self.child.try_wait().unwrap().is_some()
        });
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends SIGTERM and waits.
    pub(crate) fn stop(self) -> Ended {
        self.signal(libc::SIGTERM);
        self.end()
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill takes no pointers, and the child has not been waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    /// Waits for the end that comes by itself.
    pub(crate) fn end(mut self) -> Ended {
        wait_until("ferryd to end", || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        Ended { status, stdout: self.stdout.whole(), stderr: self.stderr.whole() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of ferryd ---\n{}---", self.stderr.text());
        }
    }
}

/// A stream of the process, read by a thread.
pub(crate) struct Output {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                written.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { text, reader: Some(reader) }
    }

    /// What has come so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    /// Everything, once the process has ended.
    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.text()
    }
}
