//! Capabilities: what loads programs is not what serves clients.

use std::io;

/// _LINUX_CAPABILITY_VERSION_3: two words of each set.
const VERSION: u32 = 0x2008_0522;
/// From linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Takes the capabilities of the kernel path from this thread and from those that it will start.
pub fn drop_capabilities() -> io::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the kernel reads the header and writes the two words of version 3.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for capability in [CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF] {
        let (set, bit) = (&mut sets[capability as usize / 32], 1 << (capability % 32));
        for word in [&mut set.effective, &mut set.permitted, &mut set.inheritable] {
            *word &= !bit;
        }
    }
    // SAFETY: the kernel reads the header and the two words. What is not permitted any more is not ambient either.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The effective set of this thread.
    fn effective() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_gives_up_what_the_kernel_path_needs_and_no_more() {
        let given_up = 1 << CAP_NET_ADMIN | 1_u64 << CAP_PERFMON | 1 << CAP_BPF;
        let before = effective();
        // A thread of its own: other tests need theirs.
        let after = std::thread::spawn(|| {
            drop_capabilities().unwrap();
            let inherited = std::thread::spawn(effective).join().unwrap();
            assert_eq!(inherited, effective());
            inherited
        });
        assert_eq!(after.join().unwrap(), before & !given_up);
        assert_eq!(effective(), before);
    }
}
