//! The programs and their maps, in the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::counts::Counts;
use super::flow::{Counters, FlowRecord, Key, Traffic, Way};
use super::mapped::{Mapped, Shared};
use super::meters::Meters;
use super::ways::Direction;

/// What clang makes of `ebpf/relay.c`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("ebpf/relay.o");

/// The names of the programs.
pub(super) const TC: &str = "ferryd_tc";
pub(super) const XDP: &str = "ferryd_xdp";

/// Distinct ways out of this host, the unused first one included: one for each next hop.
const WAYS: u32 = 4096;
/// What the counters of all flows may take in memory.
const COUNTERS_BYTES_MAX: usize = 128 << 20;
/// 32,768 calls with two channels each.
const FLOWS_MAX: usize = 1 << 16;
/// A way to count packets on 1024 CPUs is not worth more than this.
const FLOWS_MIN: usize = 1 << 12;

/// Why the kernel does not take the programs.
#[derive(Debug)]
pub struct LoadError {
    what: &'static str,
    why: String,
}

impl LoadError {
    fn new(what: &'static str) -> impl FnOnce(Box<dyn std::error::Error>) -> Self {
        move |error| Self { what, why: in_one_line(error.as_ref()) }
    }

    fn missing(what: &'static str) -> Self {
        Self { what, why: "the object has no such map or program".to_owned() }
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.why)
    }
}

impl std::error::Error for LoadError {}

/// An error with its causes, cut where the verifier's log begins.
pub(super) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string().lines().next().unwrap_or_default().to_owned();
        if !words.ends_with(&line) {
            words = format!("{words}: {line}");
        }
        cause = error.source();
    }
    words
}

/// The loaded programs, and the maps that only one thread writes.
pub(super) struct Programs {
    ebpf: Ebpf,
    entries: HashMap<MapData, Key, u64>,
    flows: Array<MapData, FlowRecord>,
    ways: Array<MapData, Way>,
    counts: Counts,
    totals: PerCpuArray<MapData, u64>,
    pub(super) states: Arc<States>,
    pub(super) meters: Arc<Meters>,
}

