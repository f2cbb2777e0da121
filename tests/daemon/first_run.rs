//! Nothing is configured: a newcomer gets something to paste, a service manager gets nothing secret.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use ferryd::stun::{AttributeType, Method};

use crate::client::{Client, User, udp_transport};
use crate::ferryd::{Config, Ended, Ferryd, Process, command};
use crate::{place, wait_until};

/// What the greeting says.
struct Greeting {
    /// By transport.
    urls: Vec<(String, SocketAddr)>,
    user: User,
}

impl Greeting {
    fn parse(text: &str) -> Self {
        let mut urls = Vec::new();
        let mut words = text.lines().filter_map(|line| line.strip_prefix("  ")).collect::<Vec<_>>();
        words.retain(|line| !line.starts_with(' '));
        let field = |name: &str| {
            let line = words.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        for url in words.iter().filter_map(|line| line.strip_prefix("turn:")) {
            let (address, transport) = url.split_once("?transport=").unwrap();
            urls.push((transport.to_owned(), address.parse().unwrap()));
        }
        assert!(!urls.is_empty(), "{text}");
        Self { urls, user: User::new(&field("username"), &field("credential")) }
    }

    /// Allocates with what was printed, as every URL says.
    fn works(&self) {
        for (transport, address) in &self.urls {
            let client = match transport.as_str() {
                "udp" => Client::udp(*address),
                "tcp" => Client::tcp(*address),
                other => panic!("transport {other}"),
            };
            let relayed = client.with(self.user.clone()).request(Method::Allocate, |builder| {
                udp_transport(builder);
                let family = if address.is_ipv4() { 1 } else { 2 };
                builder.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]);
            });
            assert_eq!(relayed.address(AttributeType::XOR_RELAYED_ADDRESS).ip(), address.ip());
        }
    }
}

/// Runs with nothing but these variables, until it serves; another run on the default ports is waited for.
fn run_unconfigured(directory: &Path, variables: &[(&str, &str)]) -> Process {
    let mut command = command(&[]);
    command.current_dir(directory).env("HOME", directory).envs(variables.iter().copied());
    let mut process = Process::spawn(&mut command);
    wait_until("port 3478, which this test needs, to be free of everything else on this host", || {
        let serves = process.serves();
        if !serves {
            assert!(process.stderr.text().contains("port is in use"), "{}", process.stderr.text());
            process = Process::spawn(&mut command);
        }
        serves
    });
    process
}

/// One at a time: the ports are the default ones.
fn default_ports() -> File {
    assert!(!Path::new("/etc/ferryd/ferryd.toml").exists(), "this host configures ferryd: its first run is over");
    let lock = File::create(std::env::temp_dir().join("ferryd-default-ports.lock")).unwrap();
    lock.lock().unwrap();
    lock
}

