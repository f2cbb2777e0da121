//! What drivers tell of themselves (ethtool): their name, and how often XDP failed.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// From linux/sockios.h and linux/ethtool.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GET_DRIVER: u32 = 0x03;
const GET_NAMES: u32 = 0x1b;
const GET_STATISTICS: u32 = 0x1d;
/// ETH_SS_STATS.
const STATISTICS: u32 = 1;
const NAME_LEN: usize = 32;

/// struct ethtool_drvinfo, and where the driver's name and the number of its statistics are in it.
const DRIVER_LEN: usize = 196;
const DRIVER_AT: usize = 4;
const STATISTICS_AT: usize = 180;

/// Drivers with hundreds of queues have some ten thousand.
const STATISTICS_MAX: usize = 1 << 16;

/// Asks drivers.
#[derive(Debug)]
pub(super) struct Ethtool {
    socket: OwnedFd,
}

impl Ethtool {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: creates a descriptor and touches no memory.
        let descriptor = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was opened above and belongs to nobody else.
        Ok(Self { socket: unsafe { OwnedFd::from_raw_fd(descriptor) } })
    }

    /// The name of an interface's driver.
    pub(super) fn driver(&self, interface: &str) -> io::Result<String> {
        let answer = self.driver_info(interface)?;
        let name = answer[DRIVER_AT..DRIVER_AT + NAME_LEN].split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// How often the driver has failed with what an XDP program wanted; 0 where it does not count that.
    pub(super) fn xdp_failures(&self, interface: &str) -> io::Result<u64> {
        let answer = self.driver_info(interface)?;
        let count = u32_at(&answer, STATISTICS_AT) as usize;
        if count == 0 || count > STATISTICS_MAX {
            return Ok(0);
        }
        let mut names = vec![0; 12 + count * NAME_LEN];
        names[4..8].copy_from_slice(&STATISTICS.to_ne_bytes());
        names[8..12].copy_from_slice(&(count as u32).to_ne_bytes());
        self.ask(interface, GET_NAMES, &mut names)?;
        let mut values = vec![0; 8 + count * 8];
        values[4..8].copy_from_slice(&(count as u32).to_ne_bytes());
        self.ask(interface, GET_STATISTICS, &mut values)?;
        let names = names[12..].chunks_exact(NAME_LEN);
        let failures = names.zip(values[8..].chunks_exact(8)).filter(|(name, _)| is_failure(name));
        Ok(failures.map(|(_, value)| value.try_into().map_or(0, u64::from_ne_bytes)).fold(0, u64::wrapping_add))
    }

    fn driver_info(&self, interface: &str) -> io::Result<[u8; DRIVER_LEN]> {
        let mut answer = [0; DRIVER_LEN];
        self.ask(interface, GET_DRIVER, &mut answer)?;
        Ok(answer)
    }

    /// Sends a command, which begins a buffer that is as long as the kernel takes it to be, and has the rest filled.
    fn ask(&self, interface: &str, command: u32, buffer: &mut [u8]) -> io::Result<()> {
        buffer[..4].copy_from_slice(&command.to_ne_bytes());
        // SAFETY: all-zero bytes are an ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if interface.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
        // SAFETY: the kernel reads the request, and writes no more than the command's structure, with as many entries as
        // were told, which the callers have made room for.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Whether a statistic counts failures of XDP. What programs drop on purpose, in "xdp_drop" or "xdp_drops", is none. A veth
/// counts what could not be redirected among a queue's "drops".
fn is_failure(name: &[u8]) -> bool {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default().to_ascii_lowercase();
    let has = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    if name.starts_with(b"rx_queue_") && name.ends_with(b"_drops") && !has(b"xdp") {
        return true;
    }
    has(b"xdp") && [&b"err"[..], b"full", b"abort", b"inval", b"exception", b"tx_drop"].into_iter().any(has)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_from_what_programs_do_on_purpose() {
        for name in [
            "rx_queue_0_drops",
            "rx_queue_0_xdp_tx_errors",
            "tx_queue_3_xdp_xmit_errors",
            "rx_xdp_tx_full",
            "rx3_xdp_tx_err",
            "queue_0_rx_xdp_aborted",
            "queue_0_rx_xdp_invalid",
            "tx_queue_0_xdp_tx_drops",
            "RX_XDP_EXCEPTION",
        ] {
            assert!(is_failure(name.as_bytes()), "{name}");
        }
        for name in ["rx_queue_0_xdp_drops", "rx_xdp_drop", "rx_queue_0_xdp_tx", "rx_errors", ""] {
            assert!(!is_failure(name.as_bytes()), "{name}");
        }
        assert!(is_failure(b"rx_xdp_tx_err\0left over"));
        assert!(!is_failure(b"rx_xdp_tx\0_err"));
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let ethtool = Ethtool::open().unwrap();
        assert!(ethtool.driver("ferry-no-such").is_err());
        assert!(ethtool.xdp_failures("a-name-that-is-longer-than-any").is_err());
    }
}
