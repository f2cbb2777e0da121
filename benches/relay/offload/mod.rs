//! `--offload`: the kernel path beside the sockets, coturn, IP forwarding and a bare reflector, all CPU counted.
//!
//! In two network namespaces. Frames are handed to the server's host by an XDP program on the host's own core, some at a
//! time as a network card does with each interrupt, and the kernel goes on there with whatever is to be done with them.
//! The server runs on the same core whenever it has something to do. So there are no wake-ups across cores, whose price is
//! the machine's and not the server's. What the generator itself needs is measured first, and subtracted. Another core
//! takes and checks what comes out.

mod contestant;
mod frames;
mod lab;
mod load;
mod table;

use std::time::Duration;

use self::contestant::{Contestant, Running, forwarded};
use self::frames::{LONG_PAYLOAD_LEN, PAYLOAD_LEN};
use self::lab::{Family, Lab};
use self::load::{DROP, Drive, Host, Load, Outcome, REFLECT, Train};
use self::table::{Figures, Own, Table};
use crate::failure::{Doing, Failure, Result};
use crate::machine;
use crate::options::Options;

/// The kernel is told of a channel behind the answer to the client.
const SETTLING: Duration = Duration::from_millis(300);

/// A load that everything is measured under.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    family: Family,
    calls: u16,
    payload_len: usize,
    train: Train,
    /// The server's link takes trains whole.
    takes_trains: bool,
}

const fn by(batch: u32) -> Train {
    Train { batch, run: 1 }
}

const ROWS: [Row; 7] = [
    Row {
        name: "calls-1000",
        what: "1000 calls, both ways, 160 bytes, IPv4, 5 packets at a time: with 50 packets/s of each call each way, what a \
               network card gathers in 50 us",
        family: Family::V4,
        calls: 1000,
        payload_len: PAYLOAD_LEN,
        train: by(5),
        takes_trains: false,
    },
    Row {
        name: "calls-1000-v6",
        what: "the same with IPv6 on both sides",
        family: Family::V6,
        calls: 1000,
        payload_len: PAYLOAD_LEN,
        train: by(5),
        takes_trains: false,
    },
    Row {
        name: "calls-1000-alone",
        what: "the same with IPv4, one by one",
        family: Family::V4,
        calls: 1000,
        payload_len: PAYLOAD_LEN,
        train: by(1),
        takes_trains: false,
    },
    Row {
        name: "saturated",
        what: "100 calls, both ways, 160 bytes, IPv4, 64 packets at a time",
        family: Family::V4,
        calls: 100,
        payload_len: PAYLOAD_LEN,
        train: by(64),
        takes_trains: false,
    },
    Row {
        name: "saturated-v6",
        what: "the same with IPv6 on both sides",
        family: Family::V6,
        calls: 100,
        payload_len: PAYLOAD_LEN,
        train: by(64),
        takes_trains: false,
    },
    Row {
        name: "bursts",
        what: "16 calls, both ways, 1200 bytes, IPv4, 16 packets of a flow at a time, each in a frame of its own: what a \
               network card gathers of a video's frame. The server's link takes trains, as one does that cuts them itself",
        family: Family::V4,
        calls: 16,
        payload_len: LONG_PAYLOAD_LEN,
        train: Train { batch: 16, run: 16 },
        takes_trains: true,
    },
    Row {
        name: "bursts-cut",
        what: "the same where the link takes no trains, and the kernel cuts them before it",
        family: Family::V4,
        calls: 16,
        payload_len: LONG_PAYLOAD_LEN,
        train: Train { batch: 16, run: 16 },
        takes_trains: false,
    },
];

/// Which way ferryd carries data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    None,
    Tc,
    Xdp,
}

impl Way {
    /// `data-path.offload`.
    pub(crate) fn setting(self) -> &'static str {
        match self {
            Self::None => "off",
            Self::Tc => "tc",
            Self::Xdp => "xdp",
        }
    }

    /// What ferryd is called that goes this way.
    pub(crate) fn ferryd(self) -> &'static str {
        match self {
            Self::None => "ferryd",
            Self::Tc => "ferryd-tc",
            Self::Xdp => "ferryd-xdp",
        }
    }
}

