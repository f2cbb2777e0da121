//! The servers that are measured: how each is started, alone on its core, and ended.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::failure::{Doing, Failure, Result};
use crate::machine;
use crate::namespaces;
use crate::offload::Way;
use crate::options::Options;
use crate::place;

pub(crate) const USER: &str = "bench";
pub(crate) const PASSWORD: &str = "bench-password";
const REALM: &str = "bench.test";
const RELAY_PORTS: (u16, u16) = (49152, 65535);
const READY_PATIENCE: Duration = Duration::from_secs(15);

/// A server that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `offload` is `data-path.offload`.
    Ferryd {
        binary: PathBuf,
        extra: Vec<String>,
        offload: &'static str,
    },
    Coturn {
        binary: PathBuf,
        threads: usize,
    },
    Other {
        command: String,
    },
    Echo,
}

impl Candidate {
    /// Every server that the options name: ferryd first, coturn second.
    pub(crate) fn all(options: &Options) -> Result<Vec<Self>> {
        let ways = if options.veth.is_empty() { &[Way::None] } else { &options.veth[..] };
        let ferryd = |way: &Way| Kind::Ferryd {
            binary: options.ferryd.clone(),
            extra: options.ferryd_config.clone(),
            offload: way.setting(),
        };
        let coturn = Kind::Coturn { binary: options.coturn.clone(), threads: options.coturn_threads };
        let mut all: Vec<_> = ways.iter().map(|way| (way.ferryd().to_owned(), ferryd(way))).collect();
        all.push(("coturn".to_owned(), coturn));
        for command in &options.peers {
            let program = command.split_whitespace().next().doing("use an empty --peer")?;
            let name = Path::new(program).file_name().doing("name a --peer")?;
            all.push((name.to_string_lossy().into_owned(), Kind::Other { command: command.clone() }));
        }
        if options.veth.is_empty() {
            all.push(("echo".to_owned(), Kind::Echo));
        }
        let wanted = |name: &String| options.only.is_empty() || options.only.contains(name);
        let candidates = all.into_iter().filter(|(name, _)| wanted(name)).map(|(name, kind)| {
            let version = kind.version()?;
            Ok(Self { name, version, kind })
        });
        candidates.collect()
    }

    /// Name and version, for headings.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.name, self.version).trim().to_owned()
    }
}

