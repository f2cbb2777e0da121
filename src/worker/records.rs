//! Session records on their way out of the workers: a bounded queue that no worker waits for, but at the stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::turn::effect::{EndReason, Ended};
use crate::turn::{Now, Session};

/// Records that wait to be written: seconds of a server where calls come and go by the thousand.
const RECORDS_MAX: usize = 16_384;

/// The target of records in the log: who turns it off, and has neither a file nor a webhook, wants no records.
pub const TARGET: &str = "ferryd::session";

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

/// Which records go somewhere beside the log, whose level says by itself what it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those of the beginning, which the log never takes.
    pub starts: bool,
    /// Those of the end.
    pub ends: bool,
}

/// Where workers put their records.
#[derive(Clone, Debug)]
pub struct Records {
    queue: SyncSender<Record>,
    wanted: Wanted,
    lost: Arc<AtomicU64>,
}

impl Records {
    /// A queue and the end that is read.
    pub fn new(wanted: Wanted) -> (Self, Receiver<Record>) {
        let (queue, reader) = sync_channel(RECORDS_MAX);
        (Self { queue, wanted, lost: Arc::default() }, reader)
    }

    /// How many found the queue full.
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    pub(super) fn wants_starts(&self) -> bool {
        self.wanted.starts
    }

    fn wants_ends(&self) -> bool {
        self.wanted.ends || tracing::enabled!(target: TARGET, tracing::Level::INFO)
    }

    pub(super) fn started(&self, session: Session) {
        self.put(Record::Started(Box::new(session)));
    }

    pub(super) fn ended(&self, now: Now, ended: Box<Ended>) {
        if !self.wants_ends() {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientAddr, FiveTuple, ServerAddr, Transport};
    use crate::turn::RelayId;
    use crate::turn::effect::Traffic;

    fn ended() -> Box<Ended> {
        let [client, server] = ["192.0.2.1:4000", "192.0.2.2:3478"].map(|address| address.parse().unwrap());
        let (client, server) = (ClientAddr::new(client), ServerAddr::new(server));
        Box::new(Ended {
            id: "6745a1b30f0e00000001000001".parse().unwrap(),
            allocation: RelayId::unpack(2).allocation(),
            username: "alice".into(),
            client: FiveTuple { transport: Transport::Udp, client, server },
            relayed: Vec::new(),
            peers: Vec::new(),
            peers_more: 0,
            traffic: Traffic::default(),
            offloaded: Traffic::default(),
            started: 7,
            reason: EndReason::Released,
        })
    }

    #[test]
    fn a_record_that_nobody_wants_is_not_queued() {
        let now = crate::worker::Clock.now();
        // Nothing takes the log here.
        for (wanted, expected) in [(false, 0), (true, 1)] {
            let (records, reader) = Records::new(Wanted { starts: false, ends: wanted });
            records.ended(now, ended());
            assert_eq!((reader.try_iter().count(), records.lost().load(Ordering::Relaxed)), (expected, 0));
        }
    }
}
