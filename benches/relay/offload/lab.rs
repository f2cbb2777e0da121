//! The namespaces with what the kernel path is measured by: a second link, addresses, and a thread that takes frames.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::failure::{Doing, Result};
use crate::machine;
use crate::namespaces::{
    self, NETWORK, Namespaces, SERVER, SERVER_LINK, cut_tcp, ip, link, run, take_in_batches, text,
};
pub(super) use crate::namespaces::{NETWORK_LINK, NETWORK_MAC, SERVER_MAC};

/// What lies beyond the server's host, where that is to forward, and its other end.
const BEYOND_LINK: &str = "fbbeyond";
const FAR_LINK: &str = "fbfar";
const BEYOND_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 3];
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 4];

/// Where trains from the server are cut, in the network, and where their frames arrive then.
pub(super) const CUT_LINK: &str = "fbcut";
const CUT_END_LINK: &str = "fbcutend";
const CUT_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 5];
const CUT_END_MAC: [u8; 6] = [2, 0, 0, 0, 0xfb, 6];

/// A veth holds 256 frames: 12 million a second.
const SINK_INTERVAL_NS: u64 = 20_000;

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

/// The namespaces, as long as this lives.
pub(super) struct Lab {
    namespaces: Namespaces,
    server_core: usize,
}

impl Lab {
    /// Builds both and moves the calling thread, and what it will start, into the network.
    pub(super) fn build(server_core: usize, sink_core: usize) -> Result<Self> {
        let lab = Self { namespaces: Namespaces::build()?, server_core };
        link((SERVER, BEYOND_LINK, BEYOND_MAC), (FAR_LINK, FAR_MAC))?;
        link((NETWORK, CUT_LINK, CUT_MAC), (CUT_END_LINK, CUT_END_MAC))?;
        lab.address()?;
        lab.on_server(|| {
            take_in_batches(SERVER_LINK)?;
            cut_tcp(SERVER_LINK)?;
            take_in_batches(BEYOND_LINK)
        })?;
        lab.namespaces.enter_network()?;
        for interface in [NETWORK_LINK, FAR_LINK, CUT_END_LINK] {
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
        self.namespaces.on_server(work)
    }

    /// Has a command run on the server's host and its core, before whatever else is to run there, and end with the bench.
    pub(super) fn place(&self, command: &mut Command) -> Result<()> {
        let (core, server) = (self.server_core, self.namespaces.server()?);
        // SAFETY: only system calls that are allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                namespaces::enter(&server)?;
                machine::go_first();
                machine::pin(core)
            });
        }
        Ok(())
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

/// Where frames arrive behind others.
pub(super) fn far_sinks() -> Result<[u32; 2]> {
    Ok([ifindex(FAR_LINK)?, ifindex(CUT_END_LINK)?])
}

/// Changes what sysfs has of an interface of the network.
fn set(interface: &str, name: &str, value: u64) -> Result<()> {
    let script = format!("echo {value} >/sys/class/net/{interface}/{name}");
    run(&format!("ip netns exec {NETWORK} sh -c"), &[&script])
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
