//! `cargo bench --bench relay`: ferryd, coturn and a bare echo side by side, in alternating rounds on loopback.
//!
//! Each measurement starts a fresh server alone on one core and makes load on another. What the rows mean and how to read
//! the table is in `docs/benchmarks.md`.

mod chart;
mod clients;
mod datagrams;
mod dialog;
mod echo;
mod failure;
mod flood;
mod histogram;
mod ledger;
mod leg_traffic;
mod legs;
mod limit;
mod machine;
mod namespaces;
mod offload;
mod options;
mod pace;
mod place;
mod report;
mod rows;
mod server;
mod traffic;
mod watch;
mod wire;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::failure::{Doing, Failure, Result};
use crate::machine::RealTime;
use crate::options::Options;
use crate::report::{Report, RowResult};
use crate::rows::{Bench, ROWS, Row};
use crate::server::Candidate;

fn main() -> ExitCode {
    if std::env::args().len() == 1 {
        println!(
            "nothing is measured without arguments, as by `cargo test --all-targets`; `cargo bench --bench relay` does"
        );
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if !options.echo.is_empty() {
        return echo::run(&options.echo);
    }
    if !options.offload.is_empty() {
        let (server_core, generator_core) = choose_cores(options)?;
        return offload::run(options, server_core, generator_core);
    }
    let rows = chosen_rows(&options.rows)?;
    if options.list {
        rows.iter().for_each(|row| println!("{:16} {}", row.name, row.what));
        return Ok(());
    }
    let (load_average, machine) = (machine::load_average(), machine::description(machine::cores()));
    machine::raise_descriptor_limit()?;
    let (server_core, generator_core) = choose_cores(options)?;
    let candidates = Candidate::all(options)?;
    let _namespaces = (!options.veth.is_empty()).then(place::take_apart).transpose()?;
    machine::pin(generator_core).doing(format_args!("run on core {generator_core}"))?;
    let fifo = !options.no_fifo && RealTime::is_allowed();
    let settings = vec![
        ("machine", machine),
        ("command", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
        ("rounds", format!("{} of {} s each, order alternating", options.rounds(), options.seconds())),
        ("cores", format!("servers on {server_core}, generator on {generator_core} (SCHED_FIFO: {fifo})")),
        ("load average before", format!("{load_average:.2} (servers shielded: {})", options.shield)),
    ];
    let mut report = Report { candidates, settings, results: Vec::new() };
    let bench = Bench::new(options, server_core);
    for row in rows {
        let result = measure_row(&bench, row, &report.candidates, options.rounds());
        report.results.push(result);
        // After each row, so that a run that is ended early is not lost.
        write_files(options, &report)?;
    }
    println!("{}", report.markdown());
    if report.results.iter().any(|result| !result.failures.is_empty()) {
        return Err(Failure::new("not every figure could be measured; see the doubts above"));
    }
    Ok(())
}

/// All rounds of a row; every other round goes through the servers from the last to the first.
fn measure_row(bench: &Bench, row: &'static Row, candidates: &[Candidate], rounds: usize) -> RowResult {
    let mut result = RowResult { row, rounds: Vec::new(), failures: Vec::new() };
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let mut samples = vec![None; candidates.len()];
        for index in order {
            let candidate = &candidates[index];
            eprintln!("{} {}/{rounds} {}", row.name, round + 1, candidate.name);
            match bench.measure(row, candidate) {
                Ok(sample) => samples[index] = sample,
                Err(failure) => result.failures.push(format!("round {}, {}: {failure}", round + 1, candidate.name)),
            }
        }
        result.rounds.push(samples);
    }
    result
}

fn chosen_rows(names: &[String]) -> Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let find = |name: &String| {
        let known = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
        ROWS.iter()
            .find(|row| row.name == name)
            .ok_or_else(|| Failure::new(format!("there is no row {name}; there are {}", known())))
    };
    names.iter().map(find).collect()
}

/// The server's core and the generator's.
fn choose_cores(options: &Options) -> Result<(usize, usize)> {
    let count = machine::cores();
    let server = options.server_core.unwrap_or(count.saturating_sub(1));
    let generator = options.generator_core.or_else(|| (0..count).find(|core| *core != server));
    let generator = generator.doing("measure with one core: the server and the generator need one each")?;
    if generator == server {
        return Err(Failure::new("the server and the generator need a core each"));
    }
    Ok((server, generator))
}

fn write_files(options: &Options, report: &Report) -> Result<()> {
    let write = |path: &Path, text: &str| fs::write(path, text).doing(format_args!("write {}", path.display()));
    if let Some(path) = &options.markdown {
        write(path, &report.markdown())?;
    }
    if let Some(path) = &options.json {
        write(path, &format!("{:#}\n", report.json()))?;
    }
    if let (Some(path), Some(svg)) = (&options.svg, chart::svg(report)) {
        write(path, &svg)?;
    }
    Ok(())
}
