//! Cores, priorities, and what the kernel says about time spent.

use std::fs;
use std::io;
use std::path::Path;

use crate::failure::{Doing, Failure, Result};

/// Ticks of /proc/stat in a second; the kernel's ABI, whatever its own rate is.
const TICKS_PER_SECOND: f64 = 100.0;

/// The kernel's wall clock in nanoseconds, which also stamps received packets.
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The number of cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Ties the calling thread, and what it starts from now on, to a core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    pin_thread(0, core)
}

/// Ties a thread of the system to a core; 0 is the calling one.
pub(crate) fn pin_thread(thread: u32, core: usize) -> io::Result<()> {
    // SAFETY: all zero is the empty set, CPU_SET checks its bounds, and the set outlives the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(thread as libc::pid_t, size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_scheduler(thread: u32, policy: i32, priority: i32) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters outlive the call.
    unsafe { libc::sched_setscheduler(thread as libc::pid_t, policy, &parameters) == 0 }
}

/// Has a thread of the system run whenever it has something to do. Not everyone may do this.
pub(crate) fn make_urgent(thread: u32) {
    set_scheduler(thread, libc::SCHED_FIFO, 1);
}

/// Makes the calling process, and what it becomes, one that other work waits for. Not everyone may do this.
pub(crate) fn go_first() {
    set_scheduler(0, libc::SCHED_RR, 1);
}

/// SCHED_FIFO for the calling thread as long as this lives, where the host allows it.
pub(crate) struct RealTime {
    held: bool,
}

impl RealTime {
    pub(crate) fn claim(wanted: bool) -> Self {
        Self { held: wanted && set_scheduler(0, libc::SCHED_FIFO, 1) }
    }

    /// Whether the host allows it.
    pub(crate) fn is_allowed() -> bool {
        Self::claim(true).held
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        if self.held {
            set_scheduler(0, libc::SCHED_OTHER, 0);
        }
    }
}

/// Sleeps without waiting for any socket, so that a packet that arrives costs its sender no wake-up.
pub(crate) fn nap(microseconds: u64) {
    std::thread::sleep(std::time::Duration::from_micros(microseconds));
}

/// Time used so far, by a process and by a core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at_ns: u64,
    process_ns: u64,
    /// Of the calling thread: wanted to run and could not.
    waited_ns: u64,
    core: CoreTicks,
}

#[derive(Clone, Copy, Debug, Default)]
struct CoreTicks {
    all: u64,
    idle: u64,
    softirq: u64,
    steal: u64,
}

/// Time used between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) seconds: f64,
    /// On-CPU time of all threads of the server: the kernel's work in its system calls included, interrupts of others'
    /// packets as well where they hit it.
    pub(crate) process_seconds: f64,
    /// Share of the server's core that was not idle, whoever used it.
    pub(crate) core_busy: f64,
    pub(crate) core_softirq: f64,
    pub(crate) core_steal: f64,
    /// Share of the time in which the generator wanted to run and could not.
    pub(crate) generator_waited: f64,
}

impl Reading {
    pub(crate) fn take(process: u32, core: usize) -> Result<Self> {
        Self::of_all(&[process], core)
    }

    /// Of several processes together.
    pub(crate) fn of_all(processes: &[u32], core: usize) -> Result<Self> {
        let waited = schedstat(Path::new("/proc/thread-self/schedstat")).map_or(0, |(_, waited)| waited);
        Ok(Self {
            at_ns: now_ns(),
            process_ns: processes.iter().map(|process| process_ns(*process)).sum::<Result<u64>>()?,
            waited_ns: waited,
            core: core_ticks(core).doing(format_args!("find core {core} in /proc/stat"))?,
        })
    }

    pub(crate) fn until(&self, end: &Self) -> Usage {
        let seconds = end.at_ns.saturating_sub(self.at_ns) as f64 / 1e9;
        let ticks = |get: fn(&CoreTicks) -> u64| get(&end.core).saturating_sub(get(&self.core)) as f64;
        let all = (seconds * TICKS_PER_SECOND).max(ticks(|core| core.all)).max(1.0);
        Usage {
            seconds,
            process_seconds: end.process_ns.saturating_sub(self.process_ns) as f64 / 1e9,
            core_busy: (1.0 - ticks(|core| core.idle) / all).max(0.0),
            core_softirq: ticks(|core| core.softirq) / all,
            core_steal: ticks(|core| core.steal) / all,
            generator_waited: end.waited_ns.saturating_sub(self.waited_ns) as f64 / 1e9 / seconds.max(1e-9),
        }
    }
}

/// On-CPU time summed over the threads of a process.
pub(crate) fn process_ns(process: u32) -> Result<u64> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).doing("read the server's threads; did it end?")?;
    let times = tasks.filter_map(|task| schedstat(&task.ok()?.path().join("schedstat")));
    Ok(times.map(|(on_cpu, _)| on_cpu).sum())
}

/// On-CPU time of a thread of this process.
pub(crate) fn thread_ns(thread: u32) -> Result<u64> {
    let times = schedstat(Path::new(&format!("/proc/self/task/{thread}/schedstat")));
    times.map(|(on_cpu, _)| on_cpu).doing("read the time of a thread; did it end?")
}

/// The calling thread, as the system knows it.
pub(crate) fn thread_id() -> u32 {
    // SAFETY: always succeeds and touches no memory.
    unsafe { libc::gettid() as u32 }
}

/// The kernel's thread that goes on with the work of a core's interrupts when it grows too much for them.
pub(crate) fn ksoftirqd(core: usize) -> Result<u32> {
    let name = format!("ksoftirqd/{core}\n");
    let processes = fs::read_dir("/proc").doing("read /proc")?;
    let mut found = processes.filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_it = fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name);
        is_it.then(|| path.file_name()?.to_str()?.parse().ok())?
    });
    found.next().doing(format_args!("find ksoftirqd/{core}"))
}

fn schedstat(path: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let mut numbers = text.split_ascii_whitespace().map_while(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn core_ticks(core: usize) -> Option<CoreTicks> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let name = format!("cpu{core} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    let [_user, _nice, _system, idle, iowait, _irq, softirq, steal, ..] = *ticks else { return None };
    Some(CoreTicks { all: ticks[..8].iter().sum(), idle: idle + iowait, softirq, steal })
}

/// Datagrams that sockets of the process's network had no room for, up to now.
pub(crate) fn datagrams_without_room(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/net/snmp")).doing("read the server's network counters")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).doing("find UDP in the server's network counters")?;
    let at = names.split_ascii_whitespace().position(|name| name == "RcvbufErrors");
    let value = at.and_then(|at| values.split_ascii_whitespace().nth(at)?.parse().ok());
    value.doing("find RcvbufErrors in the server's network counters")
}

/// Memory of a process that is in RAM and not a file's, in KiB.
pub(crate) fn resident_kib(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).doing("read the server's memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    number.doing("find RssAnon in the server's status")
}

/// What the figures were measured on.
pub(crate) fn description(cores: usize) -> String {
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let model = model.unwrap_or("unknown processor").trim();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

/// One-minute load average before the bench began: other work on the machine.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Raises the limit on descriptors to what is allowed.
pub(crate) fn raise_descriptor_limit() -> Result<u64> {
    ferryd::net::interfaces::raise_descriptor_limit()
        .map_err(|error| Failure::new(format!("cannot raise the limit on descriptors: {error}")))
}
