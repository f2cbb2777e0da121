//! Waiting for sockets: a thin epoll, and an eventfd that wakes a thread that waits.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libc::c_int;

/// Has the calling thread's sleeps end when they should: the kernel's default lets each be 50 us late to save wake-ups.
pub fn sleep_precisely() {
    const SLACK_NANOSECONDS: libc::c_ulong = 1000;
    // SAFETY: PR_SET_TIMERSLACK takes a number; where it fails, sleeps stay a little late.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NANOSECONDS) };
}

/// What the caller calls a socket: a key of its own tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What to be told about a socket; errors and a closed connection are always told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    Readable,
    Writable,
    Both,
}

impl Interest {
    fn bits(self) -> c_int {
        match self {
            Self::Readable => libc::EPOLLIN | libc::EPOLLRDHUP,
            Self::Writable => libc::EPOLLOUT,
            Self::Both => libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLOUT,
        }
    }
}

/// What happened to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub token: Token,
    pub readable: bool,
    pub writable: bool,
    /// An error is pending; on a relay socket, its error queue has something.
    pub error: bool,
    /// The other side closed, or shut its half of, the connection; what it sent before can still be read.
    pub hangup: bool,
}

/// Room for the events of one wait.
pub struct Events {
    entries: Vec<libc::epoll_event>,
    filled: usize,
}

impl Events {
    /// Makes room for `capacity` events (at least one); more stay with the kernel until the next wait.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { entries: vec![libc::epoll_event { events: 0, u64: 0 }; capacity.clamp(1, 1 << 16)], filled: 0 }
    }

    /// The number of events of the last wait.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether the last wait ended without an event.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The event at `index` of the last wait, so that a loop over them need not borrow all.
    pub fn get(&self, index: usize) -> Option<Event> {
        self.entries[..self.filled].get(index).map(event)
    }

    /// Whether there was no room for more, so that some may have stayed with the kernel.
    pub fn is_full(&self) -> bool {
        self.filled == self.entries.len()
    }

    /// Forgets all events.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Forgets the events that `keep` does not hold on to.
    pub fn retain(&mut self, mut keep: impl FnMut(Event) -> bool) {
        let mut kept = 0;
        for index in 0..self.filled {
            if keep(event(&self.entries[index])) {
                self.entries.swap(kept, index);
                kept += 1;
            }
        }
        self.filled = kept;
    }

    /// The events of the last wait.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.entries[..self.filled].iter().map(event)
    }
}

fn event(entry: &libc::epoll_event) -> Event {
    let bits = entry.events as c_int;
    Event {
        token: Token(entry.u64),
        readable: bits & libc::EPOLLIN != 0,
        writable: bits & libc::EPOLLOUT != 0,
        error: bits & libc::EPOLLERR != 0,
        hangup: bits & (libc::EPOLLHUP | libc::EPOLLRDHUP) != 0,
    }
}

/// An epoll instance.
pub struct Poll {
    epoll: OwnedFd,
    /// Whether the kernel was found without `epoll_pwait2`, whose time-outs are in nanoseconds (Linux 5.11).
    milliseconds_only: AtomicBool,
}

impl AsRawFd for Poll {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Poll {
    /// Creates an epoll instance, closed on exec.
    pub fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is fresh and nobody else owns it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { epoll, milliseconds_only: AtomicBool::new(false) })
    }

    /// Watches a socket, level-triggered, or with `edge` telling each change once; then read until nothing is left.
    ///
    /// Closing the socket ends the watch, but events already fetched by [`wait`](Self::wait) still carry its token.
    pub fn add(&self, socket: &impl AsFd, token: Token, interest: Interest, edge: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket.as_fd(), token, interest, edge)
    }

    /// Changes token, interest and trigger of a watched socket.
    pub fn modify(&self, socket: &impl AsFd, token: Token, interest: Interest, edge: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket.as_fd(), token, interest, edge)
    }

    /// Stops watching a socket.
    pub fn remove(&self, socket: &impl AsFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, socket.as_fd(), Token(0), Interest::Readable, false)
    }

    fn control(
        &self,
        operation: c_int,
        socket: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
        edge: bool,
    ) -> io::Result<()> {
        let trigger = if edge { libc::EPOLLET } else { 0 };
        let mut event = libc::epoll_event { events: (interest.bits() | trigger) as u32, u64: token.0 };
        // SAFETY: both descriptors are open during the call, and `event` outlives it.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, socket.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits until a watched socket has something or the time is over; without a time-out as long as it takes.
    ///
    /// A signal ends the wait without events, so the caller looks at its clock and waits again. Where the kernel knows
    /// only milliseconds, time-outs are rounded up.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.filled = 0;
        let filled = if self.milliseconds_only.load(Ordering::Relaxed) {
            self.wait_milliseconds(events, timeout)
        } else {
            match self.wait_nanoseconds(events, timeout) {
                // Seccomp filters older than the call answer EPERM.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    self.milliseconds_only.store(true, Ordering::Relaxed);
                    self.wait_milliseconds(events, timeout)
                }
                result => result,
            }
        };
        events.filled = match filled {
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            result => result?,
        };
        Ok(())
    }

    fn wait_nanoseconds(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(KernelTimespec::from);
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: `events.entries` has room for as many events as are announced, `timeout` is null or outlives the
        // call in the kernel's own layout, and the signal mask is null.
        let filled = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                events.entries.as_mut_ptr(),
                events.entries.len() as c_int,
                timeout,
                ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        usize::try_from(filled).map_err(|_| io::Error::last_os_error())
    }

    fn wait_milliseconds(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout =
            timeout.map_or(-1, |timeout| c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX));
        // SAFETY: `events.entries` has room for as many events as are announced.
        let filled = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.entries.as_mut_ptr(),
                events.entries.len() as c_int,
                timeout,
            )
        };
        usize::try_from(filled).map_err(|_| io::Error::last_os_error())
    }
}

