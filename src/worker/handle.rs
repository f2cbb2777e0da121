//! How other threads reach a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender};
use std::time::Instant;

use super::dtls::Moved;
use super::listeners::Listening;
use super::questions::Question;
use super::statistics::Statistics;
use crate::address::FiveTuple;
use crate::net::accept::Established;
use crate::net::poll::Waker;
use crate::net::stream::Connection;
use crate::turn;
use crate::turn::authorization::{Applicant, Verdict};

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// Serve a stream.
    Serve(Box<Established>),
    /// Go on with a stream of another worker, unread bytes first: its client's allocation is here.
    Adopt(Box<Connection>),
    /// Go on with an association of another worker: its client's allocation is here.
    AdoptAssociation(Box<Moved>),
    /// An association that went to another worker has ended there.
    ForgetAssociation { client: FiveTuple, worker: usize },
    /// Whether a client may allocate is decided, and holds until then.
    Decided { applicant: Applicant, verdict: Verdict, until: Instant },
    /// Open, change or close a UDP listener.
    Listen(Listening),
    /// Judge by this from now on; allocations live on.
    Replace(turn::Policy),
    /// Say how it is.
    Report(SyncSender<Report>),
    /// Answer an operator.
    Ask(Question),
    /// End every allocation and return.
    Stop,
}

/// How a worker is.
#[derive(Clone, Debug)]
pub struct Report {
    pub allocations: usize,
    pub live: turn::live::Live,
    pub connections: usize,
    pub peer_connections: usize,
    /// Associations of DTLS, handshakes included.
    pub associations: usize,
    pub counters: turn::Counters,
    pub statistics: Statistics,
}

/// Wakes a worker, with one system call however often it is asked before the worker has looked.
#[derive(Debug)]
pub struct WakeOnce {
    waker: Waker,
    pending: AtomicBool,
}

impl WakeOnce {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { waker: Waker::new()?, pending: AtomicBool::new(false) })
    }

    /// Makes the worker look at its mailbox and rings.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // A full eventfd has been written to already.
            let _ = self.waker.wake();
        }
    }

    /// To be called before looking, so that nothing that comes afterwards is missed.
    ///
    /// In this order: a wake that comes in between finds the first one pending and writes nothing, and what it is about
    /// is seen by the look that follows. The other way round its write would be drained while it stays pending, and
    /// nobody could wake the worker again.
    pub(super) fn reset(&self) {
        let _ = self.waker.drain();
        self.pending.swap(false, Ordering::AcqRel);
    }

    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }
}

/// A worker's mailbox, from outside.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    commands: Sender<Command>,
    wake: Arc<WakeOnce>,
}

impl WorkerHandle {
    /// A mailbox and the end that the worker reads.
    pub fn new() -> std::io::Result<(Self, Receiver<Command>, Arc<WakeOnce>)> {
        let (commands, receiver) = std::sync::mpsc::channel();
        let wake = Arc::new(WakeOnce::new()?);
        Ok((Self { commands, wake: Arc::clone(&wake) }, receiver, wake))
    }

    /// Makes the worker look at its mailbox and rings.
    pub(super) fn wake(&self) {
        self.wake.wake();
    }

    /// Tells the worker something; false when it is gone.
    pub fn tell(&self, command: Command) -> bool {
        let told = self.commands.send(command).is_ok();
        self.wake.wake();
        told
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::net::poll::{Events, Interest, Poll, Token};

    #[test]
    fn no_wake_is_lost_while_another_is_being_looked_at() {
        const WAKES: u64 = 100_000;
        let (handle, commands, wake) = WorkerHandle::new().unwrap();
        let poll = Poll::new().unwrap();
        poll.add(wake.waker(), Token(0), Interest::Readable, false).unwrap();
        let sender = std::thread::spawn(move || {
            for wake in 0..WAKES {
                handle.tell(Command::Stop);
                // So that wakes fall into every moment of a look.
                (0..wake % 997).for_each(|_| std::hint::spin_loop());
            }
        });
        let (mut events, mut seen) = (Events::with_capacity(1), 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        while seen < WAKES {
            poll.wait(&mut events, Some(Duration::from_secs(5))).unwrap();
            assert!(!events.is_empty() && Instant::now() < deadline, "{seen} of {WAKES}, and then no wake");
            wake.reset();
            seen += commands.try_iter().count() as u64;
        }
        sender.join().unwrap();
    }
}
