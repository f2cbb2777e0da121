//! Session records on their way out of the workers: a bounded queue that no worker waits for, but at the stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::turn::effect::{EndReason, Ended};
use crate::turn::{Now, Session};

/// Records that wait to be written: seconds of a server where calls come and go by the thousand.
const RECORDS_MAX: usize = 16_384;

/// Something of an allocation's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Started(Box<Session>),
    /// When it ended is in seconds since the Unix epoch.
    Ended {
        ended: Box<Ended>,
        at: u64,
    },
}

/// Where workers put their records.
#[derive(Clone, Debug)]
pub struct Records {
    queue: SyncSender<Record>,
    /// Records of the beginning are wanted too.
    pub(super) wants_starts: bool,
    lost: Arc<AtomicU64>,
}

impl Records {
    /// A queue and the end that is read.
    pub fn new(wants_starts: bool) -> (Self, Receiver<Record>) {
        let (queue, reader) = sync_channel(RECORDS_MAX);
        (Self { queue, wants_starts, lost: Arc::default() }, reader)
    }

    /// How many found the queue full.
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    pub(super) fn started(&self, session: Session) {
        self.put(Record::Started(Box::new(session)));
    }

    pub(super) fn ended(&self, now: Now, ended: Box<Ended>) {
        // Everything ends at once then, and nobody waits for packets any more.
        let waits = ended.reason == EndReason::Stopped;
        let record = Record::Ended { ended, at: now.unix_seconds };
        if waits {
            // Whoever reads them may have failed.
            let _ = self.queue.send(record);
        } else {
            self.put(record);
        }
    }

    fn put(&self, record: Record) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(record) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
