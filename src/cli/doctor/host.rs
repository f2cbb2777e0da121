//! Clock, descriptors, buffers, and what the kernel offers to the data path.

use std::fs;
use std::time::{Duration, SystemTime};

use super::Finding;
use crate::net::datagrams::RingDatagrams;
use crate::net::interfaces::{self, descriptor_limits};
use crate::net::socket::UdpOptions;
use crate::worker::settings::Backend;

/// 2026-01-01: no clock was right before this was written.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// Time-limited users and nonces are judged by the clock, and several servers must agree.
pub(super) fn clock(now: SystemTime) -> Finding {
    judge_clock(now, interfaces::clock_is_synchronised())
}

fn judge_clock(now: SystemTime, is_synchronised: Option<bool>) -> Finding {
    const CHECK: &str = "clock";
    const REMEDY: &str = "synchronise it: `timedatectl set-ntp true`, or chrony";
    if now < SystemTime::UNIX_EPOCH + EARLIEST {
        let found =
            "it is before 2026 by this clock: credentials live far too long, and certificates are not valid yet";
        return Finding::bad(CHECK, found, REMEDY);
    }
    match is_synchronised {
        Some(true) => Finding::good(CHECK, "synchronised"),
        Some(false) => {
            Finding::warning(CHECK, "the kernel knows of no synchronisation: fresh credentials may be late", REMEDY)
        }
        None => Finding::warning(CHECK, "the kernel does not say whether it is synchronised", REMEDY),
    }
}

/// Fewer than this many calls fit on a server nobody would build.
const DESCRIPTORS_ENOUGH: u64 = 65_536;

pub(super) fn descriptors() -> Vec<Finding> {
    const CHECK: &str = "descriptors";
    let setting = |name: &str| read_number(&format!("/proc/sys/fs/{name}"));
    let Ok(limits) = descriptor_limits() else {
        return vec![Finding::warning(CHECK, "the limit cannot be read", "`ulimit -Hn` shows it")];
    };
    let kernel = setting("nr_open").into_iter().chain(setting("file-max")).min().unwrap_or(u64::MAX);
    let most = limits.hard.min(kernel);
    let found = format!("at most {most} of this process: one for each allocation and each stream");
    if most >= DESCRIPTORS_ENOUGH {
        return vec![Finding::good(CHECK, found)];
    }
    let remedy = "the unit sets LimitNOFILE=1048576; elsewhere raise `ulimit -Hn`, fs.nr_open and fs.file-max";
    vec![Finding::warning(CHECK, found, remedy)]
}

pub(super) fn buffers() -> Vec<Finding> {
    let wanted = UdpOptions::LISTENER;
    let one = |name: &'static str, bytes: usize| {
        judge_buffer(name, bytes, read_number(&format!("/proc/sys/net/core/{name}")))
    };
    vec![one("rmem_max", wanted.receive_buffer_bytes), one("wmem_max", wanted.send_buffer_bytes)]
}

fn judge_buffer(name: &'static str, wanted: usize, max: Option<u64>) -> Finding {
    const CHECK: &str = "buffers";
    match max {
        Some(max) if max >= wanted as u64 => Finding::good(CHECK, format!("net.core.{name} is {max}")),
        Some(max) => Finding::warning(
            CHECK,
            format!("net.core.{name} is {max}, and a listener asks for {wanted}: bursts are lost"),
            format!("`sysctl -w net.core.{name}={wanted}`, and the same line in /etc/sysctl.d/ferryd.conf"),
        ),
        None => {
            Finding::warning(CHECK, format!("net.core.{name} cannot be read"), "look at it outside of the container")
        }
    }
}

/// CAP_NET_ADMIN and CAP_BPF in the mask of capabilities(7).
const NET_ADMIN: u64 = 1 << 12;
const BPF: u64 = 1 << 39;

pub(super) fn data_path(backend: Backend) -> Vec<Finding> {
    const CHECK: &str = "data path";
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim();
    let ring = RingDatagrams::new().map(drop);
    let first = match (backend, ring) {
        (Backend::Epoll, _) => Finding::good(CHECK, format!("epoll, as is configured (Linux {kernel})")),
        (Backend::Auto | Backend::IoUring, Ok(())) => Finding::good(CHECK, format!("io_uring (Linux {kernel})")),
        (Backend::Auto, Err(error)) => {
            Finding::good(CHECK, format!("epoll, as io_uring cannot be used: {error} (Linux {kernel})"))
        }
        (Backend::IoUring, Err(error)) => Finding::bad(
            CHECK,
            format!("io_uring is configured and cannot be used: {error} (Linux {kernel})"),
            "data-path.backend = \"auto\", Linux 6.12, or kernel.io_uring_disabled = 0",
        ),
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = capabilities(&status).unwrap_or_default();
    let has = |bit: u64| if capabilities & bit == bit { "yes" } else { "no" };
    let btf = if fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false) { "yes" } else { "no" };
    let found = format!(
        "BPF in the kernel: BTF {btf}, CAP_BPF {}, CAP_NET_ADMIN {} (of this process)",
        has(BPF),
        has(NET_ADMIN)
    );
    vec![first, Finding::good(CHECK, found)]
}

/// The effective capabilities of a process, from its status in /proc.
fn capabilities(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

pub(super) fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_clock_is_judged_by_time_and_synchronisation() {
        let now = SystemTime::UNIX_EPOCH + EARLIEST + Duration::from_secs(1);
        assert_eq!(judge_clock(now, Some(true)).verdict, Verdict::Good);
        assert_eq!(judge_clock(now, Some(false)).verdict, Verdict::Warning);
        assert_eq!(judge_clock(now, None).verdict, Verdict::Warning);
        assert_eq!(judge_clock(SystemTime::UNIX_EPOCH, Some(true)).verdict, Verdict::Bad);
    }

    #[test]
    fn a_buffer_that_the_kernel_caps_is_told_with_the_line_that_mends_it() {
        let finding = judge_buffer("rmem_max", 2 << 20, Some(212_992));
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.remedy.unwrap().starts_with("`sysctl -w net.core.rmem_max=2097152`"));
        assert_eq!(judge_buffer("rmem_max", 2 << 20, Some(2 << 20)).verdict, Verdict::Good);
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        let status = "Name:\tferryd\nCapPrm:\t0000000000000000\nCapEff:\t0000008000001000\n";
        assert_eq!(capabilities(status), Some(BPF | NET_ADMIN));
        assert_eq!(capabilities("Name:\tx\n"), None);
    }
}
