//! Latencies in buckets whose width grows with their value.

/// Buckets for each doubling: a width of 1/32, so a quantile is right to 3 %.
const PER_DOUBLING: usize = 32;
const DOUBLINGS: usize = 40;

/// How many values fell into each bucket; values are in nanoseconds.
#[derive(Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; PER_DOUBLING * DOUBLINGS], count: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        let bucket = bucket_of(nanoseconds).min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
        self.count += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
    }

    /// The value that this share of all values does not exceed, in microseconds; `None` without values.
    pub(crate) fn quantile_us(&self, share: f64) -> Option<f64> {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        let bucket = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(upper_edge(bucket) as f64 / 1e3)
    }
}

fn bucket_of(value: u64) -> usize {
    let value = value.max(PER_DOUBLING as u64);
    let doubling = (value.ilog2() - PER_DOUBLING.ilog2()) as usize;
    doubling * PER_DOUBLING + (value >> doubling) as usize - PER_DOUBLING
}

fn upper_edge(bucket: usize) -> u64 {
    let (doubling, step) = (bucket / PER_DOUBLING, bucket % PER_DOUBLING);
    ((PER_DOUBLING + step + 1) as u64) << doubling
}
