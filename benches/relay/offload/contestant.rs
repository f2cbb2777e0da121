//! What carries the packets: servers with calls that are set up by TURN, and the two yardsticks.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferryd::stun::Message;
use tempfile::TempDir;

use super::frames::Frame;
use super::lab::{Family, Lab};
use crate::dialog::{Ask, Dialog, write_binding};
use crate::failure::{Doing, Failure, Result};
use crate::machine;
use crate::server::{PASSWORD, USER, known};

const PORT: u16 = 3478;
const CLIENT_PORTS: u16 = 10_000;
const PEER_PORTS: u16 = 20_000;
const CHANNEL: u16 = 0x4001;
const PATIENCE: Duration = Duration::from_secs(15);
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
const ASKED_AGAIN_MAX: usize = 6;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    /// By `data-path.offload`; none is "off".
    Ferryd {
        binary: PathBuf,
        extra: Vec<String>,
        offload: &'static str,
    },
    Coturn {
        binary: PathBuf,
        threads: usize,
    },
    /// The kernel, from one interface to another.
    Forwarding,
    /// XDP_TX of whatever comes.
    Reflector,
}

impl Contestant {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Ferryd { offload: "off", .. } => "ferryd".to_owned(),
            Self::Ferryd { offload, .. } => format!("ferryd-{offload}"),
            Self::Coturn { .. } => "coturn".to_owned(),
            Self::Forwarding => "forwarding".to_owned(),
            Self::Reflector => "reflector".to_owned(),
        }
    }

    fn command(&self, directory: &Path) -> Result<Option<Command>> {
        match self {
            Self::Ferryd { binary, extra, offload } => {
                let path = directory.join("ferryd.toml");
                let text = format!("{}\n{}", extra.join("\n"), ferryd_config(offload));
                fs::write(&path, text).doing("write ferryd's configuration")?;
                let mut command = Command::new(binary);
                command.arg("--config").arg(path);
                Ok(Some(command))
            }
            Self::Coturn { binary, threads } => {
                let mut command = Command::new(binary);
                command.args(["-n", "-a", "--no-tls", "-r", "bench.test"]);
                command.args(known(binary, &["--no-cli", "--no-dtls", "--no-rfc5780"])?);
                command.args(["-u", &format!("{USER}:{PASSWORD}"), "-m", &threads.to_string()]);
                for family in [Family::V4, Family::V6] {
                    command.args(["-L", &family.server().to_string(), "-E", &family.server().to_string()]);
                }
                command.args(["-p", &PORT.to_string(), "--log-file", "/dev/null", "--no-stdout-log", "--simple-log"]);
                command.arg("--pidfile").arg(directory.join("pid")).arg("--db").arg(directory.join("turndb"));
                Ok(Some(command))
            }
            Self::Forwarding | Self::Reflector => Ok(None),
        }
    }
}

fn ferryd_config(offload: &str) -> String {
    let [v4, v6] = [Family::V4.server(), Family::V6.server()];
    format!(
        r#"realm = "bench.test"
workers = 1
listener = [
  {{ address = "{v4}:{PORT}", transport = "udp" }},
  {{ address = "[{v6}]:{PORT}", transport = "udp" }},
]
[relay]
addresses = ["{v4}", "{v6}"]
[auth]
allow-weak-passwords = true
[[auth.user]]
name = "{USER}"
password = "{PASSWORD}"
[peers]
allow = ["198.18.0.0/15", "2001:2::/48"]
[limits]
allocations-per-user = 0
allocations-per-prefix = 0
[data-path]
offload = "{offload}"
[log]
level = "info"
"#
    )
}

/// A server that runs on the server's host; killed when dropped.
pub(super) struct Running {
    child: Option<Child>,
    directory: TempDir,
}

impl Running {
    /// Starts what has to be started, and waits until it answers.
    pub(super) fn start(contestant: &Contestant, lab: &Lab) -> Result<Self> {
        let directory = tempfile::tempdir().doing("make a directory for the server")?;
        let Some(mut command) = contestant.command(directory.path())? else {
            return Ok(Self { child: None, directory });
        };
        let log = File::create(directory.path().join("log")).doing("make the server's log")?;
        let errors = log.try_clone().doing("make the server's log")?;
        command.current_dir(directory.path()).stdin(Stdio::null()).stdout(log).stderr(errors);
        lab.place(&mut command)?;
        let child = command.spawn().doing(format_args!("start {}", contestant.name()))?;
        let mut running = Self { child: Some(child), directory };
        match running.wait_until_ready() {
            Ok(()) => Ok(running),
            Err(failure) => Err(running.blame(contestant, &failure)),
        }
    }