/// Measures everything, and prints and writes the table.
pub(crate) fn run(options: &Options, server_core: usize, sink_core: usize) -> Result<()> {
    let contestants = contestants(options);
    let rows = rows(options)?;
    machine::pin(sink_core).doing(format_args!("run on core {sink_core}"))?;
    let mut table = Table::new(options, &contestants, server_core, sink_core);
    let lab = Lab::build(server_core, sink_core)?;
    let mut load = Load::new()?;
    for row in rows {
        for round in 0..options.rounds() {
            let mut order: Vec<usize> = (0..contestants.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            let own = measure_generator(&lab, &mut load, row, server_core, options.seconds())?;
            for index in order {
                let contestant = &contestants[index];
                eprintln!("{} {}/{} {}", row.name, round + 1, options.rounds(), contestant.name());
                let measured = measure(&lab, &mut load, row, contestant, server_core, options.seconds());
                table.put(row, round, index, measured.map(|outcome| Figures::new(&outcome, &own)));
            }
        }
        // After each row, so that a run that is ended early is not lost.
        table.write(options)?;
    }
    println!("{}", table.markdown());
    table.check()
}

fn measure(
    lab: &Lab,
    load: &mut Load,
    row: &Row,
    contestant: &Contestant,
    server_core: usize,
    seconds: f64,
) -> Result<Outcome> {
    let running = Running::start(contestant, lab)?;
    match contestant {
        Contestant::Forwarding => lab.set_forwarding(true)?,
        Contestant::Reflector => load.put(REFLECT, lab)?,
        Contestant::Ferryd { .. } | Contestant::Coturn { .. } => {}
    }
    let measured = measure_running(load, row, &running, server_core, seconds);
    match contestant {
        Contestant::Forwarding => lab.set_forwarding(false)?,
        Contestant::Reflector => load.take(REFLECT)?,
        Contestant::Ferryd { .. } | Contestant::Coturn { .. } => {}
    }
    measured.map_err(|failure| running.blame(contestant, &failure))
}

fn measure_running(load: &mut Load, row: &Row, running: &Running, server_core: usize, seconds: f64) -> Result<Outcome> {
    let pairs = running.set_up(row.family, row.calls, row.payload_len)?;
    std::thread::sleep(SETTLING);
    let host = Host { core: server_core, servers: running.processes(), seconds };
    let run = |load: &mut Load| load.run(&pairs, Drive::Send, row.train, &host);
    if row.takes_trains { load.with_trains(run) } else { run(load) }
}

/// What the generator itself needs, up to a driver that has the frame.
fn measure_generator(lab: &Lab, load: &mut Load, row: &Row, core: usize, seconds: f64) -> Result<Own> {
    let host = Host { core, servers: Vec::new(), seconds: (seconds / 2.0).clamp(0.2, 1.0) };
    let pairs = forwarded(row.family, row.calls, row.payload_len);
    load.put(DROP, lab)?;
    let waiting = load.run(&pairs, Drive::Wait, row.train, &host);
    let sending = load.run(&pairs, Drive::Send, row.train, &host);
    load.take(DROP)?;
    let (waiting, sending) = (waiting?, sending?);
    let wait_ns = waiting.spent.kernel_seconds * 1e9 / waiting.waited.max(1) as f64;
    let send_ns = (sending.spent.kernel_seconds * 1e9 - sending.waited as f64 * wait_ns) / sending.sent.max(1) as f64;
    Ok(Own { wait_ns, send_ns })
}

/// Everything that the options name: ferryd's ways first.
fn contestants(options: &Options) -> Vec<Contestant> {
    let ferryd = |way: &Way| Contestant::Ferryd {
        binary: options.ferryd.clone(),
        extra: options.ferryd_config.clone(),
        offload: way.setting(),
    };
    let mut all: Vec<Contestant> = options.offload.iter().map(ferryd).collect();
    all.push(Contestant::Coturn { binary: options.coturn.clone(), threads: options.coturn_threads });
    all.extend([Contestant::Forwarding, Contestant::Reflector]);
    all.retain(|contestant| options.only.is_empty() || options.only.contains(&contestant.name()));
    all
}

fn rows(options: &Options) -> Result<Vec<&'static Row>> {
    let known = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let row = ROWS.iter().find(|row| row.name == name);
        row.ok_or_else(|| Failure::new(format!("there is no row {name} with --offload; there are {}", known())))
    };
    if options.rows.is_empty() { Ok(ROWS.iter().collect()) } else { options.rows.iter().map(find).collect() }
}
