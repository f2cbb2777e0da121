//! Two network namespaces and links between them: the server's host, and the network with everybody else.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::failure::{Doing, Failure, Result};

pub(crate) const SERVER: &str = "ferry-bench-server";
pub(crate) const NETWORK: &str = "ferry-bench-net";
/// The server's own interface, and its other end.
pub(crate) const SERVER_LINK: &str = "fbserver";
pub(crate) const NETWORK_LINK: &str = "fbnetwork";
pub(crate) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 1];
pub(crate) const NETWORK_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 2];

/// ETHTOOL_STXCSUM and ETHTOOL_SGRO of linux/ethtool.h and SIOCETHTOOL of linux/sockios.h.
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGRO: u32 = 0x2c;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// Both, with the link between them. A process of its own removes them when this is dropped, or the bench is gone in any
/// other way.
pub(crate) struct Namespaces {
    remover: Child,
    server: File,
    network: File,
}

impl Namespaces {
    pub(crate) fn build() -> Result<Self> {
        remove();
        let remover = start_remover().doing("start the process that removes the namespaces")?;
        for namespace in [SERVER, NETWORK] {
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        let open = |name| File::open(format!("/run/netns/{name}")).doing(format_args!("open the namespace {name}"));
        let (server, network) = (open(SERVER)?, open(NETWORK)?);
        let namespaces = Self { remover, server, network };
        link((SERVER, SERVER_LINK, SERVER_MAC), (NETWORK_LINK, NETWORK_MAC))?;
        Ok(namespaces)
    }

    /// Moves the calling thread, and what it will start, into the network.
    pub(crate) fn enter_network(&self) -> Result<()> {
        enter(&self.network).doing("enter the namespace of the network")
    }

    /// Does something as the server's host.
    pub(crate) fn on_server<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.server, work)
    }

    /// The server's host, for [`enter`].
    pub(crate) fn server(&self) -> Result<File> {
        self.server.try_clone().doing("share a namespace")
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        let _ = self.remover.wait();
    }
}

fn start_remover() -> io::Result<Child> {
    let script = format!("read -r never; ip netns del {SERVER}; ip netns del {NETWORK}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    // Not reached by what a terminal sends to the bench.
    command.process_group(0).spawn()
}

/// What an earlier run may have left.
fn remove() {
    for namespace in [SERVER, NETWORK] {
        let _ = ip(&format!("netns del {namespace}"));
    }
}

/// Links an interface of a namespace with one of the network.
pub(crate) fn link(
    (namespace, one, one_mac): (&str, &str, [u8; 6]),
    (other, other_mac): (&str, [u8; 6]),
) -> Result<()> {
    let (one_mac, other_mac) = (text(one_mac), text(other_mac));
    ip(&format!(
        "link add {one} netns {namespace} address {one_mac} type veth peer name {other} netns {NETWORK} address {other_mac}"
    ))?;
    ip(&format!("-n {namespace} link set {one} up"))?;
    ip(&format!("-n {NETWORK} link set {other} up"))
}

pub(crate) fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

pub(crate) fn ip(arguments: &str) -> Result<()> {
    run(&format!("ip {arguments}"), &[])
}

/// Runs a command line, split at spaces, with more arguments.
pub(crate) fn run(command: &str, more: &[&str]) -> Result<()> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().doing("run nothing")?).args(words).args(more).output();
    let output = output.doing(format_args!("run {command}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{command} {}: {} (is this root, with iproute2?)", more.join(" "), why.trim())))
}

/// Switches GRO on: only so does a veth take frames from an XDP program, and has a thread for them.
pub(crate) fn take_in_batches(interface: &str) -> Result<()> {
    switch(interface, ETHTOOL_SGRO, true)
}

/// Has senders complete their checksums, as network cards do.
pub(crate) fn complete_checksums(interface: &str) -> Result<()> {
    switch(interface, ETHTOOL_STXCSUM, false)
}

/// Has the kernel cut trains of TCP. Only to such a veth's other end do datagrams of sockets go by the thread that takes
/// frames there, and not within the call that sends them.
pub(crate) fn cut_tcp(interface: &str) -> Result<()> {
    switch(interface, ETHTOOL_STSO, false)
}

/// Switches a feature of an interface.
fn switch(interface: &str, command: u32, on: bool) -> Result<()> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).doing("open a socket")?;
    let mut value = [command, u32::from(on)];
    // SAFETY: all-zero bytes are an ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the kernel reads the request and the value, which outlive the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).doing(format_args!("switch a feature of {interface}")),
    }
}

pub(crate) fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: touches no memory; the descriptor is open.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn within<T: Send>(namespace: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace).doing("enter a namespace")?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(Failure::new("a thread of the bench panicked")))
    })
}