/// `struct __kernel_timespec`, which is the same on 32-bit systems.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

impl From<Duration> for KernelTimespec {
    fn from(duration: Duration) -> Self {
        Self {
            seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: i64::from(duration.subsec_nanos()),
        }
    }
}

/// Wakes a thread that waits in [`Poll::wait`]; any thread may, any number of times.
#[derive(Debug)]
pub struct Waker {
    event: File,
}

impl Waker {
    /// Creates a waker; it wakes the poll that it is added to, as readable.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: the descriptor is fresh and nobody else owns it.
        Ok(Self { event: unsafe { File::from_raw_fd(fd) } })
    }

    /// Makes the waker readable until it is drained.
    pub fn wake(&self) -> io::Result<()> {
        match (&self.event).write(&1_u64.to_ne_bytes()) {
            Ok(_) => Ok(()),
            // The counter is at its limit: it is readable already.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes all wake-ups so far at once and returns whether there were any.
    pub fn drain(&self) -> io::Result<bool> {
        match (&self.event).read(&mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::Arc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));
    const NOW: Option<Duration> = Some(Duration::ZERO);

    fn pair() -> (UdpSocket, UdpSocket) {
        let [left, right] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        left.connect(right.local_addr().unwrap()).unwrap();
        right.connect(left.local_addr().unwrap()).unwrap();
        (left, right)
    }

    #[test]
    fn a_readable_socket_is_told_with_its_token() {
        let (left, right) = pair();
        let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
        poll.add(&right, Token(u64::MAX), Interest::Readable, false).unwrap();
        poll.wait(&mut events, NOW).unwrap();
        assert!(events.is_empty());
        left.send(b"x").unwrap();
        poll.wait(&mut events, PATIENCE).unwrap();
        let event = Event { token: Token(u64::MAX), readable: true, writable: false, error: false, hangup: false };
        assert_eq!(events.iter().collect::<Vec<_>>(), [event]);
        assert_eq!((events.get(0), events.get(1), events.len()), (Some(event), None, 1));
    }

    #[test]
    fn level_repeats_an_event_and_edge_tells_it_once() {
        let (left, right) = pair();
        let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
        poll.add(&right, Token(1), Interest::Readable, false).unwrap();
        left.send(b"x").unwrap();
        for _ in 0..2 {
            poll.wait(&mut events, PATIENCE).unwrap();
            assert_eq!(events.len(), 1);
        }
        poll.modify(&right, Token(2), Interest::Readable, true).unwrap();
        poll.wait(&mut events, PATIENCE).unwrap();
        assert_eq!(events.get(0).unwrap().token, Token(2));
        poll.wait(&mut events, NOW).unwrap();
        assert!(events.is_empty());
    }

    #[test]
    fn interest_can_be_changed_and_removed() {
        let (_left, right) = pair();
        let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
        poll.add(&right, Token(1), Interest::Both, false).unwrap();
        poll.wait(&mut events, PATIENCE).unwrap();
        let event = events.get(0).unwrap();
        assert!(event.writable && !event.readable);
        poll.modify(&right, Token(1), Interest::Readable, false).unwrap();
        poll.wait(&mut events, NOW).unwrap();
        assert!(events.is_empty());
        poll.modify(&right, Token(1), Interest::Writable, false).unwrap();
        poll.remove(&right).unwrap();
        poll.wait(&mut events, NOW).unwrap();
        assert!(events.is_empty());
        assert!(poll.remove(&right).is_err());
    }

    #[test]
    fn a_closed_connection_is_a_hangup() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
        poll.add(&server, Token(1), Interest::Readable, false).unwrap();
        drop(client);
        poll.wait(&mut events, PATIENCE).unwrap();
        let event = events.get(0).unwrap();
        assert!(event.hangup && event.readable && !event.error);
    }

    #[test]
    fn time_outs_are_kept_with_either_call() {
        let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
        for milliseconds_only in [false, true] {
            poll.milliseconds_only.store(milliseconds_only, Ordering::Relaxed);
            let timeout = Duration::from_micros(1500);
            let started = Instant::now();
            poll.wait(&mut events, Some(timeout)).unwrap();
            assert!(started.elapsed() >= timeout, "{milliseconds_only}");
            assert!(events.is_empty());
        }
    }

    #[test]
    fn the_longest_time_out_is_no_error() {
        let waker = Waker::new().unwrap();
        let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
        poll.add(&waker, Token(1), Interest::Readable, false).unwrap();
        waker.wake().unwrap();
        for milliseconds_only in [false, true] {
            poll.milliseconds_only.store(milliseconds_only, Ordering::Relaxed);
            poll.wait(&mut events, Some(Duration::MAX)).unwrap();
            assert_eq!(events.len(), 1);
        }
    }

    #[test]
    fn a_waker_wakes_a_thread_that_waits() {
        let waker = Arc::new(Waker::new().unwrap());
        let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
        poll.add(&*waker, Token(7), Interest::Readable, false).unwrap();
        let thread = thread::spawn({
            let waker = Arc::clone(&waker);
            move || waker.wake().unwrap()
        });
        poll.wait(&mut events, PATIENCE).unwrap();
        assert_eq!(events.get(0).unwrap().token, Token(7));
        thread.join().unwrap();
    }

    #[test]
    fn draining_takes_all_wake_ups_at_once() {
        let waker = Waker::new().unwrap();
        assert!(!waker.drain().unwrap());
        (&waker.event).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        waker.wake().unwrap();
        assert!(waker.drain().unwrap());
        assert!(!waker.drain().unwrap());
    }
}
