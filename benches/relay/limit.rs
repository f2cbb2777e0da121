//! A server with less than its core: a control group with a quota.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Doing, Failure, Result};

/// Length of a period in microseconds: short, so that a server that has used its share stands still for 3 ms at 40 %.
const PERIOD_US: u64 = 5_000;
/// The shortest turn in a period that the kernel takes; for less of a core periods are longer.
const QUOTA_MIN_US: u64 = 1_000;

/// A control group that holds a server to a share of its core; removed when dropped.
pub(crate) struct Limit {
    directory: PathBuf,
    /// The group that the server came from.
    root: PathBuf,
}

impl Limit {
    /// Holds `process` to `percent` of a core. Fails where the host has no control groups to write to.
    pub(crate) fn hold(process: u32, percent: u64) -> Result<Self> {
        let name = format!("ferryd-bench-{}", std::process::id());
        let quota = (PERIOD_US * percent / 100).max(QUOTA_MIN_US);
        let period = quota * 100 / percent;
        let v2 = Path::new("/sys/fs/cgroup");
        let v1 = [Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup/cpu,cpuacct")];
        let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
        let limit = if controllers.split_ascii_whitespace().any(|controller| controller == "cpu") {
            // Fails where it is on already and where another owner keeps it off; the next write tells.
            let _ = fs::write(v2.join("cgroup.subtree_control"), "+cpu");
            let limit = Self::make(v2, &name)?;
            limit.write("cpu.max", &format!("{quota} {period}"))?;
            limit
        } else if let Some(v1) = v1.into_iter().find(|root| root.join("cpu.cfs_quota_us").exists()) {
            let limit = Self::make(v1, &name)?;
            limit.write("cpu.cfs_period_us", &period.to_string())?;
            limit.write("cpu.cfs_quota_us", &quota.to_string())?;
            limit
        } else {
            return Err(Failure::new("no control group with a CPU quota can be had here"));
        };
        limit.write("cgroup.procs", &process.to_string())?;
        Ok(limit)
    }

    fn make(root: &Path, name: &str) -> Result<Self> {
        let directory = root.join(name);
        fs::create_dir(&directory).doing(format_args!("make {}", directory.display()))?;
        Ok(Self { directory, root: root.to_owned() })
    }

    /// Lets the server go where it can use all of its core, so that the group is empty.
    pub(crate) fn release(self, process: u32) -> Result<()> {
        fs::write(self.root.join("cgroup.procs"), process.to_string()).doing("release the server from its quota")
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, value).doing(format_args!("write {value:?} to {}", path.display()))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // A process that has just ended may be there for a moment yet.
        for _ in 0..50 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            crate::machine::nap(2_000);
        }
        eprintln!("cannot remove {}", self.directory.display());
    }
}
