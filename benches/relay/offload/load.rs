//! Loads: frames that the kernel makes and takes, and what the server's host spent on them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData};
use aya::programs::{TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun as _};

use super::frames::Frame;
use super::lab::{self, Lab, NETWORK_LINK};
use crate::failure::{Doing, Failure, Result};
use crate::machine::{self, Reading};

/// What clang makes of `yardstick.c`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("yardstick.o");

/// Frames of a load at most: calls in both directions.
const FRAMES_MAX: u32 = 8192;
/// Runs of the generator's program in a second, about; it may end a little early or late.
const RUNS_PER_SECOND: f64 = 15e6;
/// How often a load is looked at. Within this time something arrives, or is lost.
const WATCH_US: u64 = 20_000;
/// Longest wait for what is under way at the end.
const LAST_FRAMES: Duration = Duration::from_millis(300);

/// How a load is driven.
#[derive(Clone, Copy, Debug)]
pub(super) enum Drive {
    /// Frames a second, handed over when those of so many nanoseconds have come.
    Rate { per_second: u64, gather_ns: u64 },
    /// As fast as the server takes them, with so many under way.
    Window(u64),
}

impl Drive {
    /// Frames that are handed over at once: as many as are due, or what a network card has at a time.
    fn batch(self) -> u32 {
        match self {
            Self::Rate { .. } => 8,
            Self::Window(_) => 64,
        }
    }
}

/// `struct control`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Control {
    interval: u64,
    gather: u64,
    begin: u64,
    window: u64,
    forgiven: u64,
    ifindex: u32,
    frames: u32,
}

/// `struct progress`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    sent: u64,
    late: u64,
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) spent: SpentBetween,
    pub(super) arrived: u64,
    /// Shares of all that was sent.
    pub(super) lost: f64,
    pub(super) late: f64,
    pub(super) unordered: u64,
}

/// The generator and the sink in the network, and the reflector for the server's host.
pub(super) struct Load {
    ebpf: Ebpf,
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
        for name in ["bench_generate", "bench_sink", "bench_reflect"] {
            program(&mut ebpf, name)?.load().map_err(words).doing(format_args!("load {name}"))?;
        }
        for interface in lab::network_ifindexes()? {
            attach(program(&mut ebpf, "bench_sink")?, interface)?;
        }
        Ok(Self {
            controls: array(&mut ebpf, "controls")?,
            progresses: array(&mut ebpf, "progresses")?,
            frames: array(&mut ebpf, "frames")?,
            arrivals: array(&mut ebpf, "arrivals")?,
            numbers: array(&mut ebpf, "numbers")?,
            ebpf,
        })
    }

    /// Puts the reflector on the server's interface, until [`Self::stop_reflecting`].
    pub(super) fn reflect(&mut self, lab: &Lab) -> Result<()> {
        let program = program(&mut self.ebpf, "bench_reflect")?;
        lab.on_server(|| attach(program, lab::server_ifindex()?))
    }

    pub(super) fn stop_reflecting(&mut self) -> Result<()> {
        let program = program(&mut self.ebpf, "bench_reflect")?;
        program.unload().map_err(words).doing("take the reflector away")?;
        program.load().map_err(words).doing("load the reflector again")
    }

    /// Sends the first of each pair in turn, and takes the second for what is to arrive.
    pub(super) fn run(
        &mut self,
        pairs: &[(Frame, Frame)],
        drive: Drive,
        seconds: f64,
        read: &dyn Fn() -> Result<Spent>,
    ) -> Result<Outcome> {
        let longest = pairs.iter().map(|(sent, _)| sent.bytes()).max_by_key(|bytes| bytes.len());
        let longest = longest.doing("send no frame at all")?;
        let warm_up = (seconds / 4.0).clamp(0.15, 0.5);
        let mut control = self.set_up(pairs, drive)?;
        let Self { ebpf, controls, progresses, .. } = self;
        let generator = program(ebpf, "bench_generate")?;
        let is_over = AtomicBool::new(false);
        let measured = std::thread::scope(|scope| {
            let maker = scope.spawn(|| make_frames(generator, longest, drive, warm_up + seconds, &is_over));
            let measured = watch(controls, progresses, &mut control, drive, [warm_up, seconds], read);
            is_over.store(true, Ordering::Relaxed);
            let stopped = controls.set(0, Control::default(), 0).map_err(words).doing("stop the generator");
            let made = maker.join().unwrap_or_else(|_| Err(Failure::new("the generator panicked")));
            made.and(stopped).and(measured)
        });
        let (spent, arrived) = measured?;
        self.finish(spent, arrived)
    }

    fn set_up(&mut self, pairs: &[(Frame, Frame)], drive: Drive) -> Result<Control> {
        if pairs.len() > FRAMES_MAX as usize {
            return Err(Failure::new(format!("{} flows are too many", pairs.len())));
        }
        for (index, (sent, arriving)) in (0..).zip(pairs) {
            self.frames.set(index, sent, 0).map_err(words).doing("store a frame")?;
            self.arrivals.set(index, arriving, 0).map_err(words).doing("store a frame")?;
            self.numbers.set(index, 0, 0).map_err(words).doing("store a number")?;
        }
        let (interval, gather, window) = match drive {
            Drive::Rate { per_second, gather_ns } => (1_000_000_000 / per_second.max(1), gather_ns, 0),
            Drive::Window(window) => (0, 0, window),
        };
        let control = Control {
            interval,
            gather,
            begin: monotonic_ns(),
            window,
            forgiven: 0,
            ifindex: lab::ifindex(NETWORK_LINK)?,
            frames: pairs.len() as u32,
        };
        self.progresses.set(0, Progress::default(), 0).map_err(words).doing("begin to count")?;
        self.controls.set(0, control, 0).map_err(words).doing("tell the generator its pace")?;
        Ok(control)
    }

    /// Waits for what is still under way, and sums up.
    fn finish(&self, spent: SpentBetween, arrived: u64) -> Result<Outcome> {
        let deadline = Instant::now() + LAST_FRAMES;
        let mut end = progress(&self.progresses)?;
        while end.arrived < end.sent && Instant::now() < deadline {
            machine::nap(1_000);
            end = progress(&self.progresses)?;
        }
        if end.wrong > 0 {
            return Err(Failure::new(format!("{} frames arrived, and were not what they had to be", end.wrong)));
        }
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        Ok(Outcome {
            spent,
            arrived,
            lost: share(end.sent.saturating_sub(end.arrived), end.sent),
            late: share(end.late, end.sent),
            unordered: end.unordered,
        })
    }
}

