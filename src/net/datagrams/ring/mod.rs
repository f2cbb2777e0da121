//! Datagrams by io_uring: multishot receives into provided buffers, sends as they are submitted, and one system call a
//! turn for all of them.
//!
//! Sends never wait (MSG_DONTWAIT), so each is over when its submission returns; only failed ones leave a completion.
//! That is why headers, copies and buffers of one turn can be used again after the submission that ends it.

mod buffers;
mod closing;
mod jobs;
mod submitting;

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::types::{Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use self::buffers::{BUFFERS, Buffers, GROUP};
use self::closing::Closing;
use self::jobs::{Completion, GENERATION_MASK, Job};
use super::runs::{Merging, Run, RunWatch, ZEROS};
use super::{Arrival, Datagrams, Destination, Role, SocketKey};
use crate::net::poll::{Events, Poll, Token};
use crate::net::udp::{Address, HEADROOM, Laid, Layout, SendReport, may_come_from_icmp, may_refuse_trains};

/// Submissions between two system calls.
const SUBMISSIONS: u32 = 512;
/// Completions that the kernel can leave; each buffer makes one, each failed send one.
const COMPLETIONS: u32 = 8192;
/// Copies of one turn.
const COPIES_BYTES: usize = 16 << 16;
/// Listeners that the kernel keeps at hand, so that a send need not look its socket up; further ones work as well.
const LISTENERS_AT_HAND: u32 = 64;
/// Completions worth a wake-up before a rest is over.
const ENOUGH: usize = 128;
/// IORING_RECVSEND_POLL_FIRST: a receive begins by waiting, as nothing is there yet when it does.
const POLL_FIRST: u16 = 1;

/// The back end on io_uring.
pub struct RingDatagrams {
    // Dropped first: the kernel lets go of everything below.
    ring: IoUring,
    buffers: Buffers,
    layout: Layout,
    /// By header; each stands for one datagram or for a train.
    sends: Vec<Send>,
    copies: Box<[u8]>,
    copied: usize,
    poll: Poll,
    sockets: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Free places among the sockets at hand.
    places: Vec<u32>,
    generation: u32,
    /// Until then nothing can be submitted.
    is_started: bool,
    /// Completions taken from the ring, in order.
    completions: VecDeque<Completion>,
    /// Those that are not looked at yet.
    taken: Vec<Completion>,
    /// What is left of a buffer.
    run: Option<Run>,
    run_watch: RunWatch,
    /// What sockets begin with.
    merging: Merging,
    /// Buffers that the turn has seen.
    used: Vec<u16>,
    /// A receive found no buffer.
    ran_out: bool,
    /// Sockets that are to close, all of a turn at once.
    closing: Vec<Closing>,
    closed: VecDeque<Token>,
    sent: SendReport,
    poll_is_armed: bool,
    other_events: bool,
}

struct Entry {
    token: Token,
    socket: UdpSocket,
    /// Tells the successive sockets of a key apart.
    generation: u32,
    /// A receive is under way.
    is_armed: bool,
    /// Its place among the sockets that the kernel has at hand.
    at_hand: Option<Fixed>,
    /// No train of its datagrams was refused yet.
    trains: bool,
    merging: Merging,
}

/// A datagram, or a train, that was submitted in this turn.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Send {
    destination: Destination,
    retried: bool,
}

