//! The command line of the bench.

use std::path::PathBuf;

use clap::Parser;

use crate::offload;

/// Measures ferryd beside coturn and a bare echo, in alternating rounds on loopback.
#[derive(Clone, Debug, Parser)]
#[command(name = "relay", about, max_term_width = 100)]
pub(crate) struct Options {
    /// Measure this row alone; may be given several times. `--list` names them
    #[arg(long = "row", value_name = "NAME")]
    pub(crate) rows: Vec<String>,

    /// Name the rows and what they measure, and measure nothing
    #[arg(long)]
    pub(crate) list: bool,

    /// Alternating rounds of each row [default: 3, or 1 with --quick]
    #[arg(long)]
    pub(crate) rounds: Option<usize>,

    /// Length of each measurement [default: 4, or 0.7 with --quick]
    #[arg(long)]
    pub(crate) seconds: Option<f64>,

    /// All rows in less than three minutes, too short to be quoted
    #[arg(long)]
    pub(crate) quick: bool,

    /// Measure the kernel path instead: ferryd carrying data in each of these ways, beside coturn, IP forwarding and a bare
    /// XDP reflector, in network namespaces, all CPU counted; as root. With `--only`, the names are ferryd, ferryd-tc,
    /// ferryd-xdp, coturn, forwarding and reflector
    #[arg(long, value_name = "WAY", value_delimiter = ',', value_enum)]
    pub(crate) offload: Vec<offload::Way>,

    /// Measure the rows over a veth between two network namespaces, with ferryd carrying data in each of these ways, beside
    /// coturn; as root. The names are ferryd, ferryd-tc, ferryd-xdp and coturn
    #[arg(long, value_name = "WAY", value_delimiter = ',', value_enum)]
    pub(crate) veth: Vec<offload::Way>,

    /// Measure these servers alone: ferryd, coturn, echo or the name of a --peer
    #[arg(long = "only", value_name = "SERVER", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// The ferryd to measure
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_ferryd"))]
    pub(crate) ferryd: PathBuf,

    /// Lines to add to ferryd's configuration, at its top
    #[arg(long, value_name = "TOML")]
    pub(crate) ferryd_config: Vec<String>,

    /// The coturn to compare with
    #[arg(long, value_name = "PATH", default_value = "turnserver")]
    pub(crate) coturn: PathBuf,

    /// coturn's relay threads: 0 is its single-threaded mode
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub(crate) coturn_threads: usize,

    /// Another server, by its command line in the foreground, split at spaces; {ip}, {port}, {tls_port}, {cert}, {key},
    /// {user}, {password}, {realm}, {relay_ip}, {min_port} and {max_port} are filled in
    #[arg(long = "peer", value_name = "CMD")]
    pub(crate) peers: Vec<String>,

    /// The core that servers run on [default: the last]
    #[arg(long, value_name = "CORE")]
    pub(crate) server_core: Option<usize>,

    /// The core that load is made on [default: the first that is not the servers']
    #[arg(long, value_name = "CORE")]
    pub(crate) generator_core: Option<usize>,

    /// Make load without SCHED_FIFO
    #[arg(long)]
    pub(crate) no_fifo: bool,

    /// Beside other work on the machine: run servers under SCHED_RR, all but those on a quota
    #[arg(long)]
    pub(crate) shield: bool,

    /// The share of its core that a server is held to in rows that say so, in turns of 1 ms or more
    #[arg(long, value_name = "PERCENT", default_value_t = 40, value_parser = clap::value_parser!(u64).range(5..=100))]
    pub(crate) quota: u64,

    /// Packets/s that the row "overload" offers
    #[arg(long, value_name = "RATE", default_value_t = 264_000.0)]
    pub(crate) overload: f64,

    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write the table to this file, besides standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,

    /// Draw the median ratios to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// What cargo adds
    #[arg(long, hide = true)]
    pub(crate) bench: bool,

    /// Be the echo
    #[arg(long, hide = true, value_name = "PORT", num_args = 2)]
    pub(crate) echo: Vec<u16>,
}

impl Options {
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 }).clamp(1, 100)
    }

    /// At most a minute, so that every load ends by itself.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.7 } else { 4.0 }).clamp(0.1, 60.0)
    }
}
