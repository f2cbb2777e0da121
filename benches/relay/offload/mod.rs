//! `--offload`: the kernel path beside the sockets, coturn, IP forwarding and a bare reflector, all CPU counted.
//!
//! In two network namespaces and on two cores. Frames are made and taken by XDP programs in the network's namespace, on
//! the generator's core; whatever happens on the server's host happens on its own core, in the kernel's thread of its
//! interface or in the server.

mod contestant;
mod frames;
mod lab;
mod load;
mod table;

use std::time::Duration;

use self::contestant::{Contestant, Running};
use self::lab::{Family, Lab};
use self::load::{Drive, Load, Spent};
use self::table::{Figures, Table};
use crate::failure::{Failure, Result};
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
    drive: Drive,
}

const CALLS: u16 = 1000;
const CALLS_PER_SECOND: u64 = CALLS as u64 * 50 * 2;
/// As network cards hand packets over: those of 50 us with one interrupt (the default of many drivers).
const MODERATED: Drive = Drive::Rate { per_second: CALLS_PER_SECOND, gather_ns: 50_000 };
const ONE_BY_ONE: Drive = Drive::Rate { per_second: CALLS_PER_SECOND, gather_ns: 0 };
/// Less than the 256 frames that a veth holds.
const SATURATED: Drive = Drive::Window(192);

const ROWS: [Row; 5] = [
    Row {
        name: "calls-1000",
        what: "1000 calls x 50 packets/s each way, 160 bytes, IPv4, one interrupt in 50 us",
        family: Family::V4,
        calls: CALLS,
        drive: MODERATED,
    },
    Row {
        name: "calls-1000-v6",
        what: "the same with IPv6 on both sides",
        family: Family::V6,
        calls: CALLS,
        drive: MODERATED,
    },
    Row {
        name: "calls-1000-alone",
        what: "the same with IPv4, an interrupt for each packet: what it costs to wake the kernel's thread 100,000 times a \
               second is in all figures",
        family: Family::V4,
        calls: CALLS,
        drive: ONE_BY_ONE,
    },
    Row {
        name: "saturated",
        what: "100 calls, both ways, 160 bytes, IPv4, as fast as it is taken, 192 packets under way",
        family: Family::V4,
        calls: 100,
        drive: SATURATED,
    },
    Row {
        name: "saturated-v6",
        what: "the same with IPv6 on both sides",
        family: Family::V6,
        calls: 100,
        drive: SATURATED,
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
    fn setting(self) -> &'static str {
        match self {
            Self::None => "off",
            Self::Tc => "tc",
            Self::Xdp => "xdp",
        }
    }
}

/// Measures everything, and prints and writes the table.
pub(crate) fn run(options: &Options, server_core: usize, generator_core: usize) -> Result<()> {
    let contestants = contestants(options);
    let rows = rows(options)?;
    machine::pin(generator_core).map_err(|error| Failure::new(format!("cannot run on core {generator_core}: {error}")))?;
    let mut table = Table::new(options, &contestants, server_core, generator_core);
    let lab = Lab::build(server_core, generator_core)?;
    let mut load = Load::new()?;
    for row in rows {
        for round in 0..options.rounds() {
            let mut order: Vec<usize> = (0..contestants.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let contestant = &contestants[index];
                eprintln!("{} {}/{} {}", row.name, round + 1, options.rounds(), contestant.name());
                let measured = measure(&lab, &mut load, row, contestant, server_core, options.seconds());
                table.put(row, round, index, measured);
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
) -> Result<Figures> {
    let running = Running::start(contestant, lab)?;
    match contestant {
        Contestant::Forwarding => lab.set_forwarding(true)?,
        Contestant::Reflector => load.reflect(lab)?,
        Contestant::Ferryd { .. } | Contestant::Coturn { .. } => {}
    }
    let measured = measure_running(lab, load, row, &running, server_core, seconds);
    match contestant {
        Contestant::Forwarding => lab.set_forwarding(false)?,
        Contestant::Reflector => load.stop_reflecting()?,
        Contestant::Ferryd { .. } | Contestant::Coturn { .. } => {}
    }
    measured.map_err(|failure| running.blame(contestant, &failure))
}

fn measure_running(
    lab: &Lab,
    load: &mut Load,
    row: &Row,
    running: &Running,
    server_core: usize,
    seconds: f64,
) -> Result<Figures> {
    let pairs = running.set_up(row.family, row.calls)?;
    std::thread::sleep(SETTLING);
    let (kernel, servers) = ([lab.server_thread()?], running.processes());
    let outcome = load.run(&pairs, row.drive, seconds, &|| Spent::read(&kernel, &servers, server_core))?;
    Ok(Figures::new(&outcome, row.drive))
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
