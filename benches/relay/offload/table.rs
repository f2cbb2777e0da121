//! The table of `--offload`, and everything measured as JSON.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::Row;
use super::contestant::Contestant;
use super::load::Outcome;
use crate::failure::{Doing, Failure, Result};
use crate::machine;
use crate::options::Options;
use crate::report::{median, number};

/// Whoever the others are compared with.
const YARDSTICKS: [&str; 3] = ["coturn", "forwarding", "reflector"];

/// The generator's own needs, which are not the server's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    /// Of a run that sends nothing.
    pub(super) wait_ns: f64,
    /// Of a frame.
    pub(super) send_ns: f64,
}

/// What was measured of a contestant in one round.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// CPU time for each packet that arrived, the kernel's and the server's.
    cpu_us: f64,
    /// Share of that in the server's own threads, in percent.
    process: f64,
    lost: f64,
    /// The generator's time for each packet, which was subtracted.
    generator_us: f64,
    unordered: u64,
    doubts: Vec<String>,
}

impl Figures {
    pub(super) fn new(outcome: &Outcome, own: &Own) -> Self {
        let spent = &outcome.spent;
        let generator_seconds = (outcome.sent as f64 * own.send_ns + outcome.waited as f64 * own.wait_ns) / 1e9;
        let cpu_seconds = spent.kernel_seconds + spent.process_seconds - generator_seconds;
        let all = spent.kernel_seconds + spent.process_seconds;
        let mut doubts = Vec::new();
        let waited = outcome.waited as f64 * own.wait_ns / 1e9 / all.max(1e-9);
        if waited > 0.3 {
            // Which is not counted as time spent.
            doubts.push(format!(
                "the sink was the bottleneck: the generator waited for {:.0} % of the time",
                waited * 100.0
            ));
        }
        let others = 1.0 - all / spent.seconds;
        if others > 0.2 {
            doubts.push(format!(
                "the core had something else to do, or nothing, for {:.0} % of the time",
                others * 100.0
            ));
        }
        if spent.core_steal > 0.02 {
            doubts.push(format!("steal {:.0} %", spent.core_steal * 100.0));
        }
        Self {
            cpu_us: cpu_seconds * 1e6 / outcome.arrived.max(1) as f64,
            process: spent.process_seconds / cpu_seconds.max(1e-9) * 100.0,
            lost: outcome.lost * 100.0,
            generator_us: own.send_ns / 1e3,
            unordered: outcome.unordered,
            doubts,
        }
    }

    fn values(&self) -> [(&'static str, f64); 5] {
        [
            ("cpu_us_per_packet", self.cpu_us),
            ("of_that_in_the_server_percent", self.process),
            ("lost_percent", self.lost),
            ("generator_us_per_packet", self.generator_us),
            ("unordered_packets", self.unordered as f64),
        ]
    }
}

/// A contestant's figures of a row, by round.
struct Cell {
    row: &'static str,
    what: &'static str,
    contestant: usize,
    rounds: Vec<Option<Figures>>,
}

/// All of a run.
pub(super) struct Table {
    settings: Vec<(&'static str, String)>,
    contestants: Vec<String>,
    cells: Vec<Cell>,
    failures: Vec<String>,
}

impl Table {
    pub(super) fn new(options: &Options, contestants: &[Contestant], server_core: usize, sink_core: usize) -> Self {
        let settings = vec![
            ("machine", machine::description(machine::cores())),
            ("command", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
            ("rounds", format!("{} of {} s each, order alternating", options.rounds(), options.seconds())),
            ("cores", format!("the server's host and the generator on {server_core}, the sink on {sink_core}")),
            ("load average before", format!("{:.2}", machine::load_average())),
        ];
        let contestants = contestants.iter().map(Contestant::name).collect();
        Self { settings, contestants, cells: Vec::new(), failures: Vec::new() }
    }

    pub(super) fn put(&mut self, row: &'static Row, round: usize, contestant: usize, measured: Result<Figures>) {
        let at = self.cells.iter().position(|cell| cell.row == row.name && cell.contestant == contestant);
        let at = at.unwrap_or_else(|| {
            self.cells.push(Cell { row: row.name, what: row.what, contestant, rounds: Vec::new() });
            self.cells.len() - 1
        });
        let figures = measured.map_err(|failure| self.failures.push(format!("`{}`: {failure}", row.name))).ok();
        let cell = &mut self.cells[at];
        cell.rounds.resize(round, None);
        cell.rounds.push(figures);
    }

    /// Fails when there is no figure for something.
    pub(super) fn check(&self) -> Result<()> {
        if self.failures.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("not every figure could be measured:\n{}", self.failures.join("\n"))))
    }

    pub(super) fn write(&self, options: &Options) -> Result<()> {
        let write = |path: &Path, text: &str| fs::write(path, text).doing(format_args!("write {}", path.display()));
        if let Some(path) = &options.markdown {
            write(path, &self.markdown())?;
        }
        match &options.json {
            Some(path) => write(path, &format!("{:#}\n", self.json())),
            None => Ok(()),
        }
    }

