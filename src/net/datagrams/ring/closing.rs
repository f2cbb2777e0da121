//! Sockets that close. Until the last completion of its receive is there, the kernel holds on to a socket, and its port
//! stays in use; so receives end first. Those of one turn end together.

use std::net::UdpSocket;

use io_uring::types::CancelBuilder;
use io_uring::{EnterFlags, cqueue};

use super::{Entry, Job, RingDatagrams};
use crate::net::datagrams::{Datagrams, SocketKey};
use crate::net::poll::Token;

/// System calls that cancelled receives are given to end: each runs some of the kernel's outstanding work.
const CANCEL_TURNS: usize = 64;

/// A socket that is to close when its receive has ended.
pub(super) struct Closing {
    token: Token,
    socket: UdpSocket,
    receive: Job,
    has_ended: bool,
}

impl RingDatagrams {
    /// Closes a socket with the next [`Self::close`].
    pub(super) fn close_later(&mut self, key: SocketKey, entry: Entry) {
        if let Some(place) = entry.at_hand {
            let _ = self.ring.submitter().register_files_update(place.0, &[-1]);
            self.places.push(place.0);
        }
        let receive = Job::Receive { key: key.0, generation: entry.generation };
        let Entry { token, socket, is_armed, .. } = entry;
        self.closing.push(Closing { token, socket, receive, has_ended: !is_armed });
    }

    /// Closes what is to close. Sends that wait go on waiting.
    pub(super) fn close(&mut self) {
        if self.closing.is_empty() {
            return;
        }
        let mut closing = std::mem::take(&mut self.closing);
        if self.cancel(&mut closing) {
            // A receive that is still to be submitted cannot be cancelled yet.
            self.flush();
            self.submit();
            self.cancel(&mut closing);
        }
        for _ in 0..CANCEL_TURNS {
            if closing.iter().all(|closing| closing.has_ended) {
                break;
            }
            // SAFETY: nothing is submitted and nothing is passed: the call runs outstanding work and does not wait.
            let _ = unsafe { self.ring.submitter().enter::<()>(0, 0, EnterFlags::GETEVENTS.bits(), None) };
            self.see_ends(&mut closing);
        }
        // The port of a receive that has not ended stays in use for a little longer.
        self.closed.extend(closing.drain(..).map(|Closing { token, socket, .. }| {
            drop(socket);
            token
        }));
        self.closing = closing;
    }

    /// Cancels the receives that have not ended; true when one of them was not found.
    fn cancel(&mut self, closing: &mut [Closing]) -> bool {
        let mut is_missed = false;
        for closing in closing.iter().filter(|closing| !closing.has_ended) {
            let receive = CancelBuilder::user_data(closing.receive.pack());
            is_missed |= self.ring.submitter().register_sync_cancel(None, receive).is_err();
        }
        self.see_ends(closing);
        is_missed && closing.iter().any(|closing| !closing.has_ended)
    }

    /// Finds the last completions of receives.
    fn see_ends(&mut self, closing: &mut [Closing]) {
        self.take();
        let ended = |completion: &&super::Completion| !cqueue::more(completion.flags);
        for completion in self.completions.iter().chain(&self.taken).filter(ended) {
            if let Some(closing) = closing.iter_mut().find(|closing| closing.receive == completion.job) {
                closing.has_ended = true;
            }
        }
    }
}
