//! The one thread that writes the maps, and what other threads see of it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::attach::{Attachments, Method};
use super::clock::Clock;
use super::counts::Tallies;
use super::flow::{Flow, FlowRecord, Traffic};
use super::leftovers::remove_leftovers;
use super::meters::{Meter, Meters};
use super::programs::{LoadError, Programs, States, TC, XDP};
use super::settings::{Mode, Settings};
use super::ways::{Destination, Direction, INTERVAL, Ways};

/// How long a grace period is waited for where the kernel cannot tell of its end; no program runs for a millisecond.
const GRACE: Duration = Duration::from_millis(100);

/// Why the kernel carries nothing.
#[derive(Debug)]
pub enum StartError {
    Load(LoadError),
    Host(io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load(error) => write!(f, "{error}"),
            Self::Host(error) => write!(f, "cannot follow routes and interfaces: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// What a thread is told when a flow has ended.
pub type Notify = Arc<dyn Fn(u64, Traffic) + Send + Sync>;

/// A flow that the kernel may carry; given back by [`Offload::close`].
#[derive(Debug)]
pub struct FlowId(u32);

/// The kernel path, for every thread that has flows for it. It ends when the last of these is gone.
#[derive(Clone)]
pub struct Offload {
    requests: Sender<Request>,
    free: Arc<Mutex<Vec<u32>>>,
    states: Arc<States>,
    meters: Arc<Meters>,
    tallies: Arc<Tallies>,
    clock: Clock,
    with_loopback: bool,
}

/// How the kernel path is.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Interfaces with a program, by name.
    pub interfaces: Vec<(String, Method)>,
    /// Flows that the programs know.
    pub flows: usize,
    /// What it has carried since the start, open flows included.
    pub traffic: Traffic,
    totals: [u64; Total::COUNT],
}

impl Report {
    /// How often this has become of a packet.
    pub fn total(&self, total: Total) -> u64 {
        self.totals[total as usize]
    }
}

/// What became of packets of flows: `enum total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    ToPeer,
    ToClient,
    Expired,
    Length,
    Checksum,
    NoWay,
    TooLong,
    NoRoom,
    Unproven,
    Sample,
    Contended,
    HopLimit,
    Failed,
    DataRate,
}

impl Total {
    const COUNT: usize = Self::DataRate as usize + 1;

