//! What flows have carried: the programs' counters, read many at a time, and what other threads see of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use aya::maps::{Map, MapError, PerCpuArray, PerCpuValues};

use super::flow::{Counters, Traffic};

/// From linux/bpf.h (Linux 5.6; for this kind of map 5.13).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// What is read by one system call.
const BATCH_BYTES: usize = 1 << 20;

/// The counters of all flows, one for each processor.
pub(super) struct Counts {
    map: PerCpuArray<MapData, Counters>,
    fd: OwnedFd,
    cpus: usize,
    /// Cleared when the kernel does not read many at a time.
    batches: bool,
    keys: Vec<u32>,
    values: Vec<Counters>,
}

impl Counts {
    pub(super) fn new(map: Map) -> Result<Self, MapError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let Map::PerCpuArray(data) = &map else { return Err(io::Error::from(io::ErrorKind::InvalidInput).into()) };
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        let batch = (BATCH_BYTES / size_of::<Counters>() / cpus).max(1);
        let (keys, values) = (vec![0; batch], vec![Counters::default(); batch * cpus]);
        Ok(Self { map: map.try_into()?, fd, cpus, batches: true, keys, values })
    }

    /// Begins again at zero.
    pub(super) fn clear(&mut self, index: u32) -> Result<(), MapError> {
        self.map.set(index, PerCpuValues::try_from(vec![Counters::default(); self.cpus])?, 0)
    }

    /// What a flow has carried.
    pub(super) fn of(&self, index: u32) -> Traffic {
        self.map.get(&index, 0).map_or_else(|_| Traffic::default(), |of_cpus| Counters::sum(&of_cpus))
    }

    /// Tells of each index below `end` what its flow has carried.
    pub(super) fn each(&mut self, end: u32, mut tell: impl FnMut(u32, Traffic)) {
        let mut last = None;
        while self.batches && last.is_none_or(|last| last + 1 < end) {
            match self.batch(last, end) {
                Ok(0) => return,
                Ok(count) => {
                    let values = self.values.chunks_exact(self.cpus);
                    self.keys[..count].iter().zip(values).for_each(|(key, of_cpus)| tell(*key, Counters::sum(of_cpus)));
                    last = Some(self.keys[count - 1]);
                }
                Err(_) => self.batches = false,
            }
        }
        let begin = last.map_or(0, |last| last + 1);
        (begin..end).for_each(|index| tell(index, self.of(index)));
    }

    /// Reads the counters behind those of `last`; returns of how many.
    fn batch(&mut self, last: Option<u32>, end: u32) -> io::Result<usize> {
        let begin = last.map_or(0, |last| last + 1);
        let mut out = 0_u32;
        let mut request = BatchRequest {
            in_batch: last.as_ref().map_or(0, |last| std::ptr::from_ref(last) as u64),
            out_batch: &raw mut out as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: self.keys.len().min((end - begin) as usize) as u32,
            map_fd: self.fd.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads `last`, writes `out`, and at most `count` keys and as many values for each processor,
        // for which there is room; everything outlives the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut request, size_of::<BatchRequest>()) };
        let error = io::Error::last_os_error();
        match (result, error.raw_os_error()) {
            // The end of the map.
            (0, _) | (_, Some(libc::ENOENT)) => Ok((request.count as usize).min(self.keys.len())),
            _ => Err(error),
        }
    }
}

/// `union bpf_attr` of a batch.
#[repr(C)]
struct BatchRequest {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What flows had carried when their counters were last read, for every thread.
#[derive(Debug)]
pub(super) struct Tallies(Vec<[AtomicU64; 4]>);

impl Tallies {
    /// One for each of so many flows.
    pub(super) fn new(flows: u32) -> Self {
        Self((0..flows).map(|_| Default::default()).collect())
    }

    pub(super) fn set(&self, index: u32, traffic: Traffic) {
        let Traffic { packets_to_peer, bytes_to_peer, packets_to_client, bytes_to_client } = traffic;
        let fields = [packets_to_peer, bytes_to_peer, packets_to_client, bytes_to_client];
        for (to, value) in self.0[index as usize].iter().zip(fields) {
            to.store(value, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self, index: u32) -> Traffic {
        let [packets_to_peer, bytes_to_peer, packets_to_client, bytes_to_client] =
            self.0[index as usize].each_ref().map(|field| field.load(Ordering::Relaxed));
        Traffic { packets_to_peer, bytes_to_peer, packets_to_client, bytes_to_client }
    }
}
