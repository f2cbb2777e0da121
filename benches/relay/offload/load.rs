//! Loads: frames that the kernel makes and takes, and what the server's host spent on them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData};
use aya::programs::xdp::XdpLinkId;
use aya::programs::{SchedClassifier, TcAttachType, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun as _};

use super::frames::Frame;
use super::lab::{self, CUT_LINK, Lab, NETWORK_LINK};
use crate::failure::{Doing, Failure, Result};
use crate::machine::{self, Reading};

/// What clang makes of `yardstick.c`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("yardstick.o");

/// Programs for the server's interface: one that ends every frame, and the bare reflector.
pub(super) const DROP: &str = "bench_drop";
pub(super) const REFLECT: &str = "bench_reflect";
/// Programs for the network's.
const GENERATE: &str = "bench_generate";
const SINK: &str = "bench_sink";
const PASS_ON: &str = "bench_pass_on";

/// Frames of a load at most: calls in both directions.
const FRAMES_MAX: u32 = 8192;
/// Runs of the generator's program in a second, about; it may end a little early or late.
const RUNS_PER_SECOND: f64 = 20e6;
/// How often a load is looked at. Within this time something arrives, or is lost.
const WATCH_US: u64 = 20_000;
/// Longest wait for what is under way at the end.
const LAST_FRAMES: Duration = Duration::from_millis(300);
/// Less than the 256 frames that a veth holds.
const WINDOW: u64 = 192;

/// `struct control`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Control {
    window: u64,
    forgiven: u64,
    ifindex: u32,
    frames: u32,
    run: u32,
    cut_ifindex: u32,
}

/// `struct progress`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    sent: u64,
    waited: u64,
    arrived: u64,
    wrong: u64,
    unordered: u64,
}

// SAFETY: plain integers in C's layout, without padding, and every pattern of bits is a value.
unsafe impl aya::Pod for Control {}
// SAFETY: as above.
unsafe impl aya::Pod for Progress {}

/// What became of a load in the measured time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    pub(super) spent: SpentBetween,
    pub(super) sent: u64,
    /// Runs of the generator that sent nothing.
    pub(super) waited: u64,
    pub(super) arrived: u64,
    /// Share of all that was sent.
    pub(super) lost: f64,
    pub(super) unordered: u64,
}

/// The generator and the sink in the network, and the reflector for the server's host.
pub(super) struct Load {
    ebpf: Ebpf,
    /// The sink on the server's own link; none while what arrives there goes on to where trains are cut.
    sink: Option<XdpLinkId>,
    controls: Array<MapData, Control>,
    progresses: Array<MapData, Progress>,
    frames: Array<MapData, Frame>,
    arrivals: Array<MapData, Frame>,
    numbers: Array<MapData, u64>,
}

