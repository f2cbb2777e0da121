//! What the kernel is asked for, and what it tells of it.

use io_uring::cqueue;

#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub(super) job: Job,
    pub(super) result: i32,
    pub(super) flags: u32,
}

/// What a completion is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Receive { key: u32, generation: u32 },
    Send(u32),
    Poll,
}

/// 24 bits beside the key and the kind.
pub(super) const GENERATION_MASK: u32 = (1 << 24) - 1;

impl Job {
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Receive { key, generation } => u64::from(generation) << 34 | u64::from(key) << 2,
            Self::Send(index) => u64::from(index) << 2 | 1,
            Self::Poll => 2,
        }
    }

    fn unpack(packed: u64) -> Self {
        match packed & 3 {
            0 => Self::Receive { key: (packed >> 2) as u32, generation: (packed >> 34) as u32 & GENERATION_MASK },
            1 => Self::Send((packed >> 2) as u32),
            _ => Self::Poll,
        }
    }
}

impl From<cqueue::Entry> for Completion {
    fn from(entry: cqueue::Entry) -> Self {
        Self { job: Job::unpack(entry.user_data()), result: entry.result(), flags: entry.flags() }
    }
}