    /// The contestants of a row, the dearest first.
    fn of_row(&self, row: &str) -> Vec<&Cell> {
        let mut cells: Vec<&Cell> = self.cells.iter().filter(|cell| cell.row == row).collect();
        cells.sort_by(|one, other| other.median("cpu_us_per_packet").total_cmp(&one.median("cpu_us_per_packet")));
        cells
    }

    fn rows(&self) -> Vec<&'static str> {
        let mut rows: Vec<&str> = self.cells.iter().map(|cell| cell.row).collect();
        rows.dedup();
        rows
    }

    /// How many times as many packets as another, for the same CPU time: the median of the rounds.
    fn ratio(&self, cell: &Cell, other: &str) -> Option<f64> {
        let other = self.contestants.iter().position(|name| name == other)?;
        let other = self.cells.iter().find(|their| their.row == cell.row && their.contestant == other)?;
        let rounds = cell.rounds.iter().zip(&other.rounds);
        let ratios: Vec<f64> =
            rounds.filter_map(|(mine, theirs)| Some(theirs.as_ref()?.cpu_us / mine.as_ref()?.cpu_us)).collect();
        median(&ratios)
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.settings {
            text += &format!("- {name}: {value}\n");
        }
        text += "\n| row | what carries | CPU us a packet, rounds | median | packets per CPU s | in the server, % |";
        text += " lost, % |";
        for name in YARDSTICKS {
            text += &format!(" x {name} |");
        }
        text += &format!("\n|{}\n", " --- |".repeat(7 + YARDSTICKS.len()));
        for row in self.rows() {
            for cell in self.of_row(row) {
                text += &self.line(cell);
            }
        }
        text += "\nCPU is all that a packet costs the server's host: what the kernel does from the moment in which the driver \
                 has it, interrupts' work included, and the server's own threads (schedstat), less what the generator needs. \
                 \"x coturn\" is how many times as many packets are carried for the same CPU time, within a round, the \
                 median of the rounds.\n\n";
        for row in self.rows() {
            let what = self.cells.iter().find(|cell| cell.row == row).map_or("", |cell| cell.what);
            text += &format!("- `{row}`: {what}\n");
        }
        let doubts: Vec<String> = self.cells.iter().flat_map(|cell| self.doubts(cell)).collect();
        if !doubts.is_empty() || !self.failures.is_empty() {
            text += "\nDoubts:\n\n";
        }
        doubts.iter().chain(&self.failures).for_each(|doubt| text += &format!("- {doubt}\n"));
        text
    }

    fn line(&self, cell: &Cell) -> String {
        let cpu = cell.median("cpu_us_per_packet");
        let rounds: Vec<String> = cell.values("cpu_us_per_packet").iter().map(|value| format!("{value:.3}")).collect();
        let mut line = format!("| {} | {} | {} |", cell.row, self.contestants[cell.contestant], rounds.join(" "));
        line += &format!(" **{cpu:.3}** | {} |", number(1e6 / cpu));
        line += &format!(" {:.0} |", cell.median("of_that_in_the_server_percent"));
        line += &format!(" {:.2} |", cell.median("lost_percent"));
        for name in YARDSTICKS {
            line += &self.ratio(cell, name).map_or(" – |".to_owned(), |ratio| format!(" {ratio:.2} |"));
        }
        line + "\n"
    }

    fn doubts(&self, cell: &Cell) -> Vec<String> {
        let name = &self.contestants[cell.contestant];
        let mut doubts = Vec::new();
        for (round, figures) in (1..).zip(&cell.rounds) {
            let Some(figures) = figures else { continue };
            let unordered = (figures.unordered > 0)
                .then(|| format!("{} packets came behind later ones of their flow, or twice", figures.unordered));
            for doubt in figures.doubts.iter().cloned().chain(unordered) {
                doubts.push(format!("`{}`, round {round}, {name}: {doubt}", cell.row));
            }
        }
        doubts
    }

    fn json(&self) -> Value {
        let cells = self.cells.iter().map(|cell| {
            let rounds = cell.rounds.iter().map(|figures| {
                let values = figures.iter().flat_map(Figures::values);
                Value::Object(values.map(|(name, value)| (name.to_owned(), json!(value))).collect())
            });
            let ratios =
                YARDSTICKS.iter().filter_map(|name| Some(((*name).to_owned(), json!(self.ratio(cell, name)?))));
            json!({
                "row": cell.row,
                "what": cell.what,
                "carries": self.contestants[cell.contestant],
                "rounds": rounds.collect::<Vec<_>>(),
                "median_packets_per_cpu_against": Value::Object(ratios.collect()),
                "doubts": self.doubts(cell),
            })
        });
        let settings = self.settings.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({ "settings": Value::Object(settings), "offload": cells.collect::<Vec<_>>(), "failures": self.failures })
    }
}

impl Cell {
    fn values(&self, name: &str) -> Vec<f64> {
        let of_round = |figures: &Option<Figures>| {
            figures.as_ref()?.values().iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
        };
        self.rounds.iter().filter_map(of_round).collect()
    }

    /// NaN where nothing was measured.
    fn median(&self, name: &str) -> f64 {
        median(&self.values(name)).unwrap_or(f64::NAN)
    }
}