impl Load {
    /// Loads the programs and puts the sink on the network's interfaces.
    pub(super) fn new() -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for name in ["frames", "arrivals", "numbers"] {
            loader.map_max_entries(name, FRAMES_MAX);
        }
        let mut ebpf = loader.load(OBJECT).doing("load the generator (is this root?)")?;
        for name in [GENERATE, SINK, DROP, REFLECT] {
            program(&mut ebpf, name)?.load().map_err(words).doing(format_args!("load {name}"))?;
        }
        pass_on(&mut ebpf)?.load().map_err(words).doing(format_args!("load {PASS_ON}"))?;
        for interface in lab::far_sinks()? {
            attach(program(&mut ebpf, SINK)?, interface)?;
        }
        Ok(Self {
            sink: Some(attach(program(&mut ebpf, SINK)?, lab::ifindex(NETWORK_LINK)?)?),
            controls: array(&mut ebpf, "controls")?,
            progresses: array(&mut ebpf, "progresses")?,
            frames: array(&mut ebpf, "frames")?,
            arrivals: array(&mut ebpf, "arrivals")?,
            numbers: array(&mut ebpf, "numbers")?,
            ebpf,
        })
    }

    /// Puts a program on the server's interface, until [`Self::take`].
    pub(super) fn put(&mut self, name: &str, lab: &Lab) -> Result<()> {
        let program = program(&mut self.ebpf, name)?;
        lab.on_server(|| attach(program, lab::server_ifindex()?)).map(drop)
    }

    /// Does something while the server's link takes trains whole, as network cards do that cut them. They are cut behind
    /// it, and it is their frames that are checked.
    ///
    /// A veth takes none while a program is on its other end.
    pub(super) fn with_trains<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some(sink) = self.sink.take() {
            let taken = program(&mut self.ebpf, SINK)?.detach(sink).map_err(words);
            taken.doing("take the sink away")?;
        }
        let passing_on = pass_on(&mut self.ebpf)?.attach(NETWORK_LINK, TcAttachType::Ingress).map_err(words);
        let passing_on = passing_on.doing("pass trains on to where they are cut")?;
        let worked = work(self);
        let ended = pass_on(&mut self.ebpf)?.detach(passing_on).map_err(words);
        ended.doing("take the program away that passes trains on")?;
        self.sink = Some(attach(program(&mut self.ebpf, SINK)?, lab::ifindex(NETWORK_LINK)?)?);
        worked
    }

    pub(super) fn take(&mut self, name: &str) -> Result<()> {
        let program = program(&mut self.ebpf, name)?;
        program.unload().map_err(words).doing(format_args!("take {name} away"))?;
        program.load().map_err(words).doing(format_args!("load {name} again"))
    }

    /// Sends the first of each pair in turn, `run` times each, and takes the second for what is to arrive; `batch` frames
    /// are handed over at a time.
    pub(super) fn run(
        &mut self,
        pairs: &[(Frame, Frame)],
        drive: Drive,
        Train { batch, run }: Train,
        host: &Host,
    ) -> Result<Outcome> {
        let longest = pairs.iter().map(|(sent, _)| sent.bytes()).max_by_key(|bytes| bytes.len());
        let longest = longest.doing("send no frame at all")?;
        let warm_up = (host.seconds / 4.0).clamp(0.1, 0.5);
        let mut control = self.set_up(pairs, drive, run)?;
        let Self { ebpf, controls, progresses, .. } = self;
        let generator = program(ebpf, GENERATE)?;
        let (is_over, thread) = (AtomicBool::new(false), AtomicU32::new(0));
        let measured = std::thread::scope(|scope| {
            let maker = scope.spawn(|| {
                machine::pin(host.core).doing("tie the generator to the core of the server's host")?;
                thread.store(machine::thread_id(), Ordering::Release);
                make_frames(generator, longest, batch, warm_up + host.seconds, &is_over)
            });
            let measured = watch(controls, progresses, &mut control, warm_up, host, &thread);
            is_over.store(true, Ordering::Relaxed);
            let stopped = controls.set(0, Control::default(), 0).map_err(words).doing("stop the generator");
            let made = maker.join().unwrap_or_else(|_| Err(Failure::new("the generator panicked")));
            made.and(stopped).and(measured)
        });
        self.finish(measured?)
    }

    fn set_up(&mut self, pairs: &[(Frame, Frame)], drive: Drive, run: u32) -> Result<Control> {
        if pairs.len() > FRAMES_MAX as usize {
            return Err(Failure::new(format!("{} flows are too many", pairs.len())));
        }
        for (index, (sent, arriving)) in (0..).zip(pairs) {
            self.frames.set(index, sent, 0).map_err(words).doing("store a frame")?;
            self.arrivals.set(index, arriving, 0).map_err(words).doing("store a frame")?;
            self.numbers.set(index, 0, 0).map_err(words).doing("store a number")?;
        }
        let window = if drive == Drive::Send { WINDOW } else { 0 };
        let [ifindex, cut_ifindex] = [lab::ifindex(NETWORK_LINK)?, lab::ifindex(CUT_LINK)?];
        let control = Control { window, ifindex, frames: pairs.len() as u32, run, cut_ifindex, ..Control::default() };
        self.progresses.set(0, Progress::default(), 0).map_err(words).doing("begin to count")?;
        self.controls.set(0, control, 0).map_err(words).doing("tell the generator what to do")?;
        Ok(control)
    }

    /// Waits for what is still under way, and sums up.
    fn finish(&self, measured: Outcome) -> Result<Outcome> {
        let deadline = Instant::now() + LAST_FRAMES;
        let mut end = progress(&self.progresses)?;
        while end.arrived < end.sent && Instant::now() < deadline {
            machine::nap(1_000);
            end = progress(&self.progresses)?;
        }
        if end.wrong > 0 {
            return Err(Failure::new(format!("{} frames arrived, and were not what they had to be", end.wrong)));
        }
        let lost = end.sent.saturating_sub(end.arrived) as f64 / end.sent.max(1) as f64;
        Ok(Outcome { lost, unordered: end.unordered, ..measured })
    }
}