impl RingDatagrams {
    /// Fails where the kernel lacks something of what is needed, or forbids it: then epoll serves.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let features = ring.params();
        if !(features.is_feature_min_timeout() && features.is_feature_skip_cqe_on_success()) {
            return Err(io::Error::other("this kernel's io_uring has no minimum wait (Linux 6.12)"));
        }
        let buffers = Buffers::register(&ring.submitter())?;
        ring.submitter().register_files_sparse(LISTENERS_AT_HAND)?;
        Ok(Self {
            ring,
            buffers,
            layout: Layout::new(SUBMISSIONS as usize),
            sends: Vec::with_capacity(SUBMISSIONS as usize),
            copies: vec![0; COPIES_BYTES].into(),
            copied: 0,
            poll: Poll::new()?,
            sockets: Vec::new(),
            free: Vec::new(),
            places: (0..LISTENERS_AT_HAND).rev().collect(),
            generation: 0,
            is_started: false,
            completions: VecDeque::with_capacity(COMPLETIONS as usize),
            taken: Vec::with_capacity(COMPLETIONS as usize),
            run: None,
            run_watch: RunWatch::default(),
            merging: Merging::default(),
            used: Vec::with_capacity(usize::from(BUFFERS)),
            ran_out: false,
            closing: Vec::new(),
            closed: VecDeque::new(),
            sent: SendReport::default(),
            poll_is_armed: false,
            other_events: false,
        })
    }

    fn arm(&mut self, key: SocketKey) {
        let Some(entry) = self.sockets.get_mut(key.0 as usize).and_then(Option::as_mut) else { return };
        entry.is_armed = true;
        let job = Job::Receive { key: key.0, generation: entry.generation };
        let fd = Fd(entry.socket.as_raw_fd());
        let receive = opcode::RecvMsgMulti::new(fd, self.buffers.template(), GROUP).ioprio(POLL_FIRST);
        let receive = receive.build().user_data(job.pack());
        self.submit_entry(&receive);
    }

    /// Has the kernel keep a socket at hand, if there is a place.
    fn keep_at_hand(&mut self, socket: &UdpSocket) -> Option<Fixed> {
        let place = self.places.pop()?;
        if self.ring.submitter().register_files_update(place, &[socket.as_raw_fd()]).is_err() {
            self.places.push(place);
            return None;
        }
        Some(Fixed(place))
    }

    fn arm_poll(&mut self) {
        let poll = opcode::PollAdd::new(Fd(self.poll.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
        self.submit_entry(&poll.user_data(Job::Poll.pack()));
        self.poll_is_armed = true;
    }

    /// Takes the completions over.
    fn take(&mut self) {
        self.taken.extend(self.ring.completion().map(Completion::from));
    }

    /// Looks at the completions, counts what was sent, and sends again what only met the error of an earlier datagram.
    fn collect(&mut self) {
        self.take();
        let mut taken = std::mem::take(&mut self.taken);
        let mut again = Vec::new();
        let mut failed = 0;
        let submitted: usize = (0..self.sends.len()).map(|index| self.layout.datagrams_of(index)).sum();
        for completion in taken.drain(..) {
            match completion.job {
                Job::Receive { .. } => self.completions.push_back(completion),
                Job::Send(index) if (index as usize) < self.sends.len() => {
                    failed += self.layout.datagrams_of(index as usize);
                    self.failed_send(index as usize, -completion.result, &mut again);
                }
                Job::Send(_) => {}
                Job::Poll => {
                    self.other_events = true;
                    self.poll_is_armed &= cqueue::more(completion.flags);
                }
            }
        }
        self.taken = taken;
        self.sent.sent += submitted.saturating_sub(failed);
        self.sends.clear();
        self.layout.clear();
        self.copied = 0;
        for (destination, bytes) in again {
            self.copy(destination, &bytes, true);
        }
    }

    /// Puts what is to be sent again into `again`: the kernel reports the error of an ICMP message through whichever call
    /// comes next, and some devices take no trains.
    fn failed_send(&mut self, index: usize, errno: i32, again: &mut Vec<(Destination, Vec<u8>)>) {
        let Send { destination, retried } = self.sends[index];
        let datagrams = self.layout.datagrams_of(index);
        let refused = datagrams > 1 && may_refuse_trains(errno);
        if refused && let Some(Some(entry)) = self.sockets.get_mut(destination.socket.0 as usize) {
            entry.trains = false;
        }
        if refused || may_come_from_icmp(errno) && !retried {
            // SAFETY: copies and buffers of the turn are given back after this.
            again.extend((0..datagrams).map(|one| (destination, unsafe { self.layout.bytes(index, one) }.to_vec())));
        } else {
            (0..datagrams).for_each(|_| self.sent.count_error(errno));
        }
    }

    fn receive(&mut self, key: u32, generation: u32, completion: Completion) -> Option<Arrival> {
        let buffer = cqueue::buffer_select(completion.flags);
        self.used.extend(buffer);
        let entry = self.sockets.get_mut(key as usize).and_then(Option::as_mut);
        let entry = entry.filter(|entry| entry.generation == generation)?;
        let token = entry.token;
        let has_ended = !cqueue::more(completion.flags);
        if has_ended {
            entry.is_armed = false;
            self.arm(SocketKey(key));
        }
        let Ok(filled) = usize::try_from(completion.result) else {
            self.ran_out |= completion.result == -libc::ENOBUFS;
            return may_come_from_icmp(-completion.result).then_some(Arrival::Errors(token));
        };
        let buffer = buffer?;
        let contents = self.buffers.contents(buffer, filled)?;
        let datagram = contents.datagram(token, usize::from(buffer))?;
        self.run = Run::new(SocketKey(key), &datagram, contents.received.each);
        if let Some(run) = &mut self.run {
            return run.next().map(Arrival::Datagram);
        }
        let entry = self.sockets.get_mut(key as usize).and_then(Option::as_mut)?;
        self.run_watch.see(&mut entry.merging, SocketKey(key), &entry.socket, &datagram);
        Some(Arrival::Datagram(datagram))
    }

    /// Makes room for a copy.
    fn room(&mut self, bytes: usize) -> Range<usize> {
        if bytes > self.copies.len() - self.copied || self.layout.is_full() {
            self.flush();
        }
        let range = self.copied..self.copied + bytes;
        self.copied = range.end;
        range
    }

    fn copy(&mut self, destination: Destination, bytes: &[u8], retried: bool) {
        let range = self.room(bytes.len());
        self.copies[range.clone()].copy_from_slice(bytes);
        self.send_copied(destination, range, retried);
    }

    fn send_copied(&mut self, destination: Destination, range: Range<usize>, retried: bool) {
        let send = Send { destination, retried };
        let joins = self.may_join(send);
        let laid = self.layout.lay_out(self.sends.len(), address_of(&destination), &self.copies[range], joins);
        self.send(send, laid);
    }

    /// Whether a datagram may be joined to the one before.
    fn may_join(&self, send: Send) -> bool {
        let takes_trains =
            |key: SocketKey| matches!(self.sockets.get(key.0 as usize), Some(Some(entry)) if entry.trains);
        !send.retried && self.sends.last() == Some(&send) && takes_trains(send.destination.socket)
    }

    /// Queues the datagram that has just been laid out.
    fn send(&mut self, send: Send, laid: Laid) {
        match laid {
            Laid::Joined => return,
            Laid::Header => {}
            Laid::OfTwoFamilies => return self.sent.count_error(libc::EINVAL),
        }
        let index = self.sends.len();
        let header = self.layout.header(index).cast::<libc::msghdr>();
        let operation = match self.sockets.get(send.destination.socket.0 as usize) {
            Some(Some(Entry { at_hand: Some(place), .. })) => opcode::SendMsg::new(*place, header),
            Some(Some(entry)) => opcode::SendMsg::new(Fd(entry.socket.as_raw_fd()), header),
            Some(None) | None => {
                self.layout.seal();
                self.sent.closed += 1;
                return;
            }
        };
        let entry = operation
            .flags((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as u32)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(Job::Send(index as u32).pack());
        self.submit_entry(&entry);
        self.sends.push(send);
    }
}

fn address_of(destination: &Destination) -> Address {
    let Destination { to, source, tos, .. } = *destination;
    Address { to, source, tos }
}

impl Datagrams for RingDatagrams {
    fn start(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        self.is_started = true;
        for key in 0..self.sockets.len() as u32 {
            self.arm(SocketKey(key));
        }
        self.submit();
        Ok(())
    }

    fn add(&mut self, token: Token, role: Role, socket: UdpSocket) -> io::Result<SocketKey> {
        let key = self.free.pop().unwrap_or_else(|| {
            self.sockets.push(None);
            (self.sockets.len() - 1) as u32
        });
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let generation = self.generation;
        let at_hand = (role == Role::Listener).then(|| self.keep_at_hand(&socket)).flatten();
        self.sockets[key as usize] =
            Some(Entry { token, socket, generation, is_armed: false, at_hand, trains: true, merging: self.merging });
        if self.is_started {
            self.arm(SocketKey(key));
        }
        Ok(SocketKey(key))
    }

    fn remove(&mut self, key: SocketKey) {
        if self.sends.iter().any(|send| send.destination.socket == key) {
            self.flush();
        }
        if let Some(entry) = self.sockets.get_mut(key.0 as usize).and_then(Option::take) {
            self.free.push(key.0);
            self.run.take_if(|run| run.key == key);
            self.close_later(key, entry);
        }
    }

    fn socket(&self, key: SocketKey) -> Option<&UdpSocket> {
        Some(&self.sockets.get(key.0 as usize)?.as_ref()?.socket)
    }

    fn merge_nothing(&mut self) {
        self.merging = Merging::NEVER;
        self.sockets.iter_mut().flatten().for_each(|entry| entry.merging = Merging::NEVER);
    }

    fn poll(&self) -> &Poll {
        &self.poll
    }

    fn wait(&mut self, events: &mut Events, patience: Option<Duration>, rest: Option<Duration>) -> io::Result<()> {
        self.flush();
        self.run = None;
        self.run_watch.turn();
        self.buffers.recycle(&mut self.used, std::mem::take(&mut self.ran_out));
        if !self.poll_is_armed {
            self.arm_poll();
        }
        let patience = if self.has_more() { Some(Duration::ZERO) } else { patience };
        let timespec = patience.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        let mut want = 1;
        // A minimum of zero would be none, and the wait would be for all that is wanted.
        let rest = rest.map_or(0, |rest| rest.as_micros() as u32);
        if rest > 0 {
            args = args.min_wait_usec(rest);
            want = ENOUGH;
        }
        match self.ring.submitter().submit_with_args(want, &args) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY)) => {}
            Err(error) => return Err(error),
        }
        self.collect();
        if std::mem::take(&mut self.other_events) {
            self.poll.wait(events, Some(Duration::ZERO))?;
            // A full batch may have left some behind, of which nobody tells again.
            self.other_events = events.is_full();
        } else {
            events.clear();
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Arrival> {
        if let Some(token) = self.closed.pop_front() {
            return Some(Arrival::Closed(token));
        }
        if let Some(datagram) = self.run.as_mut().and_then(Run::next) {
            return Some(Arrival::Datagram(datagram));
        }
        while let Some(completion) = self.completions.pop_front() {
            if let Job::Receive { key, generation } = completion.job
                && let Some(arrival) = self.receive(key, generation, completion)
            {
                return Some(arrival);
            }
        }
        self.close();
        self.closed.pop_front().map(Arrival::Closed)
    }

    fn has_more(&self) -> bool {
        let arrived = !self.completions.is_empty() || !self.taken.is_empty();
        arrived || !self.closing.is_empty() || !self.closed.is_empty() || self.other_events
    }

    fn datagram(&self, slot: usize) -> &[u8] {
        &self.buffers.slot(slot as u16)[HEADROOM..]
    }

    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        self.buffers.slot_mut(slot as u16)
    }

    fn send_slot(&mut self, destination: Destination, slot: usize, start: usize, len: usize) {
        if self.layout.is_full() {
            self.flush();
        }
        let send = Send { destination, retried: false };
        let joins = self.may_join(send);
        let bytes = &self.buffers.slot(slot as u16)[start..start + len];
        let laid = self.layout.lay_out(self.sends.len(), address_of(&destination), bytes, joins);
        self.send(send, laid);
    }

    fn send_framed(&mut self, destination: Destination, prefix: &[u8], slot: usize, range: Range<usize>, padding: u8) {
        let parts = [prefix.len(), range.len(), usize::from(padding)];
        let room = self.room(parts.iter().sum());
        let (front, rest) = self.copies[room.clone()].split_at_mut(parts[0]);
        let (bytes, zeros) = rest.split_at_mut(parts[1]);
        front.copy_from_slice(prefix);
        bytes.copy_from_slice(&self.buffers.slot(slot as u16)[range]);
        zeros.copy_from_slice(&ZEROS[..parts[2]]);
        self.send_copied(destination, room, false);
    }

    fn send_copy(&mut self, destination: Destination, bytes: &[u8]) {
        self.copy(destination, bytes, false);
    }

    fn flush(&mut self) {
        if self.sends.is_empty() {
            return;
        }
        self.submit();
        self.collect();
        if !self.sends.is_empty() {
            // Those that are tried again, once.
            self.submit();
            self.collect();
        }
    }

    fn sent(&self) -> SendReport {
        self.sent
    }
}

impl Drop for RingDatagrams {
    /// Has the kernel let go of the sockets before they close: it would do so late of its own accord, and their ports
    /// would stay in use after the end of the daemon.
    fn drop(&mut self) {
        for key in 0..self.sockets.len() as u32 {
            self.remove(SocketKey(key));
        }
        self.close();
    }
}
