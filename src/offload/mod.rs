//! ChannelData of open channels and indications to permitted peers, carried by the kernel: tc and XDP programs, and their
//! maps.
//!
//! The daemon is complete without it. What it has decided is copied here as flows, each with a deadline that the
//! programs check themselves, and what the programs do not know goes on to the sockets. `unsafe` lives here.
//!
//! - [`settings`]: what an operator decides.
//! - [`flow`]: what a flow is, and how the programs know it.
//! - [`control`]: the thread that writes the maps, and the handle of it that workers have.
//! - `programs`: the programs and the maps in the kernel; `attach`: on which interfaces they are.
//! - `clock`: the time as the programs know it.
//! - `counts`: what flows have carried.
//! - [`meters`]: what allocations may carry.
//! - `mapped`: maps in memory.
//! - `ethtool`, `watch`: what drivers count of failures, and when that is too much.
//! - `ways`: routes, interfaces and neighbours, by `netlink`.
//! - `leftovers`: what a killed daemon has left on interfaces.
//! - `privilege`: what the rest of the daemon does without.
//! - `ebpf/`: the programs' source, and the object that is built from it.

mod attach;
mod clock;
pub mod control;
mod counts;
mod ethtool;
pub mod flow;
mod leftovers;
mod mapped;
pub mod meters;
mod netlink;
mod privilege;
mod programs;
pub mod settings;
mod watch;
mod ways;

pub use attach::Method;
pub use control::{FlowId, Notify, Offload, Report, StartError, Total};
pub use flow::{Flow, Hop, Traffic};
pub use leftovers::remove_leftovers;
pub use meters::{Meter, MeterId};
pub use privilege::drop_capabilities;
pub use settings::{Mode, Settings};

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod meter_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod test_bench;
#[cfg(test)]
mod test_packets;