#[test]
fn a_first_run_prints_urls_and_a_credential_that_work() {
    let _ports = default_ports();
    let directory = tempfile::tempdir().unwrap();
    let process = run_unconfigured(directory.path(), &[]);
    wait_until("the greeting", || process.stdout.text().contains("Try it:"));
    let greeting = Greeting::parse(&process.stdout.text());
    greeting.works();
    let line = process.stdout.text().lines().find_map(|line| Some(line.strip_prefix("Try it:  ")?.to_owned()));
    let pasted = Command::new("sh").arg("-c").arg(line.unwrap()).output().unwrap();
    let shown = String::from_utf8_lossy(&pasted.stdout);
    assert!(pasted.status.success() && shown.contains("10 of 10 packets there and back"), "{pasted:?}");
    let Ended { status, stdout, stderr } = process.stop();
    assert!(status.success());
    assert!(!stderr.contains(&greeting.user.password), "never to a log: {stderr}");
    assert!(stdout.contains(&format!("-u {} -p {}", greeting.user.name, greeting.user.password)), "{stdout}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_greeting_that_cannot_be_printed_ends_nothing() {
    let (ip, port) = (place::own_address(), place::free_port());
    let address = SocketAddr::from((ip, port));
    let mut command = command(&[]);
    command.env("FERRYD_LISTENER", format!("[{{ address = \"{address}\", transport = \"udp\" }}]"));
    command.env("FERRYD_RELAY__ADDRESSES", ip.to_string());
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let line = log.lines().map(Result::unwrap).find(|line| line.contains("WARN") && line.contains("cannot be printed"));
    let answered = line.is_some().then(|| Client::udp(address).bind());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(answered.is_some(), "it ended");
}

#[test]
fn a_service_manager_is_told_no_credential() {
    let _ports = default_ports();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let _listening = UnixDatagram::bind(&socket).unwrap();
    for variable in
        [("INVOCATION_ID", "0123456789abcdef"), ("JOURNAL_STREAM", "8:1"), ("NOTIFY_SOCKET", socket.to_str().unwrap())]
    {
        let ended = run_unconfigured(directory.path(), &[variable]).stop();
        assert_eq!(ended.expect_success().stdout, "", "{variable:?}");
    }
}

#[test]
fn the_state_directory_of_systemd_keeps_the_secret_of_an_unconfigured_daemon() {
    let _ports = default_ports();
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let variables = [("STATE_DIRECTORY", state.to_str().unwrap())];
    let process = run_unconfigured(directory.path(), &variables);
    wait_until("the greeting", || process.stdout.text().contains("Try it:"));
    let greeting = Greeting::parse(&process.stdout.text());
    process.stop().expect_success();
    let again = run_unconfigured(directory.path(), &variables);
    greeting.works();
    again.stop().expect_success();
}

/// No secret is configured, so one is made; it is kept when there is a directory.
fn keeping(config: &mut Config) {
    let state = config.directory.join("state");
    config.unset("auth.user").text("state-directory", state.display());
}

#[test]
fn a_restart_forgets_neither_credentials_nor_nonces() {
    let ferryd = Ferryd::start(keeping);
    let minted = ferryd.verb(&["credential", "dora"]);
    let user = user_of(&minted.expect_success().stdout);
    // One that has begun with the first daemon, and goes on with the second.
    let mut client = Client::udp(ferryd.address()).with(user.clone());
    let challenge = client.ask(Method::Allocate, udp_transport).challenge();
    let ferryd = ferryd.restart();
    client.challenge = Some(challenge);
    let answer = client.request_once(Method::Allocate, udp_transport);
    assert_eq!(answer.code(), None, "the nonce and the credential from before are good");
    // The nonce is this client's alone.
    let mut other = Client::udp(ferryd.address()).with(user);
    other.challenge.clone_from(&client.challenge);
    assert_eq!(other.request_once(Method::Allocate, udp_transport).code(), Some(438));
    other.allocate();
    ferryd.stop().expect_success();
}

#[test]
fn without_a_state_directory_a_restart_forgets_and_greets_again() {
    let ferryd = Ferryd::start(|config| _ = config.unset("auth.user"));
    wait_until("the greeting", || ferryd.output().contains("Try it:"));
    let first = Greeting::parse(&ferryd.output());
    first.works();
    let ferryd = ferryd.restart();
    wait_until("the greeting", || ferryd.output().contains("Try it:"));
    Greeting::parse(&ferryd.output()).works();
    let refused = Client::udp(ferryd.address()).with(first.user).try_allocate();
    assert_eq!(refused, Err(401));
}

#[test]
fn the_secret_and_the_key_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;

    let ferryd = Ferryd::start(keeping);
    let state = ferryd.config.directory.join("state");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for file in ["shared-secret", "nonce.key"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
    // A greeting would be of no use: the operator mints.
    assert_eq!(ferryd.stop().expect_success().stdout, "");
}

/// The user in what `ferryd credential` prints.
pub(crate) fn user_of(json: &str) -> User {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let server = &json["iceServers"][0];
    User::new(server["username"].as_str().unwrap(), server["credential"].as_str().unwrap())
}

#[test]
fn a_peer_of_the_first_run_is_refused_unless_it_is_another_client() {
    let ferryd = Ferryd::start(|config| _ = config.unset("auth.user").unset("peers.allow"));
    wait_until("the greeting", || ferryd.output().contains("Try it:"));
    let user = Greeting::parse(&ferryd.output()).user;
    let mut client = Client::udp(ferryd.address()).with(user);
    client.allocate();
    let service = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(client.permit(service.local_addr().unwrap()), Err(403));
}
