//! The shell around a [`turn::Server`](crate::turn::Server): one packet loop per core.
//!
//! A worker owns its sockets and its server. It waits in its own epoll, reads in batches, hands bytes to the server,
//! carries out the effects and writes in batches. Other threads reach it through a [`WorkerHandle`], other workers
//! through rings of [`neighbours`].

mod announced;
mod associations;
mod authorizer;
mod berth;
mod clock;
mod connections;
mod deadlines;
mod dtls;
mod effects;
mod handle;
mod held;
pub mod histogram;
mod kernel_path;
mod listeners;
pub mod neighbours;
mod pace;
mod packet_loop;
mod peers;
mod proxies;
mod questions;
mod records;
mod requests;
mod routes;
pub mod settings;
mod statistics;
mod streams;
#[cfg(test)]
mod test_support;
mod udp;

pub use associations::DtlsDoor;
pub use authorizer::{Asked, Authorizer};
pub use berth::Berth;
pub use clock::Clock;
pub use dtls::Moved;
pub use handle::{Command, Report, WorkerHandle};
pub use held::HeldSockets;
pub use listeners::{Listening, Stand, Terms};
pub use packet_loop::{Legacy, Past, Worker};
pub use proxies::ProxyHosts;
pub use questions::{END_MAX, Question};
pub use records::{Record, Records, TARGET as RECORDS_TARGET, Wanted as WantedRecords};
pub use requests::{REST_BUFFER_BYTES, rules};
pub use statistics::{DtlsStatistics, Statistics};