    /// A failure, with what the server has logged.
    pub(super) fn blame(&self, contestant: &Contestant, failure: &Failure) -> Failure {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(10)..].join("\n");
        Failure::new(format!("{}: {failure}; the end of its log:\n{tail}", contestant.name()))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let socket = socket(SocketAddr::new(Family::V4.client(), 0), Duration::from_millis(50))?;
        let mut binding = Vec::new();
        write_binding(&mut binding, [1; 12]);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                return Err(Failure::new(format!("ended at once ({status})")));
            }
            let asked = socket.send_to(&binding, (Family::V4.server(), PORT));
            if asked.is_ok() && socket.recv(&mut [0; 1500]).is_ok() {
                return Ok(());
            }
            machine::nap(2_000);
        }
        Err(Failure::new("does not answer a Binding request"))
    }

    /// Its process; none for what is the kernel's work.
    pub(super) fn processes(&self) -> Vec<u32> {
        self.child.iter().map(Child::id).collect()
    }

    /// Sets calls up, each with a channel, and gives what goes in and what is to come out, for both ways of each call.
    pub(super) fn set_up(&self, family: Family, calls: u16, payload_len: usize) -> Result<Vec<(Frame, Frame)>> {
        if self.child.is_none() {
            return Ok(forwarded(family, calls, payload_len));
        }
        let mut pairs = Vec::new();
        for call in 0..calls {
            let client = SocketAddr::new(family.client(), CLIENT_PORTS + call);
            let peer = SocketAddr::new(family.peer(), PEER_PORTS + call);
            let index = pairs.len() as u32;
            let server = SocketAddr::new(family.server(), PORT);
            let relayed = allocate(family, call, client, peer, server)?;
            let frame = |from, to, channel, index| Frame::new(from, to, channel, index, payload_len);
            pairs.push((frame(client, server, Some(CHANNEL), index), frame(relayed, peer, None, index)));
            pairs.push((frame(peer, relayed, None, index + 1), frame(server, client, Some(CHANNEL), index + 1)));
        }
        Ok(pairs)
    }
}

/// What comes out as it goes in, both ways alike.
pub(super) fn forwarded(family: Family, calls: u16, payload_len: usize) -> Vec<(Frame, Frame)> {
    let from = |flow: u16| SocketAddr::new(family.client(), CLIENT_PORTS + flow);
    let to = |flow: u16| SocketAddr::new(family.beyond(), PEER_PORTS + flow);
    let frames = (0..2 * calls).map(|flow| Frame::new(from(flow), to(flow), None, flow.into(), payload_len));
    frames.map(|frame| (frame, frame)).collect()
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already, and there is nothing else to be done about it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn socket(local: SocketAddr, patience: Duration) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(local).doing(format_args!("open a socket on {local}"))?;
    socket.set_read_timeout(Some(patience)).doing("set a time-out")?;
    Ok(socket)
}

/// The relayed address of a client that has bound its channel to the peer.
fn allocate(family: Family, call: u16, client: SocketAddr, peer: SocketAddr, server: SocketAddr) -> Result<SocketAddr> {
    let socket = socket(client, ANSWER_PATIENCE)?;
    let allocate = if family == Family::V4 { Ask::Allocate } else { Ask::AllocateV6 };
    let mut dialog = Dialog::new(call.into(), &[allocate, Ask::BindChannel { channel: CHANNEL, peer }]);
    let (mut request, mut answer) = (Vec::new(), [0; 1500]);
    let mut asked_again = 0;
    while !dialog.is_done() {
        request.clear();
        dialog.write_request(&mut request);
        socket.send_to(&request, server).doing("ask the server")?;
        match socket.recv(&mut answer) {
            Ok(len) => {
                if let Ok(message) = Message::parse(&answer[..len]) {
                    dialog.handle(&message)?;
                }
            }
            Err(_) if asked_again < ASKED_AGAIN_MAX => asked_again += 1,
            Err(error) => return Err(error).doing(format_args!("set up call {call}: no answer")),
        }
    }
    dialog.relayed()
}
