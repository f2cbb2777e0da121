//! Two network namespaces and the links between them: the server's host, and the network with everybody else.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::failure::{Doing, Failure, Result};
use crate::machine;

const SERVER: &str = "ferry-bench-server";
const NETWORK: &str = "ferry-bench-net";
/// The server's own interface, and its other end, where frames are made and taken.
const SERVER_LINK: &str = "fbserver";
pub(super) const NETWORK_LINK: &str = "fbnetwork";
/// What lies beyond the server's host, where that is to forward, and its other end.
const BEYOND_LINK: &str = "fbbeyond";
const FAR_LINK: &str = "fbfar";
pub(super) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 1];
pub(super) const NETWORK_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 2];
const BEYOND_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 3];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 4];

/// A veth holds 256 frames: 12 million a second.
const SINK_INTERVAL_NS: u64 = 20_000;

/// ETHTOOL_SGRO of linux/ethtool.h and SIOCETHTOOL of linux/sockios.h.
const ETHTOOL_SGRO: u32 = 0x2c;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// An address family, with the addresses of the lab (RFC 2544, RFC 5180).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    fn ip(self, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 18, 0, host).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    pub(super) fn server(self) -> IpAddr {
        self.ip(1)
    }

    pub(super) fn client(self) -> IpAddr {
        self.ip(2)
    }

    pub(super) fn peer(self) -> IpAddr {
        self.ip(3)
    }

    /// Behind the server's host.
    pub(super) fn beyond(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 19, 0, 3).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 2, 0, 1, 0, 0, 0, 3).into(),
        }
    }
}

/// The namespaces. A process of its own removes them when this is dropped, or the bench is gone in any other way.
pub(super) struct Lab {
    remover: Child,
    server: File,
    server_core: usize,
}

impl Lab {
    /// Builds both and moves the calling thread, and what it will start, into the network.
    pub(super) fn build(server_core: usize, sink_core: usize) -> Result<Self> {
        remove();
        let remover = start_remover().doing("start the process that removes the namespaces")?;
        for namespace in [SERVER, NETWORK] {
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        let open = |name| File::open(format!("/run/netns/{name}")).doing(format_args!("open the namespace {name}"));
        let (server, network) = (open(SERVER)?, open(NETWORK)?);
        let lab = Self { remover, server, server_core };
        link((SERVER, SERVER_LINK, SERVER_MAC), (NETWORK_LINK, NETWORK_MAC))?;
        link((SERVER, BEYOND_LINK, BEYOND_MAC), (FAR_LINK, FAR_MAC))?;
        lab.address()?;
        within(&lab.server, || {
            take_in_batches(SERVER_LINK)?;
            take_in_batches(BEYOND_LINK)
        })?;
        enter(&network).doing("enter the namespace of the network")?;
        for interface in [NETWORK_LINK, FAR_LINK] {
            take_in_batches(interface)?;
            // Frames are taken by a thread on the other core.
            set(interface, "threaded", 1)?;
            let thread = napi_thread(interface)?;
            machine::pin_thread(thread, sink_core).doing(format_args!("tie the thread of {interface} to a core"))?;
            machine::make_urgent(thread);
            // It looks for them by itself, as a network card does: the server's host does not pay for waking it.
            set(interface, "napi_defer_hard_irqs", i32::MAX as u64)?;
            set(interface, "gro_flush_timeout", SINK_INTERVAL_NS)?;
        }
        Ok(lab)
    }

    fn address(&self) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let (v, len, options) = match family {
                Family::V4 => (4, 24, ""),
                Family::V6 => (6, 64, "nodad"),
            };
            let [server, client, peer, beyond] = [family.server(), family.client(), family.peer(), family.beyond()];
            ip(&format!("-n {SERVER} addr add {server}/{len} dev {SERVER_LINK} {options}"))?;
            ip(&format!("-n {NETWORK} addr add {client}/{len} dev {NETWORK_LINK} {options}"))?;
            ip(&format!("-n {NETWORK} addr add {peer}/{len} dev {NETWORK_LINK} {options}"))?;
            let (of_network, of_server) = (text(NETWORK_MAC), text(SERVER_MAC));
            for host in [client, peer] {
                ip(&format!("-n {SERVER} neigh add {host} lladdr {of_network} dev {SERVER_LINK} nud permanent"))?;
            }
            ip(&format!("-n {NETWORK} neigh add {server} lladdr {of_server} dev {NETWORK_LINK} nud permanent"))?;
            ip(&format!("-n {SERVER} -{v} route add {beyond} dev {BEYOND_LINK}"))?;
            ip(&format!("-n {SERVER} neigh add {beyond} lladdr {} dev {BEYOND_LINK} nud permanent", text(FAR_MAC)))?;
        }
        Ok(())
    }

    /// Has the server's host forward packets, or not.
    pub(super) fn set_forwarding(&self, on: bool) -> Result<()> {
        let value = u8::from(on);
        run(
            &format!("ip netns exec {SERVER} sysctl -q -w"),
            &[&format!("net.ipv4.ip_forward={value}"), &format!("net.ipv6.conf.all.forwarding={value}")],
        )
    }

    /// Does something as the server's host.
    pub(super) fn on_server<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.server, work)
    }

    /// Has a command run on the server's host and its core, before whatever else is to run there, and end with the bench.
    pub(super) fn place(&self, command: &mut Command) -> Result<()> {
        let (core, server) = (self.server_core, self.server.try_clone().doing("share a namespace")?);
        // SAFETY: only system calls that are allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                enter(&server)?;
                machine::go_first();
                machine::pin(core)
            });
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        let _ = self.remover.wait();
    }
}

