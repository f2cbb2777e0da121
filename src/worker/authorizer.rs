//! Questions to whoever decides about allocations: a bounded queue that no worker waits for.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use crate::turn::authorization::{Application, Verdict};
use crate::turn::{Now, WorkerId};

/// Questions that wait: more than a service that hangs is asked within the time in which anybody waits for it.
const QUESTIONS_MAX: usize = 4096;

/// A question, and who is to be told, by [`super::Command::Decided`].
#[derive(Debug)]
pub struct Asked {
    pub application: Application,
    pub worker: WorkerId,
    pub at: Instant,
}

/// Where workers put their questions.
#[derive(Clone, Debug)]
pub struct Authorizer {
    queue: SyncSender<Asked>,
    /// What holds where the queue is full.
    otherwise: Verdict,
}

impl Authorizer {
    /// A queue and the end that is read.
    pub fn new(otherwise: Verdict) -> (Self, Receiver<Asked>) {
        let (queue, reader) = sync_channel(QUESTIONS_MAX);
        (Self { queue, otherwise }, reader)
    }

    /// Asks; a verdict at once is that nobody can be asked.
    pub(super) fn ask(&self, now: Now, worker: WorkerId, application: Application) -> Option<Verdict> {
        let asked = self.queue.try_send(Asked { application, worker, at: now.instant });
        asked.is_err().then_some(self.otherwise)
    }
}
