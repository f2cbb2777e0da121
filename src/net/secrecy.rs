//! Keeps this process's memory to itself.

use std::io;

/// Has no memory of this process written to a file when it crashes, nor read by other processes of its user.
///
/// A limit of 0 is not enough: the kernel does not ask it where core dumps go to a program, as on most systems. So the
/// process is made undumpable as well, which also keeps debuggers without CAP_SYS_PTRACE away.
pub fn forbid_dumps() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: PR_SET_DUMPABLE takes a number and touches no memory of ours.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_forbids_dumps_is_not_dumpable() {
        // SAFETY: both take numbers and touch no memory.
        let dumpable = || unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
        let before = dumpable();
        forbid_dumps().unwrap();
        assert_eq!(dumpable(), 0);
        // SAFETY: as above. The other tests of this process are let read their own files of /proc.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, before, 0, 0, 0) };
    }
}