/// Runs the generator until the load is over. Beginning takes the kernel some ten milliseconds, so that it should run
/// once.
fn make_frames(generator: &Xdp, frame: &[u8], drive: Drive, seconds: f64, is_over: &AtomicBool) -> Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: (seconds * RUNS_PER_SECOND) as u32,
            attrs: TestRunAttrs::new().xdp_live_frames(drive.batch()),
            ..TestRunOptions::new()
        };
        generator.test_run(options).map_err(words).doing("make frames")?;
    }
    Ok(())
}

/// What the server's host spent in the measured time, and the frames that arrived in it.
fn watch(
    controls: &mut Array<MapData, Control>,
    progresses: &Array<MapData, Progress>,
    control: &mut Control,
    drive: Drive,
    [warm_up, seconds]: [f64; 2],
    read: &dyn Fn() -> Result<Spent>,
) -> Result<(SpentBetween, u64)> {
    let (start, mut begin, mut before) = (Instant::now(), None, Progress::default());
    loop {
        machine::nap(WATCH_US);
        let now = progress(progresses)?;
        if let Drive::Window(_) = drive
            && now.arrived == before.arrived
        {
            control.forgiven = now.sent - now.arrived;
            controls.set(0, *control, 0).map_err(words).doing("go on after a loss")?;
        }
        before = now;
        match &begin {
            None if start.elapsed().as_secs_f64() >= warm_up => begin = Some((Instant::now(), read()?, now)),
            Some((at, spent, from)) if at.elapsed().as_secs_f64() >= seconds => {
                return Ok((spent.until(&read()?), now.arrived - from.arrived));
            }
            None | Some(_) => {}
        }
    }
}

fn progress(progresses: &Array<MapData, Progress>) -> Result<Progress> {
    progresses.get(&0, 0).map_err(words).doing("read the counters")
}

/// Time spent so far on the server's host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    /// Of the core, and of the kernel's threads on it.
    kernel: Reading,
    process_ns: u64,
}

/// Time spent between two readings.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpentBetween {
    pub(super) seconds: f64,
    pub(super) kernel_seconds: f64,
    pub(super) process_seconds: f64,
    /// Shares of the server's core, as the kernel's clock ticks.
    pub(super) core_busy: f64,
    pub(super) core_steal: f64,
}

impl Spent {
    /// Of the threads `kernel` and the processes `servers`.
    pub(super) fn read(kernel: &[u32], servers: &[u32], core: usize) -> Result<Self> {
        let process_ns = servers.iter().map(|process| machine::process_ns(*process)).sum::<Result<u64>>()?;
        Ok(Self { kernel: Reading::of_all(kernel, core)?, process_ns })
    }

    fn until(&self, end: &Self) -> SpentBetween {
        let usage = self.kernel.until(&end.kernel);
        SpentBetween {
            seconds: usage.seconds,
            kernel_seconds: usage.process_seconds,
            process_seconds: end.process_ns.saturating_sub(self.process_ns) as f64 / 1e9,
            core_busy: usage.core_busy,
            core_steal: usage.core_steal,
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).doing(format_args!("find {name} in the object"))?;
    program.try_into().map_err(words).doing(format_args!("use {name}"))
}

fn array<T: aya::Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Array<MapData, T>> {
    let map = ebpf.take_map(name).doing(format_args!("find the map {name} in the object"))?;
    map.try_into().map_err(words).doing(format_args!("use the map {name}"))
}

fn attach(program: &mut Xdp, ifindex: u32) -> Result<()> {
    let attached = program.attach_to_if_index(ifindex, XdpMode::Driver).map_err(words);
    attached.map(drop).doing("put a program on an interface")
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

/// The programs' clock.
fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
