//! Whole servers under a virtual clock and network: browsers, peers, strangers, operators and faults, all from one seed.
//!
//! `cargo test --test simulation` runs some seeds, `tests/simulation/run` ten thousand of them optimised.
//!
//! | variable | what |
//! | --- | --- |
//! | `FERRY_SIM_SEED` | runs this seed alone, as the line of a failure says |
//! | `FERRY_SIM_SEEDS` | how many seeds, from `FERRY_SIM_FIRST` (0) on |

#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod caller;
mod dialler;
#[path = "../protocol/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the protocol tests use more of it")]
mod harness;
mod model;
mod network;
mod operator;
mod sim;
mod totals;

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sim::Sim;
use totals::Totals;

/// Without variables: a few seconds of a debug build.
const SEEDS: u64 = 60;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[test]
fn the_model_holds_whatever_happens() {
    if let Some(seed) = number("FERRY_SIM_SEED") {
        let totals = Sim::new(seed).run();
        return println!("seed {seed}: {totals:?}");
    }
    let first = number("FERRY_SIM_FIRST").unwrap_or(0);
    let seeds = number("FERRY_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, failed, totals) = (AtomicU64::new(first), AtomicBool::new(false), Mutex::new(Totals::default()));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                return;
            }
            match catch_unwind(|| Sim::new(seed).run()) {
                Ok(of_seed) => *totals.lock().unwrap() += of_seed,
                Err(_) => {
                    failed.store(true, Ordering::Relaxed);
                    eprintln!("repeat it: FERRY_SIM_SEED={seed} cargo test --test simulation the_model");
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
    assert!(!failed.load(Ordering::Relaxed), "a seed has failed; the line that repeats it is above");
    let totals = totals.into_inner().unwrap();
    println!("{seeds} seeds: {totals:?}");
    totals.assert_that_everything_happened(seeds);
}

#[test]
fn a_seed_is_repeatable() {
    for seed in [1, 7, 12] {
        assert_eq!(Sim::new(seed).run(), Sim::new(seed).run());
    }
}