    /// What is left to the sockets, with its names in metrics: the flow's time is over; ChannelData does not fill its
    /// datagram; a checksum is missing or unfinished; there is no route or no neighbour; the way's MTU is too small; the
    /// buffer has no room; nothing has come yet from where it goes to; it is this one's turn, every 15 seconds; others
    /// take of the allocation's tokens at this instant.
    pub const PASSED: [(Self, &'static str); 9] = [
        (Self::Expired, "expired"),
        (Self::Length, "length"),
        (Self::Checksum, "checksum"),
        (Self::NoWay, "no_way"),
        (Self::TooLong, "too_long"),
        (Self::NoRoom, "no_room"),
        (Self::Unproven, "unproven"),
        (Self::Sample, "sample"),
        (Self::Contended, "contended"),
    ];

    /// What nobody gets: it has come too far, its buffer failed half way, or it is beyond what the allocation may carry.
    pub const DROPPED: [(Self, &'static str); 3] =
        [(Self::HopLimit, "hop_limit"), (Self::Failed, "failed"), (Self::DataRate, "data_rate")];
}

enum Request {
    Open { index: u32, flow: Box<Flow> },
    Close { index: u32, tag: u64, notify: Notify },
    Report(SyncSender<Report>),
    Serve { addresses: Vec<IpAddr>, answer: SyncSender<Vec<String>> },
    Run(Box<dyn FnOnce() + Send>),
    Stop(SyncSender<()>),
}

impl Offload {
    /// Loads the programs, puts them on the interfaces with these addresses, and starts the thread that follows what
    /// changes. An unspecified address stands for all of its family.
    pub fn start(settings: &Settings, addresses: &[IpAddr]) -> Result<Self, StartError> {
        // Without the privilege nothing can be attached either, which is told then.
        for interface in remove_leftovers().unwrap_or_default() {
            info!(interface, "a killed ferryd has left its filter here: it is gone");
        }
        let programs = load(settings.mode).map_err(StartError::Load)?;
        let mut ways = Ways::new(programs.ways_max()).map_err(StartError::Host)?;
        let with_loopback = settings.with_loopback();
        ways.use_loopback(with_loopback);
        let (states, meters) = (Arc::clone(&programs.states), Arc::clone(&programs.meters));
        let (sender, requests) = channel();
        let free = Arc::new(Mutex::new((0..states.len()).rev().collect()));
        let tallies = Arc::new(Tallies::new(states.len()));
        let clock = Clock::new().map_err(StartError::Host)?;
        let offload = Self {
            requests: sender,
            free: Arc::clone(&free),
            states,
            meters,
            tallies: Arc::clone(&tallies),
            clock,
            with_loopback,
        };
        let mut control = Control {
            programs,
            ways,
            attachments: Attachments::new(settings, addresses),
            requests,
            free,
            tallies,
            flows: HashMap::new(),
            closing: Vec::new(),
            closed: Traffic::default(),
        };
        control.attach().map_err(StartError::Host)?;
        for interface in control.attachments.absent() {
            warn!(
                interface,
                "offload-interfaces names what is missing, down or no Ethernet: sockets serve until it is there"
            );
        }
        std::thread::Builder::new()
            .name("offload".to_owned())
            .spawn(move || control.run())
            .map_err(StartError::Host)?;
        Ok(offload)
    }

    /// Whether it takes what goes from this host to itself.
    pub fn has_loopback(&self) -> bool {
        self.with_loopback
    }

    /// Buckets for an allocation; `None` when it has no room for one more.
    pub fn meter(&self) -> Option<Meter> {
        self.meters.open()
    }

    /// When the clock of [`Meter::full_at`] was zero.
    pub fn epoch(&self) -> Option<Instant> {
        self.clock.epoch()
    }

    /// Has the kernel carry a flow from now on, until then; `None` when it has no room for one more.
    pub fn open(&self, flow: &Flow, until: Instant) -> Option<FlowId> {
        let index = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        let id = FlowId(index);
        self.extend(&id, until);
        // Should the thread be gone, nothing leads to the flow.
        let _ = self.requests.send(Request::Open { index, flow: Box::new(*flow) });
        Some(id)
    }

    /// Has the kernel carry a flow until then, which may be earlier than before.
    pub fn extend(&self, id: &FlowId, until: Instant) {
        self.states.set_deadline(id.0, self.clock.nanos(until));
    }

    /// Ends a flow at once. When no packet is on its way any more, `notify` is called with the tag and what the flow has
    /// carried.
    pub fn close(&self, id: FlowId, tag: u64, notify: &Notify) {
        self.states.set_deadline(id.0, 0);
        let request = Request::Close { index: id.0, tag, notify: Arc::clone(notify) };
        if self.requests.send(request).is_err() {
            notify(tag, Traffic::default());
        }
    }

    /// What a flow had carried a moment ago: the thread that writes the maps reads the counters, all at once.
    pub fn carried(&self, id: &FlowId) -> Traffic {
        self.tallies.get(id.0)
    }

    /// Has the thread that keeps the capabilities do something, soon; it must not wait for anything.
    pub fn run(&self, act: impl FnOnce() + Send + 'static) {
        // Without the thread there is nobody who may.
        let _ = self.requests.send(Request::Run(Box::new(act)));
    }

    /// Puts the programs on the interfaces with these addresses too. Returns those that have one that is new and no program,
    /// by name; `None` when the thread does not answer in time.
    pub fn serve(&self, addresses: Vec<IpAddr>, patience: Duration) -> Option<Vec<String>> {
        let (answer, from) = std::sync::mpsc::sync_channel(1);
        self.requests.send(Request::Serve { addresses, answer }).ok()?;
        from.recv_timeout(patience).ok()
    }

    /// Takes the programs from the interfaces; returns when they are gone, or after a while.
    pub fn stop(&self, patience: Duration) {
        let (to, from) = std::sync::mpsc::sync_channel(1);
        if self.requests.send(Request::Stop(to)).is_ok() {
            // Should it take longer, they end with the process, but for filters.
            let _ = from.recv_timeout(patience);
        }
    }

    /// How it is; `None` when the thread does not answer in time.
    pub fn report(&self, patience: Duration) -> Option<Report> {
        let (to, from) = std::sync::mpsc::sync_channel(1);
        self.requests.send(Request::Report(to)).ok()?;
        from.recv_timeout(patience).ok()
    }
}

impl std::fmt::Debug for Offload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offload").finish_non_exhaustive()
    }
}

/// What the thread has.
struct Control {
    programs: Programs,
    ways: Ways,
    attachments: Attachments,
    requests: Receiver<Request>,
    free: Arc<Mutex<Vec<u32>>>,
    tallies: Arc<Tallies>,
    flows: HashMap<u32, Carried>,
    /// Flows that nothing leads to any more.
    closing: Vec<Closing>,
    /// What flows have carried that are gone.
    closed: Traffic,
}

/// A flow on which packets may still be.
struct Closing {
    index: u32,
    /// The maps had it; else its counters are those of another.
    was_carried: bool,
    tag: u64,
    notify: Notify,
}

/// A flow in the maps.
struct Carried {
    record: FlowRecord,
    destinations: [Option<(Destination, Direction)>; 2],
}

impl Control {
    fn run(mut self) {
        let mut follow_at = Instant::now() + INTERVAL;
        loop {
            let patience = follow_at.saturating_duration_since(Instant::now());
            match self.requests.recv_timeout(patience) {
                Ok(request) => {
                    let more = std::iter::from_fn(|| self.requests.try_recv().ok());
                    let requests: Vec<_> = std::iter::once(request).chain(more).collect();
                    for request in requests {
                        if let Some(to) = self.handle(request) {
                            drop(self);
                            // Whoever asked may have given up.
                            let _ = to.try_send(());
                            return;
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now >= follow_at {
                follow_at = now + INTERVAL;
                if self.ways.follow(&mut self.programs, now)
                    && let Err(error) = self.attach()
                {
                    error!(%error, "the interfaces cannot be listed");
                }
                self.read_counts();
                self.watch(now);
            }
            if !self.closing.is_empty() || self.ways.has_retired() {
                wait_for_readers();
                self.settle();
            }
        }
    }

    /// Puts the programs where they are wanted; returns the addresses of this host by their interfaces.
    fn attach(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        let own = self.ways.addresses()?;
        self.attachments.follow(&mut self.programs, self.ways.links(), &own);
        self.ways.use_xdp(self.attachments.with_xdp());
        Ok(own)
    }

    /// Has another way carry what an interface fails at.
    fn watch(&mut self, now: Instant) {
        let carried = [Total::ToPeer, Total::ToClient].map(|total| self.programs.total(total as u32));
        let carried = carried.into_iter().fold(0, u64::wrapping_add);
        if self.attachments.watch(&mut self.programs, self.ways.netlink(), now, carried) {
            self.ways.use_xdp(self.attachments.with_xdp());
        }
    }

    /// Returns whom the end is to be told to, when it is asked for.
    fn handle(&mut self, request: Request) -> Option<SyncSender<()>> {
        match request {
            Request::Open { index, flow } => self.open(index, &flow),
            Request::Close { index, tag, notify } => {
                let carried = self.flows.remove(&index);
                let was_carried = carried.is_some();
                if let Some(carried) = carried {
                    self.programs.remove(index, &carried.record);
                    for (destination, direction) in carried.destinations.into_iter().flatten() {
                        self.ways.release(destination, (index, direction));
                    }
                }
                self.closing.push(Closing { index, was_carried, tag, notify });
            }
            Request::Serve { addresses, answer } => {
                let new = self.attachments.add(&addresses);
                let left = self.ways.read_links().and_then(|()| self.attach());
                let left = left.map(|own| self.attachments.without(self.ways.links(), &own, &new));
                if let Err(error) = &left {
                    error!(%error, "the interfaces cannot be listed");
                }
                // Whoever asked may have given up.
                let _ = answer.try_send(left.unwrap_or_default());
            }
            Request::Run(act) => act(),
            Request::Stop(to) => return Some(to),
            Request::Report(to) => {
                let totals = std::array::from_fn(|total| self.programs.total(total as u32));
                let traffic = self.read_counts();
                let report = Report { interfaces: self.attachments.list(), flows: self.flows.len(), traffic, totals };
                // Whoever asked may have given up.
                let _ = to.try_send(report);
            }
        }
        None
    }

    fn open(&mut self, index: u32, flow: &Flow) {
        let Some(record) = FlowRecord::new(flow) else { return };
        let destination = |from, to, direction| Some((Destination { from, to }, direction));
        let to_client = destination(flow.server.ip(), flow.client.ip(), Direction::ToClient);
        let to_peer = match flow.hop {
            None => destination(flow.relayed.ip(), flow.peer.ip(), Direction::ToPeer),
            Some(_) => None,
        };
        let destinations = [to_client, to_peer];
        for direction in [Direction::ToPeer, Direction::ToClient] {
            self.programs.states.set_way(index, direction, 0);
        }
        self.programs.states.set_seen(index, 0, 0);
        for (destination, direction) in destinations.into_iter().flatten() {
            let way = self.ways.acquire(&mut self.programs, destination, (index, direction));
            self.programs.states.set_way(index, direction, way);
        }
        if let Err(error) = self.programs.insert(index, &record) {
            debug!(%error, "a flow is not in the maps: sockets serve it");
            for (destination, direction) in destinations.into_iter().flatten() {
                self.ways.release(destination, (index, direction));
            }
            return;
        }
        self.flows.insert(index, Carried { record, destinations });
    }

    /// Reads the counters of all flows and publishes them; returns what has been carried since the start.
    fn read_counts(&mut self) -> Traffic {
        let closing = self.closing.iter().filter(|closing| closing.was_carried).map(|closing| closing.index);
        let known: HashSet<u32> = self.flows.keys().copied().chain(closing).collect();
        let end = known.iter().max().map_or(0, |last| last + 1);
        let mut sum = self.closed;
        let tallies = &self.tallies;
        self.programs.each_traffic(end, |index, traffic| {
            if known.contains(&index) {
                tallies.set(index, traffic);
                sum += traffic;
            }
        });
        sum
    }

    /// A grace period is over: what was closed before has no reader.
    fn settle(&mut self) {
        self.ways.settle();
        for Closing { index, was_carried, tag, notify } in std::mem::take(&mut self.closing) {
            let traffic = if was_carried { self.programs.traffic(index) } else { Traffic::default() };
            self.closed += traffic;
            self.tallies.set(index, Traffic::default());
            self.free.lock().unwrap_or_else(PoisonError::into_inner).push(index);
            notify(tag, traffic);
        }
    }
}

/// The programs that a mode may use. Whatever keeps XDP from being loaded is no reason to do without tc.
fn load(mode: Mode) -> Result<Programs, LoadError> {
    match mode {
        Mode::Xdp | Mode::Auto => Programs::load(&[TC, XDP]).or_else(|error| {
            info!(%error, "the kernel takes no XDP program; tc is tried");
            Programs::load(&[TC])
        }),
        Mode::Off | Mode::Tc | Mode::Clsact => Programs::load(&[TC]),
    }
}

/// Returns when every program that runs now has ended.
fn wait_for_readers() {
    // SAFETY: touches no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // With processors that are never interrupted the kernel refuses to wait for them.
        std::thread::sleep(GRACE);
    }
}