/// Those of `options` that this coturn has: later ones have left out what has become their default.
pub(crate) fn known(binary: &Path, options: &[&'static str]) -> Result<Vec<&'static str>> {
    let output = Command::new(binary).arg("--help").output();
    let output = output.doing(format_args!("run {} --help", binary.display()))?;
    let help = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok(options.iter().copied().filter(|option| help.split_whitespace().any(|word| word == *option)).collect())
}

impl Kind {
    fn version(&self) -> Result<String> {
        let binary = match self {
            Self::Ferryd { binary, .. } | Self::Coturn { binary, .. } => binary,
            Self::Other { .. } | Self::Echo => return Ok(String::new()),
        };
        let output = Command::new(binary).arg("--version").output();
        let output = output.doing(format_args!("run {} --version (is it installed?)", binary.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
        Ok(version.unwrap_or("of unknown version").to_owned())
    }

    fn command(&self, directory: &Path, ports: Ports) -> Result<Command> {
        let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        let (certificate, key) = (certificate.display(), key.display());
        let mut command;
        match self {
            Self::Ferryd { binary, extra, offload } => {
                let path = directory.join("ferryd.toml");
                let text = format!("{}\n{}", extra.join("\n"), ferryd_config(directory, ports, offload));
                fs::write(&path, text).doing("write ferryd's configuration")?;
                command = Command::new(binary);
                command.arg("--config").arg(path);
            }
            Self::Coturn { binary, threads } => {
                command = Command::new(binary);
                command.args(["-n", "--allow-loopback-peers", "-a"]);
                command.args(known(binary, &["--no-cli", "--no-dtls", "--no-rfc5780"])?);
                command.args(["-u", &format!("{USER}:{PASSWORD}"), "-r", REALM, "-m", &threads.to_string()]);
                command.args(["-L", &place::server_ip().to_string(), "-E", &place::server_ip().to_string()]);
                command.args(["-p", &ports.plain.to_string(), "--tls-listening-port", &ports.tls.to_string()]);
                command.args(["--min-port", &RELAY_PORTS.0.to_string(), "--max-port", &RELAY_PORTS.1.to_string()]);
                command.args(["--cert", &certificate.to_string(), "--pkey", &key.to_string()]);
                command.args(["--log-file", "/dev/null", "--no-stdout-log", "--simple-log"]);
                command.arg("--pidfile").arg(directory.join("pid")).arg("--db").arg(directory.join("turndb"));
            }
            Self::Other { command: template } => {
                let fill = |word: &str| {
                    word.replace("{ip}", &place::server_ip().to_string())
                        .replace("{relay_ip}", &place::server_ip().to_string())
                        .replace("{port}", &ports.plain.to_string())
                        .replace("{tls_port}", &ports.tls.to_string())
                        .replace("{min_port}", &RELAY_PORTS.0.to_string())
                        .replace("{max_port}", &RELAY_PORTS.1.to_string())
                        .replace("{cert}", &certificate.to_string())
                        .replace("{key}", &key.to_string())
                        .replace("{user}", USER)
                        .replace("{password}", PASSWORD)
                        .replace("{realm}", REALM)
                };
                let mut words = template.split_whitespace().map(fill);
                command = Command::new(words.next().doing("use an empty --peer")?);
                command.args(words);
            }
            Self::Echo => {
                command = Command::new(std::env::current_exe().doing("find the bench's own binary")?);
                command.args(["--echo", &ports.plain.to_string(), &ports.tls.to_string()]);
            }
        }
        Ok(command)
    }
}

fn ferryd_config(directory: &Path, ports: Ports, offload: &str) -> String {
    let (server, block) = (place::server_ip(), place::block());
    let (directory, (low, high)) = (directory.display(), RELAY_PORTS);
    let Ports { plain, tls } = ports;
    format!(
        r#"realm = "{REALM}"
workers = 1
listener = [
  {{ address = "{server}:{plain}", transport = "udp" }},
  {{ address = "{server}:{plain}", transport = "tcp", accept = "plain" }},
  {{ address = "{server}:{tls}", transport = "tcp", accept = "tls" }},
]
[tls]
certificate = "{directory}/cert.pem"
key = "{directory}/key.pem"
[relay]
addresses = ["{server}"]
port-min = {low}
port-max = {high}
[auth]
allow-weak-passwords = true
[[auth.user]]
name = "{USER}"
password = "{PASSWORD}"
[peers]
allow = ["{block}"]
[limits]
allocations-per-user = 0
allocations-per-prefix = 0
connections-per-source = 0
[data-path]
offload = "{offload}"
[log]
level = "warn"
"#
    )
}

/// Where a server listens; the echo takes the second port for what peers send.
#[derive(Clone, Copy, Debug)]
struct Ports {
    plain: u16,
    tls: u16,
}

impl Ports {
    /// Two ports below the ephemeral range that nobody has, of UDP and TCP.
    fn free() -> Result<Self> {
        if place::server_host().is_some() {
            // Nobody else is there.
            return Ok(Self { plain: 3478, tls: 5349 });
        }
        let first = 10_000 + (std::process::id() as u16 % 10_000);
        let is_free = |port: &u16| {
            UdpSocket::bind((place::server_ip(), *port)).is_ok()
                && TcpListener::bind((place::server_ip(), *port)).is_ok()
        };
        let mut free = (first..first + 10_000).filter(is_free);
        match (free.next(), free.next()) {
            (Some(plain), Some(tls)) => Ok(Self { plain, tls }),
            _ => Err(Failure::new("no free port between 10000 and 30000")),
        }
    }
}

/// A server that runs; killed when dropped.
pub(crate) struct Running {
    child: Child,
    ports: Ports,
    directory: TempDir,
    is_echo: bool,
}

impl Running {
    /// Starts a server on its core and waits until it answers on UDP.
    pub(crate) fn start(candidate: &Candidate, core: usize, shield: bool) -> Result<Self> {
        let directory = tempfile::tempdir().doing("make a directory for the server")?;
        write_certificate(directory.path())?;
        let ports = Ports::free()?;
        let mut command = candidate.kind.command(directory.path(), ports)?;
        let log = File::create(directory.path().join("log")).doing("make the server's log")?;
        let errors = log.try_clone().doing("make the server's log")?;
        command.current_dir(directory.path()).stdin(Stdio::null()).stdout(log).stderr(errors);
        // SAFETY: only system calls that are allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if let Some(host) = place::server_host() {
                    namespaces::enter(host)?;
                }
                if shield {
                    machine::go_first();
                }
                machine::pin(core)
            });
        }
        let child = command.spawn().doing(format_args!("start {}", candidate.name))?;
        let mut running = Self { child, ports, directory, is_echo: candidate.kind == Kind::Echo };
        running.wait_until_ready().map_err(|failure| {
            let log = fs::read_to_string(running.directory.path().join("log")).unwrap_or_default();
            Failure::new(format!("{} {failure}; its log:\n{log}", candidate.name))
        })?;
        Ok(running)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).doing("open a socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).doing("set a time-out")?;
        let mut binding = Vec::new();
        crate::dialog::write_binding(&mut binding, [1; 12]);
        let deadline = Instant::now() + READY_PATIENCE;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Failure::new(format!("ended at once ({status})")));
            }
            let asked = socket.send_to(&binding, self.plain());
            if asked.is_ok() && socket.recv(&mut [0; 1500]).is_ok() {
                return Ok(());
            }
            machine::nap(2_000);
        }
        Err(Failure::new("does not answer a Binding request"))
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Where it takes datagrams and plain TCP.
    pub(crate) fn plain(&self) -> SocketAddrV4 {
        SocketAddrV4::new(place::server_ip(), self.ports.plain)
    }

    /// Where it takes TLS.
    pub(crate) fn tls(&self) -> SocketAddrV4 {
        SocketAddrV4::new(place::server_ip(), self.ports.tls)
    }

    /// Where the echo takes what peers send; `None` for a server that relays.
    pub(crate) fn echo_for_peers(&self) -> Option<SocketAddrV4> {
        self.is_echo.then(|| self.tls())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, and there is nothing else to be done about it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A self-signed P-256 certificate, the same kind for every server.
fn write_certificate(directory: &Path) -> Result<()> {
    let key = rcgen::KeyPair::generate().doing("make a key")?;
    let parameters = rcgen::CertificateParams::new(vec![REALM.to_owned()]).doing("make a certificate")?;
    let certificate = parameters.self_signed(&key).doing("sign a certificate")?;
    fs::write(directory.join("cert.pem"), certificate.pem()).doing("write a certificate")?;
    fs::write(directory.join("key.pem"), key.serialize_pem()).doing("write a key")
}
