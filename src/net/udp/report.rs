//! What became of a batch.

use std::ops::AddAssign;

/// What became of the datagrams of a batch; every datagram that was pushed is in exactly one of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Accepted by the kernel.
    pub sent: usize,
    /// Dropped because the socket's send buffer was full (EAGAIN).
    pub would_block: usize,
    /// Dropped because the device queue or kernel memory was full (ENOBUFS, ENOMEM).
    pub no_buffers: usize,
    /// Dropped because it is larger than UDP or, with the DF bit set, the interface allows (EMSGSIZE).
    pub too_large: usize,
    /// Dropped because there is no route to the destination (ENETUNREACH, EHOSTUNREACH, ENETDOWN).
    pub unreachable: usize,
    /// Dropped by the host's firewall, or because it went to a broadcast address (EPERM, EACCES).
    pub denied: usize,
    /// Dropped because ICMP errors about earlier datagrams of the socket came too fast (ECONNREFUSED, twice).
    pub refused: usize,
    /// Dropped because the caller has no socket for the token any more.
    pub closed: usize,
    /// Dropped because the batch was full when it was pushed.
    pub overflowed: usize,
    /// Dropped because of a mistake of the caller, such as a part that is not in its slot, or for a reason that is not
    /// in this list.
    pub other: usize,
    /// The last errno among `other`, 0 if there was none.
    pub other_errno: i32,
    /// The number of system calls, not of datagrams.
    pub calls: usize,
}

impl SendReport {
    /// How many datagrams were not sent.
    pub fn dropped(&self) -> usize {
        self.would_block
            + self.no_buffers
            + self.too_large
            + self.unreachable
            + self.denied
            + self.refused
            + self.closed
            + self.overflowed
            + self.other
    }

    pub(in crate::net) fn count_error(&mut self, errno: i32) {
        let counter = match errno {
            libc::EAGAIN => &mut self.would_block,
            libc::ENOBUFS | libc::ENOMEM => &mut self.no_buffers,
            libc::EMSGSIZE => &mut self.too_large,
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => &mut self.unreachable,
            libc::EPERM | libc::EACCES => &mut self.denied,
            libc::ECONNREFUSED => &mut self.refused,
            _ => {
                self.other_errno = errno;
                &mut self.other
            }
        };
        *counter += 1;
    }
}

impl AddAssign for SendReport {
    fn add_assign(&mut self, more: Self) {
        self.sent += more.sent;
        self.would_block += more.would_block;
        self.no_buffers += more.no_buffers;
        self.too_large += more.too_large;
        self.unreachable += more.unreachable;
        self.denied += more.denied;
        self.refused += more.refused;
        self.closed += more.closed;
        self.overflowed += more.overflowed;
        self.other += more.other;
        if more.other_errno != 0 {
            self.other_errno = more.other_errno;
        }
        self.calls += more.calls;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_counted_once_and_what_is_unknown_keeps_its_number() {
        let mut report = SendReport::default();
        let errors = [
            libc::EAGAIN,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EMSGSIZE,
            libc::ENETUNREACH,
            libc::EPERM,
            libc::EACCES,
            libc::ECONNREFUSED,
            libc::EINVAL,
        ];
        for errno in errors {
            report.count_error(errno);
        }
        let expected = SendReport {
            would_block: 1,
            no_buffers: 2,
            too_large: 1,
            unreachable: 1,
            denied: 2,
            refused: 1,
            other: 1,
            other_errno: libc::EINVAL,
            ..SendReport::default()
        };
        assert_eq!(report, expected);
        assert_eq!(report.dropped(), errors.len());
    }

    #[test]
    fn reports_add_up() {
        let one = SendReport {
            sent: 1,
            would_block: 2,
            no_buffers: 3,
            too_large: 4,
            unreachable: 5,
            denied: 6,
            refused: 7,
            closed: 8,
            overflowed: 9,
            other: 10,
            other_errno: libc::EINVAL,
            calls: 11,
        };
        let mut sum = one;
        sum += one;
        sum += SendReport::default();
        assert_eq!((sum.sent, sum.dropped(), sum.calls), (2, 2 * one.dropped(), 22));
        assert_eq!((sum.overflowed, sum.other, sum.other_errno), (18, 20, libc::EINVAL));
    }
}