impl Programs {
    /// Loads what the kernel takes; which programs are loaded is found out by asking for them.
    pub(super) fn load(kind: &[&'static str]) -> Result<Self, LoadError> {
        let flows = flows_max();
        let entries = 2 * flows;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.map_max_entries("entries", entries).map_max_entries("ways", WAYS);
        for name in ["flows", "states", "counts", "meters"] {
            loader.map_max_entries(name, flows);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| LoadError::new("make the maps")(error.into()))?;
        for name in kind {
            load_program(&mut ebpf, name)?;
        }
        let unmapped = |error: std::io::Error| LoadError::new("map states and meters into memory")(error.into());
        let states = Mapped::new(take(&mut ebpf, "states")?, flows).map_err(unmapped)?;
        let meters = Mapped::new(take(&mut ebpf, "meters")?, flows).map_err(unmapped)?;
        let refuse = |error: aya::maps::MapError| LoadError::new("use the maps")(error.into());
        Ok(Self {
            entries: take(&mut ebpf, "entries")?.try_into().map_err(refuse)?,
            flows: take(&mut ebpf, "flows")?.try_into().map_err(refuse)?,
            ways: take(&mut ebpf, "ways")?.try_into().map_err(refuse)?,
            counts: Counts::new(take(&mut ebpf, "counts")?).map_err(refuse)?,
            totals: take(&mut ebpf, "totals")?.try_into().map_err(refuse)?,
            states: Arc::new(States(states)),
            meters: Meters::new(meters),
            ebpf,
        })
    }

    /// Puts a flow in place under an index that nothing leads to, and then the ways to it. Its state decides whether it
    /// is open.
    pub(super) fn insert(&mut self, index: u32, record: &FlowRecord) -> Result<(), aya::maps::MapError> {
        self.counts.clear(index)?;
        self.flows.set(index, record, 0)?;
        let [client, peer] = record.keys();
        self.entries.insert(client, u64::from(index), 0)?;
        self.entries.insert(peer, u64::from(index), 0).inspect_err(|_| {
            let _ = self.entries.remove(&client);
        })
    }

    /// Takes the ways to a flow away, unless they lead to another one by now. Packets that have found it are on their way
    /// for a grace period.
    pub(super) fn remove(&mut self, index: u32, record: &FlowRecord) {
        for key in &record.keys() {
            if self.entries.get(key, 0).is_ok_and(|entry| entry == u64::from(index)) {
                // It cannot be gone: this thread alone removes entries.
                let _ = self.entries.remove(key);
            }
        }
    }

    /// What a flow has carried.
    pub(super) fn traffic(&self, index: u32) -> Traffic {
        self.counts.of(index)
    }

    /// Tells of each index below `end` what its flow has carried.
    pub(super) fn each_traffic(&mut self, end: u32, tell: impl FnMut(u32, Traffic)) {
        self.counts.each(end, tell);
    }

    /// Writes a way that no flow uses.
    pub(super) fn set_way(&mut self, index: u32, way: &Way) -> Result<(), aya::maps::MapError> {
        self.ways.set(index, way, 0)
    }

    /// What has become of packets of known flows, by `enum total`.
    pub(super) fn total(&self, index: u32) -> u64 {
        self.totals.get(&index, 0).map_or(0, |of_cpus| of_cpus.iter().sum())
    }

    /// Has everything be as it was when it was loaded, as far as packets can tell.
    #[cfg(test)]
    pub(super) fn clear(&mut self) {
        let keys: Vec<_> = self.entries.keys().map(Result::unwrap).collect();
        keys.iter().for_each(|key| self.entries.remove(key).unwrap());
        let cpus = aya::util::nr_cpus().unwrap();
        for total in 0..self.totals.len() {
            self.totals.set(total, aya::maps::PerCpuValues::try_from(vec![0; cpus]).unwrap(), 0).unwrap();
        }
    }

    pub(super) fn ways_max(&self) -> u32 {
        WAYS
    }

    pub(super) fn tc(&mut self) -> Option<&mut SchedClassifier> {
        self.ebpf.program_mut(TC)?.try_into().ok()
    }

    pub(super) fn xdp(&mut self) -> Option<&mut Xdp> {
        self.ebpf.program_mut(XDP)?.try_into().ok()
    }
}

fn flows_max() -> u32 {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    (COUNTERS_BYTES_MAX / size_of::<Counters>() / cpus).clamp(FLOWS_MIN, FLOWS_MAX) as u32
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let program = ebpf.program_mut(name).ok_or_else(|| LoadError::missing(name))?;
    let (what, result) = match name {
        TC => ("load the tc program", <&mut SchedClassifier>::try_from(program).and_then(SchedClassifier::load)),
        _ => ("load the XDP program", <&mut Xdp>::try_from(program).and_then(Xdp::load)),
    };
    result.map_err(|error| LoadError::new(what)(error.into()))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or_else(|| LoadError::missing(name))
}

/// The states of all flows: any thread changes them by one store.
#[derive(Debug)]
pub(super) struct States(Mapped<State>);

/// `struct state`.
#[derive(Debug)]
#[repr(C)]
struct State {
    deadline: AtomicU64,
    to_peer: AtomicU32,
    to_client: AtomicU32,
    from_client: AtomicU64,
    from_peer: AtomicU64,
}

// SAFETY: `struct state`, of atomics alone.
unsafe impl Shared for State {}

impl States {
    /// How many flows there can be.
    pub(super) fn len(&self) -> u32 {
        self.0.len()
    }

    /// Carries the flow until then, in nanoseconds of CLOCK_MONOTONIC; 0 is not at all.
    pub(super) fn set_deadline(&self, index: u32, nanos: u64) {
        self.0.of(index).deadline.store(nanos, Ordering::Release);
    }

    /// What comes from the client, and from the peer, is carried until then; 0 is until one has been seen.
    pub(super) fn set_seen(&self, index: u32, from_client: u64, from_peer: u64) {
        let state = self.0.of(index);
        state.from_client.store(from_client, Ordering::Release);
        state.from_peer.store(from_peer, Ordering::Release);
    }

    /// Sends the flow's packets in a direction by this way; 0 is none.
    pub(super) fn set_way(&self, index: u32, direction: Direction, way: u32) {
        let state = self.0.of(index);
        match direction {
            Direction::ToPeer => state.to_peer.store(way, Ordering::Release),
            Direction::ToClient => state.to_client.store(way, Ordering::Release),
        }
    }
}