/// Runs the generator until the load is over. Beginning takes the kernel some ten milliseconds, so that it should run
/// once.
fn make_frames(generator: &Xdp, frame: &[u8], batch: u32, seconds: f64, is_over: &AtomicBool) -> Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: (seconds * RUNS_PER_SECOND) as u32,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::new()
        };
        generator.test_run(options).map_err(words).doing("make frames")?;
    }
    Ok(())
}

/// Watches a load and forgives what is lost.
fn watch(
    controls: &mut Array<MapData, Control>,
    progresses: &Array<MapData, Progress>,
    control: &mut Control,
    warm_up: f64,
    host: &Host,
    generator: &AtomicU32,
) -> Result<Outcome> {
    let (start, mut begin, mut before) = (Instant::now(), None, Progress::default());
    loop {
        machine::nap(WATCH_US);
        let now = progress(progresses)?;
        if now.arrived == before.arrived && now.sent > 0 {
            control.forgiven = now.sent - now.arrived;
            controls.set(0, *control, 0).map_err(words).doing("go on after a loss")?;
        }
        before = now;
        let read = || host.read(generator.load(Ordering::Acquire));
        match &begin {
            None if start.elapsed().as_secs_f64() >= warm_up => begin = Some((Instant::now(), read()?, now)),
            Some((at, spent, from)) if at.elapsed().as_secs_f64() >= host.seconds => {
                let from: &Progress = from;
                return Ok(Outcome {
                    spent: spent.until(&read()?),
                    sent: now.sent - from.sent,
                    waited: now.waited - from.waited,
                    arrived: now.arrived - from.arrived,
                    ..Outcome::default()
                });
            }
            None | Some(_) => {}
        }
    }
}

fn progress(progresses: &Array<MapData, Progress>) -> Result<Progress> {
    progresses.get(&0, 0).map_err(words).doing("read the counters")
}

/// What the generator does with its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drive {
    /// Hands them over to the server's host.
    Send,
    /// Waits, and sends none.
    Wait,
}

/// How frames follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Train {
    /// Frames that come at a time.
    pub(super) batch: u32,
    /// Frames of one flow behind each other.
    pub(super) run: u32,
}

/// What is measured on.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) core: usize,
    /// The server; none for what is the kernel's work.
    pub(super) servers: Vec<u32>,
    pub(super) seconds: f64,
}

impl Host {
    /// Of the thread that hands frames over, which goes on with the kernel's work for them.
    fn read(&self, generator: u32) -> Result<Spent> {
        let servers = self.servers.iter().map(|process| machine::process_ns(*process));
        let process_ns = servers.sum::<Result<u64>>()?;
        let kernel = [machine::ksoftirqd(self.core)?];
        let thread_ns = machine::thread_ns(generator)?;
        Ok(Spent { kernel: Reading::of_all(&kernel, self.core)?, thread_ns, process_ns })
    }
}

/// Time spent so far on the server's host.
#[derive(Clone, Copy, Debug)]
struct Spent {
    /// Of the core, and of the thread that helps the kernel out.
    kernel: Reading,
    thread_ns: u64,
    process_ns: u64,
}

/// Time spent between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpentBetween {
    pub(super) seconds: f64,
    /// The generator's own work is in it.
    pub(super) kernel_seconds: f64,
    pub(super) process_seconds: f64,
    pub(super) core_steal: f64,
}

impl Spent {
    fn until(&self, end: &Self) -> SpentBetween {
        let usage = self.kernel.until(&end.kernel);
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
        SpentBetween {
            seconds: usage.seconds,
            kernel_seconds: usage.process_seconds + seconds(self.thread_ns, end.thread_ns),
            process_seconds: seconds(self.process_ns, end.process_ns),
            core_steal: usage.core_steal,
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).doing(format_args!("find {name} in the object"))?;
    program.try_into().map_err(words).doing(format_args!("use {name}"))
}

fn pass_on(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    let program = ebpf.program_mut(PASS_ON).doing(format_args!("find {PASS_ON} in the object"))?;
    program.try_into().map_err(words).doing(format_args!("use {PASS_ON}"))
}

fn array<T: aya::Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Array<MapData, T>> {
    let map = ebpf.take_map(name).doing(format_args!("find the map {name} in the object"))?;
    map.try_into().map_err(words).doing(format_args!("use the map {name}"))
}

fn attach(program: &mut Xdp, ifindex: u32) -> Result<XdpLinkId> {
    let attached = program.attach_to_if_index(ifindex, XdpMode::Driver).map_err(words);
    attached.doing("put a program on an interface")
}

/// An error with its causes, on one line.
fn words(error: impl std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words.lines().next().unwrap_or_default().to_owned()
}