pub(super) fn ifindex(name: &str) -> Result<u32> {
    let name = std::ffi::CString::new(name).doing("name an interface")?;
    // SAFETY: the name ends with a zero byte and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()).doing(format_args!("find the interface {name:?}")),
        index => Ok(index),
    }
}

pub(super) fn server_ifindex() -> Result<u32> {
    ifindex(SERVER_LINK)
}

/// Where frames arrive.
pub(super) fn sinks() -> Result<[u32; 2]> {
    Ok([ifindex(NETWORK_LINK)?, ifindex(FAR_LINK)?])
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
fn link((namespace, one, one_mac): (&str, &str, [u8; 6]), (other, other_mac): (&str, [u8; 6])) -> Result<()> {
    let (one_mac, other_mac) = (text(one_mac), text(other_mac));
    ip(&format!(
        "link add {one} netns {namespace} address {one_mac} type veth peer name {other} netns {NETWORK} address {other_mac}"
    ))?;
    ip(&format!("-n {namespace} link set {one} up"))?;
    ip(&format!("-n {NETWORK} link set {other} up"))
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(arguments: &str) -> Result<()> {
    run(&format!("ip {arguments}"), &[])
}

/// Changes what sysfs has of an interface of the network.
fn set(interface: &str, name: &str, value: u64) -> Result<()> {
    let script = format!("echo {value} >/sys/class/net/{interface}/{name}");
    run(&format!("ip netns exec {NETWORK} sh -c"), &[&script])
}

/// Runs a command line, split at spaces, with more arguments.
fn run(command: &str, more: &[&str]) -> Result<()> {
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
fn take_in_batches(interface: &str) -> Result<()> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).doing("open a socket")?;
    let mut value = [ETHTOOL_SGRO, 1];
    // SAFETY: all-zero bytes are an ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the kernel reads the request and the value, which outlive the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).doing(format_args!("switch GRO on for {interface}")),
    }
}

/// The kernel's thread for what an interface receives.
fn napi_thread(interface: &str) -> Result<u32> {
    let prefix = format!("napi/{interface}-");
    let processes = fs::read_dir("/proc").doing("read /proc")?;
    let mut found = processes.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = fs::read_to_string(path.join("comm")).ok()?;
        name.starts_with(&prefix).then(|| path.file_name()?.to_str()?.parse().ok())?
    });
    found.next().doing(format_args!("find the thread of {interface}: NAPI in threads needs Linux 5.12"))
}

fn enter(namespace: &File) -> io::Result<()> {
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
