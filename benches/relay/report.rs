//! The table, and everything measured as JSON.

use serde_json::{Value, json};

use crate::rows::{Better, Metric, Row, Sample};
use crate::server::{Candidate, Kind};

/// What every server measured in every round of a row: by round, then by server.
pub(crate) struct RowResult {
    pub(crate) row: &'static Row,
    pub(crate) rounds: Vec<Vec<Option<Sample>>>,
    /// Why a server has no figure.
    pub(crate) failures: Vec<String>,
}

/// All of a run.
pub(crate) struct Report {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) settings: Vec<(&'static str, String)>,
    pub(crate) results: Vec<RowResult>,
}

/// How much better the first server is than another, in each round.
pub(crate) struct Ratios {
    pub(crate) rounds: Vec<f64>,
    pub(crate) median: f64,
}

impl RowResult {
    fn values(&self, server: usize, metric: &Metric) -> Vec<f64> {
        let value = |round: &Vec<Option<Sample>>| round.get(server)?.as_ref()?.get(metric.name);
        self.rounds.iter().filter_map(value).collect()
    }

    /// Ratios within rounds: above 1, the first server is the better one.
    pub(crate) fn ratios(&self, other: usize, metric: &Metric) -> Option<Ratios> {
        let of_round = |round: &Vec<Option<Sample>>| {
            let value = |server: usize| round.get(server)?.as_ref()?.get(metric.name);
            let (mine, theirs) = (value(0)?, value(other)?);
            let (above, below) = match metric.better {
                Better::Less => (theirs, mine),
                Better::More => (mine, theirs),
                Better::Neither => return None,
            };
            (above > 0.0 && below > 0.0).then(|| above / below)
        };
        let rounds: Vec<f64> = self.rounds.iter().filter_map(of_round).collect();
        let median = median(&rounds)?;
        Some(Ratios { rounds, median })
    }

    /// Everything that makes the figures of this row doubtful.
    pub(crate) fn notes(&self, candidates: &[Candidate]) -> Vec<String> {
        let mut notes = Vec::new();
        for (round, samples) in self.rounds.iter().enumerate() {
            for (sample, candidate) in samples.iter().zip(candidates) {
                for note in sample.iter().flat_map(|sample| &sample.notes) {
                    notes.push(format!("round {}, {}: {note}", round + 1, candidate.name));
                }
            }
        }
        notes.extend(self.failures.iter().cloned());
        notes
    }
}

impl Report {
    /// The table and what is to be known about it.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.settings {
            text += &format!("- {name}: {value}\n");
        }
        text += "\n| row | figure |";
        for candidate in &self.candidates {
            text += &format!(" {} |", candidate.title());
        }
        for candidate in self.candidates.iter().skip(1) {
            text += &format!(" vs {}, rounds | median |", candidate.title());
        }
        let columns = 2 + self.candidates.len() + 2 * self.candidates.len().saturating_sub(1);
        text += &format!("\n|{}\n", " --- |".repeat(columns));
        for result in &self.results {
            for metric in result.row.metrics {
                text += &self.line(result, metric);
            }
        }
        text += &self.explanations();
        text
    }

    fn line(&self, result: &RowResult, metric: &Metric) -> String {
        let figure =
            if metric.unit.is_empty() { metric.name.to_owned() } else { format!("{}, {}", metric.name, metric.unit) };
        let mut line = format!("| {} | {figure} |", result.row.name);
        for server in 0..self.candidates.len() {
            let value = median(&result.values(server, metric)).map_or("–".to_owned(), number);
            line += &format!(" {value} |");
        }
        for other in 1..self.candidates.len() {
            match result.ratios(other, metric) {
                Some(ratios) => {
                    let rounds: Vec<String> = ratios.rounds.iter().map(|ratio| format!("{ratio:.2}")).collect();
                    line += &format!(" {} | **{:.2}** |", rounds.join(" "), ratios.median);
                }
                None => line += " – | – |",
            }
        }
        line + "\n"
    }

    fn explanations(&self) -> String {
        let mut text = String::from(
            "\nValues are medians of the rounds. A ratio is taken within a round and says how many times better the first \
             server is: above 1 it is ahead, whichever direction is better for the figure. \"CPU us\" is the server's own \
             on-CPU time (/proc/PID/task/*/schedstat, all threads); \"core busy\" is all of its core that was not idle \
             (/proc/stat), other work and interrupts included.\n\n",
        );
        for result in &self.results {
            text += &format!("- `{}`: {}\n", result.row.name, result.row.what);
        }
        let doubts: Vec<String> = self
            .results
            .iter()
            .flat_map(|result| {
                let notes = result.notes(&self.candidates).into_iter();
                notes.map(|note| format!("- `{}`: {note}\n", result.row.name))
            })
            .collect();
        if !doubts.is_empty() {
            text += "\nDoubts:\n\n";
            doubts.iter().for_each(|doubt| text += doubt);
        }
        text
    }

    /// Every value of every round.
    pub(crate) fn json(&self) -> Value {
        let servers: Vec<Value> = self
            .candidates
            .iter()
            .map(|candidate| json!({ "name": candidate.name, "version": candidate.version }))
            .collect();
        let rows: Vec<Value> = self.results.iter().map(|result| self.row_json(result)).collect();
        let settings: serde_json::Map<_, _> =
            self.settings.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({ "settings": settings, "servers": servers, "rows": rows })
    }

    fn row_json(&self, result: &RowResult) -> Value {
        let metrics = result.row.metrics.iter().map(|metric| {
            let rounds: Vec<Value> = result
                .rounds
                .iter()
                .map(|round| {
                    let value = |(sample, candidate): (&Option<Sample>, &Candidate)| {
                        Some((candidate.name.clone(), json!(sample.as_ref()?.get(metric.name)?)))
                    };
                    Value::Object(round.iter().zip(&self.candidates).filter_map(value).collect())
                })
                .collect();
            let ratios: serde_json::Map<_, _> = (1..self.candidates.len())
                .filter_map(|other| {
                    let ratios = result.ratios(other, metric)?;
                    Some((self.candidates[other].name.clone(), json!(ratios.median)))
                })
                .collect();
            json!({
                "name": metric.name,
                "unit": metric.unit,
                "better": match metric.better {
                    Better::Less => "less",
                    Better::More => "more",
                    Better::Neither => "neither",
                },
                "rounds": rounds,
                "median_ratio_against": ratios,
            })
        });
        json!({
            "row": result.row.name,
            "what": result.row.what,
            "metrics": metrics.collect::<Vec<_>>(),
            "doubts": result.notes(&self.candidates),
        })
    }

    /// The server that the chart compares with: the first that relays, behind the first of all.
    pub(crate) fn rival(&self) -> Option<usize> {
        (1..self.candidates.len()).find(|index| self.candidates[*index].kind != Kind::Echo)
    }
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (below, above) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((below + above) / 2.0)
}

/// Three significant digits; thousands as k.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => format!("{:.0} k", value / 1e3),
        size if size >= 1_000.0 => format!("{:.1} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
