//! Giving the kernel what is queued.

use io_uring::squeue;
use tracing::debug;

use super::RingDatagrams;

/// How often submissions are given to a kernel that takes a part of them, for want of memory.
const SUBMISSION_TRIES: usize = 16;

impl RingDatagrams {
    pub(super) fn submit_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: what entries point to (the template, headers and what those point to) is owned by `self` and stays in
        // place until the kernel has used it: headers until the submission has returned, the template for good.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.submit();
        }
    }

    /// Gives everything that is queued to the kernel, which sends it at once.
    ///
    /// # Panics
    /// If the kernel does not take it: headers are written anew after this, and what were submitted later would be somebody
    /// else's datagram.
    pub(super) fn submit(&mut self) {
        self.layout.seal();
        for _ in 0..SUBMISSION_TRIES {
            let result = self.ring.submit();
            if self.ring.submission().is_empty() {
                return;
            }
            if let Err(error) = result {
                debug!(%error, "submissions are given to the kernel again");
            }
        }
        panic!("the kernel takes no submissions");
    }
}
